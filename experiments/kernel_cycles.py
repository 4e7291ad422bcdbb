"""What the kernels of `--fuse_norm_pool` cost by their instructions. `--compile_for` has no estimate of a kernel.

    python -m experiments.kernel_cycles --compile_for=v5e:1x2

The compiler for TPUs writes down the bundles of instructions of each kernel, and how deep in loops each is. One is issued in
a cycle. So bundles times trips are the cycles of a kernel, were its memory never late. Nothing is run.
"""

import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from absl import flags

from alexnet_jax.architectures import ARCHITECTURES
from alexnet_jax.benchmark.chips import Slice
from alexnet_jax.benchmark.topology import devices
from alexnet_jax.layers import MaxPool, ResponseNorm, trace
from alexnet_jax.norm_pool import LANES, relu_norm_pool
from alexnet_jax.system import cli
from alexnet_jax.system.errors import UserError

LAYERS = ("conv1", "conv2")  # of `paper`, those with a response norm
KERNELS = ("norm_pool", "norm_pool_gradient")
_BUNDLE = re.compile(r"^\s*(?:0x[0-9a-f]+|0)\s+(?:\w+\s*)?:\s*(>*)")


class Kernel(NamedTuple):
    """One kernel at one layer. `row`: bundles for two rows of pixels, `window`: for each window of such a row besides."""

    layer: str
    name: str
    side: int  # of the maps, in pixels
    row: int
    window: int

    @property
    def cycles(self) -> int:
        """Of a block of images. The rows of windows are one fewer than the steps over rows of pixels."""
        windows = self.side // 2
        return (windows + 1) * (self.row + windows * self.window)


def bundles(text: str) -> Counter[int]:
    """How many bundles a listing has at each depth of loops."""
    return Counter(len(found[1]) for line in text.splitlines() if (found := _BUNDLE.match(line)))


def kernels(chips: Slice) -> Iterator[Kernel]:
    """The kernels of a tower, compiled for a chip. Raises UserError as `compiled_text`, and if no bundles are listed."""
    shapes = {one.name: one for one in trace(ARCHITECTURES["paper"], ARCHITECTURES["paper"].crop_size)}
    for layer in LAYERS:
        side, maps = shapes[layer].conv_side, shapes[layer].out_maps
        with tempfile.TemporaryDirectory() as folder:
            compiled_text(chips, (LANES, side, side, maps), f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true")
            for name in KERNELS:
                listings = sorted(Path(folder).glob(f"*-{name}.[0-9]*-final_bundles.txt"))
                if not listings:
                    raise UserError(f"--compile_for={chips}: the compiler of this version lists no bundles of {name}")
                found = bundles(listings[-1].read_text())
                yield Kernel(layer, name, side, found[1], found[2])


def compiled_text(chips: Slice, shape: tuple[int, ...], libtpu: str = "") -> str:
    """The text of a program with both kernels, compiled for a chip in a process of its own.

    Args:
        chips: of which one is compiled for.
        shape: of the maps in bfloat16: batch, height, width and maps.
        libtpu: further flags of the compiler.

    Raises:
        UserError: the compiler is missing or fails.
    """
    chips.check_packages()
    command = [sys.executable, "-c", f"from experiments import kernel_cycles as k; k.compile_here({str(chips)!r}, {shape})"]
    environment = os.environ | chips.environment() | {"LIBTPU_INIT_ARGS": libtpu}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if ended.returncode:
        last = (ended.stderr.splitlines() or ["nothing"])[-1]
        raise UserError(
            f"--compile_for={chips}: the compiler's process ended with {ended.returncode}; it said: {last[:300]}"
        )
    return ended.stdout


def compile_here(chips: str, shape: tuple[int, ...]) -> None:
    """Prints the text for `compiled_text`. For a process that has the environment of the chips."""

    def total(x, bias):
        return relu_norm_pool(x, bias, ResponseNorm(), MaxPool()).astype(jnp.float32).sum()

    place = jax.sharding.SingleDeviceSharding(devices(Slice.parse(chips))[0])
    x, bias = (jax.ShapeDtypeStruct(each, jnp.bfloat16, sharding=place) for each in (shape, shape[-1:]))
    print(jax.jit(jax.grad(total, argnums=(0, 1))).lower(x, bias).compile().as_text())


def table(chips: Slice, found: list[Kernel]) -> str:
    """The kernels in Markdown."""
    clock = chips.chip.clock or 0.0
    lines = ["| layer | kernel | bundles: two rows, each window | cycles | ms |", "|---|---|---|---|---|"]
    for one in found:
        ms = 1e3 * one.cycles / clock
        lines.append(f"| {one.layer} | `{one.name}` | {one.row}, {one.window} | {one.cycles:,} | {ms:.3f} |")
    total = sum(one.cycles for one in found)
    return "\n".join([*lines, f"| together | | | {total:,} | {1e3 * total / clock:.3f} |"])


def main(options: flags.FlagValues) -> None:
    """The command line."""
    chips = Slice.parse(options.compile_for)
    if not chips.is_tpu:
        raise UserError(f"--compile_for={chips}: the kernels are for TPUs")
    found = list(kernels(chips))
    print(f"{LANES} images, bfloat16, a tower of `paper` on {chips}. Nothing was run.\n\n{table(chips, found)}")


def define_flags(options: flags.FlagValues) -> None:
    """The flags of this command."""
    flags.DEFINE_string("compile_for", "v5e:1x2", "`CHIP:SHAPE` of the TPUs", flag_values=options)


COMMAND = cli.Command(__doc__, define_flags, main)

if __name__ == "__main__":
    COMMAND.run()
