"""The pieces of HTML that several sections share. All text of a run goes through `escape`."""

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from PIL import Image

from alexnet_jax.figures.style import NEUTRAL, PALETTE, RIGHT, RIGHT_MARK, WRONG, WRONG_MARK
from alexnet_jax.report.gather import Run
from alexnet_jax.run.flags import value_text

MARKS = {"right": f"{RIGHT_MARK} ", "wrong": f"{WRONG_MARK} ", "": ""}


def palette() -> str:
    """The colours as CSS: classes c0, c1, ... for runs and layers, and what right and wrong look like."""
    runs = [f".c{number} {{ --colour: {_both(colour)}; }}" for number, colour in enumerate(PALETTE)]
    meanings = {"right": RIGHT, "wrong": WRONG, "neutral": f"light-dark({NEUTRAL}, oklch(from {NEUTRAL} calc(l / 2) c h))"}
    named = " ".join(f"--{name}: {colour};" for name, colour in meanings.items())
    return "\n".join([f":root {{ {named} }}", *runs])


def _both(colour: str) -> str:
    """A colour for light and for dark paper, where it is lighter."""
    return f"light-dark({colour}, oklch(from {colour} calc(0.5 + l / 2) c h))"


def named(run: Run) -> str:
    """The colour and label of a run."""
    return f'<span class="swatch c{run.colour}"></span>{escape(run.label)}'


def heading(run: Run, runs: Sequence[Run]) -> str:
    """The name of a run above its part of a section, if there are several."""
    return f"<h3>{named(run)}</h3>" if len(runs) > 1 else ""


def bar(percent: float, left: str, right: str, kind: str = "") -> str:
    """A bar behind two texts. `kind`: 'right' or 'wrong', which also puts a mark before the left one, or ''."""
    texts = f"<span>{MARKS[kind]}{escape(left)}</span><span>{escape(right)}</span>"
    return f'<div class="bar {kind}"><i style="width:{percent:.1f}%"></i><span>{texts}</span></div>'


def facts(rows: Mapping[str, Any]) -> str:
    """A table of names and values."""
    lines = (f"<tr><th>{escape(name)}</th><td>{escape(value_text(value))}</td></tr>" for name, value in rows.items())
    return f"<table>{''.join(lines)}</table>"


def scrolled(content: str, words: str) -> str:
    """Content that may be wider than the page: it scrolls by itself, with the keys too. `words`: what it is."""
    return f'<div class="wide" tabindex="0" role="region" aria-label="{escape(words)}">{content}</div>'


def picture(pixels: Any, kind: str, words: str, *, side: int | None = None, style: str = "") -> str:
    """An image in the page: pixels as a 'png' or 'jpeg', at most `side` pixels wide and high, and what it shows."""
    image, file = Image.fromarray(pixels), io.BytesIO()
    if side is not None:
        image.thumbnail((side, side))
    image.save(file, kind, quality=85)  # PNG has none
    content = base64.b64encode(file.getvalue()).decode()
    return f'<img class="{style}" src="data:image/{kind};base64,{content}" alt="{escape(words)}">'
