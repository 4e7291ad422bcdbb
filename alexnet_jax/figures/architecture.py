"""Figure 2 of the paper, drawn from a layer table: towers, shapes, operations, cross-talk and parameters.

The colours and the transparent ground suit a light page and a dark one.
"""

import re
from typing import NamedTuple

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Polygon

from alexnet_jax.layers import (
    Architecture,
    Classifier,
    Convolution,
    Dropout,
    LayerShapes,
    Operation,
    Relu,
    ResponseNorm,
    Tanh,
    trace,
)

# In inches, which are also the units of the axes.
COLUMN, ROW, HEAD, LINE = 1.16, 1.25, 0.85, 0.155
TALLEST, WIDEST = 0.86, 0.34  # boxes
TEXT, TOWERS, CROSSTALK = "#777777", ("#3D8FD1", "#DE8A1B"), "#C44FA0"
SHARED = "#8C8C8C"  # what belongs to no tower: the image and the classes
TIMES = "\N{MULTIPLICATION SIGN}"


class Box(NamedTuple):
    """Values of one image, in the middle of a column: `depth` goes back to the upper right."""

    x: float
    y: float
    width: float
    height: float
    depth: float

    @property
    def reach(self) -> float:
        """From the middle to the left or right edge."""
        return (self.width + 0.8 * self.depth) / 2


def draw_architecture(table: Architecture, *, crop_size: int | None = None, classes: int = 1000) -> Figure:
    """A row for each tower, a column for each layer.

    A box has the shape of the layer's own output, height x width x maps of one tower, as in the paper. Its operations stand
    below, and the shape that they leave if that is another one. Arrows say what a layer reads: those that cross from one
    tower to another are the cross-talk.

    Args:
        table: the layers.
        crop_size: side of the input in pixels; None: the table's own.
        classes: number of outputs.

    Raises:
        UserError: `crop_size` is too small for the layers.
    """
    side = crop_size or table.crop_size
    shapes = trace(table, side, classes)
    lines = max(len(marks(one)) for one in shapes)
    width, height = COLUMN * (len(shapes) + 1), HEAD + ROW * table.towers + LINE * (lines + 2.6)
    figure = plt.figure(figsize=(width, height), facecolor="none")
    axis = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, height))
    axis.set_axis_off()
    rows = [height - HEAD - ROW * (tower + 0.5) for tower in range(table.towers)]
    middle = sum(rows) / len(rows)
    _title(axis, table, sum(one.parameters for one in shapes), height)
    image = _box(COLUMN / 2, middle, side, side, 3)
    _solid(axis, image, SHARED, _shape(side, 3))
    _head(axis, COLUMN / 2, height, "image", "")
    for tower, y in enumerate(rows if table.towers > 1 else ()):
        outward = 0.3 if y > middle else -0.3
        axis.text(COLUMN / 2, y + outward, f"tower {tower}", ha="center", va="center", color=TEXT, fontsize=7.5)
    before = [image]
    for column, one in enumerate(shapes, 1):
        x = (column + 0.5) * COLUMN
        last = isinstance(one.layer, Classifier)
        boxes = [_box(x, y, side, one.conv_side, one.out_maps) for y in ([middle] if last else rows)]
        for tower, box in enumerate(boxes):
            _solid(axis, box, SHARED if last else TOWERS[tower % len(TOWERS)], _shape(one.conv_side, one.out_maps))
        _arrows(axis, one, before, boxes)
        _head(axis, x, height, one.name, _kernel(one))
        for line, mark in enumerate(marks(one)):
            axis.text(x, LINE * (1.9 + lines - line), mark, ha="center", va="center", color=TEXT, fontsize=7.5)
        axis.text(x, 0.9 * LINE, f"{one.parameters:,}", ha="center", va="center", color=TEXT, fontsize=7.5, weight="bold")
        before = boxes
    axis.text(COLUMN / 2, 0.9 * LINE, "parameters", ha="center", va="center", color=TEXT, fontsize=7.5, weight="bold")
    return figure


def marks(one: LayerShapes) -> list[str]:
    """The operations after a layer, one line each, and the shape that they leave."""
    if isinstance(one.layer, Classifier):
        return ["sum of the towers"] if one.towers > 1 else []
    lines = [_mark(operation, one.towers) for operation in one.layer.after]
    return [*lines, f"→ {_shape(one.out_side, one.out_maps)}"] if one.out_side != one.conv_side else lines


