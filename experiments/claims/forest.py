"""The claims as a forest plot: every effect with its interval, beside the line of no effect."""

import textwrap
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from alexnet_jax.figures.style import PALETTE
from experiments.claims.claim import CONFIDENCE

Record = dict[str, Any]

# Colour and marker of a verdict, which is also written out.
VERDICTS = {
    "supported": (PALETTE[0], "o"), "contradicted": (PALETTE[1], "D"), "not seen at this scale": ("#7F7F7F", "s"),
}  # fmt: skip
LETTERS = 48  # in a line of a claim
ROW, AXIS = 0.44, 0.75  # inches of a claim, and of the axis below a panel


def effect_text(record: Record) -> str:
    """The effect with its interval, such as '2.2 (1.1 to 3.3)'; x marks a quotient."""
    times = "x " if record["ratio"] else ""
    return f"{times}{record['effect']:.3g} ({record['low']:.3g} to {record['high']:.3g})"


def seed_effects(record: Record) -> list[float]:
    """The effect of each seed: the other arm minus the favoured one, or their quotient."""
    pairs = zip(*record["values"].values(), strict=True)
    return [other / favoured if record["ratio"] else other - favoured for favoured, other in pairs]


def panels_of(records: Sequence[Record]) -> list[list[Record]]:
    """The records by unit, the largest group first and quotients last; within a group the largest effect first."""
    groups: dict[tuple[bool, str], list[Record]] = defaultdict(list)
    for record in sorted(records, key=lambda record: -record["effect"]):
        groups[record["ratio"], record["unit"]].append(record)
    return [groups[key] for key in sorted(groups, key=lambda key: (key[0], -len(groups[key]), key[1]))]


def draw_forest(records: Sequence[Record]) -> Figure:
    """A panel for each unit, with a row for each claim: effect, interval, every seed, verdict.

    Args:
        records: as `experiments.claims` writes them.
    """
    panels = panels_of(records)
    heights = [ROW * len(panel) + AXIS for panel in panels]
    figure, axes = plt.subplots(
        len(panels), 1, figsize=(11, sum(heights) + 0.9), height_ratios=heights, layout="constrained", squeeze=False
    )
    for axis, panel in zip(axes[:, 0], panels, strict=True):
        _draw_panel(axis, panel)
    figure.suptitle(
        f"The paper's claims: effect over seeds, its interval at {100 * CONFIDENCE:.0f} %, and each seed as a small dot\n"
        "left of the line: against the claim; right of it: for the claim"
    )
    return figure


def _draw_panel(axis: Axes, panel: Sequence[Record]) -> None:
    ratio, unit = panel[0]["ratio"], panel[0]["unit"]
    for place, record in enumerate(panel):
        colour, marker = VERDICTS[record["verdict"]]
        seeds = seed_effects(record)
        axis.plot([record["low"], record["high"]], [place] * 2, color=colour, linewidth=2.2, solid_capstyle="butt")
        axis.plot(record["effect"], place, color=colour, marker=marker, markersize=7.5)
        axis.plot(seeds, [place + 0.3] * len(seeds), "o", color=colour, markersize=3, alpha=0.8)
        beside = f"{effect_text(record)}\n{record['verdict']}"
        axis.text(1.02, place, beside, transform=axis.get_yaxis_transform(), va="center", fontsize=8.5, color="0.15")
    axis.axvline(1 if ratio else 0, color="0.3", linewidth=1, zorder=1)
    axis.set_yticks(range(len(panel)), [textwrap.fill(record["claim"], LETTERS) for record in panel], fontsize=8.5)
    axis.set_ylim(len(panel) - 0.4, -0.6)
    axis.tick_params(axis="y", length=0)
    ends = [end for record in panel for end in (record["low"], record["high"], *seed_effects(record))]
    if ratio:
        reach = 1.15 * max(np.abs(np.log(ends)))
        axis.set(xscale="log", xlim=(np.exp(-reach), np.exp(reach)))
        axis.set_xticks([tick for tick in (0.1, 0.2, 0.5, 1, 2, 5, 10) if abs(np.log(tick)) <= reach])
        axis.xaxis.set(major_formatter=FuncFormatter(lambda value, _: f"x {value:g}"), minor_locator=NullLocator())
        axis.set_xlabel(f"quotient of the arms: {unit} (logarithmic axis)", fontsize=9)
    else:
        reach = 1.1 * max(map(abs, ends))
        axis.set_xlim(-reach, reach)
        axis.set_xlabel(f"difference of the arms: {unit.replace('% ', 'points of ')}", fontsize=9)
    axis.grid(axis="x", color="0.92")
    axis.set_axisbelow(True)
    axis.spines[["top", "right", "left"]].set_visible(False)
