"""Parquet and tar beside folders and TFDS: equal prepared sets; splits, labels, resuming, and what is refused."""

import io
import json

import networks
import numpy as np
import pytest
import tensorflow_datasets as tfds
from pictures import SIZE, broken
from shard_files import photograph, samples, write_parquet, write_tar
from test_sources import write_tfds

import alexnet_jax.data.shards
import alexnet_jax.data.writer
from alexnet_jax.data.prepare import prepare
from alexnet_jax.data.sources import open_source
from alexnet_jax.data.store import open_store
from alexnet_jax.system.errors import UserError

NAMES = ("a", "b", "c")


def contents(path):
    """The files of a prepared set, and its meta.json without what names the source."""
    files = {file.name: file.read_bytes() for file in path.iterdir() if file.name != "meta.json"}
    meta = json.loads((path / "meta.json").read_text())
    return files, {field: value for field, value in meta.items() if field not in ("name", "source")}


def write_folder(root, splits):
    for split, rows in splits.items():
        for number, (image, label) in enumerate(rows):
            file = root / split / NAMES[label] / f"{number:04}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(image)
    return f"folder:{root}"


def write_everywhere(place, splits):
    """The same photographs as a folder, a TFDS set, Parquet files and tars: of each split two shards, sorted by class."""
    features = {"image": tfds.features.Image(shape=(None, None, 3)), "label": tfds.features.ClassLabel(names=list(NAMES))}
    examples = {
        split: [{"image": io.BytesIO(image), "label": label} for image, label in rows] for split, rows in splits.items()
    }
    write_tfds(place / "tfds", "photos", features, examples, shuffled=False)
    for split, rows in splits.items():
        half = len(rows) // 2
        for shard, part in enumerate((rows[:half], rows[half:])):
            images, labels = zip(*part, strict=True)
            write_parquet(place / f"hub/{split}-0000{shard}-of-00002.parquet", images, labels, NAMES)
            write_tar(place / f"wds/{split}-00000{shard}.tar", samples(images, [NAMES[label] for label in labels]))
    return {
        "folder": write_folder(place / "photos", splits),
        "tfds": "photos",
        "parquet": f"parquet:{place}/hub/*.parquet",
        "tar": f"tar:{place}/wds/*.tar",
    }


def some_rows(count, seed):
    """(image, label), sorted by label as folders are."""
    return sorted(((photograph(seed + number), number % 3) for number in range(count)), key=lambda row: row[1])


def assert_equal_sets(place, splits, size):
    found = {}
    for kind, dataset in write_everywhere(place, splits).items():
        path = prepare(dataset, place / "data", tfds_dir=str(place / "tfds"), image_size=size)
        assert json.loads((path / "meta.json").read_text())["name"] == dataset
        found[kind] = contents(path)
    assert found["folder"][1]["counts"] == {split: len(rows) for split, rows in splits.items()}
    for kind in ("tfds", "parquet", "tar"):
        assert found[kind] == found["folder"], kind


def test_the_same_photographs_from_any_source_are_the_same_prepared_set(tmp_path):
    splits = {"train": some_rows(11, 0), "validation": some_rows(4, 20), "test": some_rows(3, 30)}
    assert_equal_sets(tmp_path, splits, SIZE)


@pytest.mark.slow
def test_the_661_test_photographs_from_any_source_are_the_same_prepared_set(tmp_path):
    rows = [(example.image, example.label % 3) for example in open_source("groceries", None).splits["test"].read(0)]
    rows.sort(key=lambda row: row[1])
    assert_equal_sets(tmp_path, {"train": rows}, 64)


@pytest.mark.parametrize("seed", [0, 1])
def test_without_splits_every_source_holds_out_the_same_tenth(tmp_path, seed):
    rows = some_rows(43, 0)
    images, labels = zip(*rows, strict=True)
    folder = write_folder(tmp_path / "photos", {"": rows})
    write_parquet(tmp_path / "all.parquet", images, labels, NAMES)
    write_tar(tmp_path / "all.tar", samples(images, [NAMES[label] for label in labels]))
    sets = [
        contents(prepare(name, tmp_path / "data", image_size=SIZE, split_seed=seed))
        for name in (folder, f"parquet:{tmp_path}/all.parquet", f"tar:{tmp_path}/all.tar")
    ]
    assert sets[0][1]["counts"] == {"train": 37, "validation": 3, "test": 3}
    assert sets[0] == sets[1] == sets[2]


