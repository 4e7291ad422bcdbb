"""Reads a trace that `--profile` has written: the operations that ran, each with the part of the step that it belongs to.

At each operation a trace has the name of an instruction. It also has the compiled programs. There an instruction has the
scopes that it was traced in: jit(step)/transpose(jvp(conv1))/MaxPool/slice is of conv1's max-pooling, backward.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

from google.protobuf.message import DecodeError
from jax.profiler import ProfileData

from alexnet_jax import layers
from alexnet_jax.network import CROSS_TALK
from alexnet_jax.step import PARTS
from alexnet_jax.system.errors import UserError
from alexnet_jax.system.protobuf import message_classes

FOLDER = "profile"  # in the folder of a run, with the layout that TensorBoard has
STEP = "train"  # the annotation around a step

# What is needed of XLA's xplane.proto and hlo.proto. A map is a repeated pair.
_SCHEMA = {
    "XSpace": "repeated XPlane planes = 1",
    "XPlane": "string name = 2; repeated Pair event_metadata = 4",
    "Pair": "int64 key = 1; XEventMetadata value = 2",
    "XEventMetadata": "repeated XStat stats = 5",
    "XStat": "bytes bytes_value = 6",
    "HloProto": "HloModuleProto hlo_module = 1",
    "HloModuleProto": "string name = 1; repeated HloComputationProto computations = 3",
    "HloComputationProto": "repeated HloInstructionProto instructions = 2; int64 id = 5",
    "HloInstructionProto": "string name = 1; string opcode = 2; OpMetadata metadata = 7; int64 id = 35; "
    "repeated int64 operand_ids = 36; repeated int64 called_computation_ids = 38",
    "OpMetadata": "string op_name = 2",
}
_MESSAGES = message_classes("alexnet_jax.trace", _SCHEMA)
_PROGRAMS = "/host:metadata"  # the plane with the compiled programs
_KERNEL = "kernel_details"  # of every kernel on a GPU, and of nothing else
_AROUND = ("call", "while", "conditional")  # their time is that of the instructions inside
_INNER = {CROSS_TALK, *(kind.__name__ for kind in get_args(layers.Operation))}
_WRAPPED = re.compile(r"(?:\w+\()*([\w.]*)\)*")  # transpose(jvp(conv1))


class Scope(NamedTuple):
    """Where an operation belongs: 'conv1/MaxPool', forward or backward."""

    part: str  # a layer, or one of `PARTS`
    inner: str  # an operation after the layer, or the cross-talk before it; '' for the layer itself
    backward: bool

    def __str__(self) -> str:
        return "/".join(filter(None, self[:2])) + " backward" * self.backward


class Instruction(NamedTuple):
    """One instruction of a compiled program."""

    opcode: str
    scope: Scope | None  # None: of no part


class Operation(NamedTuple):
    """One run of an instruction on a device."""

    program: str
    instruction: str
    scope: Scope | None  # None: of no part
    start: float  # in milliseconds
    milliseconds: float


Scopes = dict[int, Scope | None]
Instructions = dict[tuple[str, str], Instruction]  # by program and name


def scope_of(name: str, parts: Collection[str]) -> Scope | None:
    """The scope in the name of an instruction; None outside of all `parts`, the outermost scopes."""
    words = name.split("/")
    for place, word in enumerate(words):
        found = _WRAPPED.fullmatch(word)
        if found and found[1] in parts:
            inner = next((each for each in words[place + 1 :] if each in _INNER), "")
            return Scope(found[1], inner, "transpose(" in word)
    return None


class Trace:
    """The newest trace in a folder."""

    def __init__(self, folder: Path, table: layers.Architecture):
        """Raises UserError if there is none, or it cannot be read. `table`: of the network that was traced."""
        self.parts = (PARTS[0], *(layer.name for layer in table.layers), *PARTS[1:])
        files = sorted(folder.glob("plugins/profile/*/*.xplane.pb"), key=lambda path: path.stat().st_mtime)
        if not files:
            raise UserError(f"{folder} has no trace: train with --profile=START:STOP")
        self.path = files[-1]
        try:
            content = self.path.read_bytes()
            self._data = ProfileData.from_serialized_xspace(content)
            ran = {(str(stats["hlo_module"]), str(stats["hlo_op"])) for _, stats in self._events() if "hlo_op" in stats}
            self._instructions = _instructions(content, self.parts, ran)
            self._kernels = {(program, _plain(name)): name for program, name in self._instructions}
        except (OSError, RuntimeError, DecodeError) as error:
            raise UserError(f"{self.path} is truncated or not a trace: train with --profile=START:STOP again") from error

    def instruction(self, program: str, name: str, kernel: str) -> tuple[str, str]:
        """The key of the instruction that an event ran, from the names that it has of its program, instruction and kernel.

        A kernel that was started within a CUDA graph names the graph in place of the instruction. XLA's own kernels are
        called as their instruction, with underscores.
        """
        return (program, name if (program, name) in self._instructions else self._kernels.get((program, kernel), name))

    def scope(self, program: str, instruction: str) -> Scope | None:
        """Of an instruction."""
        found = self._instructions.get((program, instruction))
        return found and found.scope

    def operations(self) -> Iterator[Operation]:
        """Every instruction that ran on a device, but not those that only hold others."""
        for event, stats in self._events():
            program, name = self.instruction(str(stats.get("hlo_module", "")), str(stats.get("hlo_op", "")), event.name)
            found = self._instructions.get((program, name))
            if (found and found.opcode not in _AROUND) or (found is None and _KERNEL in stats):
                yield Operation(program, name, found and found.scope, event.start_ns / 1e6, event.duration_ns / 1e6)

    def steps(self) -> dict[int, float]:
        """The traced steps, and the milliseconds that the host was at each."""
        named = ((event, stats) for event, stats in self._events() if event.name == STEP and "step_num" in stats)
        return {int(stats["step_num"]): event.duration_ns / 1e6 for event, stats in named}

    def _events(self) -> Iterator[tuple[Any, dict[str, Any]]]:
        for plane in self._data.planes:
            for line in plane.lines:
                for event in line.events:
                    yield event, dict(event.stats)


def _plain(name: str) -> str:
    return re.sub(r"[.-]", "_", name)


def _instructions(content: bytes, parts: Collection[str], ran: Collection[tuple[str, str]]) -> Instructions:
    """Every instruction of the compiled programs in an XSpace. Raises DecodeError.

    An XSpace has all programs that the process holds, perhaps several of one name. Their numbers do not say which one ran:
    a program from the cache has two. It is the one with most of the instructions in `ran` and the fewest others, and among
    equals the one with most scopes: in the cache they may be of an earlier version.
    """
    names = {program for program, _ in ran}
    best: dict[str, tuple[int, int, int]] = {}
    found: dict[str, Instructions] = {}
    for plane in _MESSAGES["XSpace"].FromString(content).planes:
        for pair in plane.event_metadata if plane.name == _PROGRAMS else ():
            for stat in pair.value.stats:
                module = _MESSAGES["HloProto"].FromString(stat.bytes_value).hlo_module
                if module.name not in names:
                    continue
                program = _program(module, parts)
                scoped = sum(one.scope is not None for one in program.values())
                match = sum(key in ran for key in program), -len(program), scoped
                if module.name not in best or match > best[module.name]:
                    best[module.name], found[module.name] = match, program
    return {key: one for program in found.values() for key, one in program.items()}


def _program(module: Any, parts: Collection[str]) -> Instructions:
    """Every instruction of one compiled program."""
    computations = {one.id: one.instructions for one in module.computations}
    found: Instructions = {}
    for instructions in computations.values():
        scopes = _scopes(instructions, computations, parts)
        found |= {(module.name, one.name): Instruction(one.opcode, scopes[one.id]) for one in instructions}
    return found


def _scopes(instructions: Sequence[Any], computations: Mapping[int, Sequence[Any]], parts: Collection[str]) -> Scopes:
    """The scope of each instruction of a computation, by its number.

    The compiler gives no name to the transposed convolutions and the copies that it makes. They are of what they read,
    rather of the backward pass, and else of what reads them.
    """
    names = {one.id: _name(one, computations) for one in instructions}
    scopes: Scopes = {number: scope_of(name, parts) for number, name in names.items()}
    nameless = [one for one in instructions if not names[one.id]]
    for one in nameless:  # in the order in which they run
        scopes[one.id] = _outermost(scopes.get(number) for number in one.operand_ids)
    for one in reversed(nameless):
        users = (user for user in instructions if one.id in user.operand_ids)
        scopes[one.id] = scopes[one.id] or _outermost(scopes[user.id] for user in users)
    return scopes


def _outermost(scopes: Iterable[Scope | None]) -> Scope | None:
    """The first scope of the backward pass, or else the first one, without what is inside of the layer."""
    known = sorted((scope for scope in scopes if scope is not None), key=lambda scope: not scope.backward)
    return known[0]._replace(inner="") if known else None


def _name(instruction: Any, computations: Mapping[int, Sequence[Any]]) -> str:
    """The instruction's name with its scopes, or else that of the last instruction that it fuses."""
    fused = [each for number in instruction.called_computation_ids for each in reversed(computations[number])]
    return next((one.metadata.op_name for one in (instruction, *fused) if one.metadata.op_name), "")
