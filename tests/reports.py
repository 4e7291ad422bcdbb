"""Runs made by hand for the page, without training and without compiling, and a reader of its HTML."""

import base64
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import jax
import numpy as np
from networks import CLASSES, SIZE, record_row, small_setup
from PIL import Image

from alexnet_jax.data.splits import whole
from alexnet_jax.data.store import Split
from alexnet_jax.inference.analysis import Judged, Neighbour
from alexnet_jax.inference.predictor import Trained, top_classes
from alexnet_jax.report.gather import Results, Run
from alexnet_jax.run.workdir import Stored
from alexnet_jax.scores import Score

LAYERS = ("conv1", "fc8")
NASTY = "<script>alert(\"1\")</script> & 'co' </script><b>"


def made_split(examples: int = 40, size: int = SIZE, classes: int = CLASSES) -> Split:
    """Noise, which JPEG packs worst; every class has examples."""
    rng = np.random.default_rng(3)
    return Split(rng.integers(0, 256, (examples, size, size, 3), np.uint8), np.arange(examples, dtype=np.int32) % classes)


def made_results(seed: int, split: Split, classes: int = CLASSES) -> Results:
    """Random answers of a random network to a whole split, and the first of its images as neighbours."""
    rng, setup = np.random.default_rng(seed), small_setup()
    names = tuple(f"colour {label}" for label in range(classes))
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), setup.shapes)
    stored = Stored(setup.config, names, "a hash")
    trained = Trained(setup, stored, np.zeros((SIZE, SIZE, 3), np.float32), params, 90)
    logits = rng.normal(size=(len(split), classes)) + 3 * (np.arange(classes) == split.labels[:, None])
    probabilities = (np.exp(logits) / np.exp(logits).sum(1, keepdims=True)).astype(np.float32)
    ranks = (logits > np.take_along_axis(logits, split.labels[:, None], 1)).sum(1)
    loss = -np.log(np.take_along_axis(probabilities, split.labels[:, None], 1)).mean()
    score = Score(len(split), float(loss), 100 * float((ranks >= 1).mean()), 100 * float((ranks >= 5).mean()))
    judged, shown = Judged(whole(split), score, probabilities), range(8)
    guessed = [
        (names[split.labels[at]], split.images[at], top_classes(probabilities[at], names), names[split.labels[at]])
        for at in shown
    ]
    near = [Neighbour(split.images[at], names[split.labels[at]], at, 0.5 + at) for at in range(6)]
    queries = [(split.images[at], names[split.labels[at]], near) for at in range(3)]
    return Results(trained, "test", ("a hash", np.arange(len(split)).tobytes(), names), judged, guessed, queries)


def made_rows(rows: int, seconds: bool = True, rate_falls_after: int = 60) -> list[dict]:
    """A row of training at every step, a validation every tenth one; 1 step is 1 epoch and, if recorded, takes 2 seconds."""
    found = []
    for step in range(1, rows + 1):
        rate = 0.01 if step <= rate_falls_after else 0.001
        fields = {"learning_rate": rate, "loss": 2 + np.sin(step), "top1_error": 90 - step / rows}
        fields |= {"seconds": 2.0 * step} if seconds else {}
        found.append(record_row(step, "train", **fields, images_per_second=90.0 + step))
        if step % 10 == 0:
            layers = {
                name: {"kernel": 0.1 * number, "kernel_update": 1e-4 * step, "bias": 1.0, "bias_update": 0.1}
                for number, name in enumerate(LAYERS, start=1)
            }
            found.append(record_row(step, "validation", **fields | {"loss": 4.0 - step / rows}, magnitudes=layers))
    return found


def made_run(number: int, *, rows: list[dict] | None = None, split: Split | None = None, **fields) -> Run:
    """A whole run; `fields` of its config."""
    config = replace(small_setup().config, batch_size=8, steps=90, seed=number, workdir=f"runs/{number}", **fields)
    record = {"devices": ["cpu:0 TFRT"], "versions": {"jax": "0.10.1"}, "python": "3.11.7", "commit": "c0ffee"}
    results = made_results(number, made_split() if split is None else split)
    rows = made_rows(90) if rows is None else rows
    return Run(number, f"seed={number}", config.workdir, config, record, rows, results, ())


class Reader(HTMLParser):
    """Tags in order, the text outside of scripts, images with their words, the curves' data; every tag must be closed."""

    VOID = ("meta", "link", "img", "br", "input")

    def __init__(self) -> None:
        super().__init__()
        self.open, self.tags, self.words, self.sources = list[str](), list[str](), list[str](), list[str]()
        self.images, self.curves, self._is_data = list[tuple[str, Image.Image]](), dict(), False

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        said = dict(attrs)
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        self._is_data = said.get("id") == "curves"
        if tag == "img":
            content = base64.b64decode(said["src"].partition("base64,")[2], validate=True)
            image = Image.open(io.BytesIO(content))
            image.load()
            assert said["src"].startswith(f"data:image/{image.format.lower()};")
            self.images.append((said["alt"], image))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self._is_data:
            self.curves, self._is_data = json.loads(data), False
        if not {"script", "style"} & set(self.open):
            self.words.append(data)

    @property
    def text(self) -> str:
        """The words with single spaces."""
        return " ".join(" ".join(self.words).split())


def read(page: str) -> Reader:
    """A page, which has to be whole."""
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    return reader


def cells(html: str) -> list[list[str]]:
    """The rows of a table as texts: head and body."""
    rows = re.findall(r"<tr>(.*?)</tr>", html, flags=re.DOTALL)
    found = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, flags=re.DOTALL) for row in rows]
    return [[" ".join(" ".join(read(cell).words).split()) for cell in row] for row in found]
