"""Several processes evaluate and predict what one does: the same files byte for byte, written by the first alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from networks import DEVICES, ROOT, run, tiny_config
from PIL import Image

from alexnet_jax.data.store import open_store, store_path
from alexnet_jax.system import processes
from alexnet_jax.system.errors import FailedElsewhere, InUse, UserError
from alexnet_jax.training import train


def launch(*words: str) -> subprocess.CompletedProcess[str]:
    """launch/local with two processes of one device."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    threads = max(DEVICES, len(os.sched_getaffinity(0)))
    environment = os.environ | {"PATH": path, "VENV": sys.prefix, "NPROC": str(threads)}
    command = [f"{ROOT}/launch/local", "--processes=2", "--devices=1", "--", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)


def objects(said: str) -> list[dict]:
    """The lines that are JSON; others are of JAX's own collectives."""
    return [json.loads(line) for line in said.splitlines() if line.startswith("{")]


@pytest.mark.slow
def test_two_processes_write_the_files_of_one(data_dir, tmp_path):
    """33 test images in batches of 8: the last one has a single image, which one of the processes has none of."""
    workdir, names = f"--workdir={tmp_path / 'run'}", ("one", "rows", "towers")
    train(tiny_config(data_dir, tmp_path / "run", steps=2))
    (tmp_path / "images").mkdir()
    images = open_store(store_path(data_dir, "tiny", 66)).splits["test"].images[:11]
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "images" / f"{number:02d}.png")
    (tmp_path / "images" / "05b.png").write_bytes(b"")
    said = dict[str, list]()
    for name, mesh in zip(names, ("1x1", "2x1", "1x2"), strict=True):
        evaluate = ("evaluate", workdir, f"--mesh={mesh}", f"--results={tmp_path / name}.csv")
        predict = ("predict", workdir, f"--mesh={mesh}", "--batch_size=8", "--format=jsonl", str(tmp_path / "images"),
                   f"--features=fc7:{tmp_path / name}.npz")  # fmt: skip
        both = [run(*words) if name == "one" else launch(*words) for words in (evaluate, predict)]
        assert [done.returncode for done in both] == [0, 1], [done.stderr for done in both]
        assert both[1].stderr.count("05b.png: in no image format") == 1
        assert both[1].stderr.count("error: 1 of 12 images could not be read") == 1
        said[name] = [objects(done.stdout) for done in both]
    (score,), rows = said["one"]
    assert (score["examples"], len(rows)) == (33, 11)
    assert said["rows"] == said["towers"] == said["one"]
    results = [(tmp_path / f"{name}.csv").read_bytes() for name in names]
    assert results[0].count(b"\n") == 34
    assert results[1] == results[2] == results[0]
    with np.load(tmp_path / "one.npz") as one:
        for name in names[1:]:
            with np.load(tmp_path / f"{name}.npz") as other:
                assert all(np.array_equal(one[key], other[key]) for key in ("features", "images"))


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
