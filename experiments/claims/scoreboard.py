"""The scoreboard: verdicts on all records, as a table in experiments/README.md, as CSV and as a figure."""

import csv
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

from alexnet_jax.figures.style import save_figure
from alexnet_jax.system.errors import UserError
from alexnet_jax.system.files import read_json, replacing
from experiments.claims.claim import FOLDER, Claim, read_claim
from experiments.claims.design import DESIGNS, arms, effects, read_design
from experiments.claims.estimate import Estimate
from experiments.claims.forest import draw_forest, effect_text
from experiments.claims.verdict import Judgement, judge

BEGIN, END = "<!-- scoreboard: written by python -m experiments.claims -->", "<!-- end of the scoreboard -->"
COLUMNS = (
    "claim", "paper", "ours, mean ± standard deviation over runs", "effect", "smallest visible effect", "scale", "verdict",
    "command",
)  # fmt: skip
HEAD = f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|"
NUMBERS = ("effect", "low", "high", "p", "visible", "visible_in_family")


@dataclass(frozen=True)
class Row:
    """A claim, the record of its runs, and the judgement on it."""

    claim: Claim
    record: dict[str, Any]
    judgement: Judgement


def update(experiments: Path) -> Path:
    """Rewrites table, CSV and figure. Returns the path of the figure.

    Raises:
        UserError: the README lacks the marks, or a record belongs to no claim.
    """
    results = experiments / "results" / "claims"
    rows = judged(sorted(results.glob("*.json")))
    readme = experiments / "README.md"
    before, begin, rest = readme.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UserError(f"{readme}: the lines {BEGIN!r} and {END!r} are missing; the table goes between them")
    with replacing(readme) as file:
        file.write(f"{before}{BEGIN}\n{HEAD}\n" + "\n".join(map(line, rows)) + f"\n{END}{after}")
    with replacing(results / "verdicts.csv") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["claim", "kind", "runs", *NUMBERS, "verdict"])
        for row in rows:
            runs = " ".join(str(len(values)) for values in row.record["values"].values())
            numbers = [f"{getattr(row.judgement, name):.5g}" for name in NUMBERS]
            table.writerow([row.claim.name, row.claim.kind, runs, *numbers, row.judgement.words])
    matplotlib.use("agg")
    return save_figure(draw_forest([(row.claim, row.judgement) for row in rows]), results, "scoreboard")


def judged(records: Sequence[Path]) -> list[Row]:
    """The records with their claims and judgements. All of them are the family. The record of a design has many claims."""
    family: list[tuple[Claim, dict[str, Any]]] = []
    designed: dict[str, Estimate] = {}
    for path in records:
        record = read_json(path)
        if (DESIGNS / path.name).with_suffix(".toml").exists():
            design = read_design(path.stem)
            designed |= effects(design, record)
            for name, factor in design.factors.items():
                values = arms(design, record, name)
                family.append((factor.claim, {**record, "values": values, "stuck": dict.fromkeys(values, ())}))
        elif (FOLDER / path.name).with_suffix(".toml").exists():
            family.append((read_claim(path.stem), record))
        else:
            raise UserError(f"{path} belongs to no claim: add {FOLDER / path.stem}.toml, or move the record away")
    judgements = judge([(claim, record["values"]) for claim, record in family], designed)
    return [Row(claim, record, judgement) for (claim, record), judgement in zip(family, judgements, strict=True)]


def line(row: Row) -> str:
    """A line of the table."""
    claim, record, judgement = row.claim, row.record, row.judgement
    ours = "; ".join(
        f"{arm} {statistics.mean(values):.3g} ± {statistics.stdev(values):.2g}{stuck_text(claim, record['stuck'][arm])}"
        for arm, values in record["values"].items()
    )
    times = "x " if claim.ratio else ""
    visible = f"{times}{judgement.visible:.2g} alone, {times}{judgement.visible_in_family:.2g} in the family"
    cells = (
        claim.claim, claim.paper, f"{ours} {record['unit']}", effect_text(claim, judgement), visible, record["scale"],
        f"**{judgement.words}**", f"`{record['command']}`",
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def stuck_text(claim: Claim, seeds: Sequence[int]) -> str:
    """What became of an arm's runs that never left the plateau."""
    return f" ({len(seeds)} stuck, {claim.stuck.replace('_', ' ')})" if seeds else ""
