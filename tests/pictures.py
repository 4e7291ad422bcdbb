"""Image files and sources made by hand."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

from alexnet_jax.data.example import Example, Listed, Source
from alexnet_jax.figures import write_figure

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


def bomb(side=50_000):
    """A PNG of side x side pixels that says so in a few bytes of header and holds one black row."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    row = zlib.compress(bytes(1 + 3 * side))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", row) + chunk(b"IEND", b"")


def recorded(monkeypatch, module):
    """The figures that a module writes from now on, while they still have their artists."""
    drawn = []
    monkeypatch.setattr(module, "write_figure", lambda figure, path: (drawn.append(figure), write_figure(figure, path)))
    return drawn


def assert_bars(figure, rows):
    """A bar for each row of a benchmark, the first one topmost."""
    widths = [bar.get_width() for bar in figure.axes[0].patches]
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert dict(zip(names, widths, strict=True)) == {name: row["images_per_second"] for name, row in rows.items()}
    assert names == list(rows)[::-1]
