"""Reads `.npy` files that hold a pickled dictionary of arrays, such as `caffe_to_tensorflow` writes, without running them.

A pickle is a program. NumPy's pickles of arrays call only a few names. This reader replaces each of these by a function that
only holds the bytes of an array. It refuses every other name before looking it up.
"""

import io
import math
import pickle
import pickletools
import struct
from pathlib import Path
from typing import IO, Any, Literal, cast

import numpy as np

from alexnet_jax.system.errors import UserError
from alexnet_jax.system.files import NPY_ERRORS, check_input


class _Kind:
    """Replaces numpy.dtype: a type code, and the byte order that the pickle sets later."""

    def __init__(self, code: object, *_: object):
        text = code.decode("latin1") if isinstance(code, bytes) else code
        if not isinstance(text, str) or text not in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "O8"):
            raise pickle.UnpicklingError(f"arrays of {text!r}")
        self.code, self.order = text, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = {"<": "<", ">": ">", b"<": "<", b">": ">"}.get(state[1], "=")


def _array(kind: object, shape: object, data: object, order: Literal["C", "F"]) -> Any:
    """An array of exactly the bytes in `data`. Of object arrays only the file's dictionary is read."""
    if not isinstance(kind, _Kind):
        raise pickle.UnpicklingError("an array without a type")
    if not isinstance(shape, tuple) or not all(isinstance(side, int) and side >= 0 for side in shape):
        raise pickle.UnpicklingError("an array without a shape")
    if kind.code == "O8":
        if not isinstance(data, list) or len(data) != 1:
            raise pickle.UnpicklingError("arrays of objects")
        return data[0]
    if isinstance(data, str):
        data = data.encode("latin1")
    if not isinstance(data, bytes | bytearray):
        raise pickle.UnpicklingError("an array without data")
    flat = np.frombuffer(data, np.dtype(kind.order + kind.code))
    if flat.size != math.prod(shape):
        raise pickle.UnpicklingError(f"an array of shape {shape} with {flat.size} values")
    return flat.reshape(shape, order=order)


class _Pending:
    """Replaces an array whose bytes come later in the pickle."""

    def __init__(self, *_: object):
        self.value: Any = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, fortran, data = state
        self.value = _array(kind, shape, data, "F" if fortran else "C")


def _from_buffer(data: object, kind: object, shape: object, order: object) -> Any:
    return _array(kind, shape, data, "F" if order == "F" else "C")


def _encode(text: object, *_: object) -> bytes:
    if not isinstance(text, str):
        raise pickle.UnpicklingError("bytes without a text")
    return text.encode("latin1")


# What Python's unpickler raises on broken files, found by breaking files at random.
BROKEN = (
    pickle.UnpicklingError, ValueError, TypeError, AttributeError, LookupError, EOFError, OverflowError, MemoryError,
    RecursionError, struct.error,
)  # fmt: skip

_NAMES: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): _Kind,
    ("numpy", "ndarray"): None,  # a pickle only passes it to other calls
    ("_codecs", "encode"): _encode,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _Pending for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
}


class _Arrays(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        try:
            return _NAMES[module_name, global_name]
        except KeyError:
            raise pickle.UnpicklingError(f"it calls {module_name}.{global_name}") from None


def read_arrays(file: io.BufferedIOBase, where: str) -> Any:
    """The content of a pickle of dictionaries, lists and NumPy arrays. The memory used is about the size of the file.

    Raises UserError naming `where` if it holds or calls anything else, or is damaged. No name in it is imported or run.
    """
    try:
        _check_memory(file)
        return _finished(_Arrays(file, encoding="latin1").load(), {})
    except BROKEN as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{where} is no pickle of plain arrays: {reason[:200]}") from error


def _check_memory(file: io.BufferedIOBase) -> None:
    """Reads the steps of a pickle without running them, and restores the position in the file.

    Raises UnpicklingError, or ValueError for a damaged file, if loading it would take far more memory than its size: a
    length beyond the end of the file, a far place in the unpickler's memo, or a text that is copied many times.
    """
    start = file.tell()
    size = file.seek(0, io.SEEK_END)
    file.seek(start)
    lengths: dict[Any, int] = {}  # of the texts in the memo
    last = copied = 0
    for number, (step, value, _) in enumerate(pickletools.genops(cast(IO[bytes], file))):
        if step.name == "MEMOIZE" or step.name.endswith("PUT"):
            place = len(lengths) if value is None else value
            lengths[place] = last
            if place > number:
                raise pickle.UnpicklingError(f"place {place} of the memo after {number} steps")
        elif step.name.endswith("GET"):
            copied += lengths.get(value, 0)
            if copied > size:
                raise pickle.UnpicklingError("the same text many times")
        elif step.name == "DUP":  # no pickler writes it
            raise pickle.UnpicklingError("a step that doubles the one before")
        last = len(value) if isinstance(value, str | bytes) and step.name != "GLOBAL" else 0
    file.seek(start)


def _finished(node: Any, known: dict[int, Any]) -> Any:
    """Puts in the pending arrays. `known`: finished parts by identity, so that a shared part stays one object."""
    if id(node) in known:
        return known[id(node)]
    if isinstance(node, _Pending):
        done = _finished(node.value, known)
    elif isinstance(node, dict):
        done = {key: _finished(value, known) for key, value in node.items()}
    elif isinstance(node, list | tuple):
        done = [_finished(value, known) for value in node]
    else:
        done = node
    known[id(node)] = done
    return done


def read_dictionary(path: Path) -> dict[Any, Any]:
    """The dictionary that `numpy.save` wrote to a `.npy` file. Raises UserError naming the file."""
    check_input(str(path), path)
    try:
        with path.open("rb") as file:
            form = np.lib.format
            read = form.read_array_header_1_0 if form.read_magic(file) == (1, 0) else form.read_array_header_2_0
            _, _, dtype = read(file)
            if dtype.kind != "O":
                raise ValueError(f"it holds one array of {dtype}")
            content = read_arrays(file, str(path))
    except NPY_ERRORS as error:
        raise UserError(f"{path} is not a dictionary of arrays: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a dictionary of arrays: it holds a {type(content).__name__}")
    return content
