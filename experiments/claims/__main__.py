"""Runs the experiment of a claim of the paper and adds it to the scoreboard.

    python -m experiments.claims --claim=ten_views --seeds=3 --data_dir=data
    python -m experiments.claims --design=ideas --seeds=2 --data_dir=data
    python -m experiments.claims
    python -m experiments.claims --plan

Unfinished runs are resumed, finished ones are kept, and claims share runs. The record goes to experiments/results/claims.
The verdicts on all records go there too, as a figure and as verdicts.csv, and as a table to experiments/README.md.
A design has several claims and one set of runs for all of them. `--all` runs every claim and every design in turn, and
resumes where it was stopped. Without a claim nothing is trained: the verdicts are made again from the records.

`--rates` compares the learning rates that the claim's TOML file lists for its arms. `--plan` says how many runs each claim
needs, by the standard deviation and the effect or margin in its TOML file.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from alexnet_jax.system import cli
from alexnet_jax.system.errors import UserError
from alexnet_jax.system.files import write_json
from experiments.claims.claim import FOLDER, Arm, Claim, read_claim
from experiments.claims.design import DESIGNS, Design, read_design
from experiments.claims.measures import MEASURES, is_stuck
from experiments.claims.rates import choose_rates
from experiments.claims.runs import Run, provenance_of, scores
from experiments.claims.scoreboard import update
from experiments.claims.verdict import plan


def run_claim(claim: Claim, seeds: int, out: Path, data_dir: str, jobs: int = 1) -> Path:
    """Runs what is missing and writes the record. Returns its path. Raises UserError if an arm has fewer than two runs."""
    values: dict[str, list[float]] = {arm: [] for arm in claim.arms}
    stuck: dict[str, list[int]] = {arm: [] for arm in claim.arms}
    planned = [(seed, name, arm) for seed in range(seeds) for name, arm in claim.arms.items()]
    runs = [_run(arm, seed, out, data_dir) for seed, _, arm in planned]
    for (seed, name, _), run, score in zip(planned, runs, scores(runs, jobs), strict=True):
        if is_stuck(run.workdir):
            stuck[name].append(seed)
        if claim.stuck == "kept" or seed not in stuck[name]:
            values[name].append(MEASURES[claim.measure](claim, name, run.workdir, score))
    for name, counted in values.items():
        if len(counted) < 2:
            raise UserError(f"--seeds={seeds} leaves {len(counted)} of {name}: {len(stuck[name])} are stuck on the plateau")
    command = f"python -m experiments.claims --claim={claim.name} --seeds={seeds}"
    found = {"seeds": list(range(seeds)), "values": values, "stuck": stuck}
    return _write(claim.name, claim, runs, found, command)


def _run(arm: Arm, seed: int, out: Path, data_dir: str) -> Run:
    flags_of_run = (f"--data_dir={data_dir}", f"--seed={seed}")

    def run(flagfile: str, first: Run | None = None) -> Run:
        workdir = out / Path(flagfile).name / f"seed{seed}"
        return Run(FOLDER / f"{flagfile}.cfg", workdir, flags_of_run, arm.views, first=first)

    return run(arm.flagfile, run(arm.first) if arm.first else None)


def run_design(design: Design, seeds: int, out: Path, data_dir: str, jobs: int = 1) -> Path:
    """Runs what is missing, one seed of all cells after the other, and writes the record after each. Returns its path."""
    claim = next(iter(design.factors.values())).claim
    found: dict[str, list[Any]] = {"cells": [], "seeds": [], "values": [], "stuck": []}
    planned = [(seed, cell) for seed in range(seeds) for cell in range(design.cells)]
    runs = [
        Run(
            FOLDER / f"{design.flagfile}.cfg",
            out / design.name / f"cell{cell:02}" / f"seed{seed}",
            (f"--data_dir={data_dir}", f"--seed={seed}", *design.words(cell)),
        )
        for seed, cell in planned
    ]
    path = out
    for (seed, cell), run, score in zip(planned, runs, scores(runs, jobs), strict=True):
        is_counted = True
        if is_stuck(run.workdir):
            found["stuck"].append([cell, seed])
            is_counted = claim.stuck == "kept"
        if is_counted:
            found["cells"].append(cell)
            found["seeds"].append(seed)
            found["values"].append(MEASURES[claim.measure](claim, "", run.workdir, score))
        if cell == design.cells - 1:
            command = f"python -m experiments.claims --design={design.name} --seeds={seed + 1}"
            path = _write(design.name, claim, runs[: design.cells * (seed + 1)], found, command)
    return path


def _write(name: str, claim: Claim, runs: Sequence[Run], found: dict[str, Any], command: str) -> Path:
    """The record of a claim or a design, with the provenance of its runs."""
    path = FOLDER.parent / "results" / "claims" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    shared = {entry: getattr(claim, entry) for entry in ("measure", "unit", "scale", "cost")}
    write_json(path, {**shared, **found, "command": command, **provenance_of(run.workdir for run in runs)})
    return path


def main(options: flags.FlagValues) -> None:
    """The command line."""
    claims, designs = (sorted(path.stem for path in folder.glob("*.toml")) for folder in (FOLDER, DESIGNS))
    if options.plan:
        factors = [factor.claim for name in designs for factor in read_design(name).factors.values()]
        print("\n".join(plan([*map(read_claim, claims), *factors])))
        return
    if not options.all:
        claims, designs = ([name] if name else [] for name in (options.claim, options.design))
    if claims and options.seeds < 2:
        raise UserError(
            f"--seeds={options.seeds}: a claim compares arms of at least 2 runs; a design does with one of each cell"
        )
    out, data_dir = Path(options.out).absolute(), str(Path(options.data_dir).absolute())
    if options.rates:
        for claim in map(read_claim, claims):
            print(choose_rates(claim, options.seeds, out, data_dir, options.jobs))
        return
    for claim in map(read_claim, claims):
        print(run_claim(claim, options.seeds, out, data_dir, options.jobs))
        update(FOLDER.parent)
    for design in map(read_design, designs):
        print(run_design(design, options.seeds, out, data_dir, options.jobs))
        update(FOLDER.parent)
    if not claims and not designs:
        print(update(FOLDER.parent))


def define_flags(options: flags.FlagValues) -> None:
    """The flags of this command."""
    flags.DEFINE_string("claim", None, "a TOML file's name in experiments/claims", flag_values=options)
    flags.DEFINE_string("design", None, "a TOML file's name in experiments/claims/designs", flag_values=options)
    flags.DEFINE_boolean("all", False, "run every claim and every design", flag_values=options)
    help = "choose the learning rate of the claim's arms on other runs, and print where the record is"
    flags.DEFINE_boolean("rates", False, help, flag_values=options)
    flags.DEFINE_boolean("plan", False, "print the runs that each claim needs, and train nothing", flag_values=options)
    help = "runs of each arm, or of each cell of a design, with the seeds 0, 1, ..."
    flags.DEFINE_integer("seeds", 3, help, lower_bound=1, flag_values=options)
    help = "runs at a time; on a GPU a dozen small ones fill it better than one"
    flags.DEFINE_integer("jobs", 1, help, lower_bound=1, flag_values=options)
    flags.DEFINE_string("out", "runs/claims", "folder of the runs", flag_values=options)
    flags.DEFINE_string("data_dir", "data", "folder of the prepared sets", flag_values=options)


COMMAND = cli.Command(__doc__, define_flags, main)

if __name__ == "__main__":
    COMMAND.run()
