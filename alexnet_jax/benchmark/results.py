"""Rates and ratios of contenders that were measured in turn, as JSON rows and as bars."""

import statistics
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

from alexnet_jax.figures import write_figure

Rates = dict[str, list[float]]  # images per second of each contender in each round

OURS, OTHERS = "#0072B2", "#999999"  # Okabe and Ito's palette


def ratio(rates: Rates, above: str, below: str, times: float = 1.0) -> dict[str, float]:
    """The ratio of two contenders, round by round: its median and range."""
    return spread([times * a / b for a, b in zip(rates[above], rates[below], strict=True)])


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and range."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def row(rates: Sequence[float]) -> dict[str, float]:
    """Images per second with their range."""
    return {"images_per_second": statistics.median(rates), "low": min(rates), "high": max(rates)}


def draw(rows: Mapping[str, Mapping[str, Any]], ours: Collection[str], title: str, path: Path) -> None:
    """Bars of images per second with their range, on a logarithmic axis where they span more than a factor of ten.

    Args:
        rows: as `row` makes them, by name, the topmost first.
        ours: names that are set off in colour.
        title: under the axis.
        path: a .png or .svg.
    """
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = list(rows)[::-1]
    rates = [rows[name]["images_per_second"] for name in names]
    errors = [[rows[name]["images_per_second"] - rows[name]["low"] for name in names],
              [rows[name]["high"] - rows[name]["images_per_second"] for name in names]]  # fmt: skip
    figure, axes = plt.subplots(figsize=(9, 0.5 * len(rows) + 1.2), layout="constrained")
    colours = [OURS if name in ours else OTHERS for name in names]
    axes.barh(names, rates, xerr=errors, color=colours, ecolor="#444444", capsize=3)
    for place, rate in enumerate(rates):
        label = f"  {rate:,.0f}" if rate >= 100 else f"  {rate:.1f}"
        axes.annotate(label, (rows[names[place]]["high"], place), va="center", fontsize=9)
    if max(rates) > 10 * min(rates):
        axes.set_xscale("log")
        axes.set_xlim(min(rates) / 10, max(rates) * 6)
    else:
        axes.set_xlim(0, max(rates) * 1.2)
    axes.set_xlabel(title)
    axes.spines[["top", "right"]].set_visible(False)
    write_figure(figure, path)
    plt.close(figure)
