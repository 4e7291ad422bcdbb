"""The verdicts on a family of claims, by Holm's method over all of its tests."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from experiments.claims.claim import Claim
from experiments.claims.estimate import (
    LEVEL,
    Estimate,
    paired,
    planned_error,
    planned_runs,
    smallest_visible,
    unpaired,
)

Verdict = Literal["confirmed", "direction only", "equivalent", "contradicted", "underpowered"]
Values = Mapping[str, Sequence[float]]  # the arms of a claim, each with a value for every run


@dataclass(frozen=True)
class Judgement:
    """A claim's result. Effects are differences of the arms, or quotients if the claim says so."""

    effect: float  # above 0, or above 1 for a quotient, favours the claim
    low: float  # ends of the interval at CONFIDENCE, of this claim alone
    high: float
    p: float  # of the test that the verdict rests on, by Holm over the family
    visible: float  # smallest visible effect if the claim stood alone, from the hypothesis that is tested
    visible_in_family: float  # the same at the first step of Holm's method, the strictest
    verdict: Verdict
    words: str  # the verdict with its margin or its smallest visible effect


def estimate(claim: Claim, values: Values) -> Estimate:
    """The claim's effect, as logarithm if it is a quotient."""
    arms = [np.log(arm) if claim.ratio else np.asarray(arm, float) for arm in values.values()]
    favoured, other = (arm.tolist() for arm in arms)
    return paired(favoured, other) if claim.is_paired else unpaired(favoured, other)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values adjusted by Holm's method (1979), in the same order.

    Those that are at most `level` may be rejected together: the chance of any false rejection is then at most `level`.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for step, place in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, (len(p_values) - step) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def judge(family: Sequence[tuple[Claim, Values]], designed: Mapping[str, Estimate] | None = None) -> list[Judgement]:
    """The judgement of each claim, in the same order.

    Args:
        family: the claims with their values.
        designed: effects by the name of the claim, where a design gives them. The others are those of the arms.

    Raises:
        UserError: an arm has fewer than two runs.
    """
    known = designed or {}
    estimates = [known[claim.name] if claim.name in known else estimate(claim, values) for claim, values in family]
    tests = [p_values(claim, found) for (claim, _), found in zip(family, estimates, strict=True)]
    adjusted = iter(holm([p for of_claim in tests for p in of_claim]))
    level = LEVEL / sum(map(len, tests))
    judgements = []
    for (claim, values), found, of_claim in zip(family, estimates, tests, strict=True):
        judgements.append(_judgement(claim, values, found, [next(adjusted) for _ in of_claim], level))
    return judgements


def p_values(claim: Claim, found: Estimate) -> list[float]:
    """The p-values of the claim's tests: of its kind first; then of equivalence if a superiority claim has a margin."""
    margin = on_scale(claim, claim.margin)
    nearer = math.copysign(margin, found.effect)
    match claim.kind:
        case "non_inferiority":
            return [found.p(-margin)]
        case "equivalence":
            return [found.p(nearer)]
        case "superiority" if math.isnan(margin):
            return [found.p()]
        case "superiority":
            return [found.p(), found.p(nearer) if abs(found.effect) < margin else 1.0]


def on_scale(claim: Claim, value: float) -> float:
    """A difference as it is, a quotient as its logarithm."""
    return math.log(value) if claim.ratio else value


def _judgement(claim: Claim, values: Values, found: Estimate, p: Sequence[float], level: float) -> Judgement:
    verdict = _verdict(claim, found, p)
    visible, in_family = (_visible(claim, values, found, each) for each in (LEVEL, level))
    effect, low, high, visible, in_family = (
        math.exp(value) if claim.ratio else value for value in (found.effect, *found.interval(), visible, in_family)
    )
    times = "x " if claim.ratio else ""
    words: str = verdict
    if verdict == "equivalent":
        words = f"equivalent within {'x ' if claim.ratio else '±'}{claim.margin:.3g}"
    elif verdict == "underpowered":
        words = f"underpowered (could have seen {times}{in_family:.2g})"
    return Judgement(effect, low, high, p[-1] if verdict == "equivalent" else p[0], visible, in_family, verdict, words)


def _verdict(claim: Claim, found: Estimate, p: Sequence[float]) -> Verdict:
    margin = on_scale(claim, claim.margin)
    seen = p[0] <= LEVEL
    if claim.kind == "equivalence" and seen:
        return "equivalent" if abs(found.effect) < margin else "contradicted"
    if claim.kind == "non_inferiority" and seen:
        return "confirmed" if found.effect > -margin else "contradicted"
    if seen and found.effect < 0:
        return "contradicted"
    if seen:
        return "direction only" if found.interval()[1] < on_scale(claim, claim.paper_effect) else "confirmed"
    return "equivalent" if len(p) > 1 and p[1] <= LEVEL else "underpowered"


def _visible(claim: Claim, values: Values, found: Estimate, level: float) -> float:
    """On the scale of `Estimate`. From the stated standard deviation if there is one, otherwise from that of the runs."""
    error, freedom = found.error, found.freedom
    if not math.isnan(claim.sd):
        runs = [len(arm) for arm in values.values()]
        error, _ = planned_error(claim.sd, len(runs) / sum(1 / n for n in runs), is_paired=claim.is_paired)
        freedom = runs[0] - 1 if claim.is_paired else sum(runs) - 2
    return smallest_visible(error, freedom, level, edges=2 if claim.kind == "equivalence" else 1)


def plan(claims: Sequence[Claim]) -> list[str]:
    """A line for each claim: the runs that it needs, alone and in the family of all `claims`."""
    tests = sum(1 + (claim.kind == "superiority" and not math.isnan(claim.margin)) for claim in claims)
    return [f"{claim.name}: {_plan(claim, tests)}" for claim in claims]


def _plan(claim: Claim, tests: int) -> str:
    wanted = claim.effect if claim.kind == "superiority" else claim.margin
    if math.isnan(claim.sd) or math.isnan(wanted):
        return "no plan; the TOML needs sd" + (" and effect" if claim.kind == "superiority" else "")
    distance, edges = on_scale(claim, wanted), 2 if claim.kind == "equivalence" else 1
    alone, together = (
        planned_runs(claim.sd, distance, level, is_paired=claim.is_paired, edges=edges) for level in (LEVEL, LEVEL / tests)
    )
    what = "an effect" if claim.kind == "superiority" else "a margin"
    runs = "runs, measured both ways," if claim.is_paired else "runs of each arm"
    return f"{alone} {runs} for {what} of {wanted:g} (SD {claim.sd:g}); {together} in the family of {tests} tests"
