"""The claims: their files, their statistics against SciPy's, and one claim from flag files to the scoreboard."""

import json
import shutil
import subprocess
import sys
from dataclasses import asdict

import numpy as np
import pytest
from matplotlib import pyplot as plt
from networks import CROP, ROOT, SIZE, record_row, run
from PIL import Image
from scipy import stats

from alexnet_jax.config import changed_flags, from_words
from alexnet_jax.run import workdir
from alexnet_jax.system.errors import UserError
from alexnet_jax.system.files import read_json
from alexnet_jax.system.signals import Interrupted
from experiments import figure1
from experiments.claims import __main__ as command
from experiments.claims import runs, scoreboard
from experiments.claims.claim import CONFIDENCE, FOLDER, judge, read_claim
from experiments.claims.forest import VERDICTS, draw_forest, effect_text
from experiments.claims.measures import MEASURES, colour_selectivity

CLAIMS = sorted(path.stem for path in FOLDER.glob("*.toml"))


@pytest.mark.parametrize("name", CLAIMS)
def test_a_claim_compares_runs_that_differ_in_one_flag(name, monkeypatch):
    monkeypatch.chdir(ROOT)  # flag files include each other from there
    claim = read_claim(name)
    assert claim.measure in MEASURES
    configs = [from_words([f"--flagfile={FOLDER}/{arm.flagfile}.cfg"]) for arm in claim.arms.values()]
    # Figure 1 compares each network at its best rate.
    assert len(changed_flags(*configs)) == {"ten_views": 0, "tower_colours": 0, "relu": 2}.get(name, 1)
    header = (FOLDER / f"{name}.toml").read_text().splitlines()[0]
    assert header == f"# python -m experiments.claims --claim={name} --seeds=3"


def test_an_unknown_claim_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match=r"--claim=relus is not known; there are .*ten_views"):
        read_claim("relus")


@pytest.mark.parametrize("ratio", [False, True])
@pytest.mark.parametrize(
    ("other", "verdict"),
    [([40, 42, 44], "supported"), ([30, 33, 31], "contradicted"), ([39, 37, 38], "not seen at this scale")],
)
def test_the_verdict_follows_from_a_paired_t_test(other, verdict, ratio):
    favoured = [38.0, 38.5, 37.5]
    result = judge(favoured, other, ratio=ratio)
    scale = np.log if ratio else np.asarray
    theirs = stats.ttest_rel(scale(other), scale(favoured)).confidence_interval(CONFIDENCE)
    np.testing.assert_allclose(scale([result.low, result.high]), theirs, rtol=1e-9)
    assert result.verdict == verdict


def test_one_seed_is_no_evidence():
    with pytest.raises(UserError, match="at least two"):
        judge([1.0], [2.0])


def test_colour_selectivity_of_grey_and_of_opponent_colours():
    shape = np.random.default_rng(0).normal(size=(2, 11, 11, 1, 48))
    grey, red_green = np.array([1.0, 1, 1]), np.array([1.0, -1, 0])
    np.testing.assert_allclose(colour_selectivity(shape * grey[:, None]), 0, atol=1e-12)
    np.testing.assert_allclose(colour_selectivity(shape * red_green[:, None]), 1)
    np.testing.assert_allclose(colour_selectivity(shape * np.array([1.0, 0, 0])[:, None]), 2 / 3)  # red alone


