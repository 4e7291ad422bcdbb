"""Runs a claim of the paper and writes it into the scoreboard.

    python -m experiments.claims --claim=ten_views --seeds=3 --data_dir=data

A run that was begun is resumed, one that is done is kept, and claims share runs. The record goes to
experiments/results/claims, with a figure of all records, and their table to experiments/README.md. `--claim=all` is every
claim in turn.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from alexnet_jax.config import changed_flags, from_words
from alexnet_jax.run.workdir import read_config
from alexnet_jax.system import cli
from alexnet_jax.system.errors import UserError
from alexnet_jax.system.files import read_json, write_json
from alexnet_jax.system.signals import RESUME_STATUS, Interrupted
from experiments.claims.claim import FOLDER, Claim, judge, read_claim
from experiments.claims.measures import MEASURES
from experiments.claims.scoreboard import update

ROOT = FOLDER.parent.parent
PROVENANCE = ("versions", "python", "commit", "devices")


def called(module: str, *words: str) -> str:
    """The standard output of an entry point, its progress on this terminal. Raises UserError if it fails."""
    command = [sys.executable, "-m", f"alexnet_jax.{module}", *words]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode == RESUME_STATUS:
        raise Interrupted(f"{module} was stopped: the same command goes on (exit status {RESUME_STATUS})")
    if done.returncode:
        raise UserError(f"'{' '.join(command[1:])}' ended with status {done.returncode}, see above")
    return done.stdout


def trained_and_scored(flagfile: Path, workdir: Path, flags_of_run: Sequence[str], views: int) -> dict[str, Any]:
    """The score on test of a run, both made where they are missing."""
    words = [f"--flagfile={flagfile}", f"--workdir={workdir}", *flags_of_run]
    scored = workdir / f"test_{views}_views.json"
    if not scored.exists():
        print(f"{flagfile.stem}, {workdir.name}, {views} views", file=sys.stderr, flush=True)
        called("train", *words)
        said = called("evaluate", f"--workdir={workdir}", f"--views={views}", "--split=test")
        write_json(scored, json.loads(said.splitlines()[-1]))
    changes = changed_flags(read_config(str(workdir)), from_words(words))
    if changes:
        raise UserError(f"{workdir} is a run of other flags than {flagfile}: {'; '.join(changes)}. Use a new --out")
    return read_json(scored)


def run_claim(claim: Claim, seeds: int, out: Path, data_dir: str) -> Path:
    """Runs what is missing, judges, and writes the record; returns its path."""
    values: dict[str, list[float]] = {arm: [] for arm in claim.arms}
    workdir = out
    for seed in range(seeds):
        for name, arm in claim.arms.items():
            workdir = out / arm.flagfile / f"seed{seed}"
            words = (f"--data_dir={data_dir}", f"--seed={seed}")
            score = trained_and_scored(FOLDER / f"{arm.flagfile}.cfg", workdir, words, arm.views)
            values[name].append(MEASURES[claim.measure](claim, name, workdir, score))
    favoured, other = values.values()
    result = judge(favoured, other, ratio=claim.ratio)
    about = read_json(workdir / "config.json")
    path = FOLDER.parent / "results" / "claims" / f"{claim.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(
        path,
        {
            "claim": claim.claim, "paper": claim.paper, "measure": claim.measure, "unit": claim.unit, "scale": claim.scale,
            "cost": claim.cost, "ratio": claim.ratio, "seeds": list(range(seeds)), "values": values,
            "effect": result.effect, "low": result.low, "high": result.high, "verdict": result.verdict,
            "command": f"python -m experiments.claims --claim={claim.name} --seeds={seeds}",
            **{name: about[name] for name in PROVENANCE},
        },
    )  # fmt: skip
    return path


def main(options: flags.FlagValues) -> None:
    """The command line."""
    names = sorted(path.stem for path in FOLDER.glob("*.toml")) if options.claim == "all" else [options.claim]
    for claim in [read_claim(name) for name in names]:
        print(run_claim(claim, options.seeds, Path(options.out).absolute(), str(Path(options.data_dir).absolute())))
        update(FOLDER.parent)


def define_flags(options: flags.FlagValues) -> None:
    """The flags of this command."""
    flags.DEFINE_string(
        "claim", None, "a TOML file's name in experiments/claims, or 'all'", required=True, flag_values=options
    )
    flags.DEFINE_integer("seeds", 3, "runs of each arm, with the seeds 0, 1, ...", lower_bound=2, flag_values=options)
    flags.DEFINE_string("out", "runs/claims", "folder of the runs", flag_values=options)
    flags.DEFINE_string("data_dir", "data", "folder of the prepared sets", flag_values=options)


COMMAND = cli.Command(__doc__, define_flags, main)

if __name__ == "__main__":
    COMMAND.run()
