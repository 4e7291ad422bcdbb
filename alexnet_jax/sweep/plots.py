"""The plots of a sweep: learning curves, the best so far, which flags matter, what good trials have in common."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from optuna.trial import FrozenTrial, TrialState

from alexnet_jax.figures.style import COLOURS
from alexnet_jax.run.metrics import read_rows
from alexnet_jax.sweep.space import Parameter, short
from alexnet_jax.sweep.trials import ranked, state_name, trial_folder

ERROR = "validation top-1 error (%)"
BEST = COLOURS["validation"]


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    figure, axis = plt.subplots(figsize=(width, height), layout="constrained")
    axis.spines[["top", "right"]].set_visible(False)
    return figure, axis


def draw_curves(trials: Sequence[FrozenTrial], best: int, folder: Path) -> Figure:
    """Validation error over epochs of every trial."""
    figure, axis = _axes(7, 4)
    for trial in trials:
        rows = [row for row in read_rows(trial_folder(folder, trial.number)) if row["split"] == "validation"]
        ended = state_name(trial) != "complete"
        style: dict[str, Any] = {"color": "0.7", "linewidth": 1, "linestyle": ":" if ended else "-", "zorder": 1}
        if trial.number == best:
            style = {"color": BEST, "linewidth": 2, "label": f"best: trial {best}", "zorder": 2}
        axis.plot([row["epoch"] for row in rows], [row["top1_error"] for row in rows], **style)
    axis.set(xlabel="epoch", ylabel=ERROR, title=f"{len(trials)} trials (dotted: ended early)")
    axis.grid(axis="y", color="0.9")
    axis.legend(frameon=False)
    return figure


def draw_history(trials: Sequence[FrozenTrial]) -> Figure:
    """The error of each complete trial by number, and the best so far. Those without one are marked at the top."""
    figure, axis = _axes(7, 4)
    complete = [trial for trial in trials if state_name(trial) == "complete"]
    numbers = [trial.number for trial in complete]
    values = np.array([trial.value for trial in complete])
    axis.scatter(numbers, values, color=COLOURS["train"], label="trial", zorder=2)
    axis.step(numbers, np.minimum.accumulate(values), where="post", color=BEST, label="best so far", zorder=1)
    for state, marker in (("pruned", "x"), ("diverged", "+")):
        ended = [trial.number for trial in trials if state_name(trial) == state]
        if ended:
            axis.plot(ended, np.full(len(ended), values.max()), marker, color="0.6", label=f"{state} (no value)")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set(xlabel="trial", ylabel=ERROR)
    axis.grid(axis="y", color="0.9")
    axis.legend(frameon=False)
    return figure


def draw_importance(study: optuna.Study) -> Figure:
    """The importance of each flag among the better trials, by ped-ANOVA. Raises ValueError on too few trials."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a flag has few trials
        shares = optuna.importance.get_param_importances(study)
    figure, axis = _axes(7, 1 + 0.45 * len(shares))
    names = list(shares)[::-1]
    bars = axis.barh(names, [shares[name] for name in names], color=COLOURS["train"])
    axis.bar_label(bars, fmt="%.2f", padding=3)
    told = sum(trial.state is TrialState.COMPLETE for trial in study.trials)  # the diverged ones have the worst value
    axis.set(xlabel=f"importance of 1, by ped-ANOVA over {told} complete trials", xlim=(0, 1.1 * max(shares.values())))
    return figure


def draw_parallel(trials: Sequence[FrozenTrial], parameters: Sequence[Parameter]) -> Figure:
    """A line for each trial across an axis for each flag, coloured by its error, or grey. A flag not tried is a gap."""
    figure, axis = _axes(1.8 * len(parameters) + 2, 4)
    complete = sorted(ranked(trials), key=lambda trial: -(trial.value or 0))
    shades = ScalarMappable(Normalize(complete[-1].value, complete[0].value), "viridis")
    ended = [trial for trial in trials if state_name(trial) != "complete"]
    for trial in [*ended, *complete]:  # the best on top
        heights = [_height(parameter, trial.params.get(parameter.name)) for parameter in parameters]
        colour = shades.to_rgba(np.array([trial.value]))[0] if trial in complete else "0.88"
        axis.plot(heights, color=colour, marker="o", markersize=3, linewidth=1.6 if trial in complete else 0.8)
    for place, parameter in enumerate(parameters):
        axis.axvline(place, color="0.6", linewidth=0.8, zorder=0)
        for value in parameter.ends:
            at = (place, _height(parameter, value))
            axis.annotate(short(value), at, (4, 0), textcoords="offset points", fontsize=8, color="0.3")
    axis.set_xticks(range(len(parameters)), [parameter.name for parameter in parameters])
    axis.set_xlim(-0.2, len(parameters) - 0.5)
    axis.set_ylim(-0.05, 1.05)
    axis.set_yticks([])
    axis.spines["left"].set_visible(False)
    figure.colorbar(shades, ax=axis, label=ERROR)
    return figure


def _height(parameter: Parameter, value: Any) -> float:
    """The position of a value on its axis, from 0 to 1; NaN for None."""
    if value is None:
        return float("nan")
    if parameter.kind == "choice":
        return parameter.ends.index(value) / max(len(parameter.ends) - 1, 1)
    low, high = parameter.ends
    if parameter.kind == "log":
        low, high, value = np.log(low), np.log(high), np.log(value)
    return float((value - low) / (high - low))
