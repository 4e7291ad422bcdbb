"""Figure 2 drawn from a layer table: every shape, count and arrow is the table's, and every word can be read."""

import re
from collections import Counter
from dataclasses import replace

import matplotlib as mpl
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgb, to_rgba
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from networks import run
from PIL import Image

from alexnet_jax.architectures import ARCHITECTURES, Architecture
from alexnet_jax.figures.architecture import CROSSTALK, TEXT, draw_architecture
from alexnet_jax.layers import Classifier, trace
from alexnet_jax.system.errors import UserError

mpl.use("agg")
PAPER, TIMES = ARCHITECTURES["paper"], "\N{MULTIPLICATION SIGN}"


def drawn(table: Architecture, **options) -> Figure:
    figure = draw_architecture(table, **options)
    plt.close(figure)
    return figure


def columns(figure: Figure, names: list[str]) -> dict[str, list[str]]:
    """The words of each layer's column."""
    texts = figure.axes[0].texts
    place = {text.get_text(): text.get_position()[0] for text in texts if text.get_text() in names}
    return {name: [text.get_text() for text in texts if text.get_position()[0] == place[name]] for name in names}


def arrows(figure: Figure) -> list[tuple[str, int, str, int]]:
    """(column, row, column, row) of every arrow. Rows are counted from the top, and the middle is -1."""
    axis = figure.axes[0]
    heads = {text.get_position()[0]: text.get_text() for text in axis.texts if text.get_fontsize() == 9}
    shapes = [text for text in axis.texts if re.fullmatch(f"[0-9{TIMES}]+", text.get_text())]
    first = [text.get_position()[1] for text in shapes if heads[text.get_position()[0]] == "conv1"]
    offset = max(first) - max(arrow.xy[1] for arrow in _arrows(figure) if arrow.xyann[1] == arrow.xy[1])

    def place(point: tuple[float, float]) -> tuple[str, int]:
        x, y = point
        near = min(heads, key=lambda head: abs(head - x))
        rows = {row: value - offset for row, value in enumerate(sorted(first, reverse=True))}
        rows[-1] = sum(rows.values()) / len(rows)
        return heads[near], min(rows, key=lambda row: abs(rows[row] - y))

    return [(*place(arrow.xyann), *place(arrow.xy)) for arrow in _arrows(figure)]


def _arrows(figure: Figure) -> list[Annotation]:
    return [text for text in figure.axes[0].texts if isinstance(text, Annotation) and text.arrow_patch is not None]


def test_the_paper_is_drawn_as_in_its_figure_2():
    """The numbers are read off the paper."""
    figure = drawn(PAPER)
    shapes = {"conv1": "55x55x48", "conv2": "27x27x128", "conv3": "13x13x192", "conv4": "13x13x192", "conv5": "13x13x128"}
    shapes |= {"fc6": "2048", "fc7": "2048"}
    kernels = {"conv1": "11x11 / 4", "conv2": "5x5", "conv3": "3x3", "conv4": "3x3", "conv5": "3x3"}
    found = columns(figure, [*shapes, "fc8", "image"])
    for name, shape in shapes.items():
        assert found[name].count(shape.replace("x", TIMES)) == 2
        assert kernels.get(name, "dense").replace("x", TIMES) in found[name]
    assert found["fc8"].count("1000") == 1
    assert found["image"].count(f"224{TIMES}224{TIMES}3") == 1
    assert [name for name, words in found.items() if f"max pool 3{TIMES}3 / 2" in words] == ["conv1", "conv2", "conv5"]
    assert [name for name, words in found.items() if "LRN" in words] == ["conv1", "conv2"]
    assert [name for name, words in found.items() if "dropout 0.5" in words] == ["fc6", "fc7"]
    crossing = Counter(to for _, row, to, other in arrows(figure) if -1 not in (row, other) and row != other)
    assert crossing == {"conv3": 2, "fc6": 2, "fc7": 2}


