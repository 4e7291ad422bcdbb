"""The paper's ideas, each taken out of a layer table. `--ablate` names them."""

from collections.abc import Callable, Iterable
from dataclasses import replace

from alexnet_jax.layers import Architecture, Classifier, Convolution, MaxPool, Operation, ResponseNorm
from alexnet_jax.system.errors import UserError


def _without_lrn(table: Architecture) -> Architecture:
    """No response normalisation (Section 3.3)."""
    return _with_operations(table, lambda operation: None if isinstance(operation, ResponseNorm) else operation)


def _without_overlap(table: Architecture) -> Architecture:
    """Pooling windows as wide as their stride (Section 3.4). One that would reach over the edge is dropped.

    On the paper's sizes, 55, 27 and 13 px, every layer so keeps its shape.
    """

    def apart(operation: Operation) -> Operation:
        if not isinstance(operation, MaxPool) or operation.size == operation.stride:
            return operation
        return replace(operation, size=operation.stride, ceil_mode=False)

    return _with_operations(table, apart)


def _without_conv4(table: Architecture) -> Architecture:
    """One middle layer removed (Section 7)."""
    return replace(table, layers=tuple(layer for layer in table.layers if layer.name != "conv4"))


def _without_crosstalk(table: Architecture) -> Architecture:
    """Towers that meet in the classifier only (lab note 150). A wider conv2 and fc6 keep the number of parameters."""
    if table.towers == 1 or not any(not isinstance(layer, Classifier) and layer.reads == "all" for layer in table.layers):
        return table
    wider, layers = {"conv2": 5 / 4, "fc6": 2}, []
    for layer in table.layers:
        if not isinstance(layer, Classifier):
            reads = "own" if layer.reads == "all" else layer.reads
            layer = replace(layer, reads=reads, width=round(layer.width * wider.get(layer.name, 1)))
        layers.append(layer)
    return replace(table, layers=tuple(layers))


ABLATIONS: dict[str, Callable[[Architecture], Architecture]] = {
    "lrn": _without_lrn, "overlap": _without_overlap, "conv4": _without_conv4, "crosstalk": _without_crosstalk,
}  # fmt: skip


def ablated(table: Architecture, names: Iterable[str]) -> Architecture:
    """The table without these ideas, under its old name.

    Args:
        table: a layer table.
        names: keys of `ABLATIONS`.

    Raises:
        UserError: an unknown name, or an idea that the table does not have.
    """
    for name in names:
        if name not in ABLATIONS:
            raise UserError(f"--ablate={name} is not one of {', '.join(ABLATIONS)}")
        changed = ABLATIONS[name](table)
        if changed == table:
            raise UserError(f"--ablate={name}: --architecture={table.name} has no {name} to take out")
        table = changed
    return table


def _with_operations(table: Architecture, change: Callable[[Operation], Operation | None]) -> Architecture:
    """The table with each operation after a layer changed, or gone if that gives None."""
    layers = []
    for layer in table.layers:
        if isinstance(layer, Convolution):
            kept = (change(operation) for operation in layer.after)
            layer = replace(layer, after=tuple(operation for operation in kept if operation is not None))
        layers.append(layer)
    return replace(table, layers=tuple(layers))
