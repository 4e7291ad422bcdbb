"""Caffe's files: `.caffemodel` of both layer versions, `.binaryproto` means, and `.npy` dictionaries made from them.

The schema below has those fields of Caffe's caffe.proto that weights need, by their numbers there. Packed numbers are
declared as bytes, which look the same in a file: NumPy takes them over without a Python object for each.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from alexnet_jax.convert.layouts import Blobs, groups
from alexnet_jax.convert.pickles import read_dictionary
from alexnet_jax.layers import Architecture, Classifier, Convolution, Dense, Dropout, MaxPool, Relu, ResponseNorm
from alexnet_jax.system.errors import UserError

_MOST_BYTES = 2**31 - 1  # of a protobuf message

_Field = descriptor_pb2.FieldDescriptorProto
_SCHEMA: dict[str, tuple[tuple[str, int, Any], ...]] = {
    "BlobShape": (("dim", 1, [_Field.TYPE_INT64]),),
    "BlobProto": (
        ("num", 1, _Field.TYPE_INT32), ("channels", 2, _Field.TYPE_INT32), ("height", 3, _Field.TYPE_INT32),
        ("width", 4, _Field.TYPE_INT32), ("data", 5, [_Field.TYPE_BYTES]), ("shape", 7, "BlobShape"),
        ("double_data", 8, [_Field.TYPE_BYTES]),
    ),
    "ConvolutionParameter": (
        ("num_output", 1, _Field.TYPE_UINT32), ("pad", 3, [_Field.TYPE_UINT32]), ("kernel_size", 4, [_Field.TYPE_UINT32]),
        ("group", 5, _Field.TYPE_UINT32), ("stride", 6, [_Field.TYPE_UINT32]),
    ),
    "InnerProductParameter": (("num_output", 1, _Field.TYPE_UINT32), ("transpose", 6, _Field.TYPE_BOOL)),
    "LRNParameter": (
        ("local_size", 1, _Field.TYPE_UINT32), ("alpha", 2, _Field.TYPE_FLOAT), ("beta", 3, _Field.TYPE_FLOAT),
        ("norm_region", 4, _Field.TYPE_INT32), ("k", 5, _Field.TYPE_FLOAT),
    ),
    "PoolingParameter": (
        ("pool", 1, _Field.TYPE_INT32), ("kernel_size", 2, _Field.TYPE_UINT32), ("stride", 3, _Field.TYPE_UINT32),
    ),
    "DropoutParameter": (("dropout_ratio", 1, _Field.TYPE_FLOAT),),
    "V1LayerParameter": (
        ("bottom", 2, [_Field.TYPE_STRING]), ("top", 3, [_Field.TYPE_STRING]), ("name", 4, _Field.TYPE_STRING),
        ("type", 5, _Field.TYPE_INT32), ("blobs", 6, ["BlobProto"]), ("convolution_param", 10, "ConvolutionParameter"),
        ("inner_product_param", 17, "InnerProductParameter"), ("lrn_param", 18, "LRNParameter"),
    ),
    "LayerParameter": (
        ("name", 1, _Field.TYPE_STRING), ("type", 2, _Field.TYPE_STRING), ("bottom", 3, [_Field.TYPE_STRING]),
        ("top", 4, [_Field.TYPE_STRING]), ("blobs", 7, ["BlobProto"]), ("convolution_param", 106, "ConvolutionParameter"),
        ("dropout_param", 108, "DropoutParameter"), ("inner_product_param", 117, "InnerProductParameter"),
        ("lrn_param", 118, "LRNParameter"), ("pooling_param", 121, "PoolingParameter"),
    ),
    "NetParameter": (
        ("name", 1, _Field.TYPE_STRING), ("layers", 2, ["V1LayerParameter"]), ("layer", 100, ["LayerParameter"]),
    ),
}  # fmt: skip
_V1_TYPES = {4: "Convolution", 14: "InnerProduct", 15: "LRN", 17: "Pooling"}


def _messages() -> dict[str, Any]:
    """The message classes of the schema; a list around a type means repeated."""
    file = descriptor_pb2.FileDescriptorProto(name="alexnet_jax/caffe.proto", package="alexnet_jax.caffe", syntax="proto2")
    for name, fields in _SCHEMA.items():
        message = file.message_type.add(name=name)
        for field_name, number, kind in fields:
            label = _Field.LABEL_REPEATED if isinstance(kind, list) else _Field.LABEL_OPTIONAL
            (kind,) = kind if isinstance(kind, list) else (kind,)
            field = message.field.add(name=field_name, number=number, label=label)
            if isinstance(kind, str):
                field.type, field.type_name = _Field.TYPE_MESSAGE, f".alexnet_jax.caffe.{kind}"
            else:
                field.type = kind
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"alexnet_jax.caffe.{name}")) for name in _SCHEMA
    }


_MESSAGES = _messages()


class Layer(NamedTuple):
    """A layer of a Caffe network: `kind` as in version 2, such as 'Convolution'."""

    name: str
    kind: str
    blobs: list[np.ndarray]
    message: Any


def _parse(path: Path, message: str) -> Any:
    """Raises UserError naming the file if it cannot be read or is no whole protobuf message."""
    parsed = _MESSAGES[message]()
    try:
        if (size := path.stat().st_size) > _MOST_BYTES or not path.is_file():
            raise UserError(f"{path} is no protobuf file: it has {size:,} bytes")
        parsed.ParseFromString(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except DecodeError as error:
        raise UserError(f"{path} is truncated or no file of Caffe's: protobuf cannot parse it") from error
    return parsed


def _array(blob: Any, where: str) -> np.ndarray:
    """A blob with its legacy 4-d or its newer shape. Raises UserError if its numbers are not as many as that says."""
    data, dtype = (blob.data, "<f4") if blob.data else (blob.double_data, "<f8")
    raw = b"".join(data)
    legacy = (blob.num, blob.channels, blob.height, blob.width)
    shape = tuple(blob.shape.dim) if blob.HasField("shape") else legacy
    count = int(np.prod([1, *shape], dtype=object))
    if min(shape, default=1) < 0 or count * np.dtype(dtype).itemsize != len(raw):
        raise UserError(f"{where} has {len(raw) // np.dtype(dtype).itemsize:,} values for the shape {shape}")
    return np.frombuffer(raw, dtype).reshape(shape)


def read_caffemodel(path: Path) -> list[Layer]:
    """The layers of a `.caffemodel`, V1 (`layers`) and V2 (`layer`), in order. Raises UserError naming the file."""
    net = _parse(path, "NetParameter")
    layers = []
    for layer in (*net.layers, *net.layer):
        kind = layer.type if isinstance(layer.type, str) else _V1_TYPES.get(layer.type, str(layer.type))
        where = f"{path}: layer {layer.name!r}"
        layers.append(Layer(layer.name, kind, [_array(blob, where) for blob in layer.blobs], layer))
    if not any(layer.blobs for layer in layers):
        raise UserError(f"{path} holds no layer with weights: is it a .caffemodel?")
    return layers


def read_mean(path: Path) -> np.ndarray:
    """A `.binaryproto` or `.npy` mean image as (height, width, 3) RGB. Caffe's are (3, height, width) BGR.

    Raises UserError naming the file.
    """
    if path.suffix == ".npy":
        try:
            mean = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{path} cannot be read: {' '.join(str(error).split())[:200]}") from error
    else:
        mean = _array(_parse(path, "BlobProto"), str(path))
    if mean.ndim == 4 and len(mean) == 1:
        mean = mean[0]
    sides = set(mean.shape[1:])
    if mean.ndim != 3 or len(mean) != 3 or len(sides) != 1 or mean.dtype.kind != "f" or not np.isfinite(mean).all():
        raise UserError(f"{path} is no mean image: {mean.shape} where (3, size, size) is due, or values that are not finite")
    return mean[::-1].transpose(1, 2, 0).astype(np.float32)


def blobs_of(layers: list[Layer], table: Architecture, where: str) -> dict[str, Blobs]:
    """The weights of a Caffe network under the names of a table: by name where all names agree, else in order.

    Raises:
        UserError: their number is another, or the file's own account of groups, strides, padding or LRN is not the table's.
    """
    weighted = [layer for layer in layers if layer.blobs]
    order = {spec.name: place for place, spec in enumerate(table.layers)}
    if {layer.name for layer in weighted} == set(order):  # a file with both versions has lost their order
        weighted.sort(key=lambda layer: order[layer.name])
    kinds = ["Convolution" if isinstance(spec, Convolution) else "InnerProduct" for spec in table.layers]
    if [layer.kind for layer in weighted] != kinds:
        found = ", ".join(f"{layer.name} ({layer.kind})" for layer in weighted)
        names = ", ".join(spec.name for spec in table.layers)
        raise UserError(f"{where} has weights in {found}; --architecture={table.name} has {names}")
    _check_norms(layers, table, where)
    blobs = {}
    for spec, layer in zip(table.layers, weighted, strict=True):
        if len(layer.blobs) != 2:
            raise UserError(f"{where}: layer {layer.name!r} has {len(layer.blobs)} blobs; a weight and a bias are due")
        weight, bias = layer.blobs
        if isinstance(spec, Convolution):
            _check_convolution(layer, spec, groups(table, spec), where)
        elif weight.ndim == 4 and weight.shape[:2] == (1, 1):
            weight = weight[0, 0]
        blobs[spec.name] = Blobs(weight, bias.reshape(-1))
    return blobs


def _check_convolution(layer: Layer, spec: Convolution, group: int, where: str) -> None:
    if not layer.message.HasField("convolution_param"):
        return
    said = layer.message.convolution_param
    found = (said.group or 1, *(values[0] if values else default for values, default in ((said.stride, 1), (said.pad, 0))))
    wanted = (group, spec.stride, spec.padding)
    if found != wanted:
        raise UserError(
            f"{where}: layer {layer.name!r} has group, stride, pad {found}, and the table's {spec.name} {wanted}"
        )


def _norms(table: Architecture) -> list[ResponseNorm]:
    return [op for spec in table.layers for op in getattr(spec, "after", ()) if isinstance(op, ResponseNorm)]


def _check_norms(layers: list[Layer], table: Architecture, where: str) -> None:
    """Caffe divides alpha by the size, so the table's alpha is the file's over the size."""
    norms = _norms(table)
    said = [layer for layer in layers if layer.kind == "LRN"]
    if said and len(said) != len(norms):
        raise UserError(f"{where} has {len(said)} LRN layers, and --architecture={table.name} {len(norms)}")
    for layer, norm in zip(said, norms, strict=False):
        told = layer.message.lrn_param
        size, alpha, beta, k = (
            getattr(told, name) if told.HasField(name) else default
            for name, default in (("local_size", 5), ("alpha", 1.0), ("beta", 0.75), ("k", 1.0))
        )
        if (size, told.norm_region) != (norm.size, 0) or not np.allclose(
            (alpha / size, beta, k), (norm.alpha, norm.beta, norm.k), rtol=1e-5
        ):
            raise UserError(
                f"{where}: LRN {layer.name!r} has region {told.norm_region}, size {size}, alpha {alpha:g}, beta {beta:g}, "
                f"k {k:g}, and "
                f"--architecture={table.name} 0, {norm.size}, {norm.alpha * norm.size:g}, {norm.beta:g}, {norm.k:g}"
            )


def pools_before_norm(layers: list[Layer]) -> bool:
    """Whether the file's network is CaffeNet, which pools before it normalises."""
    kinds = [layer.kind for layer in layers if layer.kind in ("LRN", "Pooling")]
    return kinds[:2] == ["Pooling", "LRN"]


