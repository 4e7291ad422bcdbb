"""The benchmark of the input: rates of all contenders, ratios that are those of the rows, and a figure of them."""

import importlib.util
import itertools
import json
import os
import time

import pytest
from networks import SIZE, run, small_config, tiny_flags
from pictures import assert_bars, recorded
from PIL import Image

from alexnet_jax.benchmark import input_contenders, inputs, results
from alexnet_jax.data.dataset import open_dataset


def test_a_rate_leaves_out_what_was_ready_before(monkeypatch):
    """Batches of four that take a second each, by a clock that only they move."""
    now = itertools.count()
    clock = {"time": 0.0}
    monkeypatch.setattr(time, "perf_counter", lambda: clock["time"])

    def stream():
        for _ in now:
            clock["time"] += 1
            yield 4

    by_time = input_contenders.Contender("a", stream(), 1)
    assert input_contenders.measure(by_time, 10.0, 3) == 4.0
    assert next(now) == 6 + 10
    by_steps = input_contenders.Contender("b", stream(), 1, by_steps=True)
    assert input_contenders.measure(by_steps, 10.0, 3) == 4.0
    assert next(now) == 16 + 1 + 2 + 3


def assert_input_measured(done, figure, path) -> dict:
    """What the command line says of the input: consistent rows and ratios, a table, a figure."""
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    result = json.loads(line)
    assert next(iter(result)) == "images_per_second"
    rows, ratios = result["rows"], result["ratios"]
    rates = {name: row["images_per_second"] for name, row in rows.items()}
    ours = rates["store and loader, data_on_device=no"]
    assert result["images_per_second"] == ours
    assert all(0 < row["low"] <= row["images_per_second"] <= row["high"] for row in rows.values())
    assert all(
        row["gigabytes_per_second"] * 1e9 == pytest.approx(rates[name] * SIZE * SIZE * 3) for name, row in rows.items()
    )
    assert ratios["loader to memory-map copy"]["median"] == pytest.approx(ours / rates["memory-map copy, in order"])
    per_core = ours / result["cores"] / rates["TFDS, JPEG, one process"]
    assert ratios["loader to JPEG, per core"]["median"] == pytest.approx(per_core)
    fed, resident = (rates[f"training step, {batch}"] for batch in ("images from the store", "the same batch again"))
    assert ratios["training from the store to the same batch again"]["median"] == pytest.approx(fed / resident)
    assert result["settings"]["batch_size"] == 8
    assert_bars(figure, rows)
    with Image.open(path) as image:
        assert image.size == pytest.approx(150 * figure.get_size_inches(), abs=1)
    assert all(name in done.stderr for name in rows)
    return rows


@pytest.mark.slow
def test_the_input_is_measured_and_drawn(data_dir, tmp_path, monkeypatch):
    """All contenders but PyTorch's, whose processes take long to start."""
    drawn = recorded(monkeypatch, results)
    monkeypatch.setattr(input_contenders, "torch_pipeline", lambda jpegs, batch_size: None)
    monkeypatch.setattr(input_contenders, "_OUT_OF_CACHE", 1 << 20)
    flags = (*tiny_flags(data_dir, "", steps=1, mesh="1x1"), f"--figure={tmp_path}/input.png")
    done = run("benchmark", "--input", *flags, "--rounds=1", "--seconds=0.05")
    rows = assert_input_measured(done, drawn[0], tmp_path / "input.png")
    assert list(rows) == [
        "memory copy", "memory-map copy, in order", *inputs.OURS, "TFDS, JPEG, one process",
        "training step, images from the store", "training step, the same batch again",
    ]  # fmt: skip


@pytest.mark.nightly
def test_the_input_is_measured_beside_pytorch(data_dir, tmp_path, monkeypatch):
    drawn = recorded(monkeypatch, results)
    flags = (*tiny_flags(data_dir, "", steps=1, mesh="1x1"), f"--figure={tmp_path}/input.png")
    done = run("benchmark", "--input", *flags, "--rounds=1", "--seconds=0.05")
    rows = assert_input_measured(done, drawn[0], tmp_path / "input.png")
    assert any("PyTorch" in name for name in rows) == (importlib.util.find_spec("torch") is not None)


@pytest.mark.slow
def test_pytorch_loads_the_same_jpegs(data_dir, tmp_path, monkeypatch):
    """With one worker process."""
    pytest.importorskip("torch", reason="PyTorch is not installed (requirements-benchmark.txt)")
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    split = open_dataset(small_config(dataset="tiny", data_dir=str(data_dir))).splits["train"]
    jpegs = input_contenders.write_jpegs(split, 14, str(tmp_path))
    assert len(jpegs) == len(split) == 50
    assert jpegs[0][0].shape == (SIZE, SIZE, 3)
    contender = input_contenders.torch_pipeline(jpegs, 8)
    assert (contender.name, contender.cores) == ("PyTorch DataLoader, JPEG, 1 workers", 1)
    assert [next(contender.stream) for _ in range(8)] == [8] * 8  # more than once around
    contender.stream.close()
