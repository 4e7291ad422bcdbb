"""Charts as drawings, for readers without scripts, on paper and while the page loads. Over epochs."""

import math
from collections.abc import Sequence
from html import escape

from matplotlib.ticker import LogLocator, MaxNLocator

from alexnet_jax.report.charts import Chart, Curves, Series

WIDTH, HEIGHT = 420, 250
LEFT, RIGHT, TOP, BOTTOM = 56, WIDTH - 12, 20, HEIGHT - 34
APART = 70  # labels of drops that are nearer to each other than this are left out

Points = list[tuple[float, float]]


def points(series: Series, curves: Curves, log: bool) -> Points:
    """(epoch, value) of a curve. A logarithmic scale leaves out values that are not positive."""
    pairs = zip(curves.tracks[series.track].epoch, series.values, strict=True)
    return [(x, y) for x, y in pairs if y is not None and (y > 0 or not log)]


class Scale:
    """From values to places along one axis."""

    def __init__(self, values: Sequence[float], first: float, last: float, log: bool):
        """`values`: what has to fit between the places `first` and `last`; at least one."""
        low, high = min(values), max(values)
        self.low, self.high = (low / 1.15, high * 1.15) if log else (min(0.0, low), high if high > 0 else 1.0)
        self._first, self._last, self._log = first, last, log

    def __call__(self, value: float) -> float:
        low, high, at = (map(math.log10, (self.low, self.high, value))) if self._log else (self.low, self.high, value)
        return self._first + (at - low) / (high - low) * (self._last - self._first)

    def ticks(self) -> list[float]:
        """Round values."""
        narrow = self._log and self.high < 30 * self.low
        locator = LogLocator(subs=(1, 2, 5) if narrow else (1,)) if self._log else MaxNLocator(5, steps=[1, 2, 5, 10])
        return [tick for tick in map(float, locator.tick_values(self.low, self.high)) if self.low <= tick <= self.high]


def drawing(chart: Chart, curves: Curves) -> str:
    """A chart as SVG. The page's style sheet has its colours."""
    alike = [series for one in curves.charts if one.title == chart.title for series in one.series]
    within = [point for series in alike for point in points(series, curves, chart.log)]
    head = f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(chart.title)}">'
    if not within:
        return f"{head}{_text('nothing recorded', LEFT, HEIGHT / 2)}</svg>"
    x = Scale([x for x, _ in within], LEFT, RIGHT, log=False)
    y = Scale([y for _, y in within], BOTTOM, TOP, log=chart.log)
    lines = "".join(_curve([(x(a), y(b)) for a, b in points(one, curves, chart.log)], one) for one in chart.series)
    return f"{head}{_frame(x, y)}{_drops(curves, x) if chart.drops else ''}{lines}</svg>"


def _text(content: str, x: float, y: float, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(content)}</text>'


def _line(kind: str, x1: float, x2: float, y1: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1:.1f}" y2="{y2:.1f}"></line>'


def _frame(x: Scale, y: Scale) -> str:
    """The axes with their ticks."""
    parts = [_line("grid", LEFT, RIGHT, y(tick), y(tick)) for tick in y.ticks()]
    parts += [_text(f"{tick:g}", LEFT - 6, y(tick) + 4, "end") for tick in y.ticks()]
    parts += [_text(f"{tick:g}", x(tick), BOTTOM + 16, "middle") for tick in x.ticks()]
    parts += [_text("epoch", (LEFT + RIGHT) / 2, HEIGHT - 3, "middle"), _line("axis", LEFT, RIGHT, BOTTOM, BOTTOM)]
    return "".join(parts)


def _drops(curves: Curves, x: Scale) -> str:
    """A line where a rate falls, with the new rate above it where there is room."""
    parts, labelled = [], -APART
    for drop in sorted(curves.drops, key=lambda drop: drop.epoch):
        if x.low <= drop.epoch <= x.high:
            at = x(drop.epoch)
            parts.append(_line(f"drop c{drop.colour}", at, at, TOP, BOTTOM))
            if at - labelled >= APART:
                parts.append(_text(f"rate {drop.rate:.2g}", at, TOP - 6, "middle"))
                labelled = at
    return "".join(parts)


def _curve(places: Points, series: Series) -> str:
    style = f'class="line c{series.colour}"'
    if len(places) == 1:
        ((x, y),) = places
        return f'<circle class="dot c{series.colour}" cx="{x:.1f}" cy="{y:.1f}" r="3"></circle>'
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    return f'<polyline {style} points="{path}" stroke-dasharray="{series.dash}"></polyline>'
