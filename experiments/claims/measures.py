"""The measures of claims, from the folder of a run and its evaluation. Lower is better."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from alexnet_jax.inference.predictor import load_trained
from alexnet_jax.run.metrics import read_rows
from alexnet_jax.run.workdir import read_stored
from experiments.claims.claim import Claim

PLATEAU = 0.9  # of ln(classes), the loss of a guess
AVERAGED = 1.0  # epochs
DEALS = 1000  # random assignments of the kernels to the towers


def test_error(claim: Claim, arm: str, workdir: Path, score: dict[str, Any]) -> float:
    """Top-1 error on the test split, in percent."""
    return score["top1_error"]


def epochs_to_error(claim: Claim, arm: str, workdir: Path, score: dict[str, Any]) -> float:
    """Epochs until the training error is at most the claim's threshold, in percent; the whole run if it never is.

    It is averaged over the rows of the last epoch: batches that the network has just seen have less error than others, so
    the error of single rows falls whenever a new epoch begins.
    """
    return _epochs_until(workdir, "top1_error", claim.threshold, AVERAGED)


def epochs_to_loss(claim: Claim, arm: str, workdir: Path, score: dict[str, Any]) -> float:
    """Epochs until a row's training loss is at most the claim's threshold times ln(classes), the loss of a guess.

    The whole run if it never is.
    """
    return _epochs_until(workdir, "loss", claim.threshold * math.log(len(read_stored(str(workdir)).classes)))


def _epochs_until(workdir: Path, column: str, threshold: float, averaged: float = 0.0) -> float:
    """The epoch of the first row at most as high as `threshold`, with the mean over the last `averaged` epochs."""
    rows = [row for row in read_rows(workdir) if row["split"] == "train"]
    return epochs_until([(row["epoch"], row[column]) for row in rows], threshold, averaged)


def epochs_until(curve: Sequence[tuple[float, float]], threshold: float, averaged: float) -> float:
    """The epoch at which a curve of (epoch, value) has come down to `threshold`; its last one if it never does.

    Values are means over the last `averaged` epochs.
    """
    for here, (epoch, _) in enumerate(curve):
        recent = [value for then, value in curve[: here + 1] if then == epoch or then > epoch - averaged + 1e-9]
        if sum(recent) / len(recent) <= threshold:
            return epoch
    return curve[-1][0]


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
