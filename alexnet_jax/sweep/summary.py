"""The files that a sweep writes: trials.csv, best.cfg, table.md and the plots."""

import contextlib
import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from alexnet_jax.config import Config
from alexnet_jax.figures import save_figure
from alexnet_jax.sweep import plots
from alexnet_jax.sweep.space import Space, as_flags, changed
from alexnet_jax.system.files import replacing

ROWS_OF_TABLE = 5


def write_summary(study: optuna.Study, config: Config, space: Space, folder: Path) -> list[Path]:
    """Writes the summary of the trials so far. Returns the files."""
    trials = [trial for trial in study.trials if not trial.user_attrs.get("surplus")]
    complete = sorted(
        (trial for trial in trials if trial.state is TrialState.COMPLETE), key=lambda trial: (trial.value, trial.number)
    )
    names = [parameter.name for parameter in space.parameters]
    written = [_write_csv(trials, names, folder)]
    if not complete:
        return written
    written += [_write_best(complete[0], config, folder), _write_table(complete[:ROWS_OF_TABLE], names, folder)]
    drawn = {
        "learning_curves": plots.draw_curves(trials, complete[0].number, folder),
        "history": plots.draw_history(trials),
        "parallel_coordinates": plots.draw_parallel(trials, space.parameters),
    }
    with contextlib.suppress(ValueError, RuntimeError):  # Optuna needs two trials, and a flag that all have
        drawn["importance"] = plots.draw_importance(study)
    return written + [save_figure(figure, folder, name) for name, figure in drawn.items()]


def _write_csv(trials: Sequence[FrozenTrial], names: Sequence[str], folder: Path) -> Path:
    path = folder / "trials.csv"
    with replacing(path) as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["trial", "state", "validation_top1_error", "validations", "seconds", *names, "error"])
        for trial in trials:
            seconds = f"{trial.duration.total_seconds():.0f}" if trial.duration else ""
            tried = [trial.params.get(name, "") for name in names]
            reports = len(trial.intermediate_values)
            value = trial.value if trial.state is TrialState.COMPLETE else ""
            rows.writerow(
                [trial.number, trial.state.name.lower(), value, reports, seconds, *tried, trial.user_attrs.get("error", "")]
            )
    return path


def _write_best(best: FrozenTrial, config: Config, folder: Path) -> Path:
    """A flag file that trains with the best values. The command gives seed and workdir."""
    shared = {name: value for name, value in changed(config).items() if name not in ("workdir", "seed")}
    path = folder / "best.cfg"
    with replacing(path) as file:
        file.write(f"# Trial {best.number} of the sweep in {folder}: {best.value:.2f} % top-1 error on validation.\n")
        file.write(f"#   python -m alexnet_jax.train --flagfile={path} --workdir=W --seed=N\n")
        file.writelines(f"{word}\n" for word in as_flags(shared | best.params))
    return path


def _write_table(best: Sequence[FrozenTrial], names: Sequence[str], folder: Path) -> Path:
    path = folder / "table.md"
    with replacing(path) as file:
        file.write(f"| trial | validation error | {' | '.join(names)} |\n|{'---|' * (len(names) + 2)}\n")
        for trial in best:
            tried = " | ".join(_cell(trial.params.get(name, "")) for name in names)
            file.write(f"| {trial.number} | {trial.value:.2f} % | {tried} |\n")
    return path


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
