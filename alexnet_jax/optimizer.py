"""The paper's momentum, Section 5, and the schedules of its learning rate.

v := 0.9 v - 0.0005 eps w - eps g;  w := w + v. The rate eps is inside the velocity; `optax.sgd` and PyTorch keep it outside
and differ after every change of rate: `--norate_in_velocity`.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import jax
import optax

from alexnet_jax.config import Config
from alexnet_jax.network import Params

Rates = dict[str, dict[str, Any]]  # one scalar per parameter, shaped as Params


def momentum_2012(
    rates: Rates, *, momentum: float, decays: Mapping[str, float], bias_decay: bool, rate_in_velocity: bool = True
) -> optax.GradientTransformation:
    """The velocity update of Section 5 from Optax's parts.

    Args:
        rates: learning rate of each parameter; they may be traced, for the state does not depend on them.
        momentum: 0.9 in the paper.
        decays: weight decay of each layer; 0.0005 in the paper.
        bias_decay: decay biases as well.
        rate_in_velocity: False multiplies the velocity by the rate when it is added to the parameters.
    """

    def decaying(params: Params) -> dict[str, dict[str, bool]]:
        return {layer: {name: bias_decay or name != "bias" for name in weights} for layer, weights in params.items()}

    def add_decayed(gradients: Any, params: Any) -> Any:
        return jax.tree.map_with_path(lambda path, g, w: g + decays[path[0].key] * w, gradients, params)

    decay = optax.masked(optax.stateless(add_decayed), decaying)
    rate = optax.stateless(lambda gradients, _: jax.tree.map(lambda g, rate: -rate * g, gradients, rates))
    velocity = optax.trace(decay=momentum)
    return optax.chain(decay, rate, velocity) if rate_in_velocity else optax.chain(decay, velocity, rate)


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
        return self.config.learning_rate * self._falls(step, plateau)[0]

    def rates(self, step: int, plateau: Plateau) -> dict[str, dict[str, float]]:
        """Learning rate of every kernel and bias at `step`."""
        weights, biases = (self.config.learning_rate * fall for fall in self._falls(step, plateau))
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
            case _:
                fall = 1.0
        return fall, fall
