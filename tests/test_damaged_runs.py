"""A run whose files are damaged, shown by every command: one line that names the file, and nothing made or changed."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from networks import SIZE, run, tiny_config
from PIL import Image
from test_bad_input import contents

from alexnet_jax.training import train


@pytest.fixture(scope="module")
def whole(data_dir, tmp_path_factory) -> Path:
    """A run of one step beside an image."""
    folder = tmp_path_factory.mktemp("damaged")
    train(tiny_config(data_dir, folder / "run", steps=1, log_every=1))
    Image.fromarray(np.zeros((SIZE, SIZE, 3), np.uint8)).save(folder / "black.png")
    return folder


COMMANDS = {
    "figures": ["figures", "--only=curves,magnitudes,training_error"],
    "report": ["report"],
    "evaluate": ["evaluate"],
    "predict": ["predict", "PLACE/black.png"],
    "convert": ["convert", "--export=stablehlo", "PLACE/n.stablehlo"],
}


def check(whole: Path, tmp_path: Path, damage: Callable[[Path], None], file: str, commands=tuple(COMMANDS)) -> None:
    """Damages a copy of the run, and shows it."""
    folder = tmp_path / "run"
    shutil.copytree(whole / "run", folder, ignore=shutil.ignore_patterns("checkpoints", "tensorboard"))
    (folder / "checkpoints").symlink_to(whole / "run" / "checkpoints")
    damage(folder)
    before = contents(tmp_path, whole)
    for name in commands:
        command, *words = COMMANDS[name]
        result = run(command, *(word.replace("PLACE", str(whole)) for word in words), f"--workdir={folder}")
        assert (result.returncode, result.stdout) == (1, ""), (name, result.stdout, result.stderr)
        (line,) = result.stderr.splitlines()
        assert line.startswith("error: ")
        assert str(folder / file) in line or (file == "config.json" and f"--workdir={folder}" in line), line
        assert contents(tmp_path, whole) == before


def write(file: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / file).write_bytes(content) and None


def pipe(file: str) -> Callable[[Path], None]:
    def replace(folder: Path) -> None:
        (folder / file).unlink()
        os.mkfifo(folder / file)

    return replace


def make_folder(file: str) -> Callable[[Path], None]:
    def replace(folder: Path) -> None:
        (folder / file).unlink()
        (folder / file).mkdir()

    return replace


def edit(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    """Changes config.json."""

    def replace(folder: Path) -> None:
        content = json.loads((folder / "config.json").read_text())
        change(content)
        (folder / "config.json").write_text(json.dumps(content))

    return replace


NO_JSON = [b"", b"{", b"5", b"null", b"[]", b"{}", b'"config"', b"\xff\xfe\x00", b"\x89PNG\r\n\x1a\n\x00", b"[" * 100_000]


@pytest.mark.parametrize("content", NO_JSON, ids=lambda content: repr(content[:9]))
def test_a_config_that_is_none(whole, tmp_path, content):
    check(whole, tmp_path, write("config.json", content), "config.json")


@pytest.mark.parametrize(
    "damage",
    [lambda f: (f / "config.json").unlink(), pipe("config.json"), make_folder("config.json")],
    ids=["no", "pipe", "dir"],
)
def test_a_config_that_is_no_file(whole, tmp_path, damage):
    check(whole, tmp_path, damage, "config.json")


@pytest.mark.parametrize(
    "change",
    [
        lambda it: it.pop("config"),
        lambda it: it.pop("dataset"),
        lambda it: it.update(config=[]),
        lambda it: it.update(dataset="tiny"),
        lambda it: it["dataset"].pop("classes"),
        lambda it: it["dataset"].update(classes=14),
        lambda it: it["dataset"].update(classes={"a": 1}),
        lambda it: it["dataset"].update(fingerprint=None),
        lambda it: it["config"].update(image_size="large"),
        lambda it: it["config"].update(image_size=-1),
        lambda it: it["config"].update(architecture=["paper"]),
        lambda it: it["config"].update(mesh=5),
        lambda it: it["config"].update(drop_epochs=3),
        lambda it: it["config"].update(learning_rate=True),
        lambda it: it["config"].update(layer_rates="conv1:1"),
        lambda it: it["config"].update(colour="blue"),
    ],
)
def test_a_config_of_another_shape(whole, tmp_path, change):
    check(whole, tmp_path, edit(change), "config.json")


@pytest.mark.slow
@pytest.mark.parametrize("key", ["devices", "python", "versions", "commit"])
@pytest.mark.parametrize("value", ["missing", 5, [5], {"a": 1}])
def test_a_record_of_the_machine_of_another_shape(whole, tmp_path, key, value):
    """Only the report shows it."""
    damage = edit(lambda it: it.pop(key)) if value == "missing" else edit(lambda it: it.update({key: value}))
    check(whole, tmp_path, damage, "config.json", ["report"])


ROWS = [
    b"5\n", b"null\n", b"[]\n", b"{}\n", b'{"step": 1}\n', b"\xff\xfe\n", b"text\n", b"\x00" * 100 + b"\n",
    b'{"step": 1, "split": "train", "epoch": 1, "loss": "low", "top1_error": 1, "top5_error": 1}\n',
    b'{"step": 1, "split": "train", "epoch": 1, "loss": 1, "top1_error": 1, "top5_error": 1}\n',
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("rows", ROWS, ids=lambda content: repr(content[:40]))
@pytest.mark.parametrize("place", ["alone", "last"])
def test_rows_that_are_none(whole, tmp_path, rows, place):
    old = (whole / "run" / "metrics.jsonl").read_bytes()
    content = {"alone": rows, "last": old + rows}[place]
    check(whole, tmp_path, write("metrics.jsonl", content), "metrics.jsonl", ["figures", "report"])


@pytest.mark.parametrize("magnitudes", [5, [], {"conv1": 5}, {"conv1": {}}, {"conv1": {"kernel": "large"}}])
def test_magnitudes_of_another_shape(whole, tmp_path, magnitudes):
    rows = [json.loads(line) for line in (whole / "run" / "metrics.jsonl").read_text().splitlines()]
    content = "".join(json.dumps(row | {"magnitudes": magnitudes}) + "\n" for row in rows)
    check(whole, tmp_path, write("metrics.jsonl", content.encode()), "metrics.jsonl", ["figures", "report"])


@pytest.mark.parametrize("damage", [pipe("metrics.jsonl"), make_folder("metrics.jsonl")], ids=["pipe", "folder"])
def test_rows_that_are_in_no_file(whole, tmp_path, damage):
    check(whole, tmp_path, damage, "metrics.jsonl", ["figures", "report"])


@pytest.mark.parametrize(
    "damage",
    [
        write("mean.npy", b""),
        write("mean.npy", b"text"),
        write("mean.npy", b"\x93NUMPY\x01\x00\x10\x00{'shape': (1, \xd7       "),
        pipe("mean.npy"),
        make_folder("mean.npy"),
        lambda folder: np.save(folder / "mean.npy", np.zeros((3, 3))),
        lambda folder: np.save(folder / "mean.npy", np.zeros((SIZE, SIZE, 4))),
        lambda folder: np.save(folder / "mean.npy", np.full((SIZE, SIZE, 3), np.nan)),
        lambda folder: np.save(folder / "mean.npy", np.full((SIZE, SIZE, 3), "a")),
    ],
    ids=["empty", "text", "broken", "pipe", "folder", "matrix", "four colours", "NaN", "letters"],
)
def test_a_mean_that_is_none(whole, tmp_path, damage):
    check(whole, tmp_path, damage, "mean.npy", ["report", "evaluate", "predict", "convert"])
