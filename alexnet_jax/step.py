"""The per-device programs: one training step, and the probabilities of one view in evaluation.

State in, state out. They are written once against the mesh's axes and compiled by `TowerMesh.compile`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import lax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int, UInt32

from alexnet_jax.augment import colour_noise, equal_crops, random_crops
from alexnet_jax.config import Config
from alexnet_jax.data.splits import Batch
from alexnet_jax.mesh import TowerMesh
from alexnet_jax.network import Params, initial_params, merge, param_specs, split
from alexnet_jax.optimizer import Rates, average_weights, momentum_2012


class TrainState(NamedTuple):
    """What a step changes. The Optax state has the velocity as `trace`, and with --ema the averaged weights as `ema`."""

    step: Int[Array, ""]  # updates made so far
    params: Params
    optimizer: optax.OptState


class ImageStats(NamedTuple):
    """Statistics of the training images: `Dataset.mean` and `Dataset.colours`."""

    mean: Float[Array, "size size 3"]
    colours: Float[Array, "3 3"]


class StepHparams(NamedTuple):
    """Hyper-parameters that the host may change at any step."""

    rates: Rates
    colour_noise: Float[Array, ""]


PARTS = ("augment", "loss", "average", "update")  # the scopes of a step, in a profile, beside those of the layers


class Metrics(NamedTuple):
    """Means over the examples of a training step; errors as fractions."""

    loss: Float[Array, ""]
    top1_error: Float[Array, ""]
    top5_error: Float[Array, ""]


@dataclass(frozen=True)
class Setup:
    """A network set up for a number of classes on a mesh: shapes and specs, nothing allocated."""

    config: Config
    classes: int
    mesh: TowerMesh
    graph: nnx.GraphDef
    shapes: Params  # of all towers' parameters

    @property
    def specs(self) -> dict[str, dict[str, P]]:
        """How the parameters lie on the mesh."""
        return param_specs(self.shapes)

    def transformation(self, rates: Rates) -> optax.GradientTransformation:
        """The run's optimiser at these learning rates."""
        config = self.config
        decays = {layer.name: layer.weight_decay for layer in config.table().layers}
        momentum = momentum_2012(
            rates, momentum=config.momentum, decays=decays, bias_decay=config.bias_decay,
            rate_in_velocity=config.rate_in_velocity, lars=config.lars,
        )  # fmt: skip
        return optax.chain(momentum, average_weights(config.ema)) if config.ema else momentum

    @property
    def state_specs(self) -> TrainState:
        """How the training state lies on the mesh."""
        optimizer = self.transformation({})
        slots = jax.eval_shape(optimizer.init, self.shapes)
        specs = optax.tree.map_params(optimizer, lambda _, spec: spec, slots, self.specs, transform_non_params=lambda _: P())
        return TrainState(P(), self.specs, specs)  # pyright: ignore[reportArgumentType]

    def initial_state(self) -> TrainState:
        """Fresh parameters and zero velocity, every array made where it lives, in the form that `train_step` takes."""

        def make(key):
            params = initial_params(self.config.table(), classes=self.classes, crop_size=self.config.crop, key=key)
            return TrainState(jnp.zeros((), jnp.int32), params, self.transformation({}).init(params))

        shardings = jax.tree.map(self.mesh.sharding, self.state_specs, is_leaf=lambda node: isinstance(node, P))
        # The seed's key is drawn apart from the steps' keys, which are fold_in(key(seed), step).
        key = jax.random.fold_in(jax.random.key(self.config.seed), jnp.uint32(2**32 - 1))
        state = jax.jit(make, out_shardings=shardings, compiler_options=_lightly_optimised())(key)
        return self.mesh.to_compiled(state, self.state_specs)


