"""The records: rows once each, also after a resume or a cut-off line; those of older versions."""

import json

import numpy as np
import pytest
from networks import record_row, recording
from networks import recorded as row

from alexnet_jax.run.intervals import Progress
from alexnet_jax.run.metrics import MetricSums, check_records, read_rows, reproducible_rows
from alexnet_jax.system.errors import UserError


def test_rows_have_the_documented_fields_and_are_there_at_once(tmp_path):
    with recording(tmp_path) as recorder:
        recorder.write(row(1))
        (written,) = read_rows(tmp_path)
        assert not (tmp_path / "examples.jsonl").exists()
    assert list(written) == [
        "step", "epoch", "split", "loss", "top1_error", "top5_error", "learning_rate", "images_per_second", "examples",
        "time", "seconds",
    ]  # fmt: skip
    assert list(written.values()) == [1, 0.1, "train", 2.5, 50.0, 10.0, 0.01, 123.4, 16, 1.5e9, 7.5]


def test_a_resume_drops_what_will_be_written_again_and_a_cut_line(tmp_path):
    with recording(tmp_path) as recorder:
        for step in (2, 4, 6):
            recorder.write(row(step))
        recorder.write(row(4, "validation"))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')
    with recording(tmp_path, Progress(4)) as recorder:
        recorder.write(row(6))
    found = [(line["step"], line["split"]) for line in read_rows(tmp_path)]
    assert found == [(2, "train"), (4, "train"), (4, "validation"), (6, "train")]
    assert not list(tmp_path.glob("*.tmp"))


def test_a_record_on_another_disk_stays_there(tmp_path):
    """The link in the folder of the run is not replaced by a file."""
    (tmp_path / "run").mkdir()
    (tmp_path / "metrics.jsonl").touch()
    (tmp_path / "run" / "metrics.jsonl").symlink_to("../metrics.jsonl")
    with recording(tmp_path / "run") as recorder:
        recorder.write(row(2))
    assert (tmp_path / "run" / "metrics.jsonl").is_symlink()
    assert [line["step"] for line in read_rows(tmp_path)] == [2]


def test_a_resume_drops_the_validation_that_is_due_and_no_other_row(tmp_path):
    rows = [row(2), row(2, "validation"), row(4), row(4, "validation")]
    with recording(tmp_path) as recorder:
        for one in rows:
            recorder.write(one)
    with recording(tmp_path, Progress(4, validation_due=True)):
        pass
    assert read_rows(tmp_path) == [one.as_dict() for one in rows[:3]]


def test_examples_are_noted_at_once_and_dropped_like_rows(tmp_path):
    with recording(tmp_path, log_examples=True) as recorder:
        for step in (1, 2, 3):
            recorder.examples(step, np.array([step, 7]))
        assert len(read_rows(tmp_path, name="examples.jsonl")) == 3
    with recording(tmp_path, Progress(2), log_examples=True) as recorder:
        recorder.examples(3, np.array([9, 9]))
    assert read_rows(tmp_path, name="examples.jsonl") == [
        {"step": 1, "examples": [1, 7]},
        {"step": 2, "examples": [2, 7]},
        {"step": 3, "examples": [9, 9]},
    ]


def test_a_silent_recorder_writes_and_shows_nothing(tmp_path, capsys):
    with recording(tmp_path, silent=True, log_examples=True) as recorder:
        recorder.write(row(1, "validation"))
        recorder.examples(1, np.array([1]))
        recorder.say("nothing")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert capsys.readouterr().err == ""


def test_a_window_sums_its_steps():
    window = MetricSums().plus(2.0, 0.5, 0.25).plus(3.0, 0.25, 0.125)
    assert window.as_dict() == {"steps": 2, "loss": 5.0, "top1": 0.75, "top5": 0.375}
    assert window.means() == (2.5, 37.5, 18.75)


def test_a_record_that_is_not_there_has_no_rows(tmp_path):
    assert read_rows(tmp_path) == []


def test_rows_of_older_versions_are_read_and_wrong_times_are_not(tmp_path):
    old, new = record_row(1, "train"), record_row(2, "train", time=1e9, seconds=2.5)
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in (old, new)))
    assert read_rows(tmp_path) == [old, new]
    del old["images_per_second"]
    assert reproducible_rows(tmp_path) == [old, {name: new[name] for name in old}]
    for wrong in ({"time": "noon"}, {"seconds": None}, {"ema": None}, {"ema": {"loss": 1.0, "top1_error": 50.0}}):
        path.write_text(json.dumps(new | wrong) + "\n")
        with pytest.raises(UserError, match=r"metrics.jsonl: line 1 is no row of a record"):
            check_records(tmp_path)


@pytest.mark.parametrize(
    "wrong", [{"step": "0"}, {"last_step": None}, {"wall_seconds": "10"}, {"seconds": []}, {"time": {}}]
)
def test_starts_of_another_kind_are_refused(tmp_path, wrong):
    start = {"step": 0, "last_step": 5, "time": 1e9, "wall_seconds": 10.0, "seconds": 7.0}
    (tmp_path / "starts.jsonl").write_text(json.dumps(start) + "\n")
    check_records(tmp_path)
    (tmp_path / "starts.jsonl").write_text(json.dumps(start | wrong) + "\n")
    with pytest.raises(UserError, match=r"starts.jsonl: line 1 is no row of a record"):
        check_records(tmp_path)


def test_a_checkpoint_of_an_older_version_has_no_seconds():
    progress = Progress(3, seconds=2.5)
    content = progress.as_dict()
    assert Progress.from_dict(content) == progress
    del content["seconds"]
    assert Progress.from_dict(content) == Progress(3)
