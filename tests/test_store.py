"""The store on disk: opened as written, refused when damaged; noise made in memory."""

import hashlib
import json
import os

import numpy as np
import pytest

from alexnet_jax.data import store as store_module
from alexnet_jax.data.store import FORMAT_VERSION, open_store, store_path, synthetic_store, verify
from alexnet_jax.system.errors import UserError

SIZE = 6
COUNTS = {"train": 5, "validation": 2, "test": 3}
FIELDS = (
    "name", "image_size", "classes", "counts", "channel_mean", "mean_image", "colour_std", "colour_vectors", "source",
    "fingerprint",
)  # fmt: skip


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    images = {split: rng.integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8) for split, count in COUNTS.items()}
    labels = {split: rng.integers(0, 4, count).astype(np.int32) for split, count in COUNTS.items()}
    return images, labels


@pytest.fixture
def folder(tmp_path, arrays):
    """A store written by hand, as the description of the format says."""
    images, labels = arrays
    for split in COUNTS:
        np.save(tmp_path / f"{split}_images.npy", images[split])
        np.save(tmp_path / f"{split}_labels.npy", labels[split])
    np.save(tmp_path / "mean_image.npy", images["train"].mean(axis=0).astype(np.float32))
    digests = [hashlib.sha256(a.tobytes()).digest() for split in COUNTS for a in (images[split], labels[split])]
    meta = {
        "format_version": 2, "name": "hand", "image_size": SIZE, "classes": ["a", "b", "c", "d"], "counts": COUNTS,
        "source": "by hand", "channel_mean": [1.5, 2, 3], "mean_image": "mean_image.npy", "colour_std": [1, 2, 4],
        "colour_vectors": [[0, 1, 0], [1, 0, 0], [0, 0, 1]], "computed": "", "skipped": [],
        "fingerprint": hashlib.sha256(b"".join(digests)).hexdigest(),
    }  # fmt: skip
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    return tmp_path


def test_opens_what_was_written(folder, arrays):
    store = open_store(folder)
    images, labels = arrays
    assert list(store.splits) == ["train", "validation", "test"]
    for split, count in COUNTS.items():
        assert len(store.splits[split]) == count
        np.testing.assert_array_equal(store.splits[split].images, images[split])
        np.testing.assert_array_equal(store.splits[split].labels, labels[split])
        assert isinstance(store.splits[split].images, np.memmap)
        assert not store.splits[split].images.flags.writeable
    assert (store.name, store.image_size, store.classes) == ("hand", SIZE, ("a", "b", "c", "d"))
    assert store.source == "by hand"
    np.testing.assert_array_equal(store.channel_mean, np.float32([1.5, 2, 3]))
    np.testing.assert_allclose(store.mean_image, images["train"].mean(axis=0), rtol=1e-6)
    np.testing.assert_array_equal(store.colour_std, np.float32([1, 2, 4]))
    np.testing.assert_array_equal(store.colour_vectors, np.float32([[0, 1, 0], [1, 0, 0], [0, 0, 1]]))


def test_a_split_may_be_absent_or_empty(folder):
    change_meta(folder, counts={"train": 5, "test": 0})
    np.save(folder / "test_images.npy", np.zeros((0, SIZE, SIZE, 3), np.uint8))
    np.save(folder / "test_labels.npy", np.zeros(0, np.int32))
    kept = [np.load(folder / name).tobytes() for name in ("train_images.npy", "train_labels.npy", "test_labels.npy")]
    digests = b"".join(hashlib.sha256(array).digest() for array in kept)
    change_meta(folder, fingerprint=hashlib.sha256(digests).hexdigest())
    assert {name: len(split) for name, split in open_store(folder).splits.items()} == {"train": 5, "test": 0}


@pytest.mark.parametrize("name", ["train_images.npy", "test_labels.npy"])
def test_one_changed_bit_is_seen(folder, name, monkeypatch):
    array = np.load(folder / name)
    array.reshape(-1)[-1] ^= 1
    np.save(folder / name, array)
    assert "do not match the fingerprint" in error_of(folder)
    # Opening does not read all of a large set; `verify` does.
    pixels = sum(COUNTS.values()) * SIZE * SIZE * 3
    monkeypatch.setattr(store_module, "VERIFIED_BYTES", pixels)
    assert "do not match the fingerprint" in error_of(folder)
    monkeypatch.setattr(store_module, "VERIFIED_BYTES", pixels - 1)
    store = open_store(folder)
    with pytest.raises(UserError, match="do not match the fingerprint"):
        verify(folder, store)


@pytest.mark.parametrize("kept", [None, -1, 0])
def test_a_file_lost_or_cut_while_it_is_verified_is_one_line_of_error(folder, kept):
    store, path = open_store(folder), folder / "validation_images.npy"
    verify(folder, store)
    content = path.read_bytes()
    path.unlink()  # the map keeps the old file
    if kept is not None:
        path.write_bytes(content[:kept])
    with pytest.raises(UserError, match=r"^[^\n]* is no usable prepared set: it cannot be read \([^\n]*again$"):
        verify(folder, store)


