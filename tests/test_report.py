"""What the report says; and at night the report in a real browser: nothing on the console, values under the pointer,
readable at 400 px."""

import base64
import functools
import http.server
import io
import json
import re
import shutil
import subprocess
import threading
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from networks import run, tiny_config
from PIL import Image

from alexnet_jax.figures.kernels import kernel_images, tiled
from alexnet_jax.inference.analysis import judge, right_and_wrong
from alexnet_jax.inference.predictor import load_trained
from alexnet_jax.report.charts import POINTS, chart, series
from alexnet_jax.report.gather import gather
from alexnet_jax.report.page import render
from alexnet_jax.run.metrics import read_rows
from alexnet_jax.system.errors import UserError
from alexnet_jax.training import train

mpl.use("agg")

NASTY = "<script>alert(\"1\")</script> & 'co' </script><b>"
# A page that holds the report in a frame of a given width, moves the pointer over its first chart, and tells what it sees.
PROBE = """<!DOCTYPE html><link rel="icon" href="data:,">
<iframe src="report.html" width="WIDTH" height="900" style="border:0"></iframe><pre></pre><script>
onload = () => setTimeout(() => {
  const page = document.querySelector("iframe").contentDocument, plot = page.querySelector("svg.plot");
  const place = plot.getBoundingClientRect();
  plot.dispatchEvent(new PointerEvent("pointermove", {clientX: place.right - 13, clientY: place.top + 50, bubbles: true}));
  const tip = page.querySelector(".tip"), inside = tip.getBoundingClientRect();
  document.querySelector("pre").textContent = JSON.stringify({
    overflow: page.documentElement.scrollWidth - page.documentElement.clientWidth,
    widest: Math.max(...[...page.querySelectorAll("svg, p, table, .cards, .near, .pixels, .bar")].map(
      (one) => one.getBoundingClientRect().right)),
    lines: [...page.querySelectorAll("svg.plot")].map((one) => one.querySelectorAll("polyline").length),
    columns: getComputedStyle(page.querySelector(".columns")).gridTemplateColumns.split(" ").filter(
      (track) => track !== "0px").length,
    fontSize: Math.min(...[...page.querySelectorAll("td, p, .bar b, .near div, .chart text")].map(
      (one) => parseFloat(getComputedStyle(one).fontSize))),
    broken: [...page.images].filter((image) => !image.naturalWidth).length, images: page.images.length,
    tip: tip.innerText, tipInside: inside.left >= 0 && inside.right <= WIDTH,
  });
}, 500);
</script>"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves a folder and says nothing."""

    def log_message(self, format, *args): ...


class Reader(HTMLParser):
    """Tags in order, the text outside of scripts, images with their words, the charts' data; every tag must be closed."""

    VOID = ("meta", "link", "img", "br", "i/")

    def __init__(self) -> None:
        super().__init__()
        self.open, self.tags, self.words, self.sources = list[str](), list[str](), list[str](), list[str]()
        self.images, self.charts, self._is_data = list[tuple[str, Image.Image]](), list[dict](), False

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        said = dict(attrs)
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        self._is_data = said.get("id") == "charts"
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
            self.charts, self._is_data = json.loads(data), False
        if not {"script", "style"} & set(self.open):
            self.words.append(data)


def read(path: Path) -> Reader:
    reader = Reader()
    reader.feed(path.read_text())
    reader.close()
    assert reader.open == []
    return reader


@pytest.fixture(scope="module")
def runs(data_dir, tmp_path_factory):
    """Two short runs that differ in their seed, and their report."""
    folder = tmp_path_factory.mktemp("report")
    for seed in (0, 1):
        train(tiny_config(data_dir, folder / str(seed), seed=seed, log_every=1, eval_every=2, checkpoint_every=4))
    out = folder / "www"
    out.mkdir()
    result = run("report", f"--workdir={folder / '0'}", f"--workdir={folder / '1'}", f"--out={out / 'report.html'}")
    assert (result.returncode, result.stdout, result.stderr) == (0, f"{out / 'report.html'}\n", "")
    return folder


