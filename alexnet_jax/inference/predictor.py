"""A trained network with all that it needs to look at images, read from the folder of its run; no data set is opened."""

import contextlib
import functools
import itertools
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jax.sharding import PartitionSpec as P
from jaxtyping import Float32
from numpy.typing import ArrayLike

from alexnet_jax.augment import views
from alexnet_jax.evaluation import EnsembleMember, Evaluator, check_images, make_eval_fn, not_finite
from alexnet_jax.inference.images import OneImage, squares
from alexnet_jax.layers import Classifier
from alexnet_jax.run.open import Trained, open_run
from alexnet_jax.step import make_feature_step
from alexnet_jax.system.errors import UserError
from alexnet_jax.values import MeshShape, Weights


@dataclass(frozen=True)
class Guess:
    """A class that an image may show."""

    name: str
    index: int  # of the network's output
    probability: float


def load_trained(
    workdir: str | os.PathLike[str],
    step: int | str = "latest",
    *,
    weights: Weights = "last",
    batch_size: int = 64,
    mesh: MeshShape | None = MeshShape(1, 1),
) -> "Predictor":
    """The network of a run, ready for images:

        trained = load_trained("runs/quickstart")
        trained.classify(["apple.jpg", "pear.png"])

    Args:
        workdir: folder of the run.
        step: a checkpoint's number, 'latest', or 'best', the one with the lowest validation error.
        weights: 'last', or 'ema', the average that a run with --ema keeps.
        batch_size: images that are looked at together.
        mesh: data x tower devices; None: all.

    Raises:
        UserError: there is no such run or checkpoint, or it cannot be read.
    """
    run = open_run(os.fspath(workdir), mesh=mesh, batch_size=batch_size, spmd="shard_map")
    found = run.restore(str(step), weights=weights)
    return Predictor(found.setup, found.stored, found.mean, found.params, found.step, found.weights, found.averaged)


@dataclass(frozen=True)
class Predictor(Trained):
    """A trained network that looks at images of any kind. It compiles at the first image and keeps the program.

    `dataclasses.replace(predictor, params=...)` is the same network with other parameters.
    """

    def classify(self, images: OneImage | Iterable[OneImage], top: int = 5) -> list[list[Guess]]:
        """The likeliest classes of every image, best first, as `alexnet predict` prints them.

        Args:
            images: one or several, as for `probabilities`.
            top: how many classes to give; fewer if there are fewer.

        Returns:
            One list for each image, also for a single one. Ties go to the lower class number.

        Raises:
            ValueError: `top` is negative.
            Otherwise as `probabilities`.
        """
        rows = [top_classes(row, self.classes, top) for row in self.probabilities(images)]
        return [[Guess(one["class"], one["index"], one["probability"]) for one in row] for row in rows]

    def probabilities(self, images: OneImage | Iterable[OneImage]) -> Float32[np.ndarray, "count classes"]:
        """Class probabilities of the centre crop of every image.

        Args:
            images: one or several. Each is a path, the bytes of an image file, an image of Pillow's, or uint8 pixels of
                shape (height, width, 1, 3 or 4): grey, RGB or RGBA. It is resized as the run's training images were. One
                array (count, height, width, channels) is several images.

        Raises:
            TypeError: something else is among them.
            UserError: an image cannot be decoded, or the answers are not finite, because the run has diverged.
        """
        found = [np.empty((0, len(self.classes)), np.float32)]
        with contextlib.closing(squares(images, self.config.image_size, self.config.resize)) as source:
            while batch := list(itertools.islice(source, self.config.batch_size)):
                found.append(self._classification(np.stack(batch)))
        return np.concatenate(found)

    @functools.cached_property
    def _classification(self) -> "Classification":
        return Classification(self)


