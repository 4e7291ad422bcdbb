"""Caffe's files: `.caffemodel` of both layer versions, `.binaryproto` means, and `.npy` dictionaries made from them."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from alexnet_jax.convert.caffe_proto import MESSAGES, blob_array, read_message
from alexnet_jax.convert.layouts import Blobs, groups
from alexnet_jax.convert.pickles import read_dictionary
from alexnet_jax.layers import Architecture, Classifier, Convolution, Dropout, Layer, MaxPool, Relu, ResponseNorm
from alexnet_jax.system.errors import UserError
from alexnet_jax.system.files import read_array

_V1_TYPES = {4: "Convolution", 14: "InnerProduct", 15: "LRN", 17: "Pooling"}


class CaffeLayer(NamedTuple):
    """A layer of a Caffe network."""

    name: str
    kind: str  # as in version 2, such as 'Convolution'
    blobs: list[np.ndarray]
    message: Any


def read_caffemodel(path: Path) -> list[CaffeLayer]:
    """The layers of a `.caffemodel`, V1 (`layers`) and V2 (`layer`), in order. Raises UserError naming the file."""
    net = read_message(path, "NetParameter")
    layers = []
    for layer in (*net.layers, *net.layer):
        kind = layer.type if isinstance(layer.type, str) else _V1_TYPES.get(layer.type, str(layer.type))
        where = f"{path}: layer {layer.name!r}"
        layers.append(CaffeLayer(layer.name, kind, [blob_array(blob, where) for blob in layer.blobs], layer))
    if not any(layer.blobs for layer in layers):
        raise UserError(f"{path} holds no layer with weights: is it a .caffemodel?")
    return layers


def read_mean_file(path: Path) -> np.ndarray:
    """The mean image of a `.binaryproto` or `.npy` file, float32 (size, size, 3) RGB. The file has (3, size, size) BGR.

    Raises UserError naming the file if it cannot be read or is not such an image.
    """
    mean = read_array(path) if path.suffix == ".npy" else blob_array(read_message(path, "BlobProto"), str(path))
    if mean.ndim == 4 and len(mean) == 1:
        mean = mean[0]
    sides = set(mean.shape[1:])
    if mean.ndim != 3 or len(mean) != 3 or len(sides) != 1 or mean.dtype.kind != "f":
        raise UserError(f"{path} is not a mean image of floats (3, size, size): it is {mean.dtype} {mean.shape}")
    if not ((mean >= 0) & (mean <= 255)).all():
        raise UserError(f"{path} is not a mean image: it has values that are not from 0 to 255")
    return mean[::-1].transpose(1, 2, 0).astype(np.float32)


def blobs_of(layers: list[CaffeLayer], table: Architecture, where: str) -> dict[str, Blobs]:
    """The weights of a Caffe network under the names of a table. Layers match by name if all names agree, else in order.

    Raises UserError if the layers, or their groups, strides, padding or LRN differ from the table's.
    """
    weighted = [layer for layer in layers if layer.blobs]
    order = {spec.name: place for place, spec in enumerate(table.layers)}
    if {layer.name for layer in weighted} == set(order):  # a file with layers of both versions has lost their order
        weighted.sort(key=lambda layer: order[layer.name])
    kinds = ["Convolution" if isinstance(spec, Convolution) else "InnerProduct" for spec in table.layers]
    if [layer.kind for layer in weighted] != kinds:
        found = ", ".join(f"{layer.name} ({layer.kind})" for layer in weighted)
        raise UserError(f"{where} has weights in {found}; --architecture={table.name} has {', '.join(order)}")
    _check_norms(layers, table, where)
    blobs = {}
    for spec, layer in zip(table.layers, weighted, strict=True):
        if len(layer.blobs) != 2:
            raise UserError(f"{where}: layer {layer.name!r} has {len(layer.blobs)} blobs, not a weight and a bias")
        weight, bias = layer.blobs
        if isinstance(spec, Convolution):
            _check_convolution(layer, spec, groups(table, spec), where)
        elif weight.ndim == 4 and weight.shape[:2] == (1, 1):
            weight = weight[0, 0]
        blobs[spec.name] = Blobs(weight, bias.reshape(-1))
    return blobs


def _check_convolution(layer: CaffeLayer, spec: Convolution, group: int, where: str) -> None:
    param = layer.message.convolution_param
    stride, padding = (values[0] if values else default for values, default in ((param.stride, 1), (param.pad, 0)))
    found, wanted = (param.group, stride, padding), (group, spec.stride, spec.padding)
    if layer.message.HasField("convolution_param") and found != wanted:
        raise UserError(
            f"{where}: layer {layer.name!r} has group, stride, pad {found}; {spec.name} of the table has {wanted}"
        )


def _norms(table: Architecture) -> list[ResponseNorm]:
    return [op for spec in table.layers for op in getattr(spec, "after", ()) if isinstance(op, ResponseNorm)]


def _check_norms(layers: list[CaffeLayer], table: Architecture, where: str) -> None:
    """Caffe divides alpha by the size: a file's alpha is the table's times the size."""
    norms = _norms(table)
    in_file = [layer for layer in layers if layer.kind == "LRN"]
    if in_file and len(in_file) != len(norms):
        raise UserError(f"{where} has {len(in_file)} LRN layers; --architecture={table.name} has {len(norms)}")
    for layer, norm in zip(in_file, norms, strict=False):
        lrn = layer.message.lrn_param
        found = (lrn.norm_region, lrn.local_size, lrn.alpha, lrn.beta, lrn.k)
        wanted = (0, norm.size, norm.alpha * norm.size, norm.beta, norm.k)
        if not np.allclose(found, wanted, rtol=1e-5):
            has, needs = (", ".join(f"{value:g}" for value in values) for values in (found, wanted))
            names = "region, size, alpha, beta, k"
            raise UserError(f"{where}: LRN {layer.name!r} has {names} {has}; --architecture={table.name} has {needs}")


def pools_before_norm(layers: list[CaffeLayer]) -> bool:
    """Whether the file's network is CaffeNet, which pools before it normalises."""
    kinds = [layer.kind for layer in layers if layer.kind in ("LRN", "Pooling")]
    return kinds[:2] == ["Pooling", "LRN"]


