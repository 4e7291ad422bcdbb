"""Weights of networks made in PyTorch, in the files of Caffe and PyTorch, through the command line and back to the bit.

The networks are an eighth as wide as Caffe's and torchvision's, on a few images of coloured noise; at night they are as
wide, on the 661 photographs.
"""

import json
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import caffe_files
import numpy as np
import pytest
from caffe_files import blob, convolution, layer, norm
from networks import run, tiny_source
from reference_networks import (
    CAFFE,
    CLASSES,
    CROP,
    SIZE,
    TORCHVISION,
    caffe_logits,
    random_weights,
    torchvision_logits,
    torchvision_network,
)

from alexnet_jax.architectures import ARCHITECTURES, _narrow
from alexnet_jax.config import Config
from alexnet_jax.convert.exporter import export
from alexnet_jax.data.dataset import open_dataset
from alexnet_jax.data.example import Listed
from alexnet_jax.data.store import store_path
from alexnet_jax.data.writer import write_store
from alexnet_jax.inference.predictor import load_trained

torch = pytest.importorskip("torch", reason="PyTorch is not installed (requirements-benchmark.txt): its files are skipped")
pytest.importorskip("safetensors", reason="safetensors is not installed (requirements-convert.txt)")

CAFFE_MEAN = "123,117,104"
RESIZES = {"caffe": "warp", "torchvision": "centre"}


