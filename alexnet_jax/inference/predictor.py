"""A trained network with all that it needs to look at images, read from the folder of its run; no data set is opened."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jax.sharding import PartitionSpec as P
from jaxtyping import Float32, UInt8

from alexnet_jax.augment import views
from alexnet_jax.config import Config
from alexnet_jax.data.dataset import open_dataset
from alexnet_jax.evaluate import Evaluator, Member, make_viewer
from alexnet_jax.layers import Classifier
from alexnet_jax.mesh import make_mesh
from alexnet_jax.network import Params
from alexnet_jax.run.checkpoint import Checkpoints, chosen_step
from alexnet_jax.run.workdir import read_classes, read_config, read_mean
from alexnet_jax.step import Model, make_feature_step, make_model
from alexnet_jax.system.errors import UserError
from alexnet_jax.values import MeshShape


@dataclass(frozen=True)
class Trained:
    """A network on this machine's devices. `step` is that of its checkpoint."""

    model: Model
    classes: tuple[str, ...]
    mean: Float32[np.ndarray, "size size 3"]
    params: Params
    step: int

    @property
    def config(self) -> Config:
        """Of the run."""
        return self.model.config

    @property
    def title(self) -> str:
        """One line for a figure."""
        return f"{self.config.architecture} on {self.config.dataset}, seed {self.config.seed}, step {self.step}"


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
    if not workdir:
        raise UserError("--workdir is missing: name the folder of a run")
    config = replace(read_config(workdir), accumulate=1, batch_size=batch_size, mesh=mesh)
    classes = read_classes(workdir)
    mean = read_mean(config)
    if mean is None:  # of a run that an earlier version trained
        mean = open_dataset(config).mean
    model = make_model(config, len(classes), make_mesh(mesh, config.table().towers, batch_size, config.spmd))
    with Checkpoints(Path(workdir), keep=config.keep, writable=False) as checkpoints:
        chosen = chosen_step(checkpoints, workdir, step)
        params = checkpoints.restore_params(model, chosen)
    return Trained(model, classes, mean, params, chosen)


class Classification:
    """Class probabilities of batches of images. Compiles once; keep it."""

    def __init__(self, trained: Trained, view_count: int = 1):
        """`view_count`: 1 (centre) or 10."""
        self._trained, self._view_count = trained, view_count
        self._evaluator = Evaluator(trained.model.mesh, trained.config.batch_size)
        self._member: Member = (make_viewer(trained.model, trained.mean), trained.params)

    def __call__(self, images: UInt8[np.ndarray, "count size size 3"]) -> Float32[np.ndarray, "count classes"]:
        """Of up to `batch_size` images."""
        mesh = self._trained.model.mesh
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
        self._trained, self._step = trained, make_feature_step(trained.model, layer)
        (centre,) = views(1, trained.config.image_size, trained.config.crop)
        mesh = trained.model.mesh
        self._constants = mesh.put((trained.mean, np.int32(centre.top), np.int32(centre.left)), P())

    def __call__(self, images: UInt8[np.ndarray, "count size size 3"]) -> Float32[np.ndarray, "count ..."]:
        """Of up to `batch_size` images: (count, units) of a dense layer, (count, height, width, maps) of a convolution."""
        mesh = self._trained.model.mesh
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
