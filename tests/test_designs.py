"""Designs: their files, their runs, and what follows for each claim."""

import json
import tomllib

import numpy as np
import pytest
from networks import ROOT

from alexnet_jax.config import from_words
from alexnet_jax.run.changes import changed_flags
from alexnet_jax.system.errors import UserError
from alexnet_jax.system.files import read_json
from experiments.claims import __main__ as command
from experiments.claims import design as designs
from experiments.claims import runs, scoreboard
from experiments.claims.design import DESIGNS, arms, effects, read_design
from experiments.claims.factorial import resolution
from experiments.claims.measures import MEASURES

NAMES = sorted(path.stem for path in DESIGNS.glob("*.toml"))


@pytest.mark.parametrize("name", NAMES)
def test_every_cell_is_a_run_of_its_own(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    design = read_design(name)
    flagfile = f"--flagfile=experiments/claims/{design.flagfile}.cfg"
    base = from_words([flagfile])
    configs = [from_words([flagfile, *design.words(cell)]) for cell in range(design.cells)]
    assert len({str(config) for config in configs}) == design.cells
    for config in configs:
        assert {change.split()[0] for change in changed_flags(base, config)} <= {
            f"--{flag}" for factor in design.factors.values() for flags in factor.flags for flag in flags
        }
    content = tomllib.loads((DESIGNS / f"{name}.toml").read_text())
    assert resolution(content["generators"]) >= 4  # no claim is mixed with a pair of others
    assert content["measure"] in MEASURES


def test_flags_of_several_ideas_are_joined():
    design = read_design("ideas")
    assert design.words(0) == []
    assert design.words(3) == ["--ablate=lrn,overlap,conv4", "--colour_noise=none"]


def test_a_design_is_run_seed_by_seed_and_its_record_is_read_back(tmp_path, monkeypatch):
    """Errors made of known effects come back: 2 points from LRN, 1 against mirror images, nothing from the others."""
    design = read_design("ideas")
    lost = {("cell03", "seed1")}
    monkeypatch.setattr(command, "FOLDER", tmp_path / "claims")
    monkeypatch.setattr(command, "is_stuck", lambda workdir: (workdir.parent.name, workdir.name) in lost)
    seen = []

    def train_and_score(run, environment=None):
        workdir, words = run.workdir, run.flags
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / "config.json").write_text(json.dumps(dict.fromkeys(runs.PROVENANCE)))
        seen.append((workdir.name, workdir.parent.name))
        without_lrn, without_mirror = any("lrn" in word for word in words), "--flip=false" in words
        return {"top1_error": 40.0 + 2 * without_lrn - without_mirror + 0.01 * int(workdir.name[-1])}

    monkeypatch.setattr(runs, "train_and_score", train_and_score)
    record = read_json(command.run_design(design, 2, tmp_path / "runs", "data"))
    assert seen == [(f"seed{seed}", f"cell{cell:02}") for seed in (0, 1) for cell in range(16)]
    assert (record["stuck"], len(record["values"])) == ([[3, 1]], 32)  # it is kept, as the design says
    assert record["command"] == "python -m experiments.claims --design=ideas --seeds=2"
    for name, found in effects(design, record).items():
        assert found.effect == pytest.approx({"lrn": 2, "mirror": -1}.get(name, 0), abs=1e-9)
    of_lrn = arms(design, record, "lrn")
    assert [np.mean(of_lrn[arm]) for arm in ("lrn", "no lrn")] == pytest.approx([39.505, 41.505])

    rows = {row.claim.name: row for row in scoreboard.judged([tmp_path / "results" / "claims" / "ideas.json"])}
    assert list(rows) == list(design.factors)
    assert (rows["lrn"].judgement.verdict, rows["mirror"].judgement.verdict) == ("confirmed", "contradicted")
    assert rows["dropout"].judgement.words == "equivalent within ±0.5"
    assert "lrn 39.5 ± 0.52; no lrn 41.5 ± 0.52 % top-1 error" in scoreboard.line(rows["lrn"])


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('flagfile = "ideas"\n', "", "flagfile is missing or unknown; a design has base, "),
        ("[factors.lrn]", "[factors.lrm]", "base and generators name lrn, .*; factors has lrm, "),
        ('without = { ablate = "lrn" }', "without = {}", "the runs with and without lrn have the same flags"),
        ('kind = "superiority"', 'kind = "better"', "kind is one of superiority, "),
        ("sd = 0.5", "sd = 0", "sd must be above 0"),
    ],
)
def test_a_design_that_decides_nothing_is_refused(before, after, message, tmp_path, monkeypatch):
    text = (DESIGNS / "ideas.toml").read_text()
    assert before in text
    (tmp_path / "ideas.toml").write_text(text.replace(before, after))
    monkeypatch.setattr(designs, "DESIGNS", tmp_path)
    with pytest.raises(UserError, match=f"ideas.toml: {message}"):
        read_design("ideas")
    with pytest.raises(UserError, match="--design=other is not known; there are ideas"):
        read_design("other")
