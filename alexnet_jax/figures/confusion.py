"""Confusions of classes: a matrix for few classes, the most frequent confusions for many."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int
from matplotlib import pyplot as plt
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from alexnet_jax.figures.style import RIGHT, RIGHT_MARK, WRONG, WRONG_MARK, short
from alexnet_jax.inference.analysis import confused_pairs

READABLE = 100  # the most classes whose names fit beside a matrix
COUNTED = 25  # the most classes whose counts fit into its cells
PAIRS = 30
MOST_WRONG = 0.5  # the share of a class at which a wrong cell is darkest: most are far below
RIGHTS, WRONGS = (LinearSegmentedColormap.from_list(name, ("white", name)) for name in (RIGHT, WRONG))


def draw_confusion(counts: Int[np.ndarray, "classes classes"], classes: Sequence[str], title: str) -> Figure:
    """The counts of `analysis.confusion`: rows are the right classes. A shade is a share of its row.

    The diagonal has the colour of right, every other cell that of wrong, whose scale ends at `MOST_WRONG`. Scales are fixed,
    so that figures of several runs can be compared.

    More than `READABLE` classes get bars of the `PAIRS` most frequent confusions instead.
    """
    if len(classes) > READABLE:
        return _draw_pairs(counts, classes, title)
    count = len(classes)
    side = max(4.5, 0.42 * count if count <= COUNTED else 0.155 * count)
    font = 9 if count <= COUNTED else 7
    figure, axis = plt.subplots(figsize=(side + 4, side + 1.8), layout="constrained")
    totals = counts.sum(axis=1, keepdims=True)
    shares = counts / np.maximum(totals, 1)
    diagonal = np.eye(count, dtype=bool)
    right = axis.imshow(np.ma.array(shares, mask=~diagonal), cmap=RIGHTS, vmin=0, vmax=1)
    wrong = axis.imshow(np.ma.array(shares, mask=diagonal), cmap=WRONGS, vmin=0, vmax=MOST_WRONG)
    names = [short(name, 24) for name in classes]
    rows = [f"{name} ({total})" for name, total in zip(names, totals[:, 0], strict=True)]
    axis.set_xticks(range(count), names, rotation=90, fontsize=font)
    axis.set_yticks(range(count), rows, fontsize=font)
    axis.set(xlabel="what the network says", ylabel="right class (examples)")
    axis.tick_params(length=0)
    axis.set_xticks(np.arange(count + 1) - 0.5, minor=True)
    axis.set_yticks(np.arange(count + 1) - 0.5, minor=True)
    axis.grid(which="minor", color="0.85", linewidth=0.8 if count <= COUNTED else 0.3)
    axis.tick_params(which="minor", length=0)
    if count <= COUNTED:
        for row, column in zip(*np.nonzero(counts), strict=True):
            axis.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=8)
    beside = {"ax": axis, "shrink": 0.6, "pad": 0.02}
    figure.colorbar(wrong, extend="max", label=f"{WRONG_MARK} wrong, share of the class", **beside)
    figure.colorbar(right, label=f"{RIGHT_MARK} right, share of the class", **beside)
    figure.suptitle(title, fontsize=11)
    return figure


def _draw_pairs(counts: Int[np.ndarray, "classes classes"], classes: Sequence[str], title: str) -> Figure:
    pairs = confused_pairs(counts, PAIRS)
    figure, axis = plt.subplots(figsize=(9, 1.4 + 0.27 * max(len(pairs), 4)), layout="constrained")
    totals = counts.sum(axis=1)
    for place, (right, _, number) in enumerate(pairs):
        axis.barh(place, number, color=WRONG, height=0.8)
        axis.text(number, place, f" {number} of {totals[right]}", va="center", fontsize=8)
    labels = [f"{short(classes[right], 32)} → {short(classes[guess], 32)}" for right, guess, _ in pairs]
    axis.set_yticks(range(len(pairs)), labels, fontsize=8)
    axis.invert_yaxis()
    axis.margins(x=0.12)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_xlabel("examples of the class on the left that the network takes for the one on the right")
    figure.suptitle(f"{title}\nthe {len(pairs)} most frequent confusions of {len(classes)} classes", fontsize=11)
    return figure
