"""Statistics of the pixels of a prepared set: exact sums against NumPy's covariance, and the chunks of a file."""

import hashlib

import numpy as np
import pytest

from alexnet_jax.data import statistics
from alexnet_jax.data.statistics import Moments, measure


def test_moments_in_blocks_are_the_mean_and_covariance_of_all_pixels():
    rng = np.random.default_rng(1)
    mixing = np.array([[0.5, 0.2, 0.1], [0.1, 0.6, 0.2], [0.0, 0.3, 0.4]])
    images = (rng.integers(0, 256, (50, 7, 7, 3)) @ mixing).astype(np.uint8)
    got = Moments.of(images[:13]).plus(Moments.of(images[13:])).statistics()
    pixels = images.reshape(-1, 3).astype(np.float64)
    np.testing.assert_allclose(got.channel_mean, pixels.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(got.channel_std, pixels.std(axis=0), rtol=1e-9)
    np.testing.assert_allclose(got.mean_image, images.astype(np.float64).mean(axis=0), rtol=1e-12)
    rebuilt = got.colour_vectors @ np.diag(got.colour_std**2) @ got.colour_vectors.T
    np.testing.assert_allclose(rebuilt, np.cov(pixels.T, bias=True), rtol=1e-9)
    np.testing.assert_allclose(got.colour_vectors.T @ got.colour_vectors, np.eye(3), atol=1e-12)
    assert (np.diff(got.colour_std) > 0).all()


def test_moments_do_not_overflow_where_all_is_white():
    white = Moments.of(np.full((64, 256, 256, 3), 255, np.uint8))
    np.testing.assert_array_equal(white.gram, 64 * 256 * 256 * 255**2)
    for _ in range(15):
        white = white.plus(white)
    np.testing.assert_array_equal(white.pixel_sum, 64 * 2**15 * 255)
    np.testing.assert_array_equal(white.statistics().channel_mean, 255)
    np.testing.assert_allclose(white.statistics().colour_std, 0, atol=1e-3)


@pytest.mark.parametrize("pixels", [1, 48, 49, 50, 98, 10_000])
def test_the_sums_are_exact_however_many_pixels_are_taken_at_a_time(monkeypatch, pixels):
    """Two images of 49 pixels."""
    images = np.random.default_rng(2).integers(0, 256, (2, 7, 7, 3), np.uint8)
    wide = images.astype(np.int64)
    monkeypatch.setattr(statistics, "_GRAM_PIXELS", pixels)
    got = Moments.of(images)
    assert got.images == 2
    np.testing.assert_array_equal(got.pixel_sum, wide[0] + wide[1])
    np.testing.assert_array_equal(got.gram, np.einsum("nhwc,nhwd->cd", wide, wide))


def test_sums_are_added_place_by_place():
    first, second = (Moments(n, np.full((2, 2, 3), 10 * n), np.full((3, 3), 100 * n)) for n in (1, 2))
    images, pixel_sum, gram = first.plus(second)
    assert images == 3
    np.testing.assert_array_equal(pixel_sum, np.full((2, 2, 3), 30))
    np.testing.assert_array_equal(gram, np.full((3, 3), 300))


def write(folder, split, images, labels):
    np.save(folder / f"{split}_images.npy", images)
    np.save(folder / f"{split}_labels.npy", np.asarray(labels, np.int32))


def sha(*parts):
    return hashlib.sha256(b"".join(parts))


@pytest.mark.parametrize(
    ("chunk_bytes", "counts"),
    [(1, [1] * 5), (2 * 48 - 1, [1] * 5), (2 * 48, [2, 2, 1]), (5 * 48, [5]), (6 * 48, [5]), (4 << 20, [5])],
)
def test_the_fingerprint_is_the_hash_of_the_hashes_of_chunks_and_labels(tmp_path, monkeypatch, chunk_bytes, counts):
    """An image has 48 bytes, and a chunk holds at least one image."""
    images = np.random.default_rng(3).integers(0, 256, (5, 4, 4, 3), np.uint8)
    write(tmp_path, "train", images, range(5))
    write(tmp_path, "test", images[:1], [4])
    monkeypatch.setattr(statistics, "CHUNK_BYTES", chunk_bytes)
    seen = []
    fingerprint, sums = measure(tmp_path, ("train", "test"), 4, moments_of="train", advance=seen.append)
    assert seen == [*counts, 1]
    chunks = [sha(chunk.tobytes()).digest() for chunk in np.split(images, np.cumsum(counts)[:-1])]
    labels = [sha(np.array(some, "<i4").tobytes()).digest() for some in (range(5), [4])]
    assert fingerprint == sha(*chunks, labels[0], sha(images[0].tobytes()).digest(), labels[1]).hexdigest()
    for got, wanted in zip(sums, Moments.of(images), strict=True):
        np.testing.assert_array_equal(got, wanted)
    again, nothing = measure(tmp_path, ("train", "test"), 4)
    assert (again, nothing.images) == (fingerprint, 0)


def test_a_split_of_no_images_has_the_hash_of_its_labels(tmp_path):
    write(tmp_path, "train", np.empty((0, 4, 4, 3), np.uint8), [])
    fingerprint, sums = measure(tmp_path, ["train"], 4, moments_of="train")
    assert (fingerprint, sums.images) == (sha(sha().digest()).hexdigest(), 0)


def test_a_file_that_ends_early_is_an_error(tmp_path):
    write(tmp_path, "train", np.zeros((5, 4, 4, 3), np.uint8), range(5))
    content = (tmp_path / "train_images.npy").read_bytes()
    (tmp_path / "train_images.npy").write_bytes(content[:-1])
    with pytest.raises((OSError, ValueError)):
        measure(tmp_path, ["train"], 4)
