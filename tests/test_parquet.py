"""`parquet:GLOB`: the columns of Hugging Face's hub in the types that occur, and files that have no images or labels."""

import itertools
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from shard_files import hub_metadata, write_parquet

from alexnet_jax.data.parquet import open_parquet
from alexnet_jax.system.errors import UserError

IMAGES = [b"first", b"second", b"third"]


def write(path, **columns):
    pq.write_table(pa.table(columns), path)
    return f"parquet:{path}"


def error_of(dataset):
    """The one line that the user sees, without the flag."""
    with pytest.raises(UserError) as caught:
        open_parquet(dataset, 0)
    line = str(caught.value)
    assert line.startswith(f"--dataset={dataset}")
    assert "\n" not in line
    return line.removeprefix(f"--dataset={dataset}").removeprefix(": ")


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()], ids=str)
@pytest.mark.parametrize("struct", [False, True])
def test_images_are_bytes_alone_or_in_a_struct(tmp_path, kind, struct):
    images = pa.array(IMAGES, kind)
    if struct:
        images = pa.StructArray.from_arrays([pa.array(["a.jpg"] * 3), images], ["path", "bytes"])
    name = write(tmp_path / "train.parquet", image=images, label=[0, 1, 0])
    assert [example.image for example in open_parquet(name, 0).splits["train"].read(0)] == IMAGES


@pytest.mark.parametrize("kind", [pa.int8(), pa.uint16(), pa.int64()], ids=str)
def test_labels_are_numbers_of_any_width(tmp_path, kind):
    name = write(tmp_path / "train.parquet", image=IMAGES, label=pa.array([0, 1, 0], kind), other=["x"] * 3)
    source = open_parquet(name, 0)
    assert [example.label for example in source.splits["train"].read(0)] == [0, 1, 0]
    assert source.classes == ("0", "1")


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())], ids=str)
def test_labels_are_names(tmp_path, kind):
    name = write(tmp_path / "train.parquet", image=IMAGES, label=pa.array(["b", "a", "b"]).cast(kind))
    source = open_parquet(name, 0)
    assert source.classes == ("a", "b")
    assert [example.label for example in source.splits["train"].read(0)] == [1, 0, 1]


@pytest.mark.parametrize(
    ("metadata", "classes"),
    [
        (hub_metadata(["tench, Tinca tinca", "goldfish"]), ("tench, Tinca tinca", "goldfish")),
        ({b"huggingface": b'{"info": {"features": {"label": {"_type": "Value"}}}}'}, ("0", "1")),
        ({b"huggingface": b'{"info": {"features": []}}'}, ("0", "1")),
        ({b"huggingface": b"{"}, ("0", "1")),
        ({b"pandas": b"{}"}, ("0", "1")),
        (None, ("0", "1")),
    ],
)
def test_class_names_are_in_the_metadata_of_the_schema(tmp_path, metadata, classes):
    table = pa.table({"image": IMAGES, "label": [0, 1, 0]}).replace_schema_metadata(metadata)
    pq.write_table(table, tmp_path / "train.parquet")
    assert open_parquet(f"parquet:{tmp_path}/train.parquet", 0).classes == classes


def test_a_missing_image_has_no_bytes(tmp_path):
    """Then the writer stops at it, or skips it."""
    write_parquet(tmp_path / "train.parquet", [b"first", None, b"third"], [0, 1, 0])
    examples = open_parquet(f"parquet:{tmp_path}/train.parquet", 0).splits["train"]
    assert [example.image for example in examples.read(0)] == [b"first", b"", b"third"]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"label": [0]}, "needs one column `image`: it has label"),
        ({"img": [b"x"], "label": [0]}, "needs one column `image`: it has img, label"),
        ({"image": [b"x"], "fine_label": [0]}, "needs one column `label`: it has image, fine_label"),
        ({}, "needs one column `image`: it has none"),
        ({"image": ["a.jpg"], "label": [0]}, "has a column `image` of string: it must hold image files"),
        ({"image": [{"path": "a.jpg"}], "label": [0]}, "has a column `image` of struct<path: string>: it must"),
        ({"image": [{"bytes": 3}], "label": [0]}, "has a column `image` of int64: it must hold image files"),
        ({"image": [[b"x"]], "label": [0]}, "of list<element: binary>: it must"),
        ({"image": [b"x"], "label": [0.5]}, "has a column `label` of double: it must hold numbers or names"),
        ({"image": [b"x"], "label": [True]}, "has a column `label` of bool"),
        ({"image": [b"x"], "label": [[1]]}, "has a column `label` of list<element: int64>"),
        ({"image": [b"x", b"y"], "label": [0, None]}, "row 1 of {path} has no label: give it one"),
        ({"image": pa.array([{"bytes": None, "path": "a.jpg"}], pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
          "label": [0]}, "has no bytes in `image.bytes`, only paths: embed the images"),
    ],
)  # fmt: skip
def test_a_table_without_images_or_labels_is_one_line(tmp_path, columns, said):
    path = tmp_path / "train.parquet"
    line = error_of(write(path, **columns))
    assert str(path) in line
    assert said.format(path=path) in line


