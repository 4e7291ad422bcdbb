"""What every entry point sets up before JAX starts: forced devices and the cache of compiled programs."""

import hashlib
import os
import platform
from pathlib import Path

import jax


def start(host_devices: int = 0) -> None:
    """Call it once, before the first array or question for a device.

    Args:
        host_devices: number of CPU devices to force; 0 leaves it to JAX.

    Compiled programs are kept in `cache_folder()`, so that a second start compiles nothing. JAX's own settings come first:
    JAX_COMPILATION_CACHE_DIR, JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS, JAX_ENABLE_COMPILATION_CACHE=false.
    """
    if host_devices:
        jax.config.update("jax_num_cpu_devices", host_devices)
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ and _can_write(folder := cache_folder()):
        jax.config.update("jax_compilation_cache_dir", str(folder))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def cache_folder() -> Path:
    """One for each kind of processor, for code compiled on one may not run on another that shares the home folder."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    features = sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))})
    kind = hashlib.sha256("\n".join(features or [platform.machine(), platform.processor()]).encode()).hexdigest()
    return home / "alexnet_jax" / f"xla-{kind[:12]}"


def _can_write(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)
