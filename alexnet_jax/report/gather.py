"""Collects what the page shows of a run."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alexnet_jax.config import Config
from alexnet_jax.figures.curves import run_labels
from alexnet_jax.inference import analysis
from alexnet_jax.inference.predictor import Trained, load_trained
from alexnet_jax.run.metrics import read_rows
from alexnet_jax.run.workdir import read_config
from alexnet_jax.system.errors import UserError
from alexnet_jax.system.files import read_json

SHOWN = 4  # right images, and as many wrong ones
QUERIES = 3


@dataclass(frozen=True)
class Run:
    """A run and its network's results on one split."""

    label: str  # distinguishes it from the other runs
    config: Config
    record: dict[str, Any]  # config.json
    rows: Sequence[dict[str, Any]]
    trained: Trained
    split: str
    judged: analysis.Judged
    guessed: list[analysis.Guessed]
    queries: list[analysis.Query]

    def rows_of(self, split: str) -> list[dict[str, Any]]:
        """The rows of a split."""
        return [row for row in self.rows if row["split"] == split]

    @property
    def images_per_second(self) -> float | None:
        """The median of the training rows without the first, which includes the compilation."""
        speeds = [row["images_per_second"] for row in self.rows_of("train")]
        return statistics.median(speeds[1:] or speeds) if speeds else None


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
    """All runs, each on its own data. Raises before the first network is compiled if something is missing.

    Args:
        workdirs: folders of the runs.
        step: of the checkpoints: a number, 'latest' or 'best'.
        split: images that the networks are shown.
        data_dir: folder of the prepared sets; None: where the runs had it.
        batch_size: images in one batch.
        sample_seed: for choosing images.

    Raises:
        UserError: a folder has no run, metrics or checkpoint, or the data is missing.
    """
    configs = [read_config(workdir) for workdir in workdirs]
    records = [read_record(workdir) for workdir in workdirs]
    rows = [read_rows(Path(workdir)) for workdir in workdirs]
    for config, mine in zip(configs, rows, strict=True):
        if not mine:
            raise UserError(
                f"--workdir={config.workdir} has no metrics yet: train longer than --log_every={config.log_every} steps"
            )
    networks = [load_trained(workdir, step, batch_size=batch_size) for workdir in workdirs]
    datasets = [trained.data(data_dir) for trained in networks]
    splits = [dataset.split(split) for dataset in datasets]
    runs = []
    for number, (label, config, trained) in enumerate(zip(run_labels(configs), configs, networks, strict=True)):
        judged = analysis.judge(trained, splits[number])
        shown = analysis.guessed(trained, judged, analysis.right_and_wrong(judged, SHOWN, sample_seed))
        queries = analysis.sample(judged.split, QUERIES, sample_seed)
        near = analysis.neighbours(trained, judged, queries, datasets[number].split("train"))
        runs.append(Run(label, config, records[number], rows[number], trained, split, judged, shown, near))
    return runs
