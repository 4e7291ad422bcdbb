"""The record: rows once each, also after a resume or a cut-off line; TensorBoard beside it."""

import io
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from networks import ROOT
from tensorboardX.proto import event_pb2

from alexnet_jax.run.metrics import MetricSums, Recorder, Row, SpeedMeter, Stopwatch, read_rows


def row(step: int, split: str = "train", **fields) -> Row:
    return Row(step, step / 10, split, 2.5, 50.0, 10.0, 0.01, 123.4, 16, **fields)


def events_in(workdir: Path) -> list[list[event_pb2.Event]]:
    """What TensorBoard would read, a list for each file in the order of their names.

    A record is its length in eight bytes, their checksum in four, the content, and its checksum in four.
    """
    files = []
    for path in sorted((workdir / "tensorboard").iterdir()):
        content, found = path.read_bytes(), []
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            found.append(event_pb2.Event.FromString(content[12 : 12 + length]))
            content = content[16 + length :]
        files.append(found)
    return files


def scalars(events: list[event_pb2.Event]) -> dict[tuple[str, int], float]:
    return {(value.tag, event.step): value.simple_value for event in events for value in event.summary.value}


def test_rows_have_the_documented_fields_and_are_there_at_once(tmp_path):
    with Recorder(tmp_path, resume_step=0, total_steps=10) as recorder:
        recorder.write(row(1))
        (written,) = read_rows(tmp_path)
        assert not (tmp_path / "examples.jsonl").exists()
    assert list(written) == [
        "step", "epoch", "split", "loss", "top1_error", "top5_error", "learning_rate", "images_per_second", "examples",
    ]  # fmt: skip
    assert list(written.values()) == [1, 0.1, "train", 2.5, 50.0, 10.0, 0.01, 123.4, 16]


def test_a_resume_drops_what_will_be_written_again_and_a_cut_line(tmp_path):
    with Recorder(tmp_path, resume_step=0, total_steps=10) as recorder:
        for step in (2, 4, 6):
            recorder.write(row(step))
        recorder.write(row(4, "validation"))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')
    with Recorder(tmp_path, resume_step=4, total_steps=10) as recorder:
        recorder.write(row(6))
    found = [(line["step"], line["split"]) for line in read_rows(tmp_path)]
    assert found == [(2, "train"), (4, "train"), (4, "validation"), (6, "train")]
    assert not list(tmp_path.glob("*.tmp"))


def test_a_record_on_another_disk_stays_there(tmp_path):
    """The link in the folder of the run is not replaced by a file."""
    (tmp_path / "run").mkdir()
    (tmp_path / "metrics.jsonl").touch()
    (tmp_path / "run" / "metrics.jsonl").symlink_to("../metrics.jsonl")
    with Recorder(tmp_path / "run", resume_step=0, total_steps=10) as recorder:
        recorder.write(row(2))
    assert (tmp_path / "run" / "metrics.jsonl").is_symlink()
    assert [line["step"] for line in read_rows(tmp_path)] == [2]


def test_a_resume_drops_the_validation_that_is_due_and_no_other_row(tmp_path):
    rows = [row(2), row(2, "validation"), row(4), row(4, "validation")]
    with Recorder(tmp_path, resume_step=0, total_steps=10) as recorder:
        for one in rows:
            recorder.write(one)
    with Recorder(tmp_path, resume_step=4, total_steps=10, validation_due=True):
        pass
    assert read_rows(tmp_path) == [one.as_dict() for one in rows[:3]]


def test_examples_are_noted_at_once_and_dropped_like_rows(tmp_path):
    with Recorder(tmp_path, resume_step=0, total_steps=10, log_examples=True) as recorder:
        for step in (1, 2, 3):
            recorder.examples(step, np.array([step, 7]))
        assert len(read_rows(tmp_path, name="examples.jsonl")) == 3
    with Recorder(tmp_path, resume_step=2, total_steps=10, log_examples=True) as recorder:
        recorder.examples(3, np.array([9, 9]))
    assert read_rows(tmp_path, name="examples.jsonl") == [
        {"step": 1, "examples": [1, 7]},
        {"step": 2, "examples": [2, 7]},
        {"step": 3, "examples": [9, 9]},
    ]


def test_a_silent_recorder_writes_and_shows_nothing(tmp_path, capsys):
    with Recorder(tmp_path, resume_step=0, total_steps=10, silent=True, log_examples=True) as recorder:
        recorder.write(row(1, "validation"))
        recorder.examples(1, np.array([1]))
        recorder.say("nothing")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert capsys.readouterr().err == ""


