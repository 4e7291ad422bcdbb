"""The folder of a run: config.json, and who may write into it."""

import contextlib
import importlib.metadata
import os
import platform
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float32

from alexnet_jax.config import Config, as_dict, changed_flags, from_dict
from alexnet_jax.system.errors import InUse, UserError
from alexnet_jax.system.files import exclusively, read_json, replacing, write_json

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def _git(*words: str) -> str:
    folder = Path(__file__).parent
    return subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


def _commit() -> str | None:
    """The commit of the code, with '+' if it was changed since; None outside a git checkout.

    Records and pages are not code: the experiments write both, and the next one's numbers do not depend on them.
    """
    code = (":(top)", ":(top,exclude)experiments/results", ":(top,exclude)*.md")
    try:
        return _git("rev-parse", "HEAD") + "+" * bool(_git("status", "--porcelain", "--", *code))
    except (OSError, subprocess.CalledProcessError):
        return None


def provenance() -> dict[str, Any]:
    """What is recorded beside a number: versions of packages and Python, the commit, the devices."""
    return {
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "commit": _commit(),
        "devices": [f"{device.platform}:{device.id} {device.device_kind}" for device in jax.devices()],
    }


@contextlib.contextmanager
def locked(workdir: str) -> Iterator[None]:
    """Keeps a second trainer out of a folder. The first of several processes that train together holds the lock.

    Raises:
        InUse: another process has the lock; the message names it.
        UserError: the folder cannot be written, or it holds something that is not a run.
    """
    if not workdir:
        raise UserError("--workdir is missing: name a folder for the run")
    if jax.process_index():
        yield
        return
    path = Path(workdir) / "lock"
    known = path.exists() or (path.parent / "config.json").exists()
    if not known and path.parent.is_dir() and any(path.parent.iterdir()):
        raise UserError(f"--workdir={workdir} holds something that is not a run: choose an empty or a new folder")
    with contextlib.ExitStack() as stack:
        try:
            lock = stack.enter_context(exclusively(path, wait=False))
        except OSError as error:
            raise UserError(f"--workdir={workdir} cannot be written: {error.strerror or error}") from error
        if lock is None:
            raise InUse(f"--workdir={workdir} is in use by {path.read_text().strip() or 'another process'}")
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        lock.flush()
        yield


def open_for_training(
    config: Config, fingerprint: str, classes: tuple[str, ...], mean: Float32[np.ndarray, "size size 3"]
) -> Path:
    """Makes or re-opens the folder of a run and writes its config.json and mean.npy. Call it under `locked`.

    Args:
        fingerprint: content hash of the data set.
        classes: their names. They and `mean` are kept so that figures and predictions need no data.
        mean: subtracted from every image.

    Raises:
        UserError: the folder holds a run that this config would alter, or cannot be written.
    """
    workdir, path = Path(config.workdir), Path(config.workdir) / "config.json"
    try:
        if path.exists():
            _check_resumable(path, config, fingerprint)
        if jax.process_index():  # the first process writes
            return workdir
        with replacing(workdir / "mean.npy", "wb") as file:
            np.save(file, mean)
        write_json(
            path,
            {
                # Without the place itself, so that a folder can be moved.
                "config": as_dict(replace(config, workdir="")),
                "dataset": {"fingerprint": fingerprint, "classes": list(classes)},
                **provenance(),
            },
        )
    except OSError as error:
        raise UserError(f"--workdir={workdir} cannot be written: {error.strerror or error}") from error
    return workdir


def _check_resumable(path: Path, config: Config, fingerprint: str) -> None:
    stored = read_json(path)
    if changes := changed_flags(from_dict(stored["config"]), config):
        raise UserError(
            f"--workdir={path.parent} holds another run: {'; '.join(changes)}. Use a new --workdir or the old values"
        )
    if stored["dataset"]["fingerprint"] != fingerprint:
        raise UserError(
            f"--workdir={path.parent} holds a run on other data: --dataset={config.dataset} under "
            f"--data_dir={config.data_dir} has been prepared again with other content"
        )


def read_config(workdir: str) -> Config:
    """The config of the run in a folder. Raises UserError if there is none."""
    if not workdir:
        raise UserError("--workdir is missing: name the folder of a run")
    path = Path(workdir) / "config.json"
    if not path.exists():
        raise UserError(f"--workdir={workdir} holds no run: there is no config.json")
    return replace(from_dict(read_json(path)["config"]), workdir=workdir)


def read_classes(workdir: str) -> tuple[str, ...]:
    """The class names of the run in a folder."""
    return tuple(read_json(Path(workdir) / "config.json")["dataset"]["classes"])


def read_mean(config: Config) -> Float32[np.ndarray, "size size 3"] | None:
    """The mean image that the run in `config.workdir` subtracts, RGB from 0 to 255; None where none is kept.

    A run that has not begun takes that of the run which --init names, or its channel means if it is of another size.

    Raises:
        UserError: it is not such an image.
    """
    for folder in (config.workdir, config.init):
        path = Path(folder) / "mean.npy"
        if folder and path.exists():
            break
    else:
        return None
    try:
        mean = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if mean.ndim != 3 or mean.shape[0] != mean.shape[1] or mean.shape[2] != 3 or not np.isfinite(mean).all():
        raise UserError(f"{path} is no mean image: it has the shape {mean.shape} or values that are not finite")
    size = config.image_size
    if len(mean) != size:
        mean = np.broadcast_to(mean.mean((0, 1)), (size, size, 3))
    return np.ascontiguousarray(mean, np.float32)
