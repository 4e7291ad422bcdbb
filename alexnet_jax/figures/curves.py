"""Figures of metrics.jsonl: losses and errors over epochs, Figure 1's comparison of runs, and the layers' magnitudes."""

import math
from collections.abc import Mapping, Sequence
from itertools import cycle, pairwise
from typing import Any, NamedTuple

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from alexnet_jax.config import Config, as_dict
from alexnet_jax.figures.style import COLOURS, DASHES, PALETTE, bare, draw_absence, point_marker, short
from alexnet_jax.run.flags import value_text

Rows = Sequence[dict[str, Any]]

# Where a run is and how it is watched, not what it is.
WHEREABOUTS = ("workdir", "data_dir", "mesh", "host_devices", "spmd", "distributed", "keep", "profile")
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


class Drop(NamedTuple):
    """A fall of the learning rate: after the last row at the rate `before`, which is at `epoch`."""

    epoch: float
    before: float
    after: float

    @property
    def factor(self) -> float:
        """What the rate was divided by."""
        return self.before / self.after


def rate_drops(rows: Rows) -> list[Drop]:
    """The drops between the rows of a run."""
    pairs = pairwise((row["epoch"], row["learning_rate"]) for row in rows)
    return [Drop(epoch, before, after) for (epoch, before), (_, after) in pairs if 0 < after < before]


def unfinished(rows: Rows, config: Config) -> str:
    """How far a run is that still trains or was stopped, such as 'not finished: epoch 3.5 of 50'; '' once it is complete.

    `rows`: at least one.
    """
    step, epoch = rows[-1]["step"], rows[-1]["epoch"]
    planned = config.steps * epoch / step if config.steps else config.epochs
    return "" if epoch >= planned * (1 - 1e-9) else f"not finished: epoch {epoch:.3g} of {planned:.4g}"


def leap_note(drops: Sequence[Drop], config: Config) -> str:
    """Why the training loss can leap just after a drop: Section 5 has the rate inside the velocity. '' if it cannot."""
    if not drops or not config.rate_in_velocity or not 0 < config.momentum < 1:
        return ""
    factor = max(drop.factor for drop in drops)
    steps = math.log(factor) / -math.log(config.momentum)
    return (
        f"Just after a drop the training loss can leap. The velocity still has the size of the old rate, {factor:.3g} times "
        f"too large.\nMomentum {config.momentum:g} takes {steps:.0f} steps to wear that off. Then the loss falls."
    )


def draw_curves(rows: Rows, title: str, config: Config) -> Figure:
    """Loss and top-1 error over epochs, by split, with the drops of the learning rate. Averaged weights have dashes.

    What is missing is said in its place: a run that is not finished in the title, a missing validation in the legend.
    """
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.1), layout="constrained")
    drops = rate_drops(rows)
    for axis, name, label in zip(axes, ("loss", "top1_error"), ("loss (nats)", "top-1 error (%)"), strict=True):
        for split, colour in COLOURS.items():
            mine = [row for row in rows if row["split"] == split]
            points = [row["epoch"] for row in mine], [row[name] for row in mine]
            if mine:
                axis.plot(*points, color=colour, marker=point_marker(mine), markersize=4.5, linewidth=1.6, label=split)
            elif split == "validation":
                axis.plot([], [], " ", label="no validation recorded")
            if averaged := [row for row in mine if "ema" in row]:
                points = [row["epoch"] for row in averaged], [row["ema"][name] for row in averaged]
                style: dict[str, Any] = {
                    "color": colour,
                    "linestyle": "--",
                    "marker": point_marker(averaged),
                    "markersize": 4.5,
                }
                axis.plot(*points, **style, fillstyle="none", linewidth=1.6, label=f"{split}, averaged weights")
        axis.set(xlabel="epoch", ylabel=label, xlim=(0, None), ylim=(0, None))
        bare(axis)
        _mark_drops(axis, drops)
    axes[0].legend(frameon=False)
    figure.suptitle("\n".join(filter(None, (title, unfinished(rows, config)))))
    if note := leap_note(drops, config):
        figure.supxlabel(note, fontsize=8.5, color="0.3")
    return figure


def _mark_drops(axis: Axes, drops: Sequence[Drop]) -> None:
    """A dotted line at each drop, and the new rate along it."""
    for drop in drops:
        axis.axvline(drop.epoch, color="0.6", linewidth=0.8, linestyle=":")
        text = axis.annotate(
            f"rate / {drop.factor:.3g} = {drop.after:.3g}", (drop.epoch, 1), (2, -2), xycoords=("data", "axes fraction"),
            textcoords="offset points", rotation=90, va="top", fontsize=8, color="0.3",
        )  # fmt: skip
        text.set_path_effects([withStroke(linewidth=2.5, foreground="white", alpha=0.8)])


def draw_training_error(runs: Mapping[str, Rows]) -> Figure:
    """Figure 1: training error over epochs. The first run has a solid line, the second a dashed one, and so on."""
    figure, axis = plt.subplots(figsize=(6.4, 4.4), layout="constrained")
    for (label, rows), colour, dash in zip(runs.items(), cycle(PALETTE), cycle(DASHES), strict=False):
        mine = [row for row in rows if row["split"] == "train"]
        epochs, errors = [row["epoch"] for row in mine], [row["top1_error"] for row in mine]
        style: dict[str, Any] = {"color": colour, "linestyle": dash, "marker": point_marker(mine), "markersize": 4.5}
        axis.plot(epochs, errors, linewidth=1.8, label=short(label, 60), **style)
    axis.set(xlabel="epoch", ylabel="training error, top-1 (%)", xlim=(0, None), ylim=(0, None))
    bare(axis)
    axis.legend(frameon=False, fontsize=9)
    return figure


def draw_magnitudes(rows: Rows, title: str) -> Figure:
    """Mean |weight| of every layer over epochs, and the last update as a share of it. Biases are below.

    Args:
        rows: of metrics.jsonl. If none has `magnitudes`, the figure says so.
        title: of the figure.
    """
    recorded = [row for row in rows if "magnitudes" in row]
    if not recorded:
        return draw_absence(title, "none recorded: the run has no validation yet, or an earlier version trained it")
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
