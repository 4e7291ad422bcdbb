"""`folder:PATH`: labels and splits from the folders, and one line of error for a folder in disorder."""

import re
import unicodedata
from pathlib import Path

import pytest
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


def test_no_folder_at_all(tmp_path):
    with pytest.raises(UserError, match="there is no such folder"):
        open_folder(f"folder:{tmp_path}/none", 0)
