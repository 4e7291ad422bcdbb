"""How right a network is on a split: its errors, how sure they are, and the files and lines that say so."""

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np
from jaxtyping import Float32, Int

from alexnet_jax.data.class_map import Questions
from alexnet_jax.data.splits import Subset
from alexnet_jax.system.files import output_file
from alexnet_jax.values import Weights, three_digits

TOP = 5  # classes of each image in a table


@dataclass(frozen=True)
class Score:
    """Means over all examples of a split; errors in percent."""

    examples: int
    loss: float
    top1_error: float
    top5_error: float


def mean_score(losses: Float32[np.ndarray, "examples"], ranks: Int[np.ndarray, "examples"]) -> Score:
    """The score of losses and of `rank`s."""
    return Score(
        examples=len(losses),
        loss=float(losses.mean(dtype=np.float64)),
        top1_error=100 * float((ranks >= 1).mean(dtype=np.float64)),
        top5_error=100 * float((ranks >= 5).mean(dtype=np.float64)),
    )


def score_any(log_probabilities: Float32[np.ndarray, "examples classes"], asked: Questions) -> Score:
    """The score where several answers may be right: any of them counts, and the loss is that of their summed probability.

    With one answer to each question it is what `Evaluator` gives. The log probabilities have to be finite.
    """
    losses, ranks = np.empty(len(log_probabilities), np.float32), np.empty(len(log_probabilities), np.int64)
    for number, (logs, label) in enumerate(zip(log_probabilities, asked.labels, strict=True)):
        right = list(asked.answers[label])
        losses[number] = np.maximum(-np.logaddexp.reduce(logs[right]), 0)  # a sum may be rounded above 1
        best = right[int(logs[right].argmax())]
        ranks[number] = (logs > logs[best]).sum() + (logs[:best] == logs[best]).sum()
    return mean_score(losses, ranks)


def error_interval(percent: float, examples: int, confidence: float = 0.95) -> tuple[float, float]:
    """Where the error on endless images of the same kind would lie: Wilson's interval (JASA 22, 1927), in percent.

    Args:
        percent: the error that was measured.
        examples: images that it was measured on, at least 1.
        confidence: share of such intervals that hold the true error.
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, spread = percent / 100, z * z / examples
    centre = (share + spread / 2) / (1 + spread)
    reach = math.sqrt(spread * (share * (1 - share) + spread / 4)) / (1 + spread)
    return 100 * max(0.0, centre - reach), 100 * min(1.0, centre + reach)


def write_predictions(path: Path, log_probabilities: np.ndarray, split: Subset, classes: Sequence[str]) -> None:
    """An .npz in order of the split: probabilities (examples, classes) float32, labels (examples,) int32, class names.

    Raises:
        ValueError: `log_probabilities` are not of these examples and classes.
        UserError: the file cannot be written.
    """
    if log_probabilities.shape != (len(split), len(classes)):
        raise ValueError(f"expected log probabilities ({len(split)}, {len(classes)}); found {log_probabilities.shape}")
    with output_file(path, "wb") as file:
        np.savez(file, probabilities=np.exp(log_probabilities), labels=split.labels, classes=np.array(classes))


def write_results(
    path: Path, log_probabilities: Float32[np.ndarray, "examples classes"], asked: Questions, classes: Sequence[str]
) -> None:
    """A .csv with a line for each image, in order of the split.

    Its columns: `row`, the image's number in the prepared split, from 0 (with --fold: in train, followed by validation);
    `label`, its class; `answers`, the right classes of the network, with '|' between them; `right`, 1 or 0; then the five
    likeliest classes and their probabilities, likeliest first. Ties go to the lower class number.

    Args:
        path: the file, which is replaced.
        log_probabilities: of the network.
        asked: the images and their right answers.
        classes: names of the network's classes.

    Raises:
        UserError: the file cannot be written.
    """
    count = min(TOP, len(classes))
    guesses = [f"{what}{number}" for number in range(1, count + 1) for what in ("class", "probability")]
    with output_file(path) as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["row", "label", "answers", "right", *guesses])
        rows: list[int] = asked.split.rows.tolist()
        labels: list[int] = asked.labels.tolist()
        for row, label, logs in zip(rows, labels, log_probabilities, strict=True):
            right, top = asked.answers[label], np.argsort(-logs, kind="stable")[:count].tolist()
            said = [text for number in top for text in (classes[number], f"{np.exp(logs[number]):.6f}")]
            answers = "|".join(classes[number] for number in right)
            table.writerow([row, asked.classes[label], answers, int(top[0] in right), *said])


def as_json(
    score: Score,
    dataset: str,
    split: str,
    left_out: int,
    views: int,
    steps: Sequence[int],
    averaged: Sequence[Sequence[int]] = (),
    weights: Weights = "last",
) -> str:
    """For a pipe: one JSON object, every number in full.

    `averaged`: the steps that each network is the mean of. `weights`: those of --weights, which are told if not the last.
    """
    summary = {"dataset": dataset, "split": split, "examples": score.examples, "left_out": left_out, "views": views}
    interval = {"top1_interval": error_interval(score.top1_error, score.examples)}
    networks = {"step": steps, "averaged": averaged} if averaged else {"step": steps}
    which = {name: found[0] if len(found) == 1 else found for name, found in networks.items()}
    kind = {"weights": weights} if weights != "last" else {}
    return json.dumps(summary | which | kind | asdict(score) | interval)


def readable(score: Score, split: str, views: int, steps: Sequence[int], seconds: float, weights: Sequence[str] = ()) -> str:
    """For a terminal: three digits of every number, within 80 columns. The interval is that of `error_interval`.

    `weights`: what each network's are if they are not those of its step, for a line of their own.
    """
    what = f"{score.examples:,} {split} images, {views} view{'s' * (views > 1)}, step {', '.join(map(str, steps))}"
    numbers = (score.top1_error, *error_interval(score.top1_error, score.examples), score.top5_error, score.loss, seconds)
    top1, low, high, top5, loss, taken = map(three_digits, numbers)
    lines = [f"top-1 error {top1} % (95 %: {low} to {high})  top-5 error {top5} %  loss {loss}", f"{what}, {taken} s"]
    return "\n".join(lines + [f"weights: {'; '.join(weights)}"] * any(weights))
