"""A claim of the paper: the runs for and against it, and the verdict from their numbers."""

import math
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.special import stdtrit

from alexnet_jax.system.errors import UserError

FOLDER = Path(__file__).parent
CONFIDENCE = 0.9  # of an interval: 5 % on each side
Verdict = Literal["supported", "contradicted", "not seen at this scale"]


@dataclass(frozen=True)
class Arm:
    """One side of a claim: a flag file of this folder, and the number of views to evaluate with."""

    flagfile: str
    views: int = 1


@dataclass(frozen=True)
class Claim:
    """A TOML file of this folder. It has two arms; the claim favours the first."""

    name: str
    claim: str
    paper: str  # the paper's number
    measure: str  # see experiments.claims.measures.MEASURES; less is better
    unit: str
    scale: str
    cost: str
    arms: dict[str, Arm]
    threshold: float = math.nan  # of measures that use one
    ratio: bool = False  # compare the arms by quotient instead of difference


@dataclass(frozen=True)
class Result:
    """The result over all seeds. `effect` above 0, or above 1 for a ratio, favours the claim."""

    effect: float
    low: float  # ends of the confidence interval of `effect`, at CONFIDENCE
    high: float
    verdict: Verdict


def read_claim(name: str) -> Claim:
    """The claim in FOLDER/name.toml. Raises UserError if it is missing or has wrong entries."""
    path = FOLDER / f"{name}.toml"
    known = sorted(other.stem for other in FOLDER.glob("*.toml"))
    if name not in known:
        raise UserError(f"--claim={name} is not known; there are {', '.join(known)}")
    content: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    arms = {arm: Arm(**entry) for arm, entry in content.pop("arms", {}).items()}
    unknown = set(content) - {field.name for field in fields(Claim)}
    if unknown or len(arms) != 2:
        raise UserError(f"{path}: {', '.join(sorted(unknown)) or 'it needs two arms'}")
    return Claim(name=name, arms=arms, **content)


def judge(favoured: list[float], other: list[float], *, ratio: bool = False) -> Result:
    """Compares the arms seed by seed, by a paired t-test whose interval has CONFIDENCE.

    Args:
        favoured: one value for each seed; lower is better.
        other: the same seeds.
        ratio: compare by quotient instead of difference.

    Raises:
        UserError: fewer than two seeds.
    """
    if len(favoured) != len(other) or len(favoured) < 2:
        raise UserError("--seeds: a verdict needs the same seeds of both arms, at least two")
    pairs = np.array([other, favoured], float)
    if ratio:
        pairs = np.log(pairs)
    gains = pairs[0] - pairs[1]
    mean, error = gains.mean(), gains.std(ddof=1) / math.sqrt(len(gains))
    reach = error * stdtrit(len(gains) - 1, (1 + CONFIDENCE) / 2)
    low, high = mean - reach, mean + reach
    verdict: Verdict = "supported" if low > 0 else "contradicted" if high < 0 else "not seen at this scale"
    effect, low, high = (math.exp(x) if ratio else float(x) for x in (mean, low, high))
    return Result(effect, low, high, verdict)
