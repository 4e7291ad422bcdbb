"""Collects what the page shows of the runs."""

import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from alexnet_jax.config import Config
from alexnet_jax.data.dataset import Dataset
from alexnet_jax.figures.curves import run_labels
from alexnet_jax.figures.style import PALETTE
from alexnet_jax.inference import analysis
from alexnet_jax.inference.predictor import Trained, load_trained
from alexnet_jax.run.intervals import Intervals
from alexnet_jax.run.metrics import read_rows
from alexnet_jax.run.mirror import reading_copy
from alexnet_jax.run.workdir import read_config
from alexnet_jax.system.errors import UserError
from alexnet_jax.system.files import read_json

SHOWN = 8  # images with their predictions
QUERIES = 4

Found = TypeVar("Found")


@dataclass(frozen=True)
class Results:
    """What a network says of a split. Runs with equal `images` were shown the same ones, and have the same classes."""

    trained: Trained
    split: str  # its name
    images: tuple[str, bytes, tuple[str, ...]]  # fingerprint of the set, places of the split's images in it, class names
    judged: analysis.Judged
    guessed: list[analysis.Guessed]
    queries: list[analysis.Query]


@dataclass(frozen=True)
class Run:
    """A run on the page. What could not be read is None or empty, and `problems` say why."""

    number: int  # its place among the runs
    label: str  # distinguishes it from the other runs
    workdir: str
    config: Config | None
    record: dict[str, Any] | None  # config.json
    rows: Sequence[dict[str, Any]]
    results: Results | None
    problems: tuple[str, ...]

    @property
    def colour(self) -> int:
        """Its place in the palette."""
        return self.number % len(PALETTE)

    def rows_of(self, split: str) -> list[dict[str, Any]]:
        """The rows of a split."""
        return [row for row in self.rows if row["split"] == split]

    @property
    def images_per_second(self) -> float | None:
        """The median of the training rows without the first, which includes the compilation."""
        speeds = [row["images_per_second"] for row in self.rows_of("train")]
        return statistics.median(speeds[1:] or speeds) if speeds else None

    @property
    def total_steps(self) -> int | None:
        """Steps of the whole run; None if nothing says so yet."""
        if self.config is None or not self.rows or not self.rows[-1]["epoch"] > 0:
            return None
        examples = round(self.rows[-1]["step"] * self.config.batch_size / self.rows[-1]["epoch"])
        return Intervals(self.config, examples, validates=False).total_steps


@dataclass(frozen=True)
class _Opened:
    """A run before its network has looked at anything."""

    workdir: str
    config: Config | None = None
    record: dict[str, Any] | None = None
    rows: Sequence[dict[str, Any]] = ()
    trained: Trained | None = None
    dataset: Dataset | None = None


def read_record(workdir: str) -> dict[str, Any]:
    """The config.json of a run. Raises UserError if it does not say where the run was trained."""
    record = read_json(path := Path(workdir) / "config.json")
    devices, versions = record.get("devices"), record.get("versions")
    if isinstance(devices, list) and isinstance(versions, dict):
        texts = [record.get("python"), record.get("commit") or "", *devices, *versions.values()]
        if "commit" in record and all(isinstance(text, str) for text in texts):
            return record
    raise UserError(f"{path} does not say where the run was trained: devices, versions, python or commit is not right")


def gather(
    workdirs: Sequence[str], *, step: str, split: str, data_dir: str | None, batch_size: int, sample_seed: int
) -> list[Run]:
    """All runs, each on its own data, and all of them on the same images where their data are the same.

    One run has to be whole. Of several, what cannot be read is left out, with the reason in `problems` and on stderr.

    Args:
        workdirs: folders of the runs.
        step: of the checkpoints: a number, 'latest' or 'best'.
        split: images that the networks are shown.
        data_dir: folder of the prepared sets; None: where the runs had it.
        batch_size: images in one batch.
        sample_seed: for choosing images.

    Raises:
        UserError: a folder holds no run; a single run is damaged or lacks metrics, a checkpoint or its data; none of several
            has results. What the folders lack is known before anything is compiled.
    """
    workdirs = [reading_copy(workdir) for workdir in workdirs]
    for workdir in workdirs:
        if not (Path(workdir) / "config.json").exists():
            read_config(workdir)  # a slip of the hand, not a damaged run: it raises
    problems = {workdir: _Problems(raises=len(workdirs) == 1) for workdir in workdirs}
    opened = [_open(workdir, problems[workdir], step, split, data_dir, batch_size) for workdir in workdirs]
    readable = [run.config for run in opened if run.config is not None]
    labels = dict(zip((config.workdir for config in readable), run_labels(readable), strict=True))
    runs = []
    for number, run in enumerate(opened):
        found = problems[run.workdir]
        results = found.tried(lambda run=run: _look(run.trained, run.dataset, split, sample_seed))
        label = labels.get(run.workdir, run.workdir)
        runs.append(Run(number, label, run.workdir, run.config, run.record, run.rows, results, tuple(found.found)))
    if not any(run.results for run in runs):
        raise UserError(runs[0].problems[0])
    for problem in (problem for run in runs for problem in run.problems):
        print(f"note: {problem}", file=sys.stderr)
    return runs


class _Problems:
    """What is wrong with a run. `raises`: the first problem is an error."""

    def __init__(self, raises: bool):
        self._raises, self.found = raises, list[str]()

    def tried(self, read: Callable[[], Found]) -> Found | None:
        """What `read` returns; None, and one more problem, if it raises UserError."""
        try:
            return read()
        except UserError as error:
            if self._raises:
                raise
            self.found.append(str(error))
            return None


def _open(workdir: str, problems: _Problems, step: str, split: str, data_dir: str | None, batch_size: int) -> _Opened:
    """What is in a folder, as far as it can be read."""
    config = problems.tried(lambda: read_config(workdir))
    if config is None:
        return _Opened(workdir)
    record = problems.tried(lambda: read_record(workdir))
    rows = problems.tried(lambda: _read_rows(config)) or []
    trained = problems.tried(lambda: load_trained(workdir, step, batch_size=batch_size))
    dataset = problems.tried(lambda: _open_data(trained, split, data_dir)) if trained else None
    return _Opened(workdir, config, record, rows, trained, dataset)


def _read_rows(config: Config) -> list[dict[str, Any]]:
    if rows := read_rows(Path(config.workdir)):
        return rows
    raise UserError(f"--workdir={config.workdir} has no metrics yet: train longer than --log_every={config.log_every} steps")


def _open_data(trained: Trained, split: str, data_dir: str | None) -> Dataset:
    dataset = trained.data(data_dir)
    dataset.split(split)  # raises if there is none
    return dataset


def _look(trained: Trained | None, dataset: Dataset | None, name: str, sample_seed: int) -> Results | None:
    """The network on the images. Which ones are shown depends on the split and the seed alone."""
    if trained is None or dataset is None:
        return None
    split = dataset.split(name)
    judged = analysis.judge(trained, split)
    guessed = analysis.guessed(trained, judged, analysis.sample(split, SHOWN, sample_seed))
    queries = analysis.neighbours(trained, judged, analysis.sample(split, QUERIES, sample_seed), dataset.split("train"))
    images = dataset.fingerprint, split.rows.tobytes(), trained.classes
    return Results(trained, name, images, judged, guessed, queries)
