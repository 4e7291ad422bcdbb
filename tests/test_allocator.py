"""What the allocator does to the page faults of a program that is run again and again."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import resource
import jax, jax.numpy as jnp
from alexnet_jax.allocator import keep_freed_memory
kept = keep_freed_memory()
x = jnp.ones((256, 1024, 64))  # 64 MiB
step = jax.jit(lambda x: x @ jnp.ones((64, 64)) + 1)
def faults():
    for _ in range(5):
        step(x).block_until_ready()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
faults()
print(kept, -faults() + faults())
"""


def faults(**environment):
    clean = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD" and not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=clean | environment, capture_output=True, text=True, check=True
    )
    kept, count = done.stdout.split()
    return kept == "True", int(count)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is Linux's")
def test_memory_is_kept_from_step_to_step_unless_the_environment_sets_malloc_up():
    kept, with_it = faults()
    if not kept:
        pytest.skip("not glibc")
    left_alone, without = faults(MALLOC_TOP_PAD_="131072")
    assert not left_alone
    assert without > 5 * (64 << 20) / 4096 / 2  # at least half of each step's pages, unless they are huge
    assert with_it < without / 10
