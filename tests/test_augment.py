"""Crops, mirrors, mean and views against NumPy slices; what is drawn is uniform."""

import re

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from networks import as_on

from alexnet_jax.augment import View, colour_components, colour_noise, crops, equal_crops, random_crops, views

UNSCALED = (1.0, 1.0, 1.0)


def pictures(count, size, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, size, size, 3), np.uint8), rng.uniform(0, 255, (size, size, 3)).astype(np.float32)


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_crops_are_slices_of_image_minus_mean(platform, monkeypatch):
    as_on(platform, monkeypatch)
    images, mean = pictures(3, 9)
    top, left, flipped = np.array([0, 2, 4]), np.array([4, 1, 0]), np.array([False, True, True])
    scale = (2.0, 4.0, 5.0)
    ours = crops(*map(jnp.asarray, (images, mean, top, left, flipped)), 5, scale)
    whole = images.astype(np.float32) - mean
    for n in range(3):
        expected = whole[n, top[n] : top[n] + 5, left[n] : left[n] + 5]
        expected = expected[:, ::-1] if flipped[n] else expected
        np.testing.assert_allclose(ours[n], expected / np.array(scale), rtol=1e-6)


def test_every_form_of_a_crop_has_the_same_bits(monkeypatch):
    """A training crop in the form of a TPU and of the others, and evaluation's, which cuts all images at one place."""
    images, mean = pictures(4, 11)
    where = top, left, flipped = np.array([0, 3, 6, 2]), np.array([6, 0, 1, 5]), np.array([True, False, True, False])
    found = {}
    for platform in ("cpu", "tpu"):
        as_on(platform, monkeypatch)
        found[platform] = crops(*map(jnp.asarray, (images, mean, *where)), 5, (2.0, 4.0, 5.0))
    np.testing.assert_array_equal(found["tpu"], found["cpu"])
    for n in range(4):
        place = (jnp.int32(top[n]), jnp.int32(left[n]), jnp.bool_(flipped[n]))
        alike = equal_crops(jnp.asarray(images), jnp.asarray(mean), *place, 5, (2.0, 4.0, 5.0))
        np.testing.assert_array_equal(alike[n], found["cpu"][n])


def test_a_tpu_is_given_no_slice_for_each_image():
    """Its compiler makes a loop of such slices, of one trip for each image, in which it moves the whole batch."""
    array = jax.ShapeDtypeStruct
    shapes = array((8, 66, 66, 3), jnp.uint8), array((66, 66, 3), jnp.float32), array((8,), jax.random.key(0).dtype)
    crop = jax.jit(random_crops, static_argnums=(3, 4, 5))
    texts = {
        platform: jax.export.export(crop, platforms=[platform])(*shapes, 63, UNSCALED, True).mlir_module()
        for platform in ("tpu", "cuda")
    }
    assert "stablehlo.gather" in texts["cuda"]
    assert not re.search(r"stablehlo\.(gather|while|dynamic_slice)", texts["tpu"])


def test_random_crops_are_uniform_and_mirrored_half_of_the_time():
    count, size, crop = 5_000, 6, 4
    # A picture that tells its own coordinates.
    row, column = np.mgrid[:size, :size]
    picture = np.stack([row, column, np.zeros_like(row)], -1).astype(np.uint8)
    images = jnp.asarray(np.broadcast_to(picture, (count, size, size, 3)))
    keys = jax.random.split(jax.random.key(0), count)
    cropped = jax.jit(random_crops, static_argnums=(3, 4, 5))
    cut = np.asarray(cropped(images, jnp.zeros((size, size, 3)), keys, crop, UNSCALED, True))
    top, first, last = cut[:, 0, 0, 0], cut[:, 0, 0, 1], cut[:, 0, -1, 1]
    flipped = first > last
    assert abs(flipped.mean() - 0.5) < 5 * 0.5 / np.sqrt(count)
    counts = np.histogram2d(top, np.minimum(first, last), bins=[np.arange(4), np.arange(4)])[0]
    # Chi-squared with 8 degrees of freedom: 31.8 is exceeded once in 10,000.
    assert ((counts - count / 9) ** 2 / (count / 9)).sum() < 31.8
    never = np.asarray(cropped(images, jnp.zeros((size, size, 3)), keys, crop, UNSCALED, False))
    assert (never[:, 0, 0, 1] < never[:, 0, -1, 1]).all()


