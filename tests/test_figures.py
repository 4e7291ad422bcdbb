"""The figures: the right curves, every kernel in its place, and files a person can open."""

import html
import re
from dataclasses import replace
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

from alexnet_jax.config import Config
from alexnet_jax.data.splits import Subset
from alexnet_jax.figures import (
    draw_activations,
    draw_confusion,
    draw_curves,
    draw_kernels,
    draw_magnitudes,
    draw_training_error,
    kernel_images,
    run_labels,
    save_figure,
    tiled,
)
from alexnet_jax.inference.analysis import (
    confused_pairs,
    confusion,
    errors_by_class,
    judge,
    neighbours,
    right_and_wrong,
)
from alexnet_jax.inference.predictor import load_trained
from alexnet_jax.network import merge
from alexnet_jax.run.flags import define_shown_runs
from alexnet_jax.run.metrics import read_rows
from alexnet_jax.system import cli
from alexnet_jax.train import train

mpl.use("agg")


def test_curves_hold_the_rows_of_each_split():
    rows = [
        {"split": split, "epoch": epoch, "loss": 3 - epoch, "top1_error": 90 - epoch, "learning_rate": rate}
        for epoch, rate in ((1, 0.01), (2, 0.001))
        for split in ("train", "validation")
    ]
    figure = draw_curves(rows, "title")
    loss = {line.get_label(): line.get_xydata().tolist() for line in figure.axes[0].get_lines()}
    assert loss["train"] == loss["validation"] == [[1, 2], [2, 1]]
    assert [line.get_xdata()[0] for line in figure.axes[1].get_lines()[2:]] == [2]  # where the rate dropped
    plt.close(figure)


def test_kernels_are_scaled_one_by_one_and_laid_out_by_tower():
    kernel = np.zeros((2, 3, 3, 3, 20))
    kernel[0, 0, 0, 0, 0] = 4.0  # red, top left, first kernel of tower 0
    kernel[1, 2, 2, 2, 17] = -0.5  # anti-blue, bottom right, second row of tower 1
    pictures = kernel_images(kernel)
    np.testing.assert_array_equal(pictures[0, 0, 0, 0], [1, 0.5, 0.5])
    np.testing.assert_array_equal(pictures[1, 17, 2, 2], [0.5, 0.5, 0])
    figure = draw_kernels(kernel, "title", columns=16)
    top, bottom = (axis.images[0].get_array() for axis in figure.axes)
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["tower 0", "tower 1"]
    np.testing.assert_array_equal(top[0, 0], [1, 0.5, 0.5])
    np.testing.assert_array_equal(bottom[4 + 2, 4 + 2], [0.5, 0.5, 0])
    plt.close(figure)


def test_figure_1_has_a_line_for_each_run_named_by_what_differs():
    configs = [Config(workdir=f"runs/{name}", seed=seed) for name, seed in (("a", 0), ("b", 1))]
    assert run_labels(configs) == ["seed=0", "seed=1"]
    assert run_labels(configs[:1]) == ["a"]
    assert run_labels([configs[0], replace(configs[0], workdir="other/a")]) == ["runs/a", "other/a"]
    many = [configs[0], replace(configs[1], batch_size=3, drop_epochs=(1.0, 2.0))]
    assert run_labels(many) == ["a", "b"]
    rows = [{"split": split, "epoch": 1.5, "top1_error": 40} for split in ("train", "validation")]
    figure = draw_training_error({"tanh": rows, "ReLU": [*rows, {"split": "train", "epoch": 2, "top1_error": 30}]})
    lines = figure.axes[0].get_lines()
    assert [(line.get_label(), line.get_xydata().tolist()) for line in lines] == [
        ("tanh", [[1.5, 40]]),
        ("ReLU", [[1.5, 40], [2, 30]]),
    ]
    assert len({line.get_linestyle() for line in lines}) == 2
    plt.close(figure)


