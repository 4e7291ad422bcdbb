"""Every format of pixels is converted as NumPy arithmetic says, or refused by name. The files are mostly written by hand."""

import logging
import os
import struct
import warnings

import numpy as np
import pytest
from pictures import encode, png, tiff
from PIL import Image

from alexnet_jax.data.decode import quiet_pillow, square_rgb

SIDE = 8
RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (SIDE, SIDE, 1))
RGB = RNG.integers(0, 256, (SIDE, SIDE, 3))
ALPHA = RNG.integers(0, 256, (SIDE, SIDE, 1))
INK = RNG.integers(0, 256, (SIDE, SIDE, 4))
DEEP = RNG.integers(0, 65536, (SIDE, SIDE, 1))
DEEP_RGB = RNG.integers(0, 65536, (SIDE, SIDE, 3))
DEEP_ALPHA = RNG.integers(0, 65536, (SIDE, SIDE, 1))
PLACES = RNG.integers(0, 16, (SIDE, SIDE, 1))
COLOURS = RNG.integers(0, 256, (16, 3))
TIFF_PALETTE = np.zeros((3, 256), int)
TIFF_PALETTE[:, :16] = 257 * COLOURS.T


def grey(values):
    return np.repeat(values, 3, axis=2)


def over_white(colour, alpha):
    return 255 + (colour - 255.0) * alpha / 255


def without_key(colour, key):
    return np.where((colour == key).all(axis=2, keepdims=True), 255, colour)


def both(*parts, kind="u1"):
    return np.concatenate(parts, axis=2).astype(kind)


def from_cmyk(ink):
    return (255 - ink[..., :3]) * (255.0 - ink[..., 3:]) / 255


def from_ycc(ycc):
    """ITU-R BT.601, as JPEG and TIFF have it."""
    y, cb, cr = np.moveaxis(ycc - [0.0, 128, 128], 2, 0)
    return np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], axis=2).clip(0, 255)


def from_lab(lab):
    """CIE L*a*b* of D50 to sRGB."""
    f_y = (lab[..., 0] * 100 / 255 + 16) / 116
    f = np.stack([f_y + lab[..., 1] / 500, f_y, f_y - lab[..., 2] / 200], axis=2)
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * [0.9642, 1, 0.8249]
    matrix = [[3.1338561, -1.6168667, -0.4906146], [-0.9787684, 1.9161415, 0.0334540], [0.0719453, -0.2289914, 1.4052427]]
    linear = (xyz @ np.transpose(matrix)).clip(0, 1)
    return 255 * np.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear)


def twelve_bits(values):
    """Packed: two pixels in three bytes."""
    bits = (values.reshape(SIDE, -1, 1) >> np.arange(12)[::-1]) & 1
    return np.packbits(bits.reshape(SIDE, -1).astype(np.uint8), axis=1)[..., None]


def pnm(kind, largest, values):
    return f"{kind} {SIDE} {SIDE} {largest}\n".encode() + values.astype(">u2" if largest > 255 else "u1").tobytes()


def bmp_565(red, green, blue):
    """16 bits a pixel: 5, 6 and 5."""
    rows = ((red << 11) | (green << 5) | blue).astype("<u2")[::-1].tobytes()
    header = struct.pack("<IiiHHIIiiII", 40, SIDE, SIDE, 1, 16, 3, len(rows), 0, 0, 0, 0)
    return struct.pack("<2sIII", b"BM", 66 + len(rows), 0, 66) + header + struct.pack("<III", 0xF800, 0x7E0, 0x1F) + rows


LAB = np.stack([RNG.integers(100, 200, (SIDE, SIDE)), *RNG.integers(-20, 21, (2, SIDE, SIDE))], axis=2)
FIVE, SIX = RNG.integers(0, 32, (2, SIDE, SIDE)), RNG.integers(0, 64, (SIDE, SIDE))
PLTE = COLOURS.astype(np.uint8).tobytes()
PREMULTIPLIED = (RGB * (ALPHA / 255)).round().astype(int)