@pytest.mark.parametrize("scale", [(2.0, 1.0, 1.0), (1.0, 2.0, 1.0), (1.0, 1.0, 2.0), UNSCALED])
def test_each_channel_has_a_scale_of_its_own(scale):
    images, mean = pictures(1, 4)
    corner, plain = jnp.zeros(1, jnp.int32), jnp.zeros(1, bool)
    ours = crops(jnp.asarray(images), jnp.asarray(mean), corner, corner, plain, 3, scale)
    np.testing.assert_allclose(ours, (images - mean)[:, :3, :3] / np.array(scale), rtol=1e-6)


def test_the_components_of_colour_noise_are_scaled_as_each_source_has_it():
    std, vectors = np.array([10.0, 20.0, 51.0]), np.arange(9.0).reshape(3, 3)
    np.testing.assert_allclose(colour_components("2012", std, vectors), vectors @ np.diag(std), rtol=1e-12)
    np.testing.assert_allclose(colour_components("paper", std, vectors), vectors @ np.diag(std**2) / 255, rtol=1e-12)


@pytest.mark.parametrize(("form", "divisor"), [("2012", 1.25), ("paper", 1.0)])
def test_a_shift_of_colour_is_drawn_from_the_key_and_follows_the_scale_of_the_pixels(form, divisor):
    keys, scale = jax.random.split(jax.random.key(3), 2), (2.0, 4.0, 5.0)
    pixels = np.random.default_rng(0).normal(0, 50, (2, 2, 2, 3)).astype(np.float32)
    components, scaled = jnp.arange(9.0).reshape(3, 3), jnp.asarray(pixels) / jnp.array(scale)
    ours = colour_noise(scaled, components, keys, jnp.float32(0.25), form, scale)
    draws = np.stack([jax.random.normal(key, (3,)) for key in keys])
    shifts = np.einsum("ni,ci->nc", 0.25 * draws, components)
    expected = (pixels + shifts[:, None, None]) / divisor / np.array(scale)
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", ["2012", "paper"])
def test_colour_noise_is_one_shift_per_image_with_the_2012_constants(form):
    """The covariance of what is added: with standard deviations and a division by 1.1 in the 2012 source, with the
    eigenvalues of colours on 0 to 1 (0.228, 0.021, 0.006) and no division in the text."""
    std = np.array([19.72, 37.09, 121.78])
    vectors = np.array([[0.418, -0.713, -0.564], [-0.817, -0.024, -0.576], [0.397, 0.701, -0.592]])
    count = 20_000
    keys = jax.random.split(jax.random.key(0), count)
    pixels = np.random.default_rng(0).normal(0, 50, (1, 2, 2, 3)).astype(np.float32)
    components = jnp.asarray(colour_components(form, std, vectors), jnp.float32)

    def noisy(strength):
        images = jnp.broadcast_to(pixels, (count, 2, 2, 3))
        return np.asarray(colour_noise(images, components, keys, jnp.float32(strength), form, UNSCALED))

    divisor, sizes = (1.1, std) if form == "2012" else (1.0, 255 * np.array([0.00598, 0.02116, 0.22807]))
    shifts = divisor * noisy(0.1) - pixels
    np.testing.assert_allclose(shifts, np.broadcast_to(shifts[:, :1, :1], shifts.shape), atol=1e-3)
    expected = 0.1**2 * vectors @ np.diag(sizes**2) @ vectors.T
    np.testing.assert_allclose(np.cov(shifts[:, 0, 0].T), expected, atol=0.04 * expected.max())
    np.testing.assert_allclose(shifts.mean(axis=(0, 1, 2)), 0, atol=5 * 12 / np.sqrt(count))
    np.testing.assert_array_equal(noisy(0.0), np.broadcast_to(pixels, (count, 2, 2, 3)))


def test_the_ten_views_are_corners_and_centre_and_their_mirrors():
    ten = views(10, 256, 224)
    places = {(view.top, view.left) for view in ten}
    assert places == {(0, 0), (0, 32), (32, 0), (32, 32), (16, 16)}
    assert len(set(ten)) == 10
    assert sum(view.flipped for view in ten) == 5
    assert [view.flipped for view in ten] == [False] * 5 + [True] * 5
    assert views(1, 256, 224) == (ten[4],) == (View(16, 16, False),)
    with pytest.raises(ValueError, match="not 5"):
        views(5, 256, 224)
