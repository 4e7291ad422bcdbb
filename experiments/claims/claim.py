"""A claim of the paper: the runs for and against it, and how a verdict is reached. All of it is fixed before they run."""

import math
import tomllib
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from alexnet_jax.system.errors import UserError

FOLDER = Path(__file__).parent
Kind = Literal["superiority", "non_inferiority", "equivalence"]
Stuck = Literal["kept", "left_out"]


@dataclass(frozen=True)
class Arm:
    """One side of a claim."""

    flagfile: str  # of this folder, or a path from it
    first: str = ""  # likewise, of a run that this one goes on from
    views: int = 1  # to evaluate with
    rates: Sequence[float] = ()  # the learning rates that its own was chosen from, see `experiments.claims.rates`


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
    kind: Kind  # the first arm is better; not worse by `margin` or more; as good within `margin`
    stuck: Stuck  # a run that never left the plateau of a guess counts as it was measured, or not at all
    arms: dict[str, Arm]
    threshold: float = math.nan  # of measures that use one
    ratio: bool = False  # compare the arms by quotient instead of difference
    margin: float = math.nan  # a difference too small to matter; of a quotient above 1
    paper_effect: float = math.nan  # the paper's number as difference or quotient of the arms
    sd: float = math.nan  # stated standard deviation over runs; if the arms share runs, of their differences
    effect: float = math.nan  # runs are planned to see it

    @property
    def is_paired(self) -> bool:
        """Both arms are measured on the same runs."""
        favoured, other = self.arms.values()
        return favoured.flagfile == other.flagfile


def read_claim(name: str) -> Claim:
    """The claim in FOLDER/name.toml. Raises UserError if it is missing or has wrong entries."""
    path = FOLDER / f"{name}.toml"
    known = sorted(other.stem for other in FOLDER.glob("*.toml"))
    if name not in known:
        raise UserError(f"--claim={name} is not known; there are {', '.join(known)}")
    content: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    arms = {arm: Arm(**entry) for arm, entry in content.pop("arms", {}).items()}
    return checked(name, arms, content, path)


def checked(name: str, arms: dict[str, Arm], content: dict[str, Any], path: Path) -> Claim:
    """The claim with these entries of a TOML file. Raises UserError, naming the file, if they are wrong."""
    unknown = set(content) - {field.name for field in fields(Claim)}
    if unknown or len(arms) != 2:
        raise UserError(f"{path}: {', '.join(sorted(unknown)) or 'it needs two arms'}")
    missing = {field.name for field in fields(Claim) if field.default is MISSING} - {*content, "name", "arms"}
    if missing:
        raise UserError(f"{path}: it needs {', '.join(sorted(missing))}")
    claim = Claim(name=name, arms=arms, **content)
    _check(claim, path)
    return claim


def _check(claim: Claim, path: Path) -> None:
    for entry, words in (("kind", get_args(Kind)), ("stuck", get_args(Stuck))):
        if getattr(claim, entry) not in words:
            raise UserError(f"{path}: {entry} is one of {', '.join(words)}, not {getattr(claim, entry)!r}")
    nil = 1 if claim.ratio else 0
    if claim.kind != "superiority" and not claim.margin > nil:
        raise UserError(f"{path}: {claim.kind} needs a margin above {nil}")
    for entry, least in (("margin", nil), ("effect", nil), ("sd", 0)):
        if getattr(claim, entry) <= least:
            raise UserError(f"{path}: {entry} must be above {least}")