def _mark(operation: Operation, towers: int) -> str:
    match operation:
        case Relu():
            return "ReLU"
        case Tanh():
            return "tanh"
        case ResponseNorm(across="all_maps") if towers > 1:
            return "LRN, all towers"
        case ResponseNorm(across="space"):
            return "LRN in space"
        case ResponseNorm():
            return "LRN"
        case Dropout(rate=rate):
            return f"dropout {rate:g}"
    kind = re.sub(r"(?<=.)(?=[A-Z])", " ", type(operation).__name__).lower()  # max pool
    return f"{kind} {_window(operation.size, operation.stride)}"


def _window(size: int, stride: int) -> str:
    return f"{size}{TIMES}{size}" + (f" / {stride}" if stride > 1 else "")


def _kernel(one: LayerShapes) -> str:
    if not isinstance(one.layer, Convolution):
        return "dense"
    return ("" if one.layer.shared else "local ") + _window(one.layer.kernel, one.layer.stride)


def _shape(side: int, maps: int) -> str:
    return TIMES.join(map(str, (side, side, maps) if side > 1 else (maps,)))


def _title(axis: Axes, table: Architecture, parameters: int, height: float) -> None:
    towers = {1: "one tower", 2: "two towers"}.get(table.towers, f"{table.towers} towers")
    line = axis.text(0.12, height - 0.2, table.name, va="center", color=TEXT, fontsize=11, weight="bold")
    axis.annotate(f"  {towers}, {parameters:,} parameters", (1, 0.5), xycoords=line, va="center", color=TEXT, fontsize=8.5)
    reading = [layer.name for layer in table.layers if not isinstance(layer, Classifier) and layer.reads == "all"]
    if table.towers > 1 and reading:
        said, right = f"cross-talk before {', '.join(reading)}", axis.get_xlim()[1] - 0.12
        axis.text(right, height - 0.2, said, ha="right", va="center", color=CROSSTALK, fontsize=8.5, weight="bold")


def _head(axis: Axes, x: float, height: float, name: str, kernel: str) -> None:
    axis.text(x, height - 0.55, name, ha="center", va="center", color=TEXT, fontsize=9, weight="bold")
    axis.text(x, height - 0.72, kernel, ha="center", va="center", color=TEXT, fontsize=7.5)


def _box(x: float, y: float, crop: int, side: int, maps: int) -> Box:
    """Sides and maps are drawn by their roots, for conv1 has 3,025 positions and conv5 has 169."""
    if side == 1:
        return Box(x, y, 0.09, TALLEST * min(1, (maps / 4096) ** 0.25), 0)
    height = TALLEST * (side / crop) ** 0.3
    return Box(x, y, min(WIDEST, 0.04 + 0.021 * maps**0.5), 0.8 * height, 0.3 * height)


def _solid(axis: Axes, box: Box, colour: str, shape: str) -> None:
    """Three faces of a box, and its shape below."""
    deep, up = 0.8 * box.depth, 0.6 * box.depth
    left, bottom = box.x - box.reach, box.y - (box.height + up) / 2
    right, top = left + box.width, bottom + box.height
    faces = {
        0.0: [(left, bottom), (right, bottom), (right, top), (left, top)],
        0.35: [(left, top), (right, top), (right + deep, top + up), (left + deep, top + up)],
        -0.25: [(right, bottom), (right + deep, bottom + up), (right + deep, top + up), (right, top)],
    }
    for light, corners in faces.items():
        red, green, blue = (part + light * (1 - part) if light > 0 else part * (1 + light) for part in to_rgb(colour))
        axis.add_patch(Polygon(corners, facecolor=(red, green, blue), edgecolor="none", zorder=2))
    axis.text(box.x, box.y - ROW / 2 + 0.07, shape, ha="center", va="center", color=TEXT, fontsize=7.5)


def _arrows(axis: Axes, one: LayerShapes, before: list[Box], boxes: list[Box]) -> None:
    """From what a layer reads to the layer. Only the first one reads the image."""
    apart = not isinstance(one.layer, Classifier) and one.layer.reads == "own"
    for tower, box in enumerate(boxes):
        for source in before[tower : tower + 1] if apart else before:
            crossing = len(before) == len(boxes) > 1 and source.y != box.y
            lift = 0.12 * (source.y > box.y) - 0.12 * (source.y < box.y) if crossing else 0.0
            look = {"arrowstyle": "-|>", "mutation_scale": 8, "linewidth": 1.2, "shrinkA": 2, "shrinkB": 2}
            axis.annotate(
                "", (box.x - box.reach, box.y + lift), (source.x + source.reach, source.y - lift),
                arrowprops=look | {"color": CROSSTALK if crossing else SHARED}, zorder=3 if crossing else 1,
            )  # fmt: skip
