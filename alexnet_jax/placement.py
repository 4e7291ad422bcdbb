"""Which device stands where on the mesh: the towers of a row on neighbours, and the rows of a slice together.

JAX's `mesh_utils` does not serve here: it finds no mesh of two columns for a slice of 4x4 or more chips.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from alexnet_jax.system.errors import UserError
from alexnet_jax.values import MeshShape


def place(devices: Sequence[Any], shape: MeshShape) -> np.ndarray:
    """Devices as the rows and columns of the mesh.

    Slices follow each other, and no row lies on two of them: the towers talk on a slice's own links, and gradients meet
    there before they meet between slices. JAX's order of devices is kept if it makes neighbours of the towers, and keeps
    them on one host then. Otherwise the chips of each host are walked to and fro, or else those of each slice. Devices that
    do not tell their places, such as GPUs, stay in JAX's order.

    Args:
        devices: at least as many as the mesh has places.
        shape: of the mesh.

    Raises:
        UserError: too few rows of neighbours are found.
    """
    orders = (_slice,) if not _tells_place(devices[0]) else (_slice, _walk_of_host, _walk_of_slice)
    for order in orders:
        ordered = sorted(devices, key=order)
        starts = range(0, len(ordered) - shape.tower + 1, shape.tower)
        rows = [row for start in starts if are_neighbours(row := ordered[start : start + shape.tower]) is not False]
        if len(rows) >= shape.data:
            return np.array(rows[: shape.data])
    raise UserError(
        f"--mesh={shape} needs {shape.data} rows of {shape.tower} neighbours on one slice, and the {len(devices)} devices "
        f"have fewer: take whole slices, or keep all towers on each device with --mesh={len(devices)}x1"
    )


def are_neighbours(row: Sequence[Any]) -> bool | None:
    """Whether each device of a row is beside the one before it, on the same slice. None if they do not tell their places.

    Two cores of one chip are neighbours.
    """
    if not _tells_place(row[0]):
        return None
    steps = np.abs(np.diff([device.coords for device in row], axis=0)).sum(axis=1)
    return len({_slice(device) for device in row}) == 1 and bool((steps <= 1).all())


def _tells_place(device: Any) -> bool:
    """Whether it is a TPU with coordinates. Those of a GPU only number the GPUs of a host."""
    return device.platform == "tpu" and hasattr(device, "coords")


def _slice(device: Any) -> int:
    return getattr(device, "slice_index", None) or 0


def _walk_of_host(device: Any) -> tuple[Any, ...]:
    return _slice(device), device.process_index, _walk(device)


def _walk_of_slice(device: Any) -> tuple[Any, ...]:
    return _slice(device), _walk(device)


def _walk(device: Any) -> tuple[int, ...]:
    """Sorts the chips of a box, and their cores, into a walk by single steps: each axis is walked to and fro."""
    axes = (*reversed(device.coords), getattr(device, "core_on_chip", 0))
    return tuple(-x if sum(axes[:number]) % 2 else x for number, x in enumerate(axes))
