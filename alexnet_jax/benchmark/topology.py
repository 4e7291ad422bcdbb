"""Devices of accelerators that are not here: programs can be compiled for them, and nothing can be run."""

import importlib.util
import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies

from alexnet_jax.benchmark.chips import Slice
from alexnet_jax.system.errors import UserError

GPUS_PER_HOST = 8


def devices(chips: Slice) -> Sequence[Any]:
    """The devices, in the order of their numbers. For a process that has `chips.environment`.

    Raises:
        UserError: there is no such slice, or the compiler does not go with this JAX.
    """
    try:
        return (_tpus(chips) if chips.is_tpu else _gpus(chips)).devices
    except (RuntimeError, ValueError) as error:
        said = " ".join(str(error).split())[:200]
        raise UserError(f"--compile_for={chips}: jax {jax.__version__} has no such devices: {said}") from error


def _tpus(chips: Slice) -> topologies.TopologyDescription:
    sides = (*chips.sides, 1, 1)[: chips.chip.dimensions]
    shape = f"{chips.name}:{'x'.join(map(str, sides))}"
    part = {} if chips.count >= 4 else {"chips_per_host_bounds": (*chips.sides, 1)[:3]}  # a host has four chips or more
    return topologies.get_topology_desc(platform="tpu", topology_name=shape, **part)


def _gpus(chips: Slice) -> topologies.TopologyDescription:
    hosts, gpus = max(1, chips.count // GPUS_PER_HOST), min(chips.count, GPUS_PER_HOST)
    if hosts * gpus != chips.count:
        raise ValueError(f"{GPUS_PER_HOST} GPUs are in a host, and {chips.count} fill no number of hosts")
    target = _gpu_target(chips.chip.description)
    shape = f"1x{hosts}x{gpus}"
    return topologies.get_topology_desc(platform="cuda", topology_name=chips.name, target_config=target, topology=shape)


def _gpu_target(description: str) -> str:
    """What the compiler has to know of a GPU. The CUDA plugin has such a text for every card that it knows.

    Raises:
        ValueError: not for this one.
    """
    plugin = importlib.util.find_spec("jax_plugins.xla_cuda13")
    folder = next(iter(plugin.submodule_search_locations or ())) if plugin else ""
    with (
        Path(folder, "xla_cuda_plugin.so").open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as library,
    ):
        named = library.find(f'device_description_str: "{description}"'.encode())
        start = library.rfind(b"gpu_device_info {", 0, max(named, 0))
        if start < 0:
            raise ValueError(f"the CUDA plugin does not describe {description}")
        return library[start : library.find(b"\0", named)].decode()
