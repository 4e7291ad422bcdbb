"""The record: rows once each, also after a resume or a cut-off line; TensorBoard beside it."""

import json

from alexnet_jax.metrics import Recorder, Row, Stopwatch, read_rows


def row(step: int, split: str = "train") -> Row:
    return Row(step, step / 10, split, 2.5, 50.0, 10.0, 0.01, 123.4, 16)


def test_rows_have_the_documented_fields(tmp_path):
    with Recorder(tmp_path, resume_step=0, total_steps=10) as recorder:
        recorder.write(row(1))
    assert list(json.loads((tmp_path / "metrics.jsonl").read_text())) == [
        "step", "epoch", "split", "loss", "top1_error", "top5_error", "learning_rate", "images_per_second", "examples",
    ]  # fmt: skip


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


def test_tensorboard_events_lie_beside(tmp_path):
    with Recorder(tmp_path, resume_step=0, total_steps=10) as recorder:
        recorder.write(row(1))
    (events,) = (tmp_path / "tensorboard").glob("events.out.tfevents.*")
    content = events.read_bytes()
    for tag in (b"train/loss", b"train/top1_error", b"learning_rate"):
        assert tag in content


def test_a_log_is_told_validations_and_nothing_else(tmp_path, capsys):
    with Recorder(tmp_path, resume_step=0, total_steps=10) as recorder:
        recorder.write(row(1))
        recorder.progress(1, 2.5, 0.5, 100.0)
        recorder.write(row(2, "validation"))
    assert capsys.readouterr().err.splitlines() == [
        "epoch    0.20  step 2  validation loss 2.5000  top-1 error 50.00 %  top-5 10.00 %"
    ]


def test_a_paused_stopwatch_stands_still(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("alexnet_jax.metrics.time.monotonic", lambda: now[0])
    watch = Stopwatch()
    now[0] = 3.0
    with watch.paused():
        now[0] = 10.0
    now[0] = 12.0
    assert watch.lap() == 5.0
    now[0] = 13.0
    assert watch.lap() == 1.0
