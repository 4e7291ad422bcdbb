"""A model of how the training step scales on D x 2 meshes of H200, from operations, bytes and link speeds.

    python -m experiments.scaling_model [--figure=F.png] [--traffic --host_devices=8]

Nothing here is timed: it is arithmetic with the constants of `Machine`. --traffic also counts the exchanged values in the
compiled training step on forced devices, to compare with the model's. Prints one JSON object.
"""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import matplotlib
from absl import flags

from alexnet_jax.benchmark.ours import CLASSES, training_flops
from alexnet_jax.benchmark.programs import step_arguments
from alexnet_jax.benchmark.results import figure_path
from alexnet_jax.config import Config
from alexnet_jax.figures.style import PALETTE, write_figure
from alexnet_jax.layers import trace
from alexnet_jax.mesh import make_mesh
from alexnet_jax.run.workdir import provenance
from alexnet_jax.step import make_setup, make_train_step
from alexnet_jax.system import cli, runtime
from alexnet_jax.values import MeshShape

DEVICES = (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
COLLECTIVE = r" = (.*?) (all-gather|all-reduce|reduce-scatter)(?:-start)?\("  # in a line of HLO: shapes, kind


@dataclass(frozen=True)
class Machine:
    """H200 in nodes of eight. Products (bfloat16) and memory as measured on one, links from their data sheets.

    Links are in bytes per second, for each direction and device. An exchange costs its latency once.
    """

    flops: float = 790e12
    gemm_share: float = 0.92  # of that rate, over the network's own shapes (0.73 ms for 128 images)
    memory: float = 4.3e12
    optimiser_bytes: float = 22  # read and written for each parameter
    elementwise_seconds: float = 0.155e-3 / 128  # an image, LRN and pooling in one kernel
    node: int = 8
    nvlink: float = 450e9
    network: float = 50e9  # 400 Gb/s for each device
    latency: float = 10e-6
    network_latency: float = 30e-6


@dataclass(frozen=True)
class Network:
    """The numbers of a layer table that the model needs. Exchanges are values per image, to one tower, forward."""

    flops: float  # of a training step, an image
    params: int
    shared_params: int  # held by both towers
    gathered: int
    summed: int


def network(config: Config) -> Network:
    """The numbers of the config's architecture."""
    table = config.table()
    layers = trace(table, config.crop, CLASSES)
    gathered, total = (sum(getattr(layer, name) for layer in layers) for name in ("gathered", "parameters"))
    return Network(training_flops(table, config.crop, CLASSES), total, CLASSES, gathered, CLASSES)


def step_seconds(machine: Machine, net: Network, rows: int, towers: int, batch: int) -> dict[str, float]:
    """Seconds of the parts of a step on `rows` x `towers` devices; a row has `batch` images.

    `overlapped` hides the exchange of gradients behind the backward pass (two thirds of the operations). `step` hides
    nothing.
    """
    params = net.params / towers
    products = batch * net.flops / towers / (machine.flops * machine.gemm_share)
    elementwise = batch / towers * machine.elementwise_seconds
    optimiser = params * machine.optimiser_bytes / machine.memory
    # bfloat16 activations; the backward pass returns the same values. Three gathers and a sum each way, by neighbours.
    cross = 2 * (2 * batch * (net.gathered + net.summed) / machine.nvlink + 4 * machine.latency) * (towers > 1)
    gradients = _all_reduce(machine, 4 * params, rows, machine.node // towers)
    computed = products + elementwise + optimiser
    hidden = max(0.0, gradients - (products + elementwise) * 2 / 3)
    return {
        "products": products, "elementwise": elementwise, "optimiser": optimiser, "cross_talk": cross,
        "gradients": gradients, "step": computed + cross + gradients, "overlapped": computed + cross + hidden,
    }  # fmt: skip


def _all_reduce(machine: Machine, size: float, rows: int, rows_in_node: int) -> float:
    """Seconds to sum `size` bytes over `rows`: inside each node, then each device's share between nodes, and back."""
    if rows == 1:
        return 0.0
    inside, nodes = min(rows, rows_in_node), math.ceil(rows / rows_in_node)
    seconds = 2 * (inside - 1) / inside * size / machine.nvlink + 2 * machine.latency * (inside > 1)
    if nodes > 1:
        seconds += 2 * (nodes - 1) / nodes * (size / inside) / machine.network + 2 * machine.network_latency
    return seconds


def predictions(machine: Machine, net: Network, batch: int, weak: bool) -> list[dict[str, Any]]:
    """Images/s for each number of devices, with towers split or not, at equal global batches.

    `weak`: `batch` is the batch of each device; otherwise it is the global batch.
    """
    rows_of_result = []
    for devices in DEVICES:
        for towers in (1, 2):
            rows = devices // towers
            share = batch * towers if weak else batch / rows
            if share < 1:
                continue
            parts = step_seconds(machine, net, rows, towers, share)  # pyright: ignore[reportArgumentType]
            rate = share * rows / parts["step"], share * rows / parts["overlapped"]
            rows_of_result.append({"devices": devices, "mesh": f"{rows}x{towers}", "global_batch": share * rows,
                          "images_per_second": rate[0], "images_per_second_overlapped": rate[1], **parts})  # fmt: skip
    return rows_of_result


def traffic(config: Config, net: Network) -> dict[str, Any]:
    """Values that a device exchanges in one compiled training step of `config`: counted, and by the model."""
    mesh = make_mesh(config.mesh, config.table().towers, config.batch_size)
    setup = make_setup(config, CLASSES, mesh)
    text = make_train_step(setup).lower(*step_arguments(setup)).compile().as_text()
    counted = {"all-gather": 0, "all-reduce": 0, "reduce-scatter": 0}
    for shapes, kind in re.findall(COLLECTIVE, text):
        counted[kind] += sum(
            math.prod(map(int, dims.split(","))) if dims else 1 for dims in re.findall(r"\[([\d,]*)\]", shapes)
        )
    towers, share = mesh.tower_size, config.batch_size // mesh.data_size
    reduced = (net.params - net.shared_params) // towers + net.shared_params if mesh.data_size > 1 else 0
    split = towers > 1
    return {
        "mesh": str(config.mesh),
        "counted": counted,
        "model": {
            "all-gather": split * share * net.gathered * towers,  # what a device holds after it
            "all-reduce": split * share * net.summed + reduced + 3 * (mesh.data_size > 1),  # and the three metrics
            "reduce-scatter": split * share * net.gathered,
        },
    }


def draw(rows: list[dict[str, Any]], path: Path, batch: int) -> None:
    """Draws modelled images/s against devices, with towers split or not, with and without overlap."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for towers, colour, name in ((1, PALETTE[0], "both towers on each device"), (2, PALETTE[1], "one tower on each device")):
        mine = [row for row in rows if row["mesh"].endswith(f"x{towers}")]
        devices = [row["devices"] for row in mine]
        axes.plot(devices, [row["images_per_second_overlapped"] for row in mine], "o-", color=colour, label=name)
        axes.plot(devices, [row["images_per_second"] for row in mine], "o:", color=colour, markersize=3, alpha=0.8)
    first = rows[0]
    ideal = [first["images_per_second_overlapped"] * n / first["devices"] for n in DEVICES]
    axes.plot(DEVICES, ideal, color="#999999", linewidth=1, label="in proportion")
    axes.plot([], [], "o:", color="#444444", markersize=3, label="nothing overlapped")
    axes.set(xscale="log", yscale="log", xlabel=f"H200s, {batch} images on each", ylabel="images per second (modelled)")
    axes.set_xticks(DEVICES, [str(n) for n in DEVICES])
    axes.minorticks_off()
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    write_figure(figure, path)
    plt.close(figure)


def main(options: flags.FlagValues) -> None:
    """The command line."""
    figure, machine = figure_path(options.figure), Machine()
    runtime.start(options.host_devices)
    net = network(Config(crop_size=227))
    weak = predictions(machine, net, options.batch_size, weak=True)
    result: dict[str, Any] = {"network": vars(net), "machine": vars(machine), "weak_scaling": weak,
                              "fixed_global_batch_1024": predictions(machine, net, 1024, weak=False)}  # fmt: skip
    if options.traffic:
        meshes = [
            mesh for mesh in ("1x2", "2x1", "2x2", "4x2") if math.prod(map(int, mesh.split("x"))) <= len(jax.devices())
        ]
        configs = [Config(crop_size=227, mesh=MeshShape.parse(mesh), batch_size=8, bias_init=0.1) for mesh in meshes]
        result["traffic"] = [traffic(config, net) for config in configs]
    if figure:
        draw(weak, figure, options.batch_size)
    print(json.dumps(result | provenance(), indent=1))


def define_flags(options: flags.FlagValues) -> None:
    """The flags of this command."""
    flags.DEFINE_integer("batch_size", 128, "images on each device in the weak scaling", lower_bound=1, flag_values=options)
    flags.DEFINE_integer("host_devices", 0, "force this many CPU devices, for --traffic", lower_bound=0, flag_values=options)
    flags.DEFINE_boolean("traffic", False, "count the exchanged values in the compiled step", flag_values=options)
    flags.DEFINE_string("figure", None, "draw the weak scaling into this .png or .svg", flag_values=options)


COMMAND = cli.Command(__doc__, define_flags, main)

if __name__ == "__main__":
    COMMAND.run()
