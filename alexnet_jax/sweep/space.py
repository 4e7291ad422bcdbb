"""The space of a sweep: the flags of the trainer to try, and their values.

A TOML file with a table for each flag:

    [learning_rate]
    log = [0.001, 0.03]        # log-uniform; `uniform` is linear
    [patience]
    int = [2, 6]               # both ends included
    when = {schedule = "plateau"}   # only if `schedule`, a flag of this space, has this value
    [schedule]
    choice = ["plateau", "steps"]
"""

import json
import math
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import optuna

from alexnet_jax.config import Config, as_dict, from_words
from alexnet_jax.sweep import MOST_TRIALS
from alexnet_jax.system.errors import UserError

KINDS = ("log", "uniform", "int", "choice")
# The sweep sets these, or they must be the same for all trials.
RESERVED = ("workdir", "seed", "distributed", "host_devices", "dataset", "data_dir", "fold")
LARGEST_INTEGER = 2**53  # Optuna's samplers compute with floats


@dataclass(frozen=True)
class Parameter:
    """One flag and its values. It is tried only where other flags have the values of `when`."""

    name: str
    kind: str  # one of KINDS
    ends: Sequence[Any]  # both ends of the range, or the choices
    when: dict[str, Any]

    def suggest(self, trial: optuna.Trial) -> Any:
        """The sampler's choice. A trial that has a value keeps it."""
        if self.kind == "choice":
            return trial.suggest_categorical(self.name, self.ends)
        low, high = self.ends
        if self.kind == "int":
            return trial.suggest_int(self.name, low, high)
        return trial.suggest_float(self.name, low, high, log=self.kind == "log")

    def values(self) -> Sequence[Any]:
        """Every value once, for a grid. Raises UserError on a continuous range."""
        if self.kind == "choice":
            return self.ends
        if self.kind == "int":
            return range(self.ends[0], self.ends[1] + 1)
        raise UserError(f"--sampler=grid: {self.name} is a range; list its values under 'choice'")

    def has(self, value: Any) -> bool:
        """Whether a trial can have this very value. It cannot hit a point of a continuous range."""
        return self.kind in ("choice", "int") and value in self.values()

    def active(self, chosen: dict[str, Any]) -> bool:
        """Whether the flag is tried where others have these values."""
        return all(chosen.get(name) == value for name, value in self.when.items())


@dataclass(frozen=True)
class Space:
    """The parameters, conditions before their dependents."""

    parameters: tuple[Parameter, ...]
    text: str  # canonical: equal spaces have equal texts

    def suggest(self, trial: optuna.Trial) -> dict[str, Any]:
        """Flags for a trial; its sampler chooses them."""
        chosen: dict[str, Any] = {}
        for parameter in self.parameters:
            if parameter.active(chosen):
                chosen[parameter.name] = parameter.suggest(trial)
        return chosen

    def grid(self) -> list[dict[str, Any]]:
        """Every combination once. Raises UserError on a continuous range, or on more combinations than a sweep can have."""
        combinations: list[dict[str, Any]] = [{}]
        for parameter in self.parameters:
            values, active = parameter.values(), sum(map(parameter.active, combinations))
            if len(combinations) + active * (len(values) - 1) > MOST_TRIALS:
                raise UserError(f"--sampler=grid: with {parameter.name} it has more than {MOST_TRIALS:,} combinations")
            tried = [{parameter.name: value} for value in values]
            combinations = [old | new for old in combinations for new in (tried if parameter.active(old) else [{}])]
        return combinations


def as_flags(values: dict[str, Any]) -> list[str]:
    """Values of Config's fields as words of a command line, or as lines of a flag file.

    None has no word. It is always the default of its flag.

    Raises:
        UserError: a flag file would not give the value back.
    """
    given = {name: value for name, value in values.items() if value is not None}
    texts = {name: ",".join(value) if isinstance(value, tuple | list) else str(value) for name, value in given.items()}
    for name, text in texts.items():
        if not text.isprintable() or text != text.strip():
            raise UserError(
                f"--{name}={text!r} cannot stand in a flag file: it has a space at an end or an unprintable character"
            )
    return [f"--{name}={text}" for name, text in texts.items()]


def short(value: Any, digits: int = 3) -> str:
    """A value of a flag, a float with few digits."""
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)


def with_values(config: Config, values: dict[str, Any]) -> Config:
    """A config with some flags changed. Raises UserError on an invalid value."""
    return from_words(as_flags(as_dict(config) | values))