def two_shards(place, kind, split="train-", images=None):
    """Seven photographs in one file and six in another, in groups of four rows. The labels are 0, 1, 0 ..."""
    images = images or [photograph(number) for number in range(13)]
    labels = [number % 2 for number in range(13)]
    for shard, rows in enumerate((slice(7), slice(7, None))):
        if kind == "parquet":
            write_parquet(place / f"{split}{shard}.parquet", images[rows], labels[rows])
        else:
            write_tar(place / f"{split}{shard}.tar", samples(images[rows], labels[rows], "cls"))
    return f"{kind}:{place}/*.{kind}", images, labels


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_reading_begins_at_any_example(tmp_path, kind):
    name, images, labels = two_shards(tmp_path, kind)
    examples = open_source(name, None).splits["train"]
    for start in range(len(images) + 1):
        assert [(image, label) for image, label, _ in examples.read(start)] == list(
            zip(images[start:], labels[start:], strict=True)
        )
    names = [example.name for example in examples.read(0)]
    assert len(set(names)) == 13
    last = {"parquet": f"row 5 of {tmp_path}/train-1.parquet", "tar": f"005.jpg of {tmp_path}/train-1.tar"}
    assert names[-1] == last[kind]


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_reading_a_random_split_begins_at_any_example(tmp_path, kind):
    name, images, _ = two_shards(tmp_path, kind, split="part-")
    splits = open_source(name, None).splits
    whole = {split: [example.image for example in examples.read(0)] for split, examples in splits.items()}
    assert sorted(image for found in whole.values() for image in found) == sorted(images)
    for split, examples in splits.items():
        for start in range(len(examples) + 1):
            assert [example.image for example in examples.read(start)] == whole[split][start:]


@pytest.mark.parametrize("kind", ["parquet", "tar"])
@pytest.mark.parametrize("split", ["train-", "part-"])
def test_a_run_that_ended_at_a_corrupt_image_resumes_there_and_skips_it(tmp_path, monkeypatch, kind, split):
    monkeypatch.setattr(alexnet_jax.data.writer, "BLOCK_BYTES", 3 * SIZE * SIZE * 3)
    images = [photograph(number) for number in range(12)] + [broken("jpeg")]
    name, *_ = two_shards(tmp_path, kind, split, images)
    with pytest.raises(
        UserError, match=r"^image \d+ of split \w+, (row 5|005\.jpg) of \S+1\.\w+, cannot be decoded [^\n]*skip"
    ):
        prepare(name, tmp_path / "data", image_size=SIZE)
    starts, reader = [], alexnet_jax.data.shards._Split.read
    monkeypatch.setattr(
        alexnet_jax.data.shards._Split, "read", lambda of, start: (starts.append(start), reader(of, start))[1]
    )
    path = prepare(name, tmp_path / "data", image_size=SIZE, on_error="skip")
    assert starts[0] >= 9
    assert contents(path) == contents(prepare(name, tmp_path / "at once", image_size=SIZE, on_error="skip"))
    (skipped,) = json.loads((path / "meta.json").read_text())["skipped"]
    assert skipped["name"].endswith(f"{split}1.{kind}")
    assert sum(len(found) for found in open_store(path).splits.values()) == 12


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_a_set_whose_files_have_changed_since_is_an_error_and_the_old_one_stays(tmp_path, kind):
    name, images, _ = two_shards(tmp_path / "shards", kind)
    path = prepare(name, tmp_path / "data", image_size=SIZE)
    before = contents(path)
    assert prepare(name, tmp_path / "data", image_size=SIZE) == path
    two_shards(tmp_path / "shards", kind, images=[*images[:12], photograph(99) + b"\0"])
    with pytest.raises(
        UserError, match=r"was prepared from 13 examples in 2 \w+ files of folder shards .* but the source is now"
    ):
        prepare(name, tmp_path / "data", image_size=SIZE)
    for file in (tmp_path / "shards").iterdir():
        file.unlink()
    assert prepare(name, tmp_path / "data", image_size=SIZE) == path
    assert contents(path) == before


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_other_labels_in_a_file_of_the_same_size_have_another_description(tmp_path, kind):
    found = set()
    for labels in ([0, 1], [1, 0]):
        if kind == "parquet":
            write_parquet(tmp_path / "train.parquet", [b"1", b"2"], labels)
        else:
            write_tar(tmp_path / "train.tar", samples([b"1", b"2"], labels, "cls"))
        (file,) = tmp_path.iterdir()
        found.add((file.stat().st_size, open_source(f"{kind}:{file}", None).description))
    assert len({size for size, _ in found}) == 1
    assert len({description for _, description in found}) == 2


