"""The table at the top of the page: a row for each run, and what differs from the first one."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import jax

from alexnet_jax.config import as_dict
from alexnet_jax.figures.curves import WHEREABOUTS
from alexnet_jax.figures.style import short
from alexnet_jax.report.gather import Results, Run
from alexnet_jax.report.markup import facts, named, scrolled
from alexnet_jax.run.display import duration
from alexnet_jax.run.flags import changed, value_text
from alexnet_jax.scores import error_interval

BEST = "\N{BLACK STAR}"
DATA_FLAGS = ("dataset", "image_size", "resize", "fold")
SHORT = 30  # letters of what differs in machine, software or commit; the details have all of them
NOTHING = "\N{EN DASH}"


@dataclass(frozen=True)
class Cell:
    """HTML, and the value that the runs are compared by, if they are."""

    html: str
    value: float | None = None


@dataclass(frozen=True)
class Column:
    """One measure of all runs. `best` chooses the value that is marked."""

    title: str
    cell: Callable[[Run], Cell]
    best: Callable[[list[float]], float] | None = None


def alike(runs: Sequence[Run]) -> list[list[tuple[Run, Results]]]:
    """The runs with results, those together that were shown the same images."""
    groups = dict[Any, list[tuple[Run, Results]]]()
    for run in runs:
        if run.results is not None:
            groups.setdefault(run.results.images, []).append((run, run.results))
    return list(groups.values())


def comparison(runs: Sequence[Run]) -> str:
    """The table, with a warning if its errors do not compare. At least one of the runs has results."""
    columns = _columns(runs)
    cells = {run.number: [column.cell(run) for column in columns] for run in runs if run.config is not None}
    bests = [_best(column, [row[place].value for row in cells.values()]) for place, column in enumerate(columns)]
    titles = "".join(f'<th scope="col">{_unbroken(column.title)}</th>' for column in columns)
    lines = []
    for run in runs:
        texts = [_text(*both) for both in zip(columns, cells.get(run.number, []), bests, strict=False)]
        lines.append(f'<tr><th scope="row">{named(run)}{_checkpoint(run)}</th>{"".join(texts)}</tr>')
        lines += [_problem_row(problem, len(columns) + 1) for problem in run.problems]
    body = f'<thead><tr><th scope="col">run</th>{titles}</tr></thead><tbody>{"".join(lines)}</tbody>'
    return _warning(runs) + scrolled(f'<table class="comparison">{body}</table>', "results of the runs")


def _unbroken(title: str) -> str:
    """Without a line break in 'top-1'."""
    return escape(title).replace("-", "&#8209;")


def _problem_row(problem: str, width: int) -> str:
    return f'<tr><td class="problem" colspan="{width}">{escape(problem)}</td></tr>'


def _text(column: Column, cell: Cell, best: float | None) -> str:
    title = f'data-title="{escape(column.title)}"'
    if best is not None and cell.value == best:
        return f'<td class="best" {title}><span>{BEST} {cell.html}</span></td>'
    return f"<td {title}><span>{cell.html}</span></td>"


def _best(column: Column, values: list[float | None]) -> float | None:
    """The best value, if there is something to choose."""
    known = [value for value in values if value is not None]
    return column.best(known) if column.best is not None and len(known) > 1 else None


def _columns(runs: Sequence[Run]) -> list[Column]:
    """Errors are marked only if they are of the same images."""
    ((_, results), *_), *others = alike(runs)
    split, same_images = results.split, None if others else min
    folds = {(run.results.images[0], run.config.fold) for run in runs if run.results and run.config}
    columns = [
        Column(f"{split} top-1 error", lambda run: _error(run, 1), same_images),
        Column(f"{split} top-5 error", lambda run: _error(run, 5), same_images),
        Column(f"{split} loss (nats)", _loss, same_images),
        Column("lowest validation top-1 error", _validation, min if len(folds) == 1 else None),
        Column("training time (h:m:s)", _time),
        Column("images/s", _speed, max),
        Column("steps", _steps),
        Column("parameters", _parameters),
    ]
    others = [Column("differs from the first", lambda run: Cell(_differences(runs[0], run)))]
    return columns + others * (len(runs) > 1)


def _error(run: Run, top: int) -> Cell:
    if run.results is None:
        return Cell(NOTHING)
    score = run.results.judged.score
    error = score.top1_error if top == 1 else score.top5_error
    low, high = error_interval(error, score.examples)
    return Cell(f"{error:.2f} %<small>{low:.1f} to {high:.1f} %</small>", error)


def _loss(run: Run) -> Cell:
    return Cell(f"{run.results.judged.score.loss:.4f}", run.results.judged.score.loss) if run.results else Cell(NOTHING)


def _validation(run: Run) -> Cell:
    rows = run.rows_of("validation")
    if not rows:
        return Cell("no validation recorded" if run.rows else NOTHING)
    best = min(rows, key=lambda row: row["top1_error"])
    return Cell(f"{best['top1_error']:.2f} %<small>at epoch {best['epoch']:.2f}</small>", best["top1_error"])


def _time(run: Run) -> Cell:
    seconds = run.rows[-1].get("seconds") if run.rows else None
    return Cell(duration(seconds) if isinstance(seconds, int | float) else "not recorded" if run.rows else NOTHING)


def _speed(run: Run) -> Cell:
    speed = run.images_per_second
    return Cell(f"{speed:,.1f}", speed) if speed else Cell(NOTHING)


def _steps(run: Run) -> Cell:
    if not run.rows:
        return Cell(NOTHING)
    step, total = run.rows[-1]["step"], run.total_steps
    missing = total is not None and step < total
    planned = f"<small>not finished,</small><small>{total:,} planned</small>" if missing else ""
    return Cell(f"{step:,}<small>epoch {run.rows[-1]['epoch']:.2f}</small>{planned}")


def _parameters(run: Run) -> Cell:
    return Cell(f"{sum(leaf.size for leaf in jax.tree.leaves(run.results.trained.params)):,}" if run.results else NOTHING)


def _checkpoint(run: Run) -> str:
    return f"<small>checkpoint {run.results.trained.step}</small>" if run.results else ""


def _differences(first: Run, run: Run) -> str:
    """Flags that are not those of the first run, and machines, versions and commits if they are others."""
    if run is first or first.config is None or run.config is None:
        return NOTHING
    old, new = as_dict(first.config), as_dict(run.config)
    codes = [f"--{name}={value_text(new[name])}" for name in new if new[name] != old[name] and name not in WHEREABOUTS]
    if first.record and run.record:
        before, after = _origin(first.record), _origin(run.record)
        codes += [f"{name}: {short(after[name], SHORT)}" for name in after if after[name] != before[name]]
    return "".join(f"<code>{escape(code)}</code>" for code in codes) or "nothing"


def _origin(record: dict[str, Any]) -> dict[str, str]:
    devices = Counter(device.partition(" ")[2] for device in record["devices"])
    return {
        "machine": ", ".join(f"{count} x {kind}" for kind, count in devices.items()),
        "software": f"Python {record['python']}, " + ", ".join(f"{name} {one}" for name, one in record["versions"].items()),
        "commit": record["commit"] or "not in a git checkout",
    }


def details(run: Run) -> str:
    """Where a run was trained, and its flags, folded."""
    if run.config is None:
        return ""
    flags = changed(run.config, without=("workdir", "data_dir")).items()
    codes = "".join(f"<code>{escape(f'--{name}={value_text(value)}')}</code>" for name, value in flags)
    known = _origin(run.record) if run.record else {}
    known |= {"data": run.results.images[0]} if run.results else {}
    every = f"<details><summary>every flag</summary>{facts(as_dict(run.config))}</details>"
    inside = f"<p>{codes}</p>{facts(known | {'folder': run.workdir})}{every}"
    return f"<details><summary>{named(run)}: flags, machine, software</summary>{inside}</details>"


def _warning(runs: Sequence[Run]) -> str:
    """Names the runs that were judged on other images than the first, and why."""
    ((first, _), *_), *others = alike(runs)
    texts = [f"{escape(run.label)}: {escape(_other_data(first, run))}" for group in others for run, _ in group]
    if not texts:
        return ""
    said = f"Not all runs saw the images of {escape(first.label)}, so their errors do not compare. {'; '.join(texts)}."
    return f'<p class="problem">{said}</p>'


def _other_data(first: Run, run: Run) -> str:
    if first.config is None or run.config is None:
        return "other data"
    old, new = as_dict(first.config), as_dict(run.config)
    return ", ".join(f"--{name}={new[name]}" for name in DATA_FLAGS if new[name] != old[name]) or "other content or classes"
