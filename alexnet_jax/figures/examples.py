"""Figure 4: images with their likeliest classes, and images with their nearest training images."""

from collections.abc import Sequence

from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from alexnet_jax.figures.style import NEUTRAL, RIGHT, RIGHT_MARK, WRONG, WRONG_MARK, short
from alexnet_jax.inference.analysis import Guessed, Query

COLUMNS = 4  # images in one row


def draw_predictions(items: Sequence[Guessed], title: str) -> Figure:
    """Figure 4, left: images with their five likeliest classes as bars, and the probabilities in percent.

    The first text of an item stands above its image; the last is the right class or ''. The bar of the right class has the
    colour of right, a tick and a hatch. A wrong first guess has the colour of wrong and a cross.
    """
    columns = min(COLUMNS, len(items))
    rows = -(-len(items) // columns)
    figure, axes = plt.subplots(
        2 * rows, columns, figsize=(2.6 * columns, 3.9 * rows + 0.4), height_ratios=[1.7, 1] * rows, layout="constrained",
        squeeze=False,
    )  # fmt: skip
    for axis in axes.flat:
        axis.set_axis_off()
    for number, (name, image, top5, right) in enumerate(items):
        row, column = divmod(number, columns)
        picture, bars = axes[2 * row, column], axes[2 * row + 1, column]
        picture.imshow(image)
        picture.set_title(short(name, 30), fontsize=9)
        for place, guess in enumerate(top5):
            colour, mark, hatch = NEUTRAL, "", None
            if right and guess["class"] == right:
                colour, mark, hatch = RIGHT, f"{RIGHT_MARK} ", "////"
            elif right and place == 0:
                colour, mark = WRONG, f"{WRONG_MARK} "
            bars.barh(place, guess["probability"], color=colour, hatch=hatch, edgecolor="white", alpha=0.6, height=0.85)
            percent = f"{100 * guess['probability']:.1f} %"
            for x, text, side in ((0.02, mark + short(guess["class"], 26), "left"), (0.99, percent, "right")):
                written = bars.text(x, place, text, va="center", ha=side, fontsize=8)
                written.set_path_effects([withStroke(linewidth=2.5, foreground="white", alpha=0.8)])
        bars.set(xlim=(0, 1), ylim=(4.6, -0.6))
    figure.suptitle(title, fontsize=10)
    return figure


def draw_nearest(rows: Sequence[Query], title: str) -> Figure:
    """Figure 4, right: queries in the first column, their nearest training images in the others.

    A neighbour of the same class has a solid frame and a tick; one of another class has a dashed frame and a cross.
    """
    count = max(len(neighbours) for _, _, neighbours in rows)
    figure, axes = plt.subplots(
        len(rows), count + 1, figsize=(1.75 * (count + 1), 2.25 * len(rows) + 0.5), layout="constrained", squeeze=False
    )
    for line, (query, name, neighbours) in zip(axes, rows, strict=True):
        for axis in line:
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        line[0].imshow(query)
        line[0].set_xlabel(f"query\n{short(name, 20)}", fontsize=9, fontweight="bold")
        for axis, near in zip(line[1:], neighbours, strict=False):
            same = near.name == name
            axis.imshow(near.image)
            mark, colour, style = (RIGHT_MARK, RIGHT, "-") if same else (WRONG_MARK, WRONG, (0, (3, 2)))
            axis.set_xlabel(f"{mark} {short(near.name, 18)}\n#{near.index}, {near.distance:.3g}", fontsize=8)
            axis.spines[:].set(visible=True, color=colour, linewidth=2.2, linestyle=style)
    figure.suptitle(title, fontsize=11)
    return figure
