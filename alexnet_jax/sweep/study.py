"""The Optuna study of a sweep: its storage, its samplers, and the check that it belongs to this space."""

import copy
import time
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial
from sqlalchemy.engine import make_url
from sqlalchemy.exc import IntegrityError, ProgrammingError, SQLAlchemyError

from alexnet_jax.config import Config
from alexnet_jax.sweep.space import Space
from alexnet_jax.system.errors import UserError

SAMPLERS = ("tpe", "random", "grid")
CONNECT_SECONDS = 60
MAKE_TABLES_ATTEMPTS = 10


def open_study(
    config: Config, space: Space, *, storage: str, name: str, sampler: str, grace: int
) -> tuple[optuna.Study, RDBStorage]:
    """Opens a study, or makes it if there is none; returns it and its storage.

    Args:
        config: flags that all trials share; its workdir holds the SQLite file.
        space: the values to try.
        storage: an Optuna storage URL; empty: SQLite in the workdir.
        name: of the study; empty: the name of the workdir.
        sampler: one of SAMPLERS.
        grace: validations before successive halving may prune a trial; 0: never prune.

    Raises:
        UserError: the storage cannot be reached, or the study has another space, or only one of study and `sampler` is a
            grid.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    workdir = Path(config.workdir)
    url = storage or f"sqlite:///{workdir.absolute() / 'study.db'}"
    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=grace, reduction_factor=3) if grace else None
    expected = {"space": space.text, "grid": sampler == "grid"}
    try:
        opened = _storage(url)
        study = optuna.create_study(
            storage=opened,
            study_name=name or workdir.absolute().name,
            direction="minimize",
            load_if_exists=True,
            pruner=pruner or optuna.pruners.NopPruner(),
            sampler=optuna.samplers.RandomSampler(),  # never used: `begin` gives each trial its own
        )
        known = expected | study.user_attrs
        for name in expected:
            study.set_user_attr(name, known[name])
    except (SQLAlchemyError, ImportError, ValueError, RuntimeError) as error:
        raise UserError(f"--storage={_shown(url)} cannot be used: {str(error).strip().splitlines()[0]}") from error
    if known["space"] != expected["space"]:
        raise UserError(f"the study {study.study_name!r} in {_shown(url)} has another space: use a new --workdir or --study")
    if known["grid"] != expected["grid"]:
        raise UserError(
            f"--sampler={sampler}: all trials of a study are a grid or none is, and {study.study_name!r} in "
            f"{_shown(url)} began the other way: use a new --workdir or --study"
        )
    return study, opened


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


class _Given(optuna.samplers.RandomSampler):
    """A sampler that returns given values. Optuna's PartialFixedSampler does the same, but is experimental."""

    def __init__(self, values: dict[str, Any]):
        super().__init__()
        self._values = values

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._values[param_name]


def begin(study: optuna.Study, storage: RDBStorage, space: Space, sampler: str, seed: int, number: int) -> optuna.Trial:
    """A running trial, new or left by a killed sweep, with its own sampler.

    The sampler's seed depends only on `seed` and `number`, not on the process or on restarts. Trial n of a grid has the
    n-th combination.
    """
    trial_seed = np.random.SeedSequence([seed, number]).generate_state(1).item()
    chooser: optuna.samplers.BaseSampler
    if sampler == "grid":
        chooser = _Given(space.grid()[number])
    elif sampler == "tpe":
        # `constant_liar` keeps simultaneous trials apart.
        chooser = optuna.samplers.TPESampler(seed=trial_seed, constant_liar=True, n_startup_trials=8)
    else:
        chooser = optuna.samplers.RandomSampler(seed=trial_seed)
    view = copy.copy(study)
    view.sampler = chooser
    study_id = storage.get_study_id_from_name(study.study_name)
    return optuna.Trial(view, storage.get_trial_id_from_study_id_trial_number(study_id, number))


def _shown(url: str) -> str:
    """A storage URL without its password."""
    try:
        return make_url(url).render_as_string(hide_password=True)
    except SQLAlchemyError:
        return url