def seen_by_chromium(folder: Path, width: int) -> dict:
    """What PROBE tells of folder/report.html; nothing may be said on the console."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("there is no Chromium on this machine: the report was not opened in a browser")
    (folder / "probe.html").write_text(PROBE.replace("WIDTH", str(width)))
    handler = functools.partial(Quiet, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        result = subprocess.run(
            [
                browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}",
                "--enable-logging=stderr", "--virtual-time-budget=5000", "--window-size=1400,1000", "--dump-dom",
                f"http://127.0.0.1:{server.server_port}/probe.html",
            ],
            capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip
        server.shutdown()
    assert [line for line in result.stderr.splitlines() if "CONSOLE" in line] == []
    found = re.search(r"<pre>(.*)</pre>", result.stdout, flags=re.DOTALL)
    assert found is not None
    return json.loads(found[1].replace("&gt;", ">").replace("&lt;", "<").replace("&amp;", "&"))


@pytest.mark.nightly
@pytest.mark.parametrize(("width", "columns"), [(1200, 2), (400, 1)])
def test_a_browser_shows_it(runs, width, columns):
    seen = seen_by_chromium(runs / "www", width)
    assert seen["overflow"] == 0
    assert seen["widest"] <= width
    assert seen["columns"] == columns
    assert seen["fontSize"] >= 11
    assert (seen["broken"], seen["images"] > 50) == (0, True)
    # Loss and error of two runs and two splits, rate and throughput of two runs, two charts of magnitudes for each run.
    assert seen["lines"] == [4, 4, 2, 2, 8, 8, 8, 8]
    last = [[row for row in read_rows(runs / seed) if row["split"] == "validation"][-1]["loss"] for seed in "01"]
    told = dict(re.findall(r"seed=(\d), validation: ([\d.]+)", seen["tip"]))
    assert [float(told[seed]) for seed in "01"] == pytest.approx(last, rel=1e-3)
    assert seen["tipInside"]


@pytest.mark.slow
def test_the_page_is_whole_and_says_what_was_run(runs, data_dir):
    page = read(runs / "www" / "report.html")
    assert all(source.startswith("data:") for source in page.sources)  # no other file, no network
    words = " ".join(" ".join(page.words).split())
    record = json.loads((runs / "1" / "config.json").read_text())
    for told in (record["commit"], record["versions"]["jax"], "seed=1", "--bias_init=0.1", "8 x cpu", "colour 3", "tower 1"):
        assert told in words
    trained = load_trained(str(runs / "1"))
    judged = judge(trained, trained.data(str(data_dir)).split("test"))
    assert f"top-1 {judged.score.top1_error:.2f} %" in words
    labels, guesses = judged.split.labels, judged.guesses
    for number in np.unique(labels).tolist():
        wrong = (guesses[labels == number] != number).mean()
        assert f"{100 * wrong:.0f} % of {(labels == number).sum()}" in words
    assert not list((runs / "www").glob("*.tmp"))


@pytest.mark.slow
def test_the_page_has_the_curves_and_the_images_of_each_run(runs, data_dir):
    """Loss and error of two runs and two splits, rate and throughput of two runs, two charts of magnitudes for each run."""
    page = read(runs / "www" / "report.html")
    assert [(len(one["series"]), one["log"]) for one in page.charts] == [
        (4, False), (4, False), (2, True), (2, False), (8, True), (8, True), (8, True), (8, True),
    ]  # fmt: skip
    for drawn, column in zip(page.charts, ("loss", "top1_error"), strict=False):
        for line in drawn["series"]:
            seed, split = re.fullmatch(r"seed=(\d), (train|validation)", line["name"]).groups()
            rows = [row for row in read_rows(runs / seed) if row["split"] == split]
            assert line["points"] == [[row["epoch"], row[column]] for row in rows]
            assert line["dash"] == ("6 4" if split == "validation" else "")
    assert page.tags.count("figure") == len(page.charts) + 2 * 2  # and two towers' kernels of each run
    images = iter(page.images)
    trained = [load_trained(str(runs / seed)) for seed in "01"]
    judged = [judge(one, one.data(str(data_dir)).split("test")) for one in trained]
    for _ in trained:
        assert next(images)[0] == "confusion matrix"
    for one in trained:
        for tower, mine in enumerate(kernel_images(np.asarray(one.params["conv1"]["kernel"]))):
            words, image = next(images)
            assert words == f"conv1, tower {tower}"
            sheet = 255 * tiled(mine, 16 if len(mine) >= 16 else len(mine), 1.0)
            np.testing.assert_array_equal(np.asarray(image), sheet.round())
    for one in judged:
        chosen = right_and_wrong(one, 4, 0)
        assert len(chosen) > 4
        for number, pixels in zip(chosen, one.split.read(chosen).images, strict=True):
            words, image = next(images)
            assert words == trained[0].classes[one.split.labels[number]]
            assert image.size == (66, 66)
            assert np.abs(np.asarray(image).astype(float).mean((0, 1)) - pixels.mean((0, 1))).max() < 5
    assert len(list(images)) == 2 * 3 * (1 + 6)  # queries with their neighbours


def nasty_pages(runs: Path, data_dir: Path, folder: Path) -> tuple[Reader, Reader]:
    """A report of a run whose class and folder are markup, and one whose loss is no number, in `folder`; and a clean one."""
    (found,) = gather([str(runs / "0")], step="latest", split="test", data_dir=str(data_dir), batch_size=16, sample_seed=0)
    named = replace(
        found,
        label=NASTY,
        config=replace(found.config, workdir=NASTY),
        trained=replace(found.trained, stored=replace(found.trained.stored, classes=(NASTY, *found.trained.classes[1:]))),
        guessed=[(NASTY, *found.guessed[0][1:]), *found.guessed[1:]],
        rows=[*found.rows, {**found.rows[-1], "loss": float("nan")}],
    )
    (folder / "report.html").write_text(render([named, found]))
    return read(folder / "report.html"), read(runs / "www" / "report.html")


@pytest.mark.slow
def test_what_a_run_says_cannot_become_part_of_the_page(runs, data_dir, tmp_path):
    """Class names and the folder are text, even inside the charts' data; a loss that is no number leaves a gap."""
    page, clean = nasty_pages(runs, data_dir, tmp_path)
    assert page.tags.count("script") == clean.tags.count("script")
    assert set(page.tags) == set(clean.tags)
    assert NASTY in "".join(page.words)
    assert NASTY in [words for words, _ in page.images]
    names = [line["name"] for line in page.charts[0]["series"]]
    assert f"{NASTY}, train" in names
    points = {line["name"]: len(line["points"]) for line in page.charts[0]["series"]}
    assert list(points.values())[:2] == list(points.values())[2:]  # the loss that is no number is not among them