def test_the_scoreboard_changes_nothing_but_its_table(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n\n{scoreboard.BEGIN}\nold\n{scoreboard.END}\n\nafter\n")
    (tmp_path / "results" / "claims").mkdir(parents=True)
    record = {
        "claim": "Dropout helps", "paper": "no number", "unit": "%", "scale": "small", "ratio": False,
        "effect": 2.0, "low": 1.0, "high": 3.0, "verdict": "supported", "command": "python",
        "values": {"with": [38.0, 40.0], "without": [40.0, 42.0]},
    }  # fmt: skip
    (tmp_path / "results" / "claims" / "dropout.json").write_text(json.dumps(record))
    scoreboard.update(tmp_path)
    text = readme.read_text()
    assert text.startswith(f"before\n\n{scoreboard.BEGIN}\n| claim |")
    assert text.endswith(f"{scoreboard.END}\n\nafter\n")
    assert "| with 39 ± 1.4; without 41 ± 1.4 % | 2 (1 to 3) | small | **supported** | `python` |" in text
    with Image.open(tmp_path / "results" / "claims" / "scoreboard.png") as picture:
        assert picture.size[0] == 11 * 150
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    assert (np.abs(pixels - (0, 114, 178)).sum(axis=2) < 10).sum() > 300  # the interval, in the colour of `supported`
    readme.write_text("no marks")
    with pytest.raises(UserError, match="are missing"):
        scoreboard.update(tmp_path)


def claim_record(claim: str, favoured: list[float], other: list[float], *, unit: str = "% top-1 error", ratio: bool = False):
    """A record with its true result."""
    about = {"claim": claim, "paper": "no number", "unit": unit, "scale": "small", "command": "python", "ratio": ratio}
    return about | {"values": {"a": favoured, "b": other}} | asdict(judge(favoured, other, ratio=ratio))


def test_the_forest_has_a_row_for_each_claim_beside_the_line_of_no_effect():
    records = [
        claim_record("small", [40.0, 41.0, 42.0], [41.0, 41.5, 43.5]),
        claim_record("quotient", [2.0, 2.0, 2.0], [4.0, 4.2, 3.8], unit="epochs until 25 %", ratio=True),
        claim_record("against", [9.0, 8.0, 9.0], [1.0, 1.0, 1.5], unit="epochs"),
        claim_record("large", [40.0, 40.0, 40.0], [50.0, 51.0, 49.0]),
    ]
    points, epochs, quotients = draw_forest(records).axes
    by_name = {record["claim"]: record for record in records}
    for axis, names, zero in ((points, ["large", "small"], 0), (epochs, ["against"], 0), (quotients, ["quotient"], 1)):
        assert [label.get_text() for label in axis.get_yticklabels()] == names
        *rows, line = axis.get_lines()
        assert (line.get_xdata(), line.get_ydata()) == ([zero, zero], [0, 1])
        for place, name in enumerate(names):
            record, (interval, effect, seeds) = by_name[name], rows[3 * place : 3 * place + 3]
            assert interval.get_xydata().tolist() == [[record["low"], place], [record["high"], place]]
            assert effect.get_xydata().tolist() == [[record["effect"], place]]
            colour, marker = VERDICTS[record["verdict"]]
            assert (effect.get_color(), effect.get_marker()) == (colour, marker)
            pairs = zip(*record["values"].values(), strict=True)
            assert seeds.get_xdata().tolist() == [b / a if zero else b - a for a, b in pairs]
            assert seeds.get_markersize() < effect.get_markersize()
            assert axis.texts[place].get_text() == f"{effect_text(record)}\n{record['verdict']}"
        low, high = axis.get_xlim()  # the line of no effect is in the middle
        assert (np.sqrt(low * high) if zero else (low + high) / 2) == pytest.approx(zero, abs=1e-9)
        assert axis.get_xscale() == ("log" if zero else "linear")
    assert points.get_ylim()[0] > points.get_ylim()[1]  # the first row is on top
    assert points.get_xlabel() == "difference of the arms: points of top-1 error"
    assert quotients.get_xlabel() == "quotient of the arms: epochs until 25 % (logarithmic axis)"
    assert [record["verdict"] for record in records] == [
        "supported", "supported", "contradicted", "supported",
    ]  # fmt: skip
    plt.close("all")


def test_without_a_claim_only_table_and_figure_are_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "FOLDER", tmp_path / "claims")
    (tmp_path / "README.md").write_text(f"{scoreboard.BEGIN}\n{scoreboard.END}\n")
    (tmp_path / "results" / "claims").mkdir(parents=True)
    record = claim_record("Dropout helps", [38.0, 40.0], [40.0, 42.5])
    (tmp_path / "results" / "claims" / "dropout.json").write_text(json.dumps(record))
    done = run("experiments.claims")
    assert (done.returncode, done.stdout) == (0, f"{tmp_path}/results/claims/scoreboard.png\n")
    assert "| Dropout helps | no number |" in (tmp_path / "README.md").read_text()
    assert {path.name for path in (tmp_path / "results" / "claims").iterdir()} == {
        "dropout.json", "scoreboard.png", "scoreboard.svg",
    }  # fmt: skip


def test_new_records_do_not_count_as_changed_code(tmp_path, monkeypatch):
    for file in ("alexnet_jax/run/workdir.py", "experiments/README.md", "experiments/results/old.json"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("as it was")
    git = ["git", "-c", "user.name=n", "-c", "user.email=e"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "all"]):
        subprocess.run([*git, *words], cwd=tmp_path, check=True)
    head = subprocess.run(
        [*git, "rev-parse", "HEAD"], cwd=tmp_path, check=True, capture_output=True, text=True
    ).stdout.strip()
    monkeypatch.setattr(workdir, "__file__", str(tmp_path / "alexnet_jax" / "workdir.py"))
    assert workdir.provenance()["commit"] == head
    (tmp_path / "experiments" / "results" / "claim.json").write_text("{}")
    (tmp_path / "experiments" / "results" / "old.json").write_text("{}")
    (tmp_path / "experiments" / "README.md").write_text("another table")
    assert workdir.provenance()["commit"] == head
    (tmp_path / "alexnet_jax" / "workdir.py").write_text("")
    assert workdir.provenance()["commit"] == head + "+"


