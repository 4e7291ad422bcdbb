"""The figures of a run through the command line: what they show, and files a person can open."""

import html
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import pytest
from absl import flags
from matplotlib import pyplot as plt
from networks import CROP, SIZE, run, small_setup, tiny_config
from PIL import Image

from alexnet_jax.data.splits import Subset
from alexnet_jax.figures.kernels import kernel_images, tiled
from alexnet_jax.figures.style import save_figure
from alexnet_jax.inference.analysis import confusion, judge, neighbours, right_and_wrong
from alexnet_jax.inference.predictor import load_trained
from alexnet_jax.network import merge
from alexnet_jax.run.flags import define_shown_runs
from alexnet_jax.run.metrics import read_rows
from alexnet_jax.system import cli
from alexnet_jax.training import train

mpl.use("agg")


def test_an_older_command_line_chooses_the_same_images():
    options = flags.FlagValues()
    define_shown_runs(options)
    cli.parse(options, ["--lot=3"])
    assert options.sample_seed == 3


@pytest.fixture(scope="module")
def workdir(data_dir, tmp_path_factory):
    """A short run."""
    folder = tmp_path_factory.mktemp("figures") / "run"
    train(tiny_config(data_dir, folder, log_every=1))
    return folder


@pytest.mark.slow
def test_the_nearest_images_are_those_of_a_search_by_hand(workdir, data_dir):
    """In batches of 16 of 50 training images, against every distance in float64."""
    trained = load_trained(str(workdir), batch_size=16)
    dataset = trained.data(str(data_dir))
    judged, setup = judge(trained, dataset.split("test")), small_setup()
    start = (SIZE - CROP) // 2

    @jax.jit
    def activations(params, pixels):
        return merge(setup.graph, params).activations(pixels, "fc7")

    def fc7(split: Subset, numbers: np.ndarray) -> np.ndarray:
        pixels = split.read(numbers).images.astype(np.float32) - trained.mean
        towers = activations(trained.params, jnp.asarray(pixels[:, start : start + CROP, start : start + CROP]))
        return np.concatenate([np.asarray(x, np.float64) for x in towers], axis=-1)

    queries, among = np.array([3, 32, 7]), dataset.split("train")
    features = fc7(among, np.arange(50))
    apart = np.array([[np.sqrt(((one - query) ** 2).sum()) for one in features] for query in fc7(judged.split, queries)])
    found = neighbours(trained, judged, queries, among)
    for (image, name, near), number, distances in zip(found, queries, apart, strict=True):
        np.testing.assert_array_equal(image, judged.split.read(np.array([number])).images[0])
        assert name == trained.classes[judged.split.labels[number]]
        assert [one.index for one in near] == np.argsort(distances)[:6].tolist()
        assert [one.distance for one in near] == pytest.approx(sorted(distances)[:6], rel=1e-3)
        for one in near:
            np.testing.assert_array_equal(one.image, among.read(np.array([one.index])).images[0])
            assert one.name == trained.classes[among.labels[one.index]]
    chosen = right_and_wrong(judged, 2, 0)
    right = judged.guesses[chosen] == judged.split.labels[chosen]
    assert right.tolist() == sorted(right.tolist(), reverse=True)
    assert len(set(chosen.tolist())) == len(chosen) == min(2, right.sum()) + min(2, (~right).sum())


