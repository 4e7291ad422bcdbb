"""Broken and malicious weight files: one line that names the file, nothing executed, no memory for what they only claim."""

import contextlib
import errno
import io
import os
import pickle
import struct
import tracemalloc
import zipfile

import caffe_files
import numpy as np
import pytest
from caffe_files import blob, convolution, field, layer, norm
from networks import run

from alexnet_jax.architectures import ARCHITECTURES
from alexnet_jax.convert import pickles
from alexnet_jax.convert.caffe import read_mean_file
from alexnet_jax.convert.importer import parse_mean, read_weights
from alexnet_jax.convert.layouts import check_blobs
from alexnet_jax.convert.native import read_native
from alexnet_jax.convert.pickles import read_arrays, read_dictionary
from alexnet_jax.convert.pytorch import write_state_dict
from alexnet_jax.system.errors import UserError


class Calls:
    """A pickle of this touches a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def refused(source: str, path, match: str) -> str:
    """The one line that a file is refused with, for less than 64 MB."""

    def read_and_check():
        blobs, table = read_weights(source, path, ARCHITECTURES[source])
        check_blobs(blobs, table, 99, str(path))

    tracemalloc.start()
    with pytest.raises(UserError, match=match) as raised:
        read_and_check()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 << 20
    assert path.name in str(raised.value)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def npy(path, content) -> None:
    """What numpy.save makes of an object."""
    np.save(path, np.array(content, dtype=object), allow_pickle=True)


def conv1(fill: float = 0.5, **options) -> bytes:
    """The first layer of a .caffemodel, whole."""
    blobs = [blob(np.full((96, 3, 11, 11), fill), **options), blob(np.zeros(96), **options)]
    return layer("conv1", "Convolution", blobs, convolution(2, 1, 4, 0))


def network(first: bytes) -> bytes:
    """All layers' names and kinds, conv1 given and the others of one value."""
    one = [blob(np.zeros(1)), blob(np.zeros(1))]
    rest = [layer(f"conv{number}", "Convolution", one) for number in range(2, 6)]
    rest += [layer(f"fc{number}", "InnerProduct", one) for number in range(6, 9)]
    return first + b"".join(rest)


def test_an_honest_dictionary_is_read_whatever_pickle_protocol_wrote_it(tmp_path):
    arrays = {"a": [np.arange(6, dtype=np.float32).reshape(2, 3), np.ones(2)], "b": {"weights": np.zeros((2, 2), ">f4").T}}
    path = tmp_path / "d.npy"
    for protocol in range(2, 6):
        with path.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
            pickle.dump(np.array(arrays, dtype=object), file, protocol)
        found = read_dictionary(path)
        np.testing.assert_array_equal(found["a"][0], arrays["a"][0])
        np.testing.assert_array_equal(found["a"][1], arrays["a"][1])
        np.testing.assert_array_equal(found["b"]["weights"], arrays["b"]["weights"])


def test_a_dictionary_that_calls_something_is_refused_and_calls_nothing(tmp_path):
    path, marker = tmp_path / "evil.npy", tmp_path / "executed"
    npy(path, {"conv1": [np.zeros(3, np.float32), Calls(marker)]})
    assert "it calls" in refused("caffe", path, "no pickle of plain arrays")
    assert not marker.exists()


def laughs(depth: int) -> list:
    """Lists of lists that are few in a file and 2 ** depth when each is copied."""
    content: list = []
    for _ in range(depth):
        content = [content, content]
    return content


HUGE = {  # pickles of a few bytes
    "a far place in the memo": b"\x80\x03}r" + struct.pack("<I", 1 << 25) + b".",
    "a length that is not there": b"\x80\x03B" + struct.pack("<I", 1 << 31) + b"abc.",
    "a text again and again": b"\x80\x02(X" + struct.pack("<I", 1 << 20) + b"a" * (1 << 20) + b"q\x00"
    + b"c_codecs\nencode\nh\x00\x85R" * 200 + b"l.",
    "a text that is doubled": b"\x80\x02X\x01\x00\x00\x00a2.",
}  # fmt: skip


@pytest.mark.parametrize("what", HUGE)
def test_a_small_pickle_cannot_ask_for_much_memory(what):
    tracemalloc.start()
    with pytest.raises(UserError, match=r"^net\.ckpt is no pickle of plain arrays: [^\n]*$"):
        read_arrays(io.BytesIO(HUGE[what]), "net.ckpt")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 << 20


def test_parts_of_a_pickle_that_stand_in_many_places_are_not_copied():
    content = read_arrays(io.BytesIO(pickle.dumps(laughs(20))), "net.ckpt")
    for _ in range(20):
        assert content[0] is content[1]
        content = content[0]
    assert content == []


