"""The scoreboard: all records as a table in experiments/README.md and as a figure."""

import statistics
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from alexnet_jax.figures.style import COLOURS, save_figure
from alexnet_jax.system.errors import UserError
from alexnet_jax.system.files import read_json, replacing

BEGIN, END = "<!-- scoreboard: written by python -m experiments.claims -->", "<!-- end of the scoreboard -->"
COLUMNS = 4  # of the figure's panels
HEAD = f"""| claim | paper | ours, mean ± standard deviation over seeds | effect | scale | verdict | command |
{"|---" * 7}|"""


def update(experiments: Path) -> None:
    """Rewrites table and figure. Raises UserError if the README lacks the marks."""
    records = [read_json(path) for path in sorted((experiments / "results" / "claims").glob("*.json"))]
    readme = experiments / "README.md"
    before, begin, rest = readme.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UserError(f"{readme}: the lines {BEGIN!r} and {END!r} are missing; the table goes between them")
    rows = "\n".join(map(row, records))
    with replacing(readme) as file:
        file.write(f"{before}{BEGIN}\n{HEAD}\n{rows}\n{END}{after}")
    matplotlib.use("agg")
    save_figure(draw(records), experiments / "results" / "claims", "scoreboard")


def row(record: dict[str, Any]) -> str:
    """A line of the table."""
    ours = "; ".join(
        f"{arm} {statistics.mean(values):.3g} ± {statistics.stdev(values):.2g}" for arm, values in record["values"].items()
    )
    times = "x " if record["ratio"] else ""
    effect = f"{times}{record['effect']:.3g} ({record['low']:.3g} to {record['high']:.3g})"
    cells = (
        record["claim"], record["paper"], f"{ours} {record['unit']}", effect, record["scale"], f"**{record['verdict']}**",
        f"`{record['command']}`",
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def draw(records: Sequence[dict[str, Any]]) -> Figure:
    """A panel for each claim: each seed is a line from the favoured arm to the other; the thick line is their mean."""
    rows = -(-len(records) // COLUMNS)
    figure, axes = plt.subplots(rows, COLUMNS, figsize=(3 * COLUMNS, 2.9 * rows), layout="constrained", squeeze=False)
    for axis in axes.flat[len(records) :]:
        axis.set_axis_off()
    for axis, record in zip(axes.flat, records, strict=False):
        arms, values = list(record["values"]), list(record["values"].values())
        for pair in zip(*values, strict=True):
            axis.plot(pair, color=COLOURS["train"], marker="o", markersize=4, linewidth=1, alpha=0.7)
        axis.plot([statistics.mean(one) for one in values], color=COLOURS["validation"], linewidth=2.5)
        axis.set_xticks(range(len(arms)), [arm.replace("_", " ") for arm in arms])
        axis.set_xlim(-0.4, len(arms) - 0.6)
        axis.set_title(f"{textwrap.fill(record['claim'], 33)}\n{record['verdict']}", fontsize=9)
        axis.set_ylabel(textwrap.fill(record["unit"], 34), fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    return figure
