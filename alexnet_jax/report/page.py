"""Renders the page. All text of a run goes through `escape`, or into JSON without '<'."""

import base64
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from html import escape
from importlib import resources
from string import Template
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from PIL import Image

from alexnet_jax.figures.confusion import draw_confusion
from alexnet_jax.figures.kernels import kernel_images, tiled
from alexnet_jax.figures.style import PALETTE
from alexnet_jax.inference.analysis import Guessed, Neighbour, Square, confusion, errors_by_class, last_hidden
from alexnet_jax.report.charts import Chart, learning, magnitudes
from alexnet_jax.report.gather import Run
from alexnet_jax.run.flags import changed, value_text

SIDE = 160  # the longest side of a photograph, in pixels
CLASSES = 40  # listed with their errors


class Page:
    """The sections of the page, and the data of their charts."""

    def __init__(self, runs: Sequence[Run]):
        """`runs`: at least one."""
        self._runs, self._parts, self._charts = runs, list[str](), list[Chart]()

    def section(self, title: str, explanation: str, cells: Iterable[str], kind: str = "") -> None:
        """Adds a section with cells side by side, if there is room."""
        columns = f'<div class="columns {kind}">{"".join(f"<div>{cell}</div>" for cell in cells)}</div>'
        self._parts.append(f"<section><h2>{title}</h2><p>{explanation}</p>{columns}</section>")

    def by_run(self, title: str, explanation: str, content: Callable[[Run], str]) -> None:
        """Adds a section with a named cell for each run."""
        self.section(title, explanation, [self._name(number, run) + content(run) for number, run in enumerate(self._runs)])

    def _name(self, number: int, run: Run) -> str:
        if len(self._runs) == 1:
            return ""
        swatch = f'<span class="swatch" style="background:{PALETTE[number % len(PALETTE)]}"></span>'
        return f"<h3>{swatch}{escape(run.label)}</h3>"

    def chart(self, content: Chart) -> str:
        """The element in which page.js draws a chart."""
        self._charts.append(content)
        number, title = len(self._charts) - 1, escape(content["title"])
        return f'<figure class="chart" data-chart="{number}"><figcaption>{title}</figcaption></figure>'

    def html(self) -> str:
        """The whole page. It needs no other file."""
        files = resources.files("alexnet_jax.report")
        style, script, page = ((files / f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js", "html"))
        title = ", ".join(dict.fromkeys(f"{run.config.architecture} on {run.config.dataset}" for run in self._runs))
        data = json.dumps(self._charts, allow_nan=False).replace("<", "\\u003c")
        return Template(page).substitute(
            title=escape(title), style=style, script=script, charts=data, body="\n".join(self._parts)
        )


def render(runs: Sequence[Run]) -> str:
    """The report as one HTML file."""
    page = Page(runs)
    page.by_run("What was run", "", _summary)
    curves = [
        learning(runs, "loss", "loss (nats)"),
        learning(runs, "top1_error", "top-1 error (%)"),
        learning(runs, "learning_rate", "learning rate", log=True, only="train"),
        learning(runs, "images_per_second", "training throughput (images/s)", only="train"),
    ]
    explanation = "Solid: train; dashed: validation. Point at a curve to see its values, or use the arrow keys."
    page.section("Curves", explanation, map(page.chart, curves), "charts")
    page.by_run("Errors by class", "The share of each class that the network gets wrong, worst first.", _errors)
    explanation = "Figure 3 of the paper. Zero is grey; each kernel is scaled by its largest weight."
    page.by_run("Kernels of conv1, by tower", explanation, _kernels)
    explanation = "Chosen at random, right ones first. The right class stands above its image; its bar is hatched."
    page.by_run("Predictions", explanation, lambda run: f'<div class="cards">{"".join(map(_card, run.guessed))}</div>')
    explanation = "The query, then its nearest training images by features, with their place in the split and distance."
    explanation += " Solid frame and ✓: the same class. Dashed frame and ✗: another class."
    page.by_run("Nearest training images", explanation, _nearest)
    explanation = "The last update should be near a thousandth of the weights. cuda-convnet's author debugged with these."
    none = "<p>This run recorded none.</p>"
    page.by_run("Magnitudes", explanation, lambda run: "".join(map(page.chart, magnitudes(run))) or none)
    return page.html()


def _table(rows: dict[str, Any]) -> str:
    lines = (f"<tr><th>{escape(name)}</th><td>{escape(value_text(value))}</td></tr>" for name, value in rows.items())
    return f"<table>{''.join(lines)}</table>"


def _summary(run: Run) -> str:
    score, record, speed = run.judged.score, run.record, run.images_per_second
    best = min(run.rows_of("validation"), key=lambda row: row["top1_error"], default=None)
    measured = f"top-1 {best['top1_error']:.2f} % at epoch {best['epoch']:.2f}" if best else "not measured"
    devices = Counter(device.partition(" ")[2] for device in record["devices"])
    facts = {
        f"{run.split} error, one view": f"top-1 {score.top1_error:.2f} %, top-5 {score.top5_error:.2f} %, "
        f"loss {score.loss:.4f}; {score.examples} examples, checkpoint {run.trained.step}",
        "best validation error": measured,
        "trained": f"{run.rows[-1]['step']} steps, {run.rows[-1]['epoch']:.2f} epochs",
        "throughput": f"{speed:,.1f} images/s, median of the rows" if speed else "not measured",
        "machine": ", ".join(f"{count} x {kind}" for kind, count in devices.items()),
        "software": f"Python {record['python']}, " + ", ".join(f"{name} {one}" for name, one in record["versions"].items()),
        "commit": record["commit"] or "not in a git checkout",
        "folder": run.config.workdir,
    }
    flags = changed(run.config, without=("workdir", "data_dir")).items()
    codes = " ".join(f"<code>{escape(f'--{name}={value_text(value)}')}</code>" for name, value in flags)
    whole = _table(record["config"] | {"fingerprint of the data": record["dataset"]["fingerprint"]})
    return f'{_table(facts)}<div class="flags">{codes}</div><details><summary>every flag</summary>{whole}</details>'


def _errors(run: Run) -> str:
    names = run.trained.classes
    counts = confusion(run.judged.split.labels, run.judged.guesses, len(names))
    errors = errors_by_class(counts)
    bars = []
    for number, total, wrong, taken in errors[:CLASSES]:
        instead = f", most often taken for {escape(names[taken])}" if taken is not None else ""
        share = f"{100 * wrong / total:.0f} % of {total}{instead}"
        bars.append(_bar(100 * wrong / total, names[number], share))
    rest = f"<p>and {len(errors) - CLASSES} classes with fewer errors</p>" if len(errors) > CLASSES else ""
    figure = draw_confusion(counts, names, f"{run.split} split")
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    plt.close(figure)
    matrix = f'<div class="wide"><img src="{_uri(file.getvalue(), "png")}" alt="confusion matrix"></div>'
    return f"{''.join(bars)}{rest}<details open><summary>confusions</summary>{matrix}</details>"


def _bar(percent: float, name: str, value: str, right: bool = False) -> str:
    """`value` is HTML; `name` is plain text."""
    width = f'<i style="width:{percent:.1f}%"></i>'
    return f'<div class="bar{" right" * right}">{width}<span><b>{escape(name)}</b><b>{value}</b></span></div>'


def _kernels(run: Run) -> str:
    pictures = kernel_images(np.asarray(run.trained.params["conv1"]["kernel"]))
    parts = []
    for tower, mine in enumerate(pictures):
        sheet = (255 * tiled(mine, 16 if len(mine) >= 16 else len(mine), 1.0)).round().astype(np.uint8)
        name = f"tower {tower}" if len(pictures) > 1 else "all kernels"
        uri = _picture(sheet, "png")
        parts.append(f'<figure><figcaption>{name}</figcaption><img class="pixels" src="{uri}" alt="conv1, {name}"></figure>')
    return "".join(parts)


def _card(item: Guessed) -> str:
    name, image, top5, right = item
    percents = [(guess["class"], 100 * guess["probability"]) for guess in top5]
    bars = "".join(_bar(percent, guess, f"{percent:.0f} %", guess == right) for guess, percent in percents)
    return f'<div><div class="name">{escape(name)}</div>{_photograph(image, name)}{bars}</div>'


def _nearest(run: Run) -> str:
    lines = []
    for image, name, nearest in run.queries:
        query = f"<div>{_photograph(image, name)}<b>{escape(name)}</b></div>"
        lines.append(f'<div class="near">{query}{"".join(_neighbour(one, name) for one in nearest)}</div>')
    return f"<p>by {escape(last_hidden(run.trained))}</p>{''.join(lines)}"


def _neighbour(near: Neighbour, name: str) -> str:
    kind, mark = ("same", "✓") if near.name == name else ("other", "✗")
    photograph = _photograph(near.image, near.name)
    return f'<div class="{kind}">{photograph}{mark} {escape(near.name)}<br>#{near.index}, {near.distance:.3g}</div>'


def _photograph(image: Square, name: str) -> str:
    return f'<img src="{_picture(image, "jpeg")}" alt="{escape(name)}">'


def _picture(pixels: Any, kind: str) -> str:
    image, file = Image.fromarray(pixels), io.BytesIO()
    if kind == "jpeg":
        image.thumbnail((SIDE, SIDE))
    image.save(file, kind, quality=88)  # PNG has none
    return _uri(file.getvalue(), kind)


def _uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
