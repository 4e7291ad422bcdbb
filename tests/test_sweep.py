"""Sweeps: what a space file may say, and real sweeps of real trainers, killed, failed and shared through PostgreSQL."""

import collections
import contextlib
import csv
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
import sqlalchemy
from networks import ROOT, run, small_config, tiny_flags

from alexnet_jax.errors import UserError
from alexnet_jax.sweep.space import as_flags, changed, read_space, with_values
from alexnet_jax.workdir import read_config

SPACE = """
[learning_rate]
log = [0.0003, 0.003]
[schedule]
choice = ["constant", "plateau"]
[patience]
int = [1, 3]
when = {schedule = "plateau"}
"""
BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))


def space_file(folder: Path, text: str = SPACE) -> Path:
    """A space on the disk."""
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
    config = small_config(mirror=False, layer_rates=["conv1:0.1@20", "fc8:10"], drop_epochs=["3", "4.5"], seed=7)
    assert with_values(small_config(), changed(config)) == config
    assert "--nomirror" in as_flags(changed(config))


def sweep_flags(folder: Path, data_dir: Path, *more: str, text: str = SPACE, **fields) -> list[str]:
    """The command line of a sweep of short runs on the tiny set."""
    shared = {"eval_every": 2, "checkpoint_every": 2, "log_every": 1, "keep": 1, "steps": 6}
    return [*tiny_flags(data_dir, folder / "sweep", **shared | fields), f"--space={space_file(folder, text)}", *more]


def trials_of(sweep: Path) -> list[dict[str, str]]:
    """trials.csv."""
    with (sweep / "trials.csv").open() as file:
        return list(csv.DictReader(file))


def completions(sweep: Path) -> collections.Counter[str]:
    """How often each trial has validated after its last step."""
    logs = {log.stem: log.read_text() for log in (sweep / "trials").glob("*.log")}
    return collections.Counter({name: text.count("step 6  validation") for name, text in logs.items()})


@pytest.mark.slow
def test_a_killed_sweep_finishes_its_trials_and_none_is_run_twice(data_dir, tmp_path):
    sweep, flags = tmp_path / "sweep", sweep_flags(tmp_path, data_dir, "--trials=3", "--jobs=2", "--prune_after=0")
    command = [sys.executable, "-m", "alexnet_jax.sweep", *flags]
    killed = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
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
    # The same command again has nothing to do, and best.cfg is the best trial but for its seed and folder.
    assert run("sweep", *flags).returncode == 0
    assert completions(sweep).total() == 3
    best = min(trials, key=lambda trial: (float(trial["validation_top1_error"]), int(trial["trial"])))
    again = run("train", f"--flagfile={sweep}/best.cfg", f"--workdir={tmp_path}/again", f"--seed={best['trial']}")
    assert again.returncode == 0, again.stderr
    mine, theirs = (
        changed(read_config(str(folder))) for folder in (tmp_path / "again", sweep / "trials" / f"{int(best['trial']):04d}")
    )
    assert {**mine, "workdir": ""} == {**theirs, "workdir": ""}
    for name in ("learning_curves", "history", "parallel_coordinates"):
        assert (sweep / f"{name}.png").stat().st_size > 5000
    assert (sweep / "table.md").read_text().count("\n") == 2 + 3


@pytest.mark.slow
def test_a_failed_trial_keeps_its_log_and_another_space_is_refused(data_dir, tmp_path):
    text = "[learning_rate]\nchoice = [1e30, 0.001]\n"
    flags = sweep_flags(tmp_path, data_dir, "--sampler=grid", text=text)
    done = run("sweep", *flags)
    assert done.returncode == 0, done.stderr
    failed, complete = trials_of(tmp_path / "sweep")
    assert (failed["state"], complete["state"]) == ("fail", "complete")
    assert "Lower --learning_rate" in failed["error"]
    assert "Lower --learning_rate" in (tmp_path / "sweep" / "trials" / "0000.log").read_text()
    other = run("sweep", *sweep_flags(tmp_path, data_dir))
    assert other.returncode == 1
    assert "is one of another space: use a new --workdir or --study" in other.stderr.splitlines()[-1]
    not_a_grid = run("sweep", *sweep_flags(tmp_path, data_dir, text=text))
    assert not_a_grid.returncode == 1
    assert "--sampler=tpe: a study is a grid from its first trial on or never" in not_a_grid.stderr.splitlines()[-1]


