"""The curves of the page as data. page.js draws them."""

import math
from collections.abc import Sequence
from typing import Any

from alexnet_jax.figures.style import PALETTE
from alexnet_jax.report.gather import Run

POINTS = 1000  # the most points of a curve
DASHES = {"train": "", "validation": "6 4"}

Point = tuple[float, float]
Chart = dict[str, Any]  # title, log, series: [{name, colour, dash, points}]


def series(name: str, colour: str, dash: str, points: Sequence[Point]) -> dict[str, Any]:
    """A curve of at most `POINTS` finite points. The last point is kept."""
    finite = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    every = -(-len(finite) // POINTS) or 1
    return {"name": name, "colour": colour, "dash": dash, "points": finite[::-1][::every][::-1]}


def chart(title: str, curves: Sequence[dict[str, Any]], log: bool = False) -> Chart:
    """Curves under one title. `log`: a logarithmic scale, which leaves out values that are not positive."""
    if log:
        curves = [{**curve, "points": [(x, y) for x, y in curve["points"] if y > 0]} for curve in curves]
    return {"title": title, "log": log, "series": list(curves)}


def learning(runs: Sequence[Run], column: str, title: str, *, log: bool = False, only: str = "") -> Chart:
    """A column of the metrics, of all splits or `only` one. Each run has a colour; validation is dashed."""
    curves = []
    for number, run in enumerate(runs):
        for split in [only] if only else DASHES:
            name = ", ".join([run.label] * (len(runs) > 1) + [split] * (not only)) or title
            if points := [(row["epoch"], row[column]) for row in run.rows_of(split)]:
                curves.append(series(name, PALETTE[number % len(PALETTE)], DASHES[split], points))
    return chart(title, curves, log)


def magnitudes(run: Run) -> list[Chart]:
    """The mean magnitude of a run's weights, and the last update as a share of it. [] if they were not recorded."""
    rows = [row for row in run.rows if "magnitudes" in row]
    if not rows:
        return []
    sizes, ratios = [], []
    for number, layer in enumerate(rows[0]["magnitudes"]):
        style = PALETTE[number % len(PALETTE)], ("", "6 3", "2 3")[number % 3]
        values = [(row["epoch"], row["magnitudes"][layer]) for row in rows]
        sizes.append(series(layer, *style, [(epoch, x["kernel"]) for epoch, x in values]))
        ratio = [(epoch, x["kernel_update"] / x["kernel"]) for epoch, x in values if x["kernel"]]
        ratios.append(series(layer, *style, ratio))
    return [chart("last update / weights", ratios, log=True), chart("mean magnitude of weights", sizes, log=True)]
