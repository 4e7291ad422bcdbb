"""Turns an image file, or pixels, into the square of uint8 RGB that a prepared set holds (Section 2)."""

import io
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from alexnet_jax.data.example import EncodedImage

RESIZES = {
    "centre": "orientation from EXIF, alpha over white, RGB; centre square to size x size with Pillow's antialiased bicubic",
    "warp": "orientation from EXIF, alpha over white, RGB; whole image to size x size with Pillow's antialiased bicubic",
}


def square_rgb(encoded: EncodedImage, size: int, resize: str = "centre") -> UInt8[np.ndarray, "size size 3"]:
    """An image decoded and resampled to `size` x `size` pixels.

    One step does what the paper does in two: scale the short side to `size`, and cut out the centre. The long side is not
    rounded, and what is cut off takes no memory.

    Args:
        resize: 'centre' keeps the centre square, as the paper does; 'warp' squeezes the whole image, as Caffe does.

    Raises:
        ValueError: no complete image can be decoded. The message is one line and says why.
    """
    try:
        image = _to_rgb(_decode(encoded))
        if not (short := min(image.size)):
            raise ValueError("it has no pixels")
        width, height = image.size if resize == "warp" else (short, short)
        left, top = (image.width - width) / 2, (image.height - height) / 2
        box = (left, top, left + width, top + height)
        return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=box, reducing_gap=3.0))
    except MemoryError:
        raise
    except UnidentifiedImageError as error:
        raise ValueError("in no image format that Pillow knows") from error
    except Exception as error:
        # A broken file makes Pillow raise errors of any kind: OSError, SyntaxError, struct.error and others.
        raise ValueError(f"{type(error).__name__}: {' '.join(str(error).split())}") from error


def _decode(encoded: EncodedImage) -> Image.Image:
    """All pixels of the first frame, upright. Raises OSError if the file ends early: Pillow's default."""
    if isinstance(encoded, np.ndarray):
        return Image.fromarray(encoded[..., 0] if encoded.shape[-1] == 1 else encoded)
    with Image.open(encoded if isinstance(encoded, Path) else io.BytesIO(encoded)) as image:
        image.load()
        return ImageOps.exif_transpose(image)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # Pillow would clip 16-bit grey at 255.
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
