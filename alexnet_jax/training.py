"""What `train` does: starts or resumes a run, and trains it to the end."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import jax
from absl import flags

from alexnet_jax.config import Config, from_flags
from alexnet_jax.run.checkpoint import Checkpoints
from alexnet_jax.run.clock import Clock
from alexnet_jax.run.display import Display, run_console
from alexnet_jax.run.fine_tune import transfer, transferred_layers
from alexnet_jax.run.intervals import Intervals, Progress
from alexnet_jax.run.open import start_run
from alexnet_jax.run.recorder import Recorder
from alexnet_jax.run.sender import training_copy
from alexnet_jax.run.starts import StartLog
from alexnet_jax.run.summary import summary
from alexnet_jax.run.wandb_run import check_wandb
from alexnet_jax.run.workdir import check_resumable, locked, start_over, write_folder
from alexnet_jax.step import Setup, TrainState
from alexnet_jax.system import runtime
from alexnet_jax.system.errors import UserError
from alexnet_jax.system.processes import together
from alexnet_jax.system.signals import Interruption
from alexnet_jax.system.watchdog import Watchdog
from alexnet_jax.trainer import Trainer


def train(config: Config) -> None:
    """Trains or resumes the run in `config.workdir`, up to the end. Call it in the main thread.

    Raises:
        UserError: bad input, before anything is compiled or overwritten; or the disk is full.
        Diverged: the loss or a parameter is no longer finite.
        Interrupted: SIGTERM or SIGINT; what was done is saved.
    """
    check_wandb(config.wandb)
    clock, silent, workdir = Clock(), jax.process_index() > 0, Path(config.workdir)
    run, dataset = start_run(config)
    setup = run.setup
    intervals = Intervals(config, len(dataset.splits["train"]), "validation" in dataset.splits)
    intervals.check()
    transferred = transferred_layers(setup) if config.init else []
    watchdog = Watchdog(config.step_timeout, process=jax.process_index(), processes=jax.process_count())
    display, starts = Display(clock, intervals, run_console(silent=silent)), StartLog(workdir, clock, silent=silent)
    with Interruption(stop=watchdog.stop_process) as interruption, watchdog, contextlib.ExitStack() as folder:
        with together():  # before one of them changes the folder
            folder.enter_context(locked(config.workdir))
            had_checkpoint = check_resumable(config, dataset.fingerprint, dataset.classes, dataset.mean)
        with display, starts, Checkpoints(workdir, keep=config.keep, writable=True) as checkpoints:
            with clock.during("restoring"):
                restored = checkpoints.restore_latest(setup, start_over=config.start_over)
            if restored is None and had_checkpoint:
                _start_over(config)
            write_folder(config, dataset.fingerprint, dataset.classes, dataset.mean)
            progress = Progress() if restored is None else Progress.from_dict(restored[1])
            clock.resume(progress.seconds)
            if progress.step < intervals.total_steps:
                checkpoints.check_room(setup)
            if progress.step < intervals.total_steps or progress.validation_due:
                state = _initial_state(setup, transferred) if restored is None else restored[0]
                with Recorder(config, display, starts, progress, silent=silent) as recorder:
                    for line in _beginning(setup, intervals, progress, transferred):
                        recorder.say(line)
                    trainer = Trainer(setup, dataset, checkpoints, recorder, intervals, interruption, watchdog, clock)
                    trainer.run(state, progress)
            else:
                display.say("already finished: a larger --steps or --epochs trains longer")
        end = max(progress.step, intervals.total_steps)
        display.summary(summary(config, dataset.splits, end, intervals.epoch(end)))


def _beginning(setup: Setup, intervals: Intervals, progress: Progress, transferred: list[str]) -> Iterator[str]:
    """What is said of a run before its first step."""
    config, mesh = setup.config, setup.mesh
    yield (
        f"{config.architecture} on {config.dataset}: step {progress.step} of {intervals.total_steps}, "
        f"mesh {mesh.data_size}x{mesh.tower_size} (data x tower), {config.spmd}, {config.precision}"
    )
    if config.init and not progress.step:
        fresh = ", ".join(layer for layer in setup.shapes if layer not in transferred) or "nothing"
        source = f"{config.init} with its velocity" if config.init_velocity else config.init
        yield f"from {source}: {', '.join(transferred)}; re-initialised: {fresh}"


def _start_over(config: Config) -> None:
    """Raises UserError unless the run may begin at step 0 again."""
    if not config.start_over:
        raise UserError(
            f"--workdir={config.workdir} holds a run whose checkpoints are gone: put checkpoints/ back, or begin at step 0 "
            "with --start_over, which keeps its records in damaged/"
        )
    start_over(Path(config.workdir))


def _initial_state(setup: Setup, transferred: list[str]) -> TrainState:
    state = setup.initial_state()
    return transfer(setup, state, transferred) if transferred else state


def main(options: flags.FlagValues) -> None:
    """The command line."""
    config = from_flags(options)
    runtime.start(config.host_devices, config.distributed)
    with training_copy(config.workdir) as workdir:
        train(replace(config, workdir=workdir))
