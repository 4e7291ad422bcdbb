"""Collects what the page shows of a run."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from alexnet_jax.config import Config, as_dict
from alexnet_jax.figures import run_labels
from alexnet_jax.inference.analysis import (
    Guessed,
    Judged,
    Query,
    confusion,
    guessed,
    judge,
    last_hidden,
    neighbours,
    right_and_wrong,
    sample,
)
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
    judged: Judged
    counts: Int64[np.ndarray, "classes classes"]  # of `analysis.confusion`
    guessed: list[Guessed]
    queries: list[Query]

    @property
    def compared_by(self) -> str:
        """The layer whose features are compared."""
        return last_hidden(self.trained)

    def rows_of(self, split: str) -> list[dict[str, Any]]:
        """The rows of a split."""
        return [row for row in self.rows if row["split"] == split]

    @property
    def images_per_second(self) -> float | None:
        """The median of the training rows without the first, which includes the compilation."""
        speeds = [row["images_per_second"] for row in self.rows_of("train")]
        return statistics.median(speeds[1:] or speeds) if speeds else None

    @property
    def changed(self) -> dict[str, Any]:
        """The flags that differ from their defaults, without --workdir and --data_dir."""
        defaults = as_dict(Config())
        values = as_dict(self.config).items()
        return {name: value for name, value in values if value != defaults[name] and name not in ("workdir", "data_dir")}


def gather(
    workdirs: Sequence[str], *, step: str, split: str, data_dir: str | None, batch_size: int, sample_seed: int
) -> list[Run]:
    """All runs, each on its own data. Raises before the first network is compiled if something is missing.

    Args:
        workdirs: folders of the runs.
        step: of the checkpoints, as for `checkpoint.chosen_step`.
        split: images that the networks are shown.
        data_dir: folder of the prepared sets; None: where the runs had it.
        batch_size: images in one batch.
        sample_seed: seed for choosing images.

    Raises:
        UserError: a folder has no run, metrics or checkpoint, or the data is missing.
    """
    configs = [read_config(workdir) for workdir in workdirs]
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
        judged, train_split = judge(trained, splits[number]), datasets[number].split("train")
        runs.append(
            Run(
                label=label,
                config=config,
                record=read_json(Path(config.workdir) / "config.json"),
                rows=rows[number],
                trained=trained,
                split=split,
                judged=judged,
                counts=confusion(judged.split.labels, judged.guesses, len(trained.classes)),
                guessed=guessed(trained, judged, right_and_wrong(judged, SHOWN, sample_seed)),
                queries=neighbours(trained, judged, sample(judged.split, QUERIES, sample_seed), train_split),
            )
        )
    return runs
