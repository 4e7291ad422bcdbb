"""Preparing: pixels against Pillow by hand, statistics against NumPy, and what bad input and a kill leave behind."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

import alexnet_jax.prepare
from alexnet_jax.data.sources import Source, open_source
from alexnet_jax.data.store import open_store
from alexnet_jax.errors import UserError
from alexnet_jax.prepare import prepare, square_rgb, write_store

TFDS_DIR = Path(__file__).parents[2] / "shared/data/tfds"
needs_cifar10 = pytest.mark.skipif(not (TFDS_DIR / "cifar10").is_dir(), reason="CIFAR-10 is not beside the repository")
SIZE = 16


def encode(image, file_format, **options):
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def smooth(width, height, channels=3, seed=0):
    """Random colours without edges, which resampling keeps almost as they are."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, channels), dtype=np.uint8)
    image = Image.fromarray(coarse[..., 0] if channels == 1 else coarse)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def source_of(train, **others):
    """A source whose labels count 0, 1, 2, 0, 1, 2 ..."""
    splits = {"train": train, **others}
    labelled = {split: [(image, i % 3) for i, image in enumerate(images)] for split, images in splits.items()}
    return Source("fake", ("a", "b", "c"), "made by hand", labelled)


@pytest.mark.parametrize(("width", "height"), [(96, 32), (32, 96), (64, 64), (40, 8), (48, 32)])
def test_short_side_to_size_then_the_centre(width, height):
    """Sizes whose long side needs no rounding: here the paper's two steps and the one step are the same."""
    image = smooth(width, height)
    scale = SIZE / min(width, height)
    whole = image.resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC)
    left, top = (whole.width - SIZE) // 2, (whole.height - SIZE) // 2
    reference = np.asarray(whole.crop((left, top, left + SIZE, top + SIZE)))
    got = square_rgb(encode(image, "PNG"), SIZE)
    assert got.shape == (SIZE, SIZE, 3)
    assert np.abs(got.astype(int) - reference).max() <= 1
    assert np.abs(np.roll(got, 1, axis=1).astype(int) - reference).max() > 1


def test_reduction_is_antialiased():
    """Columns of 0 and 255 in turn become grey; a filter that only looks at the nearest pixels keeps them apart."""
    stripes = np.zeros((160, 160, 3), np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(square_rgb(stripes, SIZE)[:, 1:-1].astype(int) - 127).max() <= 4


def test_pixels_of_the_size_asked_for_are_not_touched():
    pixels = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    np.testing.assert_array_equal(square_rgb(pixels, SIZE), pixels)
    np.testing.assert_array_equal(square_rgb(encode(Image.fromarray(pixels), "PNG"), SIZE), pixels)


def test_every_kind_of_pixel_becomes_rgb():
    grey = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 1), dtype=np.uint8)
    rgb = np.repeat(grey, 3, axis=2)
    image = Image.fromarray(grey[..., 0])
    np.testing.assert_array_equal(square_rgb(grey, SIZE), rgb)
    np.testing.assert_array_equal(square_rgb(encode(image, "PNG"), SIZE), rgb)
    np.testing.assert_array_equal(square_rgb(encode(image.convert("P"), "PNG"), SIZE), rgb)
    sixteen_bits = Image.fromarray(grey[..., 0].astype(np.uint16) * 257)
    np.testing.assert_array_equal(square_rgb(encode(sixteen_bits, "PNG"), SIZE), rgb)
    cmyk = Image.new("CMYK", (SIZE, SIZE), (0, 255, 255, 0))
    red = square_rgb(encode(cmyk, "JPEG", quality=100), SIZE).astype(int)
    assert np.abs(red - [255, 0, 0]).max() <= 6


def test_transparency_lies_over_white():
    alpha = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 1), dtype=np.uint8)
    colour = np.random.default_rng(1).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    rgba = np.concatenate([colour, alpha], axis=2)
    expected = 255 + (colour.astype(float) - 255) * (alpha / 255)
    for image in (rgba, encode(Image.fromarray(rgba), "PNG")):
        assert np.abs(square_rgb(image, SIZE) - expected).max() <= 1
    palette = Image.new("P", (SIZE, SIZE), 3)
    palette.putpalette([0, 50, 100] * 8)
    assert (square_rgb(encode(palette, "PNG"), SIZE) == [0, 50, 100]).all()
    assert (square_rgb(encode(palette, "PNG", transparency=3), SIZE) == 255).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    """The pixels of a camera that was held so are turned back; the references are written as NumPy axes."""
    upright = {
        1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
        8: lambda a: np.rot90(a, 1),
    }  # fmt: skip
    pixels = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    got = square_rgb(encode(Image.fromarray(pixels), "PNG", exif=exif), SIZE)
    np.testing.assert_array_equal(got, upright[orientation](pixels))


