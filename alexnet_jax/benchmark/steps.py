"""How fast the network runs: its four uses, each layer alone, and PyTorch in turn with ours."""

import contextlib
import importlib.metadata
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from alexnet_jax.benchmark.layers import matrix_product, measure_layers
from alexnet_jax.benchmark.ours import CLASSES, MODES, Mode, Ours, noise_model, training_flops
from alexnet_jax.benchmark.peers import Torch, forms
from alexnet_jax.benchmark.results import Throughputs, add_ratios, new_table, publish, ratio, row
from alexnet_jax.benchmark.worker import Failed, Worker, Workload
from alexnet_jax.config import Config, as_dict
from alexnet_jax.run.workdir import provenance
from alexnet_jax.system.errors import UserError

# The machine's own rate is that of a product of square matrices with these sides.
PRODUCT_SIDE = {"cpu": 4096}
LARGE_PRODUCT_SIDE = 16384
TRIAL_STEPS = 2  # to find the fastest form of a peer

Note = Callable[[str], None]


@contextlib.contextmanager
def _progress(turns: int) -> Iterator[Note]:
    """A progress bar if stderr is a terminal. Call what it yields before every turn."""
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True) as bar:
        task = bar.add_task("", total=turns)
        yield lambda text: bar.update(task, advance=1, description=text)


def measure_steps(
    config: Config,
    *,
    against: bool,
    layers: bool,
    rounds: int,
    steps: int,
    classes: int = CLASSES,
    modes: Sequence[Mode] = MODES,
) -> dict[str, Any]:
    """The network on images of noise, as the JSON object to print.

    `against`: also the same network in PyTorch, in turn with ours; it trains or runs forward. `layers`: also each layer and
    direction alone. Each workload has a turn in each round, which times `steps` steps. `modes` begins with `train`.
    Raises UserError if the mesh does not fit, PyTorch is missing or has no such network, or none of it runs.
    """
    setup = noise_model(config, classes)
    rows, ratios, tried = {}, {}, {}
    turns = 2 * rounds + 4 if against else rounds  # four forms are tried, and one of them measured beside ours
    with _progress(len(modes) * turns) as note:
        for mode in modes:
            workloads: list[Workload] = [Ours(config, mode, classes)]
            if against:
                fastest, rates = _fastest_form(mode == "train", config, classes, note)
                workloads.append(fastest)
                tried |= rates
            measured, throughputs = _in_turn(workloads, rounds, steps, note)
            rows |= measured
            ours, *others = throughputs
            ratios |= {f"ours / {peer}": ratio(throughputs, ours, peer) for peer in others}
    train = rows[Ours(config, "train").name]
    product = matrix_product(config.precision, PRODUCT_SIDE.get(jax.default_backend(), LARGE_PRODUCT_SIDE), 5)
    flops = training_flops(config.table(), config.crop, setup.classes)
    return {
        "images_per_second": train["images_per_second"],
        "rows": rows,
        "ratios": ratios,
        "peak_memory_ratios": _memory_ratios(rows, train["peak_memory_bytes"]),
        "peers_tried": tried,
        "matrix_product_flops_per_second": product,
        "flops_per_second": (achieved := train["images_per_second"] * flops),
        "of_matrix_product": achieved / product,
        "flops_per_image": flops,
        "layers": [rate._asdict() for rate in measure_layers(setup, steps)] if layers else [],
        "settings": _settings(config, rounds, steps, classes),
        "pytorch": importlib.metadata.version("torch") if against else None,
        "cores": os.cpu_count(),
        **provenance(),
    }


def _settings(config: Config, rounds: int, steps: int, classes: int) -> dict[str, Any]:
    return {
        "architecture": config.architecture, "batch_size": config.batch_size, "crop_size": config.crop,
        "precision": config.precision, "mesh": as_dict(config)["mesh"], "rounds": rounds, "steps": steps, "classes": classes,
    }  # fmt: skip


