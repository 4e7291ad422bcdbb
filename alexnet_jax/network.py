"""The Flax module that runs a layer table on the towers that a device holds: Figure 2 of the paper.

Every parameter leads with a tower axis. A device that holds both towers runs them one after the other with dense products;
a device that holds one runs the same code on one. Activations travel as a tuple with one array per tower held.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Key

from alexnet_jax import gradients, ops
from alexnet_jax.layers import (
    Architecture,
    AveragePool,
    Classifier,
    Convolution,
    Dense,
    Dropout,
    LayerShapes,
    MaxPool,
    Operation,
    Relu,
    ResponseNorm,
    Tanh,
    convolution_padding,
    trace,
)
from alexnet_jax.mesh import Axis

Params = dict[str, dict[str, Any]]  # {"conv1": {"kernel": ..., "bias": ...}, ...}
Towers = tuple[Array, ...]
CROSS_TALK = "cross_talk"  # the scope, in a profile, of what goes from tower to tower


def _initial(std: float | None, fan_in: int, shape: tuple[int, ...], key: Key[Array, ""]) -> Float[Array, "..."]:
    """N(0, std) as in Section 5, or PyTorch's default U(-1, 1) / sqrt(fan_in)."""
    if std is None:
        return jax.random.uniform(key, shape, minval=-1.0, maxval=1.0) / fan_in**0.5
    return std * jax.random.normal(key, shape)


class Weights(nnx.Module):
    """A kernel and a bias, both with a leading axis of size `towers`; a classifier's bias has none, all towers share it.

    A convolution's kernel is (towers, k, k, inputs, outputs); a locally connected one's is (towers, oh, ow, inputs * k * k,
    outputs), and has a bias for each position too.
    """

    def __init__(self, shapes: LayerShapes, rngs: nnx.Rngs):
        spec, towers = shapes.layer, shapes.towers
        local = isinstance(spec, Convolution) and not spec.shared
        fan_in = shapes.kernel[-2] if local else math.prod(shapes.kernel[:-1])
        bias_shape = shapes.bias if isinstance(spec, Classifier) else (towers, *shapes.bias)
        self.kernel = nnx.Param(_initial(spec.init_std, fan_in, (towers, *shapes.kernel), rngs.params()))
        if spec.init_std is None:
            self.bias = nnx.Param(_initial(None, fan_in, bias_shape, rngs.params()))
        else:
            self.bias = nnx.Param(jnp.full(bias_shape, spec.bias, jnp.float32))