def _lightly_optimised() -> dict[str, int]:
    """What a program that runs once is compiled with on a CPU: 2.4 in place of 12 CPU-seconds for `paper`, the same bits."""
    return {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else {}


def make_setup(config: Config, classes: int, mesh: TowerMesh) -> Setup:
    """The network of a config as shapes; nothing is allocated. Raises UserError if the crop is too small."""
    dtype = jnp.dtype(config.precision)
    wire = dtype if config.crosstalk_precision == "same" else jnp.dtype(config.crosstalk_precision)
    network = {"classes": classes, "crop_size": config.crop, "dtype": dtype, "wire": wire, "fuse": config.fuse_norm_pool}
    graph, shapes = split(config.table(), **network)
    return Setup(config, classes, mesh, graph, shapes)


def cross_entropy(logits: Float[Array, "batch classes"], labels: Int[Array, "batch"]) -> Float[Array, "batch"]:
    """-log softmax(logits)[label]. Optax's is rounded otherwise, and a run would not resume bit for bit."""
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)[:, 0]


def rank(scores: Float[Array, "batch classes"], labels: Int[Array, "batch"]) -> Int[Array, "batch"]:
    """How many classes come before the label when sorted by falling score; ties go to the lower class number, as in top_k.

    0 is a correct answer, less than 5 a top-5 correct one. A NaN among the scores puts the label last.
    """
    own = jnp.take_along_axis(scores, labels[:, None], axis=1)
    earlier = jnp.arange(scores.shape[1]) < labels[:, None]
    before = (scores > own) | ((scores == own) & earlier)
    return jnp.where(jnp.isnan(scores).any(axis=1), scores.shape[1], before.sum(axis=1))


def example_keys(seed: int, step: Int[Array, ""], first: int | Int[Array, ""], count: int) -> Any:
    """One key per example of a batch: fold_in(fold_in(key(seed), step), position in the global batch).

    They do not depend on how the batch is spread over devices or cut into micro-batches.
    """
    key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.vmap(lambda position: jax.random.fold_in(key, position))(first + jnp.arange(count))


def make_train_step(setup: Setup) -> Callable[[TrainState, Batch, StepHparams, ImageStats], tuple[TrainState, Metrics]]:
    """The compiled training step `(state, batch, hparams, stats) -> (state, metrics)`; the state is donated."""
    config, mesh = setup.config, setup.mesh
    data, tower = mesh.data, mesh.tower
    scale = config.table().pixel_scale

    def loss(params, images, labels, keys, noise, stats):
        crop_keys, noise_keys, dropout_keys = jax.vmap(lambda key: jax.random.split(key, 3), out_axes=1)(keys)
        with jax.named_scope("augment"):
            inputs = random_crops(images, stats.mean, crop_keys, config.crop, scale, config.flip)
            if config.colour_noise != "none":
                inputs = colour_noise(inputs, stats.colours, noise_keys, noise, config.colour_noise, scale)
        logits = merge(setup.graph, params)(inputs, tower=tower, dropout_keys=dropout_keys)
        with jax.named_scope("loss"):
            losses, ranks = cross_entropy(logits, labels), rank(logits, labels)
        return losses.mean(), Metrics(losses.mean(), (ranks >= 1).mean(), (ranks >= 5).mean())

    def gradients(params, batch, keys, *constants):
        """Mean over this device's share, in `accumulate` parts, one after the other."""
        parts = config.accumulate
        shares = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), (*batch, keys))
        value_and_grad = jax.value_and_grad(loss, has_aux=True)
        total = None
        for images, labels, part_keys in zip(*shares, strict=True):
            if total is not None:  # so that only one part's activations are alive at a time
                total, images = lax.optimization_barrier((total, images))
            (_, metrics), grads = value_and_grad(params, images, labels, part_keys, *constants)
            total = (grads, metrics) if total is None else jax.tree.map(jnp.add, total, (grads, metrics))
        return jax.tree.map(lambda x: x / parts, total)

    def step(state: TrainState, batch: Batch, hparams: StepHparams, stats: ImageStats) -> tuple[TrainState, Metrics]:
        share = len(batch.labels)
        keys = example_keys(config.seed, state.step, data.index() * share, share)
        own = gradients(state.params, batch, keys, hparams.colour_noise, stats)
        with jax.named_scope("average"):
            grads, metrics = data.mean(own)
        with jax.named_scope("update"):
            updates, optimizer = setup.transformation(hparams.rates).update(grads, state.optimizer, state.params)
            params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, optimizer), metrics  # pyright: ignore[reportArgumentType]

    in_specs = (setup.state_specs, P("data"), P(), P())
    return mesh.compile(step, in_specs, (setup.state_specs, P()), donate=(0,))


