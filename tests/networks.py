"""Small settings that the tests share: the paper's network, an eighth as wide, at the smallest crop its layers admit."""

import contextlib
import functools
import importlib
import io
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

from alexnet_jax import mesh as meshes
from alexnet_jax.config import Config, from_dict
from alexnet_jax.data.example import Example, Listed, Source
from alexnet_jax.data.splits import Batch
from alexnet_jax.run.clock import Clock, Phase
from alexnet_jax.run.display import Display, run_console
from alexnet_jax.run.intervals import Intervals, Progress
from alexnet_jax.run.metrics import Row
from alexnet_jax.run.recorder import Recorder
from alexnet_jax.run.starts import StartLog
from alexnet_jax.step import Setup, make_setup
from alexnet_jax.values import MeshShape, Spmd

ROOT = Path(__file__).parents[1]
CROP, SIZE, CLASSES = 63, 66, 14
DEVICES = 8  # forced in this process by conftest.py
MESHES = ("1x1", "2x1", "1x2", "2x2", "4x2")
LAYOUTS = [(spmd, mesh) for spmd in ("shard_map", "pmap") for mesh in MESHES]


def small_config(**fields) -> Config:
    """A config for synthetic images of SIZE pixels. Fields are given as their flags say them: `mesh="2x1"`."""
    defaults = {
        "architecture": "paper_eighth", "dataset": "synthetic", "image_size": SIZE, "crop_size": CROP, "bias_init": 0.1,
        "batch_size": 8,
    }  # fmt: skip
    return from_dict(defaults | fields)


def make_mesh(shape: str, towers: int, batch_size: int, spmd: Spmd = "shard_map") -> meshes.TowerMesh:
    """The mesh that `--mesh` says."""
    return meshes.make_mesh(MeshShape.parse(shape), towers, batch_size, spmd)


@functools.cache
def small_setup(spmd: str = "shard_map", mesh: str = "1x1", **fields) -> Setup:
    """The model of a small config on a mesh."""
    config = small_config(spmd=spmd, mesh=mesh, **fields)
    tower_mesh = make_mesh(mesh, config.table().towers, config.batch_size, config.spmd)
    return make_setup(config, CLASSES, tower_mesh)


def small_batch(count: int = 8, seed: int = 0) -> Batch:
    """Noise with labels."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, SIZE, SIZE, 3), np.uint8)
    return Batch(images, rng.integers(0, CLASSES, count).astype(np.int32))


def small_mean() -> np.ndarray:
    """A mean image."""
    return np.full((SIZE, SIZE, 3), 127.0, np.float32)


def as_on(platform: str, monkeypatch) -> None:
    """From now on the forms of a platform are traced here: 'tpu', 'cpu', or any other one for what has none of its own."""

    def form(*operands, default, **others):
        return others.get(platform, default)(*operands)

    monkeypatch.setattr("jax.lax.platform_dependent", form)


def constant_rates(setup: Setup, rate: float = 1e-3) -> dict:
    """One rate for every parameter."""
    return {layer: {"kernel": np.float32(rate), "bias": np.float32(2 * rate)} for layer in setup.shapes}


def tiny_source(seed: int = 0) -> Source:
    """Coloured noise whose colour tells the class: 50 training, 21 validation and 33 test images of SIZE pixels."""
    rng = np.random.default_rng(seed)
    colours = rng.integers(30, 226, (CLASSES, 3))

    def examples(count: int) -> Listed:
        labels = rng.integers(0, CLASSES, count)
        noise = rng.normal(0, 25, (count, SIZE, SIZE, 3))
        images = (colours[labels][:, None, None] + noise).clip(0, 255).astype(np.uint8)
        return Listed([Example(image, label) for image, label in zip(images, labels.tolist(), strict=True)])

    splits = {"train": examples(50), "validation": examples(21), "test": examples(33)}
    return Source("tiny", tuple(f"colour {label}" for label in range(CLASSES)), f"noise, seed {seed}", splits)


def tiny_flags(data_dir: Path, workdir: Path | str, **fields) -> list[str]:
    """The command line of a short run on the tiny set."""
    defaults = {
        "architecture": "paper_eighth", "dataset": "tiny", "data_dir": data_dir, "workdir": workdir, "image_size": SIZE,
        "crop_size": CROP, "batch_size": 8, "bias_init": 0.1, "learning_rate": 0.001, "steps": 4, "log_every": 2,
        "schedule": "constant",
    }  # fmt: skip
    return [f"--{name}={value}" for name, value in (defaults | fields).items()]


def record_row(step: int, split: str, **fields) -> dict:
    """A row of metrics.jsonl."""
    defaults = {"step": step, "epoch": float(step), "split": split, "loss": 2.5, "top1_error": 50.0, "top5_error": 10.0}
    return defaults | {"learning_rate": 0.01, "images_per_second": 100.0, "examples": 8} | fields


class StillTime:
    """A clock that stands still until a test moves it."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.clock = Clock(monotonic=lambda: self.seconds, now=lambda: 1e9 + self.seconds)

    def work(self, phase: Phase, seconds: float) -> None:
        """Some seconds in a phase."""
        self.clock.enter(phase)
        self.seconds += seconds


def recorded(step: int, split: str = "train", **fields) -> Row:
    """A row as a trainer writes it."""
    return Row(step, step / 10, split, 2.5, 50.0, 10.0, 0.01, 123.4, 16, 1.5e9, 7.5, **fields)


def recording(workdir: Path, progress: Progress = Progress(), *, silent: bool = False, **fields) -> Recorder:
    """A recorder as a trainer has it, which resumes at `progress`, with what it shows on stderr."""
    config, clock = small_config(workdir=str(workdir), **fields), Clock()
    display = Display(clock, Intervals(config, 400, True), run_console(silent=silent))
    return Recorder(config, display, StartLog(workdir, clock, silent=True), progress, silent=silent)


class Finished(NamedTuple):
    """What is left of a command: as much of `subprocess.CompletedProcess` as the tests look at."""

    returncode: int
    stdout: str
    stderr: str


def run(module: str, *words: str) -> Finished:
    """A command line of an entry point, run from the repository's root in this process.

    `--host_devices` has no place here: there are eight already.
    """
    name = module if "." in module else f"alexnet_jax.{module}"
    is_package = importlib.import_module(name).__spec__.submodule_search_locations is not None
    command = importlib.import_module(f"{name}.__main__" if is_package else name).COMMAND
    with (
        contextlib.redirect_stdout(io.StringIO()) as stdout,
        contextlib.redirect_stderr(io.StringIO()) as stderr,
        contextlib.chdir(ROOT),
    ):
        status = command(words)
    return Finished(status, stdout.getvalue(), stderr.getvalue())


def start(module: str, *words: str, **options) -> subprocess.Popen[str]:
    """An entry point as a person starts it, in a process of its own, where a process is the subject."""
    command = [sys.executable, "-W", "error", "-m", f"alexnet_jax.{module}", *words]
    return subprocess.Popen(command, cwd=ROOT, text=True, **options)


def tiny_config(data_dir: Path, workdir: Path, **fields) -> Config:
    """The same run as `tiny_flags`, for calling `train` here."""
    defaults = {"dataset": "tiny", "data_dir": str(data_dir), "workdir": str(workdir)}
    defaults |= {"learning_rate": 0.001, "steps": 4, "log_every": 2, "schedule": "constant", "mesh": "1x1"}
    return small_config(**defaults | fields)
