"""Jobs that run the trials of series, each trial in a folder of its own."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager

from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from alexnet_jax.config import Config, as_dict
from alexnet_jax.sweep.series import Series
from alexnet_jax.sweep.space import short, with_values
from alexnet_jax.sweep.study import Studies
from alexnet_jax.sweep.trials import final_value, run_trial, state_name
from alexnet_jax.system.errors import UserError
from alexnet_jax.system.files import exclusively
from alexnet_jax.system.gpus import share_of_gpus
from alexnet_jax.system.signals import RESUME_STATUS, Interrupted, Interruption


class Sweep:
    """Runs trials.

    Args:
        config: the flags that all trials share.
        studies: where the trials belong.
        owner: marks the trials of this sweep in a study that several share.
        interruption: ends it.
        retries: those of `run_trial`.
    """

    def __init__(self, config: Config, studies: Studies, owner: str, interruption: Interruption, retries: int):
        self._config, self._studies, self._owner = config, studies, owner
        self._interruption, self._retries = interruption, retries
        self._asking, self._failed = threading.Lock(), False
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)

    def say(self, line: str) -> None:
        """Prints a line, above the bar if there is one."""
        self._console.print(line, markup=False)

    def run(self, parts: Sequence[Series], jobs: int) -> None:
        """Runs all trials of all parts, `jobs` at a time.

        Raises:
            Interrupted: after a signal, once the trainers have saved.
            UserError: the storage or a folder cannot be used; the trainers have saved.
        """
        total = sum(part.wanted for part in parts)
        jobs = min(jobs, total)
        columns = (MofNCompleteColumn(), BarColumn(bar_width=20), TextColumn("{task.fields[best]}"), TimeElapsedColumn())
        progress = Progress(TextColumn("trials"), *columns, console=self._console, disable=not self._console.is_terminal)
        task = progress.add_task("", total=total, best="")

        def ended(part: Series) -> None:
            done = sum(len(part.trials()) - len(part.running()) for part in parts)
            progress.update(task, completed=done, best=part.summary(part.trials()))

        with progress, ThreadPoolExecutor(jobs, thread_name_prefix="job") as pool:
            running = [pool.submit(self._work, parts, share_of_gpus(job, jobs), ended) for job in range(jobs)]
            for job in as_completed(running):
                self._failed = self._failed or job.exception() is not None  # so that the others stop
        for job in running:
            job.result()
        if self._interruption.requested:
            raise Interrupted(
                f"{self._interruption.requested}: stopped, the trials in progress are saved; "
                f"rerun the same command to resume (exit status {RESUME_STATUS})"
            )

    def _stopping(self) -> bool:
        return self._failed or bool(self._interruption.requested)

    def _work(self, parts: Sequence[Series], environment: dict[str, str], ended: Callable[[Series], None]) -> None:
        """One job: of each part first the trials that a killed sweep left, then new ones."""
        with self._studies.errors():
            for part in parts:
                ended(part)
                left = part.running()
                while not self._stopping() and (number := left.pop(0) if left else self._ask(part)) is not None:
                    with self._locked(part, number) as mine:
                        trial = part.study.trials[number]  # read under the lock: another job may have finished it
                        if mine and trial.state is TrialState.RUNNING and trial.user_attrs.get("sweep") == self._owner:
                            self._try(part, number, environment)
                            ended(part)

    def _locked(self, part: Series, number: int) -> AbstractContextManager[object]:
        """Locks a trial; yields None if another job has it."""
        return exclusively(part.folder(number).with_suffix(".lock"), wait=False)

    def _ask(self, part: Series) -> int | None:
        """The number of a new trial; None if the study has enough."""
        with self._asking:
            if len(part.study.trials) >= part.wanted:
                return None
            trial = part.study.ask()
            if trial.number >= part.wanted:  # another process was faster
                trial.set_user_attr("surplus", True)
                part.study.tell(trial, state=TrialState.FAIL)
                return None
            trial.set_user_attr("sweep", self._owner)
            return trial.number

    def _try(self, part: Series, number: int, environment: dict[str, str]) -> None:
        trial, folder, value = part.begin(number), part.folder(number), None
        chosen = part.choose(trial)
        values = as_dict(self._config) | {"seed": part.first_seed + number} | chosen | {"workdir": str(folder)}
        try:
            with_values(self._config, values)
            state = run_trial(trial, folder, values, self._stopping, environment, self._retries)
            if state is TrialState.COMPLETE:
                value = final_value(trial, folder)
        except UserError as error:  # values that exclude each other
            trial.set_user_attr("error", str(error))
            state = TrialState.FAIL
        if state is TrialState.RUNNING:
            return
        told = part.study.tell(trial, value, state=state)
        flags_tried = "  ".join(f"{name}={short(value, 4)}" for name, value in chosen.items())
        number_text = "-".join(str(int(text)) for text in folder.name.split("-"))
        self.say("  ".join((f"trial {number_text:>3}", _outcome(told), flags_tried, part.summary(part.trials()))))


def _outcome(trial: FrozenTrial) -> str:
    name = state_name(trial)
    if name == "complete":
        return f"{trial.value:.2f} %"
    return f"failed: {trial.user_attrs.get('error')}" if name == "fail" else name
