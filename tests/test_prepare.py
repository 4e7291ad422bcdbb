"""Preparing, and its command: what it writes, says, refuses and leaves alone; the sets that it was made for."""

import dataclasses
import errno
import fcntl
import io
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import networks
import numpy as np
import pytest
import tensorflow_datasets as tfds
from pictures import SIZE, encode, smooth, source_of
from PIL import Image
from test_sources import write_greys

import alexnet_jax.data.prepare
from alexnet_jax.data.dataset import open_dataset
from alexnet_jax.data.prepare import prepare
from alexnet_jax.data.sources import open_source
from alexnet_jax.data.store import open_store
from alexnet_jax.data.writer import write_store
from alexnet_jax.system.errors import UserError
from alexnet_jax.values import Fold

TFDS_DIR = Path(__file__).parents[2] / "shared/data/tfds"
needs_cifar10 = pytest.mark.skipif(not (TFDS_DIR / "cifar10").is_dir(), reason="CIFAR-10 is not beside the repository")


def test_two_at_once_prepare_once(tmp_path, monkeypatch, capsys):
    written, ready = [], threading.Barrier(2)
    source = source_of([encode(smooth(20, 20), "PNG")])

    def opened(*_):
        ready.wait(timeout=30)
        return source

    def slowly(*arguments, **options):
        time.sleep(0.3)
        written.append(arguments)
        return write_store(*arguments, **options)

    monkeypatch.setattr(alexnet_jax.data.prepare, "open_source", opened)
    monkeypatch.setattr(alexnet_jax.data.prepare, "write_store", slowly)
    threads = [threading.Thread(target=prepare, args=("fake", tmp_path), kwargs={"image_size": SIZE}) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert len(written) == 1
    said = capsys.readouterr().err
    assert f"waiting for the process that prepares {tmp_path}/fake-16" in said
    assert "prepared by another process" in said
    assert len(open_store(tmp_path / "fake-16").splits["train"]) == 1


@pytest.mark.parametrize("kind", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_does_without(tmp_path, monkeypatch, kind):
    def flock(*_):
        raise OSError(kind, "no locks here")

    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr(alexnet_jax.data.prepare, "open_source", lambda *_: source_of([encode(smooth(20, 20), "PNG")]))
    assert len(open_store(prepare("fake", tmp_path, image_size=SIZE)).splits["train"]) == 1


@pytest.fixture(scope="module")
def groceries(tmp_path_factory):
    return prepare("groceries", tmp_path_factory.mktemp("data"), image_size=64)


@pytest.mark.slow
def test_groceries_as_train_prepares_it(groceries):
    store = open_store(groceries)
    assert groceries.name == "groceries-64"
    assert {name: len(split) for name, split in store.splits.items()} == {"train": 675, "validation": 57, "test": 661}
    assert len(store.classes) == 14
    source = open_source("groceries", None)
    for split, examples in source.splits.items():
        np.testing.assert_array_equal(store.splits[split].labels, [example.label for example in examples.read(0)])
    for index in (0, 300, 674):
        photograph = Image.open(io.BytesIO(source.splits["train"].items[index].image))
        assert min(photograph.size) == 348
        left, top = ((side - 348) // 2 for side in photograph.size)
        square = photograph.crop((left, top, left + 348, top + 348)).resize((64, 64), Image.Resampling.BICUBIC)
        difference = store.splits["train"].images[index].astype(int) - np.asarray(square)
        assert np.abs(difference).max() <= 24  # the reference is cut before resampling, so its edge sees other pixels
        assert np.abs(difference[3:-3, 3:-3]).max() <= 1
    np.testing.assert_allclose(store.channel_mean, store.splits["train"].images.mean(axis=(0, 1, 2)), rtol=1e-5)
    assert "39ff392b" in json.loads((groceries / "meta.json").read_text())["source"]


@pytest.mark.slow
def test_a_finished_store_stays_as_it_is(groceries, capsys):
    before = {path.name: path.stat().st_mtime_ns for path in groceries.iterdir()}
    assert prepare("groceries", groceries.parent, image_size=64) == groceries
    assert "already prepared" in capsys.readouterr().err
    assert {path.name: path.stat().st_mtime_ns for path in groceries.iterdir()} == before


def test_a_damaged_store_is_not_taken_for_finished(tmp_path):
    (tmp_path / "groceries-64").mkdir()
    with pytest.raises(UserError, match=r"no meta\.json.*delete it"):
        prepare("groceries", tmp_path, image_size=64)


def test_a_data_dir_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(alexnet_jax.data.prepare, "open_source", lambda *_: source_of([]))
    with pytest.raises(UserError, match=r"^--data_dir=\S+/file/data cannot be used: [^\n]*Not a directory"):
        prepare("fake", tmp_path / "file/data", image_size=SIZE)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"image_size": 0}, "--image_size=0 must be at least 1"),
        ({"image_size": -(10**30)}, "--image_size=-1"),
        ({"image_size": 4097}, "--image_size=4097 must be at least 1 and at most 4096"),
        ({"split_seed": -1}, "--split_seed=-1 must be at least 0"),
        ({"split_seed": 2**64}, r"--split_seed=18446744073709551616 must be .* less than 2\*\*64"),
        ({"tfds_dir": ""}, "--tfds_dir= is empty"),
        ({"on_error": "mend"}, "--on_error=mend"),
        ({"resize": "crop"}, "--resize=crop"),
    ],
)
def test_arguments_out_of_range_are_named(tmp_path, arguments, said):
    with pytest.raises(UserError, match=said):
        prepare("groceries", tmp_path, **arguments)


