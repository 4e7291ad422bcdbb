"""Checkpoints through Orbax: parameters, optimiser state and the host's progress, one format for every mesh.

W/checkpoints/<step>/ has the items `params`, `optimizer` and `progress` (JSON). Arrays are stored whole, with their tower
axis, and are restored onto any mesh. Their checksums are made on the devices before saving and stored in `progress`: they
detect corruption on disk.
"""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils
from jax.sharding import PartitionSpec as P
from orbax.checkpoint import checkpoint_managers

from alexnet_jax.network import Params
from alexnet_jax.step import Setup, TrainState, make_checksum
from alexnet_jax.system.errors import UserError

METRIC = "validation_top1_error"


def _abstract(setup: Setup, tree: Any, specs: Any) -> Any:
    """Shapes with the shardings to restore to."""
    return jax.tree.map(
        lambda x, spec: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=setup.mesh.sharding(spec)), tree, specs
    )


def _everywhere(yes: bool) -> bool:
    """Whether every process says yes. All have to ask."""
    return bool(multihost_utils.process_allgather(np.array(yes)).all()) if jax.process_count() > 1 else yes


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
        policies = checkpoint_managers
        best = policies.BestN(
            get_metric_fn=lambda metrics: metrics[METRIC], reverse=True, n=1, keep_checkpoints_without_metrics=False
        )
        options = ocp.CheckpointManagerOptions(
            best_fn=lambda metrics: metrics[METRIC],
            best_mode="min",
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), best]),
            create=writable,
        )
        if writable and jax.process_index() == 0:  # not by Orbax, whose thread for it outlives a run that ends at once
            for left_over in self.folder.glob("*[!0-9]*"):  # a finished one is named by its step
                shutil.rmtree(left_over)
        self._handlers = _handlers()
        self._manager = ocp.CheckpointManager(self.folder, options=options, handler_registry=self._handlers)
        self._checksums: dict[tuple[int, str], tuple[Setup, Any]] = {}  # compiled once for each network and item

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
        """The step with the lowest validation error; None if no checkpoint was validated."""
        step = self._manager.best_step()
        return None if step is None or self._manager.metrics(step) is None else step

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
        with self._on_disk():
            self._manager.wait_until_finished()  # Orbax would too; old checkpoints are deleted by then
            self.check_room(setup)
        specs, step = setup.state_specs, progress["step"]
        sums = {name: self._checksum(setup, name, getattr(state, name)) for name in ("params", "optimizer")}
        with self._on_disk():
            if step in self.steps():  # saved before its validation, which an interruption had put off
                self._manager.delete(step)
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.StandardSave(setup.mesh.from_compiled(state.params, specs.params)),
                    optimizer=ocp.args.StandardSave(setup.mesh.from_compiled(state.optimizer, specs.optimizer)),
                    progress=ocp.args.JsonSave({**progress, "checksums": sums}),
                ),
                metrics=None if error is None else {METRIC: error},
            )

    def check_room(self, setup: Setup) -> None:
        """Before Orbax begins, whose threads tell of a full disk in hundreds of lines.

        Raises:
            UserError: the disk has no room for one more checkpoint; old ones are deleted after the new one is written.
        """
        shapes = jax.tree.leaves((setup.shapes, _optimizer_shapes(setup)))
        wanted, disk = sum(x.size * x.dtype.itemsize for x in shapes), shutil.disk_usage(self.folder)
        if disk.total and disk.free < wanted:  # a disk without a size does not say what is free
            needs = f"a checkpoint takes {wanted / 1e6:,.1f} MB and the disk has {disk.free / 1e6:,.1f} MB left"
            raise UserError(f"{self.folder} cannot be written: {needs}; {self._kept()}")

    @contextlib.contextmanager
    def _on_disk(self) -> Iterator[None]:
        """Turns what a full or read-only disk raises, in whichever thread, into one line."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"{self.folder} cannot be written: {_first_line(error)}; {self._kept()}") from error

    def _kept(self) -> str:
        return f"checkpoint {self.steps()[-1]} is kept" if self.steps() else "there is no checkpoint yet"

    def _checksum(self, setup: Setup, name: str, tree: Any) -> int:
        """Of the item `name` of a state on the network's mesh."""
        key = (id(setup), name)
        if key not in self._checksums:
            self._checksums[key] = setup, make_checksum(setup.mesh, getattr(setup.state_specs, name))
        return int(setup.mesh.fetch(self._checksums[key][1](tree), P()))

    def _changed(self, setup: Setup, progress: dict[str, Any], **items: Any) -> str:
        """Which item of a state on the network's mesh is not what was saved; '' if all are."""
        wanted = progress.get("checksums", {})
        for name, tree in items.items():
            if name in wanted and (found := self._checksum(setup, name, tree)) != wanted[name]:
                return f"{name} has the checksum {found:08x} and was saved with {wanted[name]:08x}"
        return ""

    def restore_latest(self, setup: Setup) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest checkpoint that can be read whole, on the network's mesh, with the host's progress; None without one.

        A damaged newer one is reported and moved to W/damaged/; the one before is restored.

        Raises:
            UserError: a checkpoint of another network, or checkpoints of which none can be read.
        """
        steps = self.steps()
        for step in reversed(steps):
            self._check_shapes(setup, step)
            restored, why = None, ""
            try:
                restored = self._read(setup, step)
            except Exception as error:
                why = _first_line(error)
            all_read = _everywhere(restored is not None)  # checksums need every process, so none starts on them alone
            if restored is None or not all_read:
                why = why or "another process cannot read its share"
            else:
                state, progress = restored
                why = self._changed(setup, progress, params=state.params, optimizer=state.optimizer)
                progress.pop("checksums", None)
            if restored is not None and not why:
                return restored
            logging.warning("checkpoint %d cannot be read: %s", step, why)
            self._set_aside(step)
        if steps:
            raise UserError(f"none of the checkpoints {steps} in {self.folder} can be read; they are in damaged/ beside it")
        return None

    def restore_params(self, setup: Setup, step: int) -> Params:
        """The parameters of one checkpoint on the network's mesh.

        Raises:
            UserError: it belongs to another network or is damaged.
        """
        self._check_shapes(setup, step)
        try:
            params = self._arrays(setup, step, "params", setup.shapes)
            why = self._changed(setup, self._item(step, "progress", ocp.args.JsonRestore()), params=params)
        except Exception as error:
            raise UserError(f"checkpoint {self.folder / str(step)} cannot be read: {_first_line(error)}") from error
        if why:
            raise UserError(f"checkpoint {self.folder / str(step)} cannot be read: {why}")
        return params

    def _read(self, setup: Setup, step: int) -> tuple[TrainState, dict[str, Any]]:
        """The state with the host's progress, its checksums included. Raises whatever Orbax does."""
        specs, optimizer = setup.state_specs, _optimizer_shapes(setup)
        progress = self._item(step, "progress", ocp.args.JsonRestore())
        counter = setup.mesh.put(np.int32(progress["step"]), specs.step)
        params = self._arrays(setup, step, "params", setup.shapes)
        return TrainState(counter, params, self._arrays(setup, step, "optimizer", optimizer)), progress

    def _item(self, step: int, name: str, args: Any) -> Any:
        """Straight from the item's handler: the manager would have all processes wait for one whose read has failed."""
        handler: Any = self._handlers.get(name, args)
        return handler.restore(self.folder / str(step) / name, args=args)

    def _arrays(self, setup: Setup, step: int, name: str, shapes: Any) -> Any:
        specs = getattr(setup.state_specs, name)
        restored = self._item(step, name, ocp.args.StandardRestore(_abstract(setup, shapes, specs)))
        return setup.mesh.to_compiled(restored, specs)

    def _check_shapes(self, setup: Setup, step: int) -> None:
        """Raises UserError if the stored parameters have other names or shapes. What cannot be read is left to `_read`."""
        try:
            stored = self._manager.item_metadata(step)["params"].tree
            found = {_path(path): tuple(leaf.shape) for path, leaf in jax.tree.leaves_with_path(stored)}
        except Exception:
            return
        wanted = {_path(path): leaf.shape for path, leaf in jax.tree.leaves_with_path(setup.shapes)}
        for name in sorted(found.keys() | wanted.keys()):
            if found.get(name) != wanted.get(name):
                raise UserError(
                    f"checkpoint {self.folder / str(step)} holds another network: {name} is {found.get(name, 'missing')} "
                    f"there and {wanted.get(name, 'missing')} for --architecture={setup.config.architecture}"
                )

    def _set_aside(self, step: int) -> None:
        if jax.process_index() == 0:
            damaged = self.folder.parent / "damaged"
            damaged.mkdir(exist_ok=True)
            target, number = damaged / str(step), 1
            while target.exists():
                number += 1
                target = damaged / f"{step}-{number}"
            (self.folder / str(step)).rename(target)
            logging.warning("moved it to %s; the one before is used", target)
        _everywhere(True)  # waits for the move
        self._manager.reload()


