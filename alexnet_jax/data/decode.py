"""Turns an image file, or pixels, into the square of uint8 RGB that a prepared set holds (Section 2)."""

import contextlib
import ctypes
import io
import logging
import stat
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageFile, ImageOps, TiffImagePlugin, UnidentifiedImageError

from alexnet_jax.data.example import EncodedImage

RESIZES = {
    "centre": "orientation from EXIF, alpha over white, RGB; centre square to size x size with Pillow's antialiased bicubic",
    "warp": "orientation from EXIF, alpha over white, RGB; whole image to size x size with Pillow's antialiased bicubic",
}
# Formats of photographs. Pillow would hand others to an external program, or guesses them from a file without a signature.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
_CONVERTED = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB")  # by Pillow, and rightly
_ADVICE = "convert it to 8 bits per channel"


def square_rgb(encoded: EncodedImage | Image.Image, size: int, resize: str = "centre") -> UInt8[np.ndarray, "size size 3"]:
    """An image decoded and resampled to `size` x `size` pixels.

    One step does what the paper does in two: scale the short side to `size`, and cut out the centre. The long side is not
    rounded, and what is cut off takes no memory.

    Args:
        encoded: a regular file in one of FORMATS, Pillow's image, or pixels. Of several frames the first is taken.
        resize: 'centre' keeps the centre square, as the paper does; 'warp' squeezes the whole image, as Caffe does.

    Raises:
        ValueError: no complete image can be decoded, or its pixels have no defined range. The message is one line and says
            why.
    """
    match encoded:
        case np.ndarray():
            image = _from_pixels(encoded)
        case Image.Image():
            image = _upright(encoded)
        case _:
            image = _from_file(encoded)
    image = _to_rgb(image)
    if not (short := min(image.size)):
        raise ValueError("it has no pixels")
    width, height = image.size if resize == "warp" else (short, short)
    left, top = (image.width - width) / 2, (image.height - height) / 2
    box = (left, top, left + width, top + height)
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=box, reducing_gap=3.0))


@contextlib.contextmanager
def quiet_pillow() -> Iterator[None]:
    """Hides what Pillow prints about odd files, in all threads, while the block runs. `square_rgb` says what it refuses."""
    with contextlib.suppress(OSError, AttributeError):  # libtiff prints to stderr by itself
        ctypes.CDLL(Image.core.__file__).TIFFSetErrorHandler(None)
    logger = logging.getLogger("PIL")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")
            yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _one_line_errors() -> Iterator[None]:
    """Stands around Pillow alone. A broken file makes it raise OSError, SyntaxError, RuntimeError, struct.error and more."""
    try:
        yield
    except MemoryError:
        raise
    except UnidentifiedImageError as error:
        raise ValueError(f"in no image format or kind of pixels that is decoded ({', '.join(FORMATS)})") from error
    except Exception as error:
        raise ValueError(f"{type(error).__name__}: {' '.join(str(error).split())}") from error


def _from_file(encoded: bytes | Path) -> Image.Image:
    if isinstance(encoded, Path):
        _check_regular(encoded)
    elif not encoded:
        raise ValueError("it has no bytes")
    with _one_line_errors():
        file = Image.open(encoded if isinstance(encoded, Path) else io.BytesIO(encoded), formats=FORMATS)
    with file:
        return _upright(file)


def _upright(image: Image.Image) -> Image.Image:
    """The first frame, upright, in 8 bits per channel."""
    bits = _grey_bits(image)
    with _one_line_errors():
        image.load()
        upright = ImageOps.exif_transpose(image)
    if bits > 8:
        # Pillow would clip at 255.
        return Image.fromarray((np.asarray(upright) >> (bits - 8)).astype(np.uint8))
    return upright


def _check_regular(path: Path) -> None:
    """Raises ValueError for what cannot be found, and for a FIFO or a device, which may take for ever to open or to read."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise ValueError(str(error.strerror)) from error
    if not stat.S_ISREG(mode):
        raise ValueError("it is no regular file")


def _from_pixels(pixels: np.ndarray) -> Image.Image:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[-1] not in (1, 3, 4):
        raise ValueError(f"{pixels.dtype} pixels of shape {pixels.shape}: they must be uint8, height x width x 1, 3 or 4")
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def _grey_bits(file: Image.Image) -> int:
    """The bits of a grey pixel; 8 for colours. Raises ValueError on pixels that Pillow does not read as they are meant."""
    tags = file.tag_v2 if isinstance(file, TiffImagePlugin.TiffImageFile) else {}
    if file.mode == "F":
        raise ValueError(f"mode F, 32-bit float pixels have no defined range: {_ADVICE}")
    if (file.mode == "I" and file.format != "PPM") or set(tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,))) != {1}:
        raise ValueError(f"mode {file.mode}, 32-bit or signed integers have no defined range: {_ADVICE}")
    deep = file.mode.startswith("I")
    if deep and tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION, 1) != 1:
        raise ValueError(f"16-bit grey in which 0 is white: {_ADVICE}")
    # Pillow compares the key colour of the file, in 2, 4 or 16 bits, with pixels of 8.
    tiles = file.tile if isinstance(file, ImageFile.ImageFile) else []
    if file.format == "PNG" and "transparency" in file.info and file.mode != "P" and tiles and tiles[0].args != file.mode:
        raise ValueError(f"a transparent colour of other than 8 bits: {_ADVICE}")
    return tags.get(TiffImagePlugin.BITSPERSAMPLE, (16,))[0] if deep else 8


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode not in _CONVERTED:
        raise ValueError(f"pixels of mode {image.mode}: {_ADVICE}")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
