"""The figures as functions: the right curves, every kernel, count and map in its place."""

from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex, to_rgb
from networks import record_row

from alexnet_jax.config import Config
from alexnet_jax.figures.confusion import draw_confusion
from alexnet_jax.figures.curves import (
    draw_curves,
    draw_magnitudes,
    draw_training_error,
    leap_note,
    rate_drops,
    run_labels,
)
from alexnet_jax.figures.examples import draw_nearest, draw_predictions
from alexnet_jax.figures.kernels import draw_activations, draw_kernels, kernel_images
from alexnet_jax.figures.style import COLOURS, NEUTRAL, PALETTE, RIGHT, WRONG, write_figure
from alexnet_jax.inference.analysis import Neighbour, confused_pairs, confusion, errors_by_class

mpl.use("agg")


def learning_rows(rates: list[float], splits: tuple[str, ...] = ("train", "validation")) -> list[dict]:
    """Rows of each split at the epochs 1, 2, ..., with these learning rates."""
    return [
        record_row(10 * epoch, split, epoch=epoch, loss=3 - epoch, top1_error=90 - epoch, learning_rate=rate)
        for epoch, rate in enumerate(rates, 1)
        for split in splits
    ]


def test_curves_hold_the_rows_of_each_split():
    figure = draw_curves(learning_rows([0.01, 0.01]), "title", Config(epochs=2))
    for axis, column in zip(figure.axes, (lambda epoch: 3 - epoch, lambda epoch: 90 - epoch), strict=True):
        lines = {line.get_label(): line for line in axis.get_lines()}
        assert list(lines) == ["train", "validation"]
        assert all(line.get_xydata().tolist() == [[1, column(1)], [2, column(2)]] for line in lines.values())
        assert [line.get_color() for line in lines.values()] == [COLOURS["train"], COLOURS["validation"]]
        assert not axis.texts
    assert [axis.get_ylabel() for axis in figure.axes] == ["loss (nats)", "top-1 error (%)"]
    assert (figure.get_suptitle(), figure.get_supxlabel()) == ("title", "")
    plt.close(figure)


def test_the_curve_of_the_averaged_weights_is_dashed():
    averaged = {"loss": 2.0, "top1_error": 44.0, "top5_error": 9.0}
    rows = [record_row(1, "train"), record_row(1, "validation"), record_row(2, "validation", ema=averaged)]
    figure = draw_curves(rows, "a run", Config(epochs=2.0))
    for axis, value in zip(figure.axes, (2.0, 44.0), strict=True):
        lines = {line.get_label(): line for line in axis.get_lines()}
        line = lines["validation, averaged weights"]
        assert line.get_xydata().tolist() == [[2.0, value]]
        assert (line.get_linestyle(), line.get_marker()) == ("--", "o")
        assert line.get_color() == lines["validation"].get_color()
    assert [axis.get_ylabel() for axis in figure.axes] == ["loss (nats)", "top-1 error (%)"]
    plt.close(figure)


@pytest.mark.parametrize(("points", "marker"), [(1, "o"), (12, "o"), (13, "")])
def test_a_curve_of_few_points_has_markers(points, marker):
    rows = learning_rows([0.01] * points)
    for figure in (draw_curves(rows, "title", Config(epochs=points)), draw_training_error({"run": rows})):
        assert {line.get_marker() for line in figure.axes[0].get_lines()} == {marker}
        plt.close(figure)


def test_drops_of_the_rate_are_labelled_and_the_leap_after_them_is_explained():
    """The drops by 10 and by 4 are after the epochs 2 and 3. 0.8^10.3 is a tenth."""
    rows = learning_rows([0.02, 0.02, 0.002, 0.0005])
    assert rate_drops(rows) == [(2, 0.02, 0.002), (3, 0.002, 0.0005)]
    figure = draw_curves(rows, "title", Config(epochs=4, momentum=0.8))
    for axis in figure.axes:
        assert [line.get_xdata()[0] for line in axis.get_lines()[2:]] == [2, 3]
        assert [(text.xy[0], text.get_text()) for text in axis.texts] == [(2, "rate / 10 = 0.002"), (3, "rate / 4 = 0.0005")]
    note = figure.get_supxlabel()
    assert "the training loss can leap" in note
    assert "10 times too large.\nMomentum 0.8 takes 10 steps" in note
    plt.close(figure)
    for quiet in (Config(rate_in_velocity=False), Config(momentum=0.0)):  # the velocity has no old rate, or does not last
        assert leap_note(rate_drops(rows), quiet) == ""
    assert leap_note([], Config()) == ""


@pytest.mark.parametrize(
    ("planned", "said"),
    [
        ({"epochs": 2.0}, ""),
        ({"epochs": 1.99}, ""),  # the last step may begin the epoch after
        ({"epochs": 50.0}, "not finished: epoch 2 of 50"),
        ({"steps": 20}, ""),
        ({"steps": 25}, "not finished: epoch 2 of 2.5"),
    ],
)
def test_curves_say_that_a_run_is_not_finished_or_not_validated(planned, said):
    figure = draw_curves(learning_rows([0.01, 0.01], ("train",)), "title", Config(**planned))
    assert figure.get_suptitle() == "title" + f"\n{said}" * bool(said)
    legend = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert legend == ["train", "no validation recorded"]
    plt.close(figure)


