"""The folder of a run: config.json, and who may write into it."""

import contextlib
import importlib.metadata
import os
import platform
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float32

from alexnet_jax.config import Config, as_dict, from_dict
from alexnet_jax.run.changes import changed_flags
from alexnet_jax.run.metrics import METRICS, RECORDS, check_records
from alexnet_jax.run.mirror import reading_copy
from alexnet_jax.run.wandb_run import WANDB_ID
from alexnet_jax.system.errors import InUse, UserError
from alexnet_jax.system.files import exclusively, read_array, read_json, replacing, write_json
from alexnet_jax.system.stores import refuse_remote

MeanImage = Float32[np.ndarray, "size size 3"]

IMPORTED = "imported from "  # begins the fingerprint of imported weights
COMMIT_FILE = "commit.txt"
UNSAVED = "unsaved"  # a file that is in the folder until the first checkpoint has reached the disk
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def _git(*words: str) -> str:
    folder = Path(__file__).parent
    return subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


def _commit() -> str | None:
    """The commit of the code, with '+' if it was changed since; None outside a git checkout.

    `git archive`, and so a download of the repository as an archive, writes the commit into COMMIT_FILE.

    Records and pages are not code: the experiments write both, and the next one's numbers do not depend on them.
    """
    archived = Path(__file__).parent / COMMIT_FILE
    if archived.exists() and not (commit := archived.read_text(encoding="utf-8").strip()).startswith("$"):
        return commit
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
    refuse_remote(f"--workdir={workdir}", workdir)  # `train` works in a copy
    if jax.process_index():
        yield
        return
    check_name(workdir, writing=True)
    path = Path(workdir) / "lock"
    with contextlib.ExitStack() as stack:
        try:
            known = path.exists() or (path.parent / "config.json").exists()
            if not known and path.parent.is_dir() and any(path.parent.iterdir()):
                raise UserError(f"--workdir={workdir} holds something that is not a run: choose an empty or a new folder")
            lock = stack.enter_context(exclusively(path, wait=False))
            if lock is None:
                raise InUse(f"--workdir={workdir} is in use by {_holder(path)}")
            lock.truncate(0)
            holder = f"process {os.getpid()} on {socket.gethostname()}\n"
            os.write(lock.fileno(), holder.encode())  # without a buffer, so that a full disk is told here
        except OSError as error:
            raise UserError(f"--workdir={workdir} cannot be written: {error.strerror or error}") from error
        yield


def _holder(lock: Path) -> str:
    return lock.read_text(encoding="utf-8", errors="replace").strip() or "another process"


def check_name(workdir: str, *, writing: bool) -> None:
    r"""Raises UserError on a path that Orbax takes for a pattern when it writes, or that TensorStore splits at a `\`."""
    path = str(Path(workdir).absolute())
    odd = [character for character in ("*?[\\" if writing else "\\") if character in path]
    odd += [character for character in path if "\ud800" <= character <= "\udfff"]  # no text in UTF-8
    if odd:
        raise UserError(
            f"--workdir={workdir!r}: {odd[0]!r} in its path would make checkpoints unreadable: rename the folder"
        )


@dataclass(frozen=True)
class Stored:
    """What config.json says of a run.

    fingerprint: content hash of its data set, or, for imported weights, where they come from.
    """

    config: Config
    classes: tuple[str, ...]
    fingerprint: str

    @property
    def is_imported(self) -> bool:
        """Whether the weights were trained by another program, on data that are not known here."""
        return self.fingerprint.startswith(IMPORTED)

    def check_data(self, fingerprint: str, classes: tuple[str, ...]) -> None:
        """Raises UserError if a prepared set is not the one that the run was trained on. Imported weights take any."""
        data = f"--dataset={self.config.dataset} under --data_dir={self.config.data_dir}"
        if classes != self.classes:
            raise UserError(f"{data} has other classes than the run in {self.config.workdir}, or in another order")
        if fingerprint != self.fingerprint and not self.is_imported:
            raise UserError(
                f"{data} is not what the run in {self.config.workdir} was trained on: it has been prepared again with other "
                "content or other splits; name the --data_dir of the old set"
            )


def read_stored(workdir: str, flag: str = "workdir") -> Stored:
    """What is known of the run in a folder, which `flag` names. Of one in an object store it is that of a copy here.

    Raises:
        UserError: there is no run, or its config.json is damaged; or the store refuses.
    """
    if not workdir:
        raise UserError(f"--{flag} is missing: name the folder of a run")
    folder = reading_copy(workdir)
    path = Path(folder) / "config.json"
    if not path.exists():
        raise UserError(f"--{flag}={workdir} holds no run: there is no config.json")
    content = read_json(path)
    try:
        config, dataset = content["config"], content["dataset"]
        classes, fingerprint = dataset["classes"], dataset["fingerprint"]
        if not isinstance(config, dict) or not isinstance(classes, list) or not isinstance(fingerprint, str):
            raise TypeError("config, classes or fingerprint")
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is not the config of a run: {error} is missing or of the wrong type") from error
    try:
        return Stored(replace(from_dict(config), workdir=folder), tuple(map(str, classes)), fingerprint)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def read_config(workdir: str) -> Config:
    """The config of the run in a folder. Raises UserError if there is none."""
    return read_stored(workdir).config


