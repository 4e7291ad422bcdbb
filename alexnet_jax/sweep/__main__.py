"""Sweeps flags of the trainer. Rerun the same command to resume.

python -m alexnet_jax.sweep --flagfile=F --space=experiments/sweeps/S.toml --trials=N --workdir=DIR [flags of train]
"""

import os
import subprocess
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import optuna
from absl import flags
from optuna.trial import TrialState
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from alexnet_jax.config import Config, from_flags
from alexnet_jax.config import define_flags as define_config_flags
from alexnet_jax.run.flags import changed
from alexnet_jax.run.open import open_data
from alexnet_jax.sweep.space import Space, read_space, short, with_values
from alexnet_jax.sweep.study import SAMPLERS, Begin, open_study
from alexnet_jax.sweep.summary import write_summary
from alexnet_jax.sweep.trials import ranked, run_trial, trial_folder, validations
from alexnet_jax.system import cli
from alexnet_jax.system.errors import UserError
from alexnet_jax.system.files import exclusively, read_json, write_json
from alexnet_jax.system.signals import RESUME_STATUS, Interrupted, Interruption


class Sweep:
    """Runs trials until the study has `trials` of them. `begin` is that of `open_study`."""

    def __init__(
        self, config: Config, space: Space, study: optuna.Study, begin: Begin, trials: int, interruption: Interruption
    ):
        self._config, self._space, self._study, self._begin = config, space, study, begin
        self._wanted, self._interruption = trials, interruption
        self.folder = Path(config.workdir)
        self._id = _sweep_id(self.folder, study.study_name)
        self._asking = threading.Lock()
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._progress = Progress(
            TextColumn("trials"), MofNCompleteColumn(), BarColumn(bar_width=20), TextColumn("{task.fields[best]}"),
            TimeElapsedColumn(), console=self.console, disable=not self.console.is_terminal,
        )  # fmt: skip
        self._task = self._progress.add_task("sweep", total=trials, completed=self._finished(), best=self._best())

    def run(self, jobs: int) -> None:
        """Runs all trials, `jobs` at a time. After a signal it raises Interrupted once the trainers have saved."""
        with self._progress, ThreadPoolExecutor(jobs, thread_name_prefix="job") as pool:
            for result in [pool.submit(self._work, job, jobs) for job in range(jobs)]:
                result.result()
        if self._interruption.requested:
            raise Interrupted(
                f"{self._interruption.requested}: stopped, the trials in progress are saved; "
                f"rerun the same command to resume (exit status {RESUME_STATUS})"
            )

    def _work(self, job: int, jobs: int) -> None:
        """One job: first the trials that a killed sweep left, then new ones."""
        environment = _devices(job, jobs)
        for number in [trial.number for trial in self._trials() if trial.state is TrialState.RUNNING]:
            with self._locked(number) as mine:
                left = self._study.trials[number]  # read under the lock: another job may have finished it
                if mine and left.state is TrialState.RUNNING and left.user_attrs.get("sweep") == self._id:
                    self._try(number, environment)
        while not self._interruption.requested and (number := self._ask()) is not None:
            with self._locked(number):
                self._try(number, environment)

    def _locked(self, number: int) -> AbstractContextManager[object]:
        """Locks a trial; yields None if another job has it."""
        return exclusively(trial_folder(self.folder, number).with_suffix(".lock"), wait=False)

    def _ask(self) -> int | None:
        """The number of a new trial; None if the study has enough."""
        with self._asking:
            if len(self._study.trials) >= self._wanted:
                return None
            trial = self._study.ask()
            if trial.number >= self._wanted:  # another process was faster
                trial.set_user_attr("surplus", True)
                self._study.tell(trial, state=TrialState.FAIL)
                return None
            trial.set_user_attr("sweep", self._id)
            return trial.number

    def _try(self, number: int, environment: dict[str, str]) -> None:
        trial, folder = self._begin(number), trial_folder(self.folder, number)
        chosen = self._space.suggest(trial)
        values = changed(self._config) | {"seed": self._config.seed + number} | chosen | {"workdir": str(folder)}
        try:
            with_values(self._config, values)
            state = run_trial(trial, folder, values, self._interruption, environment)
        except UserError as error:  # values that exclude each other
            trial.set_user_attr("error", str(error))
            state = TrialState.FAIL
        if state is TrialState.RUNNING:
            return
        errors = validations(folder)
        if state is TrialState.COMPLETE and not errors:
            trial.set_user_attr("error", "no validation in metrics.jsonl")
            state = TrialState.FAIL
        value = min(errors) if state is TrialState.COMPLETE else None
        self._study.tell(trial, value, state=state)
        shown = "pruned" if value is None else f"{value:.2f} %"
        if state is TrialState.FAIL:
            shown = f"failed: {trial.user_attrs.get('error')}"
        flags_tried = "  ".join(f"{name}={short(value, 4)}" for name, value in chosen.items())
        self.console.print(f"trial {number:3d}  {shown}  {flags_tried}  {self._best()}", markup=False)
        self._progress.update(self._task, completed=self._finished(), best=self._best())

    def _trials(self) -> list[optuna.trial.FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    def _finished(self) -> int:
        return sum(trial.state.is_finished() for trial in self._trials())

    def _best(self) -> str:
        complete = ranked(self._trials())
        return f"best {complete[0].value:.2f} % (trial {complete[0].number})" if complete else ""


def _sweep_id(folder: Path, study: str) -> str:
    """Marks this folder's trials in a study that sweeps share. Raises UserError if the folder has another study's trials."""
    path = folder / "sweep.json"
    with exclusively(folder / "sweep.lock", wait=True):
        if not path.exists():
            write_json(path, {"name": uuid.uuid4().hex, "study": study})
    stored = read_json(path)
    if stored["study"] != study:
        raise UserError(
            f"--workdir={folder} has trials of the study {stored['study']!r}, not of {study!r}: use a new --workdir"
        )
    return stored["name"]


def _devices(job: int, jobs: int) -> dict[str, str]:
    """The environment that gives a job its share of the GPUs of this machine; empty without GPUs."""
    if jobs == 1 or "CUDA_VISIBLE_DEVICES" in os.environ:
        return {}
    try:
        listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return {}
    count = len(listed.splitlines())
    mine = [gpu for gpu in range(count) if gpu % jobs == job] or [job % max(count, 1)]
    return {"CUDA_VISIBLE_DEVICES": ",".join(map(str, mine))}


def main(options: flags.FlagValues) -> None:
    """The command line."""
    config = from_flags(options)
    if not config.workdir:
        raise UserError("--workdir is missing: name a folder for the sweep")
    space = read_space(Path(options.space), config)
    if "validation" not in open_data(config).splits:
        raise UserError(f"--dataset={config.dataset} has no validation split: hold out a fold with --fold=0/10")
    Path(config.workdir).mkdir(parents=True, exist_ok=True)
    study, begin = open_study(
        config, space, storage=options.storage, name=options.study, sampler=options.sampler, grace=options.prune_after
    )
    with Interruption() as interruption:
        trials = len(space.grid()) if options.sampler == "grid" else options.trials
        sweep = Sweep(config, space, study, begin, trials, interruption)
        try:
            sweep.run(options.jobs)
        finally:
            with exclusively(sweep.folder / "sweep.lock", wait=True):
                written = write_summary(study, config, space, sweep.folder)
            print(*written, sep="\n")


def define_flags(options: flags.FlagValues) -> None:
    """The flags of this command."""
    define_config_flags(options)
    flags.DEFINE_string("space", None, "TOML file with the flags to try", required=True, flag_values=options)
    help = "trials of the study; a grid has its combinations"
    flags.DEFINE_integer("trials", 20, help, lower_bound=1, flag_values=options)
    flags.DEFINE_integer("jobs", 1, "trials at a time", lower_bound=1, flag_values=options)
    help = "Optuna storage URL, to share a study; empty: SQLite in the workdir"
    flags.DEFINE_string("storage", "", help, flag_values=options)
    flags.DEFINE_string("study", "", "name of the study; empty: the name of the workdir", flag_values=options)
    flags.DEFINE_enum("sampler", "tpe", SAMPLERS, "how values are chosen", flag_values=options)
    help = "validations before the worse two thirds may end; 0: never"
    flags.DEFINE_integer("prune_after", 2, help, lower_bound=0, flag_values=options)


COMMAND = cli.Command(__doc__, define_flags, main)

if __name__ == "__main__":
    COMMAND.run()
