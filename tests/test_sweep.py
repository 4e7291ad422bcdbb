"""Sweeps with real trainers that are killed, diverge, or are interrupted, and their storage."""

import collections
import contextlib
import csv
import os
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from absl import flags
from networks import run, start, tiny_flags
from PIL import Image
from sqlalchemy.exc import IntegrityError

from alexnet_jax.run.metrics import read_rows
from alexnet_jax.run.workdir import read_config
from alexnet_jax.sweep import command as sweep_command
from alexnet_jax.sweep import study as studies
from alexnet_jax.sweep.__main__ import define_flags
from alexnet_jax.sweep.folder import check_folder
from alexnet_jax.system.cli import parse_flags
from alexnet_jax.system.errors import UserError
from alexnet_jax.system.signals import RESUME_STATUS

SPACE = """
[learning_rate]
log = [0.0003, 0.003]
[schedule]
choice = ["constant", "plateau"]
[patience]
int = [1, 3]
when = {schedule = "plateau"}
"""


def space_file(folder: Path, text: str = SPACE) -> Path:
    """Writes a space file."""
    (folder / "space.toml").write_text(text)
    return folder / "space.toml"


def sweep_flags(folder: Path, data_dir: Path, *more: str, text: str = SPACE, **fields) -> list[str]:
    """The command line of a sweep of short runs on the tiny set."""
    shared = {"eval_every": 2, "checkpoint_every": 2, "log_every": 1, "keep": 1, "steps": 4, "mesh": "1x1"}
    return [*tiny_flags(data_dir, folder / "sweep", **shared | fields), f"--space={space_file(folder, text)}", *more]


def trials_of(sweep: Path) -> list[dict[str, str]]:
    """trials.csv."""
    with (sweep / "trials.csv").open() as file:
        return list(csv.DictReader(file))


def completions(sweep: Path) -> collections.Counter[str]:
    """How often each trial has validated after its last step."""
    logs = {log.stem: log.read_text() for log in (sweep / "trials").glob("*.log")}
    return collections.Counter({name: text.count("step 4  validation") for name, text in logs.items()})