@pytest.mark.parametrize("content", ["truncated", "empty", "text", "array", "list", "claims"])
def test_broken_dictionaries(tmp_path, content):
    path = tmp_path / "d.npy"
    npy(path, {"conv1": [np.zeros((11, 11, 3, 96), np.float32), np.zeros(96, np.float32)]})
    whole = path.read_bytes()
    match content:
        case "truncated":
            path.write_bytes(whole[: len(whole) // 2])
        case "empty":
            path.write_bytes(b"")
        case "text":
            path.write_bytes(b"conv1")
        case "array":
            np.save(path, np.zeros(3))
        case "list":
            npy(path, [1, 2])
        case "claims":  # an array of 2 ** 62 values and no bytes for them
            path.write_bytes(whole.replace(b"K\x0bK\x0bK\x03K`t", b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7fK\x01K\x01t"))
            assert path.read_bytes() != whole
    refused("caffe", path, "no pickle of plain arrays|not a dictionary of arrays")


@pytest.mark.parametrize("cut", [1, 100, 1000, 139_000])
def test_a_truncated_caffemodel(tmp_path, cut):
    path = tmp_path / "net.caffemodel"
    path.write_bytes(network(conv1())[:cut])
    refused("caffe", path, "truncated or not a Caffe file|no layer with weights")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "no layer with weights"),
        (b"not a network at all", "truncated or not a Caffe file|no layer with weights"),
        (network(conv1(np.nan)), "conv1 weight holds NaN"),
        (network(conv1(np.inf, double=True)), "conv1 weight holds NaN or infinite"),
        (network(conv1()), r"conv2 weight is \(1,\); caffe at 99 px has \(256, 48, 5, 5\)"),
        (conv1(), "--architecture=caffe has conv1, conv2"),
        (network(layer("conv1", "Convolution", [blob(np.zeros(1))])), "'conv1' has 1 blobs"),
        (network(layer("conv1", "Convolution", [blob(np.zeros(1))] * 2, convolution(2, 2, 4, 0))), "group, stride, pad"),
        (network(conv1()) + layer("norm1", "LRN", [], norm(2)) + layer("norm2", "LRN", [], norm(2, alpha=5e-4)), "0.0005"),
        (layer("conv1", "Convolution", [field(7, field(1, caffe_files.varint(1 << 60))) + field(5, b"1234")]), "1 values"),
    ],
)
def test_caffemodels_that_do_not_fit(tmp_path, content, match):
    path = tmp_path / "net.caffemodel"
    path.write_bytes(content)
    refused("caffe", path, match)


def test_caffes_mean_image_is_turned_to_rgb(tmp_path):
    path, mean = tmp_path / "mean.binaryproto", np.arange(3.0 * 16 * 16).reshape(1, 3, 16, 16) / 4
    path.write_bytes(blob(mean, legacy=True))
    np.testing.assert_array_equal(parse_mean(str(path), "caffe", 16), mean[0, ::-1].transpose(1, 2, 0))
    for text, match in (
        (str(path), "is 16 px large"),
        ("1,2", "neither R,G,B"),
        ("nan,1,2", "neither R,G,B"),
        ("/nowhere.npy", "cannot be read"),
    ):
        with pytest.raises(UserError, match=match):
            parse_mean(text, "caffe", 17)
    path.write_bytes(blob(mean)[:-5])
    with pytest.raises(UserError, match="truncated"):
        parse_mean(str(path), "caffe", 16)


def test_safetensors_that_are_broken(tmp_path):
    pytest.importorskip("safetensors", reason="safetensors is not installed (requirements-convert.txt)")
    from safetensors.numpy import save

    path = tmp_path / "net.safetensors"
    whole = save({"conv1.weight": np.full((64, 3, 11, 11), np.nan, np.float32), "conv1.bias": np.zeros(64, np.float32)})
    header = b'{"a":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,4]}}'
    for content, match in (
        (b"", "is empty"), (whole[:-9], "readable safetensors"), (struct.pack("<Q", 1 << 62), "readable safetensors"),
        (struct.pack("<Q", len(header)) + header + b"1234", "readable safetensors"), (whole, "lacks conv2.bias"),
    ):  # fmt: skip
        path.write_bytes(content)
        refused("torchvision", path, match)
    with pytest.raises(UserError, match="not this package's own"):
        read_native(path)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"config": "5"}, "its config is no dictionary"),
        ({"config": "[]"}, "its config is no dictionary"),
        ({"config": "{"}, "lacks its config"),
        ({"config": "[" * 100_000}, "lacks its config"),
        ({"config": '{"image_size": "large"}'}, "image_size"),
        ({"config": '{"mesh": 5}'}, "mesh"),
        ({"config": '{"colour": 5}'}, "unknown fields colour"),
        ({"config": None}, "lacks its config"),
        ({"classes": '"abc"'}, "its classes are no list of names"),
        ({"classes": "[1, 2]"}, "its classes are no list of names"),
        ({"classes": '{"a": 1}'}, "its classes are no list of names"),
        ({"classes": None}, "lacks its config, classes or mean"),
        ({"mean": np.zeros((8, 8, 3), np.float32)}, "no finite float32 image of 66 px: it is float32"),
        ({"mean": np.zeros((66, 66, 3))}, "it is float64"),
        ({"mean": np.zeros((66, 66, 3), np.uint8)}, "it is uint8"),
        ({"mean": np.full((66, 66, 3), np.inf, np.float32)}, "no finite"),
        ({"mean": None}, "lacks its config, classes or mean"),
        ({"format": "alexnet_jax 9"}, "not this package's own"),
    ],
)
def test_our_own_files_that_are_damaged(tmp_path, change, match):
    save = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed").save
    metadata = {"format": "alexnet_jax 1", "config": '{"image_size": 66, "crop_size": 63}', "classes": '["a", "b"]'}
    content = {"mean": np.zeros((66, 66, 3), np.float32), **metadata} | change
    mean = content.pop("mean")
    path = tmp_path / "net.safetensors"
    arrays = {"conv1.bias": np.zeros(96, np.float32)} | ({} if mean is None else {"mean": mean})
    path.write_bytes(save(arrays, {name: text for name, text in content.items() if text is not None}))
    with pytest.raises(UserError, match=match) as raised:
        read_native(path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["n.pth", "n.safetensors"])
