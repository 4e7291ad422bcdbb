"""The learning rate of a claim's arms: of several, the one with which an arm does best by the claim's own measure.

It is chosen on runs that the claim does not count, and on validation instead of test.
"""

import statistics
from pathlib import Path

from alexnet_jax.system.errors import UserError
from alexnet_jax.system.files import write_json
from experiments.claims.claim import FOLDER, Claim
from experiments.claims.measures import MEASURES
from experiments.claims.runs import Run, provenance_of, scores

FIRST_SEED = 1000  # the claim's own are 0, 1, ...


def choose_rates(claim: Claim, seeds: int, out: Path, data_dir: str, jobs: int) -> Path:
    """Runs what is missing and writes the record to results/claims/rates. Returns its path.

    Raises:
        UserError: no arm has rates to choose from.
    """
    planned = [
        (name, arm, rate, seed)
        for seed in range(FIRST_SEED, FIRST_SEED + seeds)
        for name, arm in claim.arms.items()
        for rate in arm.rates
    ]
    if not planned:
        raise UserError(f"--rates: no arm of {FOLDER / claim.name}.toml has rates to choose from")
    runs = [
        Run(
            FOLDER / f"{arm.flagfile}.cfg",
            out / "rates" / arm.flagfile / f"{rate:g}_seed{seed}",
            (f"--data_dir={data_dir}", f"--seed={seed}", f"--learning_rate={rate}"),
            split="validation",
        )
        for _, arm, rate, seed in planned
    ]
    found: dict[str, dict[str, list[float]]] = {name: {} for name, arm in claim.arms.items() if arm.rates}
    for (name, _, rate, _), run, score in zip(planned, runs, scores(runs, jobs), strict=True):
        found[name].setdefault(f"{rate:g}", []).append(MEASURES[claim.measure](claim, name, run.workdir, score))
    best = {arm: float(min(of_arm, key=lambda rate: statistics.mean(of_arm[rate]))) for arm, of_arm in found.items()}
    path = FOLDER.parent / "results" / "claims" / "rates" / f"{claim.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    command = f"python -m experiments.claims --claim={claim.name} --rates --seeds={seeds}"
    about_runs = {"measure": claim.measure, "unit": claim.unit, "seeds": list(range(FIRST_SEED, FIRST_SEED + seeds))}
    record = {**about_runs, "values": found, "best": best, "command": command}
    write_json(path, {**record, **provenance_of(run.workdir for run in runs)})
    return path
