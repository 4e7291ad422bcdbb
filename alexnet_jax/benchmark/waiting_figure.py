"""The waits as bars of seconds, each made of its parts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.patches import Patch

from alexnet_jax.figures.style import NEUTRAL, PALETTE, write_figure


def draw_waits(rows: Mapping[str, Mapping[str, Any]], title: str, path: Path) -> None:
    """A bar for each wait, the first one on top, with the range of the whole.

    Args:
        rows: 'seconds', 'low', 'high' and 'parts' of each wait, as `waiting.waited` makes them.
        title: what was measured.
        path: of the figure.
    """
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(10, 0.5 * len(rows) + 2.2), layout="constrained")
    named = dict.fromkeys(part for each in rows.values() if len(each["parts"]) > 1 for part in each["parts"])
    colours = dict(zip(named, PALETTE, strict=False))
    for place, each in enumerate(rows.values()):
        start = 0.0
        for part, seconds in each["parts"].items():
            axes.barh(place, seconds, left=start, color=colours.get(part, NEUTRAL), edgecolor="white", linewidth=0.5)
            start += seconds
        axes.hlines(place, each["low"], each["high"], color="#222222", linewidth=1.2)
        axes.annotate(
            f"{each['seconds']:.2f} s", (max(each["high"], start), place), (6, 0), textcoords="offset points", va="center"
        )
    axes.set_yticks(range(len(rows)), list(rows))
    axes.invert_yaxis()
    axes.set_xlim(0, 1.15 * max(each["high"] for each in rows.values()))
    axes.set_xlabel(f"seconds, {title}\nbar: medians, line: range")
    axes.spines[["top", "right"]].set_visible(False)
    handles = [Patch(color=colour, label=part) for part, colour in colours.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=4, frameon=False)
    write_figure(figure, path)
    plt.close(figure)
