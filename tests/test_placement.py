"""Which device stands where on the mesh, from the places that TPUs tell. Real slices too where libtpu is installed."""

import importlib.util
import itertools
import json
import os
import random
import subprocess
import sys
from dataclasses import dataclass

import jax
import numpy as np
import pytest

from alexnet_jax.benchmark.chips import Slice
from alexnet_jax.mesh import make_mesh
from alexnet_jax.placement import are_neighbours, place
from alexnet_jax.system.errors import UserError
from alexnet_jax.values import MeshShape


@dataclass(frozen=True)
class Chip:
    """As much of a TPU device as its place takes."""

    coords: tuple[int, int, int]
    core_on_chip: int = 0
    process_index: int = 0
    slice_index: int | None = None
    platform: str = "tpu"


def pod(sides: tuple[int, int, int], host: tuple[int, int, int], cores: int = 1, number: int | None = None) -> list[Chip]:
    """A slice in libtpu's order: hosts one after the other, x fastest, and so the chips of each host."""
    hosts = [range(0, side, step) for side, step in zip(sides, host, strict=True)]
    return [
        Chip((x + i, y + j, z + k), core, process, number)
        for process, (z, y, x) in enumerate(itertools.product(*reversed(hosts)))
        for k, j, i, core in itertools.product(*map(range, reversed(host)), range(cores))
    ]


def apart(row) -> list[int]:
    """Steps between each device of a row and the next."""
    return [sum(abs(a - b) for a, b in zip(one.coords, two.coords, strict=True)) for one, two in itertools.pairwise(row)]


V5E_4X4 = [
    (0, 0), (1, 0), (0, 1), (1, 1), (2, 0), (3, 0), (2, 1), (3, 1),
    (0, 2), (1, 2), (0, 3), (1, 3), (2, 2), (3, 2), (2, 3), (3, 3),
]  # fmt: skip  # what libtpu 0.0.50.1 says of v5e:4x4


def test_the_order_of_libtpu_is_kept():
    """It makes neighbours of all pairs: those of one slice, of chips with two cores, and of two slices."""
    assert [chip.coords[:2] for chip in pod((4, 4, 1), (2, 2, 1))] == V5E_4X4
    two = pod((2, 2, 1), (2, 2, 1), number=0) + pod((2, 2, 1), (2, 2, 1), number=1)
    for chips in (pod((4, 4, 1), (2, 2, 1)), pod((16, 16, 1), (2, 2, 1)), pod((2, 2, 4), (2, 2, 1), cores=2), two):
        grid = place(chips, MeshShape(len(chips) // 2, 2))
        assert grid.shape == (len(chips) // 2, 2)
        assert list(grid.flat) == chips


@pytest.mark.parametrize(
    ("sides", "host", "cores"),
    [
        ((4, 4, 1), (2, 2, 1), 1), ((1, 8, 1), (1, 4, 1), 1), ((2, 3, 4), (1, 1, 1), 1), ((3, 2, 3), (3, 2, 1), 1),
        ((2, 2, 2), (2, 2, 1), 2),
    ],
)  # fmt: skip
def test_in_any_other_order_the_towers_are_neighbours_too(sides, host, cores):
    """Two slices of it, their chips told in 20 drawn orders: every device once, no row on two slices, slices one by one."""
    chips = [chip for number in (0, 1) for chip in pod(sides, host, cores, number)]
    for seed in range(20):
        told = random.Random(seed).sample(chips, len(chips))
        grid = place(told, MeshShape(len(chips) // 2, 2))
        assert set(grid.flat) == set(chips)
        assert max(max(apart(row)) for row in grid) <= 1
        assert [chip.slice_index for chip in grid.flat] == [0] * (len(chips) // 2) + [1] * (len(chips) // 2)
        if host == (2, 2, 1):
            assert all(a.process_index == b.process_index for a, b in grid)


def test_a_small_mesh_takes_the_first_pairs_of_neighbours():
    diagonal = [Chip((0, 0, 0)), Chip((1, 1, 0)), Chip((2, 1, 0)), Chip((2, 2, 0))]
    assert list(place(diagonal, MeshShape(1, 2)).flat) == diagonal[2:]


@pytest.mark.parametrize(
    "chips",
    [
        [Chip((0, 0, 0)), Chip((1, 1, 0)), Chip((3, 0, 0)), Chip((3, 1, 0))],  # two apart are taken away
        [Chip((0, 0, 0), slice_index=0), Chip((0, 0, 0), slice_index=1)],  # a chip for each slice
    ],
)
def test_towers_that_cannot_be_neighbours_are_refused(chips):
    count = len(chips)
    with pytest.raises(UserError, match=rf"--mesh={count // 2}x2 needs {count // 2} rows of 2 neigh.* --mesh={count}x1"):
        make_mesh(None, 2, 8, devices=chips)
    assert list(place(chips, MeshShape(count, 1)).flat) == chips


def test_devices_without_places_stay_in_jaxs_order_slice_by_slice():
    @dataclass(frozen=True)
    class Gpu:
        number: int
        slice_index: int
        coords: tuple[int] = (0,)  # some versions number the GPUs of a host so
        platform: str = "gpu"

    gpus = [Gpu(number, number // 2 % 2) for number in range(8)]  # slices 0, 0, 1, 1, 0, 0, 1, 1
    assert [gpu.number for gpu in place(gpus, MeshShape(4, 2)).flat] == [0, 1, 4, 5, 2, 3, 6, 7]
    assert place([Gpu(0, 0), Gpu(1, 1)], MeshShape(1, 2)).size == 2  # a node for each tower is slow, but works
    assert are_neighbours(gpus[:2]) is None
    assert are_neighbours(jax.devices()[:2]) is None


def test_neighbours_are_one_step_apart_on_one_slice():
    here = Chip((1, 1, 0), slice_index=0)
    for coords, core, number, expected in [
        ((1, 2, 0), 0, 0, True), ((0, 1, 0), 0, 0, True), ((1, 1, 0), 1, 0, True), ((2, 2, 0), 0, 0, False),
        ((1, 3, 0), 0, 0, False), ((1, 2, 0), 0, 1, False),
    ]:  # fmt: skip
        assert are_neighbours([here, Chip(coords, core, slice_index=number)]) is expected


REAL = """
import json, sys
from jax.experimental import topologies
from alexnet_jax.placement import place
from alexnet_jax.values import MeshShape

def rows(name, **options):
    chips = topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices
    grid = place(chips, MeshShape(len(chips) // 2, 2))
    return [[(*chip.coords, getattr(chip, "slice_index", None)) for chip in row] for row in grid]

print(json.dumps([rows("v5e:16x16"), rows("v6e:4x4"), rows("v5p:2x2x2"), rows("v4:2x2x2"), rows("v5e:4x4", num_slices=2)]))
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is in requirements-accelerators.txt")
def test_the_towers_are_neighbours_on_real_slices():
    environment = os.environ | Slice.parse("v5e:2x2").environment()
    done = subprocess.run([sys.executable, "-c", REAL], env=environment, capture_output=True, text=True, check=True)
    slices = json.loads(done.stdout.splitlines()[-1])
    assert [len(rows) for rows in slices] == [128, 8, 4, 8, 16]
    for rows in slices:
        steps = np.abs(np.diff(np.array([[place[:3] for place in row] for row in rows]), axis=1)).sum(axis=-1)
        assert steps.max() <= 1
        assert all(a[3] == b[3] for a, b in rows)