def check_resumable(config: Config, fingerprint: str, classes: tuple[str, ...], mean: MeanImage) -> bool:
    """Whether the folder holds a run that had a checkpoint. Changes nothing.

    Raises:
        UserError: it holds a run that this config, data set or mean image would alter, or records that are damaged.
    """
    workdir = Path(config.workdir)
    check_records(workdir)
    if not (workdir / "config.json").exists():
        if (workdir / METRICS).exists() or any((workdir / "checkpoints").glob("[0-9]*")):
            raise UserError(f"--workdir={workdir} has lost its config.json: put it back, or choose a new --workdir")
        return False
    stored = read_stored(config.workdir)
    if changes := changed_flags(stored.config, config):
        raise UserError(
            f"--workdir={workdir} holds another run: {'; '.join(changes)}. Use a new --workdir or the old values"
        )
    replace(stored, config=config).check_data(fingerprint, classes)
    own = read_mean(replace(config, init=""))
    if own is not None and not np.array_equal(own, mean):
        raise UserError(f"--workdir={workdir}: mean.npy is not the mean image of --dataset={config.dataset}: put it back")
    return not (workdir / UNSAVED).exists()


def write_folder(config: Config, fingerprint: str, classes: tuple[str, ...], mean: MeanImage) -> None:
    """Writes config.json and mean.npy of a run. Call it under `locked`, after `check_resumable`.

    Args:
        config: of the run.
        fingerprint: content hash of the data set.
        classes: their names. They and `mean` are kept so that figures and predictions need no data.
        mean: subtracted from every image.

    Raises:
        UserError: the folder cannot be written.
    """
    if jax.process_index():  # the first process writes
        return
    workdir = Path(config.workdir)
    try:
        if not (workdir / "config.json").exists():
            (workdir / UNSAVED).touch()
        with replacing(workdir / "mean.npy", "wb") as file:
            np.save(file, mean)
        write_json(
            workdir / "config.json",
            {
                # Without the place itself, so that a folder can be moved.
                "config": as_dict(replace(config, workdir="")),
                "dataset": {"fingerprint": fingerprint, "classes": list(classes)},
                **provenance(),
            },
        )
    except OSError as error:
        raise UserError(f"--workdir={workdir} cannot be written: {error.strerror or error}") from error


def mark_saved(workdir: Path) -> None:
    """From now on a run without a readable checkpoint has lost it."""
    (workdir / UNSAVED).unlink(missing_ok=True)


def set_aside(path: Path, workdir: Path) -> Path:
    """Moves a file or folder to W/damaged/, where it replaces nothing. Returns its place."""
    target, number = workdir / "damaged" / path.name, 1
    target.parent.mkdir(exist_ok=True)
    while target.exists():
        number += 1
        target = target.with_name(f"{path.name}-{number}")
    return path.rename(target)


def start_over(workdir: Path) -> None:
    """Sets the records of a run aside that has lost its checkpoints, so that it can begin at step 0."""
    if jax.process_index() == 0:
        for name in (*RECORDS, "tensorboard", WANDB_ID):
            if (workdir / name).exists():
                set_aside(workdir / name, workdir)
        (workdir / UNSAVED).touch()


def read_mean(config: Config) -> MeanImage | None:
    """The mean image that the run in `config.workdir` subtracts, RGB from 0 to 255; None where none is kept.

    A run that has not begun takes that of the run which --init names, or its channel means if it is of another size.

    Raises:
        UserError: it is not such an image.
    """
    for folder in (config.workdir, config.init):
        path = Path(reading_copy(folder)) / "mean.npy"
        if folder and path.exists():
            break
    else:
        return None
    mean = read_array(path)
    is_image = mean.ndim == 3 and mean.shape[0] == mean.shape[1] and mean.shape[2] == 3
    if not is_image or mean.dtype.kind != "f" or not np.isfinite(mean).all():
        raise UserError(f"{path} is no mean image: it is {mean.dtype} {mean.shape}, or has values that are not finite")
    size = config.image_size
    if len(mean) != size:
        mean = np.broadcast_to(mean.mean((0, 1)), (size, size, 3))
    return np.ascontiguousarray(mean, np.float32)
