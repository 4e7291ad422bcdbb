"""At night, the page in a real browser: pointer, keys, controls, CSV, colours, 400 pixels, no scripts, a silent console."""

import csv
import functools
import http.server
import io
import json
import math
import re
import shutil
import subprocess
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from reports import NASTY, made_rows, made_run

from alexnet_jax.report.page import render

pytestmark = pytest.mark.nightly

# A page that holds the report in a frame of a given width, uses it, and tells what it sees.
PROBE = """<!DOCTYPE html><link rel="icon" href="data:,">
<iframe src="report.html" width="WIDTH" height="900" style="border:0" SANDBOX></iframe><pre></pre><script>
const frame = document.querySelector("iframe");
onload = () => setTimeout(async () => {
  const page = frame.contentDocument, view = frame.contentWindow, seen = {};
  const all = (selector) => [...page.querySelectorAll(selector)], plot = () => page.querySelector("svg.plot");
  const tip = () => page.querySelector(".tip"), first = () => tip().innerText.split("\\n")[0];
  const texts = () => [...plot().querySelectorAll("text")].map((one) => one.textContent);
  const press = (key) => plot().dispatchEvent(new view.KeyboardEvent("keydown", { key, bubbles: true }));
  const choose = (id, value, kind) => {
    const control = page.getElementById(id);
    control.value = value;
    control.dispatchEvent(new view.Event(kind, { bubbles: true }));
  };
  LOOK
  document.querySelector("pre").textContent = JSON.stringify(seen);
}, 500);
</script>"""
LAYOUT = """
  seen.overflow = page.documentElement.scrollWidth - page.documentElement.clientWidth;
  const parts = all("svg, p, table:not(.matrix), .cards, .near, .pixels, .bar, .controls, button, h1, h3");
  seen.widest = Math.max(...parts.map((one) => one.getBoundingClientRect().right));
  const cells = [...all(".comparison th, .comparison td")].filter((one) => one.getClientRects().length);
  seen.table = Math.max(...cells.map((one) => one.getBoundingClientRect().right));
  seen.heads = all("thead").filter((one) => one.closest(".comparison, .errors") && one.getClientRects().length).length;
  seen.lines = all("svg.plot").map((one) => one.querySelectorAll("polyline").length);
  seen.shown = all("select, input, button").filter((one) => one.offsetWidth).length;
  const words = all("td, p, .bar span, .near div, small");
  seen.fontSize = Math.min(...words.map((one) => parseFloat(view.getComputedStyle(one).fontSize)));
  seen.broken = [...page.images].filter((image) => !image.naturalWidth).length;
"""
USE = """
  const place = plot().getBoundingClientRect();
  const point = { clientX: place.right - 13, clientY: place.top + 50, bubbles: true };
  plot().dispatchEvent(new view.PointerEvent("pointermove", point));
  seen.hover = tip().innerText.split("\\n");
  const inside = tip().getBoundingClientRect();
  seen.inside = inside.left >= 0 && inside.right <= WIDTH;
  plot().dispatchEvent(new view.PointerEvent("pointerleave"));
  seen.left = tip().hidden;

  all("details").forEach((one) => { one.open = true; });
  const reached = all("select, input, button, svg.plot, summary, .wide").filter((one) => one.getClientRects().length);
  seen.unreached = reached.filter((one) => { one.focus(); return page.activeElement !== one; }).map((one) => one.outerHTML);
  plot().focus();
  seen.outline = view.getComputedStyle(plot()).outlineStyle;
  seen.keys = ["Home", "ArrowRight", "ArrowLeft", "ArrowLeft", "End"].map((key) => { press(key); return first(); });
  press("Home");
  seen.first = tip().innerText.split("\\n");
  press("Escape");
  seen.escaped = tip().hidden;

  seen.linear = texts();
  page.querySelector("[type=checkbox]").click();
  seen.logarithmic = texts();
  page.querySelector("[type=checkbox]").click();
  seen.again = texts();

  choose("axis", "step", "change");
  seen.steps = [texts().includes("step"), page.getElementById("timeless").textContent];
  press("Home");
  seen.step = first();
  choose("axis", "seconds", "change");
  seen.seconds = [texts().includes("training time (min)"), page.getElementById("timeless").textContent];
  press("Home");
  seen.second = tip().innerText.split("\\n");
  choose("axis", "epoch", "change");

  const saved = [];
  view.URL.createObjectURL = (blob) => { saved.push(blob); return "data:,"; };
  view.HTMLAnchorElement.prototype.click = function () { seen.file = this.download; };
  page.querySelector("figcaption button").click();
  choose("smoothing", "0.5", "input");
  seen.raw = all("svg.plot").map((one) => one.querySelectorAll(".raw").length);
  press("Home");
  press("ArrowRight");
  seen.smooth = first();
  page.querySelector("figcaption button").click();
  seen.csv = await Promise.all(saved.map((blob) => blob.text()));

  const colours = () => ["backgroundColor", "color"].map((name) => view.getComputedStyle(page.body)[name]);
  seen.colours = ["light", "dark"].map((one) => { choose("scheme", one, "change"); return colours(); });
"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves a folder and says nothing."""

    def log_message(self, format, *args): ...