@pytest.mark.slow
def test_warped_images_have_a_folder_of_their_own(tmp_path):
    centre, warped = (prepare("groceries", tmp_path, image_size=8, resize=resize) for resize in ("centre", "warp"))
    assert (centre.name, warped.name) == ("groceries-8", "groceries-8-warp")
    assert json.loads((warped / "meta.json").read_text())["resize"] == "warp"


def test_a_store_of_something_else_is_not_taken_for_it(tmp_path):
    """The two names give the same folder."""
    write_store(source_of([encode(smooth(20, 20), "PNG")]), tmp_path / "folder_a_b-16", SIZE)
    with pytest.raises(UserError, match=r"--dataset=folder:a/b: \S+ holds fake: name another --data_dir"):
        prepare("folder:a/b", tmp_path, image_size=SIZE)


def test_a_folder_that_has_changed_since_is_an_error_and_the_old_store_stays(tmp_path):
    for number in range(40):
        (tmp_path / "photos" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / "ab"[number % 2] / f"{number}.png").write_bytes(encode(smooth(20, 30, seed=number), "PNG"))
    name, data = f"folder:{tmp_path}/photos", tmp_path / "data"
    path = prepare(name, data, image_size=SIZE)
    store = open_store(path)
    assert {split: len(of) for split, of in store.splits.items()} == {"train": 32, "validation": 4, "test": 4}
    assert prepare(name, data, image_size=SIZE) == path
    with pytest.raises(UserError, match=r"was prepared from .*seed 0.* but the source is now .*seed 1.*delete"):
        prepare(name, data, image_size=SIZE, split_seed=1)
    (tmp_path / "photos/a/new.png").write_bytes(encode(smooth(20, 30), "PNG"))
    with pytest.raises(UserError, match=r"40 files of .* 41 files of"):
        prepare(name, data, image_size=SIZE)
    assert open_store(path).fingerprint == store.fingerprint
    (tmp_path / "photos").rename(tmp_path / "elsewhere")
    assert prepare(name, data, image_size=SIZE) == path


def folder_of(root, sizes):
    """A folder with images, so many in each class."""
    for label, size in sizes.items():
        (root / label).mkdir(parents=True)
        for number in range(size):
            (root / label / f"{number}.png").write_bytes(encode(smooth(9, 7, seed=number), "PNG"))
    return f"folder:{root}"


