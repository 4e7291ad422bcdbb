"""The protobuf messages of Caffe's files.

The schema has the fields that weights need, as Caffe's caffe.proto declares them; all are optional. Packed numbers are
declared as bytes: both look the same in a file, and NumPy reads bytes without a Python object for each number.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from alexnet_jax.system.errors import UserError
from alexnet_jax.system.files import check_input
from alexnet_jax.system.protobuf import message_classes

_MOST_BYTES = 2**31 - 1  # of a protobuf message
_SCHEMA = {
    "BlobShape": "repeated int64 dim = 1",
    "BlobProto": "int32 num = 1; int32 channels = 2; int32 height = 3; int32 width = 4; repeated bytes data = 5; "
    "BlobShape shape = 7; repeated bytes double_data = 8",
    "ConvolutionParameter": "uint32 num_output = 1; repeated uint32 pad = 3; repeated uint32 kernel_size = 4; "
    "uint32 group = 5 [default = 1]; repeated uint32 stride = 6",
    "InnerProductParameter": "uint32 num_output = 1; bool transpose = 6",
    "LRNParameter": "uint32 local_size = 1 [default = 5]; float alpha = 2 [default = 1]; float beta = 3 [default = 0.75]; "
    "int32 norm_region = 4; float k = 5 [default = 1]",
    "PoolingParameter": "int32 pool = 1; uint32 kernel_size = 2; uint32 stride = 3",
    "DropoutParameter": "float dropout_ratio = 1",
    "V1LayerParameter": "repeated string bottom = 2; repeated string top = 3; string name = 4; int32 type = 5; "
    "repeated BlobProto blobs = 6; ConvolutionParameter convolution_param = 10; "
    "InnerProductParameter inner_product_param = 17; LRNParameter lrn_param = 18",
    "LayerParameter": "string name = 1; string type = 2; repeated string bottom = 3; repeated string top = 4; "
    "repeated BlobProto blobs = 7; ConvolutionParameter convolution_param = 106; DropoutParameter dropout_param = 108; "
    "InnerProductParameter inner_product_param = 117; LRNParameter lrn_param = 118; PoolingParameter pooling_param = 121",
    "NetParameter": "string name = 1; repeated V1LayerParameter layers = 2; repeated LayerParameter layer = 100",
}


MESSAGES = message_classes("alexnet_jax.caffe", _SCHEMA)


def read_message(path: Path, name: str) -> Any:
    """The message in a file. Raises UserError if it cannot be read or is not a whole protobuf message."""
    parsed = MESSAGES[name]()
    check_input(str(path), path)
    try:
        if (size := path.stat().st_size) > _MOST_BYTES:
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
    data, dtype = (blob.data, np.dtype("<f4")) if blob.data else (blob.double_data, np.dtype("<f8"))
    raw = b"".join(data)
    shape = (blob.num, blob.channels, blob.height, blob.width)
    if blob.HasField("shape"):
        shape = tuple(blob.shape.dim)
    if min(shape, default=1) < 0 or math.prod(shape) * dtype.itemsize != len(raw):
        raise UserError(f"{where} has {len(raw) // dtype.itemsize:,} values for the shape {shape}")
    return np.frombuffer(raw, dtype).reshape(shape)
