"""What happens after which step of a run, and how far the run is."""

import math
from dataclasses import dataclass
from typing import Any

from alexnet_jax.config import Config
from alexnet_jax.fields import INT32_MAX
from alexnet_jax.optimizer import Plateau
from alexnet_jax.run.metrics import MetricSums
from alexnet_jax.system.errors import UserError
from alexnet_jax.values import number_text


@dataclass(frozen=True)
class Intervals:
    """What happens after which step. Steps are counted from 1 here: `step` updates have been made."""

    config: Config
    examples: int  # in an epoch
    validates: bool  # whether there is a validation split

    @property
    def total_steps(self) -> int:
        """Steps of the whole run; the last one may begin the epoch after."""
        return self.config.steps or math.ceil(self.config.epochs * self.examples / self.config.batch_size)

    @property
    def total_epochs(self) -> float:
        """Epochs of the whole run, as its flags say it."""
        return self.epoch(self.config.steps) if self.config.steps else self.config.epochs

    def check(self) -> None:
        """Raises UserError if the run has more steps than can be counted in 32 bits, or fewer than --profile asks for."""
        if self.total_steps > INT32_MAX:
            epochs = number_text(self.config.epochs)
            raise UserError(f"--epochs={epochs} makes {self.total_steps:,} steps, and {INT32_MAX:,} is the most")
        profile = self.config.profile
        if profile and profile.stop > self.total_steps:
            raise UserError(f"--profile={profile}: the run ends at step {self.total_steps}: choose an earlier STOP")

    def epoch(self, step: int) -> float:
        """Passes over the training images."""
        return step * self.config.batch_size / self.examples

    def _ends_epoch(self, step: int) -> bool:
        return math.floor(self.epoch(step)) > math.floor(self.epoch(step - 1))

    def logs(self, step: int) -> bool:
        """Whether a row of training metrics ends here."""
        return step % self.config.log_every == 0 or step == self.total_steps

    def _pauses(self, step: int) -> bool:
        every = self.config.eval_every
        return step == self.total_steps or (step % every == 0 if every else self._ends_epoch(step))

    def validates_after(self, step: int) -> bool:
        """Whether a validation follows."""
        return self.validates and self._pauses(step)

    def pauses_after(self, step: int) -> bool:
        """Whether a validation or a checkpoint follows."""
        return self.validates_after(step) or self.saves_after(step)

    def saves_after(self, step: int) -> bool:
        """Whether a checkpoint follows."""
        every = self.config.checkpoint_every
        return step == self.total_steps or (step % every == 0 if every else self._pauses(step))


@dataclass(frozen=True)
class Progress:
    """The host's part of the state of a run, kept in the checkpoint."""

    step: int = 0
    plateau: Plateau = Plateau()
    sums: MetricSums = MetricSums()
    validation_due: bool = False  # an interruption has put off the validation after `step`
    seconds: float = 0.0  # in training steps, over all starts

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        host = {"step": self.step, "plateau": self.plateau.as_dict(), "window": self.sums.as_dict()}
        return host | {"validation_due": self.validation_due, "seconds": self.seconds}

    @staticmethod
    def from_dict(content: dict[str, Any]) -> "Progress":
        """The reverse of `as_dict`. Checkpoints of earlier versions lack the last two."""
        plateau, sums = Plateau(**content["plateau"]), MetricSums.from_dict(content["window"])
        return Progress(content["step"], plateau, sums, content.get("validation_due", False), content.get("seconds", 0.0))
