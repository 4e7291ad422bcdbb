"""The waits as bars of seconds, each made of its parts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from alexnet_jax.figures.style import NEUTRAL, PALETTE, write_figure

Waits = Mapping[str, Mapping[str, Any]]  # 'seconds', 'low', 'high' and 'parts' of each, by name


def draw_waits(panels: Sequence[Waits], title: str, path: Path) -> None:
    """A panel with an axis of its own for each group of waits, a bar for each wait, the first one on top.

    Args:
        panels: groups of waits of one size.
        title: what was measured.
        path: of the figure.
    """
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    heights = [0.42 * len(waits) + 0.9 for waits in panels]
    figure, axes = plt.subplots(
        len(panels), 1, figsize=(11, sum(heights) + 0.6), height_ratios=heights, layout="constrained", squeeze=False
    )
    for axis, waits in zip(axes[:, 0], panels, strict=True):
        _draw_panel(axis, waits)
    axes[-1, 0].set_xlabel(f"seconds, {title}\nbar: medians, line: range")
    write_figure(figure, path)
    plt.close(figure)


def _draw_panel(axis: Axes, waits: Waits) -> None:
    named = dict.fromkeys(part for each in waits.values() if len(each["parts"]) > 1 for part in each["parts"])
    colours = dict(zip(named, PALETTE, strict=False))
    for place, each in enumerate(waits.values()):
        start = 0.0
        for part, seconds in each["parts"].items():
            axis.barh(place, seconds, left=start, color=colours.get(part, NEUTRAL), edgecolor="white", linewidth=0.5)
            start += seconds
        axis.hlines(place, each["low"], each["high"], color="#222222", linewidth=1.2)
        end = max(each["high"], start)
        axis.annotate(f"{each['seconds']:.2f} s", (end, place), (6, 0), textcoords="offset points", va="center")
    axis.set_yticks(range(len(waits)), list(waits))
    axis.set_ylim(len(waits) - 0.5, -0.5)
    axis.set_xlim(0, 1.12 * max(each["high"] for each in waits.values()))
    axis.spines[["top", "right"]].set_visible(False)
    patches = [Patch(color=colour, label=part) for part, colour in colours.items()]
    axis.legend(handles=patches, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
