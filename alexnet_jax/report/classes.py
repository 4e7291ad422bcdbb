"""Errors and confusions by class, of runs that were shown the same images."""

from collections.abc import Sequence
from html import escape

import numpy as np
from jaxtyping import Int

from alexnet_jax.figures.style import RIGHT, RIGHT_MARK, WRONG
from alexnet_jax.inference.analysis import confused_pairs, confusion, errors_by_class
from alexnet_jax.report.gather import Results, Run
from alexnet_jax.report.markup import bar, heading, named, picture, scrolled

LISTED = 40  # the most classes that are all listed
COUNTED = 25  # the most classes whose counts are written into a matrix
PAIRS = 30

Counts = Int[np.ndarray, "classes classes"]


def counts_of(results: Results) -> Counts:
    """Confusions: rows are the right classes, columns the predicted ones."""
    judged = results.judged
    return confusion(judged.split.labels, judged.guesses, len(results.trained.classes))


def errors(group: Sequence[tuple[Run, Results]]) -> str:
    """A row for each class and a column for each run. Many classes: those with the most errors over all runs."""
    names = group[0][1].trained.classes
    found = [{entry[0]: entry for entry in errors_by_class(counts_of(results))} for _, results in group]
    classes = sorted(found[0])
    if len(classes) > LISTED:
        classes.sort(key=lambda number: -sum(one[number][2] for one in found) / found[0][number][1])
    head = "".join(f'<th scope="col">{named(run)}</th>' for run, _ in group) if len(group) > 1 else "<th>error</th>"
    whose = [f'<small class="whose">{named(run)}</small>' * (len(group) > 1) for run, _ in group]  # where the head is hidden
    lines = []
    for number in classes[:LISTED]:
        total = found[0][number][1]
        bars = [_error(one[number], names) for one in found]
        cells = "".join(f"<td>{name}{error}</td>" for name, error in zip(whose, bars, strict=True))
        lines.append(f'<tr><th scope="row">{escape(names[number])} <small>{total} images</small></th>{cells}</tr>')
    rest = f"<p>and {len(classes) - LISTED} classes with fewer errors</p>" if len(classes) > LISTED else ""
    head = f'<thead><tr><th scope="col">class</th>{head}</tr></thead>'
    return f'<table class="errors">{head}<tbody>{"".join(lines)}</tbody></table>{rest}'


def _error(entry: tuple[int, int, int, int | None], names: Sequence[str]) -> str:
    _, total, wrong, taken = entry
    percent = 100 * wrong / total
    return bar(percent, f"{percent:.0f} %", "" if taken is None else f"→ {names[taken]}", "wrong" if wrong else "right")


def confusions(group: Sequence[tuple[Run, Results]]) -> list[str]:
    """A matrix for each run, all in the order of the set; with many classes also one table of the most frequent ones."""
    names = group[0][1].trained.classes
    runs = [run for run, _ in group]
    counts = [counts_of(results) for _, results in group]
    draw = _matrix if len(names) <= COUNTED else _map
    parts = [heading(run, runs) + draw(mine, names) for run, mine in zip(runs, counts, strict=True)]
    return parts if len(names) <= COUNTED else [*parts, _pairs(runs, counts, names)]


def _matrix(counts: Counts, names: Sequence[str]) -> str:
    """Counts. A shade is a share of its row. Columns are named by the numbers that stand before the rows' names."""
    head = "".join(f'<th scope="col" title="{escape(name)}">{number}</th>' for number, name in enumerate(names))
    lines = []
    for number, (name, row) in enumerate(zip(names, counts.tolist(), strict=True)):
        cells = [_cell(count, count / max(sum(row), 1), place == number) for place, count in enumerate(row)]
        head_of_row = f'<th scope="row" title="{escape(name)}"><small>{number}</small> {escape(name)}</th>'
        lines.append(f"<tr>{head_of_row}{''.join(cells)}</tr>")
    table = f'<table class="matrix"><thead><tr><td></td>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table>'
    return scrolled(table, "confusion matrix")


def _cell(count: int, share: float, right: bool) -> str:
    if not count:
        return "<td></td>"
    kind, mark = (' class="right"', RIGHT_MARK) if right else ("", "")
    return f'<td{kind} style="--share:{100 * share:.0f}">{mark}{count}</td>'


def _map(counts: Counts, names: Sequence[str]) -> str:
    """A matrix whose cells are pixels: the share of the row is their opacity."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    pixels = np.empty((*counts.shape, 4), np.uint8)
    pixels[..., :3] = _rgb(WRONG)
    pixels[np.diag_indices(len(counts))] = (*_rgb(RIGHT), 0)
    pixels[..., 3] = (255 * shares).round()
    return picture(pixels, "png", f"confusion matrix of {len(names)} classes", style="pixels map")


def _rgb(colour: str) -> tuple[int, int, int]:
    red, green, blue = bytes.fromhex(colour[1:])
    return red, green, blue


def _pairs(runs: Sequence[Run], counts: Sequence[Counts], names: Sequence[str]) -> str:
    """The most frequent confusions of all runs together."""
    pairs = confused_pairs(np.sum(counts, axis=0), PAIRS)
    totals = counts[0].sum(axis=1).tolist()
    head = "".join(f'<th scope="col">{named(run)}</th>' for run in runs) if len(runs) > 1 else "<th>images</th>"
    lines = []
    for right, taken, _ in pairs:
        cells = "".join(f"<td>{mine[right, taken]} of {totals[right]}</td>" for mine in counts)
        lines.append(f'<tr><th scope="row">{escape(names[right])} → {escape(names[taken])}</th>{cells}</tr>')
    return f"<table><thead><tr><th>most frequent</th>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