def test_magnitudes_are_drawn_as_recorded():
    values = {"kernel": 0.5, "kernel_update": 0.001, "bias": 0.0, "bias_update": 0.0}
    rows = [{"epoch": 1, "magnitudes": {"conv1": values}}, {"epoch": 1}, {"epoch": 2, "magnitudes": {"conv1": values}}]
    figure = draw_magnitudes(rows, "title")
    sizes, ratios, biases = (axis.get_lines()[0] for axis in figure.axes[:3])
    assert sizes.get_xydata().tolist() == [[1, 0.5], [2, 0.5]]
    assert ratios.get_xydata().tolist() == [[1, 0.002], [2, 0.002]]
    assert np.isnan(biases.get_ydata()).all()
    plt.close(figure)


def test_confusions_are_counted_row_by_row():
    rng = np.random.default_rng(0)
    labels, guesses = rng.integers(0, 5, 200), rng.integers(0, 4, 200)  # 4 is never said
    expected = np.zeros((6, 6), int)  # and there is no 5
    for label, guess in zip(labels, guesses, strict=True):
        expected[label, guess] += 1
    counts = confusion(labels, guesses, 6)
    np.testing.assert_array_equal(counts, expected)
    pairs = sorted(
        ((expected[row, column], -row, -column) for row in range(6) for column in range(6) if row != column), reverse=True
    )
    assert confused_pairs(counts, 3) == [(-row, -column, number) for number, row, column in pairs[:3]]
    assert confused_pairs(np.diag([3, 4]), 3) == []
    assert errors_by_class(np.array([[3, 1, 0], [0, 4, 0], [2, 2, 0]])) == [
        (2, 4, 4, 0), (0, 4, 1, 1), (1, 4, 0, None),
    ]  # fmt: skip


@pytest.mark.parametrize("classes", [3, 80, 1000])
def test_every_number_of_classes_has_a_figure(classes):
    counts = np.zeros((classes, classes), int)
    counts[0, 1], counts[2, 2] = 7, 5
    names = [f"name {number}" for number in range(classes)]
    figure = draw_confusion(counts, names, "title")
    axis = figure.axes[0]
    if classes == 1000:
        assert [text.get_text() for text in axis.get_yticklabels()] == ["name 0 → name 1"]
        assert [text.get_text() for text in axis.texts] == [" 7 of 7"]
    else:
        np.testing.assert_array_equal(axis.images[0].get_array(), counts / np.maximum(counts.sum(1, keepdims=True), 1))
        assert [text.get_text() for text in axis.get_yticklabels()][:2] == ["name 0 (7)", "name 1 (0)"]
        assert [text.get_text() for text in axis.texts] == (["7", "5"] if classes == 3 else [])
    plt.close(figure)


def test_activations_lie_below_their_tower():
    """Two towers of 50 maps, of which 48 are drawn; then of 8 units."""
    images = [np.zeros((5, 5, 3), np.uint8)] * 2
    maps = np.zeros((2, 3, 3, 100))
    maps[1, 0, 2, 50] = 9.0  # the first map of tower 1
    maps[0, 2, 2, 47] = 5.0  # the 48th of tower 0
    maps[0, 1, 1, 49] = 5.0  # not drawn
    figure = draw_activations(images, maps, 2, "title")
    first, second = (np.asarray(figure.axes[number].images[0].get_array()) for number in (1, 5))
    assert (np.nan_to_num(first).sum(), first[-1, -1]) == (5.0, 5.0)
    assert (np.nan_to_num(second).sum(), second[0, 2]) == (9.0, 9.0)
    assert [axis.get_title(loc="left") for axis in figure.axes[1:3]] == ["tower 0", "tower 1"]
    plt.close(figure)
    figure = draw_activations(images, np.arange(32.0).reshape(2, 16), 2, "title")
    np.testing.assert_array_equal(figure.axes[2].images[0].get_array(), np.arange(8.0, 16).reshape(2, 4))
    plt.close(figure)


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
        patch.setattr("alexnet_jax.figures.__main__.save_figure", save)
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
    shares = figures["confusion"].axes[0].images[0].get_array()
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
