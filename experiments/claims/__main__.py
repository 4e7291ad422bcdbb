"""Runs the experiment of a claim of the paper and adds it to the scoreboard.

    python -m experiments.claims --claim=ten_views --seeds=3 --data_dir=data
    python -m experiments.claims
    python -m experiments.claims --plan

Unfinished runs are resumed, finished ones are kept, and claims share runs. The record goes to experiments/results/claims.
The verdicts on all records go there too, as a figure and as verdicts.csv, and as a table to experiments/README.md.
`--claim=all` runs every claim in turn. Without --claim nothing is trained: the verdicts are made again from the records.
`--plan` says how many runs each claim needs, by the standard deviation and the effect or margin in its TOML file.
"""

from pathlib import Path

from absl import flags

from alexnet_jax.system import cli
from alexnet_jax.system.errors import UserError
from alexnet_jax.system.files import read_json, write_json
from experiments.claims.claim import FOLDER, Claim, read_claim
from experiments.claims.measures import MEASURES, is_stuck
from experiments.claims.runs import PROVENANCE, train_and_score
from experiments.claims.scoreboard import update
from experiments.claims.verdict import plan


def run_claim(claim: Claim, seeds: int, out: Path, data_dir: str) -> Path:
    """Runs what is missing and writes the record. Returns its path. Raises UserError if an arm has fewer than two runs."""
    values: dict[str, list[float]] = {arm: [] for arm in claim.arms}
    stuck: dict[str, list[int]] = {arm: [] for arm in claim.arms}
    workdir = out
    for seed in range(seeds):
        for name, arm in claim.arms.items():
            workdir = out / arm.flagfile / f"seed{seed}"
            words = (f"--data_dir={data_dir}", f"--seed={seed}")
            score = train_and_score(FOLDER / f"{arm.flagfile}.cfg", workdir, words, arm.views)
            if is_stuck(workdir):
                stuck[name].append(seed)
            if claim.stuck == "kept" or seed not in stuck[name]:
                values[name].append(MEASURES[claim.measure](claim, name, workdir, score))
    for name, counted in values.items():
        if len(counted) < 2:
            raise UserError(f"--seeds={seeds} leaves {len(counted)} of {name}: {len(stuck[name])} are stuck on the plateau")
    about = read_json(workdir / "config.json")
    path = FOLDER.parent / "results" / "claims" / f"{claim.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(
        path,
        {
            "measure": claim.measure, "unit": claim.unit, "scale": claim.scale, "cost": claim.cost,
            "seeds": list(range(seeds)), "values": values, "stuck": stuck,
            "command": f"python -m experiments.claims --claim={claim.name} --seeds={seeds}",
            **{name: about[name] for name in PROVENANCE},
        },
    )  # fmt: skip
    return path


def main(options: flags.FlagValues) -> None:
    """The command line."""
    known = sorted(path.stem for path in FOLDER.glob("*.toml"))
    if options.plan:
        print("\n".join(plan([read_claim(name) for name in known])))
        return
    if options.claim is None:
        print(update(FOLDER.parent))
        return
    for claim in [read_claim(name) for name in (known if options.claim == "all" else [options.claim])]:
        print(run_claim(claim, options.seeds, Path(options.out).absolute(), str(Path(options.data_dir).absolute())))
        update(FOLDER.parent)


def define_flags(options: flags.FlagValues) -> None:
    """The flags of this command."""
    help = "a TOML file's name in experiments/claims, or 'all'; without it only the verdicts are made again"
    flags.DEFINE_string("claim", None, help, flag_values=options)
    flags.DEFINE_boolean("plan", False, "print the runs that each claim needs, and train nothing", flag_values=options)
    flags.DEFINE_integer("seeds", 3, "runs of each arm, with the seeds 0, 1, ...", lower_bound=2, flag_values=options)
    flags.DEFINE_string("out", "runs/claims", "folder of the runs", flag_values=options)
    flags.DEFINE_string("data_dir", "data", "folder of the prepared sets", flag_values=options)


COMMAND = cli.Command(__doc__, define_flags, main)

if __name__ == "__main__":
    COMMAND.run()
