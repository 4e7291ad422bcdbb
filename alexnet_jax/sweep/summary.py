"""The files that a sweep writes: trials.csv, best.cfg, table.md and the plots."""

import contextlib
import csv
import io
from collections.abc import Sequence
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState

from alexnet_jax.config import Config
from alexnet_jax.figures import save_figure
from alexnet_jax.run.flags import changed
from alexnet_jax.sweep import plots
from alexnet_jax.sweep.space import Space, as_flags, short
from alexnet_jax.sweep.trials import ranked
from alexnet_jax.system.files import replacing

ROWS_OF_TABLE = 5


def write_summary(study: optuna.Study, config: Config, space: Space, folder: Path) -> list[Path]:
    """Writes the summary of the trials so far. Returns the files."""
    trials = [trial for trial in study.trials if not trial.user_attrs.get("surplus")]
    complete, names = ranked(trials), [parameter.name for parameter in space.parameters]
    texts, drawn = {"trials.csv": _csv(trials, names)}, {}
    if complete:
        texts["best.cfg"] = _flagfile(complete[0], config, folder)
        texts["table.md"] = _table(complete[:ROWS_OF_TABLE], names)
        drawn["learning_curves"] = plots.draw_curves(trials, complete[0].number, folder)
        drawn["history"] = plots.draw_history(trials)
        drawn["parallel_coordinates"] = plots.draw_parallel(trials, space.parameters)
        with contextlib.suppress(ValueError, RuntimeError):  # Optuna needs two trials, and a flag that all have
            drawn["importance"] = plots.draw_importance(study)
    for name, text in texts.items():
        with replacing(folder / name) as file:
            file.write(text)
    return [folder / name for name in texts] + [save_figure(figure, folder, name) for name, figure in drawn.items()]


def _csv(trials: Sequence[FrozenTrial], names: Sequence[str]) -> str:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["trial", "state", "validation_top1_error", "validations", "seconds", *names, "error"])
    for trial in trials:
        value = trial.value if trial.state is TrialState.COMPLETE else ""
        seconds = f"{trial.duration.total_seconds():.0f}" if trial.duration else ""
        result = [trial.number, trial.state.name.lower(), value, len(trial.intermediate_values), seconds]
        rows.writerow(result + [trial.params.get(name, "") for name in names] + [trial.user_attrs.get("error", "")])
    return text.getvalue()


def _flagfile(best: FrozenTrial, config: Config, folder: Path) -> str:
    """Flags that train with the best values. The command gives seed and workdir."""
    words = as_flags(changed(config, without=("workdir", "seed")) | best.params)
    return (
        f"# Trial {best.number} of the sweep in {folder}: {best.value:.2f} % top-1 error on validation.\n"
        f"#   python -m alexnet_jax.train --flagfile={folder / 'best.cfg'} --workdir=W --seed=N\n"
    ) + "".join(f"{word}\n" for word in words)


def _table(best: Sequence[FrozenTrial], names: Sequence[str]) -> str:
    text = f"| trial | validation error | {' | '.join(names)} |\n|{'---|' * (len(names) + 2)}\n"
    for trial in best:
        tried = " | ".join(short(trial.params.get(name, "")) for name in names)
        text += f"| {trial.number} | {trial.value:.2f} % | {tried} |\n"
    return text
