"""What `sweep` does: searches, confirms the best trials, and writes what it found."""

from pathlib import Path

import optuna
from absl import flags

from alexnet_jax.config import Config, from_flags
from alexnet_jax.run.open import open_data
from alexnet_jax.sweep import MOST_TRIALS
from alexnet_jax.sweep.folder import check_folder, make_folder, sweep_id
from alexnet_jax.sweep.jobs import Sweep
from alexnet_jax.sweep.series import Series, confirmed_errors, make_confirmations, make_search, spread
from alexnet_jax.sweep.space import Space, read_space, with_values
from alexnet_jax.sweep.study import Studies, open_search, sqlite_url
from alexnet_jax.sweep.summary import write_summary
from alexnet_jax.sweep.trials import ranked, state_name
from alexnet_jax.system import examples
from alexnet_jax.system.errors import UserError
from alexnet_jax.system.files import exclusively
from alexnet_jax.system.signals import Interruption


def _trial_count(options: flags.FlagValues, config: Config, space: Space) -> int:
    """Trials of the search. Raises UserError on flags that a sweep cannot have."""
    if config.distributed:
        raise UserError("--distributed: a trial trains in one process; sweeps may share --storage and --study instead")
    wanted = len(space.grid()) if options.sampler == "grid" else options.trials
    seeds = MOST_TRIALS + options.confirm_seeds if options.confirm else wanted
    with_values(config, {"seed": config.seed + seeds - 1})
    return wanted


def _confirm(sweep: Sweep, search: Series, parts: dict[int, Series], jobs: int) -> dict[int, list[float]]:
    """Trains the best trials anew. Returns their errors, by the number of the trial; nothing until all are in."""
    sweep.run(list(parts.values()), jobs)
    confirmed = confirmed_errors(parts)
    for trial in ranked(search.trials(), confirmed)[: len(confirmed)]:
        sweep.say(f"trial {trial.number:3d}  confirmed {spread(confirmed[trial.number])}  {parts[trial.number].summary([])}")
    if not confirmed:
        sweep.say("no confirmation has an error yet, or another sweep still confirms: the ranking is that of the search")
    return confirmed


def _check_success(search: Series, folder: Path) -> None:
    """Raises UserError if all trials have ended and none has an error to rank by."""
    trials = search.trials()
    if search.running() or ranked(trials):
        return
    reasons = ((trial, trial.user_attrs.get("error") or trial.user_attrs.get("diverged")) for trial in trials)
    why = [f"trial {trial.number} {state_name(trial)}, {reason}" for trial, reason in reasons if reason]
    raise UserError(f"no trial in {folder} has an error to rank by: {why[0] if why else 'all were pruned'}")


def main(options: flags.FlagValues) -> None:
    """The command line."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    config = from_flags(options)
    folder = check_folder(config.workdir)
    with_values(config, {})
    space = read_space(Path(examples.found(options.space)), config)
    wanted = _trial_count(options, config, space)
    dataset = open_data(config)
    if "validation" not in dataset.splits:
        raise UserError(f"--dataset={config.dataset} has no validation split: hold out a fold with --fold=0/10")
    if not options.storage:
        make_folder(folder)
    studies, name = Studies(options.storage or sqlite_url(folder / "study.db")), options.study or folder.absolute().name
    sampler, grace, fingerprint = options.sampler, options.prune_after, dataset.fingerprint
    study = open_search(studies, config, space, name=name, sampler=sampler, grace=grace, fingerprint=fingerprint)
    make_folder(folder)
    confirmed: dict[int, list[float]] = {}
    with Interruption() as interruption:
        sweep = Sweep(config, studies, sweep_id(folder, name), interruption, options.retries)
        search = make_search(study, studies, config, space, sampler, wanted)
        try:
            sweep.run([search], options.jobs)
            if options.confirm and search.running():
                sweep.say("other sweeps of this study still run: the one that ends last confirms")
            elif options.confirm and ranked(search.trials()):
                parts = make_confirmations(search, studies, config, best=options.confirm, seeds=options.confirm_seeds)
                confirmed = _confirm(sweep, search, parts, options.jobs)
        finally:
            with exclusively(folder / "sweep.lock", wait=True):
                written, why_not = write_summary(study, config, space, folder, confirmed)
            print(*written, sep="\n")
    _check_success(search, folder)
    if why_not:
        sweep.say(why_not)
