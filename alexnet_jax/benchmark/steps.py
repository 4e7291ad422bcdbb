"""How fast the network runs: four ways of using it, each layer alone, and PyTorch in turn with ours."""

import contextlib
import importlib.metadata
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table

from alexnet_jax.benchmark.layers import matrix_product, measure_layers
from alexnet_jax.benchmark.ours import CLASSES, MODES, Ours, training_flops
from alexnet_jax.benchmark.peers import Torch, peers
from alexnet_jax.benchmark.results import Rates, ratio, row
from alexnet_jax.benchmark.worker import Contender, Failed, Worker
from alexnet_jax.config import Config, as_dict
from alexnet_jax.mesh import make_mesh
from alexnet_jax.run.workdir import provenance
from alexnet_jax.step import make_model
from alexnet_jax.system.errors import UserError

PRODUCT_SIDE = {"cpu": 4096}  # of the square matrices whose product is the machine's own rate
LARGE_PRODUCT_SIDE = 16384
TRIAL_STEPS = 2  # of each form of a peer, to find its fastest

Note = Callable[[str], None]


@contextlib.contextmanager
def _progress(turns: int) -> Iterator[Note]:
    """A bar with the time left on a terminal, nothing in a log; call what it yields before every turn."""
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True) as bar:
        task: TaskID = bar.add_task("", total=turns)

        def note(text: str) -> None:
            bar.update(task, advance=1, description=text)

        yield note


def measure_steps(config: Config, *, against: bool, layers: bool, rounds: int, steps: int) -> dict[str, Any]:
    """The network at one batch size, as the JSON object that is printed.

    Args:
        config: of the run; its batch is noise.
        against: measure PyTorch too, in turn with ours.
        layers: measure each layer and direction alone.
        rounds: turns of each contender; a ratio is taken within a round.
        steps: of each contender in a turn, after one that is not counted.

    Raises:
        UserError: the mesh does not fit, PyTorch is missing, or no form of it runs.
    """
    model = make_model(config, CLASSES, make_mesh(config.mesh, config.table().towers, config.batch_size, config.spmd))
    modes = MODES[:2] if against else MODES
    rows, ratios, tried = {}, {}, {}
    with _progress(len(modes) * (rounds + 9 * against)) as note:
        for mode in modes:
            contenders: list[Contender] = [Ours(config, mode)]
            if against:
                fastest, rates = _fastest_peers(mode == "train", config, note)
                contenders += fastest
                tried |= rates
            found, rates = _in_turn(contenders, rounds, steps, note)
            rows |= found
            ours, *others = rates
            ratios |= {f"ours / {peer}": ratio(rates, ours, peer) for peer in others}
    train = rows[Ours(config, "train").name]
    product = _product(config)
    flops = training_flops(config.table(), config.crop, model.classes)
    achieved = train["images_per_second"] * flops
    return {
        "images_per_second": train["images_per_second"],
        "rows": rows,
        "ratios": ratios,
        "peak_memory_ratios": _memory_ratios(rows, Ours(config, "train").name),
        "peers_tried": tried,
        "matrix_product_flops_per_second": product,
        "flops_per_second": achieved,
        "of_matrix_product": achieved / product,
        "flops_per_image": flops,
        "layers": [rate._asdict() for rate in measure_layers(model, steps)] if layers else [],
        "settings": {
            "architecture": config.architecture, "batch_size": config.batch_size, "crop_size": config.crop,
            "precision": config.precision, "mesh": as_dict(config)["mesh"], "rounds": rounds, "steps": steps,
        },
        "pytorch": importlib.metadata.version("torch") if against else None,
        "cores": os.cpu_count(),
        **provenance(),
    }  # fmt: skip


def _product(config: Config) -> float:
    side = PRODUCT_SIDE.get(jax.default_backend(), LARGE_PRODUCT_SIDE)
    return matrix_product(config.precision, side, 5)


def _fastest_peers(train: bool, config: Config, note: Note) -> tuple[list[Torch], dict[str, Any]]:
    """The fastest form of each network in PyTorch, and images/s of every form tried, or why it failed."""
    tried, fastest = {}, []
    for forms in peers(train, config.precision, config.batch_size, config.crop).values():
        rates: dict[Torch, float] = {}
        for form in forms:
            note(form.name)
            try:
                with Worker(form) as worker:
                    tried[form.name] = rates[form] = worker.measure(TRIAL_STEPS)
            except Failed as error:
                tried[form.name] = str(error)
        if not rates:
            raise UserError(f"--against=pytorch: {form.name} does not run here: {tried[form.name]}")  # pyright: ignore
        fastest.append(max(rates, key=lambda form: rates[form]))
    return fastest, tried


def _in_turn(contenders: Sequence[Contender], rounds: int, steps: int, note: Note) -> tuple[dict[str, Any], Rates]:
    """A B A B: every contender waits in its own process while another is measured."""
    rates: Rates = {one.name: [] for one in contenders}
    with contextlib.ExitStack() as running:
        workers = [running.enter_context(Worker(one)) for one in contenders]
        for _ in range(rounds):
            for worker in workers:
                note(worker.contender.name)
                rates[worker.contender.name].append(worker.measure(steps))
        rows = {
            worker.contender.name: row(rates[worker.contender.name])
            | {"first_step_seconds": worker.first_step_seconds, "peak_memory_bytes": worker.peak_memory()}
            for worker in workers
        }
    return rows, rates


def _memory_ratios(rows: dict[str, Any], ours: str) -> dict[str, float]:
    """Of our training step to each peer's."""
    peak = rows[ours]["peak_memory_bytes"]
    return {name: peak / row["peak_memory_bytes"] for name, row in rows.items() if "PyTorch" in name and "train" in name}


def step_tables(result: dict[str, Any]) -> list[Table]:
    """What a person reads."""
    settings, product = result["settings"], result["matrix_product_flops_per_second"]
    whole = Table(title=f"batch {settings['batch_size']}, {settings['crop_size']} px, {settings['precision']}")
    for column in ("", "images/s", "range", "peak memory", "first step"):
        whole.add_column(column, justify="left" if not column else "right")
    for name, each in result["rows"].items():
        span = f"{each['low']:,.1f} to {each['high']:,.1f}"
        memory, first = f"{each['peak_memory_bytes'] / 2**30:.2f} GiB", f"{each['first_step_seconds']:.1f} s"
        whole.add_row(name, f"{each['images_per_second']:,.1f}", span, memory, first)
    for name, each in result["ratios"].items():
        whole.add_row(name, f"{each['median']:.2f}", f"{each['low']:.2f} to {each['high']:.2f}", "", "")
    share = f"{100 * result['of_matrix_product']:.0f} % of a matrix product's {product / 1e9:,.0f}"
    whole.caption = f"training: {result['flops_per_second'] / 1e9:,.0f} GFLOP/s, {share}"
    if not result["layers"]:
        return [whole]
    layers = Table(title="each layer alone, all towers: ms and share of the matrix product's rate")
    directions = list(dict.fromkeys(each["direction"] for each in result["layers"]))
    for column in ("", *directions):
        layers.add_column(column, justify="right" if column else "left")
    for name in dict.fromkeys(each["layer"] for each in result["layers"]):
        mine = {each["direction"]: each for each in result["layers"] if each["layer"] == name}
        cells = [
            f"{1e3 * mine[way]['seconds']:.1f} ms, {100 * mine[way]['flops_per_second'] / product:.0f} %"
            if way in mine else "" for way in directions
        ]  # fmt: skip
        layers.add_row(name, *cells)
    return [whole, layers]