FOLD = ", or train with --fold=0/5, which holds out a fifth for validation"


@pytest.mark.parametrize(
    ("sizes", "counts", "note"),
    [
        ({"a": 1}, "1 train", f"note: there is no validation and no test split: add images, or a folder of this name{FOLD}"),
        ({"a": 5, "b": 4}, "9 train", f"no validation and no test split: add images, or a folder of this name{FOLD}"),
        ({"train/a": 2, "test/a": 1}, "2 train, 1 test", f"no validation split: add images, or a folder of this name{FOLD}"),
        ({"train/a": 2, "Val/a": 1}, "2 train, 1 validation", "no test split: add images, or a folder of this name"),
        ({"a": 5, "b": 5}, "8 train, 1 validation, 1 test", None),
    ],
)
def test_a_split_that_is_missing_is_noted_with_the_way_to_get_it(tmp_path, capsys, sizes, counts, note):
    name = folder_of(tmp_path / "photos", sizes)
    prepare(name, tmp_path / "data", image_size=SIZE)
    first, *notes = capsys.readouterr().err.splitlines()
    assert f": prepared: {counts}, 16 px, " in first
    assert len(notes) == bool(note)
    assert all(line.endswith(note) for line in notes)
    prepare(name, tmp_path / "data", image_size=SIZE)
    assert capsys.readouterr().err.splitlines()[1:] == notes


def test_a_split_that_a_set_has_not_is_named_beside_those_it_has(tmp_path):
    config = networks.small_config(
        dataset=folder_of(tmp_path / "photos", {"a": 3, "b": 4}), data_dir=str(tmp_path), image_size=SIZE, crop_size=SIZE
    )
    prepare(config.dataset, tmp_path, image_size=SIZE)
    for split in ("validation", "test"):
        with pytest.raises(UserError, match=f"^--split={split}: .* has train: choose one of them, .*--fold=0/5"):
            open_dataset(config).split(split)
    held = open_dataset(dataclasses.replace(config, fold=Fold(6, 9)))
    assert {name: len(split) for name, split in held.splits.items()} == {"train": 6, "validation": 1}
    with pytest.raises(UserError, match="--fold=7/9 leaves the validation split empty: train and validation have 7 images"):
        open_dataset(dataclasses.replace(config, fold=Fold(7, 9)))


def test_a_split_of_which_nothing_could_be_decoded_does_not_exist(tmp_path, capsys):
    folder_of(tmp_path / "photos", {"train/a": 2, "test/a": 1})
    (tmp_path / "photos/test/a/0.png").write_bytes(b"no image")
    name = f"folder:{tmp_path}/photos"
    prepare(name, tmp_path, image_size=SIZE, on_error="skip")
    assert "2 train, 0 test" in (said := capsys.readouterr().err)
    assert "no validation and no test split" in said
    config = networks.small_config(dataset=name, data_dir=str(tmp_path), image_size=SIZE, crop_size=SIZE)
    assert list(open_dataset(config).splits) == ["train"]


def test_an_unknown_set_leaves_no_folder_behind(tmp_path):
    with pytest.raises(UserError, match="--dataset=grocery"):
        prepare("grocery", tmp_path / "data", image_size=SIZE)
    assert list(tmp_path.iterdir()) == []


def run(*command):
    """Runs a command of the repository as a user does."""
    root = Path(__file__).parents[1]
    return subprocess.run([sys.executable, *command], cwd=root, capture_output=True, text=True, timeout=120)


