"""The figures as functions: the right curves, every kernel, count and map in its place."""

from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import pyplot as plt

from alexnet_jax.config import Config
from alexnet_jax.figures.confusion import draw_confusion
from alexnet_jax.figures.curves import draw_curves, draw_magnitudes, draw_training_error, run_labels
from alexnet_jax.figures.kernels import draw_activations, draw_kernels, kernel_images
from alexnet_jax.inference.analysis import confused_pairs, confusion, errors_by_class

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
