"""Colours that colour-blind readers can tell apart, and files of figures."""

from pathlib import Path

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from alexnet_jax.system.files import output_file

# Okabe and Ito's colours, which colour-blind readers can tell apart. Two of them mean right and wrong, and nothing else.
# A mark or a hatch says the same to those who see no colour.
RIGHT, WRONG = "#009E73", "#D55E00"
RIGHT_MARK, WRONG_MARK = "\N{CHECK MARK}", "\N{BALLOT X}"
NEUTRAL = "#C4CAD0"  # neither right nor wrong
# Runs, layers and the arms of an experiment. Wine, grey and brown are not Okabe and Ito's.
PALETTE = ("#0072B2", "#E69F00", "#CC79A7", "#56B4E9", "#000000", "#882255", "#7F7F7F", "#8B5E3C")
COLOURS = dict(zip(("train", "validation", "test"), PALETTE, strict=False))
FIGURE_SUFFIXES = (".png", ".svg")
DASHES = ("-", "--", "-.", ":")


def short(text: str, length: int) -> str:
    """At most `length` letters of a text, the last one an ellipsis if it was cut."""
    return text if len(text) <= length else text[: length - 1] + "\N{HORIZONTAL ELLIPSIS}"


def bare(axis: Axes) -> None:
    """Leaves only the left and lower edge, and faint lines to read values by."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", color="0.9")


def save_figure(figure: Figure, folder: Path, name: str) -> Path:
    """Writes `name` as PNG and SVG, closes the figure, and returns the PNG's path. Raises UserError as `output_file`."""
    folder.mkdir(parents=True, exist_ok=True)
    for suffix in FIGURE_SUFFIXES:
        write_figure(figure, folder / f"{name}{suffix}")
    plt.close(figure)
    return folder / f"{name}.png"


def write_figure(figure: Figure, path: Path) -> None:
    """Writes one file in the format of its suffix. It appears once it is complete. Raises UserError as `output_file`."""
    with output_file(path, "wb") as file:
        figure.savefig(file, format=path.suffix[1:], dpi=150)
