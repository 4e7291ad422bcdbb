"""The scoreboard: all records as a table in experiments/README.md and as a figure."""

import statistics
from pathlib import Path
from typing import Any

import matplotlib

from alexnet_jax.figures.style import save_figure
from alexnet_jax.system.errors import UserError
from alexnet_jax.system.files import read_json, replacing
from experiments.claims.forest import draw_forest, effect_text

BEGIN, END = "<!-- scoreboard: written by python -m experiments.claims -->", "<!-- end of the scoreboard -->"
HEAD = f"""| claim | paper | ours, mean ± standard deviation over seeds | effect | scale | verdict | command |
{"|---" * 7}|"""


def update(experiments: Path) -> Path:
    """Rewrites table and figure. Returns the path of the figure. Raises UserError if the README lacks the marks."""
    records = [read_json(path) for path in sorted((experiments / "results" / "claims").glob("*.json"))]
    readme = experiments / "README.md"
    before, begin, rest = readme.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UserError(f"{readme}: the lines {BEGIN!r} and {END!r} are missing; the table goes between them")
    rows = "\n".join(map(row, records))
    with replacing(readme) as file:
        file.write(f"{before}{BEGIN}\n{HEAD}\n{rows}\n{END}{after}")
    matplotlib.use("agg")
    return save_figure(draw_forest(records), experiments / "results" / "claims", "scoreboard")


def row(record: dict[str, Any]) -> str:
    """A line of the table."""
    ours = "; ".join(
        f"{arm} {statistics.mean(values):.3g} ± {statistics.stdev(values):.2g}" for arm, values in record["values"].items()
    )
    cells = (
        record["claim"], record["paper"], f"{ours} {record['unit']}", effect_text(record), record["scale"],
        f"**{record['verdict']}**", f"`{record['command']}`",
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"