def test_a_full_disk_leaves_nothing_of_an_export(tmp_path, monkeypatch, name):
    pytest.importorskip("torch", reason="PyTorch is not installed (requirements-benchmark.txt)")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=f"^{tmp_path / name} cannot be written: No space left on device$"):
        write_state_dict(tmp_path / name, {"a": np.zeros(3, np.float32)})
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_random_damage_is_refused_by_what_the_parsers_raise(tmp_path):
    """A mistake of ours would not be taken for a broken file: only the errors of parsers are."""
    rng = np.random.default_rng(0)
    npy(tmp_path / "d.npy", {"conv1": [np.zeros((2, 2), np.float32), np.zeros(2)], "b": {"weights": np.ones(3, ">f4")}})
    whole = (tmp_path / "d.npy").read_bytes()
    for _ in range(1000):
        broken = bytearray(whole)
        for place in rng.integers(0, len(whole), 3):
            broken[place] = rng.integers(256)
        (tmp_path / "d.npy").write_bytes(broken)
        for read in (read_dictionary, read_mean_file):
            with contextlib.suppress(UserError):
                read(tmp_path / "d.npy")


def test_a_mistake_of_ours_is_not_taken_for_a_broken_file(tmp_path, monkeypatch):
    npy(tmp_path / "d.npy", {"conv1": [np.zeros(3)]})
    monkeypatch.setattr(pickles, "_finished", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        read_dictionary(tmp_path / "d.npy")


def test_pytorch_files_that_are_broken_or_call_something(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed (requirements-benchmark.txt)")
    path, marker = tmp_path / "net.pth", tmp_path / "executed"
    torch.save({"conv1.weight": Calls(marker)}, path)
    refused("torchvision", path, "not a state dict that PyTorch reads with weights_only")
    assert not marker.exists()
    torch.save([torch.zeros(3)], path)
    refused("torchvision", path, "something other than tensors")
    torch.save({"conv1.weight": torch.zeros(3)}, path)
    refused("torchvision", path, "lacks conv1.bias")
    for content in (path.read_bytes()[:300], b"text", pickle.dumps(Calls(marker))):
        path.write_bytes(content)
        refused("torchvision", path, "not a state dict that PyTorch reads")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Calls(marker)))
    refused("torchvision", path, "not a state dict that PyTorch reads")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["caffe", "FOLDER/net.caffemodel"], "conv1 weight holds NaN"),
        (["onnx", "F"], "name a format to import"),
        (["caffe"], "name a format to import"),
        (["F.caffemodel", "--export=caffe"], "holds no run"),
    ],
)
def test_the_command_line_makes_no_folder_of_a_broken_file(tmp_path, words, match):
    (tmp_path / "net.caffemodel").write_bytes(network(conv1(np.nan)))
    result = run("convert", *(word.replace("FOLDER", str(tmp_path)) for word in words), f"--workdir={tmp_path}/run")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert match in result.stderr
    assert not (tmp_path / "run").exists()