def make_view_step(setup: Setup) -> Callable[..., Float[Array, "batch classes"]]:
    """The compiled evaluation of one view: `(params, images, mean, top, left, flipped, weight) -> log probabilities`,
    with the logarithm of the view's weight in the average added.

    One program serves every view, so ten views cost ten calls and the memory of one.
    """
    config, tower = setup.config, setup.mesh.tower
    scale = config.table().pixel_scale

    def view(params, images, mean, top, left, flipped: Bool[Array, ""], weight: Float[Array, ""]):
        pixels = equal_crops(images, mean, top, left, flipped, config.crop, scale)
        return jax.nn.log_softmax(merge(setup.graph, params)(pixels, tower=tower)) + weight

    in_specs = (setup.specs, P("data"), P(), P(), P(), P(), P())
    return setup.mesh.compile(view, in_specs, P("data"))


def make_feature_step(setup: Setup, layer: str) -> Callable[..., Float[Array, "batch ..."]]:
    """The compiled `(params, images, mean, top, left) -> activations` of a hidden layer after its operations, the towers'
    maps joined in order: (batch, 4096) of fc7, (batch, 13, 13, 384) of conv3."""
    config, tower = setup.config, setup.mesh.tower
    scale = config.table().pixel_scale

    def features(params, images, mean, top, left):
        pixels = equal_crops(images, mean, top, left, jnp.bool_(False), config.crop, scale)
        towers = merge(setup.graph, params).activations(pixels, layer, tower=tower)
        return tower.gather(jnp.concatenate(towers, axis=-1))

    in_specs = (setup.specs, P("data"), P(), P(), P())
    return setup.mesh.compile(features, in_specs, P("data"))


def make_nonfinite_count(setup: Setup) -> Callable[[Params], Int[Array, ""]]:
    """The compiled count of parameters that are NaN or infinite: a state with any is not worth keeping."""

    def count(params):
        return setup.mesh.tower.sum(sum((~jnp.isfinite(x)).sum() for x in jax.tree.leaves(params)))

    return setup.mesh.compile(count, (setup.specs,), P())


def make_checksum(mesh: TowerMesh, specs: Any) -> Callable[[Any], UInt32[Array, ""]]:
    """The compiled checksum of a tree of arrays of 32 bits a number, the same number on every mesh.

    It is the sum of all bit patterns modulo 2**32, each times an odd number that tells its place, so that no change of one
    value goes unseen, and no order of adding matters.
    """

    def leaf_sum(x: Float[Array, "..."] | Int[Array, "..."], spec: P) -> UInt32[Array, ""]:
        bits = lax.bitcast_convert_type(x, jnp.uint32).reshape(-1)
        sharded = "tower" in spec
        first = jnp.uint32(mesh.tower.index() * bits.size if sharded else 0)
        total = (bits * (2 * (first + jnp.arange(bits.size, dtype=jnp.uint32)) + 1)).sum(dtype=jnp.uint32)
        return mesh.tower.sum(total) if sharded else total

    def checksum(tree: Any) -> UInt32[Array, ""]:
        sums = jax.tree.leaves(jax.tree.map(leaf_sum, tree, specs))
        total = jnp.uint32(0)
        for one in sums:
            total = total * jnp.uint32(16777619) + one
        return total

    return mesh.compile(checksum, (specs,), P())