@pytest.mark.parametrize(
    ("files", "counts"),
    [
        (
            ("train-00000-of-00001", "validation-00000-of-00001", "test-00000-of-00001"),
            {"train": 2, "validation": 2, "test": 2},
        ),
        (("imagenet_Train_0", "imagenet_VAL_0"), {"train": 2, "validation": 2}),
        (("train/0000", "valid/0000", "train/0001"), {"train": 4, "validation": 2}),
        (("default/train/0", "default/test/0"), {"train": 2, "test": 2}),
        (("train-0", "test/train-1"), {"train": 4}),
        (("pretrained-0", "contest-1"), {"train": 4}),
    ],
)
def test_the_names_of_files_and_their_folders_say_the_split(tmp_path, files, counts):
    for number, file in enumerate(files):
        write_parquet(tmp_path / f"shards/{file}.parquet", [bytes([number])] * 2, [0, 1])
    source = open_source(f"parquet:{tmp_path}/shards/**/*.parquet", None)
    assert {split: len(examples) for split, examples in source.splits.items()} == counts
    assert ("their own splits" in source.description) == any("rain" in file and "pre" not in file for file in files)


def test_shards_are_read_in_the_order_of_their_names(tmp_path):
    for number in (2, 0, 1):
        write_parquet(tmp_path / f"train-{number}.parquet", [bytes([number])], [0])
    source = open_source(f"parquet:{tmp_path}/*", None)
    assert [example.image for example in source.splits["train"].read(0)] == [b"\0", b"\1", b"\2"]


def test_a_split_without_published_labels_is_left_out(tmp_path):
    """As of ImageNet's test images on the hub."""
    write_parquet(tmp_path / "train-0.parquet", [b"1"], [0])
    write_parquet(tmp_path / "test-0.parquet", [b"1", b"2"], [-1, -1])
    assert list(open_source(f"parquet:{tmp_path}/*", None).splits) == ["train"]


@pytest.mark.parametrize(
    ("shards", "said"),
    [
        ({"train-0": [0, 2]}, r"row 1 of \S+train-0\.parquet has label 2: there are 2 classes, from 0 to 1"),
        ({"train-0": [0, -1]}, r"row 1 of \S+ has label -1: there are 2 classes"),
        ({"train-0": [0], "test-0": [10**12]}, r"row 0 of \S+test-0\.parquet has label 1000000000000"),
        ({"train-0": ["a", "x"]}, r"row 1 of \S+ has label 'x': there is no class of this name"),
        ({"train-0": [0], "other": [1]}, r"\S+other\.parquet names no split, and \S+train-0\.parquet does"),
        ({"train-test-0": [0]}, r"\S+train-test-0\.parquet has both train and test in its name: rename it"),
        ({"test-0": [0]}, "has no labelled examples to train on"),
        ({"train-0": []}, "has no labelled examples to train on"),
        ({"train-0": [-1, -1], "test-0": [0]}, "has no labelled examples to train on"),
    ],
)
def test_a_label_or_a_split_that_does_not_fit_is_one_line(tmp_path, shards, said):
    for name, labels in shards.items():
        write_parquet(tmp_path / f"{name}.parquet", [b"image"] * len(labels), labels or np.zeros(0, int))
    with pytest.raises(UserError, match=rf"^--dataset=parquet:\S+: [^\n]*{said}|^--dataset=parquet:\S+ [^\n]*{said}"):
        open_source(f"parquet:{tmp_path}/*", None)


