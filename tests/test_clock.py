"""Where the time goes: phases of a start, speed without compiling, starts.jsonl and goodput."""

import json

import pytest
from networks import StillTime

from alexnet_jax.run.clock import PHASES, SpeedMeter
from alexnet_jax.run.metrics import check_records, read_rows
from alexnet_jax.run.starts import StartLog, TimeSpent, time_spent
from alexnet_jax.system.errors import UserError
from alexnet_jax.system.signals import Interrupted


def test_every_second_is_in_one_phase():
    time = StillTime()
    time.seconds = 1.0
    time.work("restoring", 2.0)
    time.work("training", 4.0)
    with time.clock.during("validating"):
        time.seconds += 8.0
        with time.clock.during("saving"):
            time.seconds += 16.0
    time.seconds += 32.0
    assert [time.clock.spent(phase) for phase in PHASES] == [1.0, 2.0, 0.0, 36.0, 8.0, 16.0]
    assert time.clock.wall == time.seconds == 63.0
    assert time.clock.training == 36.0
    assert time.clock.spent("training", "saving") == 52.0
    assert (time.clock.phase, time.clock.begun, time.clock.now()) == ("training", 1e9, 1e9 + 63)


def test_a_phase_ends_with_its_block_also_after_an_error():
    time = StillTime()
    with pytest.raises(ZeroDivisionError), time.clock.during("validating"):
        raise ZeroDivisionError
    assert time.clock.phase == "starting"


def test_training_counts_on_from_earlier_starts():
    time = StillTime()
    time.clock.resume(100.0)
    time.work("compiling", 3.0)
    time.work("training", 5.0)
    assert (time.clock.training, time.clock.wall) == (105.0, 8.0)


def test_speed_is_that_of_the_steps_since_the_last_row_without_pauses_and_compiling():
    time = StillTime()
    meter = SpeedMeter(time.clock, batch_size=8)
    time.work("compiling", 60.0)
    for _ in range(3):
        time.work("training", 1.0)
        meter.count()
    time.work("validating", 100.0)
    time.work("training", 1.0)
    meter.count()
    assert meter.lap() == 4 * 8 / 4
    time.work("training", 0.5)
    meter.count()
    assert meter.lap() == 16


def test_a_row_with_the_first_step_alone_has_its_speed_with_compiling():
    time = StillTime()
    meter = SpeedMeter(time.clock, batch_size=8)
    time.work("compiling", 4.0)
    time.work("training", 0.0)
    assert meter.lap() == 2.0


def test_each_start_has_a_row_and_a_kill_costs_only_what_came_after_the_last_note(tmp_path):
    """The second start is killed at step 8 and loses its last three steps, which the third makes again."""
    for first, earlier, end in ((0, 0.0, "interrupted"), (5, 30.0, None), (5, 30.0, "finished")):
        time = StillTime()
        time.clock.resume(earlier)
        log = StartLog(tmp_path, time.clock)
        time.work("compiling", 10.0)
        log.begin(first)
        time.work("training", 30.0)
        log.note(first + 3)
        time.work("saving", 10.0)
        written = (tmp_path / "starts.jsonl").read_bytes()
        log.__exit__(Interrupted if end == "interrupted" else None)
        if end is None:  # killed
            (tmp_path / "starts.jsonl").write_bytes(written)
    rows = read_rows(tmp_path, "starts.jsonl")
    assert [(row["step"], row["last_step"], row.get("end")) for row in rows] == [
        (0, 3, "interrupted"), (5, 8, None), (5, 8, "finished"),
    ]  # fmt: skip
    assert [row["wall_seconds"] for row in rows] == [50.0, 40.0, 50.0]
    assert [row["seconds"] for row in rows] == [30.0, 60.0, 60.0]
    assert {row["time"] for row in rows} == {1e9}
    assert rows[2]["phases"] == dict.fromkeys(PHASES, 0.0) | {"compiling": 10.0, "training": 30.0, "saving": 10.0}
    assert time_spent(rows) == TimeSpent(starts=3, wall=140.0, training=60.0)
    assert time_spent(rows).goodput == 60 / 140
    check_records(tmp_path)


def test_a_row_of_a_start_never_leaves_anything_behind_it(tmp_path):
    """It is written over in place; a number may get shorter."""
    time = StillTime()
    with StartLog(tmp_path, time.clock) as log:
        time.seconds = 1.125
        log.begin(10)
        time.seconds = 2.0
        log.note(11)
        (line,) = (tmp_path / "starts.jsonl").read_bytes().splitlines()
        assert json.loads(line)["wall_seconds"] == 2.0
    assert [row["end"] for row in read_rows(tmp_path, "starts.jsonl")] == ["finished"]


def test_a_start_after_a_cut_line_drops_it_and_one_with_nothing_to_do_writes_nothing(tmp_path):
    (tmp_path / "starts.jsonl").write_text('{"step": 0, "last_')
    with StartLog(tmp_path, StillTime().clock):
        pass
    assert (tmp_path / "starts.jsonl").read_text() == '{"step": 0, "last_'
    with StartLog(tmp_path, StillTime().clock) as log:
        log.begin(4)
    assert [row["step"] for row in read_rows(tmp_path, "starts.jsonl")] == [4]


def test_a_silent_process_writes_no_starts(tmp_path):
    with StartLog(tmp_path, StillTime().clock, silent=True) as log:
        log.begin(0)
        log.note(3)
    assert list(tmp_path.iterdir()) == []


def test_a_start_that_fails_says_so(tmp_path):
    log = StartLog(tmp_path, StillTime().clock)
    log.begin(0)
    log.__exit__(UserError)
    assert [row["end"] for row in read_rows(tmp_path, "starts.jsonl")] == ["failed"]


def test_without_starts_nothing_is_known_of_their_time():
    assert time_spent([]) is None
    assert TimeSpent(1, 0.0, 0.0).goodput == 0.0