def read_space(path: Path, config: Config) -> Space:
    """Reads a space. Checks its values together with `config`, the flags that all trials share.

    Raises:
        UserError: an unknown flag, an empty range, a log range through zero, or an invalid value. The message names the
            file and the entry.
    """
    content = _read_toml(path)
    if not content:
        raise UserError(f"--space={path} is empty: it needs a table for each flag, such as [learning_rate]")
    try:
        parameters = {name: _parameter(name, entry) for name, entry in content.items()}
        ordered = _ordered(parameters)
        for parameter in ordered:
            conditions = _conditions(parameter, parameters)
            for value in parameter.ends:
                with_values(config, conditions | {parameter.name: value})
    except UserError as error:
        raise UserError(f"--space={path}: {error}") from error
    return Space(tuple(ordered), json.dumps(content, sort_keys=True))


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        if path.exists() and not path.is_file():
            raise OSError("it is not a file")  # opening a FIFO would wait for a writer
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"--space={path} cannot be read: {error}") from error


def _parameter(name: str, entry: Any) -> Parameter:
    if name not in {field.name for field in fields(Config)}:
        raise UserError(f"[{name}] is not a flag of the trainer")
    if name in RESERVED:
        raise UserError(f"[{name}] is given by the sweep, or is the same for all trials")
    kinds = [kind for kind in KINDS if isinstance(entry, dict) and kind in entry]
    if len(kinds) != 1 or set(entry) - {*KINDS, "when"}:
        raise UserError(f"[{name}] needs exactly one of {', '.join(KINDS)}, and may have 'when'")
    kind, values = kinds[0], entry[kinds[0]]
    if not isinstance(values, list) or not values:
        raise UserError(f"[{name}] {kind} = {values} is empty or not a list")
    when = entry.get("when", {})
    if not isinstance(when, dict):
        raise UserError(f"[{name}] when = {when!r} is not a table such as {{schedule = 'plateau'}}")
    return Parameter(name, kind, _ends(name, kind, values), when)


def _ends(name: str, kind: str, values: list[Any]) -> Sequence[Any]:
    if any(type(value) not in (bool, int, float, str) for value in values):
        raise UserError(f"[{name}] {kind} = {values} may have texts, numbers and booleans; a list is a text such as '17,21'")
    if not all(_representable(value) for value in values):
        raise UserError(f"[{name}] {kind} = {values} has a number that is not finite or too large")
    if kind == "choice":
        if len(set(values)) < len(values):
            raise UserError(f"[{name}] choice = {values} has a value twice")
        return values
    if len(values) != 2 or not all(type(value) in (int, float) for value in values):
        raise UserError(f"[{name}] {kind} = {values} is not a range [low, high]")
    low, high = values
    if not low < high:
        raise UserError(f"[{name}] {kind} = {values} is an empty range")
    if kind == "log" and low <= 0:
        raise UserError(f"[{name}] log = {values} goes through zero, where there is no logarithm")
    if kind != "int":
        return float(low), float(high)
    if type(low) is not int or type(high) is not int:
        raise UserError(f"[{name}] int = {values} has ends that are not integers")
    return values


def _representable(value: Any) -> bool:
    """Whether a sampler can work with a value."""
    if isinstance(value, int):
        return abs(value) <= LARGEST_INTEGER
    return not isinstance(value, float) or math.isfinite(value)


def _ordered(parameters: dict[str, Parameter]) -> list[Parameter]:
    """Conditions before their dependents. Raises UserError on a condition outside the space, or on a circle."""
    ordered: dict[str, Parameter] = {}
    while waiting := {name: parameter for name, parameter in parameters.items() if name not in ordered}:
        ready = {name: parameter for name, parameter in waiting.items() if parameter.when.keys() <= ordered.keys()}
        if not ready:
            name, first = next(iter(waiting.items()))
            raise UserError(f"[{name}] when = {first.when}: its conditions are not in the space, or depend on each other")
        ordered |= ready
    return list(ordered.values())


def _conditions(parameter: Parameter, parameters: dict[str, Parameter]) -> dict[str, Any]:
    """The values that a parameter needs, those of indirect conditions included. Raises UserError if no trial has them."""
    found: dict[str, Any] = {}
    for name, value in parameter.when.items():
        needed = _conditions(parameters[name], parameters) | {name: value}
        if not parameters[name].has(value) or any(found.get(key, text) != text for key, text in needed.items()):
            raise UserError(f"[{parameter.name}] when = {parameter.when}: no trial has these values")
        found |= needed
    return found
