"""The files that a sweep writes: trials.csv, best.cfg, table.md and the plots."""

import csv
import io
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

import optuna
from matplotlib.figure import Figure
from optuna.trial import FrozenTrial

from alexnet_jax.config import Config, as_dict
from alexnet_jax.figures import FIGURE_SUFFIXES
from alexnet_jax.figures.style import save_figure
from alexnet_jax.sweep import plots
from alexnet_jax.sweep.series import spread
from alexnet_jax.sweep.space import Space, as_flags, short
from alexnet_jax.sweep.trials import ranked, state_name, trial_folder
from alexnet_jax.system.files import replacing

ROWS_OF_TABLE = 5
ENOUGH = 10  # finished trials, for importances of flags

Confirmed = Mapping[int, Sequence[float]]


def write_summary(
    study: optuna.Study, config: Config, space: Space, folder: Path, confirmed: Confirmed
) -> tuple[list[Path], str]:
    """Writes the summary of the trials so far. Returns the files, and why there are no importances of flags, or ''.

    `confirmed`: errors with fresh seeds, by number of the trial. The ranking is by them where there are some.
    """
    trials = [trial for trial in study.trials if not trial.user_attrs.get("surplus")]
    complete, names = ranked(trials, confirmed), [parameter.name for parameter in space.parameters]
    texts, drawn = {"trials.csv": _csv(trials, names, confirmed)}, dict[str, Figure]()
    if trials:
        drawn["history"] = plots.draw_history(trials)
    if complete:
        texts["best.cfg"] = _flagfile(complete[0], config, folder, confirmed)
        texts["table.md"] = _table(complete[: max(ROWS_OF_TABLE, len(confirmed))], names, confirmed)
        drawn["learning_curves"] = plots.draw_curves(trials, complete[0].number, folder)
        drawn["parallel_coordinates"] = plots.draw_parallel(trials, space.parameters)
    importance = _importance(study, len(complete))
    if isinstance(importance, str):
        for suffix in FIGURE_SUFFIXES:  # of fewer trials, by an earlier version
            (folder / f"importance{suffix}").unlink(missing_ok=True)
    else:
        drawn["importance"] = importance
    for name, text in texts.items():
        with replacing(folder / name) as file:
            file.write(text)
    files = [folder / name for name in texts] + [save_figure(figure, folder, name) for name, figure in drawn.items()]
    return files, importance if isinstance(importance, str) else ""


def _importance(study: optuna.Study, finished: int) -> Figure | str:
    """The plot, or why there is none. `finished`: trials with an error of their own."""
    if finished < ENOUGH:
        return f"no importance of flags: {finished} finished trials are too few, it takes {ENOUGH}"
    try:
        return plots.draw_importance(study)
    except (ValueError, RuntimeError) as error:  # Optuna needs a flag that all trials have
        return f"no importance of flags: {error}"


def _csv(trials: Sequence[FrozenTrial], names: Sequence[str], confirmed: Confirmed) -> str:
    text = io.StringIO()
    again = ["confirmed_top1_error", "confirmed_lowest", "confirmed_highest", "confirmed_seeds"]
    columns = ["trial", "state", "validation_top1_error", "best_step", *again, "validations", "seconds", *names, "error"]
    rows = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    rows.writeheader()
    for trial in trials:
        row = {"trial": trial.number, "state": state_name(trial), "validations": len(trial.intermediate_values)}
        row |= trial.params | {"error": trial.user_attrs.get("error") or trial.user_attrs.get("diverged")}
        if row["state"] == "complete":
            row |= {"validation_top1_error": trial.value, "best_step": trial.user_attrs.get("best_step")}
        if errors := confirmed.get(trial.number):
            row |= dict(zip(again, (fmean(errors), min(errors), max(errors), len(errors)), strict=True))
        if trial.duration:
            row["seconds"] = f"{trial.duration.total_seconds():.0f}"
        rows.writerow(row)
    return text.getvalue()


def _flagfile(best: FrozenTrial, config: Config, folder: Path, confirmed: Confirmed) -> str:
    """Flags that train with the best values. The command gives seed and workdir."""
    shared = {name: value for name, value in as_dict(config).items() if name not in ("workdir", "seed", *best.params)}
    again = f" With fresh seeds: {spread(confirmed[best.number])}." if best.number in confirmed else ""
    comments = [f"Trial {best.number} of the sweep in {folder}: {best.value:.2f} % top-1 error on validation.{again}"]
    workdir = trial_folder(folder, best.number)
    if workdir.is_dir():  # not in the folder of another sweep that shares the study
        place = shlex.quote(str(workdir))
        comments.append(f"  python -m alexnet_jax.evaluate --workdir={place} --step=best --split=validation")
    path = shlex.quote(str(folder / "best.cfg"))
    comments.append(f"  python -m alexnet_jax.train --flagfile={path} --workdir=W --seed=N")
    comments.append("The flags that the sweep has tried, then those that all its trials share.")
    lines = [*(f"# {comment}" for comment in comments), *as_flags(best.params | shared)]
    return "".join(f"{line}\n" for line in lines)


def _table(best: Sequence[FrozenTrial], names: Sequence[str], confirmed: Confirmed) -> str:
    """In Markdown. The errors with fresh seeds have a column where there are some."""
    again = ["with fresh seeds"] if confirmed else []
    rows = [["trial", "validation error", *again, *names]]
    rows.append(["---"] * len(rows[0]))
    for trial in best:
        errors = confirmed.get(trial.number)
        fresh = [spread(errors) if errors else ""] if confirmed else []
        tried = [short(trial.params.get(name, "")) for name in names]
        rows.append([str(trial.number), f"{trial.value:.2f} %", *fresh, *tried])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)
