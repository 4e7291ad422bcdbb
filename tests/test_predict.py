"""Predictions through the command line: the same numbers as evaluation, any number of images, bad ones named."""

import contextlib
import io
import json
import os
import subprocess
import sys
import threading
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from networks import CROP, ROOT, SIZE, make_mesh, run, small_setup, tiny_config
from pictures import bomb, broken, encode, recorded, smooth
from PIL import Image

from alexnet_jax import predict, prediction
from alexnet_jax.data.store import open_store, store_path
from alexnet_jax.figures import style
from alexnet_jax.inference.predictor import Guess, load_trained, top_classes
from alexnet_jax.network import merge
from alexnet_jax.prediction import image_paths, read_batches
from alexnet_jax.system.errors import UserError
from alexnet_jax.training import train


@pytest.fixture(scope="module")
def trained(data_dir, tmp_path_factory):
    """A short run, and the tiny set's test images as PNG files."""
    folder = tmp_path_factory.mktemp("predict")
    train(tiny_config(data_dir, folder / "run"))
    images = open_store(store_path(data_dir, "tiny", SIZE)).splits["test"].images
    (folder / "images").mkdir()
    for number, image in enumerate(images[:11]):
        Image.fromarray(image).save(folder / "images" / f"{number:02d}.png")
    return folder


def test_folders_lists_and_files_are_joined_in_order(tmp_path):
    for name in ("b.png", "a.png", ".hidden", "deep/c.png"):
        (tmp_path / "f" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "f" / name).touch()
    (tmp_path / "list").write_text(f"{tmp_path}/x.png\n\n{tmp_path}/f/deep\n")
    found = image_paths([str(tmp_path / "z.png"), str(tmp_path / "f")], str(tmp_path / "list"))
    assert [str(path.relative_to(tmp_path)) for path in found] == [
        "z.png", "f/a.png", "f/b.png", "f/deep/c.png", "x.png", "f/deep/c.png",
    ]  # fmt: skip
    with pytest.raises(UserError, match="there are no images"):
        image_paths([], "")
    with pytest.raises(UserError, match="--list=/nowhere cannot be read"):
        image_paths([], "/nowhere")


def test_what_is_hidden_or_a_folder_in_a_folder_is_no_image(tmp_path):
    """A link to a folder and all that is no regular file stay, and get an error of their own."""
    for name in ("f/a.png", "f/.hidden/b.png", "f/c/.d.png", "elsewhere/e.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    os.mkfifo(tmp_path / "f/fifo")
    (tmp_path / "f/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "f/lost").symlink_to("nowhere")
    assert [path.name for path in image_paths([str(tmp_path / "f")], "")] == ["a.png", "fifo", "link", "lost"]


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_a_list_holds_names_in_any_encoding(tmp_path, monkeypatch, ends):
    names = [b"caf\xe9.png", "café \x85\u2028.png".encode(), b" [1] 'x'.png"]
    content = b"\xef\xbb\xbf" + ends.encode().join([*names, b"", b"  "])
    (tmp_path / "list").write_bytes(content)
    assert [os.fsencode(path) for path in image_paths([], str(tmp_path / "list"))] == names
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), "ascii"))
    assert [os.fsencode(path) for path in image_paths([], "-")] == names


def test_paths_that_lead_to_no_file_are_images_that_cannot_be_read(tmp_path):
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "self").symlink_to("self")
    wrong = {
        "a" * 5000: "File name too long", "file/b": "Not a directory", "none": "No such file or directory",
        "fifo": "it is no regular file", "self": "Too many levels of symbolic links", "file": "in no image format",
        os.fsdecode(b"\xff"): "No such file or directory",
    }  # fmt: skip
    paths = [tmp_path / name for name in wrong]
    assert image_paths(list(map(str, paths)), "") == paths
    with contextlib.redirect_stderr(io.StringIO()) as said:
        (batch,) = read_batches(paths, make_mesh("2x1", 2, 8), 8, SIZE, "centre")
    assert (batch.paths, batch.readable) == (paths, [])
    for path, line, reason in zip(paths, said.getvalue().splitlines(), wrong.values(), strict=True):
        assert line.startswith(f"error: {path}: {reason}")


class Terminal(io.StringIO):
    """As which a person sees stderr."""

    def isatty(self):
        return True


