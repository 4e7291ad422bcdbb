"""The measures of claims, from the folder of a run and its evaluation. Lower is better."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from alexnet_jax.inference.predictor import load_trained
from alexnet_jax.run.metrics import read_rows
from alexnet_jax.run.workdir import read_stored
from experiments.claims.claim import Claim

PLATEAU = 0.9  # of ln(classes), the loss of a guess
DEALS = 1000  # random assignments of the kernels to the towers


def test_error(claim: Claim, arm: str, workdir: Path, score: dict[str, Any]) -> float:
    """Top-1 error on the test split, in percent."""
    return score["top1_error"]


def epochs_to_error(claim: Claim, arm: str, workdir: Path, score: dict[str, Any]) -> float:
    """Epochs until a row's training error is at most the claim's threshold, in percent; the whole run if it never is."""
    return _epochs_until(workdir, "top1_error", claim.threshold)


def epochs_to_loss(claim: Claim, arm: str, workdir: Path, score: dict[str, Any]) -> float:
    """Epochs until a row's training loss is at most the claim's threshold times ln(classes), the loss of a guess.

    The whole run if it never is.
    """
    return _epochs_until(workdir, "loss", claim.threshold * math.log(len(read_stored(str(workdir)).classes)))


def _epochs_until(workdir: Path, column: str, threshold: float) -> float:
    rows = [row for row in read_rows(workdir) if row["split"] == "train"]
    return next((row["epoch"] for row in rows if row[column] <= threshold), rows[-1]["epoch"])


def is_stuck(workdir: Path) -> bool:
    """Whether the run never left the plateau: its last training loss is above PLATEAU ln(classes)."""
    rows = [row for row in read_rows(workdir) if row["split"] == "train"]
    return rows[-1]["loss"] > PLATEAU * math.log(len(read_stored(str(workdir)).classes))


def tower_likeness(claim: Claim, arm: str, workdir: Path, score: dict[str, Any]) -> float:
    """Minus the distance between the towers' mean colour selectivities of conv1's kernels.

    For the arm `random`: minus its mean over random assignments of the kernels to the towers.
    """
    selectivity = colour_selectivity(np.asarray(load_trained(str(workdir)).params["conv1"]["kernel"]))
    if arm == "random":
        rng = np.random.default_rng(0)
        dealt = [rng.permutation(selectivity.ravel()).reshape(selectivity.shape) for _ in range(DEALS)]
        return -float(np.mean([_apart(one) for one in dealt]))
    return -_apart(selectivity)


def _apart(selectivity: Float[np.ndarray, "towers maps"]) -> float:
    means = selectivity.mean(axis=1)
    return float(means.max() - means.min())


def colour_selectivity(kernel: Float[np.ndarray, "towers kh kw 3 maps"]) -> Float[np.ndarray, "towers maps"]:
    """The share of a kernel's energy that is not grey, from 0 to 1. It is 0 if red, green and blue have equal weights."""
    total = (kernel**2).sum(axis=(1, 2, 3))
    grey = 3 * (kernel.mean(axis=3) ** 2).sum(axis=(1, 2))
    return 1 - grey / np.maximum(total, 1e-30)


MEASURES: dict[str, Callable[[Claim, str, Path, dict[str, Any]], float]] = {
    measure.__name__: measure for measure in (test_error, epochs_to_error, epochs_to_loss, tower_likeness)
}
