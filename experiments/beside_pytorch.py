"""How fast the training step is beside PyTorch's, for five networks: a table of ratios with their ranges.

    python -m experiments.beside_pytorch --out=experiments/results/benchmark/beside_pytorch
    python -m experiments.beside_pytorch --out=OUT --only=paper_64,cifar_13pct_128 --rounds=5

Each row is what `python -m alexnet_jax.benchmark --against=pytorch` measures of training: ours in turn with the fastest form
of PyTorch, eager or compiled, NCHW or channels_last. It is kept in OUT/NAME.json as soon as it is measured. Rerun the same
command to measure the rows that are missing; delete a file to measure it anew. Prints the table as Markdown and draws
OUT/ratios.png.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from absl import flags

from alexnet_jax.benchmark.steps import measure_steps
from alexnet_jax.config import Config, from_dict
from alexnet_jax.figures.style import PALETTE, write_figure
from alexnet_jax.system import cli, runtime
from alexnet_jax.system.errors import UserError
from alexnet_jax.system.files import read_json, write_json

CIFAR = {"image_size": 32, "crop_size": 24}
BATCHES = {
    "paper": (64, 128, 256), "caffe": (64, 128, 256), "torchvision": (64, 128, 256), "cifar_13pct": (128,),
    "cifar_11pct": (128,),
}  # fmt: skip
SIZES = {"paper": {"crop_size": 227}, "caffe": {"crop_size": 227}, "cifar_13pct": CIFAR, "cifar_11pct": CIFAR}
CLASSES = {"cifar_13pct": 10, "cifar_11pct": 10}
ROWS = {f"{name}_{batch}": (name, batch) for name, batches in BATCHES.items() for batch in batches}


def row_config(name: str) -> Config:
    """The flags of a row."""
    architecture, batch = ROWS[name]
    return from_dict({"architecture": architecture, "batch_size": batch, **SIZES.get(architecture, {})})


def measure_row(name: str, rounds: int, steps: int) -> dict[str, Any]:
    """The record of a row. Raises UserError as `measure_steps`."""
    config = row_config(name)
    classes = CLASSES.get(config.architecture, 1000)
    return measure_steps(
        config, against=True, layers=False, rounds=rounds, steps=steps, classes=classes, modes=("train",)
    )  # fmt: skip


def table(records: Mapping[str, Mapping[str, Any]]) -> str:
    """The rows in Markdown: rates are medians, ratios have the range of their rounds."""
    lines = ["| network | batch | ours, images/s | PyTorch's best | ratio | commit |", "|---|---|---|---|---|---|"]
    for name, record in records.items():
        ours, peer = record["rows"].values()
        form = list(record["rows"])[1].partition("(")[2].rstrip(")")
        (ratio,) = record["ratios"].values()
        span = f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"
        rates = f"{ours['images_per_second']:,.1f} | {peer['images_per_second']:,.1f}, {form}"
        architecture, batch = ROWS[name]
        lines.append(f"| `{architecture}` | {batch} | {rates} | {span} | {_short(record['commit'])} |")
    return "\n".join(lines)


def _short(commit: str | None) -> str:
    """Seven letters of a commit, and its '+' if the code was changed since."""
    return commit[:7] + "+" * commit.endswith("+") if commit else "none"


def draw_ratios(records: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """The ratio of each row with its range, the first one on top, beside the line at 1."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 0.4 * len(records) + 1.2), layout="constrained")
    for place, record in enumerate(records.values()):
        (ratio,) = record["ratios"].values()
        axes.hlines(place, ratio["low"], ratio["high"], color=PALETTE[0], linewidth=2.5)
        axes.scatter(ratio["median"], place, color=PALETTE[0], s=50, zorder=3)
        axes.annotate(f"{ratio['median']:.2f}", (ratio["high"], place), (8, 0), textcoords="offset points", va="center")
    axes.axvline(1, color="0.4", linewidth=1)
    axes.set_yticks(
        range(len(records)), [f"{architecture}, batch {batch}" for architecture, batch in map(ROWS.get, records)]
    )
    axes.set_ylim(len(records) - 0.5, -0.5)
    axes.set_xlim(0, 1.15 * max(ratio["high"] for record in records.values() for ratio in record["ratios"].values()))
    axes.set_xlabel("images/s of training, ours over PyTorch's best\ndot: median, line: range; 1: as fast")
    axes.spines[["top", "right"]].set_visible(False)
    write_figure(figure, path)
    plt.close(figure)


def wanted_rows(only: Sequence[str]) -> list[str]:
    """The rows to measure, in the order of the table. Raises UserError on an unknown one."""
    if unknown := [name for name in only if name not in ROWS]:
        raise UserError(f"--only={','.join(only)}: there is no row {unknown[0]}; the rows are {', '.join(ROWS)}")
    return [name for name in ROWS if name in only] if only else list(ROWS)


def main(options: flags.FlagValues) -> None:
    """The command line."""
    rows, out = wanted_rows(options.only), Path(options.out or "")
    if not options.out:
        raise UserError("--out is missing: name a folder for the records")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out={out} cannot be used: {error.strerror}") from error
    runtime.start()
    for number, name in enumerate(rows, 1):
        if not (out / f"{name}.json").exists():
            print(f"measuring {name}, row {number} of {len(rows)}", file=sys.stderr)
            write_json(out / f"{name}.json", measure_row(name, options.rounds, options.steps), indent=None)
    records = {name: read_json(out / f"{name}.json") for name in rows}
    draw_ratios(records, out / "ratios.png")
    print(table(records))


def define_flags(options: flags.FlagValues) -> None:
    """The flags of this command."""
    flags.DEFINE_string("out", None, "`folder` of the records", flag_values=options)
    flags.DEFINE_list("only", [], f"`rows` to measure and to show, of {', '.join(ROWS)}", flag_values=options)
    help = "rounds; each measures ours and PyTorch's once, in turn"
    flags.DEFINE_integer("rounds", 3, help, lower_bound=1, flag_values=options)
    flags.DEFINE_integer("steps", 2, "training steps of a turn", lower_bound=1, flag_values=options)


COMMAND = cli.Command(__doc__, define_flags, main)

if __name__ == "__main__":
    COMMAND.run()
