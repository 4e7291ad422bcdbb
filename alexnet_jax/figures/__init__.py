"""The paper's figures of a run. The command line is `__main__`."""

from alexnet_jax.figures.confusion import draw_confusion
from alexnet_jax.figures.curves import draw_curves, draw_magnitudes, draw_training_error, run_labels
from alexnet_jax.figures.examples import draw_nearest, draw_predictions
from alexnet_jax.figures.kernels import draw_activations, draw_kernels, kernel_images, tiled
from alexnet_jax.figures.style import (
    COLOURS,
    FIGURE_SUFFIXES,
    PALETTE,
    RIGHT,
    RIGHT_MARK,
    WRONG,
    WRONG_MARK,
    draw_absence,
    save_figure,
    write_figure,
)

__all__ = [
    "COLOURS", "FIGURE_SUFFIXES", "PALETTE", "RIGHT", "RIGHT_MARK", "WRONG", "WRONG_MARK", "draw_absence",
    "draw_activations", "draw_confusion", "draw_curves", "draw_kernels", "draw_magnitudes", "draw_nearest",
    "draw_predictions", "draw_training_error", "kernel_images", "run_labels", "save_figure", "tiled",
    "write_figure",
]  # fmt: skip
