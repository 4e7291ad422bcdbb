"""`--dataset=parquet:GLOB`: Parquet files in the layout of Hugging Face's hub, read a few rows at a time."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from alexnet_jax.data.example import Source
from alexnet_jax.data.shards import find_shards, open_shards
from alexnet_jax.system.errors import UserError

_ROWS_AT_ONCE = 32
_BYTES_AT_ONCE = 1 << 20  # in place of a whole row group, which may have a gigabyte


@dataclass(frozen=True)
class _Table:
    """One Parquet file. `column` is where the bytes of its images are."""

    path: Path
    where: str
    column: str
    labels: Sequence[int | str]

    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.labels).encode()).hexdigest()

    def name(self, row: int) -> str:
        return f"row {row} of {self.path}"

    def images(self, start: int) -> Iterator[bytes]:
        """The image files from row `start` on; b'' where there is none. Raises UserError if the table cannot be read."""
        row = start
        try:
            with _open(self.path) as file:
                if file.metadata.num_rows != len(self.labels):
                    raise OSError("it has changed since it was opened")
                group, first = 0, 0
                while first + (rows := file.metadata.row_group(group).num_rows) <= start:
                    group, first = group + 1, first + rows
                groups = list(range(group, file.num_row_groups))
                for batch in file.iter_batches(_ROWS_AT_ONCE, row_groups=groups, columns=[self.column]):
                    for entry in batch.column(0)[max(start - first, 0) :].to_pylist():
                        yield (entry["bytes"] if isinstance(entry, dict) else entry) or b""
                        row += 1
                    first += len(batch)
        except (pa.ArrowException, OSError) as error:
            line = " ".join(str(error).split())
            raise UserError(f"{self.where}: {self.path} cannot be read from row {row} on: {line}") from error


def _open(path: Path) -> pq.ParquetFile:
    """Opens a file to be read page by page. Pre-buffering would keep every row group that was read, up to the whole file."""
    return pq.ParquetFile(path, buffer_size=_BYTES_AT_ONCE, pre_buffer=False, page_checksum_verification=True)


def open_parquet(dataset: str, split_seed: int) -> Source:
    """Opens Parquet files with a column `image`, bytes or a struct with `bytes`, and a column `label`, numbers or names.

    The names of the classes are those of Hugging Face's ClassLabel in the schema's metadata, if it has one. See `shards` for
    splits. Labels are read at once, images when they are wanted.

    Args:
        dataset: 'parquet:GLOB'.
        split_seed: of the random split where no file names a split.

    Raises:
        UserError: no file matches, one cannot be read or lacks images or labels, two have other class names, or what
            `open_shards` raises.
    """
    where = f"--dataset={dataset}"
    tables: list[_Table] = []
    names: dict[tuple[str, ...] | None, Path] = {}
    for path in find_shards(dataset):
        try:
            with _open(path) as file:
                names.setdefault(_class_names(file.schema_arrow), path)
                tables.append(_Table(path, where, _image_column(file, path, where), _labels(file, path, where)))
        except (pa.ArrowException, OSError) as error:
            line = " ".join(str(error).split())
            raise UserError(f"{where}: {path} is no Parquet file, or was cut short: {line}") from error
    if len(names) > 1:
        one, other = list(names.values())[:2]
        raise UserError(f"{where}: {one} and {other} have other class names: prepare them apart")
    return open_shards(dataset, tables, next(iter(names)), split_seed)


def _column(file: pq.ParquetFile, name: str, path: Path, where: str) -> pa.DataType:
    """The type of a column. Raises UserError if it is missing, or there twice."""
    columns: list[str] = file.schema_arrow.names
    if columns.count(name) != 1:
        raise UserError(f"{where}: {path} needs one column `{name}`: it has {', '.join(columns) or 'none'}")
    return file.schema_arrow.field(name).type


def _image_column(file: pq.ParquetFile, path: Path, where: str) -> str:
    kind = _column(file, "image", path, where)
    column = "image"
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        column, kind = "image.bytes", kind.field("bytes").type
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)):
        wanted = "it must hold image files, as bytes or as a struct with `bytes`"
        raise UserError(f"{where}: {path} has a column `image` of {kind}: {wanted}")
    if _are_all_missing(file, column):
        raise UserError(
            f"{where}: {path} has no bytes in `{column}`, only paths: embed the images, as push_to_hub does, or prepare the "
            "files with folder:PATH"
        )
    return column


def _are_all_missing(file: pq.ParquetFile, column: str) -> bool:
    """Whether the statistics of the file say that every row of a column is null."""
    groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
    chunks = [group.column(number) for group in groups for number in range(group.num_columns)]
    known = [chunk.statistics for chunk in chunks if chunk.path_in_schema == column and chunk.statistics]
    return 0 < file.metadata.num_rows == sum(statistics.null_count or 0 for statistics in known)


def _labels(file: pq.ParquetFile, path: Path, where: str) -> list[Any]:
    kind = _column(file, "label", path, where)
    values = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_integer(values) or pa.types.is_string(values) or pa.types.is_large_string(values)):
        raise UserError(f"{where}: {path} has a column `label` of {kind}: it must hold numbers or names of classes")
    labels: list[Any] = [
        label for batch in file.iter_batches(65_536, columns=["label"]) for label in batch.column(0).to_pylist()
    ]
    if None in labels:
        raise UserError(f"{where}: row {labels.index(None)} of {path} has no label: give it one, or remove the row")
    return labels


def _class_names(schema: pa.Schema) -> tuple[str, ...] | None:
    """The names in a schema that `datasets` wrote; None without such metadata or without names in it."""
    try:
        names = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]["label"]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    return tuple(map(str, names)) if isinstance(names, list) and names else None
