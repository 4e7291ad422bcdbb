"""The protobuf messages of Caffe's files.

The schema has the fields that weights need, under their numbers in Caffe's caffe.proto. Packed numbers are declared as
bytes: both look the same in a file, and NumPy reads bytes without a Python object for each number.
"""

from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from alexnet_jax.system.errors import UserError

_MOST_BYTES = 2**31 - 1  # of a protobuf message

_Field = descriptor_pb2.FieldDescriptorProto
# name, number, type (in a list: repeated), and the default where it is not zero
_SCHEMA: dict[str, tuple[tuple[Any, ...], ...]] = {
    "BlobShape": (("dim", 1, [_Field.TYPE_INT64]),),
    "BlobProto": (
        ("num", 1, _Field.TYPE_INT32), ("channels", 2, _Field.TYPE_INT32), ("height", 3, _Field.TYPE_INT32),
        ("width", 4, _Field.TYPE_INT32), ("data", 5, [_Field.TYPE_BYTES]), ("shape", 7, "BlobShape"),
        ("double_data", 8, [_Field.TYPE_BYTES]),
    ),
    "ConvolutionParameter": (
        ("num_output", 1, _Field.TYPE_UINT32), ("pad", 3, [_Field.TYPE_UINT32]), ("kernel_size", 4, [_Field.TYPE_UINT32]),
        ("group", 5, _Field.TYPE_UINT32, "1"), ("stride", 6, [_Field.TYPE_UINT32]),
    ),
    "InnerProductParameter": (("num_output", 1, _Field.TYPE_UINT32), ("transpose", 6, _Field.TYPE_BOOL)),
    "LRNParameter": (
        ("local_size", 1, _Field.TYPE_UINT32, "5"), ("alpha", 2, _Field.TYPE_FLOAT, "1"),
        ("beta", 3, _Field.TYPE_FLOAT, "0.75"), ("norm_region", 4, _Field.TYPE_INT32), ("k", 5, _Field.TYPE_FLOAT, "1"),
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


def _messages() -> dict[str, Any]:
    """The message classes of the schema."""
    file = descriptor_pb2.FileDescriptorProto(name="alexnet_jax/caffe.proto", package="alexnet_jax.caffe", syntax="proto2")
    for name, fields in _SCHEMA.items():
        message = file.message_type.add(name=name)
        for field_name, number, kind, *default in fields:
            label = _Field.LABEL_REPEATED if isinstance(kind, list) else _Field.LABEL_OPTIONAL
            (kind,) = kind if isinstance(kind, list) else (kind,)
            field = message.field.add(name=field_name, number=number, label=label, default_value=next(iter(default), None))
            if isinstance(kind, str):
                field.type, field.type_name = _Field.TYPE_MESSAGE, f".alexnet_jax.caffe.{kind}"
            else:
                field.type = kind
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"alexnet_jax.caffe.{name}")) for name in _SCHEMA
    }


MESSAGES = _messages()


def read_message(path: Path, name: str) -> Any:
    """The message in a file. Raises UserError if it cannot be read or is not a whole protobuf message."""
    parsed = MESSAGES[name]()
    try:
        if (size := path.stat().st_size) > _MOST_BYTES or not path.is_file():
            raise UserError(f"{path} is not a protobuf file: it has {size:,} bytes")
        parsed.ParseFromString(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except DecodeError as error:
        raise UserError(f"{path} is truncated or not a Caffe file: protobuf cannot parse it") from error
    return parsed


def blob_array(blob: Any, where: str) -> np.ndarray:
    """The numbers of a BlobProto, float32 or float64, in its newer shape or its legacy 4-d one.

    Raises UserError naming `where` if the shape has room for more or fewer numbers.
    """
    data, dtype = (blob.data, "<f4") if blob.data else (blob.double_data, "<f8")
    raw = b"".join(data)
    legacy = (blob.num, blob.channels, blob.height, blob.width)
    shape = tuple(blob.shape.dim) if blob.HasField("shape") else legacy
    count = int(np.prod([1, *shape], dtype=object))
    if min(shape, default=1) < 0 or count * np.dtype(dtype).itemsize != len(raw):
        raise UserError(f"{where} has {len(raw) // np.dtype(dtype).itemsize:,} values for the shape {shape}")
    return np.frombuffer(raw, dtype).reshape(shape)