@pytest.fixture
def one_class(monkeypatch):
    """In place of a run, one that gives all images to its only class."""
    config, setup = (
        SimpleNamespace(image_size=SIZE, resize="centre", batch_size=4),
        SimpleNamespace(mesh=make_mesh("1x1", 2, 4)),
    )
    found = SimpleNamespace(config=config, setup=setup, classes=["a"], title="")
    monkeypatch.setattr(prediction, "load_trained", lambda *_, **__: found)

    def predict(_, batches, *__):
        return ((batch, np.ones((len(batch.readable), 1), np.float32)) for batch in batches)

    monkeypatch.setattr(prediction, "predict", predict)


def test_rows_go_to_the_file_and_the_bar_to_the_terminal(tmp_path, one_class):
    """As in `predict ... --format=jsonl > rows.jsonl` at a terminal, while the bar is shown."""
    (tmp_path / "a.png").write_bytes(encode(smooth(9, 9), "PNG"))
    with contextlib.redirect_stdout(io.StringIO()) as rows, contextlib.redirect_stderr(Terminal()) as bar:
        assert predict.COMMAND([str(tmp_path / "a.png")] * 99 + ["--format=jsonl"]) == 0
    expected = [{"class": "a", "index": 0, "probability": 1.0}]
    assert [json.loads(line)["top5"] for line in rows.getvalue().splitlines()] == [expected] * 99
    assert "looking" in bar.getvalue()
    assert "top5" not in bar.getvalue()


def test_ctrl_c_ends_the_bar_and_the_threads_before_anything_is_said(tmp_path, one_class, monkeypatch):
    (tmp_path / "a.png").write_bytes(encode(smooth(9, 9), "PNG"))
    before, options = set(threading.enumerate()), flags.FlagValues()
    predict.define_flags(options)
    options(["predict"])

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(prediction, "_print", interrupt)
    with contextlib.redirect_stderr(Terminal()), pytest.raises(KeyboardInterrupt) as caught:
        prediction.main(options, [str(tmp_path / "a.png")] * 99)
    assert caught.value.__traceback__  # holds on to the frames
    for thread in set(threading.enumerate()) - before:
        assert not thread.name.startswith("ordered_map")
        thread.join(timeout=5)  # Rich's own ends with its next refresh
        assert not thread.is_alive()


def test_top_classes_are_sorted_and_ties_go_to_the_lower_number():
    rows = top_classes(np.array([0.1, 0.3, 0.2, 0.3, 0.1], np.float32), list("abcde"), 3)
    assert [(row["class"], row["index"]) for row in rows] == [("b", 1), ("d", 3), ("c", 2)]
    assert len(top_classes(np.array([0.4, 0.6], np.float32), ["a", "b"])) == 2


@pytest.mark.slow
def test_the_command_line_with_bad_images_among_good_ones(trained, tmp_path, monkeypatch):
    """Eleven images in batches of four and three that cannot be read; logits from the network itself."""
    drawn = recorded(monkeypatch, style)
    for name, content in {"02b.png": broken("png"), "05b.jpg": b"", "07b.png": bomb()}.items():
        (trained / "images" / name).write_bytes(content)
    features, figure = tmp_path / "f.npz", tmp_path / "figure.png"
    result = run(
        "predict", f"--workdir={trained / 'run'}", str(trained / "images"), "--format=jsonl", "--batch_size=4",
        f"--features=fc7:{features}", f"--figure={figure}",
    )  # fmt: skip
    errors = result.stderr.splitlines()
    assert result.returncode == 1
    assert len(errors) == 4
    for name, error in zip(("02b.png", "05b.jpg", "07b.png"), errors, strict=False):
        assert error.startswith(f"error: {trained / 'images' / name}: ")
    assert "2500000000 pixels" in errors[2]
    assert errors[3] == "error: 3 of 14 images could not be read; they are named above"

    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["image"] for row in rows] == [str(trained / "images" / f"{number:02d}.png") for number in range(11)]
    setup, loaded = small_setup(), load_trained(str(trained / "run"))
    pixels = np.stack([np.asarray(Image.open(row["image"])) for row in rows]).astype(np.float32) - loaded.mean
    start = (SIZE - CROP) // 2
    pixels = jnp.asarray(pixels[:, start : start + CROP, start : start + CROP])

    @jax.jit
    def network(params, pixels):
        return merge(setup.graph, params)(pixels), merge(setup.graph, params).activations(pixels, "fc7")

    logits, fc7 = network(loaded.params, pixels)
    logits, fc7 = np.asarray(logits, np.float64), np.concatenate([np.asarray(x) for x in fc7], axis=-1)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    for row, expected in zip(rows, probabilities, strict=True):
        assert list(row["top5"][0]) == ["class", "index", "probability"]
        assert [guess["probability"] for guess in row["top5"]] == pytest.approx(sorted(expected)[:-6:-1], rel=1e-4)
        assert all(guess["class"] == f"colour {guess['index']}" for guess in row["top5"])
    python = load_trained(trained / "run", batch_size=4, mesh=None).classify(row["image"] for row in rows)
    assert python == [[Guess(*guess.values()) for guess in row["top5"]] for row in rows]
    with np.load(features) as written:
        np.testing.assert_allclose(written["features"], fc7, rtol=1e-4, atol=1e-5)
        assert written["images"].tolist() == [row["image"] for row in rows]
    assert_drawn(drawn, figure, rows, loaded.title)


