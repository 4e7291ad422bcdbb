"""What each colour and mark means in every figure, and files of figures."""

from collections.abc import Sized
from pathlib import Path

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from alexnet_jax.figures import FIGURE_SUFFIXES
from alexnet_jax.system.files import output_file

# Okabe and Ito's colours, which colour-blind readers can tell apart. Two of them mean right and wrong, and nothing else.
# A mark or a hatch says the same to those who see no colour.
RIGHT, WRONG = "#009E73", "#D55E00"
RIGHT_MARK, WRONG_MARK = "\N{CHECK MARK}", "\N{BALLOT X}"
NEUTRAL = "#C4CAD0"  # neither right nor wrong
# Runs, layers and the arms of an experiment. Wine, grey and brown are not Okabe and Ito's.
PALETTE = ("#0072B2", "#E69F00", "#CC79A7", "#56B4E9", "#000000", "#882255", "#7F7F7F", "#8B5E3C")
COLOURS = dict(zip(("train", "validation", "test"), PALETTE, strict=False))
DASHES = ("-", "--", "-.", ":")
FEW = 12  # the most points of a curve that are marked one by one


def short(text: str, length: int) -> str:
    """At most `length` letters of a text, the last one an ellipsis if it was cut."""
    return text if len(text) <= length else text[: length - 1] + "\N{HORIZONTAL ELLIPSIS}"


def point_marker(points: Sized) -> str:
    """The marker of a curve. It shows a curve that has one point, and where a short one was measured."""
    return "o" if len(points) <= FEW else ""


def bare(axis: Axes) -> None:
    """Leaves only the left and lower edge, and faint lines to read values by."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", color="0.9")


def draw_absence(title: str, why: str) -> Figure:
    """A figure that says in its place why there is nothing to draw."""
    figure = plt.figure(figsize=(10, 1.6))
    figure.suptitle(title, fontsize=11)
    figure.text(0.5, 0.4, why, ha="center", va="center", color="0.3")
    return figure


def save_figure(figure: Figure, folder: Path, name: str) -> Path:
    """Writes `name` as PNG and SVG, closes the figure, and returns the PNG's path. Raises UserError as `output_file`."""
    folder.mkdir(parents=True, exist_ok=True)
    for suffix in FIGURE_SUFFIXES:
        write_figure(figure, folder / f"{name}{suffix}")
    plt.close(figure)
    return folder / f"{name}.png"


def write_figure(figure: Figure, path: Path) -> None:
    """Writes one file in the format of its suffix. It appears once it is complete. Raises UserError as `output_file`.

    The same figure gives the same bytes: an SVG has no date and no random names.
    """
    metadata = {"Date": None} if path.suffix == ".svg" else None
    with output_file(path, "wb") as file, plt.rc_context({"svg.hashsalt": "alexnet_jax"}):
        figure.savefig(file, format=path.suffix[1:], dpi=150, metadata=metadata)
