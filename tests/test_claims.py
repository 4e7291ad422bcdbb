"""The claims: their files, their measures, and one claim from flag files to the scoreboard."""

import json
import re
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib import pyplot as plt
from networks import CROP, ROOT, SIZE, record_row, run

from alexnet_jax.config import from_words
from alexnet_jax.run import workdir
from alexnet_jax.run.changes import changed_flags
from alexnet_jax.system.errors import UserError
from alexnet_jax.system.files import read_json
from alexnet_jax.system.signals import Interrupted
from experiments import figure1
from experiments.claims import __main__ as command
from experiments.claims import claim as claims
from experiments.claims import measures, rates, runs
from experiments.claims.claim import FOLDER, read_claim
from experiments.claims.measures import MEASURES, colour_selectivity, epochs_until, is_stuck

CLAIMS = sorted(path.stem for path in FOLDER.glob("*.toml"))


@pytest.mark.parametrize("name", CLAIMS)
def test_a_claim_compares_runs_that_differ_in_one_flag(name, monkeypatch):
    monkeypatch.chdir(ROOT)  # flag files include each other from there
    claim = read_claim(name)
    assert claim.measure in MEASURES
    configs = [
        from_words([f"--flagfile={FOLDER}/{arm.flagfile}.cfg", *["--init=before"] * bool(arm.first)])
        for arm in claim.arms.values()
    ]
    changes = {change.split()[0] for change in changed_flags(*configs)}
    if any(arm.rates or arm.first for arm in claim.arms.values()):  # each has its best rate, or a recipe of its own
        changes -= {"--learning_rate", "--epochs", "--drop_epochs"}
    assert len(changes) == (0 if claim.is_paired else 1)
    header = (FOLDER / f"{name}.toml").read_text().splitlines()[0]
    assert re.fullmatch(rf"# python -m experiments.claims --claim={name} --seeds=\d+", header)
    for arm, config in zip(claim.arms.values(), configs, strict=True):
        assert not arm.rates or config.learning_rate in arm.rates


def test_an_unknown_claim_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match=r"--claim=relus is not known; there are .*ten_views"):
        read_claim("relus")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("kind", '"better"'), "kind is one of superiority, non_inferiority, equivalence, not 'better'"),
        (("stuck", '"lost"'), "stuck is one of kept, left_out, not 'lost'"),
        (("kind", '"equivalence"'), "equivalence needs a margin above 0"),
        (("sd", "0"), "sd must be above 0"),
        (("effect", "-1"), "effect must be above 0"),
        (("ratio", "true\nmargin = 1"), "margin must be above 1"),
        (("ratios", "true"), "ratios"),
        (("kind", None), "it needs kind"),
    ],
)
def test_a_claim_that_decides_nothing_is_refused(change, message, tmp_path, monkeypatch):
    (entry, value), text = change, (FOLDER / "two_towers.toml").read_text()
    head, arms = text.split("\n\n", 1)
    lines = [line for line in head.splitlines() if not line.startswith((f"{entry} =", "margin ="))]
    lines += [f"{entry} = {value}"] * (value is not None)
    (tmp_path / "two_towers.toml").write_text("\n".join(lines) + f"\n\n{arms}")
    monkeypatch.setattr(claims, "FOLDER", tmp_path)
    with pytest.raises(UserError, match=re.escape(f"{tmp_path}/two_towers.toml: {message}")):
        read_claim("two_towers")


def test_claims_of_as_good_or_better_have_a_margin_and_those_of_one_run_are_paired():
    by_name = {name: read_claim(name) for name in CLAIMS}
    assert {name for name, claim in by_name.items() if claim.is_paired} == {"ten_views", "tower_colours"}
    for claim in by_name.values():
        if "as good" in claim.claim:
            assert (claim.kind, claim.margin) == ("non_inferiority", 0.5)