def broken(kind):
    """Bytes, or pixels, that are no complete image."""
    whole = encode(smooth(60, 50), "PNG" if kind == "png" else "JPEG")
    return {
        "jpeg": whole[: len(whole) // 2],
        "jpeg end": whole[: len(whole) * 9 // 10],
        "png": whole[: len(whole) // 2],
        "text": b"not an image",
        "empty": b"",
        "channels": np.zeros((9, 9, 5), np.uint8),
        "no pixels": np.zeros((0, 9, 3), np.uint8),
    }[kind]


BROKEN = ["jpeg", "jpeg end", "png", "text", "empty", "channels", "no pixels"]


@pytest.mark.parametrize("kind", BROKEN)
def test_an_undecodable_image_is_an_error_of_one_line(kind):
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        square_rgb(broken(kind), SIZE)


@pytest.mark.parametrize("kind", ["jpeg", "jpeg end", "png"])
def test_an_undecodable_image_ends_the_run_and_leaves_nothing(tmp_path, kind):
    images = [encode(smooth(20, 30, seed=i), "JPEG") for i in range(5)]
    with pytest.raises(
        UserError, match=r"image 3 of split test cannot be decoded .*[Tt]runcated.*--on_error=skip"
    ) as caught:
        write_store(source_of(images, test=[*images[:3], broken(kind), *images[3:]]), tmp_path / "fake-16", SIZE)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_undecodable_images_are_skipped_and_listed(tmp_path):
    images = [encode(smooth(20, 30, seed=i), "JPEG") for i in range(7)]
    bad = {1: broken("jpeg"), 5: broken("text")}
    mixed = [bad.get(i, image) for i, image in enumerate(images)]
    store = write_store(source_of(mixed, test=images[:2]), tmp_path / "fake-16", SIZE, on_error="skip")
    kept = [i for i in range(7) if i not in bad]
    assert store.splits["train"].labels.tolist() == [i % 3 for i in kept]
    for row, i in enumerate(kept):
        np.testing.assert_array_equal(store.splits["train"].images[row], square_rgb(images[i], SIZE))
    np.testing.assert_allclose(store.mean_image, store.splits["train"].images.mean(axis=0), rtol=1e-6)
    meta = json.loads((tmp_path / "fake-16/meta.json").read_text())
    assert [(entry["split"], entry["index"]) for entry in meta["skipped"]] == [("train", 1), ("train", 5)]
    assert "Truncated" in meta["skipped"][0]["reason"]
    assert "no image format" in meta["skipped"][1]["reason"]
    assert meta["counts"] == {"train": 5, "test": 2}


def test_what_is_written_is_the_source_in_order_over_several_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(alexnet_jax.prepare, "BLOCK_BYTES", 3 * SIZE * SIZE * 3)
    rng = np.random.default_rng(0)
    train = list(rng.integers(0, 256, (50, SIZE, SIZE, 3), dtype=np.uint8))
    validation = list(rng.integers(0, 256, (4, SIZE, SIZE, 3), dtype=np.uint8))
    store = write_store(source_of(train, validation=validation), tmp_path / "deep/fake-16", SIZE)
    assert list(store.splits) == ["train", "validation"]
    np.testing.assert_array_equal(store.splits["train"].images, train)
    np.testing.assert_array_equal(store.splits["validation"].images, validation)
    np.testing.assert_array_equal(store.splits["train"].labels, np.arange(50) % 3)
    assert store.classes == ("a", "b", "c")
    pixels = np.reshape(train, (-1, 3)).astype(float)
    np.testing.assert_allclose(store.channel_mean, pixels.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(store.mean_image, np.mean(train, axis=0), rtol=1e-6)
    variances, vectors = np.linalg.eigh(np.cov(pixels.T, bias=True))
    np.testing.assert_allclose(store.colour_std, np.sqrt(variances), rtol=1e-5)
    np.testing.assert_allclose(np.abs(store.colour_vectors), np.abs(vectors), atol=1e-4)
    digest = hashlib.sha256()
    for images in (train, validation):
        digest.update(np.array(images).tobytes() + (np.arange(len(images)) % 3).astype("<i4").tobytes())
    assert store.fingerprint == digest.hexdigest()


def test_a_source_without_images_to_train_on_is_refused(tmp_path):
    image = encode(smooth(20, 20), "PNG")
    for source in (source_of([], test=[image]), Source("fake", ("a",), "", {"test": [(image, 0)]})):
        with pytest.raises(UserError, match="no labelled train split"):
            write_store(source, tmp_path / "fake-16", SIZE)
    with pytest.raises(UserError, match="not one image"):
        write_store(source_of([broken("jpeg")]), tmp_path / "fake-16", SIZE, on_error="skip")
    with pytest.raises(UserError, match="none of its classes"):
        write_store(Source("fake", ("a",), "", {"train": [(image, 0), (image, -1)]}), tmp_path / "fake-16", SIZE)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_run_leaves_nothing_that_looks_finished(tmp_path):
    """Killed while the second half is still to come; the next run replaces what it left."""
    script = f"""
import time
from pathlib import Path
import numpy as np
import alexnet_jax.prepare
from alexnet_jax.data.sources import Source

class Slow(list):
    def __getitem__(self, index):
        time.sleep(60 if index >= 200 else 0)
        return np.zeros(({SIZE}, {SIZE}, 3), np.uint8), 0

alexnet_jax.prepare.BLOCK_BYTES = {SIZE * SIZE * 3}
alexnet_jax.prepare.open_source = lambda *_: Source("fake", ("a",), "", {{"train": Slow([0] * 400)}})
alexnet_jax.prepare.prepare("fake", {str(tmp_path)!r}, None, {SIZE})
"""
    process = subprocess.Popen([sys.executable, "-c", script], cwd=Path(__file__).parents[1])
    images = tmp_path / "fake-16.partial/train_images.npy"
    deadline = time.monotonic() + 30
    while (not images.exists() or images.stat().st_size < 100 * SIZE * SIZE * 3) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert images.exists()
    assert not (tmp_path / "fake-16").exists()
    (images.parent / "stray").touch()
    image = encode(smooth(20, 20), "PNG")
    store = write_store(source_of([image]), tmp_path / "fake-16", SIZE)
    assert len(store.splits["train"]) == 1
    assert not images.parent.exists()
    assert not (tmp_path / "fake-16/stray").exists()


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(alexnet_jax.prepare.NpyWriter, "append", full)
    with pytest.raises(UserError, match=r"--data_dir=.*No space left on device"):
        write_store(source_of([encode(smooth(20, 20), "PNG")]), tmp_path / "fake-16", SIZE)
    assert list(tmp_path.iterdir()) == []


def test_two_at_once_prepare_once(tmp_path, monkeypatch, capsys):
    written, ready = [], threading.Barrier(2)
    source = source_of([encode(smooth(20, 20), "PNG")])

    def opened(*_):
        ready.wait(timeout=30)
        return source

    def slowly(*arguments):
        time.sleep(0.3)
        written.append(arguments)
        return write_store(*arguments)

    monkeypatch.setattr(alexnet_jax.prepare, "open_source", opened)
    monkeypatch.setattr(alexnet_jax.prepare, "write_store", slowly)
    threads = [threading.Thread(target=prepare, args=("fake", tmp_path, None, SIZE)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert len(written) == 1
    assert "another process" in capsys.readouterr().err
    assert len(open_store(tmp_path / "fake-16").splits["train"]) == 1


@pytest.fixture(scope="module")
def groceries(tmp_path_factory):
    return prepare("groceries", tmp_path_factory.mktemp("data"), None, 64)


def test_groceries_as_train_prepares_it(groceries):
    store = open_store(groceries)
    assert groceries.name == "groceries-64"
    assert {name: len(split) for name, split in store.splits.items()} == {"train": 675, "validation": 57, "test": 661}
    assert len(store.classes) == 14
    source = open_source("groceries", None)
    for split, examples in source.splits.items():
        np.testing.assert_array_equal(store.splits[split].labels, [label for _, label in examples])
    for index in (0, 300, 674):
        photograph = Image.open(io.BytesIO(source.splits["train"][index][0]))
        assert min(photograph.size) == 348
        left, top = ((side - 348) // 2 for side in photograph.size)
        square = photograph.crop((left, top, left + 348, top + 348)).resize((64, 64), Image.Resampling.BICUBIC)
        difference = store.splits["train"].images[index].astype(int) - np.asarray(square)
        assert np.abs(difference).max() <= 24  # cut before it is resampled, so the edge sees other pixels
        assert np.abs(difference[3:-3, 3:-3]).max() <= 1
    np.testing.assert_allclose(store.channel_mean, store.splits["train"].images.mean(axis=(0, 1, 2)), rtol=1e-5)
    assert "39ff392b" in json.loads((groceries / "meta.json").read_text())["source"]


def test_a_finished_store_stays_as_it_is(groceries, capsys):
    before = {path.name: path.stat().st_mtime_ns for path in groceries.iterdir()}
    assert prepare("groceries", groceries.parent, None, 64) == groceries
    assert "stays as it is" in capsys.readouterr().err
    assert {path.name: path.stat().st_mtime_ns for path in groceries.iterdir()} == before


def test_a_damaged_store_is_not_taken_for_finished(tmp_path):
    (tmp_path / "groceries-64").mkdir()
    with pytest.raises(UserError, match=r"no meta\.json.*delete it"):
        prepare("groceries", tmp_path, None, 64)


def test_a_data_dir_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(alexnet_jax.prepare, "open_source", lambda *_: source_of([]))
    with pytest.raises(UserError, match=r"^--data_dir=\S+/file/data cannot be used: [^\n]*Not a directory"):
        prepare("fake", tmp_path / "file/data", None, SIZE)


@pytest.mark.parametrize(("arguments", "said"), [((0, "fail"), "--image_size=0"), ((8, "mend"), "--on_error=mend")])
def test_arguments_out_of_range_are_named(tmp_path, arguments, said):
    with pytest.raises(UserError, match=said):
        prepare("groceries", tmp_path, None, *arguments)


def test_an_unknown_set_leaves_no_folder_behind(tmp_path):
    with pytest.raises(UserError, match="--dataset=grocery"):
        prepare("grocery", tmp_path / "data", None, SIZE)
    assert list(tmp_path.iterdir()) == []


def run(*command):
    """A command of the repository as a user runs it."""
    root = Path(__file__).parents[1]
    return subprocess.run([sys.executable, *command], cwd=root, capture_output=True, text=True, timeout=120)


@needs_cifar10
@pytest.mark.slow
def test_all_of_cifar10_from_the_command_line(tmp_path):
    flags = ("--dataset=cifar10", f"--tfds_dir={TFDS_DIR}", f"--data_dir={tmp_path}", "--image_size=32")
    done = run("-m", "alexnet_jax.prepare", *flags)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert str(tmp_path / "cifar10-32") in line
    assert "50,000 train, 10,000 test" in line
    store = open_store(tmp_path / "cifar10-32")
    # The published statistics of the set.
    np.testing.assert_allclose(store.channel_mean, [125.307, 122.950, 113.865], atol=1e-3)
    covariance = store.colour_vectors @ np.diag(store.colour_std**2) @ store.colour_vectors.T
    np.testing.assert_allclose(np.sqrt(np.diag(covariance)), [62.993, 62.089, 66.705], atol=1e-3)
    decoded = tfds.builder("cifar10", data_dir=TFDS_DIR).as_data_source("train")
    for index in range(0, 50_000, 997):
        np.testing.assert_array_equal(store.splits["train"].images[index], decoded[index]["image"])
        assert store.splits["train"].labels[index] == decoded[index]["label"]
    np.testing.assert_array_equal(np.bincount(store.splits["test"].labels), np.full(10, 1000))


@pytest.mark.parametrize(("flag", "said"), [("--dataset=cifar11", "did you mean"), ("--image_size=0", "at least 1")])
def test_a_bad_flag_ends_the_command_with_one_line(tmp_path, flag, said):
    done = run("-m", "alexnet_jax.prepare", f"--data_dir={tmp_path}", flag)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {flag}")
    assert said in line


def test_importing_prepare_defines_no_flags_and_no_jax():
    code = "import sys, alexnet_jax.prepare; from absl.flags import FLAGS; print('jax' in sys.modules, 'data_dir' in FLAGS)"
    assert run("-W", "error", "-c", code).stdout == "False False\n"


def test_a_terminal_shows_progress(tmp_path):
    """Under a pseudo-terminal there is a bar with a rate; elsewhere, as the other tests see, one line."""
    pty = pytest.importorskip("pty")
    leader, follower = pty.openpty()
    code = f"from alexnet_jax.prepare import prepare; prepare('groceries', {str(tmp_path)!r}, None, 8)"
    command = [sys.executable, "-c", code]
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen(command, cwd=Path(__file__).parents[1], stderr=follower, env=environment)
    os.close(follower)
    shown = b""
    try:
        while part := os.read(leader, 65536):
            shown += part
    except OSError:
        pass  # Linux's way of saying that the other end is closed
    os.close(leader)
    assert process.wait(timeout=60) == 0
    assert b"1393/1393" in shown
    assert b"images/s" in shown
