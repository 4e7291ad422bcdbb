"""What a person sees: live lines at 80 and at 120 columns, the lines of a log, the summary of a run."""

import io
import json
import logging
import sys

import pytest
from networks import StillTime, record_row, small_config
from rich.console import Console

from alexnet_jax.run.display import Display, duration
from alexnet_jax.run.intervals import Intervals
from alexnet_jax.run.metrics import Row, read_rows
from alexnet_jax.run.summary import summary


class Seen:
    """A display of a run of 1,000 steps of 8 of 400 images, on a terminal so many columns wide, or in a log."""

    def __init__(self, width: int | None, **fields):
        self.time, self.file = StillTime(), io.StringIO()
        terminal = {"force_terminal": True, "width": width, "_environ": {"TERM": "xterm"}, "color_system": None}
        self.console = Console(file=self.file, highlight=False, **terminal if width else {"soft_wrap": True, "width": 80})
        intervals = Intervals(small_config(**{"epochs": 20.0} | fields), 400, True)
        self.display = Display(self.time.clock, intervals, self.console)

    def lines(self) -> list[str]:
        """The live ones."""
        with self.console.capture() as captured:
            self.console.print(self.display)
        return [line.rstrip() for line in captured.get().splitlines()]

    def said(self) -> list[str]:
        return self.file.getvalue().splitlines()

    def train(self, steps: range, loss: float = 2.5, error: float = 0.5, seconds: float = 0.25) -> None:
        for step in steps:
            self.time.work("training", seconds)
            self.display.step(step, loss, error, 0.01)


def row(split: str, **fields) -> Row:
    return Row(**record_row(1234, split, epoch=1.75, **fields), time=0.0, seconds=0.0)


def test_two_live_lines_fit_80_columns():
    seen = Seen(80)
    seen.time.work("compiling", 60.0)
    seen.train(range(101, 201))
    assert seen.lines() == [
        "training          epoch 4.00 of 20  ━━╸            elapsed 0:01:25  left 0:03:20",
        "step 200  last 50: loss 2.500, error 50.0 %  rate 0.01  32.0 images/s",
    ]  # fmt: skip


def test_two_live_lines_say_more_at_120_columns():
    seen = Seen(120)
    seen.time.work("compiling", 60.0)
    seen.train(range(101, 201))
    assert seen.lines() == [
        "training          epoch 4.00 of 20  ━━━━━━━━                                  elapsed 0:01:25  left 0:03:20",
        "step 200 of 1,000  mean of last 50 steps: loss 2.500, top-1 error 50.0 %  learning rate 0.01  32.0 images/s",
    ]


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 200])
def test_no_live_line_is_wider_than_the_terminal_whatever_the_numbers(width):
    seen = Seen(width, steps=1_234_567)
    seen.time.seconds = 3e5
    seen.train(range(1_000_001, 1_000_060), loss=123.456, error=1.0, seconds=1e-4)
    seen.display._rate = 0.000123456
    seen.time.clock.enter("validating")
    seen.display.validating(1.0)
    lines = seen.lines()
    assert len(lines) == 2
    assert max(map(len, lines)) <= width
    assert lines[0].startswith("validating 100 %  epoch 20001.18")
    if width >= 100:
        assert lines[1].endswith("images/s")


def test_the_phase_is_named_and_numbers_appear_when_they_are_known():
    seen = Seen(80)
    seen.display.resume(100)
    shown = []
    for phase in ("starting", "restoring", "compiling"):
        seen.time.work(phase, 1.0)
        shown.append([*seen.lines()[0].split()[:1], seen.lines()[1]])
    assert shown == [[phase, "step 100 of 1,000"] for phase in ("starting", "restoring", "compiling")]
    assert seen.lines()[0].endswith("elapsed 0:00:03  left -:--:--")
    seen.train(range(101, 102))
    assert seen.lines()[1] == "step 101  last 1: loss 2.500, error 50.0 %  rate 0.01"
    assert seen.lines()[0].endswith("left -:--:--")
    with seen.time.clock.during("validating"):
        seen.display.validating(0.25)
        assert seen.lines()[0].startswith("validating  25 %  epoch 2.02 of 20 ")
    with seen.time.clock.during("saving"):
        assert seen.lines()[0].startswith("saving            epoch 2.02 of 20 ")


