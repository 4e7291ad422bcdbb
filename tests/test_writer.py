"""Writing a store: its content against NumPy; what errors, a full disk and kill -9 leave behind, and resuming."""

import collections
import contextlib
import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from pictures import SIZE, broken, encode, listed, smooth, source_of

import alexnet_jax.data.writer
from alexnet_jax.data.decode import square_rgb
from alexnet_jax.data.example import Example, Listed, Source
from alexnet_jax.data.npy import NpyWriter
from alexnet_jax.data.writer import write_store
from alexnet_jax.system.errors import UserError

ROOT = Path(__file__).parents[1]


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def some_images(count, seed=0):
    return list(np.random.default_rng(seed).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8))


class Interrupted(Listed):
    """Raises an error at one example, and notes which examples were read."""

    def __init__(self, items, at):
        super().__init__(items)
        object.__setattr__(self, "at", at)
        object.__setattr__(self, "seen", [])

    def read(self, start):
        for number in range(start, len(self)):
            if number == self.at:
                raise OSError(errno.EIO, "the cable was pulled")
            self.seen.append(number)
            yield self.items[number]


@pytest.fixture
def small_blocks(monkeypatch):
    """Three images per block, and a journal after every block."""
    monkeypatch.setattr(alexnet_jax.data.writer, "BLOCK_BYTES", 3 * SIZE * SIZE * 3)
    monkeypatch.setattr(alexnet_jax.data.writer, "SECONDS_BETWEEN_JOURNALS", 0)


def test_what_is_written_is_the_source_in_order_over_several_blocks(tmp_path, small_blocks):
    train, validation = some_images(50), some_images(4, seed=1)
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
    meta = json.loads((tmp_path / "deep/fake-16/meta.json").read_text())
    np.testing.assert_allclose(meta["channel_std"], pixels.std(axis=0), rtol=1e-6)
    assert meta["source"] == "made by hand"


def test_the_fingerprint_is_what_the_description_says(tmp_path):
    """Two images of 700 px fit into 4 MiB."""
    images = list(np.random.default_rng(0).integers(0, 256, (5, 700, 700, 3), dtype=np.uint8))
    store = write_store(source_of(images, test=images[:1]), tmp_path / "fake-700", 700)

    def sha(*arrays):
        return hashlib.sha256(b"".join(np.asarray(array).tobytes() for array in arrays)).digest()

    train = sha(*images[:2]) + sha(*images[2:4]) + sha(images[4]) + sha(np.array([0, 1, 2, 0, 1], "<i4"))
    assert store.fingerprint == hashlib.sha256(train + sha(images[0]) + sha(np.array([0], "<i4"))).hexdigest()


@pytest.mark.parametrize("kind", ["jpeg", "jpeg end", "png"])
def test_an_undecodable_image_ends_the_run_by_name_and_can_be_skipped_from_there(tmp_path, kind, small_blocks):
    images = [encode(smooth(20, 30, seed=i), "JPEG") for i in range(9)]
    names = [f"{i}.jpg" for i in range(10)]
    bad = Source("fake", ("a", "b", "c"), "", {"train": listed(images), "test": listed([*images[:7], broken(kind)], names)})
    with pytest.raises(UserError, match=r"image 7 of split test, 7\.jpg, cannot be decoded .*[Tt]runcated.*skip") as caught:
        write_store(bad, tmp_path / "fake-16", SIZE)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "fake-16").exists()
    reader = Interrupted(bad.splits["train"].items, at=None)
    again = Source("fake", ("a", "b", "c"), "", {"train": reader, "test": bad.splits["test"]})
    store = write_store(again, tmp_path / "fake-16", SIZE, on_error="skip")
    assert reader.seen == []  # all of it was kept
    assert len(store.splits["test"]) == 7
    write_store(bad, tmp_path / "at once", SIZE, on_error="skip")
    assert files(tmp_path / "fake-16") == files(tmp_path / "at once")


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


def test_a_source_without_images_to_train_on_is_refused(tmp_path):
    image = encode(smooth(20, 20), "PNG")
    for source in (source_of([], test=[image]), Source("fake", ("a",), "", {"test": listed([image])})):
        with pytest.raises(UserError, match="no labelled train split"):
            write_store(source, tmp_path / "fake-16", SIZE)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match="not one image"):
        write_store(source_of([broken("jpeg")]), tmp_path / "fake-16", SIZE, on_error="skip")
    unlabelled = Listed([Example(image, 0), Example(image, -1)])
    with pytest.raises(UserError, match="image 1 of split train has label -1"):
        write_store(Source("fake", ("a",), "", {"train": unlabelled}), tmp_path / "fake-16", SIZE)
    assert not (tmp_path / "fake-16").exists()


