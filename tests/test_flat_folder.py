"""Validation images in one folder, as ImageNet publishes them: equal to class folders, and label files that do not fit."""

import json
import subprocess

import pytest
from networks import ROOT
from pictures import SIZE
from shard_files import photograph
from test_shards import contents

from alexnet_jax.data.folder import open_folder
from alexnet_jax.data.prepare import prepare
from alexnet_jax.system.errors import UserError

WNIDS = ("n01440764", "n01443537", "n02012849")
LABELS = (2, 0, 1, 0)  # of the validation images


def val(number):
    return f"ILSVRC2012_val_{number + 1:08}.JPEG"


def fill(root, labels=None, flat=True):
    """Three classes with a training image each, and four validation images. Returns the name of the set."""
    for number, wnid in enumerate(WNIDS):
        (root / "train" / wnid).mkdir(parents=True)
        (root / "train" / wnid / f"{wnid}_1.JPEG").write_bytes(photograph(number))
    for number, label in enumerate(LABELS):
        folder = root / "val" if flat else root / "val" / WNIDS[label]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / val(number)).write_bytes(photograph(10 + number))
    if labels is not None:
        (root / "val_labels.txt").write_text(labels, encoding="utf-8")
    return f"folder:{root}"


FORMS = {
    "names": "".join(f"{val(number)} {WNIDS[label]}\n" for number, label in enumerate(LABELS)),
    "names of files out of order, tabs, no last line end": "\n".join(
        f"{val(number)}\t{WNIDS[label]}" for number, label in reversed(list(enumerate(LABELS)))
    ),
    "numbers, as Caffe's val.txt": "".join(f"{val(number)} {label}\n" for number, label in enumerate(LABELS)),
    "classes alone, for Windows": "\ufeff" + "".join(f"{WNIDS[label]}\r\n" for label in LABELS) + "\r\n",
}


@pytest.mark.parametrize("form", FORMS)
def test_a_flat_folder_with_labels_is_the_same_prepared_set_as_class_folders(tmp_path, form):
    flat = prepare(fill(tmp_path / "flat", FORMS[form]), tmp_path / "data", image_size=SIZE)
    sorted_out = prepare(fill(tmp_path / "classes", flat=False), tmp_path / "data", image_size=SIZE)
    assert contents(flat) == contents(sorted_out)
    assert json.loads((flat / "meta.json").read_text())["counts"] == {"train": 3, "validation": 4}


def test_the_recipe_of_the_page_makes_labels_of_kaggles_table(tmp_path):
    """The command in the README of data/, on lines in the form of LOC_val_solution.csv."""
    (page,) = [
        line.strip()
        for line in (ROOT / "alexnet_jax/data/README.md").read_text().splitlines()
        if line.strip().startswith("awk")
    ]
    boxes = "85 1 499 272"
    rows = [f"{val(number).removesuffix('.JPEG')},{WNIDS[label]} {boxes} " for number, label in enumerate(LABELS)]
    name = fill(tmp_path / "imagenet")
    (tmp_path / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *rows]) + "\n")
    subprocess.run(["sh", "-c", page], cwd=tmp_path, check=True)
    source = open_folder(name, 0)
    found = {example.name.rpartition("/")[2]: example.label for example in source.splits["validation"].read(0)}
    assert found == {val(number): label for number, label in enumerate(LABELS)}


@pytest.mark.parametrize("folder", ["val", "Valid", "validation", "test", "TEST"])
def test_validation_and_test_may_be_flat(tmp_path, folder):
    name = fill(tmp_path, FORMS["names"])
    (tmp_path / "val").rename(tmp_path / "moved")
    (tmp_path / "moved").rename(tmp_path / folder)
    (tmp_path / "val_labels.txt").rename(tmp_path / f"{folder}_labels.txt")
    source = open_folder(name, 0)
    assert {split: len(examples) for split, examples in source.splits.items()} == {
        "train": 3,
        "test" if folder.lower() == "test" else "validation": 4,
    }


def test_a_class_whose_name_is_a_number_is_meant_by_its_name(tmp_path):
    """Sorted they are 1, 10, 2, so that the class of number 1 would be 10."""
    for name in ("1", "2", "10"):
        (tmp_path / "train" / name).mkdir(parents=True)
        (tmp_path / "train" / name / "x").touch()
    (tmp_path / "val").mkdir()
    (tmp_path / "val/y").touch()
    (tmp_path / "val_labels.txt").write_text("y 1\n")
    source = open_folder(f"folder:{tmp_path}", 0)
    assert [source.classes[example.label] for example in source.splits["validation"].read(0)] == ["1"]


def test_other_labels_have_another_description(tmp_path):
    before = open_folder(fill(tmp_path, FORMS["names"]), 0).description
    (tmp_path / "val_labels.txt").write_text(FORMS["names"].replace(f"1.JPEG {WNIDS[2]}", f"1.JPEG {WNIDS[1]}"))
    assert open_folder(f"folder:{tmp_path}", 0).description != before


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (None, f"{val(0)} is out of place: expected a folder for each class, or val_labels.txt beside val"),
        ("", "/val, and has 0"),
        (f"{WNIDS[0]}\n" * 3, "val_labels.txt must have a line for each of the 4 images of "),
        (f"{WNIDS[0]}\n" * 3 + "n0\n", f"gives {val(3)} the class 'n0': there is no such class folder in `train`"),
        ("490\n361\n171\n822\n", f"gives {val(0)} the class '490': beside a file's name it may be the number of a class"),
        ("2\n0\n1\n0\n", f"gives {val(0)} the class '2': beside a file's name it may be the number of a class"),
        (FORMS["names"] + f"{val(7)} {WNIDS[0]}\n", f"names '{val(7)}', which is not in the folder: remove the line"),
        (FORMS["names"] + f"{val(0)} {WNIDS[0]}\n", f"names '{val(0)}' twice: keep one line"),
        (FORMS["names"].partition("\n")[2], f"has no line for '{val(0)}': add one, or remove the image"),
        (
            FORMS["names"].replace(WNIDS[2], "3"),
            "the class '3': beside a file's name it may be the number of a class folder",
        ),
        (FORMS["names"].replace(WNIDS[2], ""), f"gives {val(0)} the class '': there is no such class folder"),
        (f"{val(0)} {WNIDS[0]}\n{WNIDS[0]}\n", f"names '{WNIDS[0]}', which is not in the folder"),
    ],
)
def test_a_label_file_that_does_not_fit_is_one_line(tmp_path, labels, said):
    with pytest.raises(UserError, match=r"^[^\n]+$") as caught:
        open_folder(fill(tmp_path, labels), 0)
    assert str(caught.value).startswith(f"--dataset=folder:{tmp_path}: ")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda root: (root / "val_labels.txt").write_bytes(b"\xff\xd8"), "val_labels.txt cannot be read: 'utf-8' codec"),
        (
            lambda root: [(root / "val_labels.txt").unlink(), (root / "val_labels.txt").mkdir()],
            "cannot be read: it is a folder",
        ),
        (
            lambda root: (root / "val/deep").mkdir(),
            "val/deep is out of place: expected only the images that val_labels.txt lists",
        ),
        (
            lambda root: (root / "val").rename(root / "images"),
            "val_labels.txt is out of place: expected a folder for each class",
        ),
        (
            lambda root: (root / "train_labels.txt").touch(),
            "train_labels.txt is out of place: expected a folder for each class",
        ),
    ],
)
def test_files_around_a_flat_folder_that_do_not_belong_there_are_one_line(tmp_path, change, said):
    name = fill(tmp_path, FORMS["names"])
    change(tmp_path)
    with pytest.raises(UserError, match=r"^[^\n]+$") as caught:
        open_folder(name, 0)
    assert said in str(caught.value)
