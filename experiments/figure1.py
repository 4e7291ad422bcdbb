"""Draws Figure 1 from the runs of the claim `relu`: training error over epochs with ReLU and with tanh.

    python -m experiments.claims --claim=relu --seeds=3
    python -m experiments.figure1 [--out=runs/claims]

Writes the curves of each seed as CSV, and the figure, to experiments/results/figure1.
"""

import csv
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from absl import flags
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from alexnet_jax.figures.style import PALETTE, save_figure
from alexnet_jax.run.metrics import read_rows
from alexnet_jax.system import cli
from alexnet_jax.system.errors import UserError
from alexnet_jax.system.files import read_json, replacing
from experiments.claims.claim import FOLDER, read_claim
from experiments.claims.verdict import estimate

FOLDER_OUT = FOLDER.parent / "results" / "figure1"
STYLES = {"relu": (PALETTE[0], "-"), "tanh": (PALETTE[1], "--")}  # solid and dashed as in the paper
Curve = list[tuple[float, float]]  # of (epoch, training error in percent)


def curves_of(out: Path) -> dict[str, list[Curve]]:
    """The training error of each arm and seed, from the folder of the claims' runs.

    Raises:
        UserError: an arm has no run.
    """
    curves = {}
    for name, arm in read_claim("relu").arms.items():
        runs = sorted((out / arm.flagfile).glob("seed*"))
        if not runs:
            raise UserError(
                f"--out={out} has no run of {arm.flagfile}: python -m experiments.claims --claim=relu makes them"
            )
        curves[name] = [
            [(row["epoch"], row["top1_error"]) for row in read_rows(run) if row["split"] == "train"] for run in runs
        ]
    return curves


def draw(curves: dict[str, Sequence[Curve]], threshold: float, ratio: float) -> Figure:
    """Each seed as a thin line, their mean as a thick one, and the threshold."""
    figure, axis = plt.subplots(figsize=(6.4, 4.4), layout="constrained")
    for name, seeds in curves.items():
        colour, style = STYLES[name]
        for curve in seeds:
            axis.plot(*zip(*curve, strict=True), color=colour, linewidth=0.6, alpha=0.4)
        epochs = [epoch for epoch, _ in min(seeds, key=len)]
        mean = [statistics.mean(error for _, error in points) for points in zip(*seeds, strict=False)]
        axis.plot(epochs, mean, color=colour, linestyle=style, linewidth=2.2, label={"relu": "ReLU"}.get(name, name))
    axis.axhline(threshold, color="0.4", linewidth=0.9, linestyle=":")
    axis.annotate(
        f"dotted: {threshold:g} % training error, for which tanh needs {ratio:.1f} times the epochs", (0.99, 0.03),
        xycoords="axes fraction", ha="right", fontsize=9, color="0.25",
    )  # fmt: skip
    axis.set(xlabel="epoch", ylabel="training error, top-1 (%)", xlim=(0, None), ylim=(0, None))
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    return figure


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
    claim, record = read_claim("relu"), read_json(FOLDER.parent / "results" / "claims" / "relu.json")
    times = math.exp(estimate(claim, record["values"]).effect)
    FOLDER_OUT.mkdir(parents=True, exist_ok=True)
    write_curves(curves, FOLDER_OUT / "curves.csv")
    matplotlib.use("agg")
    print(save_figure(draw(curves, claim.threshold, times), FOLDER_OUT, "figure1"))


def define_flags(options: flags.FlagValues) -> None:
    """The flags of this command."""
    flags.DEFINE_string("out", "runs/claims", "folder of the claims' runs", flag_values=options)


COMMAND = cli.Command(__doc__, define_flags, main)

if __name__ == "__main__":
    COMMAND.run()