def test_a_storage_that_cannot_be_reached_is_said_before_any_trial(data_dir, tmp_path):
    url = "postgresql+psycopg://sweeper:secret@localhost:1/sweeps"
    done = run("sweep", *sweep_flags(tmp_path, data_dir, f"--storage={url}"))
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: --storage=postgresql+psycopg://sweeper:***@localhost:1/sweeps cannot be used: ")
    assert not (tmp_path / "sweep" / "trials").exists()


@pytest.fixture
def postgres(tmp_path_factory):
    """The URL of a PostgreSQL of our own on loopback. It refuses to run as root, so root starts it as nobody."""
    if not BINARIES:
        pytest.skip("PostgreSQL is not installed")
    folder = tmp_path_factory.mktemp("postgres")
    user = "nobody" if os.getuid() == 0 else None
    if user:
        for parent in (folder, *folder.parents[:2]):
            os.chmod(parent, 0o755)
        shutil.chown(folder, user)
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    data = folder / "data"
    initdb = [BINARIES[-1] / "initdb", "-D", data, "-U", "sweeper", "--auth=trust", "-E", "UTF8", "--no-sync"]
    subprocess.run(initdb, user=user, check=True, capture_output=True, cwd=folder)
    options = ["-D", data, "-p", str(port), "-k", folder, "-c", "listen_addresses=localhost", "-c", "fsync=off"]
    server = subprocess.Popen(
        [BINARIES[-1] / "postgres", *options], user=user, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder
    )
    ready = [BINARIES[-1] / "pg_isready", "-h", "localhost", "-p", str(port)]
    deadline = time.monotonic() + 60
    while subprocess.run(ready, capture_output=True, check=False).returncode:
        assert server.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    yield f"postgresql+psycopg://sweeper@localhost:{port}/postgres"
    server.send_signal(signal.SIGINT)  # without waiting for those who are connected
    server.wait()


OPENER = """
import sys
from pathlib import Path
from networks import small_config
from alexnet_jax.sweep.space import read_space
from alexnet_jax.sweep.study import open_study
config = small_config(workdir=".")
space = read_space(Path(sys.argv[1]), config)
for url in map(str.strip, sys.stdin):
    print(open_study(config, space, storage=url, name="one", sampler="tpe", grace=0)._study_id, flush=True)
"""


@pytest.mark.slow
def test_processes_that_start_at_once_make_one_study_in_an_empty_database(tmp_path, postgres):
    """No lock guards Optuna's CREATE TABLE: all but the first used to end with a duplicate key."""
    command = [sys.executable, "-c", OPENER, space_file(tmp_path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests")))}
    with contextlib.ExitStack() as stack:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        openers = [stack.enter_context(subprocess.Popen(command, cwd=tmp_path, env=environment, **pipes)) for _ in range(4)]
        server = sqlalchemy.create_engine(postgres, isolation_level="AUTOCOMMIT")
        stack.callback(server.dispose)
        for name in ("warm", "first", "second", "third"):
            with server.connect() as connection:
                connection.exec_driver_sql(f"CREATE DATABASE {name}")
            for opener in openers:
                opener.stdin.write(postgres.removesuffix("postgres") + name + "\n")
                opener.stdin.flush()
            assert {opener.stdout.readline() for opener in openers} == {"1\n"}


@pytest.mark.slow
def test_two_sweeps_share_a_study_in_postgresql(data_dir, tmp_path, postgres):
    shared = (f"--storage={postgres}", "--study=towers", "--trials=4", "--prune_after=0")
    running = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        command = [sys.executable, "-m", "alexnet_jax.sweep", *sweep_flags(tmp_path / name, data_dir, *shared)]
        running.append(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    said = [process.communicate(timeout=400) for process in running]
    assert [process.returncode for process in running] == [0, 0], said
    done = [completions(tmp_path / name / "sweep") for name in ("one", "two")]
    assert (done[0] + done[1]).total() == 4
    assert not done[0].keys() & done[1].keys()
    assert all(counter.total() for counter in done)
    storage = optuna.storages.RDBStorage(postgres)
    study = optuna.load_study(study_name="towers", storage=storage)
    assert [trial.state.name for trial in study.trials if not trial.user_attrs.get("surplus")] == ["COMPLETE"] * 4
    assert len({trial.params["learning_rate"] for trial in study.trials if trial.params}) == 4
    storage.remove_session()
    storage.engine.dispose()
