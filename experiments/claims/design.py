"""A design: several claims from the same runs. Each run has every idea of the paper, or lacks it, and counts for all."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alexnet_jax.system.errors import UserError
from experiments.claims.claim import FOLDER, Arm, Claim, checked
from experiments.claims.estimate import Estimate
from experiments.claims.factorial import cells, main_effects

DESIGNS = FOLDER / "designs"
SHARED = ("measure", "unit", "scale", "cost", "stuck", "sd")  # entries that all claims of a design have in common
WITH, WITHOUT = -1, 1  # levels of a factor: an error is higher at 1 if the idea helps


@dataclass(frozen=True)
class Factor:
    """An idea that a run has or lacks."""

    claim: Claim  # its arms are the runs with the idea and those without
    flags: tuple[Mapping[str, str], Mapping[str, str]]  # with the idea, and without it


@dataclass(frozen=True)
class Design:
    """A TOML file of `DESIGNS`. It is fixed before its runs."""

    name: str
    flagfile: str  # of this folder, with what all runs share
    factors: dict[str, Factor]
    levels: dict[str, list[int]]  # of every factor in each cell, WITH or WITHOUT

    @property
    def cells(self) -> int:
        """How many different runs there are."""
        return len(next(iter(self.levels.values())))

    def words(self, cell: int) -> list[str]:
        """The flags of a cell. Where two factors set the same flag, it gets both values as a list."""
        together: dict[str, list[str]] = {}
        for name, factor in self.factors.items():
            for flag, value in factor.flags[self.levels[name][cell] == WITHOUT].items():
                together.setdefault(flag, []).append(value)
        return [f"--{flag}={','.join(values)}" for flag, values in together.items()]


def read_design(name: str) -> Design:
    """The design in DESIGNS/name.toml. Raises UserError if it is missing or has wrong entries."""
    path = DESIGNS / f"{name}.toml"
    if not path.exists():
        known = ", ".join(sorted(other.stem for other in DESIGNS.glob("*.toml")))
        raise UserError(f"--design={name} is not known; there are {known}")
    content: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    wanted = {"flagfile", "base", "generators", "factors", *SHARED}
    if wrong := sorted(wanted ^ set(content)):
        raise UserError(f"{path}: {wrong[0]} is missing or unknown; a design has {', '.join(sorted(wanted))}")
    levels = cells(content["base"], content["generators"])
    if set(levels) != set(content["factors"]):
        raise UserError(f"{path}: base and generators name {', '.join(levels)}; factors has {', '.join(content['factors'])}")
    shared = {entry: content[entry] for entry in SHARED}
    factors = {factor: _factor(factor, content["factors"][factor], shared, path) for factor in levels}
    return Design(name, content["flagfile"], factors, levels)


def _factor(name: str, entries: Mapping[str, Any], shared: Mapping[str, Any], path: Path) -> Factor:
    own = {entry: value for entry, value in entries.items() if entry not in ("with", "without")}
    arms = {arm: Arm(arm) for arm in (name, f"no {name}")}
    flags = dict(entries.get("with", {})), dict(entries.get("without", {}))
    if flags[0] == flags[1]:
        raise UserError(f"{path}: the runs with and without {name} have the same flags")
    return Factor(checked(name, arms, {**shared, **own}, path), flags)


def effects(design: Design, record: Mapping[str, Any]) -> dict[str, Estimate]:
    """The effect of every factor on the runs of a record."""
    levels = {name: [levels[cell] for cell in record["cells"]] for name, levels in design.levels.items()}
    return main_effects(levels, record["values"])


def arms(design: Design, record: Mapping[str, Any], factor: str) -> dict[str, list[float]]:
    """The values of the runs with an idea, and of those without it."""
    levels, runs = design.levels[factor], list(zip(record["cells"], record["values"], strict=True))
    favoured, other = design.factors[factor].claim.arms
    return {
        arm: [value for cell, value in runs if levels[cell] == level] for arm, level in ((favoured, WITH), (other, WITHOUT))
    }