def change_meta(folder, **changes):
    meta = json.loads((folder / "meta.json").read_text()) | changes
    (folder / "meta.json").write_text(json.dumps({key: value for key, value in meta.items() if value is not None}))


WRONG_TYPES = (
    ("name", 3), ("name", ["hand"]), ("image_size", "6"), ("image_size", 6.5), ("image_size", float("inf")),
    ("image_size", True), ("classes", "abcd"), ("classes", {"a": 0, "b": 1, "c": 2, "d": 3}), ("classes", 4),
    ("mean_image", 1), ("source", {}), ("fingerprint", 0),
)  # fmt: skip


def cut(folder, name):
    path = folder / name
    path.write_bytes(path.read_bytes()[:-1])


def error_of(folder):
    with pytest.raises(UserError) as caught:
        open_store(folder)
    line = str(caught.value)
    assert "\n" not in line
    assert str(folder) in line
    assert "prepare" in line
    return line


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"counts": COUNTS | {"validation": 3}}, "validation_images.npy is uint8 (2, 6, 6, 3)"),
        ({"counts": {"test": 3}}, "no train split"),
        ({"counts": {"train": "many"}}, "meta.json"),
        ({"counts": [5, 2, 3]}, "meta.json"),
        ({"image_size": 7}, "(5, 7, 7, 3)"),
        ({"format_version": FORMAT_VERSION + 1}, f"version is {FORMAT_VERSION + 1}"),
        ({"format_version": 1}, f"version is 1, and this program reads {FORMAT_VERSION}"),
        ({"format_version": None}, "version is None"),
        ({"classes": ["a", "b"]}, "2 classes"),
        *(({field: None}, f"meta.json does not have what it should (KeyError('{field}')") for field in FIELDS),
        ({"channel_mean": [1, 2]}, "statistics"),
        ({"channel_mean": [[1, 2, 3]]}, "statistics"),
        ({"colour_vectors": [[0, 1], [1, 0]]}, "statistics"),
        ({"colour_std": [1, 2, float("nan")]}, "statistics"),
        ({"colour_std": [1, float("inf"), 2]}, "statistics"),
        ({"mean_image": "none.npy"}, "none.npy is missing"),
        ({"mean_image": "../mean_image.npy/no\0"}, "is missing"),
        *(({field: value}, f"{field} is no ") for field, value in WRONG_TYPES),
        ({"classes": ["a", "b", "c", 4]}, "a class is no str"),
        *(({"counts": COUNTS | {"train": value}}, "train is no int") for value in ("5", 5.0, True, float("inf"), None, [5])),
        ({"counts": COUNTS | {"train": -5}}, "(-5, 6, 6, 3)"),
        *(({"channel_mean": value}, "statistics") for value in (["1", "2", "3"], [1, 2, 1e300], "abc", [10**40] * 3, {})),
        ({"channel_mean": [[1], [2, 3], 4]}, "meta.json does not have what it should"),
    ],
)
def test_meta_that_lies_is_refused(folder, changes, said):
    change_meta(folder, **changes)
    assert said in error_of(folder)


@pytest.mark.parametrize("name", ["train_images.npy", "test_labels.npy", "mean_image.npy"])
def test_a_truncated_array_is_refused(folder, name):
    cut(folder, name)
    assert f"{name} is missing, truncated" in error_of(folder)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("validation_images.npy", "validation_images.npy is missing"),
        ("train_labels.npy", "train_labels.npy is missing"),
        ("meta.json", "it has no meta.json"),
    ],
)
def test_a_missing_file_is_refused(folder, name, said):
    (folder / name).unlink()
    assert said in error_of(folder)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "meta.json cannot be read"),
        (b"\x00", "meta.json cannot be read"),
        (b'{"name": "\xff"}', "meta.json cannot be read"),
        (b"[]", "its format version is None"),
        (None, "meta.json cannot be read"),
        (b"[" * 100_000, "meta.json cannot be read"),
        (b"9" * 10_000, "meta.json cannot be read"),
        (b"\xff\xd8\xff\xe0", "meta.json cannot be read"),
        (b"null", "its format version is None"),
    ],
)
def test_meta_that_is_no_object_is_refused(folder, content, said):
    (folder / "meta.json").unlink()
    if content is None:
        (folder / "meta.json").mkdir()
    else:
        (folder / "meta.json").write_bytes(content)
    assert said in error_of(folder)


@pytest.mark.parametrize("label", [-1, 4])
def test_a_label_that_is_no_class_is_refused(folder, label):
    np.save(folder / "test_labels.npy", np.array([0, label, 3], np.int32))
    assert f"labels from {min(0, label)} to {max(3, label)}" in error_of(folder)


