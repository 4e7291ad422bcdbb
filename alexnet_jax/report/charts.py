"""The curves of the page as data. static.py and the scripts draw them."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from alexnet_jax.figures.style import PALETTE
from alexnet_jax.report.gather import Run

POINTS = 1000  # the most points of a curve
DASHES = {"train": "", "validation": "6 4"}
LAYER_DASHES = ("", "6 3", "2 3")

Rows = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Track:
    """Where the points of curves lie. `seconds` of training are None where a run did not record them."""

    run: str  # its label
    split: str
    epoch: list[float]
    step: list[int]
    seconds: list[float] | None


@dataclass(frozen=True)
class Series:
    """A curve: its values along a track; None is a gap. `colour`: its place in the palette."""

    name: str
    colour: int
    dash: str
    track: int
    values: list[float | None]
    layer: str = ""


@dataclass(frozen=True)
class Chart:
    """Curves in one frame. Charts with the same title have the same axes.

    drops: mark where the rate falls.
    noisy: its training curves may be smoothed.
    """

    title: str
    log: bool
    drops: bool
    noisy: bool
    series: list[Series]


@dataclass(frozen=True)
class Drop:
    """A fall of a run's learning rate to `rate`: after the last row that has the old one."""

    colour: int  # of the run, in the palette
    epoch: float
    step: int
    seconds: float | None
    rate: float


def thinned(rows: Rows) -> list[dict[str, Any]]:
    """At most `POINTS` rows, evenly chosen. The last one is kept."""
    finite = [row for row in rows if math.isfinite(row["epoch"])]
    every = -(-len(finite) // POINTS) or 1
    return finite[::-1][::every][::-1]


def _seconds(row: dict[str, Any]) -> float | None:
    """Seconds of training until a row; records of earlier versions have none."""
    seconds = row.get("seconds")
    return seconds if isinstance(seconds, int | float) and math.isfinite(seconds) else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


class Curves:
    """The charts of a page, and the tracks and drops that they share."""

    def __init__(self, runs: Sequence[Run]):
        self._runs = runs
        self.tracks, self.charts = list[Track](), list[Chart]()
        self.drops = [drop for run in runs for drop in drops(run)]
        self._places = dict[tuple[int, str], tuple[int, Rows]]()
        for run in runs:
            for split in DASHES:
                if rows := thinned(run.rows_of(split)):
                    self._places[run.number, split] = len(self.tracks), rows
                    self.tracks.append(_track(run, split, rows))

    def learning(
        self, column: str, title: str, *, log: bool = False, only: str = "", drops: bool = False, noisy: bool = True
    ) -> Chart:
        """Adds a column of the metrics, of all splits or `only` one. Each run has a colour; validation is dashed."""
        curves = []
        for run in self._runs:
            for split in [only] if only else DASHES:
                name = ", ".join([run.label] * (len(self._runs) > 1) + [split] * (not only)) or title
                if place := self._places.get((run.number, split)):
                    values = [_finite(row[column]) for row in place[1]]
                    curves.append(Series(name, run.colour, DASHES[split], place[0], values))
        return self._add(Chart(title, log, drops, noisy, curves))

    def magnitudes(self, run: Run) -> list[Chart]:
        """Adds the last update as a share of a run's weights, and their mean magnitude. [] if they were not recorded."""
        track, rows = self._places.get((run.number, "validation"), (0, []))
        layers = next((row["magnitudes"] for row in rows if "magnitudes" in row), {})
        ratios, sizes = [], []
        for number, layer in enumerate(layers):
            values = [row.get("magnitudes", {}).get(layer) for row in rows]
            size = [_finite(value["kernel"]) if value else None for value in values]
            update = [_finite(value["kernel_update"]) if value else None for value in values]
            ratio = [b / a if a and b is not None else None for a, b in zip(size, update, strict=True)]
            style = number % len(PALETTE), LAYER_DASHES[number % len(LAYER_DASHES)], track
            ratios.append(Series(layer, *style, ratio, layer))
            sizes.append(Series(layer, *style, size, layer))
        titled = {"last update / weights": ratios, "mean |weight|": sizes} if layers else {}
        return [self._add(Chart(title, True, False, False, series)) for title, series in titled.items()]

    def _add(self, chart: Chart) -> Chart:
        self.charts.append(chart)
        return chart

    def as_dict(self) -> dict[str, Any]:
        """For the scripts."""
        lists = {"tracks": self.tracks, "charts": self.charts, "drops": self.drops}
        return {name: [asdict(one) for one in found] for name, found in lists.items()}


def _track(run: Run, split: str, rows: Rows) -> Track:
    times = [time for row in rows if (time := _seconds(row)) is not None]
    epochs, steps = [row["epoch"] for row in rows], [row["step"] for row in rows]
    return Track(run.label, split, epochs, steps, times if len(times) == len(rows) else None)


def drops(run: Run) -> list[Drop]:
    """Where the rate of a run falls."""
    rows = [row for row in run.rows if math.isfinite(row["epoch"])]
    falls = [(a, b["learning_rate"]) for a, b in pairwise(rows) if b["learning_rate"] < a["learning_rate"]]
    return [Drop(run.colour, last["epoch"], last["step"], _seconds(last), rate) for last, rate in falls]