def assert_drawn(drawn: list, path, rows: list[dict], title: str) -> None:
    """One figure with every image under its name and its five classes as bars, and its file."""
    (figure,) = drawn
    assert figure.get_suptitle() == title
    shown = [axis for axis in figure.axes if axis.images]
    bars = [axis for axis in figure.axes if axis.patches]
    assert len(shown) == len(bars) == len(rows)
    for picture, axis, row in zip(shown, bars, rows, strict=True):
        np.testing.assert_array_equal(picture.images[0].get_array(), np.asarray(Image.open(row["image"])))
        assert picture.get_title() == row["image"].rpartition("/")[2]
        assert [bar.get_width() for bar in axis.patches] == pytest.approx([one["probability"] for one in row["top5"]])
        assert [text.get_text() for text in axis.texts[::2]] == [one["class"] for one in row["top5"]]
        assert [text.get_text() for text in axis.texts[1::2]] == [f"{100 * one['probability']:.1f} %" for one in row["top5"]]
    with Image.open(path) as image:
        image.load()
        assert image.size == pytest.approx(150 * figure.get_size_inches(), abs=1)


@pytest.mark.slow
def test_a_list_from_stdin_as_a_table(trained, monkeypatch):
    names = "".join(f"{trained}/images/{number:02d}.png\n" for number in (3, 1))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(names.encode())))
    result = run("predict", f"--workdir={trained / 'run'}", "--list=-", "--batch_size=4")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert (len(lines), lines[0], lines[6]) == (12, f"{trained}/images/03.png", f"{trained}/images/01.png")
    assert all(" %  colour " in line for line in (*lines[1:6], *lines[7:]))


@pytest.mark.slow
def test_a_bomb_takes_no_memory(trained, tmp_path):
    """Decoded it would be 7.5 GB; the process may have 4 GB of data."""
    (tmp_path / "bomb.png").write_bytes(bomb())
    (tmp_path / "good.png").write_bytes(encode(smooth(90, 70), "PNG"))
    limit = "import resource; resource.setrlimit(resource.RLIMIT_DATA, (4 << 30, 4 << 30)); import runpy, sys; "
    limit += "runpy.run_module('alexnet_jax.predict', run_name='__main__', alter_sys=True)"
    command = [sys.executable, "-c", limit, f"--workdir={trained / 'run'}", str(tmp_path), "--format=jsonl"]
    result = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, timeout=300, check=False, env=os.environ.copy()
    )
    assert result.returncode == 1
    assert [json.loads(line)["image"] for line in result.stdout.splitlines()] == [str(tmp_path / "good.png")]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["a.png"], "--workdir is missing"),
        (["--workdir=/nowhere", "a.png"], "--workdir=/nowhere holds no run"),
        (["--workdir=/nowhere"], "there are no images"),
        (["--workdir=/nowhere", "a.png", "--figure=a.txt"], "--figure=a.txt does not end in .png or .svg"),
        (["--workdir=/nowhere", "a.png", "--features=fc7:/nowhere/f.npz"], "there is no folder /nowhere"),
        (["--workdir=/nowhere", "a.png", "--batch_size=0"], "--batch_size=0"),
    ],
)
def test_bad_input_is_one_line(flags, message):
    result = run("predict", *flags)
    assert result.returncode == 1
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr
