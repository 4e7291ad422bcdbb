"""The kernels of conv1 by tower (Figure 3), and activation maps by tower."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from alexnet_jax.inference.pictures import COLUMNS, kernel_images, tiled

MAPS = 48  # drawn of each tower: all of conv1's


def draw_kernels(kernel: Float[np.ndarray, "towers kh kw 3 maps"], title: str) -> Figure:
    """Figure 3: the kernels of conv1, tower 0 above tower 1."""
    pictures = kernel_images(kernel)
    towers, maps = pictures.shape[:2]
    size = COLUMNS * 0.55, towers * (-(-maps // COLUMNS) * 0.55 + 0.35)
    figure, axes = plt.subplots(towers, 1, figsize=size, layout="constrained", squeeze=False)
    for tower, axis in enumerate(axes[:, 0]):
        axis.imshow(tiled(pictures[tower], COLUMNS, 1.0), interpolation="nearest")
        axis.set_axis_off()
        if towers > 1:
            axis.set_title(f"tower {tower}", loc="left", fontsize=10)
    figure.suptitle(title)
    return figure


def draw_activations(
    images: Sequence[UInt8[np.ndarray, "size size 3"]], activations: Float[np.ndarray, "count ..."], towers: int, title: str
) -> Figure:
    """A row for each image: the image, then each tower's maps. A row has one colour scale.

    Args:
        images: input of the network.
        activations: (count, height, width, maps) of a convolution or (count, units) of a dense layer, tower after tower.
            The first `MAPS` maps of a tower are drawn, or all its units, one pixel each.
        towers: number of towers.
        title: of the figure.
    """
    maps = activations.shape[-1] // towers
    size = 2.2 + 4.4 * towers, 0.6 + (3.1 if activations.ndim == 4 else 2.4) * len(images)
    options = {"width_ratios": [1] + [2.4] * towers, "layout": "constrained", "squeeze": False}
    figure, axes = plt.subplots(len(images), 1 + towers, figsize=size, **options)
    for tower, axis in enumerate(axes[0, 1:]):
        axis.set_title(f"tower {tower}" * (towers > 1), loc="left", fontsize=10)
    for row, image, values in zip(axes, images, activations, strict=True):
        row[0].imshow(image)
        low, high = float(values.min()), max(float(np.quantile(values, 0.999)), 1e-9)
        scale = {"cmap": "magma", "vmin": 0, "vmax": high}
        if low < 0:  # not after a ReLU
            scale = {"cmap": "PuOr", "vmin": -max(high, -low), "vmax": max(high, -low)}
        for tower, axis in enumerate(row[1:]):
            part = values[..., tower * maps : (tower + 1) * maps]
            axis.imshow(_sheet(part), interpolation="nearest", **scale)
        figure.colorbar(row[-1].images[0], ax=row[-1], fraction=0.05, pad=0.02, label="activation")
        for axis in row:
            axis.set_axis_off()
    shown = f", the first {MAPS} of {maps} maps of each tower" if activations.ndim == 4 and maps > MAPS else ""
    figure.suptitle(title + shown, fontsize=11)
    return figure


def _sheet(values: Float[np.ndarray, "..."]) -> Float[np.ndarray, "height width"]:
    """Maps as tiles, or units as a block about twice as wide as high."""
    if values.ndim == 3:
        maps = np.moveaxis(values, -1, 0)[:MAPS]
        return tiled(maps, columns=-(-len(maps) // 6) if len(maps) > 6 else len(maps), gap=np.nan)
    columns = int(2 ** np.ceil(np.log2((2 * len(values)) ** 0.5)))
    padded = np.full(-(-len(values) // columns) * columns, np.nan)
    padded[: len(values)] = values
    return padded.reshape(-1, columns)
