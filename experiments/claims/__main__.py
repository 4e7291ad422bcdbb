"""Runs the experiment of a claim of the paper and adds it to the scoreboard.

    python -m experiments.claims --claim=ten_views --seeds=3 --data_dir=data
    python -m experiments.claims

Unfinished runs are resumed, finished ones are kept, and claims share runs. The record and a figure of all records go to
experiments/results/claims, the table of all records to experiments/README.md. `--claim=all` runs every claim in turn.
Without --claim nothing is trained: table and figure are made again from the records.
"""

from pathlib import Path

from absl import flags

from alexnet_jax.system import cli
from alexnet_jax.system.files import read_json, write_json
from experiments.claims.claim import FOLDER, Claim, judge, read_claim
from experiments.claims.measures import MEASURES
from experiments.claims.runs import PROVENANCE, train_and_score
from experiments.claims.scoreboard import update


def run_claim(claim: Claim, seeds: int, out: Path, data_dir: str) -> Path:
    """Runs what is missing, judges the claim and writes its record. Returns the path of the record."""
    values: dict[str, list[float]] = {arm: [] for arm in claim.arms}
    workdir = out
    for seed in range(seeds):
        for name, arm in claim.arms.items():
            workdir = out / arm.flagfile / f"seed{seed}"
            words = (f"--data_dir={data_dir}", f"--seed={seed}")
            score = train_and_score(FOLDER / f"{arm.flagfile}.cfg", workdir, words, arm.views)
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
    if options.claim is None:
        print(update(FOLDER.parent))
        return
    names = sorted(path.stem for path in FOLDER.glob("*.toml")) if options.claim == "all" else [options.claim]
    for claim in [read_claim(name) for name in names]:
        print(run_claim(claim, options.seeds, Path(options.out).absolute(), str(Path(options.data_dir).absolute())))
        update(FOLDER.parent)


def define_flags(options: flags.FlagValues) -> None:
    """The flags of this command."""
    help = "a TOML file's name in experiments/claims, or 'all'; without it only table and figure are made again"
    flags.DEFINE_string("claim", None, help, flag_values=options)
    flags.DEFINE_integer("seeds", 3, "runs of each arm, with the seeds 0, 1, ...", lower_bound=2, flag_values=options)
    flags.DEFINE_string("out", "runs/claims", "folder of the runs", flag_values=options)
    flags.DEFINE_string("data_dir", "data", "folder of the prepared sets", flag_values=options)


COMMAND = cli.Command(__doc__, define_flags, main)

if __name__ == "__main__":
    COMMAND.run()