def test_right_and_wrong_have_colours_of_their_own():
    """Those who see no red or no green can tell them apart, by the matrices of Machado, Oliveira and Fernandes, 2009."""
    assert not {RIGHT, WRONG} & {*PALETTE, *COLOURS.values()}
    assert len(set(PALETTE)) == len(PALETTE) >= 8  # the paper's layers
    no_red = [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    no_green = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    for seen in (np.eye(3), np.array(no_red), np.array(no_green)):
        for one, other in ((RIGHT, WRONG), PALETTE[:2]):
            assert np.linalg.norm(lab(one, seen) - lab(other, seen)) > 30


def lab(colour: str, seen: np.ndarray) -> np.ndarray:
    """CIE L*a*b* of a colour, seen through a matrix of linear RGB."""
    values = np.array(to_rgb(colour))
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(to_xyz @ np.clip(seen @ linear, 0, 1) / (0.9505, 1, 1.089))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def guess(name: str, probability: float) -> dict:
    return {"class": name, "index": 0, "probability": probability}


def test_predictions_have_percentages_and_one_colour_for_right_and_one_for_wrong():
    image = np.zeros((4, 4, 3), np.uint8)
    tops = [guess("apple", 0.875), guess("pear", 0.125)]
    shown = [("apple", image, tops, "apple"), ("pear", image, tops, "pear"), ("apple", image, tops, "")]
    figure = draw_predictions(shown, "title")
    found = [axis for axis in figure.axes if axis.patches]
    assert len(found) == 3
    colours = [[to_hex(bar.get_facecolor()).upper() for bar in axis.patches] for axis in found]
    assert colours == [[RIGHT, NEUTRAL], [WRONG, RIGHT], [NEUTRAL, NEUTRAL]]
    assert [[bar.get_hatch() for bar in axis.patches] for axis in found] == [["////", None], [None, "////"], [None, None]]
    assert [[text.get_text() for text in axis.texts] for axis in found] == [
        ["✓ apple", "87.5 %", "pear", "12.5 %"], ["✗ apple", "87.5 %", "✓ pear", "12.5 %"],
        ["apple", "87.5 %", "pear", "12.5 %"],
    ]  # fmt: skip
    assert [[bar.get_width() for bar in axis.patches] for axis in found] == [[0.875, 0.125]] * 3
    plt.close(figure)


def test_nearest_images_of_the_same_class_have_the_frame_of_right():
    image = np.zeros((4, 4, 3), np.uint8)
    near = [Neighbour(image, "apple", 7, 1.5), Neighbour(image, "pear", 8, 2.0)]
    figure = draw_nearest([(image, "apple", near)], "")
    _, same, other = figure.axes
    assert [axis.get_xlabel() for axis in (same, other)] == ["✓ apple\n#7, 1.5", "✗ pear\n#8, 2"]
    frames = [axis.spines["top"] for axis in (same, other)]
    assert [to_hex(frame.get_edgecolor()).upper() for frame in frames] == [RIGHT, WRONG]
    assert [frame.get_linestyle() == "-" for frame in frames] == [True, False]
    plt.close(figure)


def test_kernels_are_scaled_one_by_one_and_laid_out_by_tower():
    kernel = np.zeros((2, 3, 3, 3, 20))
    kernel[0, 0, 0, 0, 0] = 4.0  # red, top left, first kernel of tower 0
    kernel[1, 2, 2, 2, 17] = -0.5  # anti-blue, bottom right, second row of tower 1
    pictures = kernel_images(kernel)
    np.testing.assert_array_equal(pictures[0, 0, 0, 0], [1, 0.5, 0.5])
    np.testing.assert_array_equal(pictures[1, 17, 2, 2], [0.5, 0.5, 0])
    figure = draw_kernels(kernel, "title")
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
    absent = draw_magnitudes(rows[1:2], "title")
    assert (absent.axes, absent.get_suptitle()) == ([], "title")
    assert "none recorded: the run has no validation yet" in absent.texts[1].get_text()
    plt.close(absent)


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
        assert to_hex(axis.patches[0].get_facecolor()).upper() == WRONG
    else:
        right, wrong = axis.images
        for image, colour, there in ((right, RIGHT, np.eye(classes)), (wrong, WRONG, 1 - np.eye(classes))):
            shares = image.get_array()
            np.testing.assert_array_equal(shares.mask, there == 0)
            np.testing.assert_array_equal(shares.data, counts / np.maximum(counts.sum(1, keepdims=True), 1))
            assert [to_hex(image.cmap(share)).upper() for share in (0.0, 1.0)] == ["#FFFFFF", colour]
        assert [bar.get_ylabel()[:7] for bar in figure.axes[1:]] == ["✗ wrong", "✓ right"]
        assert (right.get_clim(), wrong.get_clim()) == ((0, 1), (0, 0.5))
        assert [text.get_text() for text in axis.get_yticklabels()][:2] == ["name 0 (7)", "name 1 (0)"]
        assert [text.get_text() for text in axis.texts] == (["7", "5"] if classes == 3 else [])
    plt.close(figure)


@pytest.mark.slow
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


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_a_figure_drawn_again_has_the_same_bytes(tmp_path, suffix):
    for name in "ab":
        figure, axis = plt.subplots(figsize=(1, 1))
        axis.plot([1, 2], marker="o")  # an SVG names its markers
        write_figure(figure, tmp_path / f"{name}{suffix}")
        plt.close(figure)
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()
