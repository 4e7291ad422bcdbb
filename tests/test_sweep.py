"""Sweeps: space files, and real trainers that are killed, fail, or share a study."""

import collections
import contextlib
import csv
import json
import signal
import subprocess
import time
from pathlib import Path

import optuna
import pytest
from matplotlib import pyplot as plt
from networks import run, small_config, start, tiny_flags
from PIL import Image
from sqlalchemy.exc import IntegrityError

from alexnet_jax.run.flags import changed
from alexnet_jax.run.workdir import read_config
from alexnet_jax.sweep import __main__ as sweep_command
from alexnet_jax.sweep import study as studies
from alexnet_jax.sweep import summary
from alexnet_jax.sweep.space import as_flags, read_space, with_values
from alexnet_jax.system.errors import UserError

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


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty: it needs a table for each flag"),
        ("[learning_rate\n", "cannot be read: "),
        ("[learning_rat]\nlog = [1, 2]\n", r"\[learning_rat\] is not a flag of the trainer"),
        ("[workdir]\nchoice = ['a']\n", r"\[workdir\] is the same for all trials"),
        ("[learning_rate]\nlog = [0.1, 0.01]\n", r"\[learning_rate\] log = \[0.1, 0.01\] is an empty range"),
        ("[learning_rate]\nlog = [0, 0.01]\n", r"log = \[0, 0.01\] goes through zero"),
        ("[learning_rate]\nuniform = ['a', 'b']\n", r"is not a range \[low, high\]"),
        ("[learning_rate]\nlog = [0.1, 0.2]\nint = [1, 2]\n", "needs exactly one of log, uniform, int, choice"),
        ("[learning_rate]\nlogarithmic = [0.1, 0.2]\n", "needs exactly one of"),
        ("[batch_size]\nuniform = [8, 64]\n", "flag --batch_size=8.0"),
        ("[batch_size]\nint = [8, 0]\n", "is an empty range"),
        ("[batch_size]\nint = [0, 8]\n", "--batch_size=0 is less than 1"),
        ("[schedule]\nchoice = []\n", "is empty or not a list"),
        ("[schedule]\nchoice = ['plateau', 'cosine']\n", "cosine"),
        ("[patience]\nint = [1, 3]\nwhen = {schedule = 'plateau'}\n", "its conditions are not in the space"),
    ],
)
def test_a_bad_space_gets_one_line_with_the_file_and_the_entry(tmp_path, text, said):
    with pytest.raises(UserError, match=said) as caught:
        read_space(space_file(tmp_path, text), small_config())
    assert f"--space={tmp_path}/space.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_trials_stay_in_the_space_and_conditions_hold(tmp_path):
    space = read_space(space_file(tmp_path), small_config())
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = [space.suggest(study.ask()) for _ in range(60)]
    assert all(0.0003 <= chosen["learning_rate"] <= 0.003 for chosen in drawn)
    assert {chosen["schedule"] for chosen in drawn} == {"constant", "plateau"}
    assert {chosen.get("patience") for chosen in drawn if chosen["schedule"] == "plateau"} == {1, 2, 3}
    assert all("patience" not in chosen for chosen in drawn if chosen["schedule"] == "constant")
    below = sum(chosen["learning_rate"] < 0.00095 for chosen in drawn)  # the middle of the logarithms
    assert 20 <= below <= 40


def test_a_grid_has_every_combination_once(tmp_path):
    text = SPACE.replace("log = [0.0003, 0.003]", "choice = [0.001, 0.002]")
    combinations = read_space(space_file(tmp_path, text), small_config()).grid()
    assert len(combinations) == 2 * (1 + 3)
    assert {"learning_rate": 0.002, "schedule": "plateau", "patience": 2} in combinations
    with pytest.raises(UserError, match="--sampler=grid: learning_rate is a range"):
        read_space(space_file(tmp_path), small_config()).grid()


def test_flags_of_a_config_make_the_same_config():
    config = small_config(flip=False, layer_rates=["conv1:0.1@20", "fc8:10"], drop_epochs=["3", "4.5"], seed=7)
    assert with_values(small_config(), changed(config)) == config
    assert "--noflip" in as_flags(changed(config))


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
        changed(read_config(str(folder))) for folder in (tmp_path / "again", sweep / "trials" / f"{int(best['trial']):04d}")
    )
    assert {**mine, "workdir": ""} == {**theirs, "workdir": ""}
    for name, size in {"learning_curves": (1050, 600), "history": (1050, 600), "parallel_coordinates": (1110, 600)}.items():
        with Image.open(sweep / f"{name}.png") as picture:
            assert picture.size == size
            colours = {colour for _, colour in picture.convert("RGB").getcolors(maxcolors=1 << 24)}
        assert len(colours) > 100  # without lines there are only the greys of the letters
    assert (sweep / "table.md").read_text().count("\n") == 2 + 3