def chosen_step(checkpoints: Checkpoints, workdir: str, step: str) -> int:
    """The step that --step means. Raises UserError if there is no such checkpoint."""
    steps = checkpoints.steps()
    if not steps:
        raise UserError(f"--workdir={workdir} has no finished checkpoint yet")
    if step == "latest":
        return steps[-1]
    if step == "best":
        best = checkpoints.best_step()
        if best is None:
            raise UserError(f"--step=best: no checkpoint in {workdir} was validated")
        return best
    if not step.isdecimal() or int(step) not in steps:
        raise UserError(f"--step={step}: {workdir} has the checkpoints {', '.join(map(str, steps))}, 'latest' and 'best'")
    return int(step)


def _handlers() -> ocp.handlers.DefaultCheckpointHandlerRegistry:
    """What reads and writes each item of a checkpoint."""
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    for item in ("params", "optimizer"):
        arrays = ocp.StandardCheckpointHandler()
        for args in (ocp.args.StandardSave, ocp.args.StandardRestore):
            registry.add(item, args, arrays)
    progress = ocp.JsonCheckpointHandler()
    for args in (ocp.args.JsonSave, ocp.args.JsonRestore):
        registry.add("progress", args, progress)
    return registry


def _optimizer_shapes(setup: Setup) -> Any:
    return jax.eval_shape(setup.transformation({}).init, setup.shapes)


def _path(path: tuple[Any, ...]) -> str:
    return ".".join(str(getattr(key, "key", key)) for key in path)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