@pytest.mark.parametrize("stop", [1, 20, 47])
def test_an_interrupted_run_resumes_where_it_was(tmp_path, small_blocks, stop):
    images = some_images(50)
    items = listed(images).items
    write_store(source_of(images, test=images[:5]), tmp_path / "at once", SIZE)
    first, second = Interrupted(items, at=stop), Interrupted(items, at=None)
    with pytest.raises(UserError, match=r"cable.*rerun to resume"):
        write_store(Source("fake", ("a", "b", "c"), "made by hand", {"train": first}), tmp_path / "fake-16", SIZE)
    source = Source("fake", ("a", "b", "c"), "made by hand", {"train": first, "test": listed(images[:5])})
    with pytest.raises(UserError, match="cable"):
        write_store(source, tmp_path / "fake-16", SIZE)
    source = Source("fake", ("a", "b", "c"), "made by hand", {"train": second, "test": listed(images[:5])})
    write_store(source, tmp_path / "fake-16", SIZE)
    assert second.seen[0] >= stop - 3 * (2 * os.cpu_count() + 2)
    assert second.seen[-1] == 49
    assert files(tmp_path / "fake-16") == files(tmp_path / "at once")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["at once", "fake-16"]


def test_another_source_does_not_resume_what_is_there(tmp_path, small_blocks):
    items = listed(some_images(50)).items
    with pytest.raises(UserError, match="cable"):
        write_store(Source("fake", ("a", "b", "c"), "old", {"train": Interrupted(items, 40)}), tmp_path / "fake-16", SIZE)
    assert (tmp_path / "fake-16.partial.json").exists()
    (tmp_path / "fake-16.partial/stray").touch()
    other = some_images(50, seed=1)
    store = write_store(Source("fake", ("a", "b", "c"), "new", {"train": listed(other)}), tmp_path / "fake-16", SIZE)
    np.testing.assert_array_equal(store.splits["train"].images, other)
    assert not (tmp_path / "fake-16/stray").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["fake-16"]


def test_a_partial_file_that_lost_its_end_is_refused(tmp_path, small_blocks):
    items = listed(some_images(50)).items
    source = Source("fake", ("a", "b", "c"), "", {"train": Interrupted(items, 40)})
    with pytest.raises(UserError, match="cable"):
        write_store(source, tmp_path / "fake-16", SIZE)
    os.truncate(tmp_path / "fake-16.partial/train_images.npy", 1000)
    with pytest.raises(UserError, match=r"fake-16\.partial is damaged .*shorter.*delete it"):
        write_store(Source("fake", ("a", "b", "c"), "", {"train": Listed(items)}), tmp_path / "fake-16", SIZE)


CHANGES = [
    b"", b"[", b"[" * 100_000, b"[]", b"null", b"\xff", {"done": []}, {"done": {"train": 4}}, {"recipe": None},
    *({"done": {"train": done}} for done in (
        {}, {"read": "4", "rows": 4, "skipped": []}, {"read": 4, "rows": -1, "skipped": []},
        {"read": 99, "rows": 4, "skipped": []}, {"read": 4, "rows": 5, "skipped": []},
        {"read": 4, "rows": 4, "skipped": None},
    )),
    {"done": {"trial": {"read": 4, "rows": 4, "skipped": []}}},
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_a_journal_that_was_not_written_like_this_is_not_resumed(tmp_path, small_blocks, change):
    items, journal = listed(some_images(9)).items, tmp_path / "fake-16.partial.json"
    source = Source("fake", ("a", "b", "c"), "", {"train": Interrupted(items, 4)})
    with pytest.raises(UserError, match="cable"):
        write_store(source, tmp_path / "fake-16", SIZE)
    content = change if isinstance(change, bytes) else json.dumps(json.loads(journal.read_text()) | change).encode()
    journal.write_bytes(content)
    again = Interrupted(items, None)
    write_store(Source("fake", ("a", "b", "c"), "", {"train": again}), tmp_path / "fake-16", SIZE)
    assert again.seen == list(range(9))


def test_ctrl_c_ends_the_threads_at_the_next_image_and_keeps_the_journal(tmp_path, monkeypatch):
    """After the first block of 256 images each further one would take a minute."""

    def decode(image, *_):
        time.sleep(0.2 if int.from_bytes(image) >= 256 else 0)
        return np.zeros((SIZE, SIZE, 3), np.uint8)

    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(alexnet_jax.data.writer, "square_rgb", decode)
    monkeypatch.setattr(alexnet_jax.data.writer, "_bar", lambda *_: contextlib.nullcontext(interrupt))
    before, begun = set(threading.enumerate()), time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        write_store(source_of([number.to_bytes(2) for number in range(2000)]), tmp_path / "fake-16", SIZE)
    assert time.monotonic() - begun < 10
    assert set(threading.enumerate()) == before
    assert json.loads((tmp_path / "fake-16.partial.json").read_text())["done"]["train"]["rows"] == 256


@pytest.mark.slow
def test_kill_9_at_any_moment_and_again_gives_the_same_bytes(tmp_path):
    """Prepares photographs in a real process, which is killed up to ten times."""
    for number in range(240):
        (tmp_path / f"photos/class {number % 3}").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"photos/class {number % 3}/{number}.jpg").write_bytes(encode(smooth(900, 700, seed=number), "JPEG"))
    script = f"""
import alexnet_jax.data.writer
from alexnet_jax.data.prepare import prepare
alexnet_jax.data.writer.BLOCK_BYTES = 3 * 256 * 256 * 3
alexnet_jax.data.writer.SECONDS_BETWEEN_JOURNALS = 0
prepare("folder:{tmp_path}/photos", "DIR", image_size=256)
"""
    rng = np.random.default_rng(0)
    outcomes = collections.Counter()

    def prepare(where, patience):
        process = subprocess.Popen([sys.executable, "-c", script.replace("DIR", str(where))], cwd=ROOT)
        try:
            return process.wait(timeout=patience)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            return process.wait()

    started = time.monotonic()
    assert prepare(tmp_path / "at once", None) == 0
    whole = time.monotonic() - started
    while not outcomes[0]:
        outcomes[prepare(tmp_path / "killed", whole * rng.uniform(0.4, 0.6) if outcomes[-9] < 10 else None)] += 1
    assert set(outcomes) <= {0, -9}
    assert outcomes[-9] >= 1
    (expected,), (got,) = ([p for p in (tmp_path / d).iterdir() if p.is_dir()] for d in ("at once", "killed"))
    assert files(expected) == files(got)