@pytest.fixture(scope="module")
def drawn(workdir):
    """The figures of the command line by name, before they were written, and the paths that it says."""
    found = {}

    def save(figure, folder, name):
        found[name] = figure
        return save_figure(figure, folder, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("alexnet_jax.figures.command.save_figure", save)
        result = run("figures", f"--workdir={workdir}", "--layer=fc6")
    assert result.returncode == 0, result.stderr
    return found, result.stdout.splitlines()


@pytest.mark.slow
def test_the_command_line_writes_every_figure_as_png_and_svg(drawn, workdir):
    figures, paths = drawn
    names = [
        "curves", "magnitudes", "conv1_kernels", "predictions", "nearest", "confusion", "activations_fc6", "training_error",
    ]  # fmt: skip
    assert list(figures) == names
    assert paths == [str(workdir / "figures" / f"{name}.png") for name in names]
    for name, path in zip(names, paths, strict=True):
        figure = figures[name]
        with Image.open(path) as image:
            image.load()
            assert image.size == pytest.approx(150 * figure.get_size_inches(), abs=1)
        written = html.unescape(Path(path.replace(".png", ".svg")).read_text())
        assert written.count("<svg") == 1
        said = [text.get_text() for axis in figure.axes for text in (axis.xaxis.label, axis.yaxis.label, axis.title)]
        for line in "\n".join([figure.get_suptitle(), *said]).splitlines():
            assert f"<!-- {line} -->" in written or not line
    assert figures["training_error"].axes[0].get_xlabel() == "epoch"


@pytest.mark.slow
def test_the_figures_of_the_command_line_show_the_metrics_of_the_run(drawn, workdir):
    figures, rows = drawn[0], read_rows(workdir)
    title = "paper_eighth on tiny, seed 0"
    assert (figures["curves"].get_suptitle(), figures["magnitudes"].get_suptitle().splitlines()[0]) == (
        title, f"magnitudes, {title}",
    )  # fmt: skip
    for axis, column in zip(figures["curves"].axes, ("loss", "top1_error"), strict=True):
        lines = {line.get_label(): line.get_xydata().tolist() for line in axis.get_lines()}
        for split in ("train", "validation"):
            mine = [[row["epoch"], row[column]] for row in rows if row["split"] == split]
            assert lines[split] == mine
            assert len(mine) >= 1
    (line,) = figures["training_error"].axes[0].get_lines()
    assert line.get_xydata().tolist() == [[row["epoch"], row["top1_error"]] for row in rows if row["split"] == "train"]
    (recorded,) = (row["magnitudes"] for row in rows if "magnitudes" in row)
    sizes = {line.get_label(): line.get_ydata().tolist() for line in figures["magnitudes"].axes[0].get_lines()}
    assert sizes == {layer: [values["kernel"]] for layer, values in recorded.items()}


@pytest.mark.slow
def test_the_figures_of_the_command_line_show_the_network_and_its_images(drawn, workdir, data_dir):
    figures, trained = drawn[0], load_trained(str(workdir))
    dataset = trained.data(str(data_dir))
    judged = judge(trained, dataset.split("test"))
    pictures = kernel_images(np.asarray(trained.params["conv1"]["kernel"]))
    for axis, mine in zip(figures["conv1_kernels"].axes, pictures, strict=True):
        np.testing.assert_array_equal(axis.images[0].get_array(), tiled(mine, 16, 1.0))
    counts = confusion(judged.split.labels, judged.guesses, len(trained.classes))
    shares = figures["confusion"].axes[0].images[0].get_array().data
    np.testing.assert_array_equal(shares, counts / np.maximum(counts.sum(1, keepdims=True), 1))
    assert f"{judged.score.top1_error:.1f} % top-1 error, test split" in figures["confusion"].get_suptitle()

    chosen = right_and_wrong(judged, 4, 0)
    shown = [axis for axis in figures["predictions"].axes if axis.images]
    for axis, image, label in zip(shown, judged.split.read(chosen).images, judged.split.labels[chosen], strict=True):
        np.testing.assert_array_equal(axis.images[0].get_array(), image)
        assert axis.get_title() == trained.classes[label]
    right = (judged.guesses == judged.split.labels).sum()
    assert f"the {right} right and the {33 - right} wrong" in figures["predictions"].get_suptitle()

    images = judged.split.parts[0].images
    queries = [axis.images[0].get_array() for axis in figures["nearest"].axes if "query" in axis.get_xlabel()]
    assert len(queries) == 5
    assert all((images == query).all((1, 2, 3)).any() for query in queries)
    near = [axis for axis in figures["nearest"].axes if "#" in axis.get_xlabel()]
    for axis in near:
        index = int(re.search(r"#(\d+)", axis.get_xlabel())[1])
        np.testing.assert_array_equal(axis.images[0].get_array(), dataset.split("train").read(np.array([index])).images[0])
    assert len(near) == 5 * 6

    towers = {axis.get_title(loc="left"): axis.images[0].get_array() for axis in figures["activations_fc6"].axes[1:3]}
    assert list(towers) == ["tower 0", "tower 1"]
    assert all(np.isfinite(values).sum() == 256 for values in towers.values())
    assert not np.array_equal(*towers.values(), equal_nan=True)


@pytest.mark.slow
def test_a_run_that_still_trains_says_in_each_figure_what_it_lacks(workdir, tmp_path, monkeypatch):
    """The first step of four, before the first validation and the first checkpoint."""
    young = tmp_path / "young"
    shutil.copytree(workdir, young, ignore=shutil.ignore_patterns("checkpoints", "figures"))
    (young / "metrics.jsonl").write_text((workdir / "metrics.jsonl").read_text().splitlines(keepends=True)[0])
    found = {}
    monkeypatch.setattr(
        "alexnet_jax.figures.command.save_figure", lambda figure, folder, name: found.setdefault(name, figure)
    )
    result = run("figures", f"--workdir={young}")
    assert result.returncode == 0, result.stderr
    said = {name: [text.get_text() for text in figure.texts] for name, figure in found.items() if not figure.axes}
    title = "paper_eighth on tiny, seed 0"
    absent = "the run has no finished checkpoint yet"
    unrecorded = "the run has no validation yet, or an earlier version trained it"
    assert said == {
        "magnitudes": [f"magnitudes, {title}", f"none recorded: {unrecorded}"],
        "conv1_kernels": [f"kernels, {title}", absent],
        "predictions": [f"predictions, {title}", absent],
        "nearest": [f"nearest, {title}", absent],
        "confusion": [f"confusion, {title}", absent],
        "activations_conv1": [f"activations, {title}", absent],
    }
    assert found["curves"].get_suptitle() == f"{title}\nnot finished: epoch 0.16 of 0.64"
    (line,) = found["training_error"].axes[0].get_lines()
    assert (line.get_label(), line.get_marker()) == ("young, not finished: epoch 0.16 of 0.64", "o")
    for asked in ("--only=kernels", "--step=4"):
        refused = run("figures", f"--workdir={young}", asked)
        assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
        assert "has no finished checkpoint yet" in refused.stderr
    plt.close("all")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--workdir=RUN/none"], "--workdir=RUN/none holds no run: there is no config.json"),
        (["--workdir=RUN", "--only=kernels,nothing"], "--only=nothing: no such figure; there are curves, training_error,"),
        (["--workdir=RUN", "--layer=conv9"], "--layer=conv9: no such hidden layer; --architecture=paper_eighth has conv1,"),
    ],
)
def test_bad_input_is_one_line(workdir, flags, message):
    before = sorted(workdir.rglob("*"))
    result = run("figures", *(flag.replace("RUN", str(workdir)) for flag in flags))
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith(f"error: {message.replace('RUN', str(workdir))}")
    assert result.stderr.count("\n") == 1
    assert sorted(workdir.rglob("*")) == before
