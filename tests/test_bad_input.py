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
    # Numbers.
    ("--learning_rate=nan", "--learning_rate=nan is not a finite number"),
    ("--learning_rate=inf", "--learning_rate=inf is not a finite number"),
    ("--learning_rate=-0.1", "--learning_rate=-0.1 is less than 0"),
    ("--learning_rate=1e39", "--learning_rate=1e+39 is more than"),
    ("--learning_rate=fast", "--learning_rate=fast"),
    ("--momentum=-1", "--momentum=-1.0 is less than 0"),
    ("--momentum=1.5", "--momentum=1.5 is more than 1"),
    ("--momentum=nan", "--momentum=nan is not a finite number"),
    ("--weight_decay=inf", "--weight_decay=inf is not a finite number"),
    ("--weight_decay=-1e-4", "--weight_decay=-0.0001 is less than 0"),
    ("--bias_rate=-inf", "--bias_rate=-inf is not a finite number"),
    ("--bias_init=nan", "--bias_init=nan is not a finite number"),
    ("--dropout=1", "--dropout=1.0 is not a rate"),
    ("--dropout=nan", "--dropout=nan is not a finite number"),
    ("--drop_factor=0.5", "--drop_factor=0.5 is less than 1"),
    ("--max_drops=-1", "--max_drops=-1 is less than 0"),
    ("--patience=0", "--patience=0 is less than 1"),
    ("--seed=-1", "--seed=-1 is less than 0"),
    ("--seed=4294967296", "--seed=4294967296 is more than 4294967295"),
    ("--seed=1.5", "--seed=1.5"),
    ("--batch_size=0", "--batch_size=0 is less than 1"),
    ("--batch_size=-8", "--batch_size=-8 is less than 1"),
    ("--batch_size=99999999999", "--batch_size=99999999999 is more than 2147483647"),
    ("--batch_size=2000000000", "--batch_size=2000000000: its images alone take"),
    ("--accumulate=0", "--accumulate=0 is less than 1"),
    ("--accumulate=3", "--batch_size=8 does not divide into 3 parts (--accumulate)"),
    ("--steps=-1", "--steps=-1 is less than 1"),
    ("--steps=3000000000", "--steps=3000000000 is more than 2147483647"),
    ("--steps=0 --epochs=0", "--epochs=0 and --steps=0 leave nothing to do"),
    ("--steps=0 --epochs=inf", "--epochs=inf is not a finite number"),
    ("--steps=0 --epochs=1e12", "--epochs=1000000000000 makes"),
    ("--image_size=0", "--image_size=0 is less than 1"),
    ("--image_size=-66", "--image_size=-66 is less than 1"),
    ("--crop_size=67", "--crop_size=67 is larger than --image_size=66"),
    ("--crop_size=-1", "--crop_size=-1 is less than 1"),
    ("--crop_size=20", "--crop_size=20 is too small"),
    ("--colour_noise_epochs=-1", "--colour_noise_epochs=-1.0 is less than 0"),
    ("--log_every=0", "--log_every=0 is less than 1"),
    ("--eval_every=-2", "--eval_every=-2 is less than 1"),
    ("--checkpoint_every=-2", "--checkpoint_every=-2 is less than 1"),
    ("--keep=0", "--keep=0 is less than 1"),
    ("--host_devices=1000000", "--host_devices=1000000 is more than 512"),
    # Lists and what has a form of its own.
    ("--mesh=3", "--mesh=3 is not of the form"),
    ("--mesh=0x1", "--mesh=0x1 is not of the form"),
    ("--mesh=-1x2", "--mesh=-1x2 is not of the form"),
    ("--mesh=1x2x3", "--mesh=1x2x3 is not of the form"),
    ("--mesh=99999999999999x1", "--mesh=99999999999999x1 is not of the form"),
    ("--mesh=4x4", "--mesh=4x4 needs 16 devices and 8 are present"),
    ("--mesh=3x1", "--batch_size=8 cannot be shared evenly by the 3 rows"),
    ("--mesh=1x4", "--mesh=1x4 has 4 columns"),
    ("--fold=1", "--fold=1 is not I/K"),
    ("--fold=2/2", "--fold=2/2 is not I/K"),
    ("--fold=-1/3", "--fold=-1/3 is not I/K"),
    ("--fold=0/1", "--fold=0/1 is not I/K"),
    ("--layer_rates=conv1", "--layer_rates=conv1 is not LAYER:FACTOR"),
    ("--layer_rates=conv1:-1", "--layer_rates=conv1:-1 has a number that is negative or not finite"),
    ("--layer_rates=conv1:nan", "--layer_rates=conv1:nan has a number that is negative or not finite"),
    ("--layer_rates=conv1:1@inf", "--layer_rates=conv1:1@inf has a number that is negative or not finite"),
    ("--layer_rates=conv1:1,conv1:2", "--layer_rates names conv1@0 twice"),
    ("--layer_rates=conv9:1", "--layer_rates=conv9: no such layer"),
    ("--freeze=conv1,conv1", "--freeze names conv1 twice"),
    ("--freeze=fc9", "--freeze=fc9: no such layer"),
    ("--freeze=conv1 --layer_rates=conv1:0.1", "--freeze=conv1: --layer_rates gives it a rate"),
    ("--drop_epochs=1,x", "--drop_epochs=1,x is not a list of numbers"),
    ("--drop_epochs=-1", "--drop_epochs=-1 has an epoch that is negative or not finite"),
    ("--drop_epochs=1,nan", "--drop_epochs=1,nan has an epoch that is negative or not finite"),
    ("--drop_epochs=3,3", "--drop_epochs names 3 twice"),
    ("--schedule=never", "--schedule=never"),
    ("--architecture=alexnet", "--architecture=alexnet"),
    ("--precision=float16", "--precision=float16"),
    ("--spmd=jit", "--spmd=jit"),
    ("--mean=median", "--mean=median"),
    ("--mean=own", "--mean=own: neither --workdir nor --init has a mean.npy"),
    ("--resize=crop", "--resize=crop"),
    ("--data_on_device=maybe", "--data_on_device=maybe"),
    # Data and folders.
    ("--dataset=nothing", "--dataset=nothing is not prepared"),
    ("--dataset=folder:/nowhere", "--dataset=folder:/nowhere is not prepared"),
    ("--data_dir={place}/folder", "--data_dir={place}/folder"),
    ("--data_dir={place}/text.txt", "--data_dir={place}/text.txt"),
    ("--workdir=", "--workdir is missing"),
    ("--workdir={place}/text.txt", "--workdir={place}/text.txt cannot be written"),
    ("--workdir={place}/text.txt/run", "--workdir={place}/text.txt/run cannot be written: Not a directory"),
    ("--workdir={place}/full", "--workdir={place}/full holds something that is not a run"),
    ("--workdir={place}/x[1]", "in its path would make checkpoints unreadable"),
    ("--workdir={place}/LONG", "File name too long"),
    ("--workdir={run} --seed=3", "holds another run: --seed was 0 and is now 3"),
    ("--workdir={run} --mean=channel", "holds another run: --mean was image and is now channel"),
    ("--init=/nowhere", "--init=/nowhere holds no run"),
    ("--init={place}/folder", "--init={place}/folder holds no run"),
    ("--init={run} --workdir={run}", "--init={run} is the --workdir itself"),
    ("--init={run} --init_layers=fc9", "--init_layers=fc9: no such layer"),
    ("--init={run} --architecture=paper", "--init={run} has"),
    ("--init_layers=fc7", "--init_layers needs --init"),
    # Words and flag files.
    ("steps=3", "'steps=3' is not a flag"),
    ("--stepz=3", "stepz"),
    ("--flagfile={place}/photo.jpg", "--flagfile={place}/photo.jpg is not a file of flags"),
    ("--flagfile={place}/folder", "{place}/folder"),
    ("--flagfile={place}/nothing.cfg", "{place}/nothing.cfg"),
    ("--flagfile={place}/text.txt", "is not a flag"),
]
EVALUATE: list[tuple[str, str]] = [
    ("", "--workdir is missing"),
    ("--workdir=", "--workdir is missing"),
    ("--workdir={place}/nothing", "there is no config.json"),
    ("--workdir={place}/text.txt", "there is no config.json"),
    ("--workdir={run} --step=7", "--step=7"),
    ("--workdir={run} --step=-1", "--step=-1"),
    ("--workdir={run} --step=", "--step="),
    ("--workdir={run} --split=all", "--split=all"),
    ("--workdir={run} --views=2", "--views is 1 or 10"),
    ("--workdir={run} --batch_size=0", "--batch_size=0 is less than 1"),
    ("--workdir={run} --mesh=2", "--mesh=2 is not of the form"),
    ("--workdir={run} --data_dir=/nowhere", "--data_dir=/nowhere"),
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
    Image.fromarray(np.zeros((SIZE, SIZE, 3), np.uint8)).save(folder / "photo.jpg")
    os.mkfifo(folder / "fifo")
    (folder / "full").mkdir()
    (folder / "full" / "thesis.tex").write_text("a year of work\n")
    return folder


def contents(*folders: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder with its size and time of change, but the locks, which name the last process."""
    paths = [path for folder in folders for path in folder.rglob("*") if path.name != "lock"]
    return {str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in paths}


@pytest.mark.parametrize(("command", "words", "said"), CASES, ids=[f"{command} {words}" for command, words, _ in CASES])
def test_bad_input_gets_one_line_and_changes_nothing(place, data_dir, command, words, said):
    known = {"data": data_dir, "run": place / "run", "place": place}
    given = [word.format_map(known).replace("LONG", "long" * 70) for word in shlex.split(words)]
    base = tiny_flags(data_dir, place / "new") if command == "train" else []
    before = contents(place, data_dir)
    result = run(command, *base, *given)
    assert result.returncode == 1, (result.stdout, result.stderr)
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert said.format_map(known) in line
    assert contents(place, data_dir) == before