@dataclass(frozen=True)
class Scale:
    """How much of the networks and of the data: all widths are divided by `divisor`."""

    divisor: int
    dataset: str
    examples: int  # of the test split
    batch: int  # which does not divide them

    def shapes(self, table: dict) -> dict:
        """A table's widths divided, but for the colours and the classes."""
        return {
            name: tuple(side if side in (3, CLASSES) else side // self.divisor for side in sides[:2]) + sides[2:]
            for name, sides in table.items()
        }


SCALES = [
    pytest.param(Scale(8, "tiny", 33, 10), id="an eighth as wide"),
    pytest.param(Scale(1, "groceries", 661, 100), id="as wide", marks=pytest.mark.nightly),
]


def caffemodel(w: dict) -> bytes:
    """V1 and V2 layers in one file, blobs by legacy 4-d and by shape, floats and doubles."""
    parts = []
    for number, (name, (weight, bias)) in enumerate(w.items()):
        version, legacy, double = 1 + number % 2, number % 3 == 0, number % 4 == 1
        if weight.ndim == 4:
            group, stride, pad = 1 + (name in ("conv2", "conv4", "conv5")), 4 if name == "conv1" else 1, {11: 0, 5: 2, 3: 1}
            said = convolution(version, group, stride, pad[weight.shape[2]])
        else:
            said = b""
        blobs = [blob(weight, legacy=legacy, double=double), blob(bias, legacy=legacy, double=double)]
        parts.append(layer(name, "Convolution" if weight.ndim == 4 else "InnerProduct", blobs, said, version=version))
        if name in ("conv1", "conv2"):
            parts += [layer(f"relu{number}", "ReLU", []), layer(f"norm{number}", "LRN", [], norm(2))]
            parts += [layer(f"pool{number}", "Pooling", [])]
    return caffe_files.field(1, "AlexNet") + b"".join(parts)


@pytest.fixture(scope="module", params=SCALES)
def scale(request):
    """While it lives the tables of Caffe and torchvision have its widths."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("caffe", "torchvision"):
            patch.setitem(ARCHITECTURES, name, _narrow(ARCHITECTURES[name], name, request.param.divisor))
        yield request.param


@pytest.fixture(scope="module")
def places(scale, tmp_path_factory) -> Path:
    """A folder for the data set, the files and the runs. Tiny images are oblong, so that it matters how they are resized."""
    folder = tmp_path_factory.mktemp("convert")
    if scale.dataset == "tiny":
        source = tiny_source()
        splits = {
            name: Listed([one._replace(image=one.image[:, :48]) for one in split.read(0)])
            for name, split in source.splits.items()
        }
        for resize in RESIZES.values():
            path = store_path(folder, "tiny", SIZE, resize)
            write_store(replace(source, splits=splits), path, SIZE, resize=resize)
    else:  # an import takes the names of the classes from a prepared set
        for resize in RESIZES.values():
            flags = f"--dataset={scale.dataset}", f"--data_dir={folder}", f"--image_size={SIZE}", f"--resize={resize}"
            assert run("prepare", *flags).returncode == 0
    return folder


@pytest.fixture(scope="module")
def imported(places, scale):
    """Both networks through the command line: their weights, files and run folders."""
    caffe, theirs = random_weights(scale.shapes(CAFFE), 0), random_weights(scale.shapes(TORCHVISION), 1)
    caffe["fc8"] = (caffe["fc8"][0] * np.float32(0.05), caffe["fc8"][1])
    network = torchvision_network(theirs)
    (places / "net.caffemodel").write_bytes(caffemodel(caffe))
    torch.save(network.state_dict(), places / "net.pth")
    common = (f"--dataset={scale.dataset}", f"--data_dir={places}", f"--image_size={SIZE}", f"--crop_size={CROP}")
    for source, file, extra in (("caffe", "net.caffemodel", f"--mean={CAFFE_MEAN}"), ("torchvision", "net.pth", "--mean=")):
        result = run("convert", source, str(places / file), f"--workdir={places / source}", *common, extra)
        assert result.returncode == 0, result.stderr
        assert f"{CLASSES} classes" in result.stdout
    return caffe, network


@pytest.fixture(scope="module")
def evaluated(places, scale, imported) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By source: log probabilities of the test images by the command line, and their pixels."""
    found = {}
    for source, resize in RESIZES.items():
        file = places / f"{source}.npz"
        result = run("evaluate", f"--workdir={places / source}", f"--predictions={file}", "--batch_size=64")
        assert result.returncode == 0, result.stderr
        config = Config(
            dataset=scale.dataset, data_dir=str(places), image_size=SIZE, crop_size=CROP, resize=resize, schedule="constant"
        )
        with np.load(file) as written:
            probabilities = written["probabilities"].astype(np.float64)
        assert len(probabilities) == scale.examples
        found[source] = np.log(probabilities), open_dataset(config).split("test").parts[0].images
    return found


def assert_same_logits(log_probabilities: np.ndarray, logits: np.ndarray) -> None:
    """To 1e-4 of the largest; a softmax knows logits but for a constant."""
    assert logits.std() > 0.5
    ours = log_probabilities - log_probabilities.mean(1, keepdims=True)
    theirs = logits - logits.mean(1, keepdims=True)
    assert np.abs(ours - theirs).max() / np.abs(theirs).max() < 1e-4


@pytest.mark.slow
def test_caffe_weights_give_caffes_logits_and_come_back_to_the_bit(places, imported, evaluated):
    log_probabilities, images = evaluated["caffe"]
    every = -(-len(images) // 34)
    assert_same_logits(log_probabilities[::every], caffe_logits(imported[0], images[::every]))
    export(load_trained(str(places / "caffe")), "caffe", places / "back.caffemodel")
    back = caffe_files.read_blobs((places / "back.caffemodel").read_bytes())
    assert list(back) == list(imported[0])
    for name, arrays in imported[0].items():
        for ours, theirs in zip(back[name], arrays, strict=True):
            np.testing.assert_array_equal(ours.view(np.uint32), theirs.view(np.uint32))
    result = run(
        "convert", "caffe", str(places / "back.caffemodel"), f"--workdir={places / 'again'}", f"--mean={CAFFE_MEAN}",
        f"--image_size={SIZE}", f"--crop_size={CROP}",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert_same_parameters(places / "caffe", places / "again")


@pytest.mark.slow
def test_torchvision_weights_give_its_logits_and_come_back_to_the_bit(places, imported, evaluated):
    log_probabilities, images = evaluated["torchvision"]
    every = -(-len(images) // 34)
    assert_same_logits(log_probabilities[::every], torchvision_logits(imported[1], images[::every]))
    for name in ("back.pth", "back.safetensors"):
        result = run("convert", str(places / name), f"--workdir={places / 'torchvision'}", "--export=torchvision")
        assert result.returncode == 0, result.stderr
    from safetensors.torch import load_file

    wanted = imported[1].state_dict()
    for back in (torch.load(places / "back.pth", weights_only=True), load_file(places / "back.safetensors")):
        assert set(back) == set(wanted)
        assert all(torch.equal(back[name], wanted[name]) for name in wanted)


def assert_same_parameters(one: Path, other: Path) -> None:
    """Bit for bit, with what the images are prepared by."""
    first, second = load_trained(str(one)), load_trained(str(other))
    for name, part in first.params.items():
        for kind, array in part.items():
            np.testing.assert_array_equal(np.asarray(array), np.asarray(second.params[name][kind]))
    np.testing.assert_array_equal(first.mean, second.mean)


@pytest.mark.slow
def test_safetensors_carry_a_whole_run(places, imported):
    export(load_trained(str(places / "caffe")), "safetensors", places / "own.safetensors")
    result = run("convert", "safetensors", str(places / "own.safetensors"), f"--workdir={places / 'own'}")
    assert result.returncode == 0, result.stderr
    assert_same_parameters(places / "caffe", places / "own")
    first, second = (json.loads((places / name / "config.json").read_text()) for name in ("caffe", "own"))
    assert second["config"] | {"data_dir": ""} == first["config"] | {"data_dir": ""}
    assert second["dataset"]["classes"] == first["dataset"]["classes"]


RUNNER = """
import importlib.util, sys
import jax, numpy as np
assert importlib.util.find_spec("alexnet_jax") is None
count, *files = sys.argv[1:]
for network_file, images_file, result in zip(files[::3], files[1::3], files[2::3], strict=True):
    network = jax.export.deserialize(bytearray(open(network_file, "rb").read()))
    images = np.load(images_file, mmap_mode="r")
    parts = [np.asarray(network.call(images[i : i + int(count)])) for i in range(0, len(images), int(count))]
    np.save(result, np.concatenate(parts))
"""


@pytest.mark.slow
def test_stablehlo_runs_without_this_package(places, scale, evaluated, tmp_path):
    """Whole batches and a smaller last one by one program, the same top 5 as the evaluation on all test images."""
    pytest.importorskip("flatbuffers", reason="flatbuffers is not installed (requirements-convert.txt)")
    command = [sys.executable, "-I", "-c", RUNNER, str(scale.batch)]
    for source, resize in RESIZES.items():
        export(load_trained(str(places / source)), "stablehlo", tmp_path / f"{source}.stablehlo")
        images = store_path(places, scale.dataset, SIZE, resize) / "test_images.npy"
        command += [str(tmp_path / f"{source}.stablehlo"), str(images), str(tmp_path / f"{source}.npy")]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=300)
    for source, (log_probabilities, _) in evaluated.items():
        probabilities = np.load(tmp_path / f"{source}.npy")
        assert probabilities.shape == (scale.examples, CLASSES)
        np.testing.assert_array_equal(top5(probabilities), top5(log_probabilities))


def top5(scores: np.ndarray) -> np.ndarray:
    return np.argsort(-scores, axis=1, kind="stable")[:, :5]


@pytest.mark.slow
def test_fine_tuning_with_a_new_head_and_frozen_layers(places, scale, imported):
    """From crops of 99 pixels to crops of 67, at which fc6 has fewer inputs: the layers that fit are taken over."""
    tuned = places / "tuned"
    data = (f"--dataset={scale.dataset}", f"--data_dir={places}", f"--image_size={SIZE}")
    result = run(
        "train", *data, "--resize=warp", "--crop_size=67", "--architecture=caffe", f"--init={places / 'caffe'}",
        f"--workdir={tuned}", "--freeze=conv1,conv2", "--steps=2", "--batch_size=4", "--learning_rate=0.0001",
        "--schedule=constant", "--log_every=1", "--eval_every=100",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "conv1, conv2, conv3, conv4, conv5, fc7, fc8; re-initialised: fc6" in result.stderr
    before, after = load_trained(str(places / "caffe")), load_trained(str(tuned))
    assert (after.step, after.config.mean) == (2, "own")
    np.testing.assert_array_equal(before.mean, after.mean)
    for name in ("conv1", "conv2"):
        np.testing.assert_array_equal(np.asarray(before.params[name]["kernel"]), np.asarray(after.params[name]["kernel"]))
    difference = np.abs(np.asarray(before.params["conv3"]["kernel"]) - np.asarray(after.params["conv3"]["kernel"])).max()
    assert 0 < difference < 0.01
    wrong = run(
        "train", *data, f"--crop_size={CROP}", f"--init={places / 'caffe'}", "--architecture=torchvision",
        f"--workdir={places / 'wrong'}",
    )  # fmt: skip
    assert wrong.returncode == 1
    assert "conv1" in wrong.stderr
    assert "choose --architecture=caffe" in wrong.stderr
    assert not (places / "wrong").exists()