@pytest.mark.nightly
def test_a_browser_runs_nothing_that_a_run_says(runs, data_dir, tmp_path):
    nasty_pages(runs, data_dir, tmp_path)
    seen = seen_by_chromium(tmp_path, 400)
    assert seen["overflow"] == 0
    assert f"{NASTY}, train" in seen["tip"]


def test_long_curves_are_thinned_and_keep_their_last_point():
    points = [(float(x), float(x % 7)) for x in range(3 * POINTS + 2)]
    kept = series("name", "#000", "", points)["points"]
    assert len(kept) <= POINTS
    assert kept[-1] == points[-1]
    assert set(kept) <= set(points)
    gaps = series("name", "#000", "", [(1.0, float("nan")), (2.0, 0.0), (3.0, 4.0)])
    assert gaps["points"] == [(2.0, 0.0), (3.0, 4.0)]
    assert chart("title", [gaps], log=True)["series"][0]["points"] == [(3.0, 4.0)]


@pytest.mark.slow
def test_what_is_missing_is_named_before_anything_is_looked_at(runs, data_dir, tmp_path):
    for name in ("bare", "lost"):
        (tmp_path / name).mkdir()
        shutil.copy(runs / "0" / "config.json", tmp_path / name)
        shutil.copy(runs / "0" / "mean.npy", tmp_path / name)
    shutil.copy(runs / "0" / "metrics.jsonl", tmp_path / "lost")
    for workdir, options, message in [
        ("none", {}, "--workdir={} holds no run"),
        ("bare", {}, "--workdir={} has no metrics yet: train longer than --log_every=1 steps"),
        ("lost", {}, "the run in {} has no finished checkpoint yet"),
        (runs / "1", {"data_dir": "/nowhere"}, "--dataset=tiny is not prepared at 66 px under --data_dir=/nowhere"),
    ]:
        folder = str(tmp_path / workdir)
        defaults = {"step": "latest", "split": "test", "data_dir": str(data_dir), "batch_size": 16, "sample_seed": 0}
        with pytest.raises(UserError) as caught:
            gather([str(runs / "0"), folder], **defaults | options)
        assert str(caught.value).startswith(message.format(folder))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--workdir is missing: name the folder of a run; repeat it to see several side by side"),
        (["--workdir=w", "--out=/nowhere/r.html"], "--out=/nowhere/r.html: there is no folder /nowhere"),
    ],
)
def test_bad_input_is_one_line(flags, message):
    result = run("report", *flags)
    assert (result.returncode, result.stdout, result.stderr) == (1, "", f"error: {message}\n")