def test_speed_leaves_out_compiling_and_validation_and_the_rest_of_the_time_does_not():
    """A step takes 0.25 s, the validation after every tenth 2.5 s: as much as the ten together."""
    seen = Seen(80)
    seen.time.work("compiling", 500.0)
    for start in range(1, 101, 10):
        seen.train(range(start, start + 10))
        seen.time.work("validating", 2.5)
    seen.train(range(101, 102))
    way, numbers = seen.lines()
    assert numbers.endswith("  32.0 images/s")
    assert way.endswith("left 0:07:30")  # 899 steps of half a second


def test_the_running_error_is_that_of_the_last_fifty_steps():
    seen = Seen(80)
    seen.train(range(1, 51), loss=9.0, error=1.0)
    seen.train(range(51, 91), loss=1.0, error=0.5)
    assert "last 50: loss 2.600, error 60.0 %" in seen.lines()[1]


def test_epochs_are_those_of_the_flags_or_of_the_steps():
    assert "of 20 " in Seen(80).lines()[0]
    assert "of 2.02 " in Seen(80, steps=101).lines()[0]


def test_a_validation_stands_above_in_one_line_at_80_and_at_120_columns():
    for width, expected in {
        80: "epoch 1.75  step 1234  validation loss 2.500  error 50.0 %  top-5 10.0 %",
        120: "epoch    1.75  step 1234  validation loss 2.5000  top-1 error 50.00 %  top-5 10.00 %",
    }.items():
        seen = Seen(width)
        seen.display.row(row("train"))  # which is live on a terminal
        seen.display.row(row("validation"))
        assert seen.said() == [expected]
        averaged = {"loss": 2.25, "top1_error": 45.0, "top5_error": 15.0}
        seen.display.row(row("validation", ema=averaged))
        other = expected
        for old, new in (("validation loss 2.500", "ema        loss 2.250"), ("50.0", "45.0"), ("10.0", "15.0")):
            other = other.replace(old, new)
        assert seen.said()[1:] == [expected, other]


def test_a_log_has_a_line_for_every_row_with_the_same_values():
    seen = Seen(None)
    seen.time.work("compiling", 60.0)
    with seen.display:
        seen.train(range(1, 101))
        seen.display.row(row("train"))
        seen.display.row(row("validation"))
        seen.display.say("a [line] " + 200 * "x")
    assert seen.said() == [
        "epoch    1.75  step 1234  train loss 2.5000  top-1 error 50.00 %  top-5 10.00 %  learning rate 0.01  100 images/s  "
        "elapsed 0:01:25  left 0:03:45",
        "epoch    1.75  step 1234  validation loss 2.5000  top-1 error 50.00 %  top-5 10.00 %",
        "a [line] " + 200 * "x",
    ]  # fmt: skip


def test_live_lines_go_with_the_run_and_warnings_stand_above_them(monkeypatch):
    """The handler of warnings has the stream that stderr was when the command started."""
    seen = Seen(80)
    monkeypatch.setattr(sys, "stderr", seen.file)
    handler, logger = logging.StreamHandler(), logging.getLogger("alexnet_jax")
    monkeypatch.setattr(logger, "handlers", [handler])
    with seen.display:
        assert "\x1b[?25h" not in seen.file.getvalue()  # the cursor is hidden
        assert "starting" in seen.file.getvalue()
        assert handler.stream is not seen.file
        logger.warning("checkpoint 3 is damaged")
    assert handler.stream is seen.file
    assert "checkpoint 3 is damaged\n" in seen.file.getvalue()
    assert seen.file.getvalue().endswith("\x1b[?25h\r\x1b[1A\x1b[2K\x1b[1A\x1b[2K") or "\x1b[?25h" in seen.file.getvalue()


