"""Several processes evaluate and predict what one does: the same files byte for byte, written by the first alone."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from networks import DEVICES, ROOT, run, tiny_config
from PIL import Image

from alexnet_jax.data.store import open_store, store_path
from alexnet_jax.system import processes
from alexnet_jax.system.errors import FailedElsewhere, InUse, UserError
from alexnet_jax.training import train


def launch(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """launch/local with two processes of one device."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    threads = max(DEVICES, len(os.sched_getaffinity(0)))
    environment = os.environ | {"PATH": path, "VENV": sys.prefix, "NPROC": str(threads)} | environment
    command = [f"{ROOT}/launch/local", "--processes=2", "--devices=1", "--", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)


def objects(said: str) -> list[dict]:
    """The lines that are JSON; others are of JAX's own collectives."""
    return [json.loads(line) for line in said.splitlines() if line.startswith("{")]


@pytest.fixture(scope="module")
def workdir(data_dir, tmp_path_factory) -> Path:
    """A run of two steps on the tiny set."""
    folder = tmp_path_factory.mktemp("run") / "run"
    train(tiny_config(data_dir, folder, steps=2))
    return folder


@pytest.fixture(scope="module")
def photos(data_dir, tmp_path_factory) -> Path:
    """A folder of eleven images, and a file among them that is none."""
    folder = tmp_path_factory.mktemp("photos")
    images = open_store(store_path(data_dir, "tiny", 66)).splits["test"].images[:11]
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number:02d}.png")
    (folder / "05b.png").write_bytes(b"")
    return folder


@pytest.mark.slow
def test_two_processes_write_the_files_of_one(workdir, photos, tmp_path):
    """33 test images in batches of 8: the last one has a single image, which one of the processes has none of.

    `evaluate` has ten views, `predict` one. A batch is one of 8, or two of 4, and yet all files are equal.
    """
    names, files = ("one", "rows", "towers"), dict[str, list[bytes]]()
    said = dict[str, list]()
    for name, mesh in zip(names, ("1x1", "2x1", "1x2"), strict=True):
        results, predictions, features, figure = (tmp_path / f"{name}{end}" for end in (".csv", ".npz", "_fc7.npz", ".png"))
        evaluate = ("evaluate", f"--workdir={workdir}", f"--mesh={mesh}", "--views=10", f"--results={results}",
                    f"--predictions={predictions}")  # fmt: skip
        predict = ("predict", f"--workdir={workdir}", f"--mesh={mesh}", "--batch_size=8", "--format=jsonl", str(photos),
                   f"--features=fc7:{features}", f"--figure={figure}")  # fmt: skip
        both = [run(*words) if name == "one" else launch(*words) for words in (evaluate, predict)]
        assert [done.returncode for done in both] == [0, 1], [done.stderr for done in both]
        assert both[1].stderr.count("05b.png: in no image format") == 1
        assert both[1].stderr.count("error: 1 of 12 images could not be read") == 1
        said[name] = [objects(done.stdout) for done in both]
        files[name] = [path.read_bytes() for path in (results, predictions, features, figure)]
    (score,), rows = said["one"]
    assert (score["examples"], score["views"], len(rows)) == (33, 10, 11)
    assert said["rows"] == said["towers"] == said["one"]
    assert files["one"][0].count(b"\n") == 34
    for name in names[1:]:
        equal = [ours == theirs for ours, theirs in zip(files[name], files["one"], strict=True)]
        assert equal == [True] * 4, (name, "results, predictions, features, figure")


# Read by Python itself when a process starts: the process $DIES gets no further than its third batch.
DEATH = """
import os, pathlib, signal
if os.environ.get("JAX_PROCESS_ID") == os.environ["DIES"]:
    from alexnet_jax.mesh import TowerMesh
    put, batches = TowerMesh.put_rows, []
    def put_rows(mesh, *arguments):
        batches.append(1)
        if len(batches) == 3:
            pathlib.Path(os.environ["DIED"]).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return put(mesh, *arguments)
    TowerMesh.put_rows = put_rows
"""


@pytest.mark.slow
@pytest.mark.parametrize(("command", "dies"), [("evaluate", 1), ("predict", 0)])
def test_the_death_of_one_ends_the_other_within_seconds_and_leaves_older_files_as_they_are(
    workdir, photos, tmp_path, command, dies
):
    """The other one says so in one line. If the first one dies JAX may end the other before, and speaks for itself."""
    (tmp_path / "sitecustomize.py").write_text(DEATH)
    old, died = tmp_path / ("old.csv" if command == "evaluate" else "old.npz"), tmp_path / "died"
    old.write_bytes(b"older")
    flag = f"--results={old}" if command == "evaluate" else f"--features=fc7:{old}"
    words = (command, f"--workdir={workdir}", "--mesh=1x2", "--batch_size=2", flag)
    environment = {"DIES": str(dies), "DIED": str(died), "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    done = launch(*words, *([str(photos)] if command == "predict" else []), **environment)
    assert time.time() - died.stat().st_mtime < 20
    assert done.returncode == 137, done.stderr
    assert done.stderr.endswith(f"launch/local: process {dies} was the first to fail\n")
    assert "has not ended within" not in done.stderr
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: another process has ended")]
    assert len(errors) == 1 or (dies == 0 and not errors), done.stderr
    assert old.read_bytes() == b"older"
    assert {path.name for path in tmp_path.iterdir()} - {"__pycache__"} == {"sitecustomize.py", "died", old.name}


@pytest.fixture
def second_of_three(monkeypatch):
    """As if this were process 1 of three; what the others give is set by the test."""
    others = [0, 0]
    monkeypatch.setattr(processes.jax, "process_index", lambda: 1)
    monkeypatch.setattr(processes, "_of_all", lambda number: np.array([others[0], number, others[1]]))
    return others


@pytest.mark.parametrize(
    ("others", "mine", "raised"),
    [
        ([0, 0], None, None),
        ([0, 0], UserError("mine"), UserError),
        ([0, 1], UserError("mine"), UserError),
        ([1, 0], UserError("mine"), FailedElsewhere),
        ([0, 69], None, FailedElsewhere),
    ],
)
def test_the_first_process_that_fails_says_why_and_all_end_with_its_status(second_of_three, others, mine, raised):
    second_of_three[:] = others
    caught = None
    try:
        with processes.together():
            if mine:
                raise mine
    except UserError as error:
        caught = error
    assert type(caught) is (raised or type(None))
    if caught:
        assert caught.status == (others[0] or (1 if raised is UserError else others[1]))


def test_the_others_make_what_the_first_has_made(second_of_three):
    assert processes.first_alone(lambda: "made") == "made"
    second_of_three[0] = InUse.status
    with pytest.raises(FailedElsewhere):
        processes.first_alone(lambda: pytest.fail("it was made although the first one had failed"))


def test_processes_that_find_other_images_are_told(second_of_three):
    with pytest.raises(UserError):
        processes.check_alike(b"a", "the images")
    assert processes.of_first(7) == 0


def test_a_list_from_stdin_is_refused_in_several_processes():
    result = run("predict", "--distributed", "--list=-", "--workdir=w")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("error: --list=- cannot be read by several processes (--distributed)")
