"""The claims as a forest plot: every effect with its interval, beside the line of no effect and what could not be seen."""

import math
import textwrap
from collections import defaultdict
from collections.abc import Sequence

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from alexnet_jax.figures.style import PALETTE
from experiments.claims.claim import Claim
from experiments.claims.estimate import CONFIDENCE, POWER
from experiments.claims.verdict import Judgement, Verdict

Judged = tuple[Claim, Judgement]

# Colour and marker of a verdict, which is also written out.
VERDICTS: dict[Verdict, tuple[str, str]] = {
    "confirmed": (PALETTE[0], "o"), "direction only": (PALETTE[0], "^"), "equivalent": (PALETTE[2], "o"),
    "contradicted": (PALETTE[1], "D"), "underpowered": ("#5F5F5F", "s"),
}  # fmt: skip
BLIND = "#ECE9DF"  # of the effects that could not have been seen
LETTERS = 48  # in a line of a claim
ROW, AXIS = 0.44, 0.75  # inches of a claim, and of the axis below a panel


def effect_text(claim: Claim, judgement: Judgement) -> str:
    """The effect with its interval, such as '2.2 (1.1 to 3.3)'; x marks a quotient."""
    times = "x " if claim.ratio else ""
    return f"{times}{judgement.effect:.3g} ({judgement.low:.3g} to {judgement.high:.3g})"


def blind(claim: Claim, judgement: Judgement) -> tuple[float, float]:
    """The ends of the true effects that are nearer to the hypothesis than the smallest visible one."""
    visible, shift = judgement.visible_in_family, claim.margin if claim.kind == "non_inferiority" else float(claim.ratio)
    return (1 / shift / visible, visible / shift) if claim.ratio else (-shift - visible, visible - shift)


def panels_of(judged: Sequence[Judged]) -> list[list[Judged]]:
    """The claims by unit, the largest group first and quotients last; within a group the largest effect first."""
    groups: dict[tuple[bool, str], list[Judged]] = defaultdict(list)
    for claim, judgement in sorted(judged, key=lambda one: -one[1].effect):
        groups[claim.ratio, claim.unit].append((claim, judgement))
    return [groups[key] for key in sorted(groups, key=lambda key: (key[0], -len(groups[key]), key[1]))]


def draw_forest(judged: Sequence[Judged]) -> Figure:
    """A panel for each unit, a row for each claim: effect, interval, paper's number, what could not be seen, verdict."""
    panels = panels_of(judged)
    heights = [ROW * len(panel) + AXIS for panel in panels]
    figure, axes = plt.subplots(
        len(panels), 1, figsize=(11, sum(heights) + 0.9), height_ratios=heights, layout="constrained", squeeze=False
    )
    for axis, panel in zip(axes[:, 0], panels, strict=True):
        _draw_panel(axis, panel)
    figure.suptitle(
        f"Effects, with intervals at {100 * CONFIDENCE:.0f} %. Right of the line: for the claim. Bar: the paper's number\n"
        f"Shaded: true effects that these runs would have missed more often than {100 * (1 - POWER):.0f} times in 100"
    )
    return figure


def _draw_panel(axis: Axes, panel: Sequence[Judged]) -> None:
    ratio, unit = panel[0][0].ratio, panel[0][0].unit
    for place, (claim, judgement) in enumerate(panel):
        colour, marker = VERDICTS[judgement.verdict]
        left, right = blind(claim, judgement)
        axis.barh(place, right - left, left=left, height=0.84, color=BLIND, zorder=0)
        axis.plot([judgement.low, judgement.high], [place] * 2, color=colour, linewidth=2.2, solid_capstyle="butt")
        axis.plot(judgement.effect, place, color=colour, marker=marker, markersize=7.5)
        axis.plot(claim.paper_effect, place, "|", color="black", markersize=15, markeredgewidth=1.5)
        beside = f"{effect_text(claim, judgement)}\n{judgement.words}"
        axis.text(1.02, place, beside, transform=axis.get_yaxis_transform(), va="center", fontsize=8.5, color="0.15")
    axis.axvline(1 if ratio else 0, color="0.3", linewidth=1, zorder=1)
    axis.set_yticks(range(len(panel)), [textwrap.fill(claim.claim, LETTERS) for claim, _ in panel], fontsize=8.5)
    axis.set_ylim(len(panel) - 0.4, -0.6)
    axis.tick_params(axis="y", length=0)
    ends = [end for claim, judgement in panel for end in (judgement.low, judgement.high, *blind(claim, judgement))]
    ends += [claim.paper_effect for claim, _ in panel if not math.isnan(claim.paper_effect)]
    if ratio:
        reach = 1.15 * max(abs(math.log(end)) for end in ends)
        axis.set(xscale="log", xlim=(math.exp(-reach), math.exp(reach)))
        ticks = (0.1, 0.2, 0.5, 1, 2, 5, 10) if reach > math.log(2) else (0.6, 0.8, 1, 1.25, 1.6)
        axis.set_xticks([tick for tick in ticks if abs(math.log(tick)) <= reach])
        axis.xaxis.set(major_formatter=FuncFormatter(lambda value, _: f"x {value:g}"), minor_locator=NullLocator())
        axis.set_xlabel(f"quotient of the arms: {unit} (logarithmic axis)", fontsize=9)
    else:
        reach = 1.05 * max(map(abs, ends))
        axis.set_xlim(-reach, reach)
        axis.set_xlabel(f"difference of the arms: {unit.replace('% ', 'points of ')}", fontsize=9)
    axis.grid(axis="x", color="0.85", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right", "left"]].set_visible(False)