def test_shards_with_other_class_names_are_one_line(tmp_path):
    write_parquet(tmp_path / "train-0.parquet", [b"x"], [0], ("a", "b"))
    write_parquet(tmp_path / "train-1.parquet", [b"x"], [0], ("b", "a"))
    line = error_of(f"parquet:{tmp_path}/*")
    assert f"{tmp_path}/train-0.parquet and {tmp_path}/train-1.parquet have other class names" in line


@pytest.mark.parametrize("kept", [0, 3, 0.5, -1])
def test_a_shard_that_was_cut_short_is_one_line(tmp_path, kept):
    path = tmp_path / "train.parquet"
    write_parquet(path, IMAGES, [0, 1, 0])
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if 0 < kept < 1 else kept])
    assert f"{path} is no Parquet file, or was cut short: " in error_of(f"parquet:{path}")


def test_pages_that_are_damaged_are_one_line_when_they_are_read(tmp_path):
    path = tmp_path / "train.parquet"
    table = pa.table({"image": [os.urandom(1000) for _ in range(64)], "label": [0] * 64})
    pq.write_table(table, path, row_group_size=32, compression="none", use_dictionary=False, write_page_checksum=True)
    content = bytearray(path.read_bytes())
    content[50_000] ^= 1  # in the second group
    path.write_bytes(content)
    examples = open_parquet(f"parquet:{path}", 0).splits["train"]
    assert len(list(itertools.islice(examples.read(0), 32))) == 32
    with pytest.raises(UserError, match=rf"^--dataset=parquet:{path}: {path} cannot be read from row 32 on: [^\n]*CRC"):
        list(examples.read(0))


def test_reading_holds_a_few_images_whatever_the_size_of_the_file(tmp_path):
    """Memory of Arrow, from which every image is copied."""
    images = [os.urandom(50_000) for _ in range(400)]
    write_parquet(tmp_path / "train.parquet", images, [0] * 400, rows_per_group=20)
    examples = open_parquet(f"parquet:{tmp_path}/train.parquet", 0).splits["train"]
    before, most, count = pa.total_allocated_bytes(), 0, 0
    for example in examples.read(0):
        assert example.image == images[count]
        count, most = count + 1, max(most, pa.total_allocated_bytes() - before)
    assert count == 400
    assert most < 6e6  # of 20e6


def test_a_shard_that_is_replaced_while_it_is_in_use_is_one_line(tmp_path):
    path = tmp_path / "train.parquet"
    write_parquet(path, IMAGES, [0, 1, 0])
    examples = open_parquet(f"parquet:{path}", 0).splits["train"]
    write_parquet(path, IMAGES[:2], [0, 1])
    with pytest.raises(UserError, match="has changed since it was opened"):
        list(examples.read(0))


@pytest.mark.parametrize(
    ("glob", "said"),
    [
        ("", "matches no file"),
        ("{place}/*.parquet", "matches no file"),
        ("{place}/train-{{0..3}}.parquet", "matches no file: braces are not expanded: write * in their place"),
        ("~nobody-of-this-name/*", "matches no file"),
        ("{place}/" + "a" * 300, "matches no file"),
        ("{place}", "matches the folder {place}: name its files, as in {place}/*"),
        ("{place}/fi*", "{place}/fifo cannot be read: it is not a regular file"),
        ("{place}/dangling", "{place}/dangling cannot be read: No such file"),
    ],
)
def test_a_glob_that_names_no_files_is_one_line(tmp_path, glob, said):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "dangling").symlink_to("nowhere")
    line = error_of(f"parquet:{glob.format(place=tmp_path)}")
    assert said.format(place=tmp_path) in line


def test_a_file_whose_name_looks_like_a_glob_is_taken(tmp_path):
    write_parquet(tmp_path / "[x]*.parquet", IMAGES, [0, 1, 0])
    assert len(open_parquet(f"parquet:{tmp_path}/[x]*.parquet", 0).splits["train"]) == 3
