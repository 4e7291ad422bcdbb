"""A trained network with all that it needs to look at images, read from the folder of its run; no data set is opened."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.sharding import PartitionSpec as P
from jaxtyping import Float32, UInt8

from alexnet_jax.augment import views
from alexnet_jax.evaluate import EnsembleMember, Evaluator, make_eval_fn
from alexnet_jax.layers import Classifier
from alexnet_jax.run.open import Trained, open_run
from alexnet_jax.step import make_feature_step
from alexnet_jax.system.errors import UserError
from alexnet_jax.values import MeshShape


def load_trained(
    workdir: str, step: str = "latest", *, batch_size: int = 64, mesh: MeshShape | None = MeshShape(1, 1)
) -> Trained:
    """The network of a run, on a mesh of data x tower devices; None: all. `step`: a number, 'latest' or 'best'.

    Raises UserError if there is no such run or checkpoint, or it cannot be read.
    """
    return open_run(workdir, mesh=mesh, batch_size=batch_size, spmd="shard_map").restore(step)


class Classification:
    """Class probabilities of the centre crops of batches of images. Compiles once; keep it."""

    def __init__(self, trained: Trained):
        self._trained = trained
        self._evaluator = Evaluator(trained.setup.mesh, trained.config.batch_size)
        self._member: EnsembleMember = (make_eval_fn(trained.setup, trained.mean), trained.params)

    def __call__(self, images: UInt8[np.ndarray, "count size size 3"]) -> Float32[np.ndarray, "count classes"]:
        """Of up to `batch_size` images."""
        total = self._evaluator.log_probabilities([self._member], _full_batch(self._trained, images), 1)
        return np.exp(self._trained.setup.mesh.fetch(total, P("data"))[: len(images)])


class Features:
    """Activations of a hidden layer on the centre crops of batches of images. Compiles once; keep it."""

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

    def __call__(self, images: UInt8[np.ndarray, "count size size 3"]) -> Float32[np.ndarray, "count ..."]:
        """Of up to `batch_size` images: (count, units) of a dense layer, (count, height, width, maps) of a convolution."""
        found = self._step(self._trained.params, _full_batch(self._trained, images), *self._constants)
        return np.asarray(self._trained.setup.mesh.fetch(found, P("data"))[: len(images)], np.float32)


def _full_batch(trained: Trained, images: UInt8[np.ndarray, "count size size 3"]) -> Any:
    """A batch on the devices, filled up with the first image: all batches have one shape, so one program serves all."""
    numbers = np.arange(trained.config.batch_size)
    return trained.setup.mesh.put(images[np.where(numbers < len(images), numbers, 0)], P("data"))


def hidden_layers(trained: Trained) -> list[str]:
    """The layers below the classifier, in order."""
    return [layer.name for layer in trained.config.table().layers if not isinstance(layer, Classifier)]


def top_classes(probabilities: Float32[np.ndarray, "classes"], classes: Sequence[str], count: int = 5) -> list[dict]:
    """The likeliest classes, best first: {'class', 'index', 'probability'}; ties go to the lower class number."""
    best = np.argsort(-probabilities, kind="stable")[:count].tolist()
    return [{"class": classes[index], "index": index, "probability": float(probabilities[index])} for index in best]
