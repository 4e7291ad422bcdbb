"""Pictures as arrays of pixels: kernels, tiles of pictures, confusions. No plotting library is needed."""

import numpy as np
from jaxtyping import Float, Int, UInt8

COLUMNS = 16  # kernels in one row
KERNEL_SCALE, CONFUSION_SIDE = 3, 480  # pixels of one weight; of a whole matrix, at least
GRID = 216  # the grey between cells


def kernel_images(kernel: Float[np.ndarray, "towers kh kw 3 maps"]) -> Float[np.ndarray, "towers maps kh kw 3"]:
    """Kernels as RGB pictures in [0, 1]. Zero is mid-grey. Each kernel is scaled by its own largest weight."""
    pictures = np.moveaxis(kernel, -1, 1)
    largest = np.abs(pictures).max(axis=(2, 3, 4), keepdims=True)
    return 0.5 + 0.5 * pictures / np.where(largest > 0, largest, 1)


def tiled(
    pictures: Float[np.ndarray, "count height width *channels"], columns: int, gap: float
) -> Float[np.ndarray, "all_height all_width *channels"]:
    """Pictures row by row on one canvas. Lines between them are one pixel wide and have the value `gap`."""
    count, height, width, *channels = pictures.shape
    rows = -(-count // columns)
    canvas = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1, *channels), gap)
    for number, picture in enumerate(pictures):
        top, left = (number // columns) * (height + 1), (number % columns) * (width + 1)
        canvas[top : top + height, left : left + width] = picture
    return canvas


def kernel_sheet(kernel: Float[np.ndarray, "towers kh kw 3 maps"]) -> UInt8[np.ndarray, "height width 3"]:
    """Figure 3 as pixels: the kernels of the first layer, tower 0 above tower 1."""
    columns = min(COLUMNS, kernel.shape[-1])
    towers = [tiled(pictures, columns, 1.0) for pictures in kernel_images(kernel)]
    gap = np.ones((kernel.shape[1] // 2, *towers[0].shape[1:]))
    sheet = np.concatenate([part for tower in towers for part in (tower, gap)][:-1])
    return _enlarged(sheet, KERNEL_SCALE)


def confusion_sheet(counts: Int[np.ndarray, "classes classes"]) -> UInt8[np.ndarray, "height width 3"]:
    """The counts of `analysis.confusion` as pixels: a row is a right class, and the darker a cell, the larger its share."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    scale = -(-CONFUSION_SIDE // len(counts))
    sheet = _enlarged(np.repeat(1 - shares[..., None], 3, axis=-1), scale)
    sheet[::scale] = sheet[:, ::scale] = GRID
    return sheet


def _enlarged(pixels: Float[np.ndarray, "height width 3"], scale: int) -> UInt8[np.ndarray, "all_height all_width 3"]:
    """Colours from 0 to 1 as bytes, each pixel a square."""
    return np.rint(255 * pixels).astype(np.uint8).repeat(scale, axis=0).repeat(scale, axis=1)
