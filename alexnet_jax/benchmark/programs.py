"""Compiles the programs of a run for chips that are not here, and says what their compiler made of them.

`alexnet_jax.benchmark.compiled` starts it in a process of its own: these compilers read environment variables when they are
loaded, and some of their errors end the process.
"""

import importlib.metadata
import json
import os
import re
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from alexnet_jax.benchmark import hlo, topology
from alexnet_jax.benchmark.chips import GB, Chip, Slice
from alexnet_jax.benchmark.ours import CLASSES, training_flops
from alexnet_jax.config import from_dict
from alexnet_jax.data.splits import Batch
from alexnet_jax.layers import trace
from alexnet_jax.mesh import TowerMesh, make_mesh
from alexnet_jax.placement import are_neighbours
from alexnet_jax.run.workdir import provenance
from alexnet_jax.step import (
    ImageStats,
    Setup,
    StepHparams,
    TrainState,
    make_checksum,
    make_setup,
    make_train_step,
    make_view_step,
)
from alexnet_jax.system.errors import UserError

COPIES = ("copy", "transpose")
BESIDE = ("copy-", "slice-", "dynamic-slice-")  # start and done: between the memories of a TPU, beside its other work
SMALL = 2**16  # bytes that no one waits for
_SIZE = re.compile(r"\b([\d.]+)([KMGT])\b")  # "(102.04G) exceeds available HBM (15.75G)", "Used 20.5G of 15.75G hbm"
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def step_arguments(setup: Setup) -> tuple[Any, Any, Any, Any]:
    """What a training step takes, state, batch, hyper-parameters and image statistics, as shapes on the mesh."""
    config, mesh = setup.config, setup.mesh
    array, size, number = jax.ShapeDtypeStruct, config.image_size, np.float32(0)
    slots = jax.eval_shape(setup.transformation({}).init, setup.shapes)
    state: Any = on_mesh(mesh, TrainState(array((), jnp.int32), setup.shapes, slots), setup.state_specs)  # pyright: ignore
    images = array((config.batch_size, size, size, 3), jnp.uint8)
    batch: Any = on_mesh(mesh, Batch(images, array((config.batch_size,), jnp.int32)), P("data"))  # pyright: ignore
    rates = {layer: {"kernel": number, "bias": number} for layer in setup.shapes}
    constants = StepHparams(rates, number), ImageStats(array((size, size, 3), jnp.float32), array((3, 3), jnp.float32))  # pyright: ignore
    hparams, stats = on_mesh(mesh, constants, P())
    return state, batch, hparams, stats


def on_mesh(mesh: TowerMesh, tree: Any, specs: Any) -> Any:
    """The shapes of a tree of arrays, laid out as `specs` say."""

    def placed(spec: P, subtree: Any) -> Any:
        there = mesh.sharding(spec)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=there), subtree)

    return jax.tree.map(placed, specs, tree, is_leaf=lambda node: isinstance(node, P))


def lowered(setup: Setup) -> Iterator[tuple[str, Any]]:
    """The training step, one view of evaluation and the checksum of parameters, by name, lowered for the mesh's devices."""
    mesh = setup.mesh
    state, batch, hparams, stats = step_arguments(setup)
    view = on_mesh(mesh, (np.int32(0), np.int32(0), np.bool_(False), np.float32(0)), P())
    yield "train", make_train_step(setup).lower(state, batch, hparams, stats)  # pyright: ignore
    yield "evaluate", make_view_step(setup).lower(state.params, batch.images, stats.mean, *view)  # pyright: ignore
    yield "checksum", make_checksum(mesh, setup.specs).lower(state.params)  # pyright: ignore


def describe(compiled: Any, chip: Chip) -> dict[str, Any]:
    """What the compiler says of one program, for one device. Times are opinions: nothing has run.

    A TPU's seconds are the compiler's cycles. `unestimated` has what it gives none for, with the seconds of the bytes alone.
    A GPU's seconds are all those of the bytes.
    """
    module = hlo.parse(compiled.as_text())
    places: dict[str, float] = defaultdict(float)
    copies, collectives = Counter(), defaultdict(Counter)
    unestimated: dict[str, dict[str, float]] = defaultdict(lambda: {"count": 0, "bytes_seconds": 0.0})
    loops: dict[str, dict[str, Any]] = {}
    count = moved = written = needed = 0
    for one, times, place, loop, touched in module.running():
        count, moved, moving = count + times, moved + times * touched, touched / chip.bytes_per_second
        seconds = moving if chip.clock is None else (one.cycles or 0) / chip.clock
        places[place] += times * seconds
        size, beside = hlo.array_bytes(one.result), one.opcode.startswith(BESIDE)
        if not beside:
            written, needed = written + times * size, needed + times * hlo.array_bytes(one.result, padded=False)
        if chip.clock is not None and one.cycles is None and touched > SMALL and not beside:
            unestimated[one.opcode]["count"] += times
            unestimated[one.opcode]["bytes_seconds"] += times * moving
        if one.opcode in COPIES:
            copies.update(count=times, bytes=times * size)
        if loop:
            body = loops.setdefault(loop, {"place": place, "trips": times, "seconds": 0.0, "largest_copy": 0})
            body["seconds"] += times * seconds
            body["largest_copy"] = max(body["largest_copy"], size * (one.opcode in COPIES))
    for one, times in module.collectives():
        collectives[one.opcode.removesuffix("-start")].update(count=times, bytes=times * hlo.array_bytes(one.result))
    total = sum(places.values())
    return {
        "estimated_seconds": total or None,
        "instructions": count, "bytes": moved, "bytes_seconds": moved / chip.bytes_per_second,
        "memory": _memory(compiled.memory_analysis()),
        "places": dict(sorted(places.items(), key=lambda item: -item[1])),
        "unestimated": unestimated, "collectives": collectives, "copies": copies,
        "padding": 1 - needed / written if written else 0.0,
        "loops": list(loops.values()),
    }  # fmt: skip