@pytest.mark.slow
def test_a_failed_trial_keeps_its_log_and_another_space_is_refused(data_dir, tmp_path):
    text = "[learning_rate]\nchoice = [1e30, 0.001]\n"
    flags = sweep_flags(tmp_path, data_dir, "--sampler=grid", "--jobs=2", text=text, steps=2)
    done = run("sweep", *flags)
    assert done.returncode == 0, done.stderr
    failed, complete = sorted(trials_of(tmp_path / "sweep"), key=lambda trial: trial["trial"])
    assert (failed["state"], complete["state"]) == ("fail", "complete")
    assert "Lower --learning_rate" in failed["error"]
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
    assert not (tmp_path / "sweep" / "trials").exists()


@pytest.fixture
def quick(monkeypatch):
    """Sweeps whose trials do not train: each has one validation error, 50 plus its number. No pictures are saved."""

    def tried(trial, folder, values, interruption, environment):
        folder.mkdir(parents=True)
        row = {"split": "validation", "step": 1, "epoch": 1.0, "top1_error": 50.0 + trial.number}
        (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
        return optuna.trial.TrialState.COMPLETE

    def not_saved(figure, folder, name):
        plt.close(figure)
        return folder / name

    monkeypatch.setattr(sweep_command, "run_trial", tried)
    monkeypatch.setattr(summary, "save_figure", not_saved)


def test_sweeps_in_two_folders_share_a_study(quick, data_dir, tmp_path):
    shared = (f"--storage=sqlite:///{tmp_path}/study.db", "--study=towers")
    for name, count in (("one", 2), ("two", 5), ("one", 6)):
        (tmp_path / name).mkdir(exist_ok=True)
        done = run("sweep", *sweep_flags(tmp_path / name, data_dir, *shared, f"--trials={count}"))
        assert done.returncode == 0, done.stderr
    folders = {
        name: sorted(path.name for path in (tmp_path / name / "sweep/trials").glob("????")) for name in ("one", "two")
    }
    assert folders == {"one": ["0000", "0001", "0005"], "two": ["0002", "0003", "0004"]}
    assert [trial["state"] for trial in trials_of(tmp_path / "one" / "sweep")] == ["complete"] * 6
    other = run("sweep", *sweep_flags(tmp_path / "one", data_dir, shared[0], "--study=another"))
    assert other.returncode == 1
    assert "has trials of the study 'towers', not of 'another': use a new --workdir" in other.stderr


def test_a_surplus_trial_is_given_back(quick, data_dir, tmp_path, monkeypatch):
    """Another process asks for a trial after this one has counted the trials."""
    ask = optuna.Study.ask

    def after_another(study):
        ask(study).set_user_attr("sweep", "another")
        return ask(study)

    monkeypatch.setattr(optuna.Study, "ask", after_another)
    done = run("sweep", *sweep_flags(tmp_path, data_dir, "--trials=1"))
    assert done.returncode == 0, done.stderr
    assert not list((tmp_path / "sweep").glob("trials/????"))
    (trial,) = trials_of(tmp_path / "sweep")
    assert (trial["trial"], trial["state"]) == ("0", "running")


@pytest.mark.parametrize("failures", [9, 10])
def test_a_sweep_waits_for_tables_that_another_process_makes(tmp_path, monkeypatch, failures):
    begin, waits = optuna.storages.RDBStorage.__init__, []

    def racing(*arguments, **options):
        if len(waits) < failures:
            raise IntegrityError("CREATE TABLE", {}, Exception("duplicate key"))
        begin(*arguments, **options)

    monkeypatch.setattr(optuna.storages.RDBStorage, "__init__", racing)
    monkeypatch.setattr(studies.time, "sleep", waits.append)
    config = small_config(workdir=str(tmp_path))
    space = read_space(space_file(tmp_path), config)
    with contextlib.nullcontext() if failures < 10 else pytest.raises(UserError, match=r"cannot be used: .*duplicate key"):
        study, _ = studies.open_study(config, space, storage="", name="one", sampler="tpe", grace=0)
        assert study.study_name == "one"
    assert waits == [0.5] * 9
