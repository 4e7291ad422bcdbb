"""The benchmark of the input: every contender measured, ratios that are those of the rows, a figure that opens."""

import importlib.util
import json

import pytest
from networks import run, tiny_flags
from PIL import Image


@pytest.mark.slow
def test_the_input_is_measured_and_drawn(data_dir, tmp_path):
    flags = tiny_flags(data_dir, "", steps=1)
    done = run("benchmark", "--input", *flags, "--rounds=1", "--seconds=0.05", f"--figure={tmp_path}/input.png")
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    result = json.loads(line)
    assert next(iter(result)) == "images_per_second"
    rows, ratios = result["rows"], result["ratios"]
    assert any("PyTorch" in name for name in rows) == (importlib.util.find_spec("torch") is not None)
    rates = {name: row["images_per_second"] for name, row in rows.items()}
    ours = rates["store and loader, data_on_device=no"]
    assert result["images_per_second"] == ours
    assert all(0 < row["low"] <= row["images_per_second"] <= row["high"] for row in rows.values())
    assert ratios["loader to memory-map copy"]["median"] == pytest.approx(ours / rates["memory-map copy, in order"])
    per_core = ours / result["cores"] / rates["TFDS, JPEG, one process"]
    assert ratios["loader to JPEG, per core"]["median"] == pytest.approx(per_core)
    assert result["settings"]["batch_size"] == 8
    with Image.open(tmp_path / "input.png") as figure:
        assert figure.width > 500
    assert "training step, images from the store" in done.stderr


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "add --input"),
        (["--input", "--figure=a.txt"], "--figure=a.txt is not a .png"),
        (["--input", "--batch_size=0"], "--batch_size=0"),
    ],
)
def test_bad_input_is_one_line(flags, said):
    done = run("benchmark", *flags)
    assert done.returncode in (1, 2)
    assert said in done.stderr
    assert done.stdout == ""
