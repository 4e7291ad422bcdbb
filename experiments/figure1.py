"""Draws Figure 1 from the runs of the claim `relu`: training error over epochs with ReLU and with tanh.

    python -m experiments.claims --claim=relu --seeds=8
    python -m experiments.figure1 [--out=runs/claims]

Beside it: how many times the epochs tanh needs, at 25 % and at every other error. Writes the curves of each seed and these
ratios as CSV, and the figure, to experiments/results/figure1.
"""

import csv
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
from absl import flags
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from alexnet_jax.figures.style import PALETTE, save_figure
from alexnet_jax.run.metrics import read_rows
from alexnet_jax.system import cli
from alexnet_jax.system.errors import UserError
from alexnet_jax.system.files import replacing
from experiments.claims.claim import FOLDER, read_claim
from experiments.claims.estimate import unpaired
from experiments.claims.measures import AVERAGED, epochs_until

FOLDER_OUT = FOLDER.parent / "results" / "figure1"
STYLES = {"relu": (PALETTE[0], "-"), "tanh": (PALETTE[1], "--")}  # solid and dashed as in the paper
Curve = list[tuple[float, float]]  # of (epoch, training error in percent)


class Ratio(NamedTuple):
    """How many times the epochs tanh needs until the training error is `error` percent, with its interval."""

    error: int
    times: float
    low: float
    high: float


def curves_of(out: Path) -> dict[str, list[Curve]]:
    """The training error of each arm and seed, from the folder of the claims' runs.

    Raises:
        UserError: an arm has no run.
    """
    curves = {}
    for name, arm in read_claim("relu").arms.items():
        runs = sorted(path.parent for path in (out / arm.flagfile).glob("seed*/metrics.jsonl"))
        if not runs:
            raise UserError(
                f"--out={out} has no run of {arm.flagfile}: python -m experiments.claims --claim=relu makes them"
            )
        curves[name] = [
            [(row["epoch"], row["top1_error"]) for row in read_rows(run) if row["split"] == "train"] for run in runs
        ]
    return curves


def ratios_of(curves: dict[str, Sequence[Curve]]) -> list[Ratio]:
    """How many times the epochs of ReLU tanh needs, for every whole error from 60 % down that all runs reach."""
    found = []
    for error in range(60, 0, -1):
        epochs = {name: [epochs_until(curve, error, AVERAGED) for curve in seeds] for name, seeds in curves.items()}
        if any(
            end == curve[-1][0] for name, seeds in curves.items() for end, curve in zip(epochs[name], seeds, strict=True)
        ):
            break
        logs = {name: [math.log(one) for one in of_arm] for name, of_arm in epochs.items()}
        times = unpaired(logs["relu"], logs["tanh"])
        found.append(Ratio(error, math.exp(times.effect), *map(math.exp, times.interval())))
    return found


def draw(curves: dict[str, Sequence[Curve]], ratios: Sequence[Ratio], threshold: float) -> Figure:
    """On the left each seed as a thin line, their mean as a thick one, and the threshold; on the right the ratios."""
    figure, (axis, beside) = plt.subplots(1, 2, figsize=(10.4, 4.4), layout="constrained", width_ratios=(3, 2))
    for name, seeds in curves.items():
        colour, style = STYLES[name]
        for curve in seeds:
            axis.plot(*zip(*curve, strict=True), color=colour, linewidth=0.6, alpha=0.4)
        epochs = [epoch for epoch, _ in min(seeds, key=len)]
        mean = [statistics.mean(error for _, error in points) for points in zip(*seeds, strict=False)]
        axis.plot(epochs, mean, color=colour, linestyle=style, linewidth=2.2, label={"relu": "ReLU"}.get(name, name))
    axis.axhline(threshold, color="0.4", linewidth=0.9, linestyle=":")
    axis.set(xlabel="epoch", ylabel="training error, top-1 (%)", xlim=(0, None), ylim=(0, None))
    axis.legend(frameon=False)
    errors = [one.error for one in ratios]
    beside.fill_between(
        errors, [one.low for one in ratios], [one.high for one in ratios], color=PALETTE[0], alpha=0.25, linewidth=0
    )
    beside.plot(errors, [one.times for one in ratios], color=PALETTE[0], linewidth=2.2)
    beside.axvline(threshold, color="0.4", linewidth=0.9, linestyle=":")
    here = next(one.times for one in ratios if one.error == threshold)
    beside.annotate(
        f"{here:.1f} at {threshold:g} %", (threshold, here), xytext=(8, 4), textcoords="offset points", fontsize=9
    )
    beside.set(xlabel="training error, top-1 (%)", ylabel="epochs of tanh / epochs of ReLU", ylim=(0, None))
    beside.invert_xaxis()  # as training goes on
    for one in (axis, beside):
        one.spines[["top", "right"]].set_visible(False)
    return figure


def write_ratios(ratios: Sequence[Ratio], path: Path) -> None:
    """A row for each error in percent: the ratio and the ends of its interval."""
    with replacing(path) as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(Ratio._fields)
        rows.writerows([one.error, *(f"{value:.4g}" for value in one[1:])] for one in ratios)


def write_curves(curves: dict[str, Sequence[Curve]], path: Path) -> None:
    """A row for each point: arm, seed, epoch, training error in percent."""
    with replacing(path) as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["arm", "seed", "epoch", "training_error"])
        for arm, seeds in curves.items():
            for seed, curve in enumerate(seeds):
                rows.writerows((arm, seed, f"{epoch:.4g}", f"{error:.4g}") for epoch, error in curve)


def main(options: flags.FlagValues) -> None:
    """The command line."""
    curves = curves_of(Path(options.out))
    ratios = ratios_of(curves)
    FOLDER_OUT.mkdir(parents=True, exist_ok=True)
    write_curves(curves, FOLDER_OUT / "curves.csv")
    write_ratios(ratios, FOLDER_OUT / "ratios.csv")
    matplotlib.use("agg")
    print(save_figure(draw(curves, ratios, read_claim("relu").threshold), FOLDER_OUT, "figure1"))


def define_flags(options: flags.FlagValues) -> None:
    """The flags of this command."""
    flags.DEFINE_string("out", "runs/claims", "folder of the claims' runs", flag_values=options)


COMMAND = cli.Command(__doc__, define_flags, main)

if __name__ == "__main__":
    COMMAND.run()
