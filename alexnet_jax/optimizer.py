"""The paper's momentum, Section 5, and the schedules of its learning rate.

v := 0.9 v - 0.0005 eps w - eps g;  w := w + v. The rate eps is inside the velocity; `optax.sgd` and PyTorch keep it outside
and differ after every change of rate: `--norate_in_velocity`.

For large batches: linear scaling of the rate and warm-up (Goyal et al. 2017, arXiv 1706.02677), and layer-wise rates (LARS,
You et al. 2017, arXiv 1708.03888). `average_weights` keeps an average of the weights beside them.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from alexnet_jax.config import Config
from alexnet_jax.network import Params

Rates = dict[str, dict[str, Any]]  # one scalar per parameter, shaped as Params


def momentum_2012(
    rates: Rates,
    *,
    momentum: float,
    decays: Mapping[str, float],
    bias_decay: bool,
    rate_in_velocity: bool = True,
    lars: float = 0.0,
) -> optax.GradientTransformation:
    """The velocity update of Section 5 from Optax's parts, with layer-wise rates if wanted.

    Args:
        rates: learning rate of each parameter; they may be traced, for the state does not depend on them.
        momentum: 0.9 in the paper.
        decays: weight decay of each layer; 0.0005 in the paper.
        bias_decay: decay biases as well.
        rate_in_velocity: False multiplies the velocity by the rate when it is added to the parameters.
        lars: trust coefficient of LARS; 0 is the paper's momentum alone.
    """

    def decaying(params: Params) -> dict[str, dict[str, bool]]:
        return {layer: {name: bias_decay or name != "bias" for name in weights} for layer, weights in params.items()}

    def add_decayed(gradients: Any, params: Any) -> Any:
        return jax.tree.map_with_path(lambda path, g, w: g + decays[path[0].key] * w, gradients, params)

    def adapted(gradients: Any, params: Any) -> Any:
        def one(path: Any, g: Any, w: Any) -> Any:
            layer, name = (key.key for key in path)
            decay = decays[layer] if bias_decay or name != "bias" else 0.0
            return lars * (1.0 if name == "bias" else norm_ratio(w, g, decay)) * (g + decay * w)

        return jax.tree.map_with_path(one, gradients, params)

    decay = optax.stateless(adapted) if lars else optax.masked(optax.stateless(add_decayed), decaying)
    rate = optax.stateless(lambda gradients, _: jax.tree.map(lambda g, rate: -rate * g, gradients, rates))
    velocity = optax.trace(decay=momentum)
    return optax.chain(decay, rate, velocity) if rate_in_velocity else optax.chain(decay, velocity, rate)


def norm_ratio(
    kernel: Float[Array, "towers ..."], gradient: Float[Array, "towers ..."], decay: float
) -> Float[Array, "towers ..."]:
    """||w|| / (||g|| + decay ||w||) of each tower's share of a kernel: the local rate of You et al. without its coefficient.

    LARS moves a kernel by rate x coefficient x ||w||, however large the gradient is. A tower's share of a layer counts as a
    layer: that needs no communication between towers. `optax.lars` divides by ||g + decay w|| instead. As there, the ratio
    is 1 where a norm is 0.

    Biases have no ratio, and no decay by default. Their rate is multiplied by the coefficient alone, so that it is what it
    is without LARS; `optax.lars` would give them the bare rate, a thousand times as much.
    """

    def norm(x: Float[Array, "towers ..."]) -> Float[Array, "towers ..."]:
        rows = jnp.square(x).sum(axis=-1, keepdims=True)  # first: one float32 sum over millions would lose some of them
        return jnp.sqrt(rows.sum(axis=tuple(range(1, x.ndim - 1)), keepdims=True))

    weights, slopes = norm(kernel), norm(gradient)
    nonzero = (weights > 0) & (slopes > 0)
    return jnp.where(nonzero, weights / jnp.where(nonzero, slopes + decay * weights, 1.0), 1.0)


class AveragedWeights(NamedTuple):
    """The state of `average_weights`."""

    step: Any  # updates so far, int32
    ema: Any  # the average, shaped as the parameters


def average_weights(decay: float) -> optax.GradientTransformation:
    """Keeps an average of the parameters, and lets the updates through as they are. It is the last part of a chain.

    e_t = (1 - d) (w_t + d w_(t-1) + ... + d^(t-1) w_1) / (1 - d^t): Kingma and Ba 2015 (arXiv 1412.6980), Section 7.2. The
    parameters before the first step have no part in it.

    Args:
        decay: d, above 0 and below 1.
    """
    log_decay = math.log(decay)

    def init(params: Any) -> AveragedWeights:
        return AveragedWeights(np.int32(0), optax.tree.zeros_like(params))

    def update(updates: Any, state: AveragedWeights, params: Any) -> tuple[Any, AveragedWeights]:
        step = state.step + 1
        share = jnp.expm1(log_decay) / jnp.expm1(log_decay * step)  # (1 - d) / (1 - d^t), exact where d is almost 1
        new = optax.apply_updates(params, updates)
        return updates, AveragedWeights(step, jax.tree.map(lambda e, w: e + share * (w - e), state.ema, new))

    return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True)
class Plateau:
    """What the schedule has seen of the validation error: host numbers, kept in the checkpoint."""

    best_error: float = float("inf")
    since_best: int = 0
    drops: int = 0

    def after(self, error: float, *, patience: int, max_drops: int) -> "Plateau":
        """The state after one more validation with this top-1 error in percent."""
        if error < self.best_error:
            return Plateau(error, 0, self.drops)
        if self.since_best + 1 >= patience and self.drops < max_drops:
            return Plateau(self.best_error, 0, self.drops + 1)
        return Plateau(self.best_error, self.since_best + 1, self.drops)

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Schedule:
    """Learning rates as a function of the step and of the plateaus seen."""

    config: Config
    layers: tuple[str, ...]
    examples: int  # in an epoch
    total_steps: int

    def rate(self, step: int, plateau: Plateau) -> float:
        """Learning rate of the weights at `step`, counted from 0, before any layer's factor."""
        return self._height(step) * self._falls(step, plateau)[0]

    def rates(self, step: int, plateau: Plateau) -> dict[str, dict[str, float]]:
        """Learning rate of every kernel and bias at `step`."""
        weights, biases = (self._height(step) * fall for fall in self._falls(step, plateau))
        factors = dict.fromkeys(self.layers, 1.0)
        for layer, factor, start in self.config.layer_rates:
            if self._epoch(step) >= start:
                factors[layer] = factor
        factors |= dict.fromkeys(self.config.freeze, 0.0)
        return {
            layer: {"kernel": weights * factor, "bias": biases * self.config.bias_rate * factor}
            for layer, factor in factors.items()
        }

    def _epoch(self, step: int) -> float:
        return step * self.config.batch_size / self.examples

    def _height(self, step: int) -> float:
        """The rate before it falls: scaled with the batch, and lower in warm-up.

        Goyal et al. 2017: k eta for a batch k times as large (Section 2.1), reached from eta in equal steps (Section 2.2).
        """
        config, base = self.config, self.config.learning_rate
        full = base * (config.batch_size / (config.base_batch_size or config.batch_size))
        if self._epoch(step + 1) >= config.warmup_epochs:
            return full
        start = base if full > base else 0.0
        return start + (full - start) * self._epoch(step + 1) / config.warmup_epochs

    def _falls(self, step: int, plateau: Plateau) -> tuple[float, float]:
        """By how much the rates of weights and of biases have fallen."""
        factor = self.config.drop_factor
        match self.config.schedule:
            case "plateau":
                fall = factor**-plateau.drops
            case "steps":
                passed = sum(self._epoch(step) >= epoch for epoch in self.config.drop_epochs)
                fall = factor**-passed
            case "staged":
                # 2012 lab notes: four equal stages, 250x in all; the rate of biases drops 10x once, at half.
                stage = min(3, 4 * step // self.total_steps)
                return 250 ** (-stage / 3), 0.1 if stage >= 2 else 1.0
            case "polynomial":
                fall = (1 - step / self.total_steps) ** 2
            case _:
                fall = 1.0
        return fall, fall
