"""The GPUs of this machine, shared out among processes that train side by side."""

import math
import os
import subprocess


def share_of_gpus(job: int, jobs: int) -> dict[str, str]:
    """The environment that gives one of several processes its share. It is empty without GPUs, and for one process alone.

    Each gets GPUs of its own if there are enough. Otherwise several have the same one, and each a part of its memory, since
    JAX takes three quarters of it by default. Choices that the user has made in these variables stay.
    """
    if jobs == 1 or "CUDA_VISIBLE_DEVICES" in os.environ:
        return {}
    try:
        listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return {}
    count = len(listed.splitlines())
    if not count:
        return {}
    mine = [gpu for gpu in range(count) if gpu % jobs == job] or [job % count]
    environment = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, mine))}
    if jobs > count and "XLA_PYTHON_CLIENT_MEM_FRACTION" not in os.environ:
        environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{0.8 / math.ceil(jobs / count):.3f}"  # the rest is for the drivers
    return environment
