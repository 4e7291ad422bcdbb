"""The claims: their files, their statistics against SciPy's, and one of them from flag files to the scoreboard."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from networks import ROOT
from scipy import stats

from alexnet_jax.config import changed_flags, from_words
from alexnet_jax.errors import UserError
from experiments import figure1
from experiments.claims import scoreboard
from experiments.claims.claim import CONFIDENCE, FOLDER, judge, read_claim
from experiments.claims.measures import MEASURES, colour_selectivity

CLAIMS = sorted(path.stem for path in FOLDER.glob("*.toml"))


@pytest.mark.parametrize("name", CLAIMS)
def test_a_claim_compares_runs_that_differ_in_one_flag(name, monkeypatch):
    monkeypatch.chdir(ROOT)  # flag files name each other from there
    claim = read_claim(name)
    assert claim.measure in MEASURES
    configs = [from_words([f"--flagfile={FOLDER}/{arm.flagfile}.cfg"]) for arm in claim.arms.values()]
    # Figure 1 compares the networks each at its best rate.
    assert len(changed_flags(*configs)) == {"ten_views": 0, "tower_colours": 0, "relu": 2}.get(name, 1)
    header = (FOLDER / f"{name}.toml").read_text().splitlines()[0]
    assert header == f"# python -m experiments.claims --claim={name} --seeds=3"


def test_an_unknown_claim_is_said_with_those_that_there_are():
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
    assert (tmp_path / "results" / "claims" / "scoreboard.png").stat().st_size > 5000
    readme.write_text("no marks")
    with pytest.raises(UserError, match="are missing"):
        scoreboard.update(tmp_path)


def test_records_do_not_make_the_next_one_that_of_changed_code(tmp_path):
    shutil.copytree(ROOT / "alexnet_jax", tmp_path / "alexnet_jax", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "experiments" / "results").mkdir(parents=True)
    (tmp_path / "experiments" / "README.md").write_text("a table")
    git = ["git", "-c", "user.name=n", "-c", "user.email=e"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "all"]):
        subprocess.run([*git, *command], cwd=tmp_path, check=True)

    def commit() -> str:
        code = "from alexnet_jax.workdir import provenance; print(provenance()['commit'])"
        done = subprocess.run([sys.executable, "-B", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    clean = commit()
    assert len(clean) == 40
    (tmp_path / "experiments" / "results" / "claim.json").write_text("{}")
    (tmp_path / "experiments" / "README.md").write_text("another table")
    assert commit() == clean
    (tmp_path / "alexnet_jax" / "ops.py").write_text("")
    assert commit() == clean + "+"


@pytest.mark.slow
def test_a_claim_from_its_flag_files_to_the_scoreboard(tmp_path):
    for folder in ("alexnet_jax", "experiments"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", "results"))
    flagfile = tmp_path / "experiments" / "claims" / "groceries.cfg"
    flagfile.write_text(flagfile.read_text() + "--image_size=64\n--crop_size=63\n--steps=2\n")
    command = [sys.executable, "-m", "experiments.claims", "--claim=ten_views", "--seeds=2"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "experiments" / "results" / "claims" / "ten_views.json").read_text())
    for arm, views in (("ten_views", 10), ("centre", 1)):
        runs = [tmp_path / "runs" / "claims" / "groceries" / f"seed{seed}" for seed in (0, 1)]
        scores = [json.loads((run / f"test_{views}_views.json").read_text()) for run in runs]
        assert record["values"][arm] == [score["top1_error"] for score in scores]
        assert [(score["views"], score["examples"]) for score in scores] == [(views, 661)] * 2
    assert "| Ten views are better than one |" in (tmp_path / "experiments" / "README.md").read_text()

    flagfile.write_text(flagfile.read_text() + "--momentum=0.8\n")
    stale = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert stale.returncode == 1
    assert "--momentum was 0.9 and is now 0.8. Use a new --out" in stale.stderr


def test_figure_1_has_the_runs_of_both_arms(tmp_path):
    with pytest.raises(UserError, match="has no run of figure1_relu: python -m experiments"):
        figure1.curves_of(tmp_path)
    for arm, errors in (("relu", [60.0, 20.0]), ("tanh", [80.0, 50.0, 25.0])):
        for seed in (0, 1):
            run = tmp_path / f"figure1_{arm}" / f"seed{seed}"
            run.mkdir(parents=True)
            rows = [
                {"split": "train", "step": n, "epoch": n / 5, "top1_error": error + seed} for n, error in enumerate(errors)
            ]
            rows.append({"split": "validation", "step": 9, "epoch": 9.0, "top1_error": 0.0})
            (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    curves = figure1.curves_of(tmp_path)
    assert curves["tanh"] == [[(0.0, 80.0), (0.2, 50.0), (0.4, 25.0)], [(0.0, 81.0), (0.2, 51.0), (0.4, 26.0)]]
    figure1.write_curves(curves, tmp_path / "curves.csv")
    assert (tmp_path / "curves.csv").read_text().splitlines()[-1] == "tanh,1,0.4,26"
    assert len((tmp_path / "curves.csv").read_text().splitlines()) == 1 + 2 * 2 + 2 * 3
    lines = figure1.draw(curves, 25.0, 2.0).axes[0].get_lines()
    means = [line for line in lines if line.get_label() in ("ReLU", "tanh")]
    np.testing.assert_allclose([line.get_ydata()[0] for line in means], [60.5, 80.5])