TABLES = [*ARCHITECTURES.values(), replace(PAPER, name="four", towers=4)]


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_every_shape_and_count_is_that_of_the_trace(table):
    figure, shapes = drawn(table, classes=10), trace(table, table.crop_size, 10)
    found = columns(figure, [one.name for one in shapes])
    for one in shapes:
        last = isinstance(one.layer, Classifier)
        own = f"{one.conv_side}{TIMES}{one.conv_side}{TIMES}{one.out_maps}" if one.conv_side > 1 else str(one.out_maps)
        assert found[one.name].count(own) == (1 if last else table.towers)
        assert f"{one.parameters:,}" in found[one.name]
        left = [word for word in found[one.name] if word.startswith("→")]
        pools = not last and any(hasattr(operation, "stride") for operation in one.layer.after)
        if pools:
            side = f"{one.out_side}{TIMES}{one.out_side}{TIMES}" * (one.out_side > 1)
            assert left == [f"→ {side}{one.out_maps}"]
        else:
            assert left == []
    words = [text.get_text() for text in figure.axes[0].texts]
    assert any(f"{sum(one.parameters for one in shapes):,} parameters" in word for word in words)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_arrows_cross_where_a_layer_reads_every_tower(table):
    figure = drawn(table)
    expected, before = Counter(), "image"
    for layer in table.layers:
        for tower in range(table.towers):
            if isinstance(layer, Classifier):
                sources, row = [tower], -1
            else:
                sources, row = {"image": [-1], "own": [tower], "all": range(table.towers)}[layer.reads], tower
            for source in sources:
                expected[(before, source, layer.name, row)] += 1
        before = layer.name
    if table.towers == 1:  # the row is the middle
        expected = Counter((a, 0, b, 0) for a, _, b, _ in expected.elements())
    assert Counter(arrows(figure)) == expected
    crossing = {tuple(arrow.xy) for arrow in _arrows(figure) if arrow.arrow_patch.get_edgecolor() == to_rgba(CROSSTALK)}
    reading = [layer for layer in table.layers if not isinstance(layer, Classifier) and layer.reads == "all"]
    assert bool(crossing) == (table.towers > 1 and bool(reading))


@pytest.mark.parametrize("name", ["source2012", "caffe", "cifar_18pct"])
def test_no_word_covers_another_or_leaves_the_picture(name):
    figure = drawn(ARCHITECTURES[name])
    figure.set_dpi(150)  # as it is saved; words are relatively wider than at 100
    figure.canvas.draw()
    whole = figure.bbox
    boxes = [(text.get_text(), text.get_window_extent()) for text in figure.axes[0].texts if text.get_text()]
    for number, (word, box) in enumerate(boxes):
        assert whole.x0 <= box.x0 < box.x1 <= whole.x1, word
        assert whole.y0 <= box.y0 < box.y1 <= whole.y1, word
        for other, near in boxes[number + 1 :]:
            assert not (box.x0 < near.x1 and near.x0 < box.x1 and box.y0 < near.y1 and near.y0 < box.y1), (word, other)


def contrast(colour: str, ground: str) -> float:
    """As the Web Content Accessibility Guidelines define it: 1 to 21."""

    def luminance(name: str) -> float:
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in to_rgb(name)]
        return sum(part * weight for part, weight in zip(linear, (0.2126, 0.7152, 0.0722), strict=True))

    high, low = sorted((luminance(colour), luminance(ground)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("ground", ["#ffffff", "#0d1117"])
def test_the_words_can_be_read_on_a_light_and_a_dark_page(ground):
    figure = drawn(PAPER)
    assert to_rgba(figure.get_facecolor())[3] == 0
    assert {text.get_color() for text in figure.axes[0].texts if text.get_text()} == {TEXT, CROSSTALK}
    assert min(text.get_fontsize() for text in figure.axes[0].texts if text.get_text()) >= 7.5
    for colour in (TEXT, CROSSTALK):
        assert contrast(colour, ground) > 4


def test_a_crop_that_is_too_small_is_said():
    assert f"99{TIMES}99{TIMES}3" in columns(drawn(PAPER, crop_size=99), ["image"])["image"]
    with pytest.raises(UserError, match="--crop_size=20 is too small for --architecture=paper"):
        draw_architecture(PAPER, crop_size=20)


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_the_command_line_draws_a_table_without_a_run(tmp_path, suffix):
    out = tmp_path / f"drawn{suffix}"
    result = run("figures", "--architecture=cifar_11pct_early", "--classes=10", f"--out={out}")
    assert (result.returncode, result.stdout, result.stderr) == (0, f"{out}\n", "")
    if suffix == ".svg":
        said = re.findall("<!-- (.*) -->", out.read_text())
        assert said.count(f"6{TIMES}6{TIMES}32") == 2
        assert said.count("10") == 1  # the classes
        return
    with Image.open(out) as image:
        assert image.size == pytest.approx(150 * drawn(ARCHITECTURES["cifar_11pct_early"]).get_size_inches(), abs=1)
        assert image.getpixel((1, 1)) == (255, 255, 255, 0)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--architecture=alexnet", "--architecture=alexnet"),
        ("--architecture=paper --out=a.pdf", "--out=a.pdf does not end in .png or .svg"),
        ("--architecture=paper --out=/nowhere/a.png", "there is no folder /nowhere"),
        ("--architecture=paper --classes=0", "--classes=0"),
        ("--architecture=paper --only=curves", "--only is about a run, and --architecture draws a table: add --workdir"),
        ("--architecture=paper --split=test", "--split is about a run"),
        ("--architecture=paper --workdir=/nowhere", "--workdir=/nowhere holds no run"),
        ("--out=a.png", "--workdir is missing"),
    ],
)
def test_bad_input_is_one_line(words, said):
    result = run("figures", *words.split())
    assert result.returncode == 1
    assert result.stderr.startswith("error: ")
    assert said in result.stderr
    assert result.stderr.count("\n") == 1
