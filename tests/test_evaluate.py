"""Evaluation counts every example once and gives the same numbers for every batch size and mesh."""

import contextlib
import io
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import CLASSES, CROP, SIZE, run, small_mean, small_setup, tiny_config

from alexnet_jax.augment import views
from alexnet_jax.data.loader import Loader
from alexnet_jax.data.splits import Subset, whole
from alexnet_jax.data.store import Split
from alexnet_jax.evaluate import COMMAND
from alexnet_jax.evaluation import Evaluator, make_eval_fn
from alexnet_jax.network import merge
from alexnet_jax.scores import Score, readable
from alexnet_jax.training import train
from alexnet_jax.values import three_digits


def noise_split(count: int) -> Subset:
    """Images of many colours, so that a fresh network tells them apart."""
    rng = np.random.default_rng(5)
    images = (rng.integers(0, 200, (count, 1, 1, 3)) + rng.integers(0, 56, (count, SIZE, SIZE, 3))).astype(np.uint8)
    return whole(Split(images, rng.integers(0, CLASSES, count).astype(np.int32)))


def sharp_params(setup, split: Subset):
    """Fresh parameters whose classifier is scaled and centred until it tells the images apart; the same on every mesh."""
    plain = small_setup(seed=setup.config.seed)
    params = plain.initial_state().params
    centre = (SIZE - CROP) // 2
    pixels = split.parts[0].images[:8, centre : centre + CROP, centre : centre + CROP] - np.float32(127)
    params["fc8"]["kernel"] *= 300
    logits = jax.jit(lambda params, pixels: merge(plain.graph, params)(pixels))(params, pixels)
    params["fc8"]["bias"] = -logits.mean(0)
    return setup.mesh.put(jax.device_get(params), setup.specs)


def reference(setup, params, split, view_count):
    """One example at a time, views cut with NumPy, softmax averaged with NumPy."""
    network = jax.jit(lambda params, pixels: merge(setup.graph, params)(pixels))
    probabilities = []
    for image in split.parts[0].images:
        total = np.zeros(CLASSES)
        for view in views(view_count, SIZE, CROP):
            cut = image.astype(np.float32) - small_mean()
            cut = cut[view.top : view.top + CROP, view.left : view.left + CROP]
            cut = cut[:, ::-1] if view.flipped else cut
            logits = np.asarray(network(params, jnp.asarray(cut[None]))[0], np.float64)
            total += np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        probabilities.append(total / view_count)
    probabilities = np.array(probabilities)
    own = probabilities[np.arange(len(split)), split.labels]
    ranks = (probabilities > own[:, None]).sum(1)
    return probabilities, -np.log(own).mean(), 100 * (ranks >= 1).mean(), 100 * (ranks >= 5).mean()


@pytest.mark.slow
@pytest.mark.parametrize("view_count", [1, 10])
def test_centre_and_ten_views_against_numpy(view_count):
    setup, split = small_setup(), noise_split(13)
    params = sharp_params(setup, split)
    member, feed = (make_eval_fn(setup, small_mean()), params), Loader(setup.mesh, split)
    score, kept = Evaluator(setup.mesh, 8)([member], feed, view_count, keep=True)
    probabilities, loss, top1, top5 = reference(setup, params, split, view_count)
    assert len(np.unique(probabilities.argmax(1))) > 1
    np.testing.assert_allclose(np.exp(kept), probabilities, rtol=1e-3, atol=1e-6)
    assert (score.examples, score.top1_error, score.top5_error) == (13, pytest.approx(top1), pytest.approx(top5))
    assert score.loss == pytest.approx(loss, rel=1e-4)


@pytest.mark.slow
def test_661_images_count_661_on_every_mesh_and_batch_size():
    split, scores = noise_split(661), []
    for spmd, mesh, batch_size in [
        ("shard_map", "1x1", 64), ("shard_map", "1x2", 61), ("shard_map", "4x2", 64), ("pmap", "2x2", 100),
    ]:  # fmt: skip
        setup = small_setup(spmd, mesh, batch_size=batch_size)
        member = make_eval_fn(setup, small_mean()), sharp_params(setup, split)
        on_device = "yes" if mesh in ("1x2", "2x2") else "no"
        scores.append(Evaluator(setup.mesh, batch_size)([member], Loader(setup.mesh, split, on_device))[0])
    for score in scores:
        assert score.examples == 661
        assert (score.top1_error, score.top5_error) == (scores[0].top1_error, scores[0].top5_error)
        assert score.loss == pytest.approx(scores[0].loss, rel=1e-5)


@pytest.mark.slow
def test_an_ensemble_averages_probabilities():
    models = [small_setup(), small_setup(seed=1)]
    split = noise_split(9)
    members = [(make_eval_fn(setup, small_mean()), sharp_params(setup, split)) for setup in models]
    evaluator = Evaluator(models[0].mesh, 4)
    feed = Loader(models[0].mesh, split)
    single = [np.exp(evaluator([member], feed, keep=True)[1]) for member in members]
    assert np.abs(single[0] - single[1]).max() > 1e-3
    together = np.exp(evaluator(members, feed, keep=True)[1])
    np.testing.assert_allclose(together, (single[0] + single[1]) / 2, rtol=1e-4)