def test_labels_may_be_all_of_the_classes(folder, monkeypatch):
    np.save(folder / "test_labels.npy", np.array([0, 1, 3], np.int32))
    monkeypatch.setattr(store_module, "VERIFIED_BYTES", 0)  # the labels changed the fingerprint
    assert open_store(folder).splits["test"].labels.tolist() == [0, 1, 3]


@pytest.mark.parametrize("name", ["meta.json", "train_images.npy", "test_labels.npy", "mean_image.npy"])
def test_a_fifo_is_not_opened(folder, name):
    (folder / name).unlink()
    os.mkfifo(folder / name)
    assert "it is no regular file" in error_of(folder)


@pytest.mark.parametrize("value", [np.nan, np.inf, -1, 256])
def test_a_mean_image_that_is_none_of_pixels_is_refused(folder, value):
    np.save(folder / "mean_image.npy", np.full((SIZE, SIZE, 3), value, np.float32))
    assert "mean_image.npy is no mean of pixels" in error_of(folder)


class Trap:
    """Fails the test if it is unpickled."""

    def __reduce__(self):
        return pytest.fail, ("a file of the store was unpickled",)


@pytest.mark.parametrize("name", ["test_labels.npy", "train_images.npy", "mean_image.npy"])
def test_no_file_of_a_store_is_unpickled(folder, name):
    np.save(folder / name, np.array([Trap()], object), allow_pickle=True)
    assert f"{name} is missing, truncated or no array" in error_of(folder)


def test_pixels_of_another_dtype_are_refused(folder, arrays):
    np.save(folder / "train_images.npy", arrays[0]["train"].astype(np.float32))
    assert "train_images.npy is float32" in error_of(folder)


def test_no_store_at_all_says_to_prepare_one(tmp_path):
    assert "no such folder" in error_of(tmp_path / "nowhere")


def test_store_path_is_one_folder_below_data_dir(tmp_path):
    assert store_path(tmp_path, "groceries", 256) == tmp_path / "groceries-256"
    path = store_path(tmp_path, "imagenet_resized/32x32:0.1.0", 32)
    assert path.parent == tmp_path
    assert ":" not in path.name
    assert path.name.endswith("-32")
    assert store_path(tmp_path, "cifar10", 32, "warp").name == "cifar10-32-warp"
    assert store_path(tmp_path, "A.b_c+d-e f/é", 8).name == "A.b_c+d-e_f__-8"


def test_synthetic_noise_is_the_same_every_time_and_has_the_statistics_it_claims():
    store, again = synthetic_store(24, classes=10, examples=400), synthetic_store(24, classes=10, examples=400)
    assert {name: len(split) for name, split in store.splits.items()} == {"train": 400, "validation": 100, "test": 100}
    for name, split in store.splits.items():
        np.testing.assert_array_equal(split.images, again.splits[name].images)
        assert split.images.shape[1:] == (24, 24, 3)
        assert split.images.dtype == np.uint8
        assert not split.images.flags.writeable
        np.testing.assert_array_equal(split.labels[:12], np.arange(12) % 10)
        np.testing.assert_array_equal(np.bincount(split.labels), np.full(10, len(split) // 10))
    assert (store.splits["validation"].images != store.splits["test"].images).mean() > 0.9
    pixels = store.splits["train"].images.reshape(-1, 3)
    np.testing.assert_allclose(pixels.mean(axis=0), store.channel_mean, atol=0.6)
    np.testing.assert_allclose(pixels.std(axis=0), store.colour_std, rtol=5e-3)
    np.testing.assert_array_equal(store.channel_mean, np.full(3, np.arange(256).mean()))
    np.testing.assert_array_equal(store.mean_image, np.full((24, 24, 3), np.arange(256).mean()))
    np.testing.assert_allclose(store.colour_std, np.full(3, np.arange(256).std()), rtol=1e-6)
    np.testing.assert_array_equal(store.colour_vectors, np.eye(3))
    assert (store.name, store.image_size, store.source) == ("synthetic", 24, "uniform noise")
    assert store.classes == tuple(f"class {label}" for label in range(10))
    assert store.fingerprint == again.fingerprint != synthetic_store(24, classes=10, examples=404).fingerprint


@pytest.mark.parametrize("size", [100_000, 2**40])
def test_noise_that_does_not_fit_into_memory_is_refused(size):
    with pytest.raises(UserError, match=f"^--image_size={size}: synthetic images of it take .* GB, and this machine has"):
        synthetic_store(size)


def test_synthetic_noise_does_not_change_between_versions():
    store = synthetic_store(2, examples=4)
    assert store.splits["train"].images[0, 0].tolist() == [[155, 216, 228], [8, 100, 186]]
    assert store.splits["validation"].images[0, 0, 0].tolist() == [223, 130, 98]
    assert store.splits["test"].images[0, 0, 0].tolist() == [22, 147, 61]
    assert len(synthetic_store(2).classes) == 1000
    counts = {name: len(split) for name, split in synthetic_store(2).splits.items()}
    assert counts == {"train": 1024, "validation": 256, "test": 256}
