"""Image files and sources made by hand."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

from alexnet_jax.data.example import Example, Listed, Source
from alexnet_jax.figures.style import write_figure

SIZE = 16


def encode(image, file_format, **options):
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def smooth(width, height, channels=3, seed=0):
    """Random colours without edges, which resampling keeps almost as they are."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, channels), dtype=np.uint8)
    image = Image.fromarray(coarse[..., 0] if channels == 1 else coarse)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def listed(images, names=None):
    """Examples whose labels count 0, 1, 2, 0, 1, 2 ..."""
    return Listed([Example(image, i % 3, names[i] if names else "") for i, image in enumerate(images)])


def source_of(train, **others):
    """A source of lists of images."""
    splits = {split: listed(images) for split, images in {"train": train, **others}.items()}
    return Source("fake", ("a", "b", "c"), "made by hand", splits)


def broken(kind):
    """Bytes, or pixels, that are no complete image."""
    whole = encode(smooth(60, 50), "PNG" if kind == "png" else "JPEG")
    return {
        "jpeg": whole[: len(whole) // 2],
        "jpeg end": whole[: len(whole) * 9 // 10],
        "png": whole[: len(whole) // 2],
        "text": b"not an image",
        "empty": b"",
        "channels": np.zeros((9, 9, 5), np.uint8),
        "no pixels": np.zeros((0, 9, 3), np.uint8),
    }[kind]


def _chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def bomb(side=50_000):
    """A PNG of side x side pixels that says so in a few bytes of header and holds one black row."""

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    row = zlib.compress(bytes(1 + 3 * side))
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", row) + _chunk(b"IEND", b"")


def recorded(monkeypatch, module):
    """The figures that a module writes from now on, while they still have their artists."""
    drawn = []
    monkeypatch.setattr(module, "write_figure", lambda figure, path: (drawn.append(figure), write_figure(figure, path)))
    return drawn


def assert_rates(figure, rows):
    """The rate of each row of a benchmark, the first one topmost: bars from zero, or dots on a logarithmic axis."""
    (axis,) = figure.axes
    names = [label.get_text() for label in axis.get_yticklabels()]
    assert names == list(rows)[::-1]
    if axis.get_xscale() == "log":
        assert not axis.patches
        lines, dots = axis.collections
        rates = dots.get_offsets()[:, 0].tolist()
        ranges = [[rows[name]["low"], rows[name]["high"]] for name in names]
        assert [line[:, 0].tolist() for line in lines.get_segments()] == ranges
    else:
        assert {bar.get_x() for bar in axis.patches} == {0}
        rates = [bar.get_width() for bar in axis.patches]
    assert dict(zip(names, rates, strict=True)) == {name: row["images_per_second"] for name, row in rows.items()}


def png(samples, depth, colour_type, **chunks):
    """A PNG written by hand. samples: (height, width, channels), of `depth` bits; chunks: more of them, such as tRNS=..."""
    samples = np.asarray(samples)
    height, width, _ = samples.shape
    bits = (samples.reshape(height, -1, 1) >> np.arange(depth)[::-1]) & 1
    rows = np.packbits(bits.reshape(height, -1).astype(np.uint8), axis=1)
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    parts = {"IHDR": header, **chunks, "IDAT": zlib.compress(np.pad(rows, ((0, 0), (1, 0))).tobytes()), "IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind.encode(), body) for kind, body in parts.items())


def tiff(samples, photometric, *, sample_format=1, bits=None, extra=None, palette=None):
    """An uncompressed TIFF written by hand. samples: (height, width, channels), in their own type and byte order.

    bits: if it is not that of the type, the samples are the packed bytes of grey pixels.
    """
    height, width, channels = samples.shape
    order = ">" if samples.dtype.str[0] == ">" else "<"
    if bits:
        width = width * 8 // bits
    data = samples.tobytes()
    depth = [bits or 8 * samples.itemsize] * channels
    tags = {256: [width], 257: [height], 258: depth, 259: [1], 262: [photometric], 273: [0], 277: [channels], 278: [height]}
    tags |= {279: [len(data)], 339: [sample_format] * channels}
    tags |= {320: palette} if palette else {}
    tags |= {338: [extra]} if extra is not None else {}
    end, entries, far = 14 + 12 * len(tags), b"", b""
    length = sum(2 * len(values) for values in tags.values() if len(values) > 2)
    tags[273] = [end + length]
    for tag, values in sorted(tags.items()):
        content = struct.pack(f"{order}{len(values)}H", *values)
        place = struct.pack(f"{order}I", end + len(far)) if len(content) > 4 else content.ljust(4, b"\0")
        far += content if len(content) > 4 else b""
        entries += struct.pack(f"{order}HHI", tag, 3, len(values)) + place
    start = struct.pack(f"{order}2sHIH", b"II" if order == "<" else b"MM", 42, 8, len(tags))
    return start + entries + bytes(4) + far + data