def _fastest_form(train: bool, config: Config, classes: int, note: Note) -> tuple[Torch, dict[str, Any]]:
    """The fastest form of the network in PyTorch, and images/s of every form tried, or its error."""
    tried, rates = {}, dict[Torch, float]()
    for form in forms(config.table(), train, config.precision, config.batch_size, config.crop, classes):
        note(form.name)
        try:
            with Worker(form) as worker:
                tried[form.name] = rates[form] = worker.measure(TRIAL_STEPS)
        except Failed as error:
            tried[form.name] = str(error)
    if not rates:
        last = list(tried)[-1]
        raise UserError(f"--against=pytorch: {last} does not run here: {tried[last]}")
    return max(rates, key=lambda form: rates[form]), tried


def _in_turn(workloads: Sequence[Workload], rounds: int, steps: int, note: Note) -> tuple[dict[str, Any], Throughputs]:
    """Rows and rates of all workloads, measured A B A B. Each waits in its own process for its turn."""
    throughputs: Throughputs = {workload.name: [] for workload in workloads}
    with contextlib.ExitStack() as running:
        workers = {workload.name: running.enter_context(Worker(workload)) for workload in workloads}
        for _ in range(rounds):
            for name, worker in workers.items():
                note(name)
                throughputs[name].append(worker.measure(steps))
        rows = {
            name: row(throughputs[name])
            | {"first_step_seconds": worker.first_step_seconds, "peak_memory_bytes": worker.peak_memory()}
            for name, worker in workers.items()
        }
    return rows, throughputs


def _memory_ratios(rows: dict[str, Any], ours: int) -> dict[str, float]:
    """Peak memory of our training step over each peer's."""
    return {
        name: ours / row["peak_memory_bytes"] for name, row in rows.items() if name.startswith("PyTorch") and "train" in name
    }


def publish_steps(config: Config, result: dict[str, Any], figure: Path | None) -> None:
    """Prints the tables and the JSON object of `measure_steps`, and draws its rates."""
    title = f"images per second, batch {config.batch_size}, {config.crop} x {config.crop} px, {config.precision}"
    tables = [_network_table(result), *([_layer_table(result)] if result["layers"] else [])]
    publish(result, tables, {Ours(config, mode).name for mode in MODES}, title, figure)


def _network_table(result: dict[str, Any]) -> Table:
    settings, product = result["settings"], result["matrix_product_flops_per_second"]
    title = f"batch {settings['batch_size']}, {settings['crop_size']} px, {settings['precision']}"
    table = new_table(title, "images/s", "range", "peak memory", "first step")
    for name, each in result["rows"].items():
        span = f"{each['low']:,.1f} to {each['high']:,.1f}"
        memory, first = f"{each['peak_memory_bytes'] / 2**30:.2f} GiB", f"{each['first_step_seconds']:.1f} s"
        table.add_row(name, f"{each['images_per_second']:,.1f}", span, memory, first)
    add_ratios(table, result["ratios"])
    share = f"{100 * result['of_matrix_product']:.0f} % of a matrix product's {product / 1e9:,.0f}"
    lines = [f"training: {result['flops_per_second'] / 1e9:,.0f} GFLOP/s, {share}"]
    lines += [f"not measured: {why}" for why in result["peers_tried"].values() if isinstance(why, str)]
    table.caption = "\n".join(lines)
    return table


def _layer_table(result: dict[str, Any]) -> Table:
    directions = list(dict.fromkeys(each["direction"] for each in result["layers"]))
    table = new_table("each layer alone, all towers: ms and share of the matrix product's rate", *directions)
    cells: dict[str, dict[str, str]] = {}
    for each in result["layers"]:
        share = each["flops_per_second"] / result["matrix_product_flops_per_second"]
        cells.setdefault(each["layer"], {})[each["direction"]] = f"{1e3 * each['seconds']:.1f} ms, {100 * share:.0f} %"
    for layer, by_direction in cells.items():
        table.add_row(layer, *(by_direction.get(direction, "") for direction in directions))
    return table