def read_npy_dictionary(path: Path, table: Architecture) -> dict[str, Blobs]:
    """Weights from a `.npy` dictionary {layer: [weight, bias]} or {layer: {'weights', 'biases'}}.

    Convolutions as (height, width, inputs, outputs) with dense layers (inputs, outputs) counting (row, column, map), as
    caffe-tensorflow writes them, or all in Caffe's own layout.

    Raises:
        UserError: it is no such dictionary.
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
            turned[name], maps = Blobs(weight.transpose(3, 2, 0, 1), bias), weight.shape[3]
        elif weight.ndim == 2:
            side = round((weight.shape[0] / maps) ** 0.5) if maps else 0
            if side * side * maps == weight.shape[0]:
                weight = weight.reshape(side, side, maps, -1).transpose(2, 0, 1, 3).reshape(weight.shape)
            turned[name], maps = Blobs(weight.T, bias), len(bias)
        else:
            turned[name] = Blobs(weight, bias)
    return turned


def write_caffemodel(blobs: Mapping[str, Blobs], table: Architecture) -> bytes:
    """A `.caffemodel` of version 2 with every layer's parameters, float32 blobs by shape; conv1 reads BGR if `blobs` do.

    Raises:
        UserError: Caffe has no layer for the table's LRN.
    """
    if any(op.across == "maps" for op in _norms(table)) and table.towers > 1:
        raise UserError(
            f"--architecture={table.name}: its LRN stays within a tower, and Caffe's reaches over the edge of its groups: "
            "use --export=torchvision or safetensors"
        )
    net = _MESSAGES["NetParameter"](name=table.name)
    below = "data"
    for number, spec in enumerate(table.layers):
        layer = net.layer.add(name=spec.name, bottom=[below], top=[spec.name])
        weight, bias = blobs[spec.name]
        for array in (weight, bias):
            blob = layer.blobs.add(data=[np.ascontiguousarray(array, "<f4").tobytes()])
            blob.shape.dim.extend(array.shape)
        if isinstance(spec, Convolution):
            layer.type, said = "Convolution", layer.convolution_param
            said.num_output, said.group = spec.width, groups(table, spec)
            said.pad.append(spec.padding)
            said.kernel_size.append(spec.kernel)
            said.stride.append(spec.stride)
        else:
            layer.type, layer.inner_product_param.num_output = "InnerProduct", len(bias)
        below = _add_operations(net, spec, number + 1)
    return net.SerializeToString()


def _add_operations(net: Any, spec: Convolution | Dense | Classifier, number: int) -> str:
    """The layers without weights that follow one with; returns the name of the last output."""
    below = spec.name
    for operation in () if isinstance(spec, Classifier) else spec.after:
        match operation:
            case Relu():
                net.layer.add(name=f"relu{number}", type="ReLU", bottom=[below], top=[below])
            case Dropout():
                layer = net.layer.add(name=f"drop{number}", type="Dropout", bottom=[below], top=[below])
                layer.dropout_param.dropout_ratio = operation.rate
            case MaxPool():
                layer = net.layer.add(name=f"pool{number}", type="Pooling", bottom=[below], top=[f"pool{number}"])
                said = layer.pooling_param
                said.pool, said.kernel_size, said.stride = 0, operation.size, operation.stride
                below = f"pool{number}"
            case ResponseNorm():
                layer = net.layer.add(name=f"norm{number}", type="LRN", bottom=[below], top=[f"norm{number}"])
                said = layer.lrn_param
                said.local_size, said.alpha = operation.size, operation.alpha * operation.size
                said.beta, said.k = operation.beta, operation.k
                said.norm_region = int(operation.across == "space")
                below = f"norm{number}"
    return below