class Network(nnx.Module):
    """A layer table made into a network. `__call__` is the per-device program; by itself a device holds all towers.

    >>> from alexnet_jax import ARCHITECTURES, Network
    >>> network = Network(ARCHITECTURES["paper"], rngs=nnx.Rngs(0))
    >>> network(jnp.zeros((1, 224, 224, 3))).shape
    (1, 1000)
    >>> network.layers["conv3"].kernel.shape
    (2, 3, 3, 256, 192)

    Use its tree-safe form in anything jitted: `split` once, then `nnx.merge(graph, {"layers": params})` inside.
    """

    def __init__(
        self,
        architecture: Architecture,
        *,
        classes: int = 1000,
        crop_size: int | None = None,
        dtype: jnp.dtype = jnp.dtype(jnp.float32),
        wire: jnp.dtype | None = None,
        fuse: bool = False,
        rngs: nnx.Rngs,
    ):
        """Makes float32 parameters for all towers.

        Args:
            architecture: the layer table.
            classes: number of outputs.
            crop_size: side of the input in pixels; None: the table's own.
            dtype: of activations and products, float32 or bfloat16; parameters and logits are float32.
            wire: of the cross-talk and its gradients; None: `dtype`.
            fuse: bias, ReLU, response norm and max-pooling of a layer are one kernel where `alexnet_jax.norm_pool` has it.
            rngs: its `params` stream draws the initial kernels.

        Raises:
            UserError: `crop_size` is too small for the layers.
        """
        self.architecture = architecture
        self.dtype, self.wire, self.fuse = dtype, wire or dtype, fuse
        shapes = trace(architecture, crop_size or architecture.crop_size, classes)
        self.layers = nnx.Dict({layer.name: Weights(layer, rngs) for layer in shapes})

    def __call__(
        self,
        images: Float[Array, "batch crop crop 3"],
        *,
        tower: Axis = Axis(),
        dropout_keys: Key[Array, "batch"] | None = None,
    ) -> Float[Array, "batch classes"]:
        """The float32 logits of the images, equal on every tower.

        Args:
            images: mean-subtracted RGB, float32.
            tower: the mesh direction along which the towers lie.
            dropout_keys: switches dropout on: one key per example of this device's share of the batch.
        """
        *hidden, classifier = self.architecture.layers
        x = self.activations(images, hidden[-1].name, tower=tower, dropout_keys=dropout_keys)
        with jax.named_scope(classifier.name):
            return self._classify(x, self.layers[classifier.name], tower)

    def activations(
        self,
        images: Float[Array, "batch crop crop 3"],
        layer: str,
        *,
        tower: Axis = Axis(),
        dropout_keys: Key[Array, "batch"] | None = None,
    ) -> Towers:
        """What comes out of a hidden layer and the operations after it, one array per tower that this device holds.

        Arguments as for `__call__`. Raises ValueError if there is no such hidden layer.
        """
        images = images.astype(self.dtype)
        x: Towers = ()
        for number, spec in enumerate(self.architecture.layers):
            if isinstance(spec, Classifier):
                break
            with jax.named_scope(spec.name):
                x = self._layer(spec, images, x, number, tower, dropout_keys)
            if spec.name == layer:
                return x
        raise ValueError(f"no hidden layer {layer!r} in {self.architecture.name}")

    def _layer(
        self,
        spec: Convolution | Dense,
        images: Float[Array, "batch crop crop 3"],
        x: Towers,
        number: int,
        tower: Axis,
        dropout_keys: Key[Array, "batch"] | None,
    ) -> Towers:
        """One hidden layer and the operations after it; `x` is what comes out of the layer before."""
        weights = self.layers[spec.name]
        kernels, biases = (param[...].astype(self.dtype) for param in (weights.kernel, weights.bias))
        if spec.reads == "image":
            x = (images,) * len(kernels)
        elif spec.reads == "all":
            with jax.named_scope(CROSS_TALK):
                x = _crosstalk(x, tower, self.wire)
        match spec:
            case Convolution(after=(Relu(), ResponseNorm(across="maps") as norm, MaxPool() as pool)) if self.fuse:
                return _normed_and_pooled(spec, x, kernels, biases, norm, pool)
        x = _apply(spec, x, kernels, biases)
        for operation in spec.after:
            with jax.named_scope(type(operation).__name__):
                x = _operate(operation, x, number, tower, dropout_keys)
        return x

    def _classify(self, x: Towers, weights: Weights, tower: Axis) -> Float[Array, "batch classes"]:
        kernels = weights.kernel[...].astype(self.dtype)
        widest = jnp.promote_types(self.dtype, jnp.float32)
        partial = jnp.einsum("tbk,tkn->tbn", _flat(x), kernels, precision=ops.EXACT, preferred_element_type=widest).sum(0)
        with jax.named_scope(CROSS_TALK):
            total = tower.sum_of_partials(partial)
        # The bias is added after the sum, so its gradient needs no exchange between the towers.
        return total + weights.bias[...]


def _crosstalk(x: Towers, tower: Axis, wire: jnp.dtype) -> Towers:
    """All maps, once for each tower held.

    Maps and gradients are sent as `wire`. They are rounded to it where one device holds all towers too, so the numbers are
    the same on every mesh.
    """
    joined = jnp.concatenate(x, axis=-1)
    if wire == joined.dtype:
        return (tower.gather(joined),) * len(x)
    # The outer rounding is that of the sum of both towers' gradients, the inner one that of what each of them sends.
    received = tower.gather(_rounded(joined, wire).astype(wire)).astype(joined.dtype)
    return tuple(_rounded(received, wire) for _ in x)


def _rounded(x: Float[Array, "..."], dtype: jnp.dtype) -> Float[Array, "..."]:
    """`x` in its own dtype with the digits of another one, its gradient too. XLA may leave out a cast there and back."""
    digits = jnp.finfo(dtype)
    return lax.reduce_precision(x, digits.nexp, digits.nmant)


def _flat(x: Towers) -> Float[Array, "towers batch units"]:
    return jnp.stack([x_t.reshape(x_t.shape[0], -1) for x_t in x])


