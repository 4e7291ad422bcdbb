"""What every entry point sets before JAX starts: forced devices, other processes, the cache of compiled programs."""

import contextlib
import hashlib
import importlib.metadata
import os
import platform
import threading
from collections.abc import Mapping
from pathlib import Path

import jax

from alexnet_jax.system.errors import UserError

HEARTBEAT_SECONDS = 20  # a process that is silent for so long counts as dead
CONNECT_SECONDS = 300  # the hosts of a cluster start minutes apart
LEAVE_SECONDS = 5.0  # for the others to fail too, as they mostly do: bad input is the same for all


def start(host_devices: int | None = None, distributed: bool = False) -> None:
    """Call it once, before the first array and before anything asks for a device.

    Args:
        host_devices: CPU devices to force in this process; None leaves their number to JAX.
        distributed: join the other processes. JAX finds them by itself on Slurm, Kubernetes and Cloud TPU. Elsewhere
            JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID name them; launch/local sets these.

    Raises:
        UserError: the other processes cannot be found or do not answer.

    `cache_folder()` keeps compiled programs: a second start compiles nothing. JAX's own variables take precedence:
    JAX_COMPILATION_CACHE_DIR, JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS, JAX_ENABLE_COMPILATION_CACHE=false.
    """
    if host_devices:
        jax.config.update("jax_num_cpu_devices", host_devices)
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = cache_folder()
        with contextlib.suppress(OSError):  # a folder that cannot be made
            folder.mkdir(parents=True, exist_ok=True)
            if os.access(folder, os.W_OK):
                jax.config.update("jax_compilation_cache_dir", str(folder))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    if distributed:
        _join()


def _join() -> None:
    # None lets JAX find the value.
    named = ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "JAX_COORDINATOR_ADDRESS")
    count, number, address = (os.environ.get(name) for name in named)
    told = bool(count and number and address)  # then all GPUs that the process sees are its own, also in a job of Slurm
    try:
        jax.distributed.initialize(
            num_processes=int(count) if count else None,
            process_id=int(number) if number else None,
            local_device_ids=None if told else own_gpus(os.environ),
            cluster_detection_method="deactivate" if told else None,
            initialization_timeout=CONNECT_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"--distributed: {str(error).splitlines()[0]} Start it with launch/local, on a cluster that JAX knows, or with "
            "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID"
        ) from error


def leave_others(status: int) -> None:
    """Call it when this process ends because it has failed. Alone it does nothing.

    At its end JAX waits five minutes for the other processes. If they fail too they are there at once. If they work on, this
    process ends without them, and JAX ends them when it has been silent for `HEARTBEAT_SECONDS`.
    """
    if jax.distributed.is_initialized():
        timer = threading.Timer(LEAVE_SECONDS, os._exit, [status])
        timer.daemon = True
        timer.start()


def own_gpus(environment: Mapping[str, str]) -> list[int] | None:
    """The GPUs of a task of Slurm, by their place among those that it sees; None leaves them to JAX.

    JAX gives task N of a node the Nth GPU. That fails where Slurm has bound GPUs to each task (--gpus-per-task, --gpu-bind):
    the task sees only its own, counted from 0, and uses all of them. If tasks see all GPUs of the node, each gets its share.
    """
    seen, place = environment.get("CUDA_VISIBLE_DEVICES", ""), environment.get("SLURM_LOCALID", "")
    if not seen or not place.isdecimal() or environment.get("JAX_LOCAL_DEVICE_IDS"):
        return None
    number, gpus = int(place), len(seen.split(","))
    tasks = environment.get("SLURM_NTASKS_PER_NODE", "")
    enough = gpus > 1 and gpus > number and not (tasks.isdecimal() and gpus < int(tasks))
    if not enough or environment.get("SLURM_GPUS_PER_TASK", "").rpartition(":")[2] == str(gpus):
        return list(range(gpus))
    if not tasks.isdecimal():
        return None
    share = gpus // int(tasks)
    return list(range(number * share, (number + 1) * share))


def cache_folder(name: str = "xla", processor: str | None = None, jaxlib: str | None = None) -> Path:
    """The cache for a processor and a jaxlib, by default this process's: machines that share a home folder may differ."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    kind = hashlib.sha256((_processor() if processor is None else processor).encode()).hexdigest()
    return home / "alexnet_jax" / f"{name}-{jaxlib or importlib.metadata.version('jaxlib')}-{kind[:12]}"


def _processor() -> str:
    lines = cpuinfo.read_text().splitlines() if (cpuinfo := Path("/proc/cpuinfo")).exists() else []
    features = sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))})
    return "\n".join(features or [platform.machine(), platform.processor()])
