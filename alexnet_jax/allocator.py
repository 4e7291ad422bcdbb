"""Keeps the memory of one step for the next, on the CPU.

XLA's CPU backend asks malloc for a step's buffers anew, gigabytes at the paper's batch, and glibc hands them back to the
system after it: every step then waits for hundreds of thousands of page faults.
"""

import ctypes
import os

# <malloc.h>
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8
_NEVER = 2**31 - 1
_GROW_BY = 64 << 20


def keep_freed_memory() -> bool:
    """Makes glibc's malloc keep what is freed: 1.2 times the training speed on two cores, for a tenth more memory.

    Call it before threads are started. Where the environment sets malloc up itself (GLIBC_TUNABLES, MALLOC_*, LD_PRELOAD),
    or with another C library, nothing is changed. Returns whether it was.
    """
    chosen = any(name in ("GLIBC_TUNABLES", "LD_PRELOAD") or name.startswith("MALLOC_") for name in os.environ)
    libc = ctypes.CDLL(None)
    if chosen or not hasattr(libc, "gnu_get_libc_version"):
        return False
    # One arena: the others cannot hold a large block, and would map and unmap it each time.
    settings = {_M_ARENA_MAX: 1, _M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: _NEVER, _M_TOP_PAD: _GROW_BY}
    return all([libc.mallopt(name, value) for name, value in settings.items()])