# What the file is: its bytes, the expected pixels, and how far rounding may take them apart.
RIGHT = {
    **{f"png grey {n} bits": (png(GREY >> (8 - n), n, 0), grey((GREY >> (8 - n)) * 255 // (2**n - 1)), 0)
       for n in (1, 2, 4, 8)},
    "png grey 16 bits": (png(DEEP, 16, 0), grey(DEEP >> 8), 0),
    "png grey, alpha": (png(both(GREY, ALPHA), 8, 4), over_white(grey(GREY), ALPHA), 1),
    "png grey, alpha 16 bits": (
        png(both(DEEP, DEEP_ALPHA, kind="u2"), 16, 4), over_white(grey(DEEP >> 8), DEEP_ALPHA >> 8), 1,
    ),
    "png grey, key": (png(GREY, 8, 0, tRNS=struct.pack(">H", *GREY[0, 0])), grey(without_key(GREY, GREY[0, 0])), 0),
    "png one bit, key": (png(GREY >> 7, 1, 0, tRNS=struct.pack(">H", 0)), np.full((SIDE, SIDE, 3), 255), 0),
    "png rgb": (png(RGB, 8, 2), RGB, 0),
    "png rgb 16 bits": (png(DEEP_RGB, 16, 2), DEEP_RGB >> 8, 0),
    "png rgb, key": (png(RGB, 8, 2, tRNS=struct.pack(">HHH", *RGB[0, 0])), without_key(RGB, RGB[0, 0]), 0),
    "png rgba": (png(both(RGB, ALPHA), 8, 6), over_white(RGB, ALPHA), 1),
    "png rgba 16 bits": (png(both(DEEP_RGB, DEEP_ALPHA, kind="u2"), 16, 6), over_white(DEEP_RGB >> 8, DEEP_ALPHA >> 8), 1),
    "png palette": (png(PLACES, 4, 3, PLTE=PLTE), COLOURS[PLACES[..., 0]], 0),
    "png palette, alpha": (
        png(PLACES, 4, 3, PLTE=PLTE, tRNS=bytes(range(0, 160, 16))),
        over_white(COLOURS[PLACES[..., 0]], np.where(PLACES < 10, 16 * PLACES, 255)), 1,
    ),
    **{f"tiff grey 16 bits {kind}": (tiff(DEEP.astype(kind), 1), grey(DEEP >> 8), 0) for kind in ("<u2", ">u2")},
    "tiff grey 12 bits": (tiff(twelve_bits(DEEP >> 4), 1, bits=12), grey(DEEP >> 8), 0),
    "tiff grey, 0 is white": (tiff(GREY.astype("u1"), 0), grey(255 - GREY), 0),
    "tiff grey, alpha": (tiff(both(GREY, ALPHA), 1, extra=2), over_white(grey(GREY), ALPHA), 1),
    **{f"tiff rgb 16 bits {kind}": (tiff(DEEP_RGB.astype(kind), 2), DEEP_RGB >> 8, 0) for kind in ("<u2", ">u2")},
    "tiff rgbx": (tiff(both(RGB, ALPHA), 2, extra=0), RGB, 0),
    "tiff rgba": (tiff(both(RGB, ALPHA), 2, extra=2), over_white(RGB, ALPHA), 1),
    "tiff rgba, premultiplied": (tiff(both(PREMULTIPLIED, ALPHA), 2, extra=1), over_white(RGB, ALPHA), 2),
    "tiff palette": (tiff(PLACES.astype("u1"), 3, palette=TIFF_PALETTE.ravel().tolist()), COLOURS[PLACES[..., 0]], 0),
    "tiff palette, alpha": (
        tiff(both(PLACES, ALPHA), 3, extra=2, palette=TIFF_PALETTE.ravel().tolist()),
        over_white(COLOURS[PLACES[..., 0]], ALPHA), 1,
    ),
    "tiff cmyk": (tiff(INK.astype("u1"), 5), from_cmyk(INK), 1),
    "tiff cmyk 16 bits": (tiff((257 * INK).astype("<u2"), 5), from_cmyk(INK), 1),
    "tiff ycbcr": (tiff(RGB.astype("u1"), 6), from_ycc(RGB), 2),
    "tiff lab": (tiff((LAB % 256).astype("u1"), 8), from_lab(LAB), 4),
    "pgm of 1000": (pnm("P5", 1000, DEEP % 1001), grey(DEEP % 1001 * 255 / 1000), 1),
    "pgm 16 bits": (pnm("P5", 65535, DEEP), grey(DEEP >> 8), 0),
    "ppm 16 bits": (pnm("P6", 65535, DEEP_RGB), DEEP_RGB / 257, 1),
    "bmp 16 bits": (bmp_565(FIVE[0], SIX, FIVE[1]), np.stack([FIVE[0] / 31, SIX / 63, FIVE[1] / 31], axis=2) * 255, 1),
    "jpeg 2000 16 bits": (encode(Image.fromarray(DEEP[..., 0].astype(np.uint16)), "JPEG2000"), grey(DEEP >> 8), 0),
    "jpeg cmyk": (encode(Image.new("CMYK", (SIDE, SIDE), (200, 30, 90, 60)), "JPEG", quality=100),
                  np.broadcast_to(from_cmyk(np.array([[[200, 30, 90, 60]]])), (SIDE, SIDE, 3)), 3),
}  # fmt: skip


@pytest.mark.parametrize("kind", RIGHT)
def test_pixels_become_what_numpy_says(kind):
    content, expected, apart = RIGHT[kind]
    got = square_rgb(content, SIDE).astype(float)
    assert np.abs(got - expected).max() <= apart


NO_RANGE = "no defined range: convert it to 8 bits per channel"
OTHER_KEY = "a transparent colour of other than 8 bits: convert it"
UNKNOWN = "in no image format or kind of pixels that is decoded (AVIF, BMP, GIF,"
UNIT = DEEP / 65535
REFUSED = {
    **{f"tiff float {kind}": (tiff(UNIT.astype(kind), 1, sample_format=3), f"mode F, 32-bit float pixels have {NO_RANGE}")
       for kind in ("<f4", ">f4")},
    "tiff float to 255": (tiff((255 * UNIT).astype("<f4"), 1, sample_format=3), NO_RANGE),
    "tiff double": (tiff(UNIT.astype("<f8"), 1, sample_format=3), UNKNOWN),
    "tiff rgb float": (tiff(RGB.astype("<f4"), 2, sample_format=3), UNKNOWN),
    "tiff 32 bits": (tiff(DEEP.astype("<u4"), 1), NO_RANGE),
    **{f"tiff signed {kind}": (tiff(DEEP.astype(kind), 1, sample_format=2), NO_RANGE)
       for kind in ("i1", "<i2", ">i2", "<i4", ">i4")},
    "tiff 16 bits, 0 is white": (tiff(DEEP.astype("<u2"), 0), "16-bit grey in which 0 is white: convert it"),
    "tiff grey, premultiplied": (tiff(both(GREY, ALPHA), 1, extra=1), "pixels of mode La: convert it"),
    "pfm": (f"Pf {SIDE} {SIDE} -1.0\n".encode() + UNIT.astype("<f4").tobytes(), NO_RANGE),
    **{f"png grey {n} bits, key": (png(GREY >> (8 - n), n, 0, tRNS=struct.pack(">H", 1)), OTHER_KEY) for n in (2, 4)},
    "png grey 16 bits, key": (png(DEEP, 16, 0, tRNS=struct.pack(">H", 1)), OTHER_KEY),
    "png rgb 16 bits, key": (png(DEEP_RGB, 16, 2, tRNS=struct.pack(">HHH", 1, 2, 3)), OTHER_KEY),
    **{f"{kind} file": (encode(Image.new("RGB", (SIDE, SIDE)), kind), UNKNOWN) for kind in ("EPS", "TGA", "PCX", "ICO")},
    "16-bit array": (np.zeros((4, 4, 3), np.uint16), "uint16 pixels of shape (4, 4, 3): they must be uint8"),
    "float array": (np.zeros((4, 4, 1), np.float32), "float32 pixels"),
    "bool array": (np.zeros((4, 4, 1), bool), "bool pixels"),
    "signed array": (np.zeros((4, 4, 3), np.int8), "int8 pixels"),
    "flat array": (np.zeros((4, 1), np.uint8), "of shape (4, 1)"),
    "array of two channels": (np.zeros((4, 4, 2), np.uint8), "of shape (4, 4, 2)"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_pixels_without_a_meaning_are_refused_by_name(kind):
    content, said = REFUSED[kind]
    with pytest.raises(ValueError, match=r"^[^\n]+$") as caught:
        square_rgb(content, SIDE)
    assert said in str(caught.value)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "MPO", "AVIF"])
def test_the_first_of_several_frames_is_taken(kind):
    red, blue = (Image.new("RGB", (SIDE, SIDE), colour) for colour in ("red", "blue"))
    several = encode(red, kind, save_all=True, append_images=[blue])
    assert np.abs(square_rgb(several, SIDE) - np.array([255.0, 0, 0])).max() <= 3


@pytest.fixture
def special(tmp_path):
    """Paths that are no regular files, and must not be opened."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "fifo")
    return {"fifo": tmp_path / "fifo", "link": tmp_path / "link", "folder": tmp_path / "folder", "device": "/dev/zero"}


@pytest.mark.parametrize("kind", ["fifo", "link", "folder", "device"])
def test_only_regular_files_are_opened(special, kind, tmp_path):
    with pytest.raises(ValueError, match="it is no regular file"):
        square_rgb(type(tmp_path)(special[kind]), SIDE)


def test_a_link_to_a_file_is_followed(tmp_path):
    (tmp_path / "there.png").write_bytes(png(RGB, 8, 2))
    (tmp_path / "link").symlink_to("there.png")
    np.testing.assert_array_equal(square_rgb(tmp_path / "link", SIDE), RGB)


def test_pillow_and_its_libraries_are_quiet(capfd):
    """A file that ends in its header, a bad checksum, which libtiff itself reports, and what Pillow logs."""
    packed = encode(Image.new("RGB", (60, 60), "red"), "TIFF", compression="tiff_adobe_deflate")
    filters = warnings.filters[:]
    with quiet_pillow():
        for content in (tiff(RGB.astype("u1"), 2)[:60], packed[:12] + bytes([packed[12] ^ 255]) + packed[13:]):
            with pytest.raises(ValueError, match=r"in no image format|decoder error"):
                square_rgb(content, SIDE)
        logging.getLogger("PIL.TiffImagePlugin").error("more samples than can be decoded")
    assert warnings.filters == filters
    assert capfd.readouterr() == ("", "")