def test_tensorboard_shows_every_number_at_its_step(tmp_path):
    magnitudes = {"conv1": {"kernel": 0.25, "kernel_update": 0.125}, "fc8": {"bias": 2.0}}
    with Recorder(tmp_path, resume_step=0, total_steps=10) as recorder:
        recorder.write(row(3))
        recorder.write(row(4, "validation", magnitudes=magnitudes))
    (events,) = events_in(tmp_path)
    numbers = {"loss": 2.5, "top1_error": 50.0, "top5_error": 10.0, "images_per_second": pytest.approx(123.4)}
    expected = {(f"train/{name}", 3): value for name, value in numbers.items()}
    expected |= {(f"validation/{name}", 4): value for name, value in numbers.items()}
    expected[("learning_rate", 3)] = pytest.approx(0.01)
    expected |= {(f"magnitudes/{key}", 4): value for key, value in
                 {"conv1/kernel": 0.25, "conv1/kernel_update": 0.125, "fc8/bias": 2.0}.items()}  # fmt: skip
    assert scalars(events) == expected


def test_tensorboard_forgets_what_a_resume_writes_again(tmp_path, monkeypatch):
    """It drops what it has read from the step of a START on. A file's name has the second of its making."""
    for now, resumed, steps in ((1e9, 0, (2, 4, 6)), (2e9, 4, (6, 8))):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        with Recorder(tmp_path, resume_step=resumed, total_steps=10) as recorder:
            for step in steps:
                recorder.write(row(step))
    first, second = events_in(tmp_path)
    starts = [[event.step for event in events if event.session_log.status == event_pb2.SessionLog.START]
              for events in (first, second)]  # fmt: skip
    assert starts == [[1], [5]]
    assert [[step for tag, step in scalars(events) if tag == "train/loss"] for events in (first, second)] == [
        [2, 4, 6],
        [6, 8],
    ]


def test_a_log_is_told_validations_and_nothing_else(tmp_path, capsys):
    with Recorder(tmp_path, resume_step=0, total_steps=10) as recorder:
        recorder.write(row(1))
        recorder.progress(1, 2.5, 0.5, 100.0)
        recorder.write(row(2, "validation"))
        recorder.say("a [line] " + 200 * "x")
    assert capsys.readouterr().err.splitlines() == [
        "epoch    0.20  step 2  validation loss 2.5000  top-1 error 50.00 %  top-5 10.00 %",
        "a [line] " + 200 * "x",
    ]


class Terminal(io.StringIO):
    """What stderr is when a person looks on."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_has_a_live_line_which_goes_with_the_run(tmp_path, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with Recorder(tmp_path, resume_step=3, total_steps=10) as recorder:
        recorder.progress(4, 2.5, 0.5, 0.0)
        recorder._progress.refresh()
        before = terminal.getvalue()
        recorder.progress(7, 2.25, 0.25, 1234.0)
        assert "\x1b[?25h" not in terminal.getvalue()  # the cursor is hidden
    shown = terminal.getvalue()
    assert "loss 2.500  error 50.0 %" in before
    assert "images/s" not in before
    assert "loss 2.250  error 25.0 %  1,234 images/s" in shown
    assert "7/10" in shown.replace(" 7", "7")
    assert "\x1b[?25h" in shown


def test_a_window_sums_its_steps():
    window = MetricSums().plus(2.0, 0.5, 0.25).plus(3.0, 0.25, 0.125)
    assert window.as_dict() == {"steps": 2, "loss": 5.0, "top1": 0.75, "top5": 0.375}
    assert window.means() == (2.5, 37.5, 18.75)


def test_speed_counts_the_steps_since_the_last_row_and_leaves_out_pauses(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("alexnet_jax.run.metrics.time.monotonic", lambda: now[0])
    meter = SpeedMeter(batch_size=8)
    for _ in range(3):
        meter.count()
    with meter.paused():
        now[0] = 7.0
    now[0] = 9.0
    assert meter.last == 0
    assert meter.lap() == meter.last == 3 * 8 / 2
    meter.count()
    now[0] = 10.0
    assert meter.lap() == 8


def test_a_record_that_is_not_there_has_no_rows(tmp_path):
    assert read_rows(tmp_path) == []


def test_a_paused_stopwatch_stands_still(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("alexnet_jax.run.metrics.time.monotonic", lambda: now[0])
    watch = Stopwatch()
    now[0] = 3.0
    with watch.paused():
        now[0] = 10.0
    now[0] = 12.0
    assert watch.lap() == 5.0
    now[0] = 13.0
    assert watch.lap() == 1.0


def test_a_record_loads_no_pytorch(tmp_path):
    """tensorboardX would, for two seconds of every start."""
    script = f"""
import pathlib, sys
from alexnet_jax.run.metrics import Recorder
with Recorder(pathlib.Path({str(tmp_path)!r}), resume_step=0, total_steps=1):
    pass
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
