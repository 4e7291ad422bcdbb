"""The benchmark of the input, alone and beside JPEG pipelines: rates, ratios that match the rows, and a figure of them."""

import importlib.util
import itertools
import json
import os
import time

import pytest
from networks import SIZE, run, small_config, tiny_flags
from pictures import assert_rates, recorded
from PIL import Image

from alexnet_jax.benchmark import inputs, results
from alexnet_jax.data.dataset import open_dataset
from experiments import input_pipelines


def test_a_rate_leaves_out_what_was_ready_before(monkeypatch):
    """Batches of four that take a second each, by a clock that only they move."""
    now = itertools.count()
    clock = {"time": 0.0}
    monkeypatch.setattr(time, "perf_counter", lambda: clock["time"])

    def stream():
        for _ in now:
            clock["time"] += 1
            yield 4

    by_time = inputs.InputStream("a", stream())
    assert inputs.measure(by_time, 10.0, 3) == 4.0
    assert next(now) == 6 + 10
    by_steps = inputs.InputStream("b", stream(), by_steps=True)
    assert inputs.measure(by_steps, 10.0, 3) == 4.0
    assert next(now) == 16 + 1 + 2 + 3


OURS = ("memory copy", "memory-map copy, in order", *(f"store and loader, data_on_device={on}" for on in ("no", "yes")))
STEPS = ("training step, images from the store", "training step, the same batch again")


def measured(module: str, data_dir, tmp_path, monkeypatch) -> tuple[dict, dict]:
    """Rows and ratios that a command prints, after a check that its rows, table and figure agree."""
    drawn = recorded(monkeypatch, results)
    monkeypatch.setattr(inputs, "_OUT_OF_CACHE", 1 << 20)
    switch = ["--input"] if module == "benchmark" else []
    flags = (*tiny_flags(data_dir, "", steps=1, mesh="1x1"), "--rounds=1", "--seconds=0.05")
    done = run(module, *switch, *flags, f"--figure={tmp_path}/input.png")
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    result = json.loads(line)
    assert next(iter(result)) == "images_per_second"
    rows, ratios = result["rows"], result["ratios"]
    rates = {name: row["images_per_second"] for name, row in rows.items()}
    assert result["images_per_second"] == rates[inputs.LOADER]
    assert all(0 < row["low"] <= row["images_per_second"] <= row["high"] for row in rows.values())
    for name, row in rows.items():
        assert row["gigabytes_per_second"] * 1e9 == pytest.approx(rates[name] * SIZE * SIZE * 3)
    expected = rates[inputs.LOADER] / rates["memory-map copy, in order"]
    assert ratios["loader to memory-map copy"]["median"] == pytest.approx(expected)
    expected = rates[STEPS[0]] / rates[STEPS[1]]
    assert ratios["training from the store to the same batch again"]["median"] == pytest.approx(expected)
    assert result["settings"]["batch_size"] == 8
    (figure,) = drawn
    assert_rates(figure, rows)
    with Image.open(tmp_path / "input.png") as image:
        assert image.size == pytest.approx(150 * figure.get_size_inches(), abs=1)
    assert all(name in done.stderr for name in rows)
    return rows, ratios


@pytest.mark.slow
def test_the_input_is_measured_and_drawn(data_dir, tmp_path, monkeypatch):
    rows, ratios = measured("benchmark", data_dir, tmp_path, monkeypatch)
    assert list(rows) == [*OURS, *STEPS]
    assert list(ratios) == ["loader to memory-map copy", "training from the store to the same batch again"]


def assert_jpegs_compared(rows, ratios):
    """The loader's rate is divided by its cores; TFDS has one."""
    assert list(ratios)[1] == "loader to JPEG, per core"
    rates = {name: row["images_per_second"] for name, row in rows.items()}
    expected = rates[inputs.LOADER] / os.cpu_count() / rates["TFDS, JPEG, one process"]
    assert ratios["loader to JPEG, per core"]["median"] == pytest.approx(expected)


@pytest.mark.slow
def test_the_input_is_measured_beside_jpeg_pipelines(data_dir, tmp_path, monkeypatch):
    """All pipelines but PyTorch's, whose processes start slowly."""
    monkeypatch.setattr(input_pipelines, "torch_pipeline", lambda jpegs, batch_size: ())
    rows, ratios = measured("experiments.input_pipelines", data_dir, tmp_path, monkeypatch)
    assert list(rows) == [*OURS, "TFDS, JPEG, one process", *STEPS]
    assert_jpegs_compared(rows, ratios)


@pytest.mark.nightly
def test_the_input_is_measured_beside_pytorch(data_dir, tmp_path, monkeypatch):
    rows, ratios = measured("experiments.input_pipelines", data_dir, tmp_path, monkeypatch)
    assert any("PyTorch" in name for name in rows) == (importlib.util.find_spec("torch") is not None)
    assert_jpegs_compared(rows, ratios)


@pytest.mark.slow
def test_pytorch_loads_the_same_jpegs(data_dir, tmp_path, monkeypatch):
    """With one worker process."""
    pytest.importorskip("torch", reason="PyTorch is not installed (requirements-benchmark.txt)")
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    split = open_dataset(small_config(dataset="tiny", data_dir=str(data_dir))).splits["train"]
    jpegs = input_pipelines.write_jpegs(split, 14, str(tmp_path))
    assert len(jpegs) == len(split) == 50
    assert jpegs[0][0].shape == (SIZE, SIZE, 3)
    (stream,) = input_pipelines.torch_pipeline(jpegs, 8)
    assert (stream.name, stream.cores) == ("PyTorch DataLoader, JPEG, 1 workers", 1)
    assert [next(stream.batches) for _ in range(8)] == [8] * 8  # more than once around
    stream.batches.close()
