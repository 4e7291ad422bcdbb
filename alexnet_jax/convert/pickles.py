"""`.npy` files that hold a pickled dictionary of arrays, as `caffe_to_tensorflow` and many course pages hand them out.

A pickle is a program. This reader knows the few names that NumPy's own pickles of arrays call, and stands in for each with a
function of its own that can do nothing but hold the bytes of an array; every other name is refused before it is looked up.
"""

import io
import pickle
import pickletools
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from alexnet_jax.system.errors import UserError


class _Kind:
    """Stands in for numpy.dtype: a type code, and the byte order that the pickle adds to it."""

    def __init__(self, code: object, *_: object):
        text = code.decode("latin1") if isinstance(code, bytes) else code
        if not isinstance(text, str) or text not in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "O8"):
            raise pickle.UnpicklingError(f"arrays of {text!r}")
        self._code, self._order = text, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order = state[1]
        self._order = {"<": "<", ">": ">", b"<": "<", b">": ">"}.get(order, "=")

    def array(self, data: object, shape: object, fortran: object) -> Any:
        """An array of `shape` from exactly as many bytes; of objects only the one dictionary that a file holds."""
        if not isinstance(shape, tuple) or not all(isinstance(side, int) and side >= 0 for side in shape):
            raise pickle.UnpicklingError("an array without a shape")
        if self._code == "O8":
            if not isinstance(data, list) or len(data) != 1:
                raise pickle.UnpicklingError("arrays of objects")
            return data[0]
        if isinstance(data, str):
            data = data.encode("latin1")
        if not isinstance(data, bytes | bytearray):
            raise pickle.UnpicklingError("an array without data")
        flat = np.frombuffer(data, np.dtype(self._order + self._code))
        if flat.size != int(np.prod([1, *shape], dtype=object)):
            raise pickle.UnpicklingError(f"an array of shape {shape} with {flat.size} values")
        return flat.reshape(shape, order="F" if fortran else "C")


class _Pending:
    """Stands in for an array that a pickle has begun and whose bytes come later."""

    def __init__(self) -> None:
        self.value: Any = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, fortran, data = state
        if not isinstance(kind, _Kind):
            raise pickle.UnpicklingError("an array without a type")
        self.value = kind.array(data, shape, fortran)


class _Marker:
    """Stands in for numpy.ndarray, which a pickle only hands on."""


def _begin(*_: object) -> _Pending:
    return _Pending()


def _from_buffer(data: object, kind: object, shape: object, order: object) -> Any:
    if not isinstance(kind, _Kind):
        raise pickle.UnpicklingError("an array without a type")
    return kind.array(data, shape, order == "F")


def _encode(text: object, *_: object) -> bytes:
    if not isinstance(text, str):
        raise pickle.UnpicklingError("bytes without a text")
    return text.encode("latin1")


_NAMES: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): _Kind,
    ("numpy", "ndarray"): _Marker,
    ("_codecs", "encode"): _encode,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _begin for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
}


class _Arrays(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        try:
            return _NAMES[module_name, global_name]
        except KeyError:
            raise pickle.UnpicklingError(f"it calls {module_name}.{global_name}") from None


def read_arrays(file: io.BufferedIOBase, where: str) -> Any:
    """What a pickle of dictionaries, lists and NumPy arrays holds, in memory of the order of the file's own size.

    Args:
        file: at the beginning of the pickle.
        where: the file's name, for the message.

    Raises:
        UserError: it holds or calls anything else, or is damaged. Nothing that it names is imported or run.
    """
    try:
        _check_memory(file)
        return _finished(_Arrays(file, encoding="latin1").load(), {})
    except Exception as error:  # a broken pickle raises whatever it leads the reader to
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{where} is no pickle of plain arrays: {reason[:200]}") from error


def _check_memory(file: io.BufferedIOBase) -> None:
    """Goes through the steps of a pickle without taking any, and leaves the file where it was.

    Raises UnpicklingError, or ValueError for a damaged file, on what would need far more memory than the file is long: a
    length that the file does not have, a far place in the unpickler's memo, or a text that is copied again and again.
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
                raise pickle.UnpicklingError("the same text again and again")
        elif step.name == "DUP":  # which no pickler writes
            raise pickle.UnpicklingError("a step that doubles what came before")
        last = len(value) if isinstance(value, str | bytes) and step.name != "GLOBAL" else 0
    file.seek(start)


def _finished(node: Any, known: dict[int, Any]) -> Any:
    """`known`: what was finished, by identity, so that a part that stands in many places stays one."""
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
    """The dictionary of a `.npy` file that `numpy.save` made of one. Raises UserError naming the file."""
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            _, _, dtype = read(file)
            if dtype.kind != "O":
                raise ValueError(f"it holds one array of {dtype}")
            content = read_arrays(file, str(path))
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} is no dictionary of arrays: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is no dictionary of arrays: it holds a {type(content).__name__}")
    return content
