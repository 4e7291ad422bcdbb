"""`folder:PATH`: labels and splits from the folders, and one line of error for a folder in disorder."""

import os
import re
import socket
import subprocess
import sys
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from networks import ROOT
from pictures import encode, smooth

from alexnet_jax.data.folder import open_folder
from alexnet_jax.system.errors import UserError


def fill(root, *names):
    """Makes empty files: opening does not look into them."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return f"folder:{root}"


def contents(source):
    return {
        split: [(Path(example.image).name, source.classes[example.label]) for example in examples.read(0)]
        for split, examples in source.splits.items()
    }


def test_folders_name_splits_and_classes(tmp_path):
    name = fill(
        tmp_path, "train/b/2.jpg", "train/a/1.png", "train/a/0", "val/b/3.jpg", "test/a/4.jpg", "train/a/.hidden", ".git/x"
    )
    source = open_folder(name, 0)
    assert source.classes == ("a", "b")
    assert contents(source) == {
        "train": [("0", "a"), ("1.png", "a"), ("2.jpg", "b")],
        "validation": [("3.jpg", "b")],
        "test": [("4.jpg", "a")],
    }
    assert next(source.splits["test"].read(0)).name == str(tmp_path / "test/a/4.jpg")


def test_a_folder_without_splits_is_split_by_class_and_seed(tmp_path):
    name = fill(
        tmp_path, *(f"{label}/{number}.jpg" for label in "ab" for number in range(30)), *(f"c/{n}" for n in range(9))
    )
    first, again, other = open_folder(name, 0), open_folder(name, 0), open_folder(name, 1)
    assert {split: len(examples) for split, examples in first.splits.items()} == {"train": 57, "validation": 6, "test": 6}
    everything = sorted(example.name for examples in first.splits.values() for example in examples.read(0))
    assert len(set(everything)) == 69
    for split in ("validation", "test"):
        assert sorted(label for _, label in contents(first)[split]) == ["a"] * 3 + ["b"] * 3
    assert contents(first) == contents(again)
    assert first.description == again.description
    assert contents(first)["test"] != contents(other)["test"]
    assert first.description != other.description


def test_a_random_split_does_not_change_between_versions(tmp_path):
    """Where a class has ten images each gives a tenth, rounded down, as prepared sets have it."""
    sizes = {"a": 10, "b": 31, "é": 19}
    name = fill(tmp_path / "photos", *(f"{label}/{number}-ü.jpg" for label, size in sizes.items() for number in range(size)))
    source = open_folder(name, 3)
    held = {split: [name.partition("-")[0] for name, _ in found] for split, found in contents(source).items()}
    assert (held["validation"], held["test"]) == (["1", "11", "15", "16", "2"], ["6", "17", "6", "9", "9"])
    assert len(held["train"]) == 50
    assert source.description == (
        "60 files of folder photos (sha256 f4c27e2fc22349a3cd94174b973f3fb7f633294f50452e4d835652cfe4ef2529 of their names "
        "and sizes), split at random, seed 3, a tenth each of every class for test and validation"
    )


def classes_of(sizes):
    """Names of files for classes of these sizes."""
    return [f"class{label:02d}/{number}" for label, size in enumerate(sizes) for number in range(size)]


@pytest.mark.parametrize(
    ("sizes", "held"),
    [([2, 2, 2] + 9 * [1], 1), ([9, 1], 1), (8 * [9], 7), (25 * [4], 10), ([2] + 9 * [1], (1, 0)), (30 * [1], 0), ([1], 0),
     ([9], 0)],
)  # fmt: skip
def test_where_no_class_has_ten_images_a_tenth_of_all_is_held_out(tmp_path, sizes, held):
    """One from a class, and from none its last."""
    name = fill(tmp_path, *classes_of(sizes))
    source = open_folder(name, 0)
    tests, validations = held if isinstance(held, tuple) else (held, held)
    counts = {"train": sum(sizes) - tests - validations, "validation": validations, "test": tests}
    assert {split: len(found) for split, found in source.splits.items()} == {k: v for k, v in counts.items() if v}
    found = contents(source)
    assert len({label for _, label in found["train"]}) == len(sizes)
    assert len({example.name for split in source.splits.values() for example in split.read(0)}) == sum(sizes)
    for split in ("validation", "test"):
        assert set(Counter(label for _, label in found.get(split, ())).values()) <= {1}
    assert ("of all images" in source.description) == bool(tests)
    if tests:
        assert contents(open_folder(name, 0)) == found
        assert any(contents(open_folder(name, seed)) != found for seed in (1, 2, 3))


@pytest.mark.parametrize("name", ["val", "valid", "validation", "Val", "VALID", "Validation"])
@pytest.mark.parametrize("train", ["train", "Train", "TRAIN"])
def test_splits_have_several_names(tmp_path, name, train):
    source = open_folder(fill(tmp_path, f"{train}/a/1", f"{name}/a/2", "Test/a/3"), 0)
    assert contents(source) == {"train": [("1", "a")], "validation": [("2", "a")], "test": [("3", "a")]}


def test_a_class_of_trains_is_no_split(tmp_path):
    source = open_folder(fill(tmp_path, "Train/1", "Car/2"), 0)
    assert contents(source) == {"train": [("2", "Car"), ("1", "Train")]}


@pytest.mark.parametrize("kind", ["fifo", "socket", "device", "dangling", "link to a fifo"])
def test_only_regular_files_are_taken_for_images(tmp_path, kind):
    fill(tmp_path, "photos/a/1")
    path = tmp_path / "photos/a/2"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(os.path.relpath(path))
    elif kind == "link to a fifo":
        os.mkfifo(tmp_path / "fifo")
        path.symlink_to(tmp_path / "fifo")
    else:
        path.symlink_to("/dev/zero" if kind == "device" else "nowhere")
    with pytest.raises(UserError, match=r"^[^\n]*photos/a/2 is no regular file, nor a link to one: remove it$"):
        open_folder(f"folder:{tmp_path}/photos", 0)


def test_links_to_files_and_folders_are_followed(tmp_path):
    fill(tmp_path, "there/1", "photos/a/2")
    (tmp_path / "photos/b").symlink_to(tmp_path / "there")
    (tmp_path / "photos/a/3").symlink_to(tmp_path / "there/1")
    assert contents(open_folder(f"folder:{tmp_path}/photos", 0)) == {"train": [("2", "a"), ("3", "a"), ("1", "b")]}


def test_a_file_may_have_a_name_in_any_encoding_but_a_class_has_one_in_utf8(tmp_path):
    fill(tmp_path, *(f"a/{os.fsdecode(name)}" for name in (b"caf\xe9.jpg", b"\xff\xfe", b"new\nline", b"*[?] 'x'")))
    assert len(open_folder(f"folder:{tmp_path}", 0).splits["train"]) == 4
    fill(tmp_path, os.fsdecode(b"caf\xe9/1.jpg"))
    with pytest.raises(UserError, match=r"the name of class 'caf\\udce9' is not in UTF-8: rename it"):
        open_folder(f"folder:{tmp_path}", 0)


@pytest.mark.slow
def test_a_c_locale_gives_the_same_source(tmp_path):
    name = fill(tmp_path, *(f"{label}/{number}é.jpg" for label in ("z", "é", "ß") for number in range(12)))
    code = "import sys, alexnet_jax.data.folder as it; s = it.open_folder(sys.argv[1], 0); "
    code += "print(ascii([s.classes, s.description]))"
    plain = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code, name], env=plain, cwd=ROOT, capture_output=True, text=True, check=True
    )
    source = open_folder(name, 0)
    assert source.classes == ("z", "ß", "é")
    assert done.stdout.strip() == ascii([source.classes, source.description])


def test_other_content_has_another_description(tmp_path):
    name = fill(tmp_path, "train/a/1", "train/b/1")
    before = open_folder(name, 0).description
    (tmp_path / "train/a/1").write_bytes(encode(smooth(5, 5), "PNG"))
    assert open_folder(name, 0).description != before


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ([], "is empty"),
        (["train/a/1", "train/b/"], r"class \S+/train/b is empty"),
        (["a/1", "b/"], r"class \S+/b is empty"),
        (["train/a/1", "train/A/2"], "'A' and 'a' differ only in case or encoding"),
        (["train/a/1", "val/A/2"], "'a' and 'A' differ only in case or encoding"),
        (
            [f"{unicodedata.normalize(form, 'é')}/1" for form in ("NFC", "NFD")],
            "differ only in case or encoding",
        ),
        (["train/a/1", "val/b/2"], "class 'b' of split validation has no training images"),
        (["val/a/1", "test/a/1"], "no folder `train`"),
        (["train/a/1", "val/a/1", "valid/a/1"], "second validation split"),
        (["train/a/1", "other/a/1"], r"\S+/other is out of place beside the splits"),
        (["train/a/1", "README"], r"\S+/README is out of place: expected a folder for each class"),
        (["train/a/deep/1"], r"\S+/train/a/deep is out of place: expected only the images of a class"),
        (["1.jpg", "2.jpg"], r"\S+/1.jpg is out of place"),
    ],
)
def test_a_folder_in_disorder_is_one_line_of_error(tmp_path, files, said):
    for name in files:
        if name.endswith("/"):
            (tmp_path / name).mkdir(parents=True)
        else:
            fill(tmp_path, name)
    with pytest.raises(UserError) as caught:
        open_folder(f"folder:{tmp_path}", 0)
    line = str(caught.value)
    assert line.startswith(f"--dataset=folder:{tmp_path}")
    assert "\n" not in line
    assert re.search(said, line)


@pytest.mark.parametrize(
    "path", ["{place}/none", "{place}/file", "", "{place}/fifo", "~nobody-of-this-name/x", "{place}/self"]
)
def test_no_folder_at_all(tmp_path, path):
    fill(tmp_path, "file")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "self").symlink_to("self")
    with pytest.raises(UserError, match=r"^--dataset=folder:[^\n]*(there is no such folder|cannot be read)"):
        open_folder(f"folder:{path.format(place=tmp_path)}", 0)
