"""Measures this machine: so far the input, with --input.

    python -m alexnet_jax.benchmark --input [flags of a run] [--batch_size=B] [--steps=N] [--figure=F.png]

Prints a table on stderr and one JSON object on stdout, `images_per_second` first. PyTorch is measured too where it is
installed (requirements-benchmark.txt).
"""

import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

import jax
import matplotlib
from absl import flags
from rich.console import Console
from rich.progress import track
from rich.table import Table

from alexnet_jax import cli
from alexnet_jax.config import Config, define_flags, from_flags
from alexnet_jax.data.dataset import open_dataset
from alexnet_jax.errors import UserError
from alexnet_jax.files import replacing
from alexnet_jax.input_benchmark import Contender, contenders, measure
from alexnet_jax.step import make_model
from alexnet_jax.topology import make_topology
from alexnet_jax.workdir import provenance

DEFAULT_STEPS = 5

Rates = dict[str, list[float]]  # images per second of each contender in each round


def ratio(rates: Rates, above: str, below: str, times: float = 1.0) -> dict[str, float]:
    """The ratio of two contenders, round by round: its median and range."""
    each = [times * a / b for a, b in zip(rates[above], rates[below], strict=True)]
    return {"median": statistics.median(each), "low": min(each), "high": max(each)}


def input_rates(config: Config, rounds: int, seconds: float) -> dict[str, Any]:
    """All contenders in turn, `rounds` times, as the JSON object that is printed."""
    dataset = open_dataset(config)
    model = make_model(config, len(dataset.classes), make_topology(config.mesh, config.table().towers, config.batch_size))
    rates: Rates = {}
    with contenders(model, dataset) as found:
        quiet = not sys.stderr.isatty()
        turns = [one for _ in range(rounds) for one in found]
        for one in track(turns, "measuring", console=Console(stderr=True), disable=quiet):
            rates.setdefault(one.name, []).append(measure(one, seconds, config.steps or DEFAULT_STEPS))
    size = config.image_size**2 * 3
    rows = {one.name: _row(one, rates[one.name], size) for one in found}
    resident, fed = "training step, the same batch again", "training step, images from the store"
    cores = next(one.cores for one in found if one.name.startswith("store"))
    ours, map_copy, jpeg = "store and loader, data_on_device=no", "memory-map copy, in order", "TFDS, JPEG, one process"
    return {
        "images_per_second": rows[ours]["images_per_second"],
        "rows": rows,
        "ratios": {
            "loader to memory-map copy": ratio(rates, ours, map_copy),
            "loader to JPEG, per core": ratio(rates, ours, jpeg, times=1 / cores),
            "training from the store to the same batch again": ratio(rates, fed, resident),
        },
        "settings": {
            "dataset": config.dataset, "image_size": config.image_size, "crop_size": config.crop,
            "architecture": config.architecture, "batch_size": config.batch_size, "rounds": rounds, "seconds": seconds,
        },
        "cores": os.cpu_count(),
        **provenance(),
    }  # fmt: skip


def _row(contender: Contender, rates: list[float], image_bytes: int) -> dict[str, float]:
    middle = statistics.median(rates)
    return {
        "images_per_second": middle,
        "low": min(rates),
        "high": max(rates),
        "gigabytes_per_second": middle * image_bytes / 1e9,
        "images_per_second_and_core": middle / contender.cores,
    }


def table(result: dict[str, Any]) -> Table:
    """What a person reads."""
    shown = Table(title=f"input, {result['settings']['image_size']} px, batches of {result['settings']['batch_size']}")
    for column in ("", "images/s", "range", "GB/s", "images/s and core"):
        shown.add_column(column, justify="left" if not column else "right")
    for name, row in result["rows"].items():
        span = f"{row['low']:,.0f} to {row['high']:,.0f}"
        per_core = f"{row['images_per_second_and_core']:,.0f}"
        shown.add_row(name, f"{row['images_per_second']:,.0f}", span, f"{row['gigabytes_per_second']:.2f}", per_core)
    for name, each in result["ratios"].items():
        shown.add_row(f"ratio: {name}", f"{each['median']:.2f}", f"{each['low']:.2f} to {each['high']:.2f}", "", "")
    return shown


def draw(result: dict[str, Any], path: Path) -> None:
    """Bars of images per second on a logarithmic axis, with their range."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = result["rows"]
    names, rates = list(rows)[::-1], [row["images_per_second"] for row in rows.values()][::-1]
    spread = [[row["images_per_second"] - row["low"] for row in rows.values()][::-1],
              [row["high"] - row["images_per_second"] for row in rows.values()][::-1]]  # fmt: skip
    figure, axes = plt.subplots(figsize=(9, 0.5 * len(rows) + 1.2), layout="constrained")
    colours = ["#0072B2" if name.startswith("store") else "#999999" for name in names]
    axes.barh(names, rates, xerr=spread, color=colours, ecolor="#444444", capsize=3)
    for place, rate in enumerate(rates):
        axes.annotate(f" {rate:,.0f}", (rows[names[place]]["high"], place), va="center", fontsize=9)
    axes.set(
        xscale="log", xlabel=f"images per second, {result['settings']['image_size']} x {result['settings']['image_size']} px"
    )
    axes.set_xlim(min(rates) / 10, max(rates) * 6)
    axes.spines[["top", "right"]].set_visible(False)
    with replacing(path, "wb") as file:
        figure.savefig(file, format=path.suffix[1:], dpi=150)
    plt.close(figure)


def main() -> None:
    """The command line."""
    options = flags.FLAGS
    config = from_flags()
    if not options.input:
        raise UserError("benchmark measures the input: add --input")
    if options.figure and (Path(options.figure).suffix not in (".png", ".svg") or not Path(options.figure).parent.is_dir()):
        raise UserError(f"--figure={options.figure} is not a .png or .svg in a folder that exists")
    if config.host_devices:
        jax.config.update("jax_num_cpu_devices", config.host_devices)
    result = input_rates(config, options.rounds, options.seconds)
    Console(stderr=True, width=None if sys.stderr.isatty() else 120).print(table(result))
    if options.figure:
        draw(result, Path(options.figure))
    print(json.dumps(result))


def _define_flags() -> None:
    define_flags()
    flags.DEFINE_boolean("input", False, "measure the input pipeline")
    flags.DEFINE_integer("rounds", 5, "times that each contender is measured, in turn", lower_bound=1)
    flags.DEFINE_float(
        "seconds", 1.0, "that each contender is measured in a round; the training step: --steps", lower_bound=0.0
    )
    flags.DEFINE_string("figure", None, "draw the bars into this .png or .svg")


if __name__ == "__main__":
    _define_flags()
    cli.run(main)
