"""An effect, its standard error, and what follows from them: the interval, the p-value and the smallest visible effect.

Every level and every power is two-sided. The distribution is Student's t.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import nctdtrinc, stdtr, stdtrit

from alexnet_jax.system.errors import UserError

CONFIDENCE = 0.9  # of an interval: 5 % on each side
LEVEL = 1 - CONFIDENCE
POWER = 0.8  # the chance to see the smallest visible effect


@dataclass(frozen=True)
class Estimate:
    """An effect of a claim. Above 0 it favours the claim. Of a quotient it is the logarithm."""

    effect: float
    error: float  # its standard error
    freedom: float  # degrees of freedom of `error`

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """The ends of the confidence interval that leaves out `level` in all, half on each side."""
        reach = self.error * float(stdtrit(self.freedom, 1 - level / 2))
        return self.effect - reach, self.effect + reach

    def p(self, null: float = 0.0) -> float:
        """The two-sided p-value of the hypothesis that the true effect is `null`."""
        distance = abs(self.effect - null)
        if self.error == 0:  # equal values in every run
            return float(distance == 0)
        return 2 * float(stdtr(self.freedom, -distance / self.error))


def paired(favoured: Sequence[float], other: Sequence[float]) -> Estimate:
    """The mean of `other - favoured` over pairs. For two measurements of one run.

    Raises:
        UserError: fewer than two pairs, or arms of unequal length.
    """
    if len(favoured) != len(other) or len(favoured) < 2:
        raise UserError("--seeds: a paired comparison needs the same runs in both arms, at least two")
    gains = np.subtract(other, favoured)
    return Estimate(float(gains.mean()), float(gains.std(ddof=1)) / math.sqrt(len(gains)), len(gains) - 1)


def unpaired(favoured: Sequence[float], other: Sequence[float]) -> Estimate:
    """The difference of the means, `other - favoured`, by Welch's t-test: the arms may differ in variance and number.

    Runs of one seed are independent runs, as training soon forgets what they share.

    Raises:
        UserError: fewer than two runs in an arm.
    """
    if min(len(favoured), len(other)) < 2:
        raise UserError("--seeds: a verdict needs at least two runs of each arm")
    squares = [float(np.var(arm, ddof=1)) / len(arm) for arm in (favoured, other)]
    total = sum(squares)
    freedom = len(favoured) + len(other) - 2.0
    if total > 0:
        freedom = total**2 / sum(part**2 / (len(arm) - 1) for part, arm in zip(squares, (favoured, other), strict=True))
    return Estimate(float(np.mean(other) - np.mean(favoured)), math.sqrt(total), freedom)


def smallest_visible(error: float, freedom: float, level: float = LEVEL, *, edges: int = 1) -> float:
    """The true distance from a hypothesis that a test at `level` finds with POWER.

    Args:
        error: standard error of the effect.
        freedom: its degrees of freedom.
        level: two-sided level of the test.
        edges: 1 for a test of one value. 2 for equivalence: the effect is nil, both margins have this distance, and both
            must be excluded.
    """
    critical = stdtrit(freedom, 1 - level / 2)
    return error * float(nctdtrinc(freedom, (1 - POWER) / edges, critical))


def planned_runs(sd: float, distance: float, level: float = LEVEL, *, is_paired: bool = False, edges: int = 1) -> int:
    """The runs of each arm that make `distance` visible.

    Args:
        sd: standard deviation over the runs of an arm; if `is_paired`, of the differences.
        distance: true distance from the hypothesis, above 0; see `smallest_visible`.
        level: two-sided level of the test.
        is_paired: both arms are measured on the same runs.
        edges: see `smallest_visible`.
    """
    return next(
        runs
        for runs in itertools.count(2)
        if smallest_visible(*planned_error(sd, runs, is_paired=is_paired), level, edges=edges) <= distance
    )


def planned_error(sd: float, runs: float, *, is_paired: bool = False) -> tuple[float, float]:
    """The standard error and its degrees of freedom, of `runs` runs in each arm with a stated standard deviation."""
    return (sd / math.sqrt(runs), runs - 1) if is_paired else (sd * math.sqrt(2 / runs), 2 * runs - 2)
