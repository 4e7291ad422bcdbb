"""One image to a square of RGB: pixels against Pillow and NumPy; one line of error if it cannot be decoded."""

import numpy as np
import pytest
from pictures import SIZE, broken, encode, smooth
from PIL import Image

from alexnet_jax.data.decode import square_rgb


@pytest.mark.parametrize(("width", "height"), [(96, 32), (32, 96), (64, 64), (40, 8), (48, 32)])
def test_short_side_to_size_then_the_centre(width, height):
    """The long sides need no rounding here, so one step gives the same as the paper's two."""
    image = smooth(width, height)
    scale = SIZE / min(width, height)
    whole = image.resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC)
    left, top = (whole.width - SIZE) // 2, (whole.height - SIZE) // 2
    reference = np.asarray(whole.crop((left, top, left + SIZE, top + SIZE)))
    got = square_rgb(encode(image, "PNG"), SIZE)
    assert got.shape == (SIZE, SIZE, 3)
    assert np.abs(got.astype(int) - reference).max() <= 1
    assert np.abs(np.roll(got, 1, axis=1).astype(int) - reference).max() > 1


def test_reduction_is_antialiased():
    """Alternate columns of 0 and 255 become grey. A filter of the nearest pixels alone keeps them apart."""
    stripes = np.zeros((160, 160, 3), np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(square_rgb(stripes, SIZE)[:, 1:-1].astype(int) - 127).max() <= 4


def test_pixels_of_the_size_asked_for_are_not_touched():
    pixels = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    np.testing.assert_array_equal(square_rgb(pixels, SIZE), pixels)
    np.testing.assert_array_equal(square_rgb(encode(Image.fromarray(pixels), "PNG"), SIZE), pixels)


def test_every_kind_of_pixel_becomes_rgb():
    grey = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 1), dtype=np.uint8)
    rgb = np.repeat(grey, 3, axis=2)
    image = Image.fromarray(grey[..., 0])
    np.testing.assert_array_equal(square_rgb(grey, SIZE), rgb)
    np.testing.assert_array_equal(square_rgb(encode(image, "PNG"), SIZE), rgb)
    np.testing.assert_array_equal(square_rgb(encode(image.convert("P"), "PNG"), SIZE), rgb)
    sixteen_bits = Image.fromarray(grey[..., 0].astype(np.uint16) * 257)
    np.testing.assert_array_equal(square_rgb(encode(sixteen_bits, "PNG"), SIZE), rgb)
    cmyk = Image.new("CMYK", (SIZE, SIZE), (0, 255, 255, 0))
    red = square_rgb(encode(cmyk, "JPEG", quality=100), SIZE).astype(int)
    assert np.abs(red - [255, 0, 0]).max() <= 6


def test_transparency_lies_over_white():
    alpha = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 1), dtype=np.uint8)
    colour = np.random.default_rng(1).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    rgba = np.concatenate([colour, alpha], axis=2)
    expected = 255 + (colour.astype(float) - 255) * (alpha / 255)
    for image in (rgba, encode(Image.fromarray(rgba), "PNG")):
        assert np.abs(square_rgb(image, SIZE) - expected).max() <= 1
    palette = Image.new("P", (SIZE, SIZE), 3)
    palette.putpalette([0, 50, 100] * 8)
    assert (square_rgb(encode(palette, "PNG"), SIZE) == [0, 50, 100]).all()
    assert (square_rgb(encode(palette, "PNG", transparency=3), SIZE) == 255).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    """The image is turned upright, as the same operation on NumPy axes does."""
    upright = {
        1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
        8: lambda a: np.rot90(a, 1),
    }  # fmt: skip
    pixels = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    got = square_rgb(encode(Image.fromarray(pixels), "PNG", exif=exif), SIZE)
    np.testing.assert_array_equal(got, upright[orientation](pixels))


def test_warping_keeps_all_of_the_image():
    """As Caffe does: both sides are scaled to the size, whatever the proportions."""
    image = smooth(96, 32)
    reference = np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BICUBIC)).astype(int)
    got = square_rgb(encode(image, "PNG"), SIZE, "warp")
    assert np.abs(got - reference).max() <= 2
    assert np.abs(square_rgb(encode(image, "PNG"), SIZE) - reference).max() > 10


def test_a_path_is_read_as_its_bytes(tmp_path):
    path = tmp_path / "image.jpg"
    path.write_bytes(encode(smooth(40, 30), "JPEG"))
    np.testing.assert_array_equal(square_rgb(path, SIZE), square_rgb(path.read_bytes(), SIZE))
    with pytest.raises(ValueError, match="No such file"):
        square_rgb(tmp_path / "none.jpg", SIZE)


@pytest.mark.parametrize("size", [1, 15, 17, 40])
def test_the_square_has_the_size_asked_for(size):
    for resize in ("centre", "warp"):
        assert square_rgb(encode(smooth(31, 20), "PNG"), size, resize).shape == (size, size, 3)


@pytest.mark.parametrize("wide", [True, False])
def test_an_odd_rest_is_cut_off_in_halves(wide):
    """16 of 17 pixels are kept: half of the first and half of the last are cut, so a mirrored image stays mirrored."""
    image, flipped = (smooth(17, 16), np.s_[:, ::-1]) if wide else (smooth(16, 17), np.s_[::-1])
    pixels = np.asarray(image)
    got = square_rgb(pixels, SIZE)
    assert np.abs(got[flipped].astype(int) - square_rgb(np.ascontiguousarray(pixels[flipped]), SIZE)).max() <= 1
    assert np.abs(got.astype(int) - pixels[:16, :16]).max() > 1


UNKNOWN = "in no image format or kind of pixels that is decoded"
BROKEN = {
    "jpeg": "OSError: Truncated File Read", "jpeg end": "OSError: image file is truncated",
    "png": "OSError: image file is truncated", "text": UNKNOWN, "empty": "it has no bytes",
    "channels": "uint8 pixels of shape (9, 9, 5)", "no pixels": "it has no pixels",
}  # fmt: skip


@pytest.mark.parametrize(("kind", "said"), BROKEN.items())
def test_an_undecodable_image_is_an_error_of_one_line(kind, said):
    with pytest.raises(ValueError, match=r"^[^\n]+$") as caught:
        square_rgb(broken(kind), SIZE)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("error", "raised", "said"),
    [(SyntaxError("one\n  two"), ValueError, "SyntaxError: one two"), (MemoryError("no room"), MemoryError, "no room")],
)
def test_an_error_becomes_one_line_but_a_lack_of_memory_is_not_a_broken_image(monkeypatch, error, raised, said):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(raised, match=f"^{said}$"):
        square_rgb(b"image", SIZE)
