"""Weights & Biases gets the rows of a run, goes on with it after a resume, and never ends a training."""

import importlib.metadata
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from networks import recorded, run, small_config, tiny_flags

from alexnet_jax.run.wandb_run import WandbRun


class Service:
    """Stands in for the package: notes what is sent, and fails at the call that it is told to."""

    def __init__(self, failing: str = "", step: int = 0):
        self.failing, self.step = failing, step
        self.begun: list[dict[str, Any]] = []
        self.rows: list[tuple[int, dict[str, Any]]] = []
        self.ended: list[int] = []
        self.Settings = SimpleNamespace

    def _call(self, name: str) -> None:
        if name == self.failing:
            raise OSError(f"{name} failed\nand more")

    def init(self, **options) -> "Service":
        self._call("init")
        self.begun.append(options)
        return self

    def define_metric(self, *_, **__) -> None: ...

    def log(self, content: dict[str, Any], step: int) -> None:
        self._call("log")
        self.rows.append((step, content))
        self.step = step

    def finish(self, exit_code: int) -> None:
        self._call("finish")
        self.ended.append(exit_code)


@pytest.fixture
def service(monkeypatch) -> Service:
    monkeypatch.setitem(sys.modules, "wandb", made := Service())
    return made


def begin(workdir: Path, warnings: list[str] | None = None) -> WandbRun:
    warned = [] if warnings is None else warnings
    return WandbRun(small_config(workdir=str(workdir), wandb="towers"), warned.append)


def test_rows_are_sent_at_their_step_with_the_flags(tmp_path, service):
    reports = begin(tmp_path)
    reports.row(recorded(2))
    reports.row(recorded(2, "validation", magnitudes={"conv1": {"kernel": 0.25}}))
    reports.close(failed=False)
    (begun,) = service.begun
    assert (begun["project"], begun["name"], begun["dir"]) == ("towers", tmp_path.name, str(tmp_path))
    assert (begun["config"]["batch_size"], begun["config"]["crop_size"]) == (8, 63)
    (step, train), (same, validation) = service.rows
    assert (step, same) == (2, 2)
    content = {name: value for name, value in recorded(2).as_dict().items() if name not in ("step", "split")}
    assert train == {f"train/{name}": value for name, value in content.items()}
    assert validation["validation/magnitudes/conv1/kernel"] == 0.25
    assert service.ended == [0]


def test_a_resume_goes_on_with_the_run_and_leaves_out_what_is_there(tmp_path, service):
    """A killed start had come to step 6, the checkpoint is that of step 4."""
    first = begin(tmp_path)
    for step in (2, 4, 6):
        first.row(recorded(step))
    second = begin(tmp_path)
    for step in (6, 8):
        second.row(recorded(step))
        second.row(recorded(step - 1))
    ids = [(begun["id"], begun["resume"]) for begun in service.begun]
    assert ids[0] == ids[1] == ((tmp_path / "wandb_id").read_text().strip(), "allow")
    assert [step for step, _ in service.rows] == [2, 4, 6, 6, 8]
    (tmp_path / "other").mkdir()
    begin(tmp_path / "other").close(failed=True)
    assert service.begun[2]["id"] != ids[0][0]
    assert service.ended == [1]


@pytest.mark.parametrize("failing", ["init", "log", "finish"])
def test_what_fails_there_is_told_once_and_nothing_else_happens(tmp_path, service, failing):
    service.failing, warnings = failing, []
    reports = begin(tmp_path, warnings)
    for step in (1, 2):
        reports.row(recorded(step))
    reports.close(failed=False)
    assert warnings == [f"warning: --wandb: {failing} failed; the training goes on without it"]
    assert len(service.rows) == (2 if failing == "finish" else 0)


def test_a_missing_package_is_one_line_before_anything_is_made(data_dir, tmp_path, monkeypatch):
    version = importlib.metadata.version

    def without_wandb(name: str) -> str:
        if name == "wandb":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", without_wandb)
    done = run("train", *tiny_flags(data_dir, tmp_path / "run", wandb="towers"))
    assert done.returncode == 1
    assert done.stderr == "error: --wandb=towers needs the package wandb: pip install -r requirements-wandb.txt\n"
    assert list(tmp_path.iterdir()) == []


def sent(path: Path) -> list[Any]:
    """The records in a file that the real package keeps offline: chunks as in a log of LevelDB, in blocks of 32 KB."""
    from wandb.proto.wandb_internal_pb2 import Record  # pyright: ignore[reportMissingImports]

    content, found, place, part = path.read_bytes(), [], 7, b""
    while place < len(content):
        if (rest := 2**15 - place % 2**15) < 7:
            place += rest
            continue
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        part, place = part + content[place + 7 : place + 7 + length], place + 7 + length
        if kind in (1, 4):  # whole, or its last chunk
            found.append(Record.FromString(part))
            part = b""
    return found


@pytest.mark.slow
def test_the_real_package_keeps_both_starts_of_a_run_offline(data_dir, tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed: pip install -r requirements-wandb.txt")
    monkeypatch.setenv("WANDB_MODE", "offline")
    workdir = tmp_path / "run"
    for steps in (2, 4):
        done = run("train", *tiny_flags(data_dir, workdir, wandb="towers", steps=steps, log_every=1, mesh="1x1"))
        assert done.returncode == 0, done.stderr
        assert "warning" not in done.stderr
    name = (workdir / "wandb_id").read_text().strip()
    found = [sent(path) for path in sorted((workdir / "wandb").glob(f"offline-run-*/run-{name}.wandb"))]
    steps = [[one.history.step.num for one in records if one.HasField("history")] for records in found]
    assert steps == [[1, 2], [3, 4]]
    runs = [one.run for records in found for one in records if one.HasField("run")]
    assert {(one.project, one.run_id, one.display_name) for one in runs} == {("towers", name, "run")}
    keys = {"/".join(item.nested_key) or item.key for one in found[1] for item in one.history.item}
    assert {f"{split}/{key}" for split in ("train", "validation") for key in ("loss", "top1_error", "time")} <= keys
