"""Figures of metrics.jsonl: losses and errors over epochs, Figure 1's comparison of runs, and the layers' magnitudes."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from alexnet_jax.config import Config, as_dict
from alexnet_jax.figures.style import COLOURS, DASHES, PALETTE, bare, short
from alexnet_jax.run.flags import value_text

Rows = Sequence[dict[str, Any]]

WHEREABOUTS = ("workdir", "data_dir", "mesh", "host_devices", "spmd", "distributed", "keep")  # where a run is, not what
MARKERS = "osD^v<>pX*"


def run_labels(configs: Sequence[Config]) -> list[str]:
    """A label for each run: the flags that differ, such as 'seed=0', if they are one or two; otherwise the folder."""
    fields = [{name: value for name, value in as_dict(config).items() if name not in WHEREABOUTS} for config in configs]
    differing = [name for name in fields[0] if any(one[name] != fields[0][name] for one in fields)]
    labels = [", ".join(f"{name}={value_text(one[name])}" for name in differing) for one in fields]
    folders = [config.workdir.rstrip("/") for config in configs]
    names = [folder.rpartition("/")[2] for folder in folders]
    best = labels if 1 <= len(differing) <= 2 else names
    return next(one for one in (best, names, folders) if len(set(one)) == len(one) or one is folders)


def draw_curves(rows: Rows, title: str) -> Figure:
    """Loss and top-1 error over epochs, by split. Thin lines mark drops of the learning rate."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for axis, name, label in zip(axes, ("loss", "top1_error"), ("loss (nats)", "top-1 error (%)"), strict=True):
        for split, colour in COLOURS.items():
            mine = [row for row in rows if row["split"] == split]
            if mine:
                axis.plot([row["epoch"] for row in mine], [row[name] for row in mine], color=colour, label=split)
        for row, before in zip(rows[1:], rows, strict=False):
            if row["learning_rate"] < before["learning_rate"]:
                axis.axvline(row["epoch"], color="0.6", linewidth=0.8, linestyle=":")
        axis.set(xlabel="epoch", ylabel=label)
        axis.set_ylim(bottom=0)
        bare(axis)
    axes[0].legend(frameon=False)
    figure.suptitle(title)
    return figure


def draw_training_error(runs: Mapping[str, Rows]) -> Figure:
    """Figure 1: training error over epochs. The first run has a solid line, the second a dashed one, and so on."""
    figure, axis = plt.subplots(figsize=(6.4, 4.4), layout="constrained")
    for (label, rows), colour, dash in zip(runs.items(), cycle(PALETTE), cycle(DASHES), strict=False):
        mine = [row for row in rows if row["split"] == "train"]
        epochs, errors = [row["epoch"] for row in mine], [row["top1_error"] for row in mine]
        axis.plot(epochs, errors, color=colour, linestyle=dash, linewidth=1.8, label=short(label, 60))
    axis.set(xlabel="epoch", ylabel="training error, top-1 (%)", xlim=(0, None), ylim=(0, None))
    bare(axis)
    axis.legend(frameon=False, fontsize=9)
    return figure


def draw_magnitudes(rows: Rows, title: str) -> Figure:
    """Mean |weight| of every layer over epochs, and the last update as a share of it. Biases are below.

    Args:
        rows: of metrics.jsonl. At least one has `magnitudes`.
        title: of the figure.
    """
    recorded = [row for row in rows if "magnitudes" in row]
    epochs = [row["epoch"] for row in recorded]
    figure, axes = plt.subplots(2, 2, figsize=(10, 6.4), layout="constrained", sharex=True)
    for pair, name, words in zip(axes, ("kernel", "bias"), ("weights", "biases"), strict=True):
        for layer, colour, marker in zip(recorded[0]["magnitudes"], cycle(PALETTE), cycle(MARKERS), strict=False):
            values = [(row["magnitudes"][layer][name], row["magnitudes"][layer][f"{name}_update"]) for row in recorded]
            size, update = np.array(values, float).T
            size = np.where(size > 0, size, np.nan)  # a logarithmic axis cannot show zero
            style: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 4, "linewidth": 1.2, "label": layer}
            pair[0].plot(epochs, size, **style)
            pair[1].plot(epochs, np.where(update > 0, update, np.nan) / size, **style)
        pair[1].axhline(1e-3, color="0.4", linewidth=0.9, linestyle=":")
        pair[0].set_ylabel(f"mean magnitude of {words}")
        pair[1].set_ylabel(f"last update / {words}")
        for axis in pair:
            axis.set_yscale("log")
            bare(axis)
    for axis in axes[1]:
        axis.set_xlabel("epoch")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc="outside right center")
    figure.suptitle(f"{title}\ndotted: a thousandth; updates of weights should be near it", fontsize=11)
    return figure
