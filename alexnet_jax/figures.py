"""Draws what a run learned: learning curves, and the conv1 kernels by tower (Figure 3 of the paper).

python -m alexnet_jax.figures --workdir=W
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from absl import flags
from jaxtyping import Float
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from alexnet_jax import cli
from alexnet_jax.checkpoint import Checkpoints, chosen_step
from alexnet_jax.config import Config
from alexnet_jax.errors import UserError
from alexnet_jax.files import replacing
from alexnet_jax.metrics import read_rows
from alexnet_jax.step import make_model
from alexnet_jax.topology import make_topology
from alexnet_jax.workdir import read_classes, read_config

# Okabe and Ito's colours, which stay apart for colour-blind readers.
COLOURS = {"train": "#0072B2", "validation": "#D55E00", "test": "#009E73"}
EXTENSIONS = ("png", "svg")


def draw_curves(rows: Sequence[dict[str, Any]], title: str) -> Figure:
    """Loss and top-1 error over epochs, by split, with the learning rate's drops as thin lines."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for axis, name, label in zip(axes, ("loss", "top1_error"), ("loss (nats)", "top-1 error (%)"), strict=True):
        for split, colour in COLOURS.items():
            mine = [row for row in rows if row["split"] == split]
            if mine:
                axis.plot([row["epoch"] for row in mine], [row[name] for row in mine], color=colour, label=split)
        for row, before in zip(rows[1:], rows, strict=False):
            if row["learning_rate"] < before["learning_rate"]:
                axis.axvline(row["epoch"], color="0.6", linewidth=0.8, linestyle=":")
        axis.set(xlabel="epoch", ylabel=label)
        axis.set_ylim(bottom=0)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="0.9")
    axes[0].legend(frameon=False)
    figure.suptitle(title)
    return figure


def kernel_images(kernel: Float[np.ndarray, "towers kh kw 3 maps"]) -> Float[np.ndarray, "towers maps kh kw 3"]:
    """Kernels as RGB pictures in [0, 1]: zero weight is mid-grey, and each kernel is scaled by its own largest weight."""
    pictures = np.moveaxis(kernel, -1, 1)
    largest = np.abs(pictures).max(axis=(2, 3, 4), keepdims=True)
    return 0.5 + 0.5 * pictures / np.where(largest > 0, largest, 1)


def draw_kernels(kernel: Float[np.ndarray, "towers kh kw 3 maps"], title: str, columns: int = 16) -> Figure:
    """Figure 3: the kernels of conv1, tower 0 above tower 1, `columns` in a row."""
    pictures = kernel_images(kernel)
    towers, maps, height, width, _ = pictures.shape
    rows = -(-maps // columns)
    figure, axes = plt.subplots(
        towers, 1, figsize=(columns * 0.55, towers * (rows * 0.55 + 0.35)), layout="constrained", squeeze=False
    )
    for tower, axis in enumerate(axes[:, 0]):
        canvas = np.ones((rows * (height + 1) - 1, columns * (width + 1) - 1, 3))
        for number, picture in enumerate(pictures[tower]):
            top, left = (number // columns) * (height + 1), (number % columns) * (width + 1)
            canvas[top : top + height, left : left + width] = picture
        axis.imshow(canvas, interpolation="nearest")
        axis.set_axis_off()
        if towers > 1:
            axis.set_title(f"tower {tower}", loc="left", fontsize=10)
    figure.suptitle(title)
    return figure


def save_figure(figure: Figure, folder: Path, name: str) -> Path:
    """Writes `name` as PNG and SVG, each beside its target and renamed; returns the PNG's path."""
    folder.mkdir(parents=True, exist_ok=True)
    for extension in EXTENSIONS:
        write_figure(figure, folder / f"{name}.{extension}")
    plt.close(figure)
    return folder / f"{name}.png"


def write_figure(figure: Figure, path: Path) -> None:
    """Writes one file in the format of its suffix, beside its target and renamed."""
    with replacing(path, "wb") as file:
        figure.savefig(file, format=path.suffix[1:], dpi=150)


def _conv1_kernel(config: Config, step: str) -> tuple[Float[np.ndarray, "towers kh kw 3 maps"], int]:
    model = make_model(config, len(read_classes(config.workdir)), make_topology("1x1", 1, 1))
    with Checkpoints(Path(config.workdir), keep=config.keep, writable=False) as checkpoints:
        chosen = chosen_step(checkpoints, config.workdir, step)
        params = checkpoints.restore_params(model, chosen)
    return np.asarray(params["conv1"]["kernel"]), chosen


def main() -> None:
    """The command line."""
    workdir, step = flags.FLAGS.workdir, flags.FLAGS.step
    if not workdir:
        raise UserError("--workdir is missing: name the folder of a run")
    matplotlib.use("agg")
    config = read_config(workdir)
    rows = read_rows(Path(workdir))
    if not rows:
        raise UserError(f"--workdir={workdir} has no metrics yet: train longer than --log_every={config.log_every} steps")
    kernel, chosen = _conv1_kernel(config, step)
    title = f"{config.architecture} on {config.dataset}, seed {config.seed}"
    folder = Path(workdir) / "figures"
    try:
        print(save_figure(draw_curves(rows, title), folder, "curves"))
        print(save_figure(draw_kernels(kernel, f"conv1 kernels, {title}, step {chosen}"), folder, "conv1_kernels"))
    except OSError as error:
        raise UserError(f"--workdir={workdir}: {folder} cannot be written: {error.strerror or error}") from error


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "folder of a run; the figures go to its folder figures/")
    flags.DEFINE_string("step", "latest", "checkpoint: a step, 'latest' or 'best' (lowest validation error)")
    cli.run(main)
