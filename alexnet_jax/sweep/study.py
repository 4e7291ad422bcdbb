"""The Optuna study of a sweep: its storage, its sampler, and that it is the study of this space."""

import copy
import time
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial
from sqlalchemy.engine import make_url
from sqlalchemy.exc import IntegrityError, ProgrammingError, SQLAlchemyError

from alexnet_jax.config import Config
from alexnet_jax.sweep.space import Space
from alexnet_jax.system.errors import UserError

SAMPLERS = ("tpe", "random", "grid")
CONNECT_SECONDS = 60
MAKE_TABLES_ATTEMPTS = 10


def open_study(config: Config, space: Space, *, storage: str, name: str, sampler: str, grace: int) -> optuna.Study:
    """The study to go on with, made where there is none.

    Args:
        config: flags that all trials share; its workdir holds the SQLite file.
        space: what is tried.
        storage: an Optuna storage URL; empty is SQLite in the workdir.
        name: of the study; empty is that of the workdir.
        sampler: one of SAMPLERS.
        grace: validations before a trial may be pruned by successive halving; 0 is never.

    Raises:
        UserError: the storage cannot be reached, or the study is one of another space or has begun as a grid or not.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    workdir = Path(config.workdir)
    url = storage or f"sqlite:///{workdir.absolute() / 'study.db'}"
    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=grace, reduction_factor=3) if grace else None
    own = {"space": space.text, "grid": sampler == "grid"}
    try:
        study = optuna.create_study(
            storage=_storage(url),
            study_name=name or workdir.absolute().name,
            direction="minimize",
            load_if_exists=True,
            pruner=pruner or optuna.pruners.NopPruner(),
            sampler=optuna.samplers.RandomSampler(),  # never asked: see `begun`
        )
        known = own | study.user_attrs
        for name in own:
            study.set_user_attr(name, known[name])
    except (SQLAlchemyError, ImportError, ValueError, RuntimeError) as error:
        raise UserError(f"--storage={_shown(url)} cannot be used: {str(error).strip().splitlines()[0]}") from error
    if known["space"] != own["space"]:
        raise UserError(
            f"the study {study.study_name!r} in {_shown(url)} is one of another space: use a new --workdir or --study"
        )
    if known["grid"] != own["grid"]:
        raise UserError(
            f"--sampler={sampler}: a study is a grid from its first trial on or never, and {study.study_name!r} in "
            f"{_shown(url)} has begun the other way: use a new --workdir or --study"
        )
    return study


def _storage(url: str) -> optuna.storages.RDBStorage:
    timeouts = {"timeout" if url.startswith("sqlite") else "connect_timeout": CONNECT_SECONDS}
    for remaining in reversed(range(MAKE_TABLES_ATTEMPTS)):
        try:
            return optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": timeouts, "pool_pre_ping": True})
        except (IntegrityError, ProgrammingError):
            # Another process makes the same tables at this moment, and CREATE TABLE IF NOT EXISTS is no lock.
            if not remaining:
                raise
            time.sleep(0.5)
    raise AssertionError("unreachable")


class _Given(optuna.samplers.BaseSampler):
    """Values that are known beforehand."""

    def __init__(self, values: dict[str, Any]):
        self._values = values

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return {}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._values[param_name]


def begun(study: optuna.Study, space: Space, sampler: str, seed: int, number: int) -> optuna.Trial:
    """A running trial, with a sampler of its own, seeded by the trial's number: what is drawn does not depend on which
    process draws it, nor on how often the sweep was started. Trial n of a grid has its n-th combination."""
    own = np.random.SeedSequence([seed, number]).generate_state(1).item()
    chooser: optuna.samplers.BaseSampler
    if sampler == "grid":
        chooser = _Given(space.grid()[number])
    elif sampler == "tpe":
        # `constant_liar` keeps trials that run at the same time apart.
        chooser = optuna.samplers.TPESampler(seed=own, constant_liar=True, n_startup_trials=8)
    else:
        chooser = optuna.samplers.RandomSampler(seed=own)
    view = copy.copy(study)
    view.sampler = chooser
    return optuna.Trial(view, study.trials[number]._trial_id)


def _shown(url: str) -> str:
    """Without its password."""
    try:
        return make_url(url).render_as_string(hide_password=True)
    except SQLAlchemyError:
        return url