@pytest.mark.slow
def test_a_killed_sweep_finishes_its_trials_and_none_is_run_twice(data_dir, tmp_path):
    sweep, flags = tmp_path / "sweep", sweep_flags(tmp_path, data_dir, "--trials=3", "--jobs=2", "--prune_after=0")
    killed = start("sweep", *flags, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while not any(path.read_text() for path in sweep.glob("trials/*/metrics.jsonl")):
        assert killed.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    done = run("sweep", *flags)
    assert done.returncode == 0, done.stderr
    trials = trials_of(sweep)
    assert [trial["state"] for trial in trials] == ["complete"] * 3
    assert completions(sweep) == {"0000": 1, "0001": 1, "0002": 1}
    seeds = {read_config(str(sweep / "trials" / f"{number:04d}")).seed for number in range(3)}
    assert seeds == {0, 1, 2}
    # The same command has nothing left to do. best.cfg is the best trial without its seed and folder.
    assert run("sweep", *flags).returncode == 0
    assert completions(sweep).total() == 3
    best = min(trials, key=lambda trial: (float(trial["validation_top1_error"]), int(trial["trial"])))
    again = run("train", f"--flagfile={sweep}/best.cfg", f"--workdir={tmp_path}/again", f"--seed={best['trial']}")
    assert again.returncode == 0, again.stderr
    mine, theirs = (
        read_config(str(folder)) for folder in (tmp_path / "again", sweep / "trials" / f"{int(best['trial']):04d}")
    )
    assert replace(mine, workdir="") == replace(theirs, workdir="")
    for name, size in {"learning_curves": (1050, 600), "history": (1050, 750), "parallel_coordinates": (1110, 600)}.items():
        with Image.open(sweep / f"{name}.png") as picture:
            assert picture.size == size
            colours = {colour for _, colour in picture.convert("RGB").getcolors(maxcolors=1 << 24)}
        assert len(colours) > 100  # without lines there are only the greys of the letters
    assert (sweep / "table.md").read_text().count("\n") == 2 + 3


@pytest.mark.slow
def test_a_diverged_trial_keeps_its_log_and_another_space_is_refused(data_dir, tmp_path):
    text = "[learning_rate]\nchoice = [1e30, 0.001]\n"
    flags = sweep_flags(tmp_path, data_dir, "--sampler=grid", "--jobs=2", text=text, steps=2)
    done = run("sweep", *flags)
    assert done.returncode == 0, done.stderr
    diverged, complete = sorted(trials_of(tmp_path / "sweep"), key=lambda trial: trial["trial"])
    assert (diverged["state"], complete["state"]) == ("diverged", "complete")
    assert diverged["validation_top1_error"] == ""
    assert diverged["error"].startswith("step ")
    assert "Lower --learning_rate" in diverged["error"]
    assert "Lower --learning_rate" in (tmp_path / "sweep" / "trials" / "0000.log").read_text()
    best = read_config(str(tmp_path / "sweep" / "trials" / "0001"))
    assert best.learning_rate == 0.001
    other = run("sweep", *sweep_flags(tmp_path, data_dir))
    assert other.returncode == 1
    assert "has another space: use a new --workdir or --study" in other.stderr.splitlines()[-1]
    not_a_grid = run("sweep", *sweep_flags(tmp_path, data_dir, text=text))
    assert not_a_grid.returncode == 1
    assert "--sampler=tpe: all trials of a study are a grid or none is" in not_a_grid.stderr.splitlines()[-1]


def test_a_storage_that_cannot_be_reached_is_reported_before_any_trial(data_dir, tmp_path):
    url = "postgresql+psycopg://sweeper:secret@localhost:1/sweeps"
    done = run("sweep", *sweep_flags(tmp_path, data_dir, f"--storage={url}"))
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: --storage=postgresql+psycopg://sweeper:***@localhost:1/sweeps cannot be used: ")
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize("where", ["Studies", "open_data", "sweep_id"])
def test_ctrl_c_before_the_first_trial_ends_the_sweep_and_leaves_one_that_can_begin(data_dir, tmp_path, monkeypatch, where):
    def pressed(*arguments):
        raise KeyboardInterrupt

    options = flags.FlagValues()
    define_flags(options)
    parse_flags(options, sweep_flags(tmp_path, data_dir, "--trials=1"))
    with monkeypatch.context() as patch:
        patch.setattr(sweep_command, where, pressed)
        with pytest.raises(KeyboardInterrupt):  # `cli.Command` says one line
            sweep_command.main(options)
    assert not list((tmp_path / "sweep").glob("*.csv"))
    assert check_folder(str(tmp_path / "sweep"))


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_lets_the_trainers_save(data_dir, tmp_path):
    """It goes to all processes of the group. The same command goes on where they stopped."""
    flags = sweep_flags(tmp_path, data_dir, "--trials=2", "--jobs=2", steps=400, eval_every=5, checkpoint_every=400)
    sweep = start("sweep", *flags, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
    deadline = time.monotonic() + 200
    folders = [tmp_path / "sweep" / "trials" / f"{number:04d}" for number in range(2)]
    while not all(any(row["split"] == "train" for row in read_rows(folder)) for folder in folders):
        assert sweep.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(sweep.pid, signal.SIGINT)
    _, said = sweep.communicate(timeout=60)
    assert sweep.returncode == RESUME_STATUS, said
    assert "SIGINT: stopped, the trials in progress are saved" in said.splitlines()[-1]
    for folder in folders:
        log = folder.with_suffix(".log").read_text()
        assert "ended at once" not in log
        assert "stopped after step" in log
        assert list((folder / "checkpoints").glob("[0-9]*"))
    assert {trial["state"] for trial in trials_of(tmp_path / "sweep")} == {"running"}


@pytest.mark.parametrize("failures", [9, 10])
def test_a_sweep_waits_for_tables_that_another_process_makes(tmp_path, monkeypatch, failures):
    begin, waits = optuna.storages.RDBStorage.__init__, []

    def racing(*arguments, **options):
        if len(waits) < failures:
            raise IntegrityError("CREATE TABLE", {}, Exception("duplicate key"))
        begin(*arguments, **options)

    monkeypatch.setattr(optuna.storages.RDBStorage, "__init__", racing)
    monkeypatch.setattr(studies.time, "sleep", waits.append)
    with contextlib.nullcontext() if failures < 10 else pytest.raises(UserError, match=r"cannot be used: .*duplicate key"):
        assert studies.Studies(studies.sqlite_url(tmp_path / "study.db")).open("one").study_name == "one"
    assert waits == [0.5] * 9