@pytest.mark.parametrize(
    ("shards", "classes", "numbers"),
    [
        ({"train-0": [0, 2]}, ("0", "1", "2"), [0, 2]),
        ({"train-0": [0, 1], "val-0": [3]}, ("0", "1", "2", "3"), [0, 1]),
        ({"train-0": ["pear", "apple"], "val-0": ["apple"]}, ("apple", "pear"), [1, 0]),
        ({"train-0": ["10", "9"]}, ("10", "9"), [0, 1]),
    ],
)
def test_without_a_list_the_labels_name_the_classes(tmp_path, shards, classes, numbers):
    for name, labels in shards.items():
        write_parquet(tmp_path / f"{name}.parquet", [b"image"] * len(labels), labels, names=None)
    source = open_source(f"parquet:{tmp_path}/*", None)
    assert source.classes == classes
    assert [example.label for example in source.splits["train"].read(0)] == numbers


@pytest.mark.parametrize(
    ("shards", "said"),
    [
        ({"train-0": ["a"], "train-1": [0]}, "labels that are names and labels that are numbers, such as 'a' and 0"),
        ({"train-0": [0, 65_536]}, "has label 65536: without class names the largest may be 65535"),
        ({"train-0": ["a"], "test-0": ["b"]}, "class 'b' of split test has no training images"),
        ({"train-0": ["a", "A"]}, "classes 'A' and 'a' differ only in case or encoding"),
    ],
)
def test_labels_that_name_no_classes_are_one_line(tmp_path, shards, said):
    for name, labels in shards.items():
        write_parquet(tmp_path / f"{name}.parquet", [b"image"] * len(labels), labels, names=None)
    with pytest.raises(UserError, match=rf"^--dataset=parquet:[^\n]*{said}"):
        open_source(f"parquet:{tmp_path}/*", None)


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_a_set_that_lacks_a_split_says_what_to_add(tmp_path, kind):
    name, *_ = two_shards(tmp_path, kind)
    done = networks.run("prepare", f"--dataset={name}", f"--data_dir={tmp_path}/data", f"--image_size={SIZE}")
    first, note = done.stderr.splitlines()
    assert first.endswith("prepared: 13 train, 16 px, 2 classes")
    assert note.startswith(
        "note: there is no validation and no test split: add images, or files of this name, or train with"
    )


@pytest.mark.slow
def test_the_files_that_the_libraries_write_are_the_same_prepared_set(tmp_path, monkeypatch):
    """`datasets` reads the folder by its own rules and shards it; `webdataset` writes the tars."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    datasets, webdataset = pytest.importorskip("datasets"), pytest.importorskip("webdataset")
    embed = pytest.importorskip("datasets.table").embed_table_storage
    splits = {"train": some_rows(23, 0), "validation": some_rows(5, 30), "test": some_rows(4, 40)}
    folder = write_folder(tmp_path / "photos", splits)
    (tmp_path / "hub").mkdir()
    (tmp_path / "wds").mkdir()
    cache = str(tmp_path / "cache")
    for split, found in datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "photos"), cache_dir=cache).items():
        embedded = found.with_format("arrow").map(embed, batched=True).with_format(None)
        for shard in range(2):
            part = embedded.shard(num_shards=2, index=shard, contiguous=True)
            part.to_parquet(str(tmp_path / f"hub/{split}-0000{shard}-of-00002.parquet"))
        with webdataset.ShardWriter(str(tmp_path / f"wds/{split}-%06d.tar"), maxcount=9, verbose=0) as writer:
            for file in sorted((tmp_path / "photos" / split).rglob("*.jpg")):
                writer.write({"__key__": file.stem, "jpg": file.read_bytes(), "json": {"label": file.parent.name}})
    names = (folder, f"parquet:{tmp_path}/hub/*", f"tar:{tmp_path}/wds/*")
    sets = [contents(prepare(name, tmp_path / "data", image_size=SIZE)) for name in names]
    assert sets[0] == sets[1] == sets[2]