def _memory(stats: Any) -> dict[str, int]:
    """Bytes on one device; results that take the place of arguments count once."""
    parts = {
        "arguments": stats.argument_size_in_bytes, "temporaries": stats.temp_size_in_bytes,
        "results": stats.output_size_in_bytes - stats.alias_size_in_bytes, "code": stats.generated_code_size_in_bytes,
    }  # fmt: skip
    return {"total": sum(parts.values()), **parts}


def compile_all(setup: Setup, chips: Slice) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every program by name as `describe` has it, and the seconds that compiling took.

    Raises:
        UserError: a batch does not fit into the memory of a device.
    """
    for name, program in lowered(setup):
        started = time.perf_counter()
        try:
            compiled = program.compile()
        except jax.errors.JaxRuntimeError as error:
            sizes = [float(number) * _UNITS[unit] for number, unit in _SIZE.findall(str(error).partition("\n")[0])]
            if "RESOURCE_EXHAUSTED" not in str(error) or len(sizes) < 2:
                raise
            raise _too_large(setup, chips, name, *sizes[:2]) from error
        record = describe(compiled, chips.chip)
        if record["memory"]["total"] > chips.chip.memory:
            raise _too_large(setup, chips, name, record["memory"]["total"], chips.chip.memory)
        flops = network_flops(setup, name)
        products = {"flops": flops, "flops_seconds": flops / chips.chip.flops_per_second}
        yield name, {**record, **products, "compile_seconds": time.perf_counter() - started}


def network_flops(setup: Setup, program: str) -> float:
    """Floating point operations of the layers' products on one device: the least that the program has to do."""
    table, crop, share = setup.config.table(), setup.config.crop, setup.config.batch_size / setup.mesh.grid.size
    if program == "train":
        return share * training_flops(table, crop, setup.classes)
    return (
        share * 2 * sum(layer.multiply_adds for layer in trace(table, crop, setup.classes)) if program == "evaluate" else 0.0
    )


def _too_large(setup: Setup, chips: Slice, program: str, needed: float, memory: float) -> UserError:
    """Parameters, velocity and gradients do not grow with the batch; the rest is taken to."""
    config = setup.config
    held = sum(x.size for x in jax.tree.leaves(setup.shapes)) // setup.mesh.tower_size
    fixed = 4 * held * (3 if program == "train" else 1)
    fits = int(config.batch_size * max(0.0, memory - fixed) / (needed - fixed))
    fits -= fits % setup.mesh.data_size
    return UserError(
        f"--batch_size={config.batch_size}: the {program} program needs {needed / GB:.1f} GB on each device of {chips}, "
        f"{(needed - memory) / GB:.1f} GB more than it has; about {fits:,} would fit"
    )


def main(words: Sequence[str]) -> None:
    """`words`: the chips, and a config as JSON. Prints a line of JSON for each program, and one for an error or the rest."""
    lines = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # stdout is for the result, not for what libraries print
    try:
        chips, config = Slice.parse(words[0]), from_dict(json.loads(words[1]))
        mesh = make_mesh(config.mesh, config.table().towers, config.batch_size, devices=topology.devices(chips))
        for name, record in compile_all(make_setup(config, CLASSES, mesh), chips):
            print(json.dumps({"program": name, "record": record}), file=lines, flush=True)
        beside = [are_neighbours(row) for row in mesh.grid.devices]
        about = {
            "settings": {
                "architecture": config.architecture, "batch_size": config.batch_size, "crop_size": config.crop,
                "precision": config.precision, "crosstalk_precision": config.crosstalk_precision,
                "accumulate": config.accumulate,
                "mesh": f"{mesh.data_size}x{mesh.tower_size}",
            },
            "tower_pairs_adjacent": None if None in beside else all(beside),
            **provenance(),
        }  # fmt: skip
        del about["devices"]  # of this machine, which compiles only
        about["versions"] |= {name: importlib.metadata.version(name) for name in chips.packages}
        print(json.dumps({"about": about}), file=lines, flush=True)
    except UserError as error:
        print(json.dumps({"error": str(error)}), file=lines, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
