"""The Optuna studies of a sweep: their storage, their samplers, and the check that a study belongs to this sweep."""

import contextlib
import copy
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import StorageInternalError
from optuna.pruners import BasePruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import IntegrityError, ProgrammingError, SQLAlchemyError

from alexnet_jax.config import Config, as_dict, from_dict
from alexnet_jax.run.changes import changed_flags
from alexnet_jax.sweep.space import Space
from alexnet_jax.system import extras
from alexnet_jax.system.errors import UserError

CONNECT_SECONDS = 60
MAKE_TABLES_ATTEMPTS = 10
# A run may change these when it is resumed. Trials that differ in them cannot be compared.
COMPARED = ("epochs", "steps", "eval_every", "precision")


class Studies:
    """The studies in one storage.

    Args:
        url: of Optuna's storage.

    Raises:
        UserError: it cannot be reached, or it would end with this process.
    """

    def __init__(self, url: str):
        self._url = url
        with self.errors(ImportError, LookupError, ValueError, RuntimeError):  # from a wrong URL, or other tables
            parsed = make_url(url)
            if parsed.get_backend_name() == "sqlite" and parsed.database in (None, "", ":memory:"):
                raise ValueError("a study in memory cannot be resumed")
            self._storage = _storage(url)

    @contextlib.contextmanager
    def errors(self, *more: type[Exception]) -> Iterator[None]:
        """Turns what a database raises, and `more`, into a UserError."""
        try:
            with extras.needed():  # a database has a package of its own
                yield
        except (SQLAlchemyError, StorageInternalError, *more) as error:
            lines = str(error.__cause__ or error).strip().splitlines() or [type(error).__name__]
            raise UserError(f"--storage={self.shown} cannot be used: {lines[0]}") from error

    @property
    def shown(self) -> str:
        """The URL without its password."""
        try:
            return make_url(self._url).render_as_string(hide_password=True)
        except (SQLAlchemyError, ValueError):
            return self._url.partition("://")[0]

    def open(self, name: str, pruner: BasePruner | None = None) -> optuna.Study:
        """Opens a study, or makes it if there is none."""
        return optuna.create_study(
            storage=self._storage,
            study_name=name,
            direction="minimize",
            load_if_exists=True,
            pruner=pruner or NopPruner(),
            sampler=RandomSampler(),  # never used: each trial has its own
        )

    def trial(self, study: optuna.Study, number: int, sampler: BaseSampler | None = None) -> optuna.Trial:
        """A running trial, new or left by a killed sweep, with its own sampler."""
        view = copy.copy(study)
        view.sampler = sampler or study.sampler
        study_id = self._storage.get_study_id_from_name(study.study_name)
        return optuna.Trial(view, self._storage.get_trial_id_from_study_id_trial_number(study_id, number))


def sqlite_url(path: Path) -> str:
    """The URL of a SQLite file."""
    return URL.create("sqlite", database=str(path.absolute())).render_as_string()


def open_search(
    studies: Studies, config: Config, space: Space, *, name: str, sampler: str, grace: int, fingerprint: str
) -> optuna.Study:
    """Opens the study of a search, or makes it if there is none.

    Args:
        studies: of the storage.
        config: the flags that all trials share.
        space: the values to try.
        name: of the study.
        sampler: one of `alexnet_jax.sweep.SAMPLERS`.
        grace: validations before successive halving may prune a trial; 0: never prune.
        fingerprint: content hash of the data set.

    Raises:
        UserError: the storage cannot be used, or the study has another space, other flags or other data, or only one of
            both is a grid.
    """
    expected = {"space": space.text, "grid": sampler == "grid", "data": fingerprint, "config": as_dict(config)}
    with studies.errors():
        study = studies.open(name, SuccessiveHalvingPruner(min_resource=grace, reduction_factor=3) if grace else None)
        known = expected | study.user_attrs
        for key in expected:
            study.set_user_attr(key, known[key])
    _check_same(f"{name!r} in {studies.shown}", config, space, sampler, known, expected)
    return study


def _check_same(
    study: str, config: Config, space: Space, sampler: str, known: Mapping[str, Any], expected: Mapping[str, Any]
) -> None:
    """Raises UserError where the trials of a study were not made as `expected`."""
    another = "use a new --workdir or --study"
    if known["space"] != expected["space"]:
        raise UserError(f"the study {study} has another space: {another}")
    if known["grid"] != expected["grid"]:
        raise UserError(
            f"--sampler={sampler}: all trials of a study are a grid or none is, and {study} began the other way: {another}"
        )
    if known["data"] != expected["data"]:
        raise UserError(f"--dataset={config.dataset} is not what the study {study} was begun on: {another}")
    tried = {parameter.name for parameter in space.parameters}
    ours = expected["config"]
    first = from_dict(known["config"] | {name: ours[name] for name in tried})
    changes, theirs = changed_flags(first, config), as_dict(first)
    changes += [f"--{name} was {theirs[name]} and is now {ours[name]}" for name in COMPARED if theirs[name] != ours[name]]
    if changes:
        raise UserError(f"the study {study} has trials with other flags: {'; '.join(dict.fromkeys(changes))}: {another}")


def _storage(url: str) -> RDBStorage:
    timeouts = {"timeout" if url.startswith("sqlite") else "connect_timeout": CONNECT_SECONDS}
    for remaining in reversed(range(MAKE_TABLES_ATTEMPTS)):
        try:
            return RDBStorage(url, engine_kwargs={"connect_args": timeouts, "pool_pre_ping": True})
        except (IntegrityError, ProgrammingError):
            # Another process makes the same tables: CREATE TABLE IF NOT EXISTS is no lock.
            if not remaining:
                raise
            time.sleep(0.5)
    raise AssertionError("unreachable")


class _Given(RandomSampler):
    """A sampler that returns given values. Optuna's PartialFixedSampler does the same, but is experimental."""

    def __init__(self, values: dict[str, Any]):
        super().__init__()
        self._values = values

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._values[param_name]


def make_sampler(kind: str, space: Space, seed: int, number: int) -> BaseSampler:
    """What chooses the values of one trial.

    Its seed depends only on `seed` and `number`, not on the process or on restarts. Trial n of a grid has the n-th
    combination.
    """
    trial_seed = np.random.SeedSequence([seed, number]).generate_state(1).item()
    if kind == "grid":
        return _Given(space.grid()[number])
    if kind == "tpe":
        # `constant_liar` keeps simultaneous trials apart.
        return TPESampler(seed=trial_seed, constant_liar=True, n_startup_trials=8)
    return RandomSampler(seed=trial_seed)
