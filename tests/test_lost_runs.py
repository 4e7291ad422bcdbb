"""What a run's folder has lost, and data that are not the run's: refused at every start, and nothing is made worse."""

import errno
import fcntl
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from networks import SIZE, run, tiny_config, tiny_flags, tiny_source

from alexnet_jax.data.example import Source
from alexnet_jax.data.store import store_path
from alexnet_jax.data.writer import write_store
from alexnet_jax.run.checkpoint import Checkpoints
from alexnet_jax.run.metrics import read_rows
from alexnet_jax.run.workdir import locked
from alexnet_jax.system.errors import InUse, UserError
from alexnet_jax.training import train


@pytest.fixture(scope="module")
def trained(data_dir, tmp_path_factory) -> Path:
    """A run of four steps with checkpoints 2 and 4, for copies."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    train(tiny_config(data_dir, folder, checkpoint_every=2, log_every=1, log_examples=True))
    return folder


@pytest.fixture
def copied(trained, tmp_path) -> Path:
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the lock, which names the last process."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def started(data_dir: Path, workdir: Path, *words: str, **fields) -> str:
    """What a start says on stderr that is refused."""
    result = run("train", *tiny_flags(data_dir, workdir, mesh="1x1", steps=6, **fields), *words)
    assert result.returncode == 1, result.stderr
    return result.stderr


def truncate_all(workdir: Path) -> None:
    for path in (workdir / "checkpoints").rglob("*"):
        if path.is_file():
            os.truncate(path, path.stat().st_size // 2)


LOSSES = {
    "all checkpoints are cut": (truncate_all, "none of the checkpoints"),
    "checkpoints/ is gone": (lambda folder: shutil.rmtree(folder / "checkpoints"), "whose checkpoints are gone"),
    "checkpoints/ is empty": (
        lambda folder: [shutil.rmtree(path) for path in (folder / "checkpoints").iterdir()], "whose checkpoints are gone"
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    "loss",
    [
        "all checkpoints are cut",
        pytest.param("checkpoints/ is gone", marks=pytest.mark.slow),
        pytest.param("checkpoints/ is empty", marks=pytest.mark.slow),
    ],
)
def test_a_run_without_a_readable_checkpoint_begins_anew_only_if_the_user_says_so(data_dir, copied, loss, caplog):
    lose, said = LOSSES[loss]
    lose(copied)
    before = contents(copied)
    for _ in range(2):
        assert said in started(data_dir, copied, log_every=1)
        assert contents(copied) == before
    result = run("train", *tiny_flags(data_dir, copied, mesh="1x1", steps=2, log_every=1, start_over=True))
    assert result.returncode == 0, result.stderr
    assert "step 0 of 2" in result.stderr
    assert [row["step"] for row in read_rows(copied) if row["split"] == "train"] == [1, 2]
    kept = contents(copied / "damaged")
    assert kept["metrics.jsonl"] == before["metrics.jsonl"]
    assert kept["starts.jsonl"] == before["starts.jsonl"]
    assert [row["step"] for row in read_rows(copied, "starts.jsonl")] == [0]
    lost = {name.removeprefix("checkpoints/") for name in before if name.startswith("checkpoints/")}
    assert lost <= kept.keys()


def test_a_run_without_its_config_is_not_taken_for_a_new_one(data_dir, copied):
    (copied / "config.json").unlink()
    before = contents(copied)
    for _ in range(2):
        assert "has lost its config.json: put it back, or choose a new --workdir" in started(data_dir, copied)
    assert contents(copied) == before


@pytest.mark.slow
def test_a_run_that_ended_before_its_first_checkpoint_begins_anew_by_itself(data_dir, tmp_path, monkeypatch):
    def full(*_, **__):
        raise UserError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", full)
        assert "the disk is full" in started(data_dir, tmp_path / "run", log_every=1)
    assert [row["step"] for row in read_rows(tmp_path / "run") if row["split"] == "train"] == [1, 2, 3, 4, 5, 6]
    config = tiny_config(data_dir, tmp_path / "run", steps=6, log_every=1)
    train(config)
    assert not (tmp_path / "run" / "damaged").exists()
    ends = [(row["step"], row["end"]) for row in read_rows(tmp_path / "run", "starts.jsonl")]
    assert ends == [(0, "failed"), (0, "finished")]


MIDDLE = {
    "no JSON": b"\x00\x00\n", "no UTF-8": b'{"step": 2, "split": "\xff"}\n', "a list": b"[1]\n",
    "no step": b'{"split": "train", "loss": 1.0}\n', "a text for a number": b'{"step": 2, "split": "train", "loss": "1"}\n',
    "two rows in one line": b'{"step": 1}{"step": 2}\n', "an empty line": b"\n",
}  # fmt: skip


@pytest.mark.parametrize("name", ["metrics.jsonl", pytest.param("examples.jsonl", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", MIDDLE)
def test_a_line_that_is_no_row_is_kept_and_the_start_refused(data_dir, copied, name, kind):
    lines = (copied / name).read_bytes().splitlines(keepends=True)
    (copied / name).write_bytes(b"".join([lines[0], MIDDLE[kind], *lines[1:]]))
    before = contents(copied)
    for _ in range(2):
        assert f"{name}: line 2 is no row of a record" in started(data_dir, copied, log_examples=True)
    assert contents(copied) == before


def test_a_cut_last_line_is_dropped_and_the_others_stay_byte_for_byte(data_dir, copied):
    path = copied / "metrics.jsonl"
    first, *rest = path.read_bytes().splitlines(keepends=True)
    noted = first.replace(b'"step": 1,', b'"note":"by hand",   "step":1,')
    assert noted != first
    path.write_bytes(b"".join([noted, *rest]) + b'{"step": 5, "split": "tr')
    train(tiny_config(data_dir, copied, steps=5, log_every=1, checkpoint_every=2, log_examples=True))
    lines = path.read_bytes().splitlines(keepends=True)
    assert lines[: 1 + len(rest)] == [noted, *rest]
    assert [json.loads(line)["step"] for line in lines[1 + len(rest) :]] == [5, 5]


DATASET = '"dataset": {"classes": [], "fingerprint": ""}}'
WRONG = {
    "a list": "[]", "no dataset": '{"config": {}}', "config of another kind": '{"config": 3, "dataset": {}}',
    "a photograph": "\x89PNG", "a number as a text": '{"config": {"batch_size": "8"}, ' + DATASET,
    "a text as a list": '{"config": {"freeze": "fc7"}, ' + DATASET, "null": '{"config": {"learning_rate": null}, ' + DATASET,
    "a flag of another version": '{"config": {"colour": 1}, ' + DATASET,
    "no classes": '{"config": {}, "dataset": {"classes": "ab", "fingerprint": ""}}',
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_a_config_of_the_wrong_shape_is_one_line_and_no_new_start(copied, data_dir, kind):
    (copied / "config.json").write_text(WRONG[kind], encoding="latin-1")
    before = contents(copied)
    result = run("evaluate", f"--workdir={copied}")
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert "config.json" in line
    assert "config.json" in started(data_dir, copied)
    assert contents(copied) == before


def test_a_mean_image_that_is_not_the_runs_is_refused(data_dir, copied):
    mean = np.load(copied / "mean.npy")
    np.save(copied / "mean.npy", mean + 1)
    assert "mean.npy is not the mean image of --dataset=tiny" in started(data_dir, copied)
    np.testing.assert_array_equal(np.load(copied / "mean.npy"), mean + 1)


@pytest.mark.slow
def test_the_lowest_validation_error_belongs_to_a_checkpoint(data_dir, tmp_path):
    """Validated at every step, saved at the end."""
    train(tiny_config(data_dir, tmp_path / "run", steps=8, eval_every=1, checkpoint_every=100, learning_rate=0.02))
    rows = [row for row in read_rows(tmp_path / "run") if row["split"] == "validation"]
    best = min(rows, key=lambda row: row["top1_error"])  # the first one
    assert best["step"] < 8, "the errors fell to the end: choose another rate"
    result = run("evaluate", f"--workdir={tmp_path / 'run'}", "--split=validation", "--step=best", "--mesh=1x1")
    score = json.loads(result.stdout)
    assert (score["step"], score["top1_error"]) == (best["step"], best["top1_error"])


def other_set(folder: Path, kind: str) -> Path:
    """The tiny set under the same name, prepared with a difference."""
    source = tiny_source(seed=1 if kind == "other images" else 0)
    classes, splits = source.classes, dict(source.splits)
    if kind == "a class renamed":
        classes = ("renamed", *classes[1:])
    if kind == "other splits":
        splits["train"], splits["test"] = splits["test"], splits["train"]
    write_store(Source("tiny", classes, "changed", splits), store_path(folder, "tiny", SIZE), SIZE)
    return folder


@pytest.mark.parametrize(
    ("kind", "said"),
    [("other images", "other content or other splits"), ("other splits", "other content or other splits"),
     ("a class renamed", "other classes")],
)  # fmt: skip
def test_no_command_puts_a_run_and_other_data_together(copied, tmp_path, kind, said):
    other = other_set(tmp_path / "data", kind)
    before = contents(copied)
    for command in ("evaluate", "figures", "report") if kind == "other images" else ("evaluate",):
        result = run(command, f"--workdir={copied}", f"--data_dir={other}", "--split=test")
        assert result.returncode == 1
        (line,) = result.stderr.splitlines()
        assert said in line
    assert said in started(other, copied)
    assert contents(copied) == before


@pytest.mark.slow
@pytest.mark.parametrize(("fields", "what"), [({"fold": "1/5"}, "--fold"), ({}, "the content")])
def test_an_ensemble_is_judged_on_the_images_of_all_its_runs(data_dir, copied, tmp_path, fields, what):
    """The second run has another validation split, or another set under the same name."""
    other = data_dir if fields else other_set(tmp_path / "data", "other images")
    train(tiny_config(other, tmp_path / "other", steps=1, **fields))
    both = [f"--workdir={copied}", f"--workdir={tmp_path / 'other'}"]
    result = run("evaluate", *both, "--split=validation")
    assert result.returncode == 1
    assert f"was trained on other images than --workdir={copied}: {what} of their data differs" in result.stderr
    if fields:  # the test split is that of both
        assert run("evaluate", *both, "--split=test").returncode == 0


@pytest.mark.slow
def test_every_character_of_a_file_name_works_or_is_refused_before_anything_is_made(data_dir, tmp_path, trained):
    odd = tmp_path / "ä %41 #:;,&{}~'\" \n\t😀 =--"
    odd.mkdir()
    shutil.copytree(data_dir, odd / "data")
    assert run("train", *tiny_flags(odd / "data", odd / "run", mesh="1x1")).returncode == 0
    result = run("evaluate", f"--workdir={odd / 'run'}", f"--predictions={odd / 'p.npz'}", "--mesh=1x1")
    assert result.returncode == 0, result.stderr
    assert (odd / "p.npz").exists()
    for name in ("x[1]", "x*", "what?", "back\\slash", os.fsdecode(b"no UTF-8 \xff")):
        assert "in its path would make checkpoints unreadable" in started(data_dir, tmp_path / name / "run")
        assert not (tmp_path / name).exists()


@pytest.mark.slow
def test_a_run_that_was_moved_into_such_a_folder_is_read(tmp_path, trained):
    shutil.copytree(trained, tmp_path / "x[1]")
    result = run("evaluate", f"--workdir={tmp_path / 'x[1]'}", "--mesh=1x1")
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("kind", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_training_without_locks_says_so_once_and_goes_on(tmp_path, monkeypatch, capsys, kind):
    """Some network file systems have none. A lock that another process has is something else."""

    def flock(*_):
        raise OSError(kind, os.strerror(kind))

    monkeypatch.setattr(fcntl, "flock", flock)
    for _ in range(2):
        with locked(str(tmp_path / "run")):
            pass
    assert capsys.readouterr().err.count("is on a file system without locks") == 1
    monkeypatch.undo()
    with locked(str(tmp_path / "run")), pytest.raises(InUse), locked(str(tmp_path / "run")):
        pass