def read_npy_dictionary(path: Path, table: Architecture) -> dict[str, Blobs]:
    """Weights from a `.npy` dictionary {layer: [weight, bias]} or {layer: {'weights', 'biases'}}.

    The arrays are in Caffe's layout, or in that of caffe-tensorflow: convolutions are (height, width, inputs, outputs),
    dense layers (inputs, outputs), with inputs in the order (row, column, map). Raises UserError if it is no such file.
    """
    blobs = {}
    for name, content in read_dictionary(path).items():
        parts: Any = [content.get(key) for key in ("weights", "biases")] if isinstance(content, dict) else content
        if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, np.ndarray) for part in parts):
            raise UserError(f"{path}: {name!r} is not a weight and a bias")
        blobs[str(name)] = Blobs(parts[0], parts[1].reshape(-1))
    blobs = {spec.name: blobs[spec.name] for spec in table.layers if spec.name in blobs} | blobs
    first = next(iter(blobs.values()), Blobs(np.empty(0), np.empty(0))).weight
    if first.ndim == 4 and first.shape[2] == 3 and first.shape[0] == first.shape[1]:
        return _from_rows_first(blobs)
    return blobs


def _from_rows_first(blobs: Mapping[str, Blobs]) -> dict[str, Blobs]:
    turned, maps = {}, 1
    for name, (weight, bias) in blobs.items():
        if weight.ndim == 4:
            weight, maps = weight.transpose(3, 2, 0, 1), weight.shape[3]
        elif weight.ndim == 2:
            side = round((weight.shape[0] / maps) ** 0.5) if maps else 0
            if side * side * maps == weight.shape[0]:
                weight = weight.reshape(side, side, maps, -1).transpose(2, 0, 1, 3).reshape(weight.shape)
            weight, maps = weight.T, len(bias)
        turned[name] = Blobs(weight, bias)
    return turned


def write_caffemodel(blobs: Mapping[str, Blobs], table: Architecture) -> bytes:
    """A `.caffemodel` of version 2 with every layer's parameters and float32 blobs. The colour order of `blobs` is kept.

    Raises UserError if Caffe has no layer for the table's LRN.
    """
    if any(op.across == "maps" for op in _norms(table)) and table.towers > 1:
        raise UserError(
            f"--architecture={table.name}: its LRN stays within a tower, but Caffe's crosses the edges of its groups: "
            "use --export=torchvision or safetensors"
        )
    net = MESSAGES["NetParameter"](name=table.name)
    below = "data"
    for number, spec in enumerate(table.layers, 1):
        for layer in (_weighted(table, spec, blobs[spec.name]), *_operations(spec, number)):
            top = below if layer["type"] in ("ReLU", "Dropout") else layer["name"]
            net.layer.add(bottom=[below], top=[top], **layer)
            below = top
    return net.SerializeToString()


def _weighted(table: Architecture, spec: Layer, weights: Blobs) -> dict[str, Any]:
    """The fields of Caffe's layer `spec`, but for its connections."""
    blobs = [{"data": [np.ascontiguousarray(x, "<f4").tobytes()], "shape": {"dim": x.shape}} for x in weights]
    layer: dict[str, Any] = {"name": spec.name, "blobs": blobs}
    if isinstance(spec, Convolution):
        window = {"kernel_size": [spec.kernel], "stride": [spec.stride], "pad": [spec.padding]}
        param = {"num_output": spec.width, "group": groups(table, spec), **window}
        return layer | {"type": "Convolution", "convolution_param": param}
    return layer | {"type": "InnerProduct", "inner_product_param": {"num_output": len(weights.bias)}}


def _operations(spec: Layer, number: int) -> Iterator[dict[str, Any]]:
    """The same of the layers without weights that follow it."""
    for operation in () if isinstance(spec, Classifier) else spec.after:
        match operation:
            case Relu():
                yield {"name": f"relu{number}", "type": "ReLU"}
            case Dropout(rate=rate):
                yield {"name": f"drop{number}", "type": "Dropout", "dropout_param": {"dropout_ratio": rate}}
            case MaxPool(size=size, stride=stride):
                pooling = {"pool": 0, "kernel_size": size, "stride": stride}
                yield {"name": f"pool{number}", "type": "Pooling", "pooling_param": pooling}
            case ResponseNorm(size=size, alpha=alpha, beta=beta, k=k):
                region = int(operation.across == "space")
                lrn = {"local_size": size, "alpha": alpha * size, "beta": beta, "k": k, "norm_region": region}
                yield {"name": f"norm{number}", "type": "LRN", "lrn_param": lrn}
