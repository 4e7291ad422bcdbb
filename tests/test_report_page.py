"""What the page says of runs made by hand: numbers, curves, classes and images; what a run lacks is said in its place."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
from networks import record_row
from reports import NASTY, cells, made_results, made_rows, made_run, made_split, read
from scipy.stats import binomtest

from alexnet_jax.figures.style import RIGHT, WRONG
from alexnet_jax.report import classes, pictures
from alexnet_jax.report.charts import POINTS, Curves
from alexnet_jax.report.comparison import NOTHING, comparison
from alexnet_jax.report.page import render
from alexnet_jax.report.static import BOTTOM, LEFT, TOP, drawing
from alexnet_jax.report.static import RIGHT as RIGHT_EDGE
from alexnet_jax.scores import error_interval


@pytest.mark.parametrize(("wrong", "examples"), [(0, 10), (10, 10), (3, 7), (387, 661), (1, 100_000)])
def test_an_interval_is_that_of_wilson(wrong, examples):
    wanted = binomtest(wrong, examples).proportion_ci(0.95, "wilson")
    found = error_interval(100 * wrong / examples, examples)
    assert found == pytest.approx((100 * wanted.low, 100 * wanted.high), abs=1e-9)


def test_the_comparison_has_a_row_for_each_run():
    runs = [made_run(0), made_run(1, momentum=0.8, rows=made_rows(45, seconds=False))]
    head, *rows = cells(comparison(runs))
    assert [title.replace("\N{NON-BREAKING HYPHEN}", "-") for title in head] == [
        "run", "test top-1 error", "test top-5 error", "test loss (nats)", "lowest validation top-1 error",
        "training time (h:m:s)", "images/s", "steps", "parameters", "differs from the first",
    ]  # fmt: skip
    scores = [one.results.judged.score for one in runs]
    for row, score, one in zip(rows, scores, runs, strict=True):
        for text, name in zip(row[1:4], ("top1_error", "top5_error", "loss"), strict=True):
            best = "★ " * (getattr(score, name) == min(getattr(other, name) for other in scores))
            value = getattr(score, name)
            if name == "loss":
                assert text == f"{best}{value:.4f}"
            else:
                low, high = error_interval(value, 40)
                assert text == f"{best}{value:.2f} % {low:.1f} to {high:.1f} %"
        assert row[8] == f"{sum(leaf.size for layer in one.results.trained.params.values() for leaf in layer.values()):,}"
    assert [row[0] for row in rows] == ["seed=0 checkpoint 90", "seed=1 checkpoint 90"]
    assert [row[4] for row in rows] == ["★ 89.00 % at epoch 90.00", "89.11 % at epoch 40.00"]
    assert [row[5] for row in rows] == ["0:03:00", "not recorded"]
    assert [row[6] for row in rows] == ["★ 136.0", "113.5"]  # medians of 92 to 180 and of 92 to 135
    assert [row[7] for row in rows] == ["90 epoch 90.00", "45 epoch 45.00 not finished, 90 planned"]
    assert [row[9] for row in rows] == [NOTHING, "--seed=1 --momentum=0.8"]


def test_a_machine_a_version_and_a_commit_are_differences_too():
    first, second = made_run(0), made_run(0)
    other = {
        "devices": ["gpu:0 H100", "gpu:1 H100"],
        "versions": {"jax": "0.12"},
        "python": "3.12.0",
        "commit": "1234567890" * 4,
    }
    rows = cells(comparison([first, replace(second, record=other)]))
    assert rows[2][-1] == "machine: 2 x H100 software: Python 3.12.0, jax 0.12 commit: 12345678901234567890123456789…"
    assert cells(comparison([first, second]))[2][-1] == "nothing"


def test_errors_on_other_images_are_not_compared():
    first, second = made_run(0), made_run(1, split=made_split(30), image_size=80)
    other = replace(second, results=replace(second.results, images=("other", b"", first.results.images[2])))
    table = comparison([first, other])
    warning = "Not all runs saw the images of seed=0, so their errors do not compare. seed=1: --image_size=80."
    assert warning in read(table).text
    assert "★" not in "".join(text for row in cells(table) for text in row[1:5])
    assert "Not all runs" not in comparison([first, first])
    page = read(render([first, other]))
    assert page.tags.count("h2") == read(render([first])).tags.count("h2")  # one section, with two parts
    assert "of each of the 40 or 30 images" in page.text


def test_what_a_run_lacks_is_said_in_its_row():
    whole, trained = made_run(0), made_run(1, rows=[row for row in made_rows(40) if row["split"] == "train"])
    bare = replace(made_run(2), rows=[], results=None, problems=("no checkpoint yet",))
    lost = replace(bare, number=3, label="runs/3", config=None, record=None, problems=(f"written by {NASTY}",))
    page = read(render([whole, trained, bare, lost]))
    rows = cells(comparison([whole, trained, bare, lost]))
    assert rows[2][4] == "no validation recorded"
    assert rows[3][:9] == ["seed=2", *[NOTHING] * 8]
    assert rows[4:] == [["no checkpoint yet"], ["runs/3"], [f"written by {' '.join(NASTY.split())}"]]
    assert page.text.count("This run recorded none.") == 3  # magnitudes
    assert page.tags.count("script") == 2


def test_the_curves_are_the_rows():
    runs = [made_run(0), made_run(1, rows=made_rows(40, seconds=False))]
    runs[1].rows[4]["loss"] = float("nan")
    data = read(render(runs)).curves
    assert [chart["title"] for chart in data["charts"]] == [
        "loss (nats)", "top-1 error (%)", "learning rate", "training throughput (images/s)",
        *["last update / weights", "mean |weight|"] * 2,
    ]  # fmt: skip
    for chart, column in zip(data["charts"], ("loss", "top1_error", "learning_rate", "images_per_second"), strict=False):
        assert len(chart["series"]) == (4 if column in ("loss", "top1_error") else 2)
        for series in chart["series"]:
            track = data["tracks"][series["track"]]
            mine = runs[int(track["run"][-1])].rows_of(track["split"])
            assert series["values"] == [None if math.isnan(row[column]) else row[column] for row in mine]
            assert track["epoch"] == [row["epoch"] for row in mine]
            assert track["step"] == [row["step"] for row in mine]
            assert track["seconds"] == ([2.0 * row["step"] for row in mine] if track["run"] == "seed=0" else None)
            assert series["dash"] == {"train": "", "validation": "6 4"}[track["split"]]
            assert (series["colour"], series["name"][:6]) == (int(track["run"][-1]), track["run"])
    ratios = data["charts"][4]["series"]
    assert [series["layer"] for series in ratios] == ["conv1", "fc8"]
    assert ratios[1]["values"] == pytest.approx([1e-4 * step / 0.2 for step in range(10, 91, 10)])
    assert data["drops"] == [{"colour": 0, "epoch": 60.0, "step": 60, "seconds": 120.0, "rate": 0.001}]


def test_a_leap_after_a_drop_is_explained_where_it_can_happen():
    """0.9 to the power of 22 is a tenth, by which the rate of the made runs falls."""
    inside, outside = made_run(0), made_run(1, rate_in_velocity=False)
    assert "10 times too large. Momentum 0.9 takes 22 steps" in read(render([inside, inside])).text
    page = read(render([outside])).text
    assert "Dotted: the learning rate falls." in page
    assert "leap" not in page


def test_long_curves_are_thinned_and_keep_their_last_point():
    rows = [record_row(step, "train", loss=float(step % 7)) for step in range(3 * POINTS + 2)]
    curves = Curves([made_run(0, rows=rows)])
    steps, (series,) = curves.tracks[0].step, curves.learning("loss", "loss").series
    assert len(steps) <= POINTS
    assert steps[-1] == 3 * POINTS + 1
    assert len(set(np.diff(steps))) == 1
    assert series.values == [float(step % 7) for step in steps]


def places(svg: str) -> list[list[tuple[float, float]]]:
    """The points of the lines in a drawing."""
    lines = re.findall(r'<polyline class="line [^>]*points="([^"]*)"', svg)
    return [[tuple(map(float, point.split(","))) for point in line.split()] for line in lines]


def test_a_page_without_scripts_has_the_curves():
    """The validation loss falls from 4 - 1/9 to 3 over 90 epochs, on an axis from 0 to the largest training loss."""
    curves = Curves([made_run(0)])
    chart = curves.learning("loss", "loss (nats)", drops=True)
    _, line = places(svg := drawing(chart, curves))
    top = max(row["loss"] for row in made_rows(90))
    for number, (x, y) in enumerate(line, start=1):
        assert x == pytest.approx(LEFT + (RIGHT_EDGE - LEFT) * number / 9, abs=0.06)
        assert y == pytest.approx(BOTTOM - (BOTTOM - TOP) * (4 - number / 9) / top, abs=0.06)
    assert f'<line class="drop c0" x1="{LEFT + (RIGHT_EDGE - LEFT) * 60 / 90:.1f}"' in svg
    assert "rate 0.001" in svg
    svg = drawing(curves.learning("learning_rate", "rate", log=True, only="train"), curves)
    (line,) = places(svg)
    assert line[0][1] - TOP == pytest.approx((BOTTOM - TOP) * math.log10(1.15) / math.log10(10 * 1.15**2), abs=0.06)
    assert [text for text in re.findall(r">([^<>]+)</text>", svg) if text in ("0.001", "0.01")] == ["0.001", "0.01"]


def test_charts_with_one_title_have_one_scale():
    """Equal values of two runs stand at equal heights, though one run has a larger one and goes on for longer."""
    rows = made_rows(20)
    for layer in rows[-1]["magnitudes"].values():
        layer["kernel"] = 50.0
    runs = [made_run(0, rows=made_rows(20)), made_run(1, rows=rows)]
    curves = Curves(runs)
    charts = [curves.magnitudes(one)[1] for one in runs]
    first, second = (places(drawing(chart, curves)) for chart in charts)
    assert [line[0] for line in first] == [line[0] for line in second]
    assert first[0][1] != second[0][1]
    empty = Curves([made_run(0, rows=[])])
    assert "nothing recorded" in drawing(empty.learning("loss", "loss"), empty)


def test_errors_of_a_class_stand_side_by_side():
    runs = [made_run(0), made_run(1)]
    head, *rows = cells(classes.errors([(one, one.results) for one in runs]))
    assert head == ["class", "seed=0", "seed=1"]
    labels = made_split().labels
    for number, row in enumerate(rows):
        mine = labels == number
        assert row[0] == f"colour {number} {mine.sum()} images"
        for text, one in zip(row[1:], runs, strict=True):
            guesses = one.results.judged.guesses[mine]
            wrong = guesses[guesses != number]
            assert text.startswith(f"{one.label} {'✗' if len(wrong) else '✓'} {100 * len(wrong) / mine.sum():.0f} %")
            assert not len(wrong) or f"colour {np.bincount(wrong).argmax()}" in text


def test_of_many_classes_the_worst_are_listed():
    split = made_split(120, classes=60)
    group = [(made_run(number), made_results(number, split, 60)) for number in (0, 1)]
    _, *rows = cells(classes.errors(group))
    wrong = np.array([np.bincount(split.labels[one.judged.guesses != split.labels], minlength=60) for _, one in group])
    assert len(rows) == classes.LISTED
    listed = [int(row[0].split()[1]) for row in rows]
    sums = wrong.sum(0)
    assert sums[listed].tolist() == sorted(sums.tolist(), reverse=True)[: classes.LISTED]
    *maps, pairs = classes.confusions(group)
    for (_, results), picture in zip(group, maps, strict=True):
        ((_, image),) = read(picture).images
        counts = classes.counts_of(results)
        assert np.asarray(image)[..., 3].tolist() == (255 * counts / 2).round().tolist()
        colours = {tuple(pixel) for pixel in np.asarray(image)[np.eye(60, dtype=bool), :3].tolist()}
        assert colours == {tuple(bytes.fromhex(RIGHT[1:]))}
        assert tuple(np.asarray(image)[0, 1, :3].tolist()) == tuple(bytes.fromhex(WRONG[1:]))
    right, taken = (int(name.split()[1]) for name in cells(pairs)[1][0].split(" → "))
    assert cells(pairs)[1][1:] == [f"{classes.counts_of(results)[right, taken]} of 2" for _, results in group]


def test_a_matrix_has_the_counts_in_the_order_of_the_set():
    one = made_run(0)
    (matrix,) = classes.confusions([(one, one.results)])
    head, *rows = cells(matrix)
    assert head == ["", *map(str, range(14))]
    counts = classes.counts_of(one.results)
    for number, row in enumerate(rows):
        told = [int(text.removeprefix("✓") or 0) for text in row[1:]]
        assert told == counts[number].tolist()
        assert row[0] == f"{number} colour {number}"
        assert all(("✓" in text) == (place == number) for place, text in enumerate(row[1:]) if text)


def test_all_runs_say_what_they_see_in_the_same_images():
    runs = [made_run(0), made_run(1)]
    cards = pictures.predictions([(one, one.results) for one in runs])
    split = made_split()
    assert len(cards) == 8
    for number, card in enumerate(cards):
        page, right = read(card), f"colour {split.labels[number]}"
        ((words, image),) = page.images  # once for all runs
        assert words == right
        assert np.abs(np.asarray(image).astype(float).mean((0, 1)) - split.images[number].mean((0, 1))).max() < 5
        for one, part in zip(runs, card.split('<div class="guess">')[1:], strict=True):
            probabilities = one.results.judged.probabilities[number]
            best = np.argsort(-probabilities, kind="stable")[:5]
            bars = re.findall(r'"bar (\w*)"><i style="width:([\d.]+)%"></i><span><span>([^<]*)</span><span>(\d+) %', part)
            wanted = []
            for place, guess in enumerate(best):
                kind = "right" if guess == split.labels[number] else "wrong" if place == 0 else ""
                mark = {"right": "✓ ", "wrong": "✗ ", "": ""}[kind]
                share = 100 * float(probabilities[guess])
                wanted.append((kind, f"{share:.1f}", f"{mark}colour {guess}", f"{share:.0f}"))
            assert bars == wanted


def test_three_runs_fit_into_two_megabytes():
    """Of 256 pixels of noise, which JPEG packs worse than photographs, with curves as long as they may be."""
    split = made_split(size=256)
    page = render([made_run(number, rows=made_rows(1100), split=split) for number in range(3)])
    assert len(page.encode()) < 2e6
    assert max(max(image.size) for words, image in read(page).images if words.startswith("colour")) == 192
    assert all(source.startswith("data:") for source in read(page).sources)  # no other file, no network
    assert "http" not in re.sub(r'"http://www.w3.org/2000/svg"', "", page)


def test_what_a_run_says_cannot_become_part_of_the_page():
    clean, found = made_run(0), made_run(0)
    results = found.results
    stored = replace(results.trained.stored, classes=(NASTY, *results.trained.classes[1:]))
    results = replace(
        results, trained=replace(results.trained, stored=stored), images=(NASTY, b"", (NASTY,)),
        guessed=[(NASTY, results.guessed[0][1], [{"class": NASTY, "probability": 0.5}], NASTY)],
        queries=[(results.queries[0][0], NASTY, [replace(results.queries[0][2][0], name=NASTY)])],
    )  # fmt: skip
    record = found.record | {"commit": NASTY, "python": NASTY}
    config = replace(found.config, workdir=NASTY, dataset=NASTY, init_layers=(NASTY,))
    nasty = replace(found, label=NASTY, workdir=NASTY, config=config, record=record, results=results)
    page, plain = read(render([nasty, clean])), read(render([clean, clean]))
    assert page.tags.count("script") == plain.tags.count("script") == 2
    assert set(page.tags) <= set(plain.tags)
    assert "".join(page.words).count(NASTY) > 10
    assert NASTY in [words for words, _ in page.images]
    assert page.curves["charts"][0]["series"][0]["name"] == f"{NASTY}, train"