class Classification:
    """Class probabilities of the centre crops of images. Compiles once; keep it."""

    def __init__(self, trained: Trained):
        self._trained = trained
        self._evaluator = Evaluator(trained.setup.mesh, trained.config.batch_size)
        self._member: EnsembleMember = (make_eval_fn(trained.setup, trained.mean), trained.params)

    def __call__(self, images: ArrayLike) -> Float32[np.ndarray, "*count classes"]:
        """Of one image or any number of them.

        Args:
            images: uint8 RGB, (size, size, 3) or (count, size, size, 3), where size is the run's --image_size.

        Returns:
            (classes,) for one image, (count, classes) for several, which may be none.

        Raises:
            TypeError: the pixels are not uint8.
            ValueError: the images have another shape.
            UserError: the answers are not finite, because the run has diverged.
        """
        return _in_batches(self._trained, images, self.of_batch)

    def of_batch(self, batch: Any, rows: Sequence[int]) -> Float32[np.ndarray, "rows classes"]:
        """Of some rows of a whole batch that is on the devices, as `TowerMesh.put` or `put_rows` gives it.

        Raises UserError if the answers are not finite. All processes have to ask, and get all.
        """
        logs = self._evaluator.log_probabilities([self._member], batch, 1)
        found = self._trained.setup.mesh.fetch(logs, P("data"))[np.asarray(rows, np.int64)]
        if not np.isfinite(found).all():
            raise not_finite(self._trained)
        return np.exp(found)


class Features:
    """Activations of a hidden layer on the centre crops of images. Compiles once; keep it."""

    def __init__(self, trained: Trained, layer: str, flag: str = "features"):
        """Raises UserError naming `flag` if there is no such hidden layer."""
        hidden = hidden_layers(trained)
        if layer not in hidden:
            architecture = trained.config.architecture
            raise UserError(f"--{flag}={layer}: no such hidden layer; --architecture={architecture} has {', '.join(hidden)}")
        self.layer = layer
        self._trained, self._step = trained, make_feature_step(trained.setup, layer)
        (centre,) = views(1, trained.config.image_size, trained.config.crop)
        self._constants = trained.setup.mesh.put((trained.mean, np.int32(centre.top), np.int32(centre.left)), P())

    def __call__(self, images: ArrayLike) -> Float32[np.ndarray, "..."]:
        """Of one image or any number of them; `images` and errors as for `Classification`.

        Returns:
            (count, units) of a dense layer, (count, height, width, maps) of a convolution; without `count` for one image.
        """
        return _in_batches(self._trained, images, self.of_batch)

    def of_batch(self, batch: Any, rows: Sequence[int]) -> Float32[np.ndarray, "rows ..."]:
        """Of some rows of a whole batch on the devices, as `Classification.of_batch`."""
        found = self._trained.setup.mesh.fetch(self._step(self._trained.params, batch, *self._constants), P("data"))
        return np.asarray(found[np.asarray(rows, np.int64)], np.float32)


def _in_batches(
    trained: Trained, images: ArrayLike, look: Callable[[Any, Sequence[int]], np.ndarray]
) -> Float32[np.ndarray, "..."]:
    """What `look` says of these rows of a batch on the devices. Black images fill up the last one: one program serves all.

    No images are a batch of black ones, of which nothing is kept: so the result has its shape.
    """
    given, mesh = np.asarray(images), trained.setup.mesh
    check_images(given, trained.config.image_size)
    many = given[None] if given.ndim == 3 else given
    found = []
    for first in range(0, max(len(many), 1), trained.config.batch_size):
        mine = many[first : first + trained.config.batch_size]
        batch = np.zeros((trained.config.batch_size, *many.shape[1:]), np.uint8)
        batch[: len(mine)] = mine
        found.append(look(mesh.put(batch, P("data")), range(len(mine))))
    return np.concatenate(found) if given.ndim == 4 else found[0][0]


def hidden_layers(trained: Trained) -> list[str]:
    """The layers below the classifier, in order."""
    return [layer.name for layer in trained.config.table().layers if not isinstance(layer, Classifier)]


def top_classes(probabilities: ArrayLike, classes: Sequence[str], count: int = 5) -> list[dict]:
    """The likeliest classes, best first: {'class', 'index', 'probability'}; ties go to the lower class number.

    Args:
        probabilities: (classes,), of one image.
        classes: their names.
        count: how many to give; fewer if there are fewer.

    Raises:
        ValueError: there is not one probability for each class, one is not finite, or `count` is negative.
    """
    given = np.asarray(probabilities, np.float64)
    if given.shape != (len(classes),):
        raise ValueError(f"expected {len(classes)} probabilities, shape ({len(classes)},); found {given.shape}")
    if not np.isfinite(given).all():
        raise ValueError("expected finite probabilities; found NaN or infinity")
    if count < 0:
        raise ValueError(f"expected a count of at least 0; found {count}")
    best = np.argsort(-given, kind="stable")[:count].tolist()
    return [{"class": classes[index], "index": index, "probability": float(given[index])} for index in best]
