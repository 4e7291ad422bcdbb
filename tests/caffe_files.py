"""Caffe's files by hand: protobuf's wire format without protobuf, and without the reader under test."""

import struct

import numpy as np

V1_TYPES = {"Convolution": 4, "InnerProduct": 14, "LRN": 15, "Pooling": 17, "ReLU": 18}


def varint(number: int) -> bytes:
    """Seven bits a byte, lowest first."""
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes(out + bytes([number]))


def field(number: int, value: int | float | str | bytes) -> bytes:
    """A varint, a float (fixed32), or a length-delimited field."""
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    raw = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(raw)) + raw


def blob(array: np.ndarray, *, legacy: bool = False, double: bool = False) -> bytes:
    """A BlobProto: num, channels, height, width or a shape; packed floats or doubles, the floats in two runs."""
    if legacy:
        shape = (1,) * (4 - array.ndim) + array.shape
        head = b"".join(field(number, side) for number, side in enumerate(shape, 1))
    else:
        head = field(7, field(1, b"".join(map(varint, array.shape))))
    if double:
        return head + field(8, array.astype("<f8").tobytes())
    raw = array.astype("<f4").tobytes()
    middle = array.size // 2 * 4
    return head + field(5, raw[:middle]) + field(5, raw[middle:])


def layer(name: str, kind: str, blobs: list[bytes], parameters: bytes = b"", *, version: int = 2) -> bytes:
    """One layer of a NetParameter. `parameters` is the field of the layer's kind, with the number of its version."""
    if version == 1:
        content = field(4, name) + field(5, V1_TYPES[kind]) + b"".join(field(6, one) for one in blobs)
        return field(2, content + parameters)
    content = field(1, name) + field(2, kind) + b"".join(field(7, one) for one in blobs)
    return field(100, content + parameters)


def convolution(version: int, group: int, stride: int, pad: int) -> bytes:
    """A ConvolutionParameter."""
    return field({1: 10, 2: 106}[version], field(3, pad) + field(5, group) + field(6, stride))


def norm(version: int, *, size: int = 5, alpha: float = 1e-4, beta: float = 0.75) -> bytes:
    """An LRNParameter; k is left at Caffe's default of 1."""
    return field({1: 18, 2: 118}[version], field(1, size) + field(2, alpha) + field(3, beta))


def parse(message: bytes) -> dict[int, list]:
    """The fields of a message by number; messages inside are left as bytes."""
    fields: dict[int, list] = {}
    place = 0

    def read() -> int:
        nonlocal place
        number = shift = 0
        while True:
            byte = message[place]
            place += 1
            number |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return number

    while place < len(message):
        key = read()
        if key & 7 == 0:
            value = read()
        elif key & 7 == 5:
            value, place = struct.unpack_from("<f", message, place)[0], place + 4
        else:
            assert key & 7 == 2
            length = read()
            value, place = message[place : place + length], place + length
        fields.setdefault(key >> 3, []).append(value)
    return fields


def varints(packed: bytes) -> list[int]:
    """A packed run of varints."""
    numbers, digits = [], []
    for byte in packed:
        digits.append(byte & 127)
        if byte < 128:
            numbers.append(sum(digit << 7 * place for place, digit in enumerate(digits)))
            digits = []
    return numbers


def read_blobs(message: bytes) -> dict[str, list[np.ndarray]]:
    """The blobs of a version 2 file by layer name."""
    found = {}
    for one in map(parse, parse(message)[100]):
        arrays = []
        for blob_fields in map(parse, one.get(7, [])):
            (shape,) = map(parse, blob_fields[7])
            sides = [side for run in shape[1] for side in (varints(run) if isinstance(run, bytes) else [run])]
            arrays.append(np.frombuffer(b"".join(blob_fields[5]), "<f4").reshape(sides))
        if arrays:
            found[one[1][0].decode()] = arrays
    return found
