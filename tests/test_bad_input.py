"""Bad input to every command: exit status 1, one line that names what is at fault, and nothing made or changed.

Each case is a command line and a part of the line that it gets. In a command line `{data}` is a folder with the tiny set
prepared, `{run}` a finished run on it, and `{place}` a folder with some files that no command can use.
"""

import os
import shlex
from pathlib import Path

import numpy as np
import pytest
from networks import SIZE, run, tiny_config, tiny_flags
from PIL import Image

from alexnet_jax.train import train

TRAIN: list[tuple[str, str]] = [
    ("--learning_rate=nan", "--learning_rate=nan"),
    ("--mesh=3", "--mesh=3"),
]
EVALUATE: list[tuple[str, str]] = [
    ("--workdir={place}/nothing", "there is no config.json"),
    ("--workdir={run} --step=7", "--step=7"),
]
PREDICT: list[tuple[str, str]] = [
    ("{place}/black.png", "--workdir is missing"),
    ("--workdir= {place}/black.png", "--workdir is missing"),
    ("--workdir={place}/nothing {place}/black.png", "--workdir={place}/nothing holds no run"),
    ("--workdir={place}/folder {place}/black.png", "holds no run"),
    ("--workdir={place}/text.txt {place}/black.png", "--workdir={place}/text.txt"),
    ("--workdir={run}", "there are no images: add files or folders"),
    ("--workdir={run} {place}/folder", "there are no images"),
    ("--workdir={run} {place}/hidden", "there are no images"),
    ("--workdir={run} --list=", "there are no images"),
    ("--workdir={run} --list={place}/empty", "there are no images"),
    ("--workdir={run} --list={place}/blank", "there are no images"),
    ("--workdir={run} --list={place}/nothing", "--list={place}/nothing cannot be read"),
    ("--workdir={run} --list={place}/text.txt/x", "cannot be read"),
    ("--workdir={run} --list={place}/folder", "--list={place}/folder is no regular file"),
    ("--workdir={run} --list={place}/fifo", "--list={place}/fifo is no regular file"),
    ("--workdir={run} --list=/dev/zero", "--list=/dev/zero is no regular file"),
    ("--workdir={run} --list={place}/black.png", "--list={place}/black.png is no list of paths"),
    ("--workdir={run} --list={place}/utf16", "--list={place}/utf16 is no list of paths"),
    ("--workdir={run} {place}/black.png --list={place}/utf16", "is no list of paths"),
    ("--workdir={run} {place}/black.png --step=7", "--step=7"),
    ("--workdir={run} {place}/black.png --step=first", "--step=first"),
    ("--workdir={run} {place}/black.png --format=xml", "--format=xml"),
    *((f"--workdir={{run}} {{place}}/black.png --batch_size={value}", f"--batch_size={value}")
      for value in ("0", "-1", "1.5", "x", "nan", "1e3")),
    ("--workdir={run} {place}/black.png --mesh=3", "--mesh=3"),
    ("--workdir={run} {place}/black.png --mesh=0x1", "--mesh=0x1"),
    ("--workdir={run} {place}/black.png --features=fc9:{place}/f.npz", "--features=fc9: no such hidden layer"),
    ("--workdir={run} {place}/black.png --figure={place}/f.txt", "ends in neither .png nor .svg"),
    ("--workdir={run} {place}/black.png --images={place}", "images"),
]  # fmt: skip
PREPARE: list[tuple[str, str]] = [
    *((f"--dataset=folder:{{place}}/{name}", f"--dataset=folder:{{place}}/{name}: there is no such folder")
      for name in ("nothing", "text.txt", "fifo", "black.png", "text.txt/x")),
    ("--dataset=folder:", "--dataset=folder:: there is no such folder"),
    ("--dataset=folder:~nobody-of-this-name/x", "--dataset=folder:~nobody-of-this-name/x cannot be read"),
    (f"--dataset=folder:{{place}}/{'a' * 300}", "cannot be read: [Errno 36] File name too long"),
    ("--dataset=folder:{place}/folder", "is empty: it should have a folder for each class"),
    ("--dataset=folder:{place}/sets/loose", "sets/loose/1.png is out of place: expected a folder for each class"),
    ("--dataset=folder:{place}/sets/deep", "sets/deep/a/b is out of place: expected only the images of a class"),
    ("--dataset=folder:{place}/sets/no-images", "sets/no-images/a is empty"),
    ("--dataset=folder:{place}/sets/fifo", "sets/fifo/a/fifo is no regular file"),
    ("--dataset=folder:{place}/sets/dangling", "sets/dangling/a/lost is no regular file"),
    ("--dataset=folder:{place}/sets/device", "sets/device/a/zero is no regular file"),
    ("--dataset=folder:{place}/sets/latin1", "the name of class 'caf\\udce9' is not in UTF-8"),
    ("--dataset=folder:{place}/sets/case", "classes 'A' and 'a' differ only in case"),
    ("--dataset=folder:{place}/sets/no-train", "has no folder `train` beside test, val"),
    ("--dataset=folder:{place}/sets/twice", "sets/twice/valid is a second validation split"),
    ("--dataset=folder:{place}/sets/stranger", "sets/stranger/other is out of place beside the splits"),
    ("--dataset=folder:{place}/sets/untrained", "class 'b' of split test has no training images"),
    ("--dataset=", "--dataset= is empty"),
    ("--dataset=synthetic", "needs no preparation"),
    ("--dataset=cifar11", "did you mean cifar10"),
    ("--dataset=cifar10:9.9.9", "--dataset=cifar10:9.9.9 cannot be opened"),
    *((f"'--dataset={name}'", f"--dataset={name} cannot be opened")
      for name in ("..", "a b", "/etc", "cifar10[train]", "ü")),
    ("--dataset=mnist --tfds_dir={place}/fifo", "--tfds_dir={place}/fifo is no folder"),
    ("--dataset=mnist --tfds_dir={place}/text.txt", "--tfds_dir={place}/text.txt is no folder"),
    ("--dataset=mnist --tfds_dir=", "--tfds_dir= is empty"),
    ("--dataset=odd --tfds_dir={place}/tfds", "--dataset=odd cannot be opened: Failed to load JSON"),
    *((f"--image_size={value}", f"--image_size={value}") for value in ("0", "-1", "4097", "9" * 30, "1.5", "nan", "x")),
    *((f"--split_seed={value}", f"--split_seed={value}") for value in ("-1", str(2**64), "1e3", "x", "inf")),
    ("--resize=crop", "--resize=crop"),
    ("--on_error=mend", "--on_error=mend"),
    ("--verify=perhaps", "--verify=perhaps"),
    ("--nothing=1", "nothing"),
    ("photos", "'photos' is not a flag"),
    ("--data_dir=", "--data_dir= is empty"),
    *((f"--dataset=folder:{{place}}/sets/good --data_dir={{place}}/{name}", f"--data_dir={{place}}/{name} cannot be used")
      for name in ("text.txt", "fifo", "text.txt/deep")),
    *((f"--data_dir={{place}}/stores --image_size={size}", said) for size, said in (
        (1, "groceries-1 is no usable prepared set: it has no meta.json"), (2, "meta.json cannot be read"),
        (3, "meta.json cannot be read (it is no regular file)"), (4, "meta.json cannot be read"),
        (5, "its format version is None"),
    )),
    ("--data_dir={place}/stores --image_size=66", "holds tiny: name another --data_dir"),
]  # fmt: skip
SWEEP: list[tuple[str, str]] = []
FIGURES: list[tuple[str, str]] = []
REPORT: list[tuple[str, str]] = []
CONVERT: list[tuple[str, str]] = []
BENCHMARK: list[tuple[str, str]] = []

