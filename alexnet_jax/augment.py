"""What happens to images on the device, in the jitted step: crop, flip, mean, colour noise; ten views (Section 4.1)."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from alexnet_jax.ops import EXACT

COLOUR_NOISE = 0.1  # standard deviation of the draws, Section 4.1


@dataclass(frozen=True)
class View:
    """Where a crop lies: its top left corner in pixels, and whether it is flipped left to right."""

    top: int
    left: int
    flipped: bool


def crops(
    images: UInt8[Array, "batch size size 3"],
    mean: Float[Array, "size size 3"],
    top: Int[Array, "batch"],
    left: Int[Array, "batch"],
    flipped: Bool[Array, "batch"],
    crop_size: int,
    pixel_scale: tuple[float, float, float],
) -> Float[Array, "batch crop crop 3"]:
    """Mean-subtracted float32 crops, each at a place of its own.

    The mean is cut and flipped with each image. On a TPU such slices become a loop that moves the whole batch per image.
    There the mean is subtracted first, and matrix products pick rows and columns. Both forms give the same bits.
    """
    sliced, picked = (partial(form, crop_size=crop_size) for form in (_sliced_crops, _picked_crops))
    return _scaled(lax.platform_dependent(images, mean, top, left, flipped, tpu=picked, default=sliced), pixel_scale)


def _sliced_crops(images, mean, top, left, flipped, crop_size: int) -> Float[Array, "batch crop crop 3"]:
    return jax.vmap(lambda image, y, x, flip: _cut(image, mean, y, x, flip, crop_size))(images, top, left, flipped)


def _picked_crops(images, mean, top, left, flipped, crop_size: int) -> Float[Array, "batch crop crop 3"]:
    size, places = images.shape[1], jnp.arange(crop_size)
    rows = jax.nn.one_hot(top[:, None] + places, size, dtype=jnp.float32)
    columns = jax.nn.one_hot(left[:, None] + jnp.where(flipped[:, None], places[::-1], places), size, dtype=jnp.float32)
    picked = jnp.einsum("nyh,nhwc->nywc", rows, images.astype(jnp.float32) - mean, precision=EXACT)
    return jnp.einsum("nxw,nywc->nyxc", columns, picked, precision=EXACT)


def equal_crops(
    images: UInt8[Array, "batch size size 3"],
    mean: Float[Array, "size size 3"],
    top: Int[Array, ""],
    left: Int[Array, ""],
    flipped: Bool[Array, ""],
    crop_size: int,
    pixel_scale: tuple[float, float, float],
) -> Float[Array, "batch crop crop 3"]:
    """`crops` of images that are all cut at one place: one view in evaluation."""
    return _scaled(_cut(images, mean, top, left, flipped, crop_size), pixel_scale)


def _cut(images: UInt8[Array, "*batch size size 3"], mean, top, left, flipped, crop_size: int):
    """One place in an image or in several."""

    def cut(x):
        others = x.shape[:-3]
        return lax.dynamic_slice(x, (*(0 for _ in others), top, left, 0), (*others, crop_size, crop_size, 3))

    pixels = cut(images).astype(jnp.float32) - cut(mean)
    return jnp.where(flipped, pixels[..., ::-1, :], pixels)


def _scaled(pixels: Float[Array, "batch crop crop 3"], pixel_scale: tuple[float, float, float]):
    return pixels if pixel_scale == (1.0, 1.0, 1.0) else pixels / jnp.array(pixel_scale)


def colour_components(form: str, std: Float[np.ndarray, "3"], vectors: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "3 3"]:
    """The shifts of colour that a draw of 1 makes: column i is principal component i times its size, RGB on 0 to 255.

    The 2012 source scales a component by its standard deviation. The text of Section 4.1 has the eigenvalue, which is the
    variance; that is a shift of colour only on a stated scale. It is taken on 0 to 1, the common reading, under which all
    three shifts are visible but weak; on 0 to 255 the first one would be of some 1,500 levels.

    Args:
        form: '2012' or 'paper'.
        std: standard deviations along the components, the square roots of the eigenvalues, on 0 to 255.
        vectors: the components, in columns.
    """
    return vectors * (std if form == "2012" else std**2 / 255)


def colour_noise(
    pixels: Float[Array, "batch crop crop 3"],
    components: Float[Array, "3 3"],
    keys: Key[Array, "batch"],
    strength: Float[Array, ""],
    form: str,
    pixel_scale: tuple[float, float, float],
) -> Float[Array, "batch crop crop 3"]:
    """Colour noise of Section 4.1: one shift of colour per image.

    'paper': pixels + sum of component_i * N(0, strength); '2012': the same, divided by (1 + strength).

    Args:
        pixels: mean-subtracted images, already divided by `pixel_scale`.
        components: from `colour_components`.
        keys: one per example.
        strength: COLOUR_NOISE; 0 changes nothing.
        form: '2012' or 'paper'.
        pixel_scale: the architecture's.
    """
    draws = jax.vmap(lambda key: jax.random.normal(key, (3,)))(keys)
    shift = jnp.matmul(strength * draws, components.T, precision=EXACT) / jnp.array(pixel_scale)
    shifted = pixels + shift[:, None, None, :]
    return shifted / (1 + strength) if form == "2012" else shifted


def random_crops(
    images: UInt8[Array, "batch size size 3"],
    mean: Float[Array, "size size 3"],
    keys: Key[Array, "batch"],
    crop_size: int,
    pixel_scale: tuple[float, float, float],
    flip: bool,
) -> Float[Array, "batch crop crop 3"]:
    """Section 4.1: a crop at a uniformly drawn place, flipped half of the time. One key per example."""
    places = images.shape[1] - crop_size + 1

    def draw(key):
        y, x, flip = jax.random.split(key, 3)
        return jax.random.randint(y, (), 0, places), jax.random.randint(x, (), 0, places), jax.random.bernoulli(flip)

    top, left, flipped = jax.vmap(draw)(keys)
    return crops(images, mean, top, left, flipped & flip, crop_size, pixel_scale)


def views(count: int, image_size: int, crop_size: int) -> tuple[View, ...]:
    """The centre (1), or the four corners, the centre and their mirror images (10), Section 4.1.

    Raises:
        ValueError: another count.
    """
    far = image_size - crop_size
    centre = View(far // 2, far // 2, False)
    if count == 1:
        return (centre,)
    if count != 10:
        raise ValueError(f"there are 1 or 10 views, not {count}")
    plain = (View(0, 0, False), View(0, far, False), View(far, 0, False), View(far, far, False), centre)
    return plain + tuple(View(view.top, view.left, True) for view in plain)