@needs_cifar10
@pytest.mark.nightly
def test_all_of_cifar10_from_the_command_line(tmp_path):
    flags = ("--dataset=cifar10", f"--tfds_dir={TFDS_DIR}", f"--data_dir={tmp_path}", "--image_size=32")
    done = run("-m", "alexnet_jax.prepare", *flags)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    line, note = done.stderr.splitlines()
    assert "no validation split" in note
    assert str(tmp_path / "cifar10-32") in line
    assert "50,000 train, 10,000 test" in line
    store = open_store(tmp_path / "cifar10-32")
    # The published statistics of the set.
    np.testing.assert_allclose(store.channel_mean, [125.307, 122.950, 113.865], atol=1e-3)
    covariance = store.colour_vectors @ np.diag(store.colour_std**2) @ store.colour_vectors.T
    np.testing.assert_allclose(np.sqrt(np.diag(covariance)), [62.993, 62.089, 66.705], atol=1e-3)
    decoded = tfds.builder("cifar10", data_dir=TFDS_DIR).as_data_source("train")
    for index in range(0, 50_000, 997):
        np.testing.assert_array_equal(store.splits["train"].images[index], decoded[index]["image"])
        assert store.splits["train"].labels[index] == decoded[index]["label"]
    np.testing.assert_array_equal(np.bincount(store.splits["test"].labels), np.full(10, 1000))


def test_a_tfds_set_from_the_command_line(tmp_path):
    write_greys(tmp_path / "tfds", {"train": [0, 1, 0, 1], "test": [1, 0]})
    flags = ("--dataset=greys", f"--tfds_dir={tmp_path}/tfds", f"--data_dir={tmp_path}/data", "--image_size=4")
    done = networks.run("prepare", *flags, "--verify")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    first, note, second = done.stderr.splitlines()
    assert note.startswith("note: there is no validation split: prepare another set, or train with --fold=0/5")
    assert first == f"{tmp_path}/data/greys-4: prepared: 4 train, 2 test, 4 px, 2 classes"
    assert second == f"{tmp_path}/data/greys-4: every image and label is as it was prepared"
    store = open_store(tmp_path / "data/greys-4")
    for split, labels in {"train": {0: 0, 1: 1, 2: 0, 3: 1}, "test": {0: 1, 1: 0}}.items():  # by the grey value
        found = zip(store.splits[split].images[:, 0, 0, 0].tolist(), store.splits[split].labels.tolist(), strict=True)
        assert dict(found) == labels


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--dataset=cifar11", "did you mean"),
        ("--image_size=0", "at least 1"),
        ("--image_size=x", "flag --image_size=x"),
        ("--resize=crop", "flag --resize=crop: value should be one of <centre|warp>"),
        ("--split_seed=-1", "flag --split_seed=-1"),
        ("--split_seed=18446744073709551616", "--split_seed=18446744073709551616 must be"),
        ("photos", "'photos' is not a flag"),
    ],
)
def test_a_bad_flag_ends_the_command_with_one_line(tmp_path, flag, said):
    done = networks.run("prepare", f"--data_dir={tmp_path}/data", flag)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert said in line
    assert not (tmp_path / "data").exists()


def test_importing_prepare_defines_no_flags_and_no_jax():
    code = "import sys, alexnet_jax.prepare; from absl.flags import FLAGS; print('jax' in sys.modules, 'data_dir' in FLAGS)"
    assert run("-W", "error", "-c", code).stdout == "False False\n"


@pytest.mark.slow
def test_a_terminal_shows_progress(tmp_path):
    """A pseudo-terminal shows a bar with a rate. The other tests see one line."""
    pty = pytest.importorskip("pty")
    leader, follower = pty.openpty()
    code = f"from alexnet_jax.data.prepare import prepare; prepare('groceries', {str(tmp_path)!r}, image_size=8)"
    command = [sys.executable, "-c", code]
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen(command, cwd=Path(__file__).parents[1], stderr=follower, env=environment)
    os.close(follower)
    shown = b""
    try:
        while part := os.read(leader, 65536):
            shown += part
    except OSError:
        pass  # Linux raises this when the other end is closed
    os.close(leader)
    assert process.wait(timeout=60) == 0
    assert b"1393/1393" in shown
    assert b"images/s" in shown
