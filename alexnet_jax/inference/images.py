"""Images as Python has them: paths, bytes, pixels or Pillow's, made into the squares that a network takes."""

import contextlib
import os
from collections.abc import Generator, Iterable
from pathlib import Path

import jax
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from alexnet_jax.data.decode import quiet_pillow, square_rgb
from alexnet_jax.data.example import EncodedImage
from alexnet_jax.data.parallel import ordered_map
from alexnet_jax.system.errors import UserError

OneImage = str | os.PathLike[str] | bytes | np.ndarray | jax.Array | Image.Image
Square = UInt8[np.ndarray, "size size 3"]


def squares(images: OneImage | Iterable[OneImage], size: int, resize: str) -> Generator[Square, None, None]:
    """Every image, in order, a few ahead; `resize` as for `square_rgb`. Close the generator to stop early.

    Raises:
        TypeError: there is something else among them.
        UserError: one cannot be decoded. It is named by its path or its place.
    """

    def square(placed: tuple[int, EncodedImage | Image.Image]) -> Square:
        place, image = placed
        try:
            return square_rgb(image, size, resize)
        except ValueError as error:
            raise UserError(f"{image if isinstance(image, Path) else f'image {place}'}: {error}") from error

    def given() -> Generator[tuple[int, EncodedImage], None, None]:
        for place, one in enumerate(_several(images)):
            image = encoded(one)
            # Pillow's are decoded here, not in a thread: the same one may be given twice.
            yield place, square((place, image)) if isinstance(image, Image.Image) else image

    with quiet_pillow(), contextlib.closing(ordered_map(square, given())) as decoded:
        yield from decoded


def _several(images: OneImage | Iterable[OneImage]) -> Iterable[OneImage]:
    if isinstance(images, np.ndarray | jax.Array):
        return np.asarray(images) if images.ndim == 4 else (images,)
    return (images,) if isinstance(images, str | os.PathLike | bytes | Image.Image) else images


def encoded(image: OneImage) -> EncodedImage | Image.Image:
    """The image as `square_rgb` takes it. Raises TypeError on anything else."""
    match image:
        case str() | os.PathLike():
            return Path(image)
        case jax.Array():
            return np.asarray(image)
        case bytes() | np.ndarray() | Image.Image():
            return image
    raise TypeError(f"expected a path, bytes, an array or an image of Pillow's; found {type(image).__name__}")
