"""A trained network on a split: its guesses, its confusions, and the nearest training images."""

import math
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int, Int64
from numpy.typing import ArrayLike
from rich.console import Console
from rich.progress import track

from alexnet_jax.data.loader import Loader
from alexnet_jax.data.splits import Subset, evaluation_order
from alexnet_jax.evaluation import Evaluator, make_eval_fn, not_finite
from alexnet_jax.inference.images import Square
from alexnet_jax.inference.predictor import Features, Trained, hidden_layers, top_classes
from alexnet_jax.scores import Score


@dataclass(frozen=True)
class Judged:
    """A split with the network's probabilities for the centre crop of every example."""

    split: Subset
    score: Score
    probabilities: Float32[np.ndarray, "examples classes"]

    @property
    def guesses(self) -> Int64[np.ndarray, "examples"]:
        """The likeliest classes; ties go to the lower class number."""
        return self.probabilities.argmax(axis=1)


@dataclass(frozen=True)
class Neighbour:
    """A training image near a query: its place in the training split and the Euclidean distance of the features."""

    image: Square
    name: str  # of its class
    index: int
    distance: float


Guessed = tuple[str, Square, list[dict[str, Any]], str]  # class, image, `top_classes`, class: as `draw_predictions` takes it
Query = tuple[Square, str, list[Neighbour]]  # image, class, nearest first


def judge(trained: Trained, split: Subset) -> Judged:
    """Evaluates the network on a whole split. Raises as `Evaluator`, and UserError if the answers are not finite."""
    mesh, member = trained.setup.mesh, (make_eval_fn(trained.setup, trained.mean), trained.params)
    evaluate, quiet = Evaluator(mesh, trained.config.batch_size), not sys.stderr.isatty()
    score, logs = evaluate([member], Loader(mesh, split), keep=True, quiet=quiet)
    if not math.isfinite(score.loss):
        raise not_finite(trained)
    return Judged(split, score, np.exp(np.asarray(logs)))


def right_and_wrong(judged: Judged, count: int, seed: int) -> Int64[np.ndarray, "shown"]:
    """Random examples: up to `count` that the network has right, then up to `count` that it has wrong."""
    order = np.random.default_rng(seed).permutation(len(judged.split))
    right = (judged.guesses == judged.split.labels)[order]
    return np.concatenate([order[right][:count], order[~right][:count]])


def guessed(trained: Trained, judged: Judged, examples: Int64[np.ndarray, "shown"]) -> list[Guessed]:
    """These examples with the five likeliest classes of each."""
    images, labels = judged.split.read(examples)
    tops = [top_classes(judged.probabilities[number], trained.classes) for number in examples]
    names = [trained.classes[label] for label in labels]
    return list(zip(names, images, tops, names, strict=True))


def confusion(
    labels: Int[np.ndarray, "examples"], guesses: Int[np.ndarray, "examples"], classes: int
) -> Int64[np.ndarray, "classes classes"]:
    """Numbers of examples. Rows are the right classes, columns the predicted ones.

    Raises ValueError if there is not one guess for each label, or one of them is not from 0 to `classes` - 1.
    """
    both = np.stack([labels, guesses])
    if both.size and (both.min() < 0 or both.max() >= classes):
        raise ValueError(f"expected labels and guesses from 0 to {classes - 1}; found {both.min()} to {both.max()}")
    return np.bincount(labels.astype(np.int64) * classes + guesses, minlength=classes**2).reshape(classes, classes)


def confused_pairs(counts: Int[np.ndarray, "classes classes"], most: int) -> list[tuple[int, int, int]]:
    """The most frequent confusions (right class, predicted class, examples), most frequent first."""
    wrong = counts * (1 - np.eye(len(counts), dtype=counts.dtype))
    best = np.argsort(-wrong, axis=None, kind="stable")[:most]
    rows, columns = np.unravel_index(best, wrong.shape)
    pairs = zip(rows.tolist(), columns.tolist(), wrong[rows, columns].tolist(), strict=True)
    return [pair for pair in pairs if pair[2] > 0]


def last_hidden(trained: Trained) -> str:
    """The layer below the classifier: fc7 in the paper."""
    return hidden_layers(trained)[-1]


def nearest(
    features: Features, queries: ArrayLike, among: Subset, batch_size: int, count: int = 6
) -> tuple[Int64[np.ndarray, "*queries count"], Float[np.ndarray, "*queries count"]]:
    """Section 6.1: the images of a split with the nearest features, by Euclidean distance.

    Reads the split once and keeps the distances, not the features.

    Args:
        features: what they are compared by.
        queries: images, one or any number of them, as `Features` takes them.
        among: images of the same size.
        batch_size: how many of them are read at a time.
        count: how many are wanted of each query; the result has fewer if there are fewer.

    Returns:
        Places in the split, nearest first (ties: the lower place first), and their distances. For one query both have one
        axis.

    Raises:
        TypeError: the pixels are not uint8.
        ValueError: images of another shape, or a `batch_size` or `count` below 1.
    """
    if min(batch_size, count) < 1:
        raise ValueError(f"expected a batch_size and a count of at least 1; found {batch_size} and {count}")
    found = features(queries)
    asked = np.shape(queries)[:-3]
    wanted = found.reshape(math.prod(asked), math.prod(found.shape[len(asked) :])).astype(np.float64)
    distances = np.empty((len(wanted), len(among)))
    order, quiet = list(evaluation_order(len(among), batch_size)), not sys.stderr.isatty()
    for numbers, real in track(order, "comparing", console=Console(stderr=True), disable=quiet):
        batch = features(among.read(numbers[:real]).images).reshape(real, -1).astype(np.float64)
        for query, row in zip(wanted, distances, strict=True):
            row[numbers[:real]] = np.linalg.norm(batch - query, axis=1)
    places = np.argsort(distances, axis=1, kind="stable")[:, :count]
    near = np.take_along_axis(distances, places, 1)
    return places.reshape(*asked, places.shape[1]), near.reshape(*asked, near.shape[1])


def neighbours(
    trained: Trained, judged: Judged, queries: Int64[np.ndarray, "queries"], among: Subset, count: int = 6
) -> list[Query]:
    """Examples of the judged split, each with its nearest images in `among` by the features of `last_hidden`."""
    images, labels = judged.split.read(queries)
    features, classes = Features(trained, last_hidden(trained)), trained.classes
    places, distances = nearest(features, images, among, trained.config.batch_size, count)
    found = []
    for image, label, line, apart in zip(images, labels, places, distances, strict=True):
        near = zip(*among.read(line), line.tolist(), apart.tolist(), strict=True)
        found.append((image, classes[label], [Neighbour(x, classes[name], at, far) for x, name, at, far in near]))
    return found


def sample(split: Subset, count: int, seed: int) -> Int64[np.ndarray, "shown"]:
    """Up to `count` examples of a split, chosen at random."""
    return np.random.default_rng(seed).permutation(len(split))[:count]


def errors_by_class(counts: Int[np.ndarray, "classes classes"]) -> list[tuple[int, int, int, int | None]]:
    """(class, examples, errors, most frequent wrong class if any) of each class with examples, worst first."""
    found = []
    for number, row in enumerate(counts):
        total, right = int(row.sum()), int(row[number])
        others = np.where(np.arange(len(row)) == number, 0, row)
        taken = int(others.argmax()) if total > right else None
        found += [(number, total, total - right, taken)] if total else []
    return sorted(found, key=lambda entry: (-entry[2] / entry[1], entry[0]))
