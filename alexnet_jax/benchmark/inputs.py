"""How fast images come in: every contender in turn, its rate beside the others'."""

import os
import sys
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from alexnet_jax.benchmark.input_contenders import Contender, contenders, measure
from alexnet_jax.benchmark.results import Rates, ratio, row
from alexnet_jax.config import Config
from alexnet_jax.data.dataset import open_dataset
from alexnet_jax.mesh import make_mesh
from alexnet_jax.run.workdir import provenance
from alexnet_jax.step import make_model

OURS = ("store and loader, data_on_device=no", "store and loader, data_on_device=yes")


def measure_input(config: Config, rounds: int, seconds: float, steps: int) -> dict[str, Any]:
    """All contenders in turn, `rounds` times, as the JSON object that is printed.

    Raises:
        UserError: the data set is not prepared, or the mesh does not fit.
    """
    dataset = open_dataset(config)
    model = make_model(config, len(dataset.classes), make_mesh(config.mesh, config.table().towers, config.batch_size))
    rates: Rates = {}
    with contenders(model, dataset) as found:
        quiet = not sys.stderr.isatty()
        turns = [one for _ in range(rounds) for one in found]
        for one in track(turns, "measuring", console=Console(stderr=True), disable=quiet):
            rates.setdefault(one.name, []).append(measure(one, seconds, steps))
    size = config.image_size**2 * 3
    rows = {one.name: _row(one, rates[one.name], size) for one in found}
    resident, fed = "training step, the same batch again", "training step, images from the store"
    cores = next(one.cores for one in found if one.name in OURS)
    ours, map_copy, jpeg = OURS[0], "memory-map copy, in order", "TFDS, JPEG, one process"
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
    found = row(rates)
    return found | {
        "gigabytes_per_second": found["images_per_second"] * image_bytes / 1e9,
        "images_per_second_and_core": found["images_per_second"] / contender.cores,
    }


def input_table(result: dict[str, Any]) -> Table:
    """What a person reads."""
    shown = Table(title=f"input, {result['settings']['image_size']} px, batches of {result['settings']['batch_size']}")
    for column in ("", "images/s", "range", "GB/s", "images/s and core"):
        shown.add_column(column, justify="left" if not column else "right")
    for name, each in result["rows"].items():
        span = f"{each['low']:,.0f} to {each['high']:,.0f}"
        per_core = f"{each['images_per_second_and_core']:,.0f}"
        shown.add_row(name, f"{each['images_per_second']:,.0f}", span, f"{each['gigabytes_per_second']:.2f}", per_core)
    for name, each in result["ratios"].items():
        shown.add_row(f"ratio: {name}", f"{each['median']:.2f}", f"{each['low']:.2f} to {each['high']:.2f}", "", "")
    return shown