def test_a_dumb_terminal_is_written_to_like_a_log():
    seen = Seen(80)
    seen.console._environ = {"TERM": "dumb"}
    display = Display(seen.time.clock, Intervals(small_config(), 400, True), seen.console)
    with display:
        display.row(row("train"))
    assert "\x1b" not in seen.file.getvalue()
    assert "train loss" in seen.file.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00:00"), (59.6, "0:01:00"), (3723, "1:02:03"), (86399, "23:59:59"), (2 * 86400 + 3723, "2 d 1:02:03")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def finished(workdir, errors: dict[int, float], starts: list[dict]) -> None:
    """A run with validations at these steps, and checkpoints of the last two."""
    rows = [record_row(step, "validation", top1_error=error) for step, error in errors.items()]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    (workdir / "starts.jsonl").write_text("".join(json.dumps(one) + "\n" for one in starts))
    for step in list(errors)[-2:]:
        (workdir / "checkpoints" / str(step)).mkdir(parents=True)


def test_the_summary_of_a_run_of_two_starts(tmp_path):
    start = {"step": 0, "last_step": 20, "time": 1e9, "wall_seconds": 100.0, "seconds": 70.0}
    finished(tmp_path, {10: 40.0, 20: 30.5, 30: 35.0}, [start, start | {"seconds": 150.0}])
    config = small_config(workdir=str(tmp_path))
    assert summary(config, ("train", "validation", "test"), 30, 3.0) == [
        ("finished", "step 30, epoch 3.00"),
        ("best error", "30.50 % top-1, 10.00 % top-5 on validation, checkpoint 20"),
        ("last error", "35.00 % top-1, 10.00 % top-5 on validation, checkpoint 30"),
        ("time", "0:03:20 in 2 starts, 0:02:30 of it in training steps (goodput 75 %)"),
        ("folder", f"{tmp_path}: checkpoints/, metrics.jsonl, starts.jsonl, tensorboard/"),
        ("next", f"python -m alexnet_jax.evaluate --workdir={tmp_path} --step=best"),
    ]


def test_the_summary_has_the_error_of_the_averaged_weights_too(tmp_path):
    finished(tmp_path, {10: 40.0}, [])
    (row,) = read_rows(tmp_path)
    averaged = {"loss": 2.0, "top1_error": 31.25, "top5_error": 6.5}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row | {"ema": averaged}) + "\n")
    told = summary(small_config(workdir=str(tmp_path)), ("train", "validation"), 10, 1.0)
    assert told[3] == (
        "ema error",
        "31.25 % top-1, 6.50 % top-5 on validation (evaluate --weights=ema)",
    )


def test_the_summary_of_an_older_run_without_times_or_test_split(tmp_path):
    """Equal errors: the first is the best one, and its checkpoint is gone."""
    finished(tmp_path, {10: 40.0, 20: 40.0, 30: 40.0}, [])
    told = dict(summary(small_config(workdir=str(tmp_path / "")), ("train", "validation"), 30, 3.0))
    assert list(told) == ["finished", "best error", "last error", "folder", "next"]
    assert told["best error"].endswith("on validation, step 10")
    assert told["next"].endswith("--step=best --split=validation")


def test_the_summary_of_a_run_without_validation(tmp_path):
    told = dict(summary(small_config(workdir=f"{tmp_path}/a run"), ("train",), 30, 3.0))
    assert list(told) == ["finished", "folder", "next"]
    assert told["next"] == f"python -m alexnet_jax.evaluate '--workdir={tmp_path}/a run' --split=train"


def test_a_long_summary_is_left_whole_for_copying():
    seen = Seen(80)
    seen.display.summary([("next", 100 * "x"), ("a", "b [c]")])
    assert seen.said() == ["next        " + 100 * "x", "a           b [c]"]
