"""How long a person waits: for the first step, for a resume, for the first prediction, and while a run saves or validates.

Commands are started as a person starts them, each in a process of its own, in turn, round after round. What a running
trainer waits for is measured in this process by `pauses`.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from rich.progress import track

from alexnet_jax.benchmark import pauses
from alexnet_jax.benchmark.inputs import open_input
from alexnet_jax.benchmark.results import new_table, row
from alexnet_jax.benchmark.waiting_figure import draw_waits
from alexnet_jax.config import Config
from alexnet_jax.run.flags import changed
from alexnet_jax.run.metrics import STARTS
from alexnet_jax.run.workdir import provenance
from alexnet_jax.system.errors import UserError

Parts = dict[str, float]  # seconds of what a wait is made of, in order

# What the phases of `run.clock` are to somebody who waits for the first step.
PHASES = {"starting": "data and network", "restoring": "checkpoint", "compiling": "first step, and compiling it"}
INTERPRETER = "Python and imports"
FIRST, AGAIN = "first step, nothing compiled yet", "first step, programs kept"
RESUMED = "first step of a resumed run"
PREDICTED, PREDICTED_AGAIN = "first prediction, nothing compiled yet", "first prediction, programs kept"
WITHOUT = ("workdir", "steps", "epochs", "init", "start_over", "wandb", "host_devices")  # flags that a child gets its own of


def flags_of(config: Config) -> list[str]:
    """The flags of a run as a command line, without those in `WITHOUT`."""
    values = {
        name: ",".join(value) if isinstance(value, list) else value for name, value in changed(config, WITHOUT).items()
    }
    return [f"--{name}={value}" for name, value in values.items()]


def run_command(command: str, words: Sequence[str], cache: Path) -> tuple[float, float]:
    """Runs a command. Returns when it was started, in seconds since 1970, and how long its first line took.

    Args:
        command: such as 'train'.
        words: of its command line.
        cache: folder of compiled programs.

    Raises:
        UserError: it failed; the message has its last line.
    """
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache)}
    line = [sys.executable, "-m", f"alexnet_jax.{command}", *words]
    began = time.time()
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(line, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment) as process,
    ):
        assert process.stdout is not None
        process.stdout.readline()
        waited = time.time() - began
        process.stdout.read()
        if process.wait():
            errors.seek(0)
            last = (errors.read().splitlines() or ["it said nothing"])[-1]
            raise UserError(f"{command} failed with status {process.returncode}: {last}")
    return began, waited


def to_first_step(config: Config, workdir: Path, steps: int, cache: Path) -> Parts:
    """Trains a run up to `steps`, from where it is. Returns the seconds from the command to the end of its first step."""
    words = [*flags_of(config), f"--workdir={workdir}", f"--steps={steps}"]
    began, _ = run_command("train", words, cache)
    start = json.loads((workdir / STARTS).read_text().splitlines()[-1])
    phases = {shown: start["phases"][phase] for phase, shown in PHASES.items()}
    return {INTERPRETER: start["time"] - began} | {name: seconds for name, seconds in phases.items() if seconds}


def _commands(config: Config, folder: Path, image: Path) -> Iterator[tuple[str, Parts]]:
    """One round: each wait by its name. Runs, images and compiled programs are in `folder`."""
    cache, run = folder / "cache", folder / "run"
    yield FIRST, to_first_step(config, run, 1, cache)
    yield AGAIN, to_first_step(config, folder / "another", 1, cache)
    yield RESUMED, to_first_step(config, run, 2, cache)
    for name in (PREDICTED, PREDICTED_AGAIN):
        yield name, {"all": run_command("predict", [f"--workdir={run}", str(image)], cache)[1]}


def measure_waiting(config: Config, rounds: int, seconds: float) -> dict[str, Any]:
    """Every wait, `rounds` times, as the JSON object to print.

    Args:
        config: of the run. Its data set has to be prepared, but for the embedded photographs.
        rounds: of all commands in turn, and of the pauses.
        seconds: for which images are decoded.

    Raises:
        UserError: the data set is not prepared, the mesh does not fit, or a command fails.
    """
    setup, dataset = open_input(config)
    measured: dict[str, list[Parts]] = {}
    quiet = not sys.stderr.isatty()
    for _ in track(range(rounds), "rounds", console=Console(stderr=True), disable=quiet):
        with tempfile.TemporaryDirectory() as folder:
            image = Path(folder) / "image.png"
            Image.fromarray(dataset.splits["train"].parts[0].images[0]).save(image)
            for name, parts in _commands(replace(config, log_every=1), Path(folder), image):
                measured.setdefault(name, []).append(parts)
    for name, parts in [*pauses.saves(setup, rounds), *pauses.validations(setup, dataset, rounds)]:
        measured.setdefault(name, []).append(parts)
    rows = {name: waited(parts) for name, parts in measured.items()}
    return {
        "first_step_seconds": rows[AGAIN]["seconds"],
        "rows": rows,
        "prepare": pauses.preparing(config, rounds, seconds),
        "checkpoint_bytes": pauses.checkpoint_bytes(setup),
        "validation_images": len(dataset.splits.get("validation", ())),
        "settings": {
            "dataset": config.dataset, "architecture": config.architecture, "image_size": config.image_size,
            "crop_size": config.crop, "batch_size": config.batch_size, "precision": config.precision, "rounds": rounds,
        },
        "cores": os.cpu_count(),
        **provenance(),
    }  # fmt: skip


def waited(rounds: Sequence[Parts]) -> dict[str, Any]:
    """Median and range of the whole wait, and the median of each part."""
    whole = row([sum(parts.values()) for parts in rounds])
    parts = {name: statistics.median(parts[name] for parts in rounds) for name in rounds[0]}
    return {"seconds": whole["images_per_second"], "low": whole["low"], "high": whole["high"], "parts": parts}


def publish_waiting(result: Mapping[str, Any], figure: Path | None) -> None:
    """Prints the table and the JSON object of `measure_waiting`, and draws its rows."""
    settings = result["settings"]
    title = (
        f"{settings['architecture']} on {settings['dataset']}, {settings['crop_size']} px, batch {settings['batch_size']}"
    )
    table = new_table(f"what a person waits for: {title}", "seconds", "range", "of which")
    for name, each in result["rows"].items():
        parts = (
            ", ".join(f"{part} {seconds:.2f}" for part, seconds in each["parts"].items()) if len(each["parts"]) > 1 else ""
        )
        table.add_row(name, f"{each['seconds']:.2f}", f"{each['low']:.2f} to {each['high']:.2f}", parts)
    if rate := result["prepare"]:
        span = f"{rate['low']:,.0f} to {rate['high']:,.0f}"
        table.caption = f"prepare: {rate['images_per_second']:,.0f} images/s and core ({span}) decoded and resized"
    Console(stderr=True, width=None if sys.stderr.isatty() else 160).print(table)
    if figure:
        starts = {name: each for name, each in result["rows"].items() if name not in pauses.NAMES}
        others = {name: each for name, each in result["rows"].items() if name in pauses.NAMES}
        draw_waits([starts, others], title, figure)
    print(json.dumps(result))
