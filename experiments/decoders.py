"""How fast photographs are decoded and resized for a prepared set, beside two shortcuts, and how far their pixels are off.

    python -m experiments.decoders --rounds=5

Both shortcuts let libjpeg-turbo scale while it decodes, to no less than three times the prepared size: Pillow's draft mode
by 1/2, 1/4 or 1/8, and simplejpeg (if it is installed) by eighths. The images are JPEGs of quality 90 made of the embedded
photographs: one enlarged (soft), or a mosaic of many (sharper than a camera's). Prints a table and one JSON object:
milliseconds of processor time per image, and the difference to the package's own pixels, in levels of 255.
"""

import functools
import importlib.util
import io
import itertools
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import flags
from PIL import Image
from rich.console import Console

from alexnet_jax.benchmark.results import new_table
from alexnet_jax.data.decode import square_rgb
from alexnet_jax.data.groceries import open_groceries
from alexnet_jax.run.workdir import provenance
from alexnet_jax.system import cli

GAP = 3  # what is left for the resampling itself, as in `square_rgb`
SHAPES = {"ImageNet": (500, 375), "small camera": (1600, 1200), "telephone": (4000, 3000)}
SIZES = (256, 112)
PHOTOGRAPHS = 60

Decoder = Callable[[bytes, int], np.ndarray]


def draft(encoded: bytes, size: int) -> np.ndarray:
    """Pillow's draft mode, then the package's resampling."""
    image = Image.open(io.BytesIO(encoded))
    wanted = GAP * size / min(image.size)
    if wanted < 1:
        image.draft(None, (math.ceil(wanted * image.width), math.ceil(wanted * image.height)))
    return square_rgb(image, size)


def simplejpeg_scaled(encoded: bytes, size: int) -> np.ndarray:
    """simplejpeg's decoder, then the package's resampling."""
    import simplejpeg  # pyright: ignore[reportMissingImports]

    height, width, *_ = simplejpeg.decode_jpeg_header(encoded)
    wanted = GAP * size / min(height, width)
    least = {} if wanted >= 1 else {"min_height": math.ceil(wanted * height), "min_width": math.ceil(wanted * width)}
    return square_rgb(simplejpeg.decode_jpeg(encoded, "RGB", fastdct=False, fastupsample=False, **least), size)


def decoders() -> dict[str, Decoder]:
    """By name, the package's own first."""
    found: dict[str, Decoder] = {"package": square_rgb, "Pillow's draft mode": draft}
    if importlib.util.find_spec("simplejpeg"):
        found["simplejpeg"] = simplejpeg_scaled
    return found


@functools.cache
def photographs() -> list[Image.Image]:
    """Some of the embedded ones, decoded."""
    examples = itertools.islice(open_groceries().splits["train"].read(0), PHOTOGRAPHS)
    return [Image.open(io.BytesIO(example.image)).convert("RGB") for example in examples]  # pyright: ignore[reportArgumentType]


def encoded_image(kind: str, shape: tuple[int, int]) -> bytes:
    """A JPEG of this width and height: 'soft' or 'mosaic'."""
    found = photographs()
    if kind == "soft":
        image = found[0].resize(shape, Image.Resampling.BICUBIC)
    else:
        image, side = Image.new("RGB", shape), found[0].width
        corners = itertools.product(range(0, shape[1], side), range(0, shape[0], side))
        for (top, left), one in zip(corners, itertools.cycle(found), strict=False):
            image.paste(one, (left, top))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()


def compare(encoded: bytes, size: int, rounds: int) -> dict[str, dict[str, float]]:
    """Each decoder in turn: median and range of its milliseconds, and how far its pixels are off."""
    seconds: dict[str, list[float]] = {name: [] for name in decoders()}
    own, differences = square_rgb(encoded, size).astype(int), dict[str, np.ndarray]()
    for _ in range(rounds):
        for name, decode in decoders().items():
            began = time.process_time()
            pixels = decode(encoded, size)
            seconds[name].append(time.process_time() - began)
            differences[name] = abs(pixels.astype(int) - own)
    return {
        name: {
            "milliseconds": 1e3 * statistics.median(each), "low": 1e3 * min(each), "high": 1e3 * max(each),
            "mean_difference": float(differences[name].mean()), "largest_difference": int(differences[name].max()),
        } for name, each in seconds.items()
    }  # fmt: skip


def measure(rounds: int) -> list[dict[str, Any]]:
    """Every kind, shape and size, with its decoders."""
    rows = []
    for kind, (shape, sides) in itertools.product(("soft", "mosaic"), SHAPES.items()):
        encoded = encoded_image(kind, sides)
        for size in SIZES:
            row = {"image": f"{shape}, {kind}", "width": sides[0], "height": sides[1], "size": size}
            rows.append(row | {"decoders": compare(encoded, size, rounds)})
    return rows


def main(options: flags.FlagValues) -> None:
    """The command line."""
    rows = measure(options.rounds)
    table = new_table("milliseconds of a core per image; difference in levels of 255: mean, largest", *decoders())
    for row in rows:
        cells = [
            f"{each['milliseconds']:.1f} ms; {each['mean_difference']:.2f}, {each['largest_difference']}"
            for each in row["decoders"].values()
        ]
        table.add_row(f"{row['image']}, {row['width']} x {row['height']} to {row['size']} px", *cells)
    Console(stderr=True, width=None if sys.stderr.isatty() else 140).print(table)
    print(json.dumps({"rows": rows, "settings": {"rounds": options.rounds, "gap": GAP}, **provenance()}))


def define_flags(options: flags.FlagValues) -> None:
    """The flags of this command."""
    flags.DEFINE_integer("rounds", 5, "times that each decoder has each image, in turn", lower_bound=1, flag_values=options)


COMMAND = cli.Command(__doc__, define_flags, main)

if __name__ == "__main__":
    COMMAND.run()
