"""Sweeps that share a study in PostgreSQL, on a server that the tests start."""

import contextlib
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
from networks import ROOT, start
from test_sweep import completions, space_file, sweep_flags

pytestmark = pytest.mark.nightly
BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))


@pytest.fixture
def postgres(tmp_path_factory):
    """The URL of a new PostgreSQL server on loopback. It refuses to run as root, so root starts it as nobody."""
    if not BINARIES:
        pytest.skip("PostgreSQL is not installed")
    folder = tmp_path_factory.mktemp("postgres")
    user = "nobody" if os.getuid() == 0 else None
    if user:
        for parent in (folder, *folder.parents[:3]):  # a worker of xdist has a folder of its own
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
    server.send_signal(signal.SIGINT)  # does not wait for clients
    server.wait()


OPENER = """
import sys
from pathlib import Path
import optuna
from matplotlib import pyplot as plt
from networks import small_config
from alexnet_jax.sweep.space import read_space
from alexnet_jax.sweep.study import Studies, open_search
config = small_config(workdir=".")
space = read_space(Path(sys.argv[1]), config)
for url in map(str.strip, sys.stdin):
    open_search(Studies(url), config, space, name="one", sampler="tpe", grace=0, fingerprint="")
    print(optuna.get_all_study_names(url), flush=True)
"""


def test_processes_that_start_at_once_make_one_study_in_an_empty_database(tmp_path, postgres):
    """Optuna does not lock its CREATE TABLE: all but the first used to fail with a duplicate key."""
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
            assert {opener.stdout.readline() for opener in openers} == {"['one']\n"}


def test_two_sweeps_share_a_study_in_postgresql(data_dir, tmp_path, postgres):
    shared = (f"--storage={postgres}", "--study=towers", "--trials=4", "--prune_after=0")
    running = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        words = sweep_flags(tmp_path / name, data_dir, *shared)
        running.append(start("sweep", *words, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
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