def test_a_stuck_run_counts_as_the_claim_says(tmp_path, monkeypatch):
    losses = {
        ("paper", 0): 2.4,
        ("paper", 1): 2.3,
        ("paper", 2): 2.3,
        ("other", 0): 1.0,
        ("other", 1): 2.3,
        ("other", 2): 2.3,
    }
    monkeypatch.setattr(measures, "read_stored", lambda workdir: SimpleNamespace(classes=list(range(14))))
    monkeypatch.setattr(command, "FOLDER", tmp_path / "experiments" / "claims")

    def train_and_score(run, environment=None):
        """A run whose loss ends as `losses` has it; that of a guess is 2.64, of the plateau 2.375 and more."""
        workdir = run.workdir
        workdir.mkdir(parents=True, exist_ok=True)
        seed = int(workdir.name[-1])
        rows = [record_row(1, "train", loss=2.6), record_row(2, "train", loss=losses[run.flagfile.stem, seed])]
        rows.append(record_row(2, "validation", loss=9.0))
        (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (workdir / "config.json").write_text(json.dumps(dict.fromkeys(runs.PROVENANCE)))
        assert is_stuck(workdir) == (rows[1]["loss"] > 2.375)
        return {"top1_error": 40.0 + seed}

    monkeypatch.setattr(runs, "train_and_score", train_and_score)
    arms = {
        name: replace(arm, flagfile=name)
        for name, arm in zip(("paper", "other"), read_claim("two_towers").arms.values(), strict=True)
    }
    for stuck, counted in (("kept", [40.0, 41.0, 42.0]), ("left_out", [41.0, 42.0])):
        claim = replace(read_claim("two_towers"), arms=arms, stuck=stuck)
        record = read_json(command.run_claim(claim, 3, tmp_path / stuck, "data"))
        assert record["values"] == {"paper": counted, "other": [40.0, 41.0, 42.0]}
        assert record["stuck"] == {"paper": [0], "other": []}
    with pytest.raises(UserError, match="--seeds=2 leaves 1 of paper: 1 are stuck on the plateau"):
        command.run_claim(claim, 2, tmp_path / "few", "data")


def test_colour_selectivity_of_grey_and_of_opponent_colours():
    shape = np.random.default_rng(0).normal(size=(2, 11, 11, 1, 48))
    grey, red_green = np.array([1.0, 1, 1]), np.array([1.0, -1, 0])
    np.testing.assert_allclose(colour_selectivity(shape * grey[:, None]), 0, atol=1e-12)
    np.testing.assert_allclose(colour_selectivity(shape * red_green[:, None]), 1)
    np.testing.assert_allclose(colour_selectivity(shape * np.array([1.0, 0, 0])[:, None]), 2 / 3)  # red alone


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


def test_an_archive_of_the_repository_knows_its_commit(tmp_path, monkeypatch):
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e"]
    shutil.copy(ROOT / ".gitattributes", tmp_path)
    (tmp_path / "alexnet_jax" / "run").mkdir(parents=True)
    shutil.copy(ROOT / "alexnet_jax" / "run" / "commit.txt", tmp_path / "alexnet_jax" / "run")
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "all"], ["archive", "HEAD", "-o", tmp_path / "all.zip"]):
        subprocess.run([*git, *words], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    shutil.unpack_archive(tmp_path / "all.zip", tmp_path / "archive")
    monkeypatch.setattr(workdir, "__file__", str(tmp_path / "archive" / "alexnet_jax" / "run" / "workdir.py"))
    assert workdir.provenance()["commit"] == head


def test_a_step_of_a_claim_is_an_entry_point_in_a_process_of_its_own(tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$WORKERS" "$PWD" "$@"\nexit "${3#--seed=}"\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setenv("WORKERS", "2")
    assert (
        runs.call("train", "--seed=0", "--views=1", environment={"WORKERS": "3"})
        == f"3 {ROOT} -m alexnet_jax.train --seed=0 --views=1\n"
    )
    with pytest.raises(UserError, match=r"'-m alexnet_jax.train --seed=1' ended with status 1, see above"):
        runs.call("train", "--seed=1")
    with pytest.raises(Interrupted, match="train was stopped: rerun the same command to resume"):
        runs.call("train", "--seed=75")


def test_runs_go_side_by_side_and_their_scores_come_in_order(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    together = threading.Barrier(3, timeout=30)  # passed only if three are in it at once

    def train_and_score(run, environment=None):
        together.wait()
        return {"top1_error": float(run.views)}

    monkeypatch.setattr(runs, "train_and_score", train_and_score)
    planned = [runs.Run(FOLDER / "ideas.cfg", FOLDER, (), views) for views in range(6)]
    assert [score["top1_error"] for score in runs.scores(planned, 3)] == [0, 1, 2, 3, 4, 5]


def test_a_record_names_every_commit_and_every_device_of_its_runs(tmp_path):
    shared = {"versions": {"jax": "1"}, "python": "3"}
    old, gpu, new = (
        {**shared, "commit": commit, "devices": [on]} for commit, on in [("a", "cpu"), ("b", "gpu"), ("b", "cpu")]
    )
    for number, about in enumerate((old, gpu, old, new)):
        workdir = tmp_path / str(number)
        workdir.mkdir()
        (workdir / "config.json").write_text(json.dumps({**about, "seed": number}))
    assert runs.provenance_of(tmp_path / name for name in "0123") == {**new, "also": [gpu, old]}
    assert runs.provenance_of(tmp_path / name for name in "02") == old


def test_after_a_run_that_failed_no_other_begins(monkeypatch):
    began = []

    def train_and_score(run, environment=None):
        began.append(run.views)
        if run.views == 1:
            raise UserError("the disk is full")
        return {}

    monkeypatch.setattr(runs, "train_and_score", train_and_score)
    planned = [runs.Run(FOLDER / "ideas.cfg", FOLDER, (), views) for views in range(20)]
    with pytest.raises(UserError, match="the disk is full"):
        list(runs.scores(planned, 1))
    assert began == [0, 1]
    with pytest.raises(UserError, match="the disk is full"):
        list(runs.scores(planned, 2))
    assert len(began) < 20


def test_the_rate_of_an_arm_is_chosen_on_validation_and_other_seeds(tmp_path, monkeypatch):
    seen = []

    def train_and_score(run, environment=None):
        rate = next(float(flag.partition("=")[2]) for flag in run.flags if flag.startswith("--learning_rate="))
        seen.append((run.flagfile.stem, run.split, run.workdir.name))
        run.workdir.mkdir(parents=True)
        (run.workdir / "config.json").write_text(json.dumps(dict.fromkeys(runs.PROVENANCE)))
        return {"top1_error": 50 + 1e4 * (rate - 0.01) ** 2}

    monkeypatch.setattr(runs, "train_and_score", train_and_score)
    monkeypatch.setattr(rates, "FOLDER", tmp_path / "experiments" / "claims")
    claim = replace(read_claim("bias_1"), measure="test_error")
    record = read_json(rates.choose_rates(claim, 2, tmp_path / "runs", "data", jobs=1))
    assert record["best"] == {"bias_1": 0.01, "bias_0": 0.01}
    assert record["values"]["bias_1"]["0.02"] == pytest.approx([51, 51])
    assert ("start_bias_1", "validation", "0.0025_seed1000") in seen
    assert len(seen) == 2 * 5 * 2
    with pytest.raises(UserError, match=r"no arm of .*two_towers\.toml has rates to choose from"):
        rates.choose_rates(read_claim("two_towers"), 2, tmp_path / "runs", "data", jobs=1)


def test_an_error_is_averaged_over_an_epoch_before_it_meets_the_threshold():
    saw = [(epoch / 5, 60 - 2 * epoch - 8 * (epoch % 5 == 0)) for epoch in range(1, 26)]  # falls whenever an epoch begins
    assert epochs_until(saw, 40.0, 0.0) == 1.0 + 1.0  # 60 - 20 - 8 = 32 in the tenth row
    assert epochs_until(saw, 40.0, 1.0) == 2.4  # rows 8 to 12: 44 42 32 38 36; the mean of rows 7 to 11 is 40.4
    assert epochs_until(saw, 0.0, 1.0) == 5.0


@pytest.mark.slow
def test_a_claim_from_its_flag_files_to_the_scoreboard(tmp_path, monkeypatch):
    folder = tmp_path / "experiments" / "claims"
    folder.mkdir(parents=True)
    shutil.copy(ROOT / "experiments" / "README.md", tmp_path / "experiments")
    flagfile = folder / "ideas.cfg"
    small = f"--dataset=groceries\n--fold=\n--architecture=paper_eighth\n--image_size={SIZE}\n--crop_size={CROP}\n"
    small += "--batch_size=8\n--mesh=1x1\n--steps=2\n"
    flagfile.write_text((FOLDER / "ideas.cfg").read_text() + small)
    began = []

    def call(module: str, *words: str, environment: dict | None) -> str:
        """In this process. The test above uses a process of its own."""
        began.append(module)
        assert environment is None
        done = run(module, *words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    shorter = {"ten_views": claims.Arm("ideas", views=10), "centre": claims.Arm("ideas")}
    monkeypatch.setattr(command, "read_claim", lambda name: replace(read_claim(name), arms=shorter))
    monkeypatch.setattr(command, "FOLDER", folder)
    monkeypatch.setattr(runs, "call", call)
    words = ["--claim=ten_views", "--seeds=2", f"--out={tmp_path}/runs", f"--data_dir={tmp_path}/data"]
    done = run("experiments.claims", *words)
    assert done.returncode == 0, done.stderr
    assert began == ["train", "evaluate"] * 4
    assert done.stdout == f"{tmp_path}/experiments/results/claims/ten_views.json\n"
    record = json.loads((tmp_path / "experiments" / "results" / "claims" / "ten_views.json").read_text())
    for arm, views in (("ten_views", 10), ("centre", 1)):
        workdirs = [tmp_path / "runs" / "ideas" / f"seed{seed}" for seed in (0, 1)]
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
    """Of the rows of five a whole epoch falls together, so the means over an epoch are those of its rows."""
    with pytest.raises(UserError, match="has no run of figure1_relu: python -m experiments"):
        figure1.curves_of(tmp_path)
    for arm, errors in (("relu", [60.0, 20.0, 15.0]), ("tanh", [80.0, 50.0, 25.0, 24.0, 18.0])):
        for seed in (0, 1):
            run = tmp_path / f"figure1_{arm}" / f"seed{seed}"
            run.mkdir(parents=True)
            rows = [record_row(n, "train", epoch=n + 1, top1_error=error + seed) for n, error in enumerate(errors)]
            rows.append(record_row(9, "validation", top1_error=0.0))
            (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            run.with_name(f"seed{seed}.lock").touch()
    curves = figure1.curves_of(tmp_path)
    assert curves["relu"] == [[(1, 60.0), (2, 20.0), (3, 15.0)], [(1, 61.0), (2, 21.0), (3, 16.0)]]
    figure1.write_curves(curves, tmp_path / "curves.csv")
    assert (tmp_path / "curves.csv").read_text().splitlines()[-1] == "tanh,1,5,19"
    assert len((tmp_path / "curves.csv").read_text().splitlines()) == 1 + 2 * 3 + 2 * 5
    ratios = figure1.ratios_of(curves)
    by_error = {one.error: one for one in ratios}
    assert by_error[25].times == pytest.approx(np.sqrt(3 / 2 * 4 / 2))  # tanh after 3 and 4 epochs, ReLU after 2 and 2
    assert by_error[25].low < by_error[25].times < by_error[25].high
    assert ratios[-1].error == 25  # to 24 one run of tanh comes in its last row only, if at all
    figure1.write_ratios(ratios, tmp_path / "ratios.csv")
    assert (tmp_path / "ratios.csv").read_text().splitlines()[0] == "error,times,low,high"
    figure = figure1.draw(curves, ratios, 25.0)
    means = [line for line in figure.axes[0].get_lines() if line.get_label() in ("ReLU", "tanh")]
    np.testing.assert_allclose([line.get_ydata()[0] for line in means], [60.5, 80.5])
    drawn = figure.axes[1].get_lines()[0]
    assert drawn.get_xdata().tolist() == [one.error for one in ratios]
    assert drawn.get_ydata().tolist() == [one.times for one in ratios]
    plt.close(figure)


def test_a_run_goes_on_from_the_one_before_it(tmp_path, monkeypatch):
    began = []

    def call(module, *words, environment):
        began.append((module, *words))
        return '{"top1_error": 11.0}\n'

    monkeypatch.setattr(runs, "call", call)
    monkeypatch.setattr(runs, "changed_flags", lambda *configs: [])
    monkeypatch.setattr(runs, "read_config", lambda workdir: None)
    monkeypatch.setattr(runs, "from_words", lambda words: None)
    first = runs.Run(FOLDER / "first.cfg", tmp_path / "first" / "seed0", ("--seed=0",))
    last = runs.Run(FOLDER / "last.cfg", tmp_path / "last" / "seed0", ("--seed=0",), 10, first=first)
    last.workdir.mkdir(parents=True)
    assert runs.train_and_score(last) == {"top1_error": 11.0}
    assert began == [
        ("train", f"--flagfile={FOLDER}/first.cfg", f"--workdir={first.workdir}", "--seed=0"),
        ("train", f"--flagfile={FOLDER}/last.cfg", f"--workdir={last.workdir}", "--seed=0", f"--init={first.workdir}"),
        ("evaluate", f"--workdir={last.workdir}", "--views=10", "--split=test"),
    ]