def test_a_full_disk_is_one_line_and_the_run_resumes_when_there_is_room(tmp_path, monkeypatch, small_blocks):
    images, append = some_images(30), NpyWriter.append

    def full(self, rows):
        if self.rows >= 12:
            raise OSError(errno.ENOSPC, "No space left on device")
        append(self, rows)

    monkeypatch.setattr(NpyWriter, "append", full)
    with pytest.raises(UserError, match=r"^--data_dir=.*No space left on device; finished images are kept"):
        write_store(source_of(images), tmp_path / "fake-16", SIZE)
    assert not (tmp_path / "fake-16").exists()
    monkeypatch.setattr(NpyWriter, "append", append)
    np.testing.assert_array_equal(write_store(source_of(images), tmp_path / "fake-16", SIZE).splits["train"].images, images)


def test_a_disk_that_is_too_small_is_an_error_before_the_first_image(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=5000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    source = Source("fake", ("a", "b", "c"), "", {"train": Interrupted(listed(some_images(30)).items, at=0)})
    with pytest.raises(UserError, match=r"has 0\.0 GB free; fake-16 needs"):
        write_store(source, tmp_path / "fake-16", SIZE)
    assert list(tmp_path.iterdir()) == []


def test_what_another_run_has_left_counts_as_free(tmp_path, monkeypatch):
    (tmp_path / "fake-16.partial").mkdir()
    (tmp_path / "fake-16.partial/train_images.npy").write_bytes(bytes(30 * SIZE * SIZE * 3))
    usage = shutil.disk_usage(tmp_path)._replace(free=5000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert len(write_store(source_of(some_images(30)), tmp_path / "fake-16", SIZE).splits["train"]) == 30


@pytest.mark.parametrize("expected_rows", [0, 5, 1_000_000_000])
def test_npy_writer_leaves_a_file_of_the_rows_it_got(tmp_path, expected_rows):
    rows = np.arange(5 * 6, dtype=np.uint8).reshape(5, 2, 3)
    with NpyWriter(tmp_path / "rows.npy", np.uint8, (2, 3), expected_rows) as writer:
        writer.append(rows[:2])
        writer.append(rows[2:])
    assert writer.rows == 5
    np.testing.assert_array_equal(np.load(tmp_path / "rows.npy"), rows)
    np.save(tmp_path / "reference.npy", rows)
    assert (tmp_path / "rows.npy").stat().st_size == (tmp_path / "reference.npy").stat().st_size


def test_npy_writer_refuses_rows_of_another_kind(tmp_path):
    with NpyWriter(tmp_path / "rows.npy", np.uint8, (2, 3), 1) as writer:
        for rows in (np.zeros((1, 2, 3), np.float32), np.zeros((1, 3, 2), np.uint8)):
            with pytest.raises(ValueError, match="rows for a file of"):
                writer.append(rows)


_MEMORY = """
import resource, sys
import numpy as np
from pathlib import Path
from alexnet_jax.data.example import Example, Source
from alexnet_jax.data.writer import write_store

class Noise:
    def __len__(self):
        return {count}
    def read(self, start):
        return (Example(np.full((200, 200, 3), n % 256, np.uint8), 0) for n in range(start, len(self)))

write_store(Source("noise", ("a",), "", {{"train": Noise()}}), Path({path!r}), 128)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.slow
def test_peak_memory_does_not_depend_on_the_number_of_images(tmp_path):
    """In MiB, at 15 MB and at 150 MB of prepared pixels."""
    peaks = []
    for count in (300, 3000):
        script = _MEMORY.format(count=count, path=str(tmp_path / f"noise-{count}"))
        done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout))
    print("peak MiB:", peaks)
    assert peaks[1] < peaks[0] + 40