COMMANDS = {
    "train": TRAIN, "evaluate": EVALUATE, "predict": PREDICT, "prepare": PREPARE, "sweep": SWEEP, "figures": FIGURES,
    "report": REPORT, "convert": CONVERT, "benchmark": BENCHMARK,
}  # fmt: skip
CASES = [(command, words, said) for command, cases in COMMANDS.items() for words, said in cases]


@pytest.fixture(scope="module")
def place(data_dir, tmp_path_factory) -> Path:
    """A folder with a finished run of one step, and files that no command can use."""
    folder = tmp_path_factory.mktemp("place")
    train(tiny_config(data_dir, folder / "run", steps=1, log_every=1))
    (folder / "text.txt").write_text("no image, no weights, no flags\n")
    (folder / "empty").touch()
    (folder / "folder").mkdir()
    Image.fromarray(np.zeros((SIZE, SIZE, 3), np.uint8)).save(folder / "black.png")
    os.mkfifo(folder / "fifo")
    make_lists_and_sets(folder, data_dir)
    return folder


def make_lists_and_sets(folder: Path, data_dir: Path) -> None:
    """Lists of paths that are none, folders of images in disorder, and prepared sets that are none."""
    (folder / "blank").write_text(" \n\n")
    (folder / "utf16").write_text("black.png\n", encoding="utf-16")
    files = (
        "hidden/.a.png", "hidden/.b/c.png", "sets/good/a/1", "sets/loose/1.png", "sets/loose/a/1",
        "sets/deep/a/b/1", "sets/no-images/a/.1",
        "sets/fifo/a/1", "sets/dangling/a/1", "sets/device/a/1", os.fsdecode(b"sets/latin1/caf\xe9/1"), "sets/case/a/1",
        "sets/case/A/1", "sets/no-train/val/a/1", "sets/no-train/test/a/1", "sets/twice/train/a/1", "sets/twice/val/a/1",
        "sets/twice/valid/a/1", "sets/stranger/train/a/1", "sets/stranger/other/a/1", "sets/untrained/train/a/1",
        "sets/untrained/test/b/1", "tfds/odd/1.0.0/features.json", "stores/groceries-1/x", "stores/groceries-3/x",
    )  # fmt: skip
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    os.mkfifo(folder / "sets/fifo/a/fifo")
    (folder / "sets/dangling/a/lost").symlink_to("nowhere")
    (folder / "sets/device/a/zero").symlink_to("/dev/zero")
    (folder / "tfds/odd/1.0.0/dataset_info.json").write_text("{")
    os.mkfifo(folder / "stores/groceries-3/meta.json")
    (folder / "stores/groceries-4").touch()
    for size, content in ((2, b"\xff\xd8\xff\xe0"), (5, b"[]")):
        (folder / f"stores/groceries-{size}").mkdir()
        (folder / f"stores/groceries-{size}/meta.json").write_bytes(content)
    (folder / f"stores/groceries-{SIZE}").symlink_to(data_dir / f"tiny-{SIZE}")


def contents(*folders: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder with its size and time of change."""
    paths = [path for folder in folders for path in folder.rglob("*")]
    return {str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in paths}


@pytest.mark.parametrize(("command", "words", "said"), CASES, ids=[f"{command} {words}" for command, words, _ in CASES])
def test_bad_input_gets_one_line_and_changes_nothing(place, data_dir, command, words, said):
    known = {"data": data_dir, "run": place / "run", "place": place}
    given = [word.format_map(known) for word in shlex.split(words)]
    base = tiny_flags(data_dir, place / "new") if command == "train" else []
    if command == "prepare" and "--data_dir" not in words:
        base = [f"--data_dir={place}/new"]
    before = contents(place, data_dir)
    result = run(command, *base, *given)
    assert result.returncode == 1, (result.stdout, result.stderr)
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert said.format_map(known) in line
    assert contents(place, data_dir) == before
