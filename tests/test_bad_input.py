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
PREDICT: list[tuple[str, str]] = []
PREPARE: list[tuple[str, str]] = []
SWEEP: list[tuple[str, str]] = [
    # The flags
    ("--space=", "--space=. cannot be read: it is not a file"),
    ("--trials=0", "--trials=0"),
    ("--trials=-3", "--trials=-3"),
    ("--trials=10001", "--trials=10001"),
    ("--trials=1e3", "--trials=1e3"),
    ("--jobs=0", "--jobs=0"),
    ("--jobs=two", "--jobs=two"),
    ("--retries=-1", "--retries=-1"),
    ("--prune_after=-1", "--prune_after=-1"),
    ("--prune_after=1.5", "--prune_after=1.5"),
    ("--confirm=-1", "--confirm=-1"),
    ("--confirm=all", "--confirm=all"),
    ("--confirm_seeds=0", "--confirm_seeds=0"),
    ("--confirm_seeds=1001", "--confirm_seeds=1001"),
    ("--sampler=bayes", "--sampler=bayes"),
    ("--sampler=", "--sampler="),
    ("--sampler=grid", "--sampler=grid: learning_rate is a range; list its values under 'choice'"),
    ("--distributed", "--distributed: a trial trains in one process"),
    ("--nosuchflag=1", "nosuchflag"),
    ("trials=3", "'trials=3' is not a flag"),
    # What the trainers would refuse
    ("--batch_size=0", "--batch_size=0"),
    ("--learning_rate=fast", "--learning_rate=fast"),
    ("--mesh=3", "--mesh=3"),
    ("--fold=3/3", "--fold=3/3"),
    ("--freeze=fc9", "--freeze=fc9"),
    ("--seed=-1", "--seed=-1"),
    ("--dataset=nothing --data_dir={place}/folder", "nothing"),
    ("--data_dir={place}/nothing", "{place}/nothing"),
    ("--data_dir='{data}\n'", "cannot stand in a flag file"),
    ("--init=' runs/x'", "--init=' runs/x' cannot stand in a flag file"),
    # Where it works
    ("--workdir=", "--workdir is missing"),
    ("--workdir={run}", "--workdir={run} holds a run"),
    ("--workdir={place}", "holds something that is not a sweep"),
    ("--workdir={data}", "holds something that is not a sweep"),
    ("--workdir={place}/text.txt", "--workdir={place}/text.txt cannot be used: Not a directory"),
    ("--workdir={place}/text.txt/sweep", "cannot be used: Not a directory"),
    ("--workdir={place}/fifo", "cannot be used: Not a directory"),
    ("--workdir={place}/dangling", "--workdir={place}/dangling cannot be made: File exists"),
    ("--workdir='{place}/a\nb'", "cannot stand in a flag file"),
    # The storage
    ("--storage=postgres", "--storage=postgres cannot be used: Could not parse SQLAlchemy URL"),
    ("--storage=postgresql+psycopg://me:secret@localhost:port/studies", "--storage=postgresql+psycopg cannot be used: "),
    ("--storage=postgresql+psycopg://me:secret@localhost:1/studies", "me:***@localhost:1/studies cannot be used: "),
    ("--storage=nosuch://localhost/studies", "cannot be used: Can't load plugin"),
    ("--storage=sqlite://", "a study in memory cannot be resumed"),
    ("--storage=sqlite:///:memory:", "a study in memory cannot be resumed"),
    ("--storage=sqlite:///{place}/nothing/study.db", "unable to open database file"),
    ("--storage=sqlite:///{place}/folder", "unable to open database file"),
    ("--storage=sqlite:///{place}/black.png", "file is not a database"),
    ("--storage='sqlite:///{{oops}}/study.db'", "cannot be used: "),
    # The space
    ("--space={place}/nothing.toml", "--space={place}/nothing.toml cannot be read: "),
    ("--space={place}/folder", "--space={place}/folder cannot be read: it is not a file"),
    ("--space={place}/fifo", "--space={place}/fifo cannot be read: it is not a file"),
    ("--space={place}/black.png", "--space={place}/black.png cannot be read: "),
    ("--space={place}/text.txt", "--space={place}/text.txt cannot be read: "),
    ("--space={place}/empty", "--space={place}/empty is empty"),
    ("--space={place}/unknown.toml", "is not a flag of the trainer"),
    ("--space={place}/reserved.toml", "[seed] is given by the sweep"),
    ("--space={place}/list.toml", "a list is a text such as '17,21'"),
    ("--space={place}/infinite.toml", "not finite"),
    ("--space={place}/never.toml", "no trial has these values"),
    ("--space={place}/huge.toml --sampler=grid", "--sampler=grid: with patience it has more than 10,000 combinations"),
]
SPACES = {
    "unknown": '["learning\\nrate"]\nlog = [1, 2]', "reserved": "[seed]\nint = [0, 9]",
    "list": "[freeze]\nchoice = [['conv1']]", "infinite": "[momentum]\nuniform = [0.0, inf]",
    "huge": "[patience]\nint = [1, 1000000]",
    "never": "[patience]\nint = [1, 3]\nwhen = {schedule = 'steps'}\n[schedule]\nchoice = ['plateau']",
    "rates": "[learning_rate]\nlog = [0.001, 0.01]",
}  # fmt: skip
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
    (folder / "dangling").symlink_to("nowhere")
    for name, text in SPACES.items():
        (folder / f"{name}.toml").write_text(text)
    return folder


def contents(*folders: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder with its size and time of change."""
    paths = [path for folder in folders for path in folder.rglob("*")]
    return {str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in paths}


@pytest.mark.parametrize(("command", "words", "said"), CASES, ids=[f"{command} {words}" for command, words, _ in CASES])
def test_bad_input_gets_one_line_and_changes_nothing(place, data_dir, command, words, said):
    known = {"data": data_dir, "run": place / "run", "place": place}
    given = [word.format_map(known) for word in shlex.split(words)]
    base = tiny_flags(data_dir, place / "new") if command in ("train", "sweep") else []
    base += [f"--space={place}/rates.toml"] if command == "sweep" else []
    before = contents(place, data_dir)
    result = run(command, *base, *given)
    assert result.returncode == 1, (result.stdout, result.stderr)
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert said.format_map(known) in line
    assert contents(place, data_dir) == before
