"""Series of trials: the search of a space, and the confirmation of what it has found with fresh seeds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from alexnet_jax.config import Config
from alexnet_jax.sweep import MOST_TRIALS
from alexnet_jax.sweep.space import Space
from alexnet_jax.sweep.study import Studies, make_sampler
from alexnet_jax.sweep.trials import ranked, trial_folder


@dataclass(frozen=True)
class Series:
    """The trials of one study.

    study: what they belong to.
    wanted: trials that it shall have.
    begin: the running trial of a number, new or left by a killed sweep.
    choose: the flags of a trial that differ from the sweep's.
    first_seed: trial n trains with this seed plus n.
    folder: of the trial of a number.
    summary: how the series stands, for the console.
    """

    study: optuna.Study
    wanted: int
    begin: Callable[[int], optuna.Trial]
    choose: Callable[[optuna.Trial], dict[str, Any]]
    first_seed: int
    folder: Callable[[int], Path]
    summary: Callable[[Sequence[FrozenTrial]], str]

    def trials(self) -> list[FrozenTrial]:
        """The trials so far, without those that are no part of the series."""
        return [trial for trial in self.study.get_trials(deepcopy=False) if not trial.user_attrs.get("surplus")]

    def running(self) -> list[int]:
        """The numbers of those that have not ended: they run in some process, or a killed one left them."""
        return [trial.number for trial in self.trials() if not trial.state.is_finished()]

    def errors(self) -> list[float]:
        """In percent, of the complete trials. A diverged one counts as the worst."""
        return [trial.value for trial in self.trials() if trial.state is TrialState.COMPLETE and trial.value is not None]


def make_search(study: optuna.Study, studies: Studies, config: Config, space: Space, sampler: str, wanted: int) -> Series:
    """The trials that find values of the space."""

    def best(trials: Sequence[FrozenTrial]) -> str:
        complete = ranked(trials)
        return f"best {complete[0].value:.2f} % (trial {complete[0].number})" if complete else ""

    return Series(
        study=study,
        wanted=wanted,
        begin=lambda number: studies.trial(study, number, make_sampler(sampler, space, config.seed, number)),
        choose=space.suggest,
        first_seed=config.seed,
        folder=partial(trial_folder, Path(config.workdir)),
        summary=best,
    )


def make_confirmations(search: Series, studies: Studies, config: Config, *, best: int, seeds: int) -> dict[int, Series]:
    """For each of the best trials, by its number, the trials that train it anew.

    Each has a study of its own, so that more trials, more of the best, or more seeds take nothing back. Their seeds are
    the same for all, and none that the search can have had. Trial 7 with the seed 10001 is in W/confirm/0007-10001.
    """
    first_seed = config.seed + MOST_TRIALS

    def confirmation(found: FrozenTrial) -> Series:
        with studies.errors():
            study = studies.open(f"{search.study.study_name}, trial {found.number}")
        prefix = f"{found.number:04d}-"
        return Series(
            study=study,
            wanted=seeds,
            begin=partial(studies.trial, study),
            choose=lambda _: found.params,
            first_seed=first_seed,
            folder=lambda number: Path(config.workdir) / "confirm" / f"{prefix}{first_seed + number}",
            summary=lambda _: f"{found.value:.2f} % in the search",
        )

    return {found.number: confirmation(found) for found in ranked(search.trials())[:best]}


def confirmed_errors(parts: dict[int, Series]) -> dict[int, list[float]]:
    """What the confirmations have found, by the number of the trial; nothing until all have ended."""
    if any(part.running() for part in parts.values()):
        return {}
    return {number: errors for number, part in parts.items() if (errors := part.errors())}


def spread(errors: Sequence[float]) -> str:
    """Errors of several seeds for a reader: their mean, the lowest and the highest."""
    return f"{fmean(errors):.2f} % ({min(errors):.2f} to {max(errors):.2f}, {len(errors)} seeds)"