@pytest.fixture(scope="module")
def runs(data_dir, tmp_path_factory):
    """Two short runs that differ in their seed."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        train(tiny_config(data_dir, folder / str(seed), seed=seed, checkpoint_every=2))
    return folder


def evaluate(*flags: str) -> dict:
    result = run("evaluate", *flags)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


class Terminal(io.StringIO):
    """What stdout is when a person looks on."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_is_told_three_digits_within_80_columns():
    score = Score(examples=50000, loss=1.9876, top1_error=40.4211, top5_error=9.0771)
    assert readable(score, "validation", 10, [440], 12.345).splitlines() == [
        "top-1 error 40.4 % (95 %: 40.0 to 40.9)  top-5 error 9.08 %  loss 1.99",
        "50,000 validation images, 10 views, step 440, 12.3 s",
    ]
    perfect = readable(Score(33, 0.0, 100.0, 0.0), "test", 1, [4, 12], 1234.5).splitlines()
    assert perfect == [
        "top-1 error 100 % (95 %: 89.6 to 100)  top-5 error 0.00 %  loss 0.00",
        "33 test images, 1 view, step 4, 12, 1,234 s",
    ]
    averaged = readable(score, "test", 1, [4, 12], 1.5, ["ema, mean of steps 2, 3, 4", "mean of steps 10, 11, 12"])
    assert averaged.splitlines()[2:] == ["weights: ema, mean of steps 2, 3, 4; mean of steps 10, 11, 12"]
    assert len(readable(score, "test", 1, [4, 12], 1.5, ["", ""]).splitlines()) == 2


@pytest.mark.slow
def test_the_command_line(runs, tmp_path):
    one = evaluate(f"--workdir={runs / '0'}", f"--predictions={tmp_path / 'p.npz'}")
    assert list(one) == [
        "dataset", "split", "examples", "left_out", "views", "step", "loss", "top1_error", "top5_error", "top1_interval",
    ]  # fmt: skip
    assert (one["split"], one["examples"], one["views"], one["step"]) == ("test", 33, 1, 4)
    predictions = np.load(tmp_path / "p.npz")
    assert predictions["probabilities"].shape == (33, CLASSES)
    np.testing.assert_allclose(predictions["probabilities"].sum(1), 1, rtol=1e-4)
    wrong = (predictions["probabilities"].argmax(1) != predictions["labels"]).mean()
    assert one["top1_error"] == pytest.approx(100 * wrong)

    with contextlib.redirect_stdout(Terminal()) as terminal:
        assert COMMAND([f"--workdir={runs / '0'}"]) == 0
    first, second = terminal.getvalue().splitlines()
    numbers = (one["top1_error"], *one["top1_interval"], one["top5_error"], one["loss"])
    assert first == "top-1 error {} % (95 %: {} to {})  top-5 error {} %  loss {}".format(*map(three_digits, numbers))
    assert re.fullmatch(r"33 test images, 1 view, step 4, [0-9.]+ s", second)

    elsewhere = evaluate(f"--workdir={runs / '0'}", "--mesh=2x2", "--spmd=pmap", "--batch_size=10")
    assert elsewhere["loss"] == pytest.approx(one["loss"], rel=1e-5)
    validation = evaluate(f"--workdir={runs / '0'}", "--split=validation", "--step=best")
    recorded = [json.loads(line) for line in (runs / "0" / "metrics.jsonl").read_text().splitlines()]
    last = next(row for row in recorded if row["split"] == "validation")
    assert (validation["examples"], validation["top1_error"]) == (21, pytest.approx(last["top1_error"]))

    both = evaluate(f"--workdir={runs / '0'}", f"--workdir={runs / '1'}", "--views=10", "--step=2")
    assert (both["step"], both["views"], both["examples"]) == ([2, 2], 10, 33)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--workdir=RUNS/none"], "holds no run"),
        ([], "--workdir is missing"),
        (["--workdir=RUNS/0", "--step=3"], "--step=3: .* has the checkpoints 2, 4, 'latest' and 'best'"),
        (["--workdir=RUNS/0", "--views=5"], "--views is 1 or 10"),
        (["--workdir=RUNS/0", "--predictions=/nowhere/p.npz"], "--predictions=/nowhere/p.npz: there is no folder /nowhere"),
        (["--workdir=RUNS/0", "--data_dir=/nowhere"], "--dataset=tiny is not prepared at 66 px under --data_dir=/nowhere"),
        (["--workdir=RUNS/0", "--mesh=9x1", "--batch_size=9"], "--mesh=9x1 needs 9 devices and 8 are present"),
        (["--workdir=RUNS/0", "latest"], "'latest' is not a flag"),
    ],
)
def test_bad_input_is_one_line(runs, flags, message):
    result = run("evaluate", *[flag.replace("RUNS", str(runs)) for flag in flags])
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert re.search(message, result.stderr)
