"""What the networks look like and what they see: kernels, predictions, nearest images."""

from collections.abc import Sequence
from html import escape

import numpy as np

from alexnet_jax.figures.kernels import kernel_images, tiled
from alexnet_jax.inference.analysis import Guessed, Neighbour, Query, last_hidden
from alexnet_jax.report.gather import Results, Run
from alexnet_jax.report.markup import MARKS, bar, heading, named, picture

SIDE, SMALL = 192, 112  # the longest side of a photograph, and of one among its neighbours, in pixels
COLUMNS = 16  # kernels in one row


def kernels(results: Results) -> str:
    """The kernels of conv1, a sheet for each tower."""
    pictures = kernel_images(np.asarray(results.trained.params["conv1"]["kernel"]))
    parts = []
    for tower, mine in enumerate(pictures):
        sheet = (255 * tiled(mine, min(COLUMNS, len(mine)), 1.0)).round().astype(np.uint8)
        name = f"tower {tower}" if len(pictures) > 1 else "all kernels"
        image = picture(sheet, "png", f"conv1, {name}", style="pixels")
        parts.append(f"<figure><figcaption>{name}</figcaption>{image}</figure>")
    return "".join(parts)


def predictions(group: Sequence[tuple[Run, Results]]) -> list[str]:
    """A card for each image: the image, its class, and what each run says."""
    runs = [run for run, _ in group]
    cards = []
    for answers in zip(*(results.guessed for _, results in group), strict=True):
        name, image, _, _ = answers[0]
        said = [_answer(run, runs, answer) for run, answer in zip(runs, answers, strict=True)]
        cards.append(f"{picture(image, 'jpeg', name, side=SIDE)}<h3>{escape(name)}</h3>{''.join(said)}")
    return cards


def _answer(run: Run, runs: Sequence[Run], answer: Guessed) -> str:
    """The five likeliest classes. The right one is marked, and the first one if it is wrong."""
    _, _, top5, right = answer
    bars = []
    for place, guess in enumerate(top5):
        kind = "right" if guess["class"] == right else "wrong" if place == 0 else ""
        percent = 100 * guess["probability"]
        bars.append(bar(percent, guess["class"], f"{percent:.0f} %", kind))
    head = f'<div class="guess">{named(run)}</div>' if len(runs) > 1 else ""
    return head + "".join(bars)


def nearest(group: Sequence[tuple[Run, Results]]) -> list[str]:
    """A part for each query, with a line of neighbours for each run."""
    runs = [run for run, _ in group]
    parts = []
    for queries in zip(*(results.queries for _, results in group), strict=True):
        lines = [_line(run, runs, results, query) for (run, results), query in zip(group, queries, strict=True)]
        parts.append("".join(lines))
    return parts


def _line(run: Run, runs: Sequence[Run], results: Results, query: Query) -> str:
    image, name, found = query
    photograph = picture(image, "jpeg", name, side=SMALL)
    first = f"<div>{photograph}<b>{escape(name)}</b><br>by {escape(last_hidden(results.trained))}</div>"
    return f'{heading(run, runs)}<div class="near">{first}{"".join(_neighbour(one, name) for one in found)}</div>'


def _neighbour(near: Neighbour, name: str) -> str:
    kind = "right" if near.name == name else "wrong"
    photograph = picture(near.image, "jpeg", near.name, side=SMALL)
    return f'<div class="{kind}">{photograph}{MARKS[kind]}{escape(near.name)}<br>#{near.index}, {near.distance:.3g}</div>'
