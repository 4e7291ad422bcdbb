"""Tells when a network learns nothing: its loss is still that of one that knows only how frequent the classes are."""

import math

import numpy as np
from jaxtyping import Int32

DEAD_AFTER_STEPS = 500
DEAD_MARGIN = 0.98  # of the entropy of the labels


def label_entropy(labels: Int32[np.ndarray, "examples"]) -> float:
    """Loss in nats of a network that knows only how frequent the classes are: ln(classes) where they are balanced."""
    frequencies = np.bincount(labels) / len(labels)
    return float(-sum(p * math.log(p) for p in frequencies if p > 0))


class DeadNetwork:
    """Warns once."""

    def __init__(self, entropy: float, classes: int):
        self._entropy, self._classes = entropy, classes
        self._warned = False

    def warning(self, step: int, loss: float) -> str:
        """What to say after the row of metrics at `step`; '' for nothing."""
        if self._warned or step < DEAD_AFTER_STEPS or loss < DEAD_MARGIN * self._entropy:
            return ""
        self._warned = True
        return (
            f"warning: the network looks dead: after {step} steps the loss {loss:.3f} is still that of guessing from the "
            f"class frequencies ({self._entropy:.3f}, ln {self._classes} = {math.log(self._classes):.3f}). "
            "Try --bias_init=0.1 or another --learning_rate"
        )
