"""Checkpoints through Orbax: parameters, optimiser state and the host's progress, one format for every mesh.

W/checkpoints/<step>/ has the items `params`, `optimizer`, `progress` (JSON) and, after a validation, `validation`. Arrays
are stored whole, with their tower axis, and are restored onto any mesh. Their checksums are made on the devices before
saving and stored in `progress`: they detect corruption on disk. Only a checkpoint that is proven to be damaged gives way to
the one before.
"""

import contextlib
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from alexnet_jax.network import Params
from alexnet_jax.run.damage import error_number, reason
from alexnet_jax.run.reader import METRIC, CheckpointReader, Damaged, Restored, optimizer_shapes
from alexnet_jax.run.workdir import check_name, mark_saved, set_aside
from alexnet_jax.step import Setup, TrainState
from alexnet_jax.system.errors import UserError

NEVER = 10**9  # seconds: how long a save takes is not known, and a clock that is put forward is no reason to give it up

logger = logging.getLogger(__name__)

READ, DAMAGED, FAILED = range(3)  # what became of a read, the worst last


def _worst(outcome: int) -> int:
    """The worst outcome of all processes. All have to ask."""
    return int(multihost_utils.process_allgather(np.array(outcome)).max()) if jax.process_count() > 1 else outcome


class Checkpoints:
    """The checkpoints of one run. Use as a context manager: leaving waits for the save in progress."""

    def __init__(self, workdir: Path, *, keep: int, writable: bool):
        """
        Args:
            workdir: folder of the run.
            keep: latest checkpoints kept, next to the one with the lowest validation error.
            writable: whether to save; only then are left-overs of an interrupted save cleared away.
        """
        self.folder = workdir.absolute() / "checkpoints"
        self._replaced = workdir.absolute() / "replaced"  # what is about to be saved again
        check_name(str(workdir), writing=writable)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_LatestAndBest(keep, self._best_of),
            create=writable,
            async_options=ocp.options.AsyncOptions(timeout_secs=NEVER, post_finalization_callback=self._finished),
        )
        self._writable, self._writes_here = writable, writable and jax.process_index() == 0
        if self._writes_here:
            self._clear_up()
        handlers = _handlers()
        with self._on_disk():
            self._manager = ocp.CheckpointManager(self.folder, options=options, handler_registry=handlers)
        self._reader = CheckpointReader(self.folder, handlers)
        self._errors = {step: self._reader.validation_error(step) for step in self.steps()}

    def _clear_up(self) -> None:
        """After an interrupted save. Not by Orbax, whose thread for it outlives a run that ends at once."""
        for left_over in self.folder.glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(left_over)
        for old in self._replaced.glob("*"):
            if not (self.folder / old.name).exists():
                old.rename(self.folder / old.name)
        shutil.rmtree(self._replaced, ignore_errors=True)

    def _finished(self) -> None:
        """Once a save has reached the disk."""
        if self._writes_here:
            mark_saved(self.folder.parent)
            shutil.rmtree(self._replaced, ignore_errors=True)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        """Raises UserError if the last save did not reach the disk."""
        with self._on_disk():
            self._manager.close()

    def steps(self) -> list[int]:
        """Steps with a finished checkpoint, ascending."""
        return sorted(self._manager.all_steps())

    def best_step(self) -> int | None:
        """The first step with the lowest validation error; None if no checkpoint was validated."""
        return self._best_of(self.steps())

    def _best_of(self, steps: Sequence[int]) -> int | None:
        validated = [(error, step) for step in steps if (error := self._errors.get(step)) is not None]
        return min(validated)[1] if validated else None

    def save(self, setup: Setup, state: TrainState, progress: dict[str, Any], error: float | None) -> None:
        """Starts writing a checkpoint and returns once the state has left the devices.

        Args:
            setup: of the state.
            state: in the form that the train step returns.
            progress: host state, JSON-serialisable, with the step as `step`.
            error: top-1 validation error in percent at this step, if it was measured.

        Raises:
            UserError: this checkpoint or the one before it could not be written, or there is no room for it.
        """
        self.wait()  # Orbax would too; old checkpoints are deleted by then
        with self._on_disk():
            self.check_room(setup)
        specs, step = setup.state_specs, progress["step"]
        sums = {name: self._reader.checksum(setup, name, getattr(state, name)) for name in ("params", "optimizer")}
        items: dict[str, Any] = {
            "params": ocp.args.StandardSave(setup.mesh.from_compiled(state.params, specs.params)),
            "optimizer": ocp.args.StandardSave(setup.mesh.from_compiled(state.optimizer, specs.optimizer)),
            "progress": ocp.args.JsonSave({**progress, "checksums": sums}),
        }
        if error is not None:
            items["validation"] = ocp.args.JsonSave({METRIC: error})
        with self._on_disk():
            if step in self.steps():  # saved before its validation, which an interruption had put off
                self._make_way(step)
            self._errors[step] = error
            self._manager.save(step, args=ocp.args.Composite(**items))

    def wait(self) -> None:
        """Until the last save is on the disk. Raises UserError if it did not get there."""
        with self._on_disk():
            self._manager.wait_until_finished()

    def _make_way(self, step: int) -> None:
        """Moves a checkpoint aside until it is saved again, so that no kill can lose it."""
        if self._writes_here:
            self._replaced.mkdir(exist_ok=True)
            (self.folder / str(step)).rename(self._replaced / str(step))
        self._reload()

    def _reload(self) -> None:
        """After the first process has moved checkpoints."""
        _worst(READ)  # waits for it
        self._manager.reload()

    def check_room(self, setup: Setup) -> None:
        """Before Orbax begins, whose threads tell of a full disk in hundreds of lines.

        Raises:
            UserError: the disk has no room for one more checkpoint; old ones are deleted after the new one is written.
        """
        shapes = jax.tree.leaves((setup.shapes, optimizer_shapes(setup)))
        wanted, disk = sum(x.size * x.dtype.itemsize for x in shapes), shutil.disk_usage(self.folder)
        if disk.total and disk.free < wanted:  # a disk without a size does not say what is free
            needs = f"a checkpoint takes {wanted / 1e6:,.1f} MB and the disk has {disk.free / 1e6:,.1f} MB left"
            raise UserError(f"{self.folder} cannot be written: {needs}; {self.kept()}")

    @contextlib.contextmanager
    def _on_disk(self) -> Iterator[None]:
        """Turns what a full or read-only disk raises, in whichever thread, into one line."""
        try:
            yield
        except Exception as error:
            if error_number(error) is None:
                raise
            raise UserError(f"{self.folder} cannot be written: {reason(error)}; {self.kept()}") from error

    def kept(self) -> str:
        """What a run that ends now leaves, for its last line."""
        return f"checkpoint {self.steps()[-1]} is kept" if self.steps() else "there is no checkpoint yet"

    def restore_latest(self, setup: Setup, *, start_over: bool = False) -> Restored | None:
        """The newest checkpoint that can be read whole, on the network's mesh, with the host's progress; None without one.

        Newer ones that are damaged are reported. A run that writes moves them to W/damaged/.

        Args:
            setup: of the network.
            start_over: give up all checkpoints if none can be read.

        Raises:
            UserError: a checkpoint of another network, one that cannot be read for another reason than damage, or, without
                `start_over`, checkpoints of which none can be read. Nothing is moved.
        """
        steps, damaged, restored = self.steps(), dict[int, str](), None
        for step in reversed(steps):
            self._reader.check_network(setup, step)
            try:
                restored = self._restore(setup, step)
                break
            except Damaged as error:
                logger.warning("checkpoint %d is damaged: %s", step, error)
                damaged[step] = str(error)
        if damaged and restored is None and not start_over:
            raise UserError(
                f"none of the checkpoints {steps} in {self.folder} can be read: {damaged[steps[-1]]}. They stay where they "
                "are: mend them, or begin at step 0 with --start_over, which keeps them in damaged/"
            )
        if damaged and self._writable:
            self._set_aside(list(damaged))
        return restored

    def _restore(self, setup: Setup, step: int) -> Restored:
        """A checkpoint. All processes agree on what became of it.

        Raises:
            Damaged: its content is wrong or missing, here or where another process reads.
            UserError: it cannot be read for now.
        """
        restored, outcome, why = None, READ, ""
        try:
            restored = self._reader.state(setup, step)
        except Damaged as error:
            outcome, why = DAMAGED, str(error)
        except UserError as error:
            outcome, why = FAILED, str(error)
        worst = _worst(outcome)  # checksums need every process, so none starts on them alone
        if worst == FAILED:
            raise UserError(why or f"checkpoint {self.folder / str(step)} cannot be read by another process for now")
        if worst == DAMAGED or restored is None:
            raise Damaged(why or "another process cannot read its share")
        state, progress = restored
        self._reader.check_sums(setup, progress, params=state.params, optimizer=state.optimizer)
        progress.pop("checksums", None)
        return restored

    def restore_params(self, setup: Setup, step: int) -> Params:
        """The parameters of one checkpoint on the network's mesh.

        Raises:
            UserError: it belongs to another network, is damaged, or cannot be read.
        """
        self._reader.check_network(setup, step)
        return self._reader.params(setup, step)

    def restore_velocity(self, setup: Setup, step: int) -> Params:
        """The velocity of one checkpoint, shaped as the parameters, on the network's mesh.

        Raises:
            UserError: as `restore_params`.
        """
        self._reader.check_network(setup, step)
        return optax.tree.get(self._reader.optimizer(setup, step), "trace")

    def restore_ema(self, setup: Setup, step: int) -> Params:
        """The average of the parameters in one checkpoint of a run with --ema, as `restore_velocity`."""
        self._reader.check_network(setup, step)
        return optax.tree.get(self._reader.optimizer(setup, step), "ema")

    def _set_aside(self, steps: list[int]) -> None:
        if self._writes_here:
            for step in steps:
                target = set_aside(self.folder / str(step), self.folder.parent)
                logger.warning("checkpoint %d was moved to %s", step, target)
        self._reload()


class _LatestAndBest:
    """Orbax's question which checkpoints to keep: the latest `keep`, and the best one."""

    def __init__(self, keep: int, best_of: Callable[[Sequence[int]], int | None]):
        self._keep, self._best_of = keep, best_of

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = {*steps[-self._keep :], self._best_of(steps)}
        return [step in kept for step in steps]


def _handlers() -> ocp.handlers.DefaultCheckpointHandlerRegistry:
    """What reads and writes each item of a checkpoint."""
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    for item in ("params", "optimizer"):
        arrays = ocp.StandardCheckpointHandler()
        for args in (ocp.args.StandardSave, ocp.args.StandardRestore):
            registry.add(item, args, arrays)
    for item, file in (("progress", None), ("validation", None), ("metrics", "metrics")):
        host = ocp.JsonCheckpointHandler(filename=file)
        for args in (ocp.args.JsonSave, ocp.args.JsonRestore):
            registry.add(item, args, host)
    return registry
