"""Reads the text of an optimised HLO module: what runs, how often, from which line of our code, and the bytes it touches.

XLA has no public reader of this text in Python. Only what the estimates need is read.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

PACKAGE, HERE = f"{Path(__file__).parents[1]}/", f"{Path(__file__).parent}/"
COMPILER = "the compiler's own"  # the place of what comes from no line of ours
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all", "ragged-all-to-all")
NOT_RUN = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"}
MOVES = ("copy-start", "slice-start", "dynamic-slice-start")
BITS = {"pred": 8, "bf16": 16, "c64": 64, "c128": 128, "token": 0}  # of the others the name says it: f32, u8, s4, f8e4m3fn

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\](?:\{([^{}]*)\})?")
_OPERAND = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_CONDITION = re.compile(r"\bcondition=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_FRAME = re.compile(r"stack_frame_id=(\d+)")
_NUMBERED = re.compile(r"^(\d+) (.+)$")


@dataclass(frozen=True)
class Instruction:
    """One instruction. `result`: the text of its type. `operands`: what its parentheses hold; `attributes`: what follows."""

    name: str
    opcode: str
    result: str
    operands: str
    attributes: str

    @property
    def cycles(self) -> int | None:
        """The compiler's estimate of one run, without what it calls in a loop. Only the compiler for TPUs gives one."""
        found = _CYCLES.search(self.attributes)
        return int(found[1]) if found else None


class Running(NamedTuple):
    """An instruction that runs, `times` in one call of the program. `loop`: the innermost loop around it, or ''."""

    instruction: Instruction
    times: int
    place: str  # the line of this package that it comes from
    loop: str
    bytes: int  # of its operands and its result in the large memory, in one run


@dataclass(frozen=True)
class Module:
    """A program as its compiler left it. `places`: 'augment.py:36 crops' by the number of a stack frame."""

    computations: Mapping[str, Sequence[Instruction]]
    entry: str
    places: Mapping[int, str]

    def running(self) -> Iterator[Running]:
        """Every instruction that runs by itself, those of loops and branches included; what is fused is one instruction."""
        yield from self._running(self.entry, 1, "", COMPILER)

    def _running(self, name: str, times: int, loop: str, around: str) -> Iterator[Running]:
        known = {one.name: one for one in self.computations[name]}
        for one in self.computations[name]:
            operands = [known[operand] for operand in _OPERAND.findall(one.operands) if operand in known]
            place = self._place(one) or next(filter(None, map(self._place, operands)), around)
            if one.opcode == "while":
                for called in _called(one):
                    yield from self._running(called, times * self.trips(one), one.name, place)
            elif one.opcode in ("call", "conditional"):
                for called in _called(one):
                    yield from self._running(called, times, loop, place)
            elif one.opcode not in NOT_RUN:
                yield Running(one, times, place, loop, _touched(one, operands))

    def _place(self, one: Instruction) -> str | None:
        """Of the instruction, or else of the last one of those that it fuses which has a place."""
        fused = [each for name in _called(one) if one.opcode == "fusion" for each in reversed(self.computations[name])]
        frames = (found for each in (one, *fused) for found in _FRAME.findall(each.attributes))
        return next((self.places[int(frame)] for frame in frames if int(frame) in self.places), None)

    def collectives(self) -> Iterator[tuple[Instruction, int]]:
        """Every exchange between devices with how often it runs, those inside of fusions included."""
        yield from self._collectives(self.entry, 1)

    def _collectives(self, name: str, times: int) -> Iterator[tuple[Instruction, int]]:
        for one in self.computations[name]:
            if one.opcode.removesuffix("-start") in COLLECTIVES:
                yield one, times
                continue
            for called in _called(one):
                yield from self._collectives(called, times * (self.trips(one) if one.opcode == "while" else 1))

    def trips(self, loop: Instruction) -> int:
        """How often a while loop runs its body: the compiler says so, or the loop counts up from 0 to a constant. Else 1."""
        if known := _TRIPS.search(loop.attributes):
            return int(known[1])
        limits = [
            int(one.operands)
            for name in _CONDITION.findall(loop.attributes)
            for one in self.computations[name]
            if one.opcode == "constant" and one.result.startswith("s32[]") and one.operands.isdecimal()
        ]
        return limits[0] if len(limits) == 1 else 1


