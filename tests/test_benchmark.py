"""The benchmarks: every contender measured, ratios that are those of the rows, figures that open, and the peers' numbers."""

import importlib.util
import json

import pytest
from networks import CROP, SIZE, make_mesh, run, tiny_flags
from PIL import Image

from alexnet_jax.benchmark.ours import training_flops
from alexnet_jax.benchmark.worker import Failed, Worker
from alexnet_jax.config import Config
from alexnet_jax.layers import trace
from alexnet_jax.step import make_model
from alexnet_jax.values import MeshShape


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
        (["--input", "--against=pytorch"], "--input and --against"),
        (["--against=keras"], "--against"),
        (["--mesh=3x2"], "--mesh=3x2 needs 6 devices"),
        (["--input", "--figure=a.txt"], "--figure=a.txt is not a .png"),
        (["--input", "--batch_size=0"], "--batch_size=0"),
    ],
)
def test_bad_input_is_one_line(flags, said):
    done = run("benchmark", *flags)
    assert done.returncode in (1, 2)
    assert said in done.stderr
    assert done.stdout == ""


def paper_model(**fields):
    config = Config(mesh=MeshShape(1, 1), **fields)
    return make_model(config, 1000, make_mesh("1x1", config.table().towers, config.batch_size))


def test_the_operations_of_the_paper_are_counted():
    """724 million multiplications (Section 3.5's layers); 4.136 GFLOP per training image, no gradient for the pixels."""
    macs = {one.name: one.multiply_adds for one in trace(Config().table(), 227)}
    assert macs["conv1"] == 55 * 55 * 11 * 11 * 3 * 96
    assert macs["conv2"] == 27 * 27 * 5 * 5 * 48 * 256
    assert macs["conv3"] == 13 * 13 * 9 * 256 * 384
    assert macs["fc6"] == 6 * 6 * 256 * 4096
    assert training_flops(paper_model(crop_size=227)) / 1e9 == pytest.approx(4.136, abs=5e-4)


def test_the_sides_are_those_of_the_network():
    sides = {one.name: (one.in_side, one.conv_side) for one in trace(Config().table(), 227)}
    assert sides["conv1"] == (227, 55)
    assert sides["conv2"] == (27, 27)
    assert sides["conv5"] == (13, 13)
    assert sides["fc6"] == (6, 1)


@pytest.mark.slow
def test_the_network_is_measured_and_drawn(tmp_path):
    small = [f"--crop_size={CROP}", f"--image_size={SIZE}", "--batch_size=4", "--rounds=2", "--steps=1"]
    done = run("benchmark", *small, f"--figure={tmp_path}/steps.svg")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert next(iter(result)) == "images_per_second"
    assert [name.split(": ")[1] for name in result["rows"]] == ["train", "forward", "evaluate", "ten views"]
    rates = {name.split(": ")[1]: row["images_per_second"] for name, row in result["rows"].items()}
    assert rates["forward"] > rates["train"]
    assert rates["evaluate"] > 3 * rates["ten views"]
    assert result["flops_per_second"] == pytest.approx(rates["train"] * result["flops_per_image"])
    measured = {(each["layer"], each["direction"]) for each in result["layers"]}
    assert len(measured) == 3 * 8 - 1
    assert ("conv1", "input gradient") not in measured
    assert (tmp_path / "steps.svg").read_text().count("<svg") == 1


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is in requirements-benchmark.txt")
def test_pytorch_is_measured_in_turn():
    small = [f"--crop_size={CROP}", f"--image_size={SIZE}", "--batch_size=2", "--rounds=1", "--steps=1", "--nolayers"]
    done = run("benchmark", "--against=pytorch", *small, timeout=600)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    rows = {name: row["images_per_second"] for name, row in result["rows"].items()}
    peers = [name for name in rows if "two towers: train" in name]
    assert len(peers) == 1
    expected = rows["alexnet_jax paper: train"] / rows[peers[0]]
    assert result["ratios"][f"ours / {peers[0]}"]["median"] == pytest.approx(expected)
    assert len(result["peers_tried"]) == 2 * 2 * 4
    tried = {name: rate for name, rate in result["peers_tried"].items() if "two towers: train" in name}
    assert peers[0] == max(tried, key=lambda name: tried[name] if isinstance(tried[name], float) else 0)


def test_the_peer_is_the_paper_network():
    """As many parameters, layer by layer, as ours has."""
    pytest.importorskip("torch")
    from alexnet_jax.benchmark.peers import _network

    shapes = paper_model(crop_size=227).shapes
    ours = [weights["kernel"].size for weights in shapes.values()]
    theirs = [p.numel() for p in _network("two towers", 227).parameters() if p.dim() > 1]
    assert ours == theirs
    one_tower = [p.numel() for p in _network("torchvision", 224).parameters() if p.dim() > 1]
    torchvision = paper_model(architecture="torchvision").shapes
    assert one_tower == [weights["kernel"].size for weights in torchvision.values()]


class Broken:
    """A contender that cannot start."""

    name, examples = "broken", 1

    def start(self):
        raise MemoryError("too large")

    def device_memory(self):
        return None


def test_a_contender_that_fails_says_why():
    with pytest.raises(Failed, match="MemoryError: too large"):
        Worker(Broken())
