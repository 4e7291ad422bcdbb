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
    ("--step_timeout=-1", "--step_timeout=-1.0 is less than 0"),
    ("--step_timeout=nan", "--step_timeout=nan is less than 0"),
    ("--step_timeout=auto", "--step_timeout=auto"),
    ("--step_timeout=", "--step_timeout="),
    ("--step_timeout=5m", "--step_timeout=5m"),
]
EVALUATE: list[tuple[str, str]] = [
    ("--workdir={place}/nothing", "there is no config.json"),
    ("--workdir={run} --step=7", "--step=7"),
]
PREDICT: list[tuple[str, str]] = []
PREPARE: list[tuple[str, str]] = []
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
    return folder


def contents(*folders: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder with its size and time of change."""
    paths = [path for folder in folders for path in folder.rglob("*")]
    return {str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in paths}


@pytest.mark.parametrize(("command", "words", "said"), CASES, ids=[f"{command} {words}" for command, words, _ in CASES])
def test_bad_input_gets_one_line_and_changes_nothing(place, data_dir, command, words, said):
    known = {"data": data_dir, "run": place / "run", "place": place}
    given = [word.format_map(known) for word in shlex.split(words)]
    base = tiny_flags(data_dir, place / "new") if command == "train" else []
    before = contents(place, data_dir)
    result = run(command, *base, *given)
    assert result.returncode == 1, (result.stdout, result.stderr)
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert said.format_map(known) in line
    assert contents(place, data_dir) == before
