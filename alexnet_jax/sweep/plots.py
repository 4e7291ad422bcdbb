"""The plots of a sweep: learning curves, the history of its trials, which flags matter, what good trials have in common."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from jaxtyping import Float, Int
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from optuna.trial import FrozenTrial, TrialState

from alexnet_jax.figures.style import PALETTE
from alexnet_jax.run.metrics import read_rows
from alexnet_jax.sweep.space import Parameter, short
from alexnet_jax.sweep.trials import ranked, state_name, trial_folder

ERROR = "validation top-1 error (%)"
TRIAL, BEST = PALETTE[:2]
# An error is far above the others that lies higher above their median than FAR times what the best one lies below it.
FAR, LEAST = 3, 5.0  # LEAST: and at least so much, in percent
# Word and marker of each state of a trial. Only a finished one has a height of its own among the errors.
STATES: dict[str, tuple[str, dict[str, Any]]] = {
    "complete": ("finished", {"marker": "o", "color": TRIAL}),
    "pruned": ("pruned", {"marker": "o", "color": "0.45", "markerfacecolor": "white"}),
    "diverged": ("diverged", {"marker": "X", "color": PALETTE[2]}),
    "fail": ("failed", {"marker": "x", "color": "black", "markeredgewidth": 1.6}),
    "running": ("running", {"marker": ">", "color": PALETTE[3], "markerfacecolor": "white"}),
}


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    figure, axis = plt.subplots(figsize=(width, height), layout="constrained")
    axis.spines[["top", "right"]].set_visible(False)
    return figure, axis


def _by_state(trials: Sequence[FrozenTrial]) -> dict[str, list[FrozenTrial]]:
    """The trials of each state that has some, in the order of STATES. A waiting trial has nothing to show."""
    groups = {state: [trial for trial in trials if state_name(trial) == state] for state in STATES}
    return {state: mine for state, mine in groups.items() if mine}


def count_text(trials: Sequence[FrozenTrial]) -> str:
    """How many trials there are of each state, such as '4 finished, 15 pruned'."""
    return ", ".join(f"{len(mine)} {STATES[state][0]}" for state, mine in _by_state(trials).items())


def draw_curves(trials: Sequence[FrozenTrial], best: int, folder: Path) -> Figure:
    """Validation error over epochs of every trial, with the marker of its state at its last validation."""
    figure, axis = _axes(7, 4)
    for state, mine in _by_state(trials).items():
        word, marker = STATES[state]
        for trial in mine:
            rows = [row for row in read_rows(trial_folder(folder, trial.number)) if row["split"] == "validation"]
            points = [row["epoch"] for row in rows], [row["top1_error"] for row in rows]
            style: dict[str, Any] = {"color": "0.7", "linewidth": 1, "linestyle": "-" if state == "complete" else ":"}
            if trial.number == best:
                style = {"color": BEST, "linewidth": 2, "label": f"best: trial {best}", "zorder": 2.5}
            axis.plot(*points, **style)
            axis.plot(*(values[-1:] for values in points), markersize=5, linestyle="", **marker)
        axis.plot([], [], markersize=5, linestyle="", label=f"{word} ({len(mine)})", **marker)
    axis.set(xlabel="epoch", ylabel=ERROR)
    axis.grid(axis="y", color="0.9")
    axis.legend(frameon=False, fontsize=9)
    return figure


def draw_history(trials: Sequence[FrozenTrial]) -> Figure:
    """Above: the error of each finished trial, and the best so far. Below: how far each trial came.

    A trial that was pruned, failed, diverged or still runs has no error to stand at, so it is only below. The errors' axis
    is that of most finished trials; one far above it is an arrow at its upper end, with its error.
    """
    figure, (errors, lengths) = plt.subplots(2, 1, figsize=(7, 5), sharex=True, height_ratios=[3, 1.4], layout="constrained")
    finished = [trial for trial in trials if state_name(trial) == "complete"]
    numbers, values = [trial.number for trial in finished], np.array([trial.value for trial in finished], float)
    if finished:
        _draw_errors(errors, np.array(numbers), values)
    else:
        errors.text(0.5, 0.5, "no trial has finished", transform=errors.transAxes, ha="center", color="0.3")
        errors.set_yticks([])
    for state, mine in _by_state(trials).items():
        word, marker = STATES[state]
        heights, places = [len(trial.intermediate_values) for trial in mine], [trial.number for trial in mine]
        lengths.vlines(places, 0, heights, color="0.8", linewidth=1, zorder=1)
        lengths.plot(places, heights, markersize=6, linestyle="", label=f"{word} ({len(mine)})", clip_on=False, **marker)
    for axis in (errors, lengths):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="0.9")
        axis.set_axisbelow(True)
    errors.set_ylabel(ERROR)
    lengths.set(xlabel="trial", ylabel="validations", ylim=(0, None))
    lengths.margins(y=0.2)
    for axis in (lengths.xaxis, lengths.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside upper center", ncols=4, frameon=False, fontsize=9)
    return figure


def _draw_errors(axis: Axes, numbers: Int[np.ndarray, "trials"], values: Float[np.ndarray, "trials"]) -> None:
    """The errors of finished trials, and the best so far. `numbers`: of the trials."""
    median = np.median(values)
    inside = values <= median + max(FAR * (median - values.min()), LEAST)
    best = np.minimum.accumulate(values)
    axis.step(numbers, best, where="post", color=BEST, label="best so far")
    axis.plot(numbers[inside], values[inside], markersize=6, linestyle="", **STATES["complete"][1])
    if inside.all():
        return
    low, high = min(values), max(values[inside])
    axis.set_ylim(low - 0.06 * (high - low + 1), high + 0.2 * (high - low + 1))
    top = axis.get_xaxis_transform()
    axis.plot(numbers[~inside], np.full((~inside).sum(), 0.93), "^", color=TRIAL, transform=top, label="above this axis")
    for number, value in zip(numbers[~inside], values[~inside], strict=True):
        axis.annotate(f"{value:.1f}", (number, 0.93), (5, -3), xycoords=top, textcoords="offset points", fontsize=8)


def draw_importance(study: optuna.Study) -> Figure:
    """The importance of each flag among the better trials, by ped-ANOVA. Raises ValueError if no flag is in all trials."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a flag has few trials
        shares = optuna.importance.get_param_importances(study)
    figure, axis = _axes(7, 1 + 0.45 * len(shares))
    names = list(shares)[::-1]
    bars = axis.barh(names, [shares[name] for name in names], color=TRIAL)
    axis.bar_label(bars, fmt="%.2f", padding=3)
    told = sum(trial.state is TrialState.COMPLETE for trial in study.trials)  # the diverged ones have the worst value
    axis.set(xlabel=f"importance for the {ERROR}, of 1 in all", xlim=(0, 1.1 * max(shares.values())))
    axis.set_title(f"ped-ANOVA over {told} finished or diverged trials", fontsize=10)
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
    axis.set_title(f"{count_text(trials)}; grey: no final error", fontsize=10)
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