def test_a_step_of_a_claim_is_an_entry_point_in_a_process_of_its_own(tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$PWD" "$@"\nexit "${3#--seed=}"\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    assert runs.call("train", "--seed=0", "--views=1") == f"{ROOT} -m alexnet_jax.train --seed=0 --views=1\n"
    with pytest.raises(UserError, match=r"'-m alexnet_jax.train --seed=1' ended with status 1, see above"):
        runs.call("train", "--seed=1")
    with pytest.raises(Interrupted, match="train was stopped: rerun the same command to resume"):
        runs.call("train", "--seed=75")


@pytest.mark.slow
def test_a_claim_from_its_flag_files_to_the_scoreboard(tmp_path, monkeypatch):
    folder = tmp_path / "experiments" / "claims"
    folder.mkdir(parents=True)
    shutil.copy(ROOT / "experiments" / "README.md", tmp_path / "experiments")
    flagfile = folder / "groceries.cfg"
    small = f"--architecture=paper_eighth\n--image_size={SIZE}\n--crop_size={CROP}\n--batch_size=8\n--mesh=1x1\n--steps=2\n"
    flagfile.write_text((FOLDER / "groceries.cfg").read_text() + small)
    began = []

    def call(module: str, *words: str) -> str:
        """In this process. The test above uses a process of its own."""
        began.append(module)
        done = run(module, *words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    monkeypatch.setattr(command, "FOLDER", folder)
    monkeypatch.setattr(runs, "call", call)
    words = ["--claim=ten_views", "--seeds=2", f"--out={tmp_path}/runs", f"--data_dir={tmp_path}/data"]
    done = run("experiments.claims", *words)
    assert done.returncode == 0, done.stderr
    assert began == ["train", "evaluate"] * 4
    assert done.stdout == f"{tmp_path}/experiments/results/claims/ten_views.json\n"
    record = json.loads((tmp_path / "experiments" / "results" / "claims" / "ten_views.json").read_text())
    for arm, views in (("ten_views", 10), ("centre", 1)):
        workdirs = [tmp_path / "runs" / "groceries" / f"seed{seed}" for seed in (0, 1)]
        scores = [read_json(workdir / f"test_{views}_views.json") for workdir in workdirs]
        assert record["values"][arm] == [score["top1_error"] for score in scores]
        assert [(score["views"], score["examples"]) for score in scores] == [(views, 661)] * 2
    assert "| Ten views are better than one |" in (tmp_path / "experiments" / "README.md").read_text()

    assert run("experiments.claims", *words).returncode == 0
    assert len(began) == 8  # finished runs are kept
    flagfile.write_text(flagfile.read_text() + "--momentum=0.8\n")
    stale = run("experiments.claims", *words)
    assert stale.returncode == 1
    assert "--momentum was 0.9 and is now 0.8. Use a new --out" in stale.stderr


def test_figure_1_has_the_runs_of_both_arms(tmp_path):
    with pytest.raises(UserError, match="has no run of figure1_relu: python -m experiments"):
        figure1.curves_of(tmp_path)
    for arm, errors in (("relu", [60.0, 20.0]), ("tanh", [80.0, 50.0, 25.0])):
        for seed in (0, 1):
            run = tmp_path / f"figure1_{arm}" / f"seed{seed}"
            run.mkdir(parents=True)
            rows = [record_row(n, "train", epoch=n / 5, top1_error=error + seed) for n, error in enumerate(errors)]
            rows.append(record_row(9, "validation", top1_error=0.0))
            (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    curves = figure1.curves_of(tmp_path)
    assert curves["tanh"] == [[(0.0, 80.0), (0.2, 50.0), (0.4, 25.0)], [(0.0, 81.0), (0.2, 51.0), (0.4, 26.0)]]
    figure1.write_curves(curves, tmp_path / "curves.csv")
    assert (tmp_path / "curves.csv").read_text().splitlines()[-1] == "tanh,1,0.4,26"
    assert len((tmp_path / "curves.csv").read_text().splitlines()) == 1 + 2 * 2 + 2 * 3
    figure = figure1.draw(curves, 25.0, 2.0)
    lines = figure.axes[0].get_lines()
    means = [line for line in lines if line.get_label() in ("ReLU", "tanh")]
    np.testing.assert_allclose([line.get_ydata()[0] for line in means], [60.5, 80.5])
    plt.close(figure)