def _apply(spec: Convolution | Dense, x: Towers, kernels: Float[Array, "towers ..."], biases: Array) -> Towers:
    if isinstance(spec, Dense):
        return tuple(gradients.dense(_flat(x), kernels) + biases[:, None])
    return tuple(convolve(spec, x_t, kernels[t]) + biases[t] for t, x_t in enumerate(x))


def _normed_and_pooled(
    spec: Convolution, x: Towers, kernels: Array, biases: Array, norm: ResponseNorm, pool: MaxPool
) -> Towers:
    from alexnet_jax.norm_pool import relu_norm_pool  # Pallas takes 0.3 s to import

    x = tuple(convolve(spec, x_t, kernels[t]) for t, x_t in enumerate(x))
    with jax.named_scope("NormPool"):
        return tuple(relu_norm_pool(x_t, biases[t], norm, pool) for t, x_t in enumerate(x))


def convolve(spec: Convolution, x: Float[Array, "batch height width maps"], kernel: Float[Array, "..."]) -> Array:
    """One tower's convolution, without its bias."""
    height, width = (convolution_padding(spec, size) for size in x.shape[1:3])
    if spec.shared:
        return gradients.convolution(x, kernel, spec.stride, (height, width))
    return ops.local_convolution(x, kernel, spec.kernel, spec.stride, (height, width))


def _operate(operation: Operation, x: Towers, number: int, tower: Axis, dropout_keys: Key[Array, "batch"] | None) -> Towers:
    """One operation on every tower held. `number` is the layer's, which gives its dropout a stream of its own."""
    match operation:
        case Relu():
            return tuple(map(gradients.relu, x))
        case Tanh():
            return tuple(map(jnp.tanh, x))
        case ResponseNorm(across="all_maps"):
            maps, first = x[0].shape[-1], tower.index() * len(x)
            normed = gradients.response_norm(tower.gather(jnp.concatenate(x, axis=-1)), operation)
            return tuple(lax.dynamic_slice_in_dim(normed, (first + t) * maps, maps, -1) for t in range(len(x)))
        case ResponseNorm():
            return tuple(gradients.response_norm(x_t, operation) for x_t in x)
        case MaxPool():
            return tuple(gradients.max_pool(x_t, operation) for x_t in x)
        case AveragePool():
            return tuple(ops.average_pool(x_t, operation) for x_t in x)
        case Dropout():
            if dropout_keys is None:
                return x
            towers = tower.size * len(x)
            first = number * towers + tower.index() * len(x)
            return tuple(ops.dropout(x_t, dropout_keys, first + t, operation.rate) for t, x_t in enumerate(x))


def split(
    architecture: Architecture,
    *,
    classes: int,
    crop_size: int,
    dtype: jnp.dtype,
    wire: jnp.dtype | None = None,
    fuse: bool = False,
) -> tuple[nnx.GraphDef, Params]:
    """The network's graph and its parameters as shapes, nothing being allocated. Raises UserError as `Network` does."""
    network = nnx.eval_shape(
        lambda: Network(
            architecture, classes=classes, crop_size=crop_size, dtype=dtype, wire=wire, fuse=fuse, rngs=nnx.Rngs(0)
        )
    )
    graph, state = nnx.split(network)
    return graph, nnx.to_pure_dict(state)["layers"]


def initial_params(architecture: Architecture, *, classes: int, crop_size: int, key: Key[Array, ""]) -> Params:
    """Fresh float32 parameters of all towers; jit it with `out_shardings` and they are born sharded."""
    network = Network(architecture, classes=classes, crop_size=crop_size, rngs=nnx.Rngs(key))
    return nnx.to_pure_dict(nnx.state(network))["layers"]


def merge(graph: nnx.GraphDef, params: Params) -> Network:
    """The network with these parameters, of all towers or of those that a device holds."""
    return nnx.merge(graph, {"layers": params})


def param_specs(params: Params) -> dict[str, dict[str, P]]:
    """How the parameters lie on the mesh: cut along the tower axis, all but the classifier's bias, which is shared."""
    return {
        layer: {name: P() if name == "bias" and x.ndim == 1 else P("tower") for name, x in weights.items()}
        for layer, weights in params.items()
    }
