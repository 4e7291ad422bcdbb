"""What every measurement reports: rates and ratios as JSON rows, tables and a figure."""

import json
import statistics
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from rich.console import Console
from rich.table import Column, Table

from alexnet_jax.figures import FIGURE_SUFFIXES
from alexnet_jax.figures.style import PALETTE, write_figure
from alexnet_jax.system.files import check_output

Throughputs = dict[str, list[float]]  # images per second by name, one value per round

DEFAULT_STEPS = 5
OUR_COLOUR, OTHER_COLOUR = PALETTE[0], "#999999"
WIDE = 10  # rates that are further apart than this factor have a logarithmic axis


def figure_path(figure: str | None) -> Path | None:
    """The file to draw. Raises UserError if it is no .png or .svg, or cannot be written."""
    return check_output(f"--figure={figure}", Path(figure), FIGURE_SUFFIXES) if figure else None


def new_table(title: str, *columns: str) -> Table:
    """A table with names on the left and numbers under each title."""
    return Table("", *(Column(column, justify="right") for column in columns), title=title)


def add_ratios(table: Table, ratios: Mapping[str, Mapping[str, float]], prefix: str = "") -> None:
    """Appends rows of `ratio`: name, median and range."""
    for name, each in ratios.items():
        table.add_row(f"{prefix}{name}", f"{each['median']:.2f}", f"{each['low']:.2f} to {each['high']:.2f}")


def publish(result: dict[str, Any], tables: Sequence[Table], ours: Collection[str], title: str, figure: Path | None) -> None:
    """Prints the tables on stderr and the result on stdout, as JSON; draws its rows if there is a figure."""
    console = Console(stderr=True, width=None if sys.stderr.isatty() else 120)
    for table in tables:
        console.print(table)
    if figure:
        draw_rates(result["rows"], ours, title, figure)
    print(json.dumps(result))


def ratio(throughputs: Throughputs, above: str, below: str, times: float = 1.0) -> dict[str, float]:
    """Median and range of one rate over another, taken within each round and scaled by `times`."""
    values = [times * a / b for a, b in zip(throughputs[above], throughputs[below], strict=True)]
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def row(rates: Sequence[float]) -> dict[str, float]:
    """Median and range of images per second."""
    return {"images_per_second": statistics.median(rates), "low": min(rates), "high": max(rates)}


def draw_rates(rows: Mapping[str, Mapping[str, Any]], ours: Collection[str], title: str, path: Path) -> None:
    """Images per second with their range: bars from zero, or dots on a logarithmic axis if they span more than `WIDE`.

    A logarithmic axis has no zero for a bar to begin at.

    Args:
        rows: as `row` makes them, the first one on top.
        ours: names of the rows in our colour.
        title: of the axis.
        path: of the figure.
    """
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = list(rows)[::-1]
    rates, low, high = (np.array([rows[name][key] for name in names]) for key in ("images_per_second", "low", "high"))
    figure, axes = plt.subplots(figsize=(9, 0.5 * len(rows) + 1.4), layout="constrained")
    colours = [OUR_COLOUR if name in ours else OTHER_COLOUR for name in names]
    places = np.arange(len(names))
    if max(rates) > WIDE * min(rates):
        axes.hlines(places, low, high, colors=colours, linewidth=2.5)
        axes.scatter(rates, places, color=colours, s=55, zorder=3)
        axes.set(xscale="log", xlim=(min(low) / 2, max(high) * 4))
        axes.grid(axis="x", color="0.9")
        marks = "dot: median, line: range; logarithmic axis"
    else:
        axes.barh(places, rates, xerr=[rates - low, high - rates], color=colours, ecolor="#444444", capsize=3)
        axes.set_xlim(0, max(high) * 1.2)
        marks = "bar: median, line: range"
    for place, rate, top in zip(places, rates, high, strict=True):
        text = f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}"
        axes.annotate(text, (top, place), (8, 0), textcoords="offset points", va="center", fontsize=9)
    axes.set_yticks(places, names)
    axes.set_xlabel(f"{title}\n{marks}")
    axes.spines[["top", "right"]].set_visible(False)
    write_figure(figure, path)
    plt.close(figure)
