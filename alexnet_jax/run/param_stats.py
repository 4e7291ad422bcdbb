"""How large each layer's parameters are and how far the last step moved them: cuda-convnet's tool for finding what is wrong.

Its author's page on debugging wants updates of about a thousandth of the weights: far below that nothing is learned, far
above it the rate is too high.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from alexnet_jax.optimizer import Rates
from alexnet_jax.step import Setup, TrainState

Magnitudes = Mapping[str, Mapping[str, float]]  # {"conv1": {"kernel": ..., "kernel_update": ..., "bias": ..., ...}, ...}


class ParamStatsMeter:
    """Mean absolute values over all towers. A program of its own: the training step stays as it is."""

    def __init__(self, setup: Setup):
        """`setup`: of the states that it will see."""
        self._setup = setup
        tower = setup.mesh.tower

        def mean(x: Float[Array, "..."], spec: P) -> Float[Array, ""]:
            # The last axis first: one float32 sum over millions of small numbers would lose some of them.
            own = jnp.abs(x).mean(axis=-1).mean()
            return tower.mean(own) if "tower" in spec else own

        def means(state: TrainState):
            velocity = optax.tree.get(state.optimizer, "trace")
            return tuple(jax.tree.map(mean, tree, setup.specs) for tree in (state.params, velocity))

        self._means = setup.mesh.compile(means, (setup.state_specs,), (P(), P()))

    def __call__(self, state: TrainState, rates: Rates) -> Magnitudes:
        """Of a state after a step that was made at these rates.

        The update is the velocity, into which the rate has gone; with --norate_in_velocity it is the rate times that.
        """
        weights, velocity = self._setup.mesh.fetch(self._means(state), P())
        inside = self._setup.config.rate_in_velocity
        found: dict[str, dict[str, float]] = {}
        for layer, values in weights.items():
            found[layer] = {}
            for name in ("kernel", "bias"):
                rate = 1.0 if inside else float(np.float32(rates[layer][name]))
                found[layer][name] = float(values[name])
                found[layer][f"{name}_update"] = rate * float(velocity[layer][name])
        return found
