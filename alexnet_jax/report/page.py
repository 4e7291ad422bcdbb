"""Renders the page, section by section. All text of a run goes through `escape`, or into JSON without '<'."""

import json
from collections.abc import Callable, Iterable, Sequence
from html import escape
from importlib import resources
from string import Template

from alexnet_jax.figures.curves import leap_note, rate_drops
from alexnet_jax.report import classes, pictures
from alexnet_jax.report.charts import POINTS, Chart, Curves
from alexnet_jax.report.comparison import BEST, alike, comparison, details
from alexnet_jax.report.gather import Results, Run
from alexnet_jax.report.markup import heading, named, palette
from alexnet_jax.report.static import drawing

SCRIPTS = ("page.scales.js", "page.charts.js", "page.controls.js")
CONTROLS = """<div class="controls scripted">
<label>over <select id="axis"><option value="epoch">epochs</option><option value="step">steps</option>
<option value="seconds">training time</option></select></label>
<label>smooth training curves <input type="range" id="smoothing" min="0" max="0.95" step="0.05" value="0">
<output for="smoothing">0</output></label><span id="timeless"></span></div>"""


class Page:
    """The sections of the page, and its curves."""

    def __init__(self, runs: Sequence[Run]):
        """`runs`: at least one has results."""
        self._runs, self._parts, self.curves = runs, list[str](), Curves(runs)
        self._groups = alike(runs)

    def section(self, title: str, explanation: str, content: str) -> None:
        """Adds a section. `explanation` is plain text."""
        self._parts.append(f"<section><h2>{title}</h2><p>{escape(explanation)}</p>{content}</section>")

    def by_run(self, title: str, explanation: str, content: Callable[[Run], str]) -> None:
        """Adds a section with a named cell for each run that has `content`."""
        cells = [(run, content(run)) for run in self._runs]
        self.section(title, explanation, columns(heading(run, self._runs) + cell for run, cell in cells if cell))

    def by_images(
        self, title: str, explanation: str, content: Callable[[Sequence[tuple[Run, Results]]], Iterable[str]], kind: str = ""
    ) -> None:
        """Adds a section with cells for the runs that were shown the same images, side by side."""
        parts = []
        for group in self._groups:
            names = f"<h3>{', '.join(named(run) for run, _ in group)}</h3>" if len(self._groups) > 1 else ""
            parts.append(names + columns(content(group), kind))
        self.section(title, explanation, "".join(parts))

    def figure(self, chart: Chart) -> str:
        """A chart as a drawing with its legend. The scripts replace the drawing."""
        number, title = self.curves.charts.index(chart), escape(chart.title)
        keys = [
            f'<span><svg width="26" height="8"><line class="key c{one.colour}" x2="26" y1="4" y2="4" '
            f'stroke-dasharray="{one.dash}"></line></svg>{escape(one.name)}</span>'
            for one in chart.series
        ]
        caption = f"<figcaption><span>{title}</span></figcaption>"
        legend = f'<div class="legend">{"".join(keys)}</div>'
        return f'<figure class="chart" data-chart="{number}">{caption}{drawing(chart, self.curves)}{legend}</figure>'

    def html(self) -> str:
        """The whole page. It needs no other file."""
        folder = resources.files("alexnet_jax.report")
        style, page, *scripts = (
            (folder / name).read_text(encoding="utf-8") for name in ("page.css", "page.html", *SCRIPTS)
        )  # fmt: skip
        configs = [run.config for run in self._runs if run.config is not None]
        title = ", ".join(dict.fromkeys(f"{config.architecture} on {config.dataset}" for config in configs))
        data = json.dumps(self.curves.as_dict(), allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
        return Template(page).substitute(
            title=escape(title), style=style + palette(), script="\n".join(scripts), curves=data, body="\n".join(self._parts)
        )


def columns(cells: Iterable[str], kind: str = "") -> str:
    """Cells side by side, as far as there is room."""
    return f'<div class="columns {kind}">{"".join(f"<div>{cell}</div>" for cell in cells)}</div>'


def render(runs: Sequence[Run]) -> str:
    """The report as one HTML file. `runs`: at least one has results."""
    page = Page(runs)
    _results(page, runs)
    _curves(page, runs)
    explanation = "The share of each class that a run gets wrong, in percent, and the class that it is most often taken for."
    page.by_images("Errors by class", explanation, lambda group: [classes.errors(group)])
    explanation = "Rows are the right classes, columns what the network says. A shade is a share of its row."
    page.by_images("Confusions", explanation, classes.confusions, "charts")
    explanation = "Figure 3 of the paper. Zero is grey; each kernel is scaled by its largest weight."
    page.by_run("Kernels of conv1, by tower", explanation, lambda run: pictures.kernels(run.results) if run.results else "")
    explanation = "Chosen at random, by --sample_seed alone: pages with the same split and seed show the same images."
    explanation += " The right class stands below its image. ✓: the right class. ✗: a wrong first guess."
    page.by_images("Predictions", explanation, pictures.predictions, "cards")
    explanation = "The query, then its nearest training images by features, with their place in the split and distance."
    explanation += " Solid frame and ✓: the same class. Dashed frame and ✗: another class."
    page.by_images("Nearest training images", explanation, pictures.nearest, "charts")
    explanation = "The last update should be near a thousandth of the weights. cuda-convnet's author debugged with these."
    charts = {run.number: page.curves.magnitudes(run) for run in runs}  # of all runs, before the first is drawn
    none = "<p>This run recorded none.</p>"
    page.by_run("Magnitudes", explanation, lambda run: "".join(map(page.figure, charts[run.number])) or none)
    return page.html()


def _results(page: Page, runs: Sequence[Run]) -> None:
    results = [run.results for run in runs if run.results]
    counts = " or ".join(dict.fromkeys(f"{one.judged.score.examples:,}" for one in results))
    explanation = f"One view, the centre crop, of each of the {counts} images of the {results[0].split} split. "
    explanation += "Below an error: where it would lie on endless such images, with 95 % confidence (Wilson's interval)."
    explanation += f" {BEST}: the best run." * (len(runs) > 1)
    page.section("Results", explanation, comparison(runs) + "".join(map(details, runs)))


def _curves(page: Page, runs: Sequence[Run]) -> None:
    learning = page.curves.learning
    charts = [
        learning("loss", "loss (nats)", drops=True),
        learning("top1_error", "top-1 error (%)", drops=True),
        learning("learning_rate", "learning rate", log=True, only="train", noisy=False),
        learning("images_per_second", "training throughput (images/s)", only="train"),
    ]
    explanation = "Solid: train; dashed: validation. Point at a curve to see its values, or use the arrow keys."
    if page.curves.drops:
        explanation += " Dotted: the learning rate falls."
    notes = [leap_note(rate_drops(run.rows), run.config) for run in runs if run.config is not None]
    explanation += "".join(f" {note}" for note in dict.fromkeys(notes) if note)
    if any(len(run.rows_of(track.split)) > POINTS for run in runs for track in page.curves.tracks):
        explanation += f" Long curves are thinned to {POINTS:,} points."
    page.section("Curves", explanation, CONTROLS + columns(map(page.figure, charts), "charts"))
