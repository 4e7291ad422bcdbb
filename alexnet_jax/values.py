"""What flags are parsed into: each value knows its text, which stands in flag files and in config.json."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from alexnet_jax.system.errors import UserError

Spmd = Literal["shard_map", "pmap"]
Weights = Literal["last", "ema"]  # of a checkpoint: after its step, or the average that --ema keeps
WEIGHTS: tuple[Weights, ...] = ("last", "ema")
SPLITS = ("train", "validation", "test")
RESIZES = ("centre", "warp")
ON_ERROR = ("fail", "skip")  # at an image that cannot be decoded


class MeshShape(NamedTuple):
    """Devices along the data axis and along the tower axis: '4x2'."""

    data: int
    tower: int

    def __str__(self) -> str:
        return f"{self.data}x{self.tower}"

    @staticmethod
    def parse(text: str) -> "MeshShape | None":
        """'4x2' as (4, 2); None for 'auto'. Raises UserError on anything else."""
        if text == "auto":
            return None
        parts = text.split("x")
        if len(parts) != 2 or not all(_is_count(part) and int(part) > 0 for part in parts):
            raise UserError(f"--mesh={text} is not of the form DATAxTOWER, such as 4x2, nor 'auto'")
        return MeshShape(int(parts[0]), int(parts[1]))


@dataclass(frozen=True)
class Fold:
    """Fold `index` of `count`, held out as the validation split: '0/5'."""

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @staticmethod
    def parse(text: str) -> "Fold":
        """'0/5' as (0, 5). Raises UserError on anything else."""
        index, _, count = text.partition("/")
        if not (_is_count(index) and _is_count(count) and int(index) < int(count) and int(count) >= 2):
            raise UserError(f"--fold={text} is not I/K with 0 <= I < K, such as 0/5")
        return Fold(int(index), int(count))


class StepRange(NamedTuple):
    """The steps after `start` updates, up to `stop` updates: '10:12' are steps 11 and 12."""

    start: int
    stop: int

    def __str__(self) -> str:
        return f"{self.start}:{self.stop}"

    @staticmethod
    def parse(text: str) -> "StepRange":
        """'10:12' as (10, 12). Raises UserError on anything else."""
        start, _, stop = text.partition(":")
        if not (_is_count(start) and _is_count(stop) and int(start) < int(stop)):
            raise UserError(f"--profile={text} is not START:STOP with START < STOP, such as 10:12 for steps 11 and 12")
        return StepRange(int(start), int(stop))


class LayerRate(NamedTuple):
    """A layer's learning rate as a multiple of the others', from an epoch on: 'conv1:0.1@20'."""

    layer: str
    factor: float
    epoch: float = 0.0

    def __str__(self) -> str:
        start = f"@{number_text(self.epoch)}" if self.epoch else ""
        return f"{self.layer}:{number_text(self.factor)}{start}"

    @staticmethod
    def parse(texts: Sequence[str]) -> "tuple[LayerRate, ...]":
        """['conv1:0.1@20'] as (('conv1', 0.1, 20.0),). Raises UserError naming the entry."""
        return tuple(LayerRate._parse_one(text) for text in texts)

    @staticmethod
    def _parse_one(text: str) -> "LayerRate":
        layer, _, rest = text.partition(":")
        factor, _, epoch = rest.partition("@")
        return LayerRate(
            layer, *_numbers(f"--layer_rates={text}", "LAYER:FACTOR or LAYER:FACTOR@EPOCH", factor, epoch or "0")
        )


class LayerDecay(NamedTuple):
    """A layer's own weight decay: 'fc10:0.01'."""

    layer: str
    decay: float

    def __str__(self) -> str:
        return f"{self.layer}:{number_text(self.decay)}"

    @staticmethod
    def parse(texts: Sequence[str]) -> "tuple[LayerDecay, ...]":
        """['fc10:0.01'] as (('fc10', 0.01),). Raises UserError naming the entry."""
        return tuple(LayerDecay._parse_one(text) for text in texts)

    @staticmethod
    def _parse_one(text: str) -> "LayerDecay":
        layer, _, number = text.partition(":")
        return LayerDecay(layer, *_numbers(f"--layer_decays={text}", "LAYER:DECAY, such as fc10:0.01", number))


def parse_epochs(texts: Sequence[str]) -> tuple[float, ...]:
    """Epoch numbers. Raises UserError naming a list of anything else."""
    try:
        epochs = tuple(float(text) for text in texts)
    except ValueError:
        raise UserError(f"--drop_epochs={','.join(texts)} is not a list of numbers") from None
    if not all(0 <= epoch < math.inf for epoch in epochs):
        raise UserError(f"--drop_epochs={','.join(texts)} has an epoch that is negative or not finite")
    return epochs


def _numbers(entry: str, form: str, *texts: str) -> list[float]:
    """The numbers of an entry for a layer. Raises UserError if one is none, negative or not finite."""
    try:
        numbers = [float(text) for text in texts]
    except ValueError:
        raise UserError(f"{entry} is not {form}") from None
    if not all(0 <= number < math.inf for number in numbers):
        raise UserError(f"{entry} has a number that is negative or not finite")
    return numbers


def _is_count(text: str) -> bool:
    return text.isdecimal() and len(text) < 10


def number_text(number: float) -> str:
    """The shortest text that gives the number back: 25 for 25.0."""
    return str(int(number)) if float(number).is_integer() else repr(number)


def three_digits(number: float) -> str:
    """The number as a person reads it: '12.3', '0.0123', '1,234'."""
    return f"{number:,.0f}" if abs(number) >= 999.5 else f"{number:#.3g}".rstrip(".")
