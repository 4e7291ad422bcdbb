"""Reads one checkpoint onto a mesh, and tells damage that is proven from a disk that fails for now."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.sharding import PartitionSpec as P

from alexnet_jax.network import Params
from alexnet_jax.run.damage import blames_content, error_number, is_out_of_memory, read_all, reason
from alexnet_jax.step import Setup, TrainState, make_checksum
from alexnet_jax.system.errors import UserError
from alexnet_jax.system.processes import together

METRIC = "validation_top1_error"
Restored = tuple[TrainState, dict[str, Any]]  # with the host's progress
Content = TypeVar("Content")


class Damaged(Exception):
    """A checkpoint whose content is wrong or missing. The message says how."""


class CheckpointReader:
    """Reads the checkpoints in a folder, straight through the handlers of their items.

    Orbax's manager would have all processes wait for one whose read has failed.
    """

    def __init__(self, folder: Path, handlers: ocp.handlers.DefaultCheckpointHandlerRegistry):
        self._folder, self._handlers = folder, handlers
        self._checksums: dict[tuple[int, str], tuple[Setup, Any]] = {}  # compiled once for each network and item

    def state(self, setup: Setup, step: int) -> Restored:
        """The training state. `progress` holds the checksums too.

        Raises:
            Damaged: content is wrong or missing. It is read twice, and all files can be read in between.
            UserError: the disk fails, is away or forbids it, or the memory is exhausted.
        """

        def read() -> Restored:
            specs, progress = setup.state_specs, self._progress(step)
            counter = setup.mesh.put(np.int32(step), specs.step)
            params = self._arrays(setup, step, "params", setup.shapes)
            return TrainState(counter, params, self._arrays(setup, step, "optimizer", optimizer_shapes(setup))), progress

        with self._legible(step):
            with contextlib.suppress(Damaged):
                return _blaming_content(read)
            self._folder.stat()
            read_all(self._folder / str(step))
            return _blaming_content(read)

    def params(self, setup: Setup, step: int) -> Params:
        """The parameters alone. Raises UserError if they are damaged or cannot be read."""
        return self._alone(setup, step, "params", setup.shapes)

    def optimizer(self, setup: Setup, step: int) -> optax.OptState:
        """The optimiser's state alone. Raises UserError if it is damaged or cannot be read."""
        return self._alone(setup, step, "optimizer", optimizer_shapes(setup))

    def _alone(self, setup: Setup, step: int, name: str, shapes: Any) -> Any:
        with together(), self._chosen(step), self._legible(step):
            arrays = _blaming_content(lambda: self._arrays(setup, step, name, shapes))
            progress = _blaming_content(lambda: self._progress(step))
        with together(), self._chosen(step):
            self.check_sums(setup, progress, **{name: arrays})
        return arrays

    @contextlib.contextmanager
    def _chosen(self, step: int) -> Iterator[None]:
        """Turns damage to a checkpoint that was asked for into one line."""
        try:
            yield
        except Damaged as error:
            raise UserError(f"checkpoint {self._folder / str(step)} is damaged: {error}: choose another --step") from error

    def validation_error(self, step: int) -> float | None:
        """In percent; None if the checkpoint was not validated, or that cannot be read."""
        for item in ("validation", "metrics"):  # what earlier versions called it
            with contextlib.suppress(Damaged, OSError):
                metrics = _blaming_content(lambda item=item: self._item(step, item, ocp.args.JsonRestore()))
                error = metrics.get(METRIC) if isinstance(metrics, dict) else None
                return error if isinstance(error, float) else None
        return None

    def check_network(self, setup: Setup, step: int) -> None:
        """Raises UserError if the stored parameters have other names or shapes. What cannot be read is left to `state`."""
        handler: Any = self._handlers.get("params", ocp.args.StandardRestore())
        try:
            stored = _blaming_content(lambda: handler.metadata(self._folder / str(step) / "params").tree)
        except (Damaged, OSError):
            return
        found = {_name(path): tuple(leaf.shape) for path, leaf in jax.tree.leaves_with_path(stored)}
        wanted = {_name(path): leaf.shape for path, leaf in jax.tree.leaves_with_path(setup.shapes)}
        for name in sorted(found.keys() | wanted.keys()):
            if found.get(name) != wanted.get(name):
                raise UserError(
                    f"checkpoint {self._folder / str(step)} holds another network: {name} is {found.get(name, 'missing')} "
                    f"there and {wanted.get(name, 'missing')} for --architecture={setup.config.architecture}"
                )

    def checksum(self, setup: Setup, name: str, tree: Any) -> int:
        """Of the item `name` of a state on the network's mesh. All processes have to ask."""
        key = (id(setup), name)
        if key not in self._checksums:
            self._checksums[key] = setup, make_checksum(setup.mesh, getattr(setup.state_specs, name))
        return int(setup.mesh.fetch(self._checksums[key][1](tree), P()))

    def check_sums(self, setup: Setup, progress: dict[str, Any], **items: Any) -> None:
        """Raises Damaged if an item of a state on the network's mesh is not what was saved. All processes have to ask."""
        wanted = progress.get("checksums", {})
        for name, tree in items.items():
            if name in wanted and (found := self.checksum(setup, name, tree)) != wanted[name]:
                raise Damaged(f"{name} has the checksum {found:08x} and was saved with {wanted[name]:08x}")

    @contextlib.contextmanager
    def _legible(self, step: int) -> Iterator[None]:
        """Turns what a disk or exhausted memory raises into one line, and leaves our own mistakes as they are."""
        try:
            yield
        except Damaged:
            raise
        except Exception as error:
            where = f"checkpoint {self._folder / str(step)}"
            if is_out_of_memory(error):
                raise UserError(f"{where} does not fit into the memory: {reason(error)}") from error
            if error_number(error) is None:
                raise
            raise UserError(f"{where} cannot be read for now: {reason(error)}; nothing was moved: run it again") from error

    def _progress(self, step: int) -> dict[str, Any]:
        try:
            progress = self._item(step, "progress", ocp.args.JsonRestore())
        except ValueError as error:
            raise ValueError(f"progress is no JSON: {error}") from None
        if not isinstance(progress, dict) or progress.get("step") != step:
            raise ValueError(f"progress is not that of step {step}")
        return progress

    def _arrays(self, setup: Setup, step: int, name: str, shapes: Any) -> Any:
        specs = getattr(setup.state_specs, name)
        abstract = jax.tree.map(
            lambda x, spec: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=setup.mesh.sharding(spec)), shapes, specs
        )
        return setup.mesh.to_compiled(self._item(step, name, ocp.args.StandardRestore(abstract)), specs)

    def _item(self, step: int, name: str, args: Any) -> Any:
        handler: Any = self._handlers.get(name, args)
        return handler.restore(self._folder / str(step) / name, args=args)


def _blaming_content(read: Callable[[], Content]) -> Content:
    """What `read` returns. Raises Damaged where content is at fault, and other errors as they are."""
    try:
        return read()
    except Exception as error:
        if not blames_content(error):
            raise
        raise Damaged(reason(error)) from error


def optimizer_shapes(setup: Setup) -> Any:
    """The shapes of the optimiser's state."""
    return jax.eval_shape(setup.transformation({}).init, setup.shapes)


def _name(path: tuple[Any, ...]) -> str:
    return ".".join(str(getattr(key, "key", key)) for key in path)
