"""The scoreboard of claims: table, CSV and figure from records."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from matplotlib import pyplot as plt
from networks import ROOT, run
from PIL import Image

from alexnet_jax.system.errors import UserError
from experiments.claims import __main__ as command
from experiments.claims import scoreboard
from experiments.claims.claim import read_claim
from experiments.claims.forest import VERDICTS, blind, draw_forest, effect_text
from experiments.claims.verdict import judge

TOWERS = {
    "unit": "%", "scale": "small", "command": "python", "values": {"with": [38.0, 40.0], "without": [50.0, 52.0]},
    "stuck": {"with": [], "without": [2]},
}  # fmt: skip


def write_records(folder, **records) -> None:
    (folder / "results" / "claims").mkdir(parents=True)
    (folder / "README.md").write_text(f"before\n\n{scoreboard.BEGIN}\nold\n{scoreboard.END}\n\nafter\n")
    for name, record in records.items():
        (folder / "results" / "claims" / f"{name}.json").write_text(json.dumps(record))


def test_the_scoreboard_changes_nothing_but_its_table(tmp_path):
    write_records(tmp_path, two_towers=TOWERS)
    scoreboard.update(tmp_path)
    readme = tmp_path / "README.md"
    text = readme.read_text()
    assert text.startswith(f"before\n\n{scoreboard.BEGIN}\n| claim |")
    assert text.endswith(f"{scoreboard.END}\n\nafter\n")
    # t is 2.92 with two degrees of freedom, the standard error 1.414. The TOML states a standard deviation of 0.5.
    assert (
        "| with 39 ± 1.4; without 51 ± 1.4 (1 stuck, kept) % | 12 (7.87 to 16.1) | 2 alone, 2.8 in the family | small |"
        in text
    )
    assert "| **confirmed** | `python` |" in text
    with (tmp_path / "results" / "claims" / "verdicts.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert (row["claim"], row["runs"], row["effect"], row["p"], row["verdict"]) == (
        "two_towers",
        "2 2",
        "12",
        "0.027212",  # of two tests, that of the margin the other
        "confirmed",
    )
    with Image.open(tmp_path / "results" / "claims" / "scoreboard.png") as picture:
        assert picture.size[0] == 11 * 150
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    assert (np.abs(pixels - (0, 114, 178)).sum(axis=2) < 10).sum() > 300  # the interval, in the colour of `confirmed`
    readme.write_text("no marks")
    with pytest.raises(UserError, match="are missing"):
        scoreboard.update(tmp_path)


def test_a_record_without_a_claim_is_refused(tmp_path):
    write_records(tmp_path, towers=TOWERS)
    with pytest.raises(UserError, match=r"towers.json belongs to no claim: add .*claims/towers.toml, or move"):
        scoreboard.update(tmp_path)


def test_the_page_is_what_the_records_give(tmp_path):
    """The committed table and CSV are those of the committed records."""
    paths = sorted((ROOT / "experiments" / "results" / "claims").glob("*.json"))
    rows = scoreboard.judged(paths)
    page = (ROOT / "experiments" / "README.md").read_text()
    assert "\n".join(map(scoreboard.line, rows)) == page.partition(f"{scoreboard.HEAD}\n")[2].partition("\n<!--")[0]
    with (paths[0].parent / "verdicts.csv").open() as file:
        assert [row["verdict"] for row in csv.DictReader(file)] == [row.judgement.words for row in rows]


def test_the_forest_has_a_row_for_each_claim_beside_the_line_of_no_effect():
    plain, noise, epochs = (
        read_claim("two_towers"),
        read_claim("colour_noise_form"),
        replace(read_claim("init_003"), unit="epochs", ratio=False),
    )
    family = [
        (replace(plain, claim="small"), {"a": [40.0, 41.0, 42.0], "b": [41.0, 41.5, 43.5]}),
        (replace(read_claim("relu"), claim="quotient"), {"a": [2.0, 2.1, 2.0], "b": [4.0, 4.2, 3.8]}),
        (replace(epochs, claim="against"), {"a": [9.0, 8.0, 9.0], "b": [1.0, 1.0, 1.5]}),
        (replace(plain, claim="large"), {"a": [40.0, 40.5, 40.0], "b": [50.0, 51.0, 49.0]}),
        (replace(noise, claim="as good"), {"a": [40.0, 41.0, 42.0], "b": [41.0, 40.0, 42.0]}),
    ]
    judged = [(claim, judgement) for (claim, _), judgement in zip(family, judge(family), strict=True)]
    by_name = {claim.claim: (claim, judgement) for claim, judgement in judged}
    points, of_epochs, quotients = draw_forest(judged).axes
    panels = ((points, ["large", "small", "as good"], 0), (of_epochs, ["against"], 0), (quotients, ["quotient"], 1))
    for axis, names, zero in panels:
        assert [label.get_text() for label in axis.get_yticklabels()] == names
        *rows, line = axis.get_lines()
        assert (line.get_xdata(), line.get_ydata()) == ([zero, zero], [0, 1])
        for place, name in enumerate(names):
            (claim, judgement), (interval, effect, paper) = by_name[name], rows[3 * place : 3 * place + 3]
            assert interval.get_xydata().tolist() == [[judgement.low, place], [judgement.high, place]]
            assert effect.get_xydata().tolist() == [[judgement.effect, place]]
            assert (effect.get_color(), effect.get_marker()) == VERDICTS[judgement.verdict]
            np.testing.assert_equal(paper.get_xydata().tolist(), [[claim.paper_effect, place]])
            box = axis.patches[place].get_bbox()
            assert (box.x0, box.x1) == pytest.approx(blind(claim, judgement))
            assert axis.texts[place].get_text() == f"{effect_text(claim, judgement)}\n{judgement.words}"
        low, high = axis.get_xlim()  # the line of no effect is in the middle
        assert (np.sqrt(low * high) if zero else (low + high) / 2) == pytest.approx(zero, abs=1e-9)
        assert axis.get_xscale() == ("log" if zero else "linear")
    assert points.get_ylim()[0] > points.get_ylim()[1]  # the first row is on top
    assert points.get_xlabel() == "difference of the arms: points of top-1 error"
    assert quotients.get_xlabel().startswith("quotient of the arms: epochs until the training error is 25 %")
    assert [judgement.verdict for _, judgement in judged] == [
        "underpowered", "direction only", "contradicted", "confirmed", "underpowered",
    ]  # fmt: skip
    plt.close("all")


def test_what_could_not_be_seen_lies_around_the_hypothesis():
    (_, plain), (_, margin), (_, times) = judged = [
        (claim, replace(judge([(claim, {"a": [1.0, 2.0], "b": [1.0, 2.0]})])[0], visible_in_family=4.0))
        for claim in (read_claim("two_towers"), read_claim("colour_noise_form"), read_claim("relu"))
    ]
    assert plain.verdict == margin.verdict == times.verdict == "underpowered"
    assert [blind(*one) for one in judged] == [(-4, 4), (-4.5, 3.5), (0.25, 4)]


def test_without_a_claim_only_the_verdicts_are_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "FOLDER", tmp_path / "claims")
    write_records(tmp_path, two_towers=TOWERS)
    done = run("experiments.claims")
    assert (done.returncode, done.stdout) == (0, f"{tmp_path}/results/claims/scoreboard.png\n")
    assert "| Two towers are better than one of the same size | 1.7 points" in (tmp_path / "README.md").read_text()
    assert {path.name for path in (tmp_path / "results" / "claims").iterdir()} == {
        "scoreboard.png", "scoreboard.svg", "two_towers.json", "verdicts.csv",
    }  # fmt: skip


def test_the_plan_trains_nothing():
    done = run("experiments.claims", "--plan")
    assert done.returncode == 0
    assert "\ntwo_towers: 4 runs of each arm for an effect of 1 (SD 0.5); " in done.stdout


def test_a_claim_of_one_run_is_refused_before_it_is_trained():
    done = run("experiments.claims", "--claim=two_towers", "--seeds=1")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "--seeds=1: a claim compares arms of at least 2 runs" in done.stderr
