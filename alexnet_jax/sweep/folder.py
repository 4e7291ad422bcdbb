"""The folder of a sweep: what it may hold, and its name in studies that sweeps share."""

import uuid
from pathlib import Path

from alexnet_jax.run.workdir import check_name
from alexnet_jax.system.errors import UserError
from alexnet_jax.system.files import exclusively, read_json, write_json
from alexnet_jax.system.stores import refuse_remote

OURS = {"sweep.json", "sweep.lock", "study.db"}  # a sweep that was killed at once has left one of these


def check_folder(workdir: str) -> Path:
    """The folder that --workdir names. Nothing is made.

    Raises:
        UserError: it holds something else than a sweep.
    """
    if not workdir:
        raise UserError("--workdir is missing: name a folder for the sweep")
    refuse_remote(f"--workdir={workdir}", workdir)
    check_name(workdir, writing=True)  # the trainers would refuse it
    folder = Path(workdir)
    try:
        names = {path.name for path in folder.iterdir()}
    except FileNotFoundError:
        names = set()
    except OSError as error:
        raise UserError(f"--workdir={workdir} cannot be used: {error.strerror}") from error
    if "config.json" in names:
        raise UserError(f"--workdir={workdir} holds a run: choose another folder for the sweep")
    if names and not names & OURS:
        raise UserError(f"--workdir={workdir} holds something that is not a sweep: choose an empty or a new folder")
    return folder


def make_folder(folder: Path) -> None:
    """Raises UserError if it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--workdir={folder} cannot be made: {error.strerror}") from error


def sweep_id(folder: Path, study: str) -> str:
    """Marks this folder's trials in a study that sweeps share. Raises UserError if the folder has another study's trials."""
    path = folder / "sweep.json"
    with exclusively(folder / "sweep.lock", wait=True):
        if not path.exists():
            write_json(path, {"name": uuid.uuid4().hex, "study": study})
    stored = read_json(path)
    if not isinstance(stored, dict) or not stored.keys() >= {"name", "study"}:
        raise UserError(f"{path} is no record of a sweep: restore it, or use a new --workdir")
    if stored["study"] != study:
        raise UserError(
            f"--workdir={folder} has trials of the study {stored['study']!r}, not of {study!r}: use a new --workdir"
        )
    return stored["name"]
