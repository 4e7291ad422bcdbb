"""The Optuna study of a sweep: its storage, its samplers, and the check that it belongs to this space."""

import copy
import time
from collections.abc import Callable
from functools import partial
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

Begin = Callable[[int], optuna.Trial]  # the running trial of a number

SAMPLERS = ("tpe", "random", "grid")
CONNECT_SECONDS = 60
MAKE_TABLES_ATTEMPTS = 10


def open_study(
    config: Config, space: Space, *, storage: str, name: str, sampler: str, grace: int
) -> tuple[optuna.Study, Begin]:
    """Opens a study, or makes it if there is none. Returns it and what begins its trials.

    Args:
        config: has the seed; its workdir names the study and holds its SQLite file if `name` and `storage` are empty.
        space: the values to try.
        storage: an Optuna storage URL.
        name: of the study.
        sampler: one of SAMPLERS.
        grace: validations before successive halving may prune a trial; 0: never prune.

    Raises:
        UserError: the storage cannot be reached, or the study has another space, or only one of both is a grid.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    workdir = Path(config.workdir)
    url = storage or f"sqlite:///{workdir.absolute() / 'study.db'}"
    halving = optuna.pruners.SuccessiveHalvingPruner(min_resource=grace, reduction_factor=3) if grace else None
    expected = {"space": space.text, "grid": sampler == "grid"}
    try:
        opened = _storage(url)
        study = optuna.create_study(
            storage=opened,
            study_name=name or workdir.absolute().name,
            direction="minimize",
            load_if_exists=True,
            pruner=halving or optuna.pruners.NopPruner(),
            sampler=optuna.samplers.RandomSampler(),  # never used: `_begin` gives each trial its own
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
    return study, partial(_begin, study, opened, space, sampler, config.seed)


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


def _begin(study: optuna.Study, storage: RDBStorage, space: Space, sampler: str, seed: int, number: int) -> optuna.Trial:
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
