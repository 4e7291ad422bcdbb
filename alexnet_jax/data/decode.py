"""From the file of an image, or its pixels, to the square of uint8 RGB that a prepared set holds (Section 2)."""

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
    """A decoded image at `size` x `size` pixels.

    The square as long as the short side is resampled in one step: the same as bringing the short side to `size` and
    cutting out the centre, without rounding the long side and without holding what is cut off.

    Args:
        encoded: the bytes or the path of an image file, or pixels (grey, RGB or RGBA).
        size: side of the result in pixels.
        resize: 'centre' keeps the centre square, as the paper; 'warp' keeps all and bends its proportions, as Caffe.

    Raises:
        ValueError: no complete image can be decoded; the message is one line that says why.
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
        # Pillow's decoders raise whatever a broken file leads them to: OSError, SyntaxError, struct.error and others.
        raise ValueError(f"{type(error).__name__}: {' '.join(str(error).split())}") from error


def _decode(encoded: EncodedImage) -> Image.Image:
    """All pixels of the first frame, upright. A file that ends early is an error, as Pillow has it by default."""
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
