"""A trained network with all that it needs to look at images, read from the folder of its run; no data set is opened."""

from collections.abc import Sequence

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
    """The network of a run.

    Args:
        workdir: folder of the run.
        step: of the checkpoint: a number, 'latest' or 'best'.
        batch_size: images that are put through it at a time.
        mesh: data x tower devices; None: all.

    Raises:
        UserError: there is no such run or checkpoint, or it cannot be read.
    """
    return open_run(workdir, mesh=mesh, batch_size=batch_size, spmd="shard_map").restore(step)


class Classification:
    """Class probabilities of batches of images. Compiles once; keep it."""

    def __init__(self, trained: Trained, view_count: int = 1):
        """`view_count`: 1 (centre) or 10."""
        self._trained, self._view_count = trained, view_count
        self._evaluator = Evaluator(trained.setup.mesh, trained.config.batch_size)
        self._member: EnsembleMember = (make_eval_fn(trained.setup, trained.mean), trained.params)

    def __call__(self, images: UInt8[np.ndarray, "count size size 3"]) -> Float32[np.ndarray, "count classes"]:
        """Of up to `batch_size` images."""
        mesh = self._trained.setup.mesh
        batch = mesh.put(_filled(images, self._trained.config.batch_size), P("data"))
        total = self._evaluator.log_probabilities([self._member], batch, self._view_count)
        return np.exp(mesh.fetch(total, P("data"))[: len(images)])


class Features:
    """Activations of a hidden layer on the centre crops of batches of images. Compiles once; keep it."""

    def __init__(self, trained: Trained, layer: str, flag: str = "features"):
        """Raises UserError naming `flag` if there is no such hidden layer."""
        hidden = [spec.name for spec in trained.config.table().layers if not isinstance(spec, Classifier)]
        if layer not in hidden:
            architecture = trained.config.architecture
            raise UserError(f"--{flag}={layer}: no such hidden layer; --architecture={architecture} has {', '.join(hidden)}")
        self.layer = layer
        self._trained, self._step = trained, make_feature_step(trained.setup, layer)
        (centre,) = views(1, trained.config.image_size, trained.config.crop)
        mesh = trained.setup.mesh
        self._constants = mesh.put((trained.mean, np.int32(centre.top), np.int32(centre.left)), P())

    def __call__(self, images: UInt8[np.ndarray, "count size size 3"]) -> Float32[np.ndarray, "count ..."]:
        """Of up to `batch_size` images: (count, units) of a dense layer, (count, height, width, maps) of a convolution."""
        mesh = self._trained.setup.mesh
        batch = mesh.put(_filled(images, self._trained.config.batch_size), P("data"))
        found = mesh.fetch(self._step(self._trained.params, batch, *self._constants), P("data"))
        return np.asarray(found[: len(images)], np.float32)


def _filled(images: UInt8[np.ndarray, "count size size 3"], count: int) -> UInt8[np.ndarray, "all size size 3"]:
    """A full batch, the first image repeated: every batch has one shape, so that one program serves all."""
    return images[np.where(np.arange(count) < len(images), np.arange(count), 0)]


def top_classes(probabilities: Float32[np.ndarray, "classes"], classes: Sequence[str], count: int = 5) -> list[dict]:
    """The likeliest classes, best first: {'class', 'index', 'probability'}; ties go to the lower class number."""
    best = np.argsort(-probabilities, kind="stable")[:count].tolist()
    return [{"class": classes[index], "index": index, "probability": float(probabilities[index])} for index in best]