def _touched(one: Instruction, operands: Sequence[Instruction]) -> int:
    if one.opcode in MOVES:  # what arrives in the fast memory, or leaves it
        return array_bytes(one.result) - array_bytes(one.result, everywhere=False)
    if one.opcode.endswith("-done"):  # its start has been counted
        return 0
    return sum(array_bytes(each.result, everywhere=False) for each in (one, *operands))


def _called(one: Instruction) -> list[str]:
    names = _CALLED.findall(one.attributes)
    for listed in _BRANCHES.findall(one.attributes):
        names += [name.strip().lstrip("%") for name in listed.split(",")]
    return names


def array_bytes(result: str, *, padded: bool = True, everywhere: bool = True) -> int:
    """The bytes of all arrays in the text of a type.

    Args:
        result: the text.
        padded: with the padding of their tiles.
        everywhere: also of those in the small fast memory of a TPU, which its layouts call S(1).
    """
    total = 0
    for kind, sides, layout in _ARRAY.findall(result):
        if not everywhere and "S(1)" in layout:
            continue
        shape = [int(side) for side in sides.split(",") if side]
        bits = BITS.get(kind) or int(next(iter(re.findall(r"\d+", kind)), 0))
        total += math.prod(_tiled(shape, layout) if padded else shape) * bits // 8
    return total


def _tiled(shape: list[int], layout: str) -> list[int]:
    """The sides from the outermost to the innermost, the last ones rounded up to whole tiles: {0,3,2,1:T(8,128)(2,1)}."""
    order, _, rest = layout.partition(":")
    sides = [shape[int(axis)] for axis in reversed(order.split(","))] if order else shape
    tile = re.match(r"T\(([\d,]+)\)", rest)
    for number, side in enumerate(reversed(tile[1].split(",")) if tile else (), 1):
        if number <= len(sides):
            sides[-number] = -(-sides[-number] // int(side)) * int(side)
    return sides


def parse(text: str) -> Module:
    """The module of `compiled.as_text()`. Raises ValueError if it is not such a text."""
    computations: dict[str, list[Instruction]] = {}
    tables: dict[str, dict[int, str]] = {}
    entry, current, table = "", None, None
    for line in text.splitlines():
        if found := _COMPUTATION.match(line):
            current, table = computations.setdefault(found[2], []), None
            entry = found[2] if found[1] else entry
        elif current is not None and (found := _INSTRUCTION.match(line)):
            operands, attributes = _split_operands(found[4])
            current.append(Instruction(found[1], found[3], found[2], operands, attributes))
        elif line in ("FileNames", "FunctionNames", "FileLocations", "StackFrames"):
            table = tables.setdefault(line, {})
        elif table is not None and (found := _NUMBERED.match(line)):
            table[int(found[1])] = found[2]
    if not entry:
        raise ValueError("the compiled program has no text that can be read")
    return Module(computations, entry, _places(tables))


def _split_operands(rest: str) -> tuple[str, str]:
    """'%a, %b), kind=kLoop' at the parenthesis that closes the operands."""
    depth = 1
    for place, letter in enumerate(rest):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return rest[:place], rest[place + 1 :]
    return rest, ""


def _places(tables: Mapping[str, Mapping[int, str]]) -> dict[int, str]:
    """For each stack frame the innermost frame of this package."""
    files, functions = (
        {n: name.strip('"') for n, name in tables.get(key, {}).items()} for key in ("FileNames", "FunctionNames")
    )
    locations = {n: _fields(text) for n, text in tables.get("FileLocations", {}).items()}
    frames = {n: _fields(text) for n, text in tables.get("StackFrames", {}).items()}
    # Some versions print a parent's number plus one, and 1 for none: then the first frame would be its own parent.
    shift = frames.get(1, {}).get("parent_frame_id", 0)
    places = {}
    for number in frames:
        frame = number
        while frame in frames:
            location = locations.get(frames[frame].get("file_location_id", 0), {})
            file = files.get(location.get("file_name_id", 0), "")
            if file.startswith(PACKAGE) and not file.startswith(HERE):
                parts = functions.get(location.get("function_name_id", 0), "").split(".")
                named = [part for part in parts if not part.startswith("<")]  # <locals>, <lambda>
                places[number] = f"{file.removeprefix(PACKAGE)}:{location.get('line', 0)} {named[-1] if named else ''}"
                break
            parent = frames[frame].get("parent_frame_id", 0) - shift
            frame = parent if parent != frame else 0
    return places


def _fields(text: str) -> dict[str, int]:
    return {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)", text)}
