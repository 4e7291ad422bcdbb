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
from jaxtyping import Float32

from alexnet_jax.layers import Architecture, Classifier, Convolution, Dense, trace
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
    """Checks that weights fit a table, and returns their number of classes.

    Args:
        blobs: by layer name.
        table: the architecture.
        crop_size: side of the network's input in pixels.
        where: the file, for the message.

    Raises:
        UserError: a layer is missing, unknown or of the wrong shape, or holds values that are not finite floats.
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
        layer = one.layer
        weight, bias = (np.asarray(array, np.float32) for array in blobs[layer.name])
        if isinstance(layer, Convolution):
            kernel = np.stack(np.split(weight.transpose(2, 3, 1, 0), table.towers, axis=-1))
        elif isinstance(layer, Dense):
            kernel = np.stack(np.split(_rows_first(weight, one.in_side).T, table.towers, axis=-1))
        else:  # cut along its inputs: every tower adds its share of the logits
            kernel = np.stack(np.split(weight.T, table.towers, axis=0))
        shared = isinstance(layer, Classifier)
        bias = bias if shared else bias.reshape(table.towers, -1)
        params[layer.name] = {"kernel": np.ascontiguousarray(kernel), "bias": np.ascontiguousarray(bias)}
    return params


def to_blobs(params: Params, table: Architecture, crop_size: int) -> dict[str, Blobs]:
    """The exact reverse of `to_params`. Raises UserError as `check_expressible`."""
    check_expressible(table)
    blobs = {}
    for one in trace(table, crop_size):
        layer = one.layer
        kernel, bias = (np.asarray(params[layer.name][part], np.float32) for part in ("kernel", "bias"))
        if isinstance(layer, Convolution):
            weight = np.concatenate(list(kernel), axis=-1).transpose(3, 2, 0, 1)
        elif isinstance(layer, Dense):
            weight = _maps_first(np.concatenate(list(kernel), axis=-1).T, one.in_side)
        else:
            weight = np.concatenate(list(kernel), axis=0).T
        blobs[layer.name] = Blobs(np.ascontiguousarray(weight), bias.reshape(-1))
    return blobs


def flip_colours(blobs: Mapping[str, Blobs]) -> dict[str, Blobs]:
    """The same network for input with the colours reversed: Caffe reads BGR."""
    first = next(iter(blobs))
    weight = blobs[first].weight
    flipped = weight[:, ::-1] if weight.ndim == 4 else weight  # `check_blobs` reports a wrong shape
    return dict(blobs) | {first: blobs[first]._replace(weight=flipped)}


def _rows_first(weight: Float32[np.ndarray, "outputs inputs"], side: int) -> Float32[np.ndarray, "outputs inputs"]:
    outputs = len(weight)
    return weight.reshape(outputs, -1, side, side).transpose(0, 2, 3, 1).reshape(outputs, -1)


def _maps_first(weight: Float32[np.ndarray, "outputs inputs"], side: int) -> Float32[np.ndarray, "outputs inputs"]:
    outputs = len(weight)
    return weight.reshape(outputs, side, side, -1).transpose(0, 3, 1, 2).reshape(outputs, -1)
