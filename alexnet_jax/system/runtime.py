"""What every entry point sets up before JAX starts: forced devices and the cache of compiled programs."""

import hashlib
import importlib.metadata
import os
import platform
from pathlib import Path

import jax

from alexnet_jax.system.errors import UserError

HEARTBEAT_SECONDS = 20  # without a sign of life a process is taken for dead
CONNECT_SECONDS = 300  # hosts of a cluster start minutes apart


def start(host_devices: int | None = None, distributed: bool = False) -> None:
    """Call it once, before the first array or question for a device.

    Args:
        host_devices: number of CPU devices to force in this process; none leaves it to JAX.
        distributed: join the other processes. On Slurm, Kubernetes and Cloud TPU JAX finds them by itself; elsewhere
            JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID name them, which launch/local sets.

    Raises:
        UserError: the other processes cannot be found or do not answer.

    Compiled programs are kept in `cache_folder()`, so that a second start compiles nothing. JAX's own settings come first:
    JAX_COMPILATION_CACHE_DIR, JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS, JAX_ENABLE_COMPILATION_CACHE=false.
    """
    if host_devices:
        jax.config.update("jax_num_cpu_devices", host_devices)
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ and _can_write(folder := cache_folder()):
        jax.config.update("jax_compilation_cache_dir", str(folder))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    if distributed:
        _join()


def _join() -> None:
    # None is for JAX to find out.
    count, number = (os.environ.get(name) for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"))
    try:
        jax.distributed.initialize(
            num_processes=int(count) if count else None,
            process_id=int(number) if number else None,
            initialization_timeout=CONNECT_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"--distributed: {str(error).splitlines()[0]} Start it with launch/local, on a cluster that JAX knows, or with "
            "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID"
        ) from error


def cache_folder(name: str = "xla", processor: str | None = None, jaxlib: str | None = None) -> Path:
    """One for each kind of processor, for code compiled on one may not run on another that shares the home folder, and for
    each jaxlib. They are those of this process unless they are given."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    kind = hashlib.sha256((_processor() if processor is None else processor).encode()).hexdigest()
    return home / "alexnet_jax" / f"{name}-{jaxlib or importlib.metadata.version('jaxlib')}-{kind[:12]}"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    features = sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))})
    return "\n".join(features or [platform.machine(), platform.processor()])


def _can_write(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)