def seen_by_chromium(folder: Path, page: str, look: str, width: int = 1200, sandbox: str = "") -> dict:
    """What PROBE tells of a page; nothing may be said on the console."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("there is no Chromium on this machine: the report was not opened in a browser")
    (folder / "report.html").write_text(page)
    probe = PROBE.replace("LOOK", look).replace("WIDTH", str(width)).replace("SANDBOX", sandbox)
    (folder / "probe.html").write_text(probe)
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
    said = [line for line in result.stderr.splitlines() if "CONSOLE" in line]
    assert [line for line in said if not (sandbox and "sandboxed" in line)] == []  # where scripts are refused it says so
    found = re.search(r"<pre>(.*)</pre>", result.stdout, flags=re.DOTALL)
    assert found is not None
    return json.loads(found[1].replace("&gt;", ">").replace("&lt;", "<").replace("&amp;", "&"))


@pytest.fixture(scope="module")
def page() -> str:
    """Three runs; the second is shorter and has no times, the third lacks everything."""
    lost = replace(made_run(2), rows=[], results=None, config=None, problems=("--workdir=runs/2 holds no run" * 3,))
    return render([made_run(0), made_run(1, rows=made_rows(45, seconds=False)), lost])


@pytest.mark.parametrize("width", [1200, 400])
@pytest.mark.parametrize("sandbox", ["", 'sandbox="allow-same-origin"'], ids=["scripts", "no scripts"])
def test_a_browser_shows_it(page, tmp_path, width, sandbox):
    """Without scripts too, where the drawings stay and nothing is shown that would not work."""
    seen = seen_by_chromium(tmp_path, page, LAYOUT, width, sandbox)
    assert seen["overflow"] == 0
    assert seen["widest"] <= width
    assert seen["table"] <= width
    assert seen["heads"] == (2 if width == 1200 else 0)  # on a narrow page each row is a card, which names its values
    assert seen["fontSize"] >= 11
    assert seen["broken"] == 0
    # Loss and error of two runs and two splits, rate and throughput of two runs, two charts of two layers for each run.
    assert seen["lines"] == [4, 4, 2, 2, 2, 2, 2, 2]
    assert seen["shown"] == (0 if sandbox else 3 + 8 * 2)  # axis, smoothing and colours; a box and a button for each chart


@pytest.mark.parametrize("width", [1200, 400])
def test_a_reader_can_use_it(page, tmp_path, width):
    seen = seen_by_chromium(tmp_path, page, USE, width)
    rows = {number: made_rows(rows) for number, rows in ((0, 90), (1, 45))}
    loss = {(number, row["split"], row["step"]): row["loss"] for number, found in rows.items() for row in found}
    # The pointer is at epoch 90. A curve of 45 epochs has no value near it.
    told = dict(re.fullmatch(r"(.*): ([\d.]+ at epoch \d+)", line).groups() for line in seen["hover"])
    wanted = {f"seed=0, {split}": f"{loss[0, split, 90]:.4g} at epoch 90" for split in ("train", "validation")}
    assert told == wanted
    assert seen["inside"]
    assert seen["left"]
    assert seen["unreached"] == []
    assert seen["outline"] == "solid"
    assert seen["keys"] == [f"seed=0, train: {loss[0, 'train', step]:.4g} at epoch {step}" for step in (1, 2, 1, 1, 90)]
    own = {"seed=0, train": 1, "seed=0, validation": 10, "seed=1, train": 1, "seed=1, validation": 10}
    values = {name: loss[int(name[5]), name.split(", ")[1], step] for name, step in own.items()}
    assert seen["first"] == [f"{name}: {values[name]:.4g} at epoch {step}" for name, step in own.items()]
    assert seen["escaped"]
    assert seen["linear"] == seen["again"] != seen["logarithmic"]
    assert "0" in seen["linear"]
    assert "rate 0.001" in seen["linear"]
    assert {"1", "2"} < set(seen["logarithmic"])
    assert seen["steps"] == [True, ""]
    assert seen["step"] == f"seed=0, train: {loss[0, 'train', 1]:.4g} at step 1"
    assert seen["seconds"] == [True, "recorded no time: seed=1"]
    assert seen["second"][0] == f"seed=0, train: {loss[0, 'train', 1]:.4g} at {2 / 60:.4g} min"
    assert not any("seed=1" in line for line in seen["second"])
    assert seen["raw"] == [2, 2, 0, 2, 0, 0, 0, 0]  # of the training curves alone; the rate has no noise
    first, second = loss[0, "train", 1], loss[0, "train", 2]
    smooth = (0.25 * first + 0.5 * second) / 0.75
    assert seen["smooth"] == f"seed=0, train: {smooth:.4g} (smoothed from {second:.4g}) at epoch 2"
    assert seen["file"] == "loss_nats_.csv"
    plain, smoothed = (list(csv.DictReader(io.StringIO(text))) for text in seen["csv"])
    assert [{name: row[name] for name in plain[0]} for row in smoothed] == plain
    assert float(smoothed[1]["smoothed"]) == pytest.approx(smooth)
    assert len(plain) == len(loss)
    for row in plain:
        number, step = int(row["run"][-1]), int(row["step"])
        assert float(row["loss (nats)"]) == loss[number, row["split"], step]
        assert float(row["epoch"]) == step
        assert row["seconds"] == (str(2 * step) if number == 0 else "")
    for (paper, ink), dark in zip(seen["colours"], (False, True), strict=True):
        lightness = [sum(map(int, re.findall(r"\d+", colour)[:3])) / 765 for colour in (paper, ink)]
        assert (lightness[0] < 0.15 and lightness[1] > 0.85) if dark else (lightness[0] > 0.95 and lightness[1] < 0.15)


def test_a_run_without_times_offers_no_axis_of_times(tmp_path):
    look = 'seen.axes = [...page.getElementById("axis").options].map((one) => one.value);'
    seen = seen_by_chromium(tmp_path, render([made_run(0, rows=made_rows(20, seconds=False))]), look)
    assert seen["axes"] == ["epoch", "step"]


def test_a_browser_runs_nothing_that_a_run_says(tmp_path):
    nasty = replace(made_run(0), label=NASTY, problems=(NASTY,))
    look = LAYOUT + 'plot().focus(); press("End"); seen.tip = tip().innerText;'
    seen = seen_by_chromium(tmp_path, render([nasty, made_run(1)]), look, 400)
    assert seen["overflow"] == 0
    assert f"{NASTY}, train: {2 + math.sin(90):.4g} at epoch 90" in seen["tip"]
