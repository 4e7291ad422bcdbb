"""An .npy file that grows row by row and can be continued after a crash."""

import os
from pathlib import Path

import numpy as np


class NpyWriter:
    """Appends rows to an .npy file. The end of the `with` block writes their number into the header.

    It writes plainly and not through a memory map, so a full disk is an OSError and not a SIGBUS.
    """

    def __init__(self, path: Path, dtype: type, row_shape: tuple[int, ...], expected_rows: int, *, rows: int = 0) -> None:
        """Begins a file, or keeps the first `rows` rows of a file begun with the same arguments.

        Raises EOFError if the file has fewer rows.
        """
        self.rows = rows
        self._dtype, self._row_shape = np.dtype(dtype), row_shape
        self._file = path.open("r+b" if rows else "wb")
        self._header_bytes = self._write_header(expected_rows)
        end = self._header_bytes + rows * self._dtype.itemsize * int(np.prod(row_shape))
        if self._file.seek(0, os.SEEK_END) < end:
            self._file.close()
            raise EOFError(f"{path} is shorter than {rows} rows")
        self._file.truncate(end)
        self._file.seek(end)

    def append(self, rows: np.ndarray) -> None:
        """Adds rows at the end. Raises ValueError if their shape or dtype is not the one given at the start."""
        if rows.dtype != self._dtype or rows.shape[1:] != self._row_shape:
            raise ValueError(f"{rows.dtype} {rows.shape[1:]} rows for a file of {self._dtype} {self._row_shape}")
        self._file.write(np.ascontiguousarray(rows).data)
        self.rows += len(rows)

    def sync(self) -> None:
        """Brings all rows so far to the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def _write_header(self, rows: int) -> int:
        header = {"descr": self._dtype.str, "fortran_order": False, "shape": (rows, *self._row_shape)}
        self._file.seek(0)
        np.lib.format.write_array_header_1_0(self._file, header)
        return self._file.tell()

    def __enter__(self) -> "NpyWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._file:
            # NumPy leaves room in the header for a longer first dimension.
            if kind is None and self._write_header(self.rows) != self._header_bytes:
                raise ValueError(f"the header of {self._file.name} has outgrown its place")
            self.sync()
