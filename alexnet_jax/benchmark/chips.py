"""The accelerators that programs can be compiled for without having one: what each can do, and how its compiler is asked.

Rates are the makers' own, of dense bfloat16 products. The clocks follow from them and from the number of multipliers.
"""

import importlib.metadata
import math
from collections.abc import Mapping
from dataclasses import dataclass

from alexnet_jax.system.errors import UserError
from alexnet_jax.system.extras import install

GB = 10**9


@dataclass(frozen=True)
class Chip:
    """One accelerator, as JAX sees it: of a TPU of two cores that is both together."""

    flops_per_second: float
    bytes_per_second: float
    memory: int  # bytes
    clock: float | None  # cycles per second of a TPU, whose compiler counts in them
    dimensions: int = 2  # of a TPU's slices
    description: str = ""  # of a GPU, as the CUDA plugin calls it


CHIPS: Mapping[str, Chip] = {
    "v4": Chip(275e12, 1228e9, 32 * GB, 1.05e9, dimensions=3),
    "v5e": Chip(197e12, 819e9, 16 * GB, 1.5e9),
    "v5p": Chip(459e12, 2765e9, 95 * GB, 1.75e9, dimensions=3),
    "v6e": Chip(918e12, 1640e9, 32 * GB, 1.75e9),
    "a100": Chip(312e12, 2039e9, 80 * GB, None, description="NVIDIA A100-SXM4-80GB"),
    "h100": Chip(989e12, 3350e9, 80 * GB, None, description="NVIDIA H100 80GB HBM3"),
    "h200": Chip(989e12, 4800e9, 141 * GB, None, description="NVIDIA H200 141GB HBM3e"),
    "b200": Chip(2250e12, 8000e9, 180 * GB, None, description="NVIDIA B200"),
}


@dataclass(frozen=True)
class Slice:
    """Some chips of one kind, wired together: 'v5e:2x2'."""

    name: str
    sides: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name}:{'x'.join(map(str, self.sides))}"

    @property
    def chip(self) -> Chip:
        """What one of them can do."""
        return CHIPS[self.name]

    @property
    def is_tpu(self) -> bool:
        """The others are GPUs."""
        return self.chip.clock is not None

    @property
    def count(self) -> int:
        """Chips in all."""
        return math.prod(self.sides)

    @staticmethod
    def parse(text: str) -> "Slice":
        """'v5e:2x2' as its parts. Raises UserError on anything else, and on an unknown chip."""
        name, _, shape = text.partition(":")
        sides = shape.split("x")
        if name not in CHIPS:
            raise UserError(f"--compile_for={text}: no such chip; known are {', '.join(CHIPS)}")
        if not all(side.isdecimal() and 0 < int(side) < 10**4 for side in sides) or len(sides) not in (
            2,
            CHIPS[name].dimensions,
        ):
            raise UserError(f"--compile_for={text} is not of the form CHIP:SHAPE, such as v5e:2x2")
        return Slice(name, tuple(map(int, sides)))

    @property
    def packages(self) -> tuple[str, ...]:
        """What has the compiler, as pip calls it."""
        return ("libtpu",) if self.is_tpu else ("jax-cuda13-plugin", "jax-cuda13-pjrt")

    def environment(self) -> dict[str, str]:
        """Variables that have to be there before the compiler is loaded."""
        if self.is_tpu:
            return {
                "JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v5litepod-4",
                "TPU_WORKER_HOSTNAMES": "localhost", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
            }  # fmt: skip
        return {
            "JAX_PLATFORMS": "cpu", "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1", "XLA_FLAGS": "--xla_gpu_autotune_level=0",
        }  # fmt: skip

    def check_packages(self) -> None:
        """Raises UserError if the compiler is not installed."""
        for package in self.packages:
            try:
                importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                raise UserError(
                    f"--compile_for={self} needs {package}: {install('libtpu')}, with Python 3.12 or newer"
                ) from None
