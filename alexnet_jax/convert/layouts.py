"""Converts between this package's parameters and the layout that Caffe and PyTorch share.

              here                                        Caffe and PyTorch
convolution   (tower, height, width, inputs, outputs)     (outputs, inputs of a group, height, width)
dense         (tower, inputs, outputs)                    (outputs, inputs)
fc6's inputs  (row, column, map), all towers' maps        (map, row, column)

There the groups of a layer follow each other along the outputs. Nothing is computed, so every conversion is exact.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from alexnet_jax.layers import Architecture, Classifier, Convolution, Dense, Layer, trace
from alexnet_jax.network import Params
from alexnet_jax.system.errors import UserError


class Blobs(NamedTuple):
    """The weight and bias of one layer in the layout of Caffe and PyTorch."""

    weight: np.ndarray
    bias: np.ndarray


def groups(table: Architecture, layer: Convolution | Dense) -> int:
    """Groups of a layer: one for each tower if a tower reads only its own maps, else 1."""
    return table.towers if layer.reads == "own" else 1


def check_expressible(table: Architecture) -> None:
    """Raises UserError if Caffe and PyTorch lack a layer of the table: a dense one in groups, a locally connected one."""
    for layer in table.layers:
        why = ""
        if isinstance(layer, Dense) and groups(table, layer) > 1:
            why = "reads only the inputs of its own tower"
        elif isinstance(layer, Convolution) and not layer.shared:
            why = "has different kernels at every position"
        if why:
            raise UserError(
                f"--architecture={table.name}: {layer.name} {why}. Caffe and PyTorch have no such layer: use "
                "--export=safetensors"
            )


def blob_shapes(table: Architecture, classes: int, crop_size: int) -> dict[str, tuple[int, ...]]:
    """The shape of every layer's weight in the layout of Caffe and PyTorch. Raises UserError as `check_expressible`."""
    check_expressible(table)
    shapes = {}
    for one in trace(table, crop_size, classes):
        match one.layer:
            case Convolution(width=width, kernel=size):
                shapes[one.name] = (width, one.in_maps, size, size)
            case Dense(width=width):
                shapes[one.name] = (width, one.kernel[0])
            case Classifier():
                shapes[one.name] = (classes, one.towers * one.kernel[0])
    return shapes


def check_blobs(blobs: Mapping[str, Blobs], table: Architecture, crop_size: int, where: str) -> int:
    """Checks that weights fit a table with inputs of `crop_size` pixels, and returns their number of classes.

    Raises UserError naming `where` if a layer is missing, unknown or of the wrong shape, or not of finite floats.
    """
    names = [layer.name for layer in table.layers]
    if list(blobs) != names:
        raise UserError(f"{where} has the layers {', '.join(blobs) or 'none'}; {table.name} has {', '.join(names)}")
    head = blobs[names[-1]].weight
    classes = head.shape[0] if head.ndim else 0
    for name, shape in blob_shapes(table, classes, crop_size).items():
        for part, array, wanted in (("weight", blobs[name].weight, shape), ("bias", blobs[name].bias, shape[:1])):
            if array.shape != wanted:
                raise UserError(f"{where}: {name} {part} is {array.shape}; {table.name} at {crop_size} px has {wanted}")
            if array.dtype.kind != "f":
                raise UserError(f"{where}: {name} {part} is {array.dtype}, not floating point")
            if not np.isfinite(array).all():
                raise UserError(f"{where}: {name} {part} holds NaN or infinite values")
    return classes


def to_params(blobs: Mapping[str, Blobs], table: Architecture, crop_size: int) -> Params:
    """Parameters, float32, from weights that `check_blobs` has passed. The order of conv1's colours is kept."""
    params = {}
    for one in trace(table, crop_size):
        weight, bias = (np.asarray(array, np.float32) for array in blobs[one.name])
        is_dense = weight.ndim == 2  # the same as a convolution whose kernel covers its input
        if is_dense:
            weight = weight.reshape(len(weight), -1, one.in_side, one.in_side)
        kernel = weight.transpose(2, 3, 1, 0)
        if is_dense:
            kernel = kernel.reshape(-1, len(weight))
        kernel = np.stack(np.split(kernel, table.towers, axis=_cut(one.layer)))
        if not isinstance(one.layer, Classifier):
            bias = bias.reshape(table.towers, -1)
        params[one.name] = {"kernel": np.ascontiguousarray(kernel), "bias": np.ascontiguousarray(bias)}
    return params


def to_blobs(params: Params, table: Architecture, crop_size: int) -> dict[str, Blobs]:
    """The exact reverse of `to_params`. Raises UserError as `check_expressible`."""
    check_expressible(table)
    blobs = {}
    for one in trace(table, crop_size):
        kernel, bias = (np.asarray(params[one.name][part], np.float32) for part in ("kernel", "bias"))
        kernel = np.concatenate(list(kernel), axis=_cut(one.layer))
        is_dense = kernel.ndim == 2
        if is_dense:
            kernel = kernel.reshape(one.in_side, one.in_side, -1, kernel.shape[1])
        weight = kernel.transpose(3, 2, 0, 1)
        if is_dense:
            weight = weight.reshape(len(weight), -1)
        blobs[one.name] = Blobs(np.ascontiguousarray(weight), bias.reshape(-1))
    return blobs


def _cut(layer: Layer) -> int:
    """The axis of a kernel that the towers share: its outputs; a classifier's inputs, as each tower adds to the logits."""
    return 0 if isinstance(layer, Classifier) else -1


def flip_colours(blobs: Mapping[str, Blobs]) -> dict[str, Blobs]:
    """The same network for input with the colours reversed: Caffe reads BGR."""
    first = next(iter(blobs))
    weight = blobs[first].weight
    flipped = weight[:, ::-1] if weight.ndim == 4 else weight  # `check_blobs` reports a wrong shape
    return dict(blobs) | {first: blobs[first]._replace(weight=flipped)}
