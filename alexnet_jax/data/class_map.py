"""Which classes of a network are right answers to the images of another set: found by name, or listed in a file."""

import difflib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32

from alexnet_jax.data.splits import Subset
from alexnet_jax.data.store import Split
from alexnet_jax.system.errors import UserError
from alexnet_jax.system.files import check_input

Answers = tuple[tuple[int, ...], ...]  # for each class of a set the classes of the network that are right, rising


@dataclass(frozen=True)
class Questions:
    """Images that a network can have right.

    Attributes:
        split: the images; a label is the first right class of the network.
        labels: their classes in their own set.
        classes: names of the set's classes.
        answers: of each of these classes; none where the network does not know it.
        left_out: images of the split that are not asked, because the network does not know their class.
    """

    split: Subset
    labels: Int32[np.ndarray, "examples"]
    classes: tuple[str, ...]
    answers: Answers
    left_out: int

    @property
    def has_several(self) -> bool:
        """Whether a question has more than one right answer."""
        return any(len(right) > 1 for right in self.answers)

    @property
    def unmatched(self) -> list[str]:
        """The classes of the set that the network does not know."""
        return [name for name, right in zip(self.classes, self.answers, strict=True) if not right]


def questions(split: Subset, classes: tuple[str, ...], answers: Answers) -> Questions:
    """The images of a split that have an answer. `classes` and `answers` are those of its labels."""
    known = np.array([len(right) > 0 for right in answers])[split.labels]
    first = np.array([right[0] if right else 0 for right in answers], np.int32)
    asked = Subset(tuple(Split(part.images, first[part.labels]) for part in split.parts), split.rows[known])
    return Questions(asked, split.labels[known], classes, answers, int((~known).sum()))


def own_questions(split: Subset, classes: tuple[str, ...]) -> Questions:
    """Every image of a split whose classes are the network's own."""
    return Questions(split, split.labels, classes, tuple((number,) for number in range(len(classes))), 0)


def _loosely(name: str) -> str:
    return re.sub(r"[\s_-]+", "", unicodedata.normalize("NFKC", name).casefold())


class _Names:
    """Finds the numbers of classes by their names: exactly, or else regardless of case, spaces, underscores and hyphens."""

    def __init__(self, classes: Sequence[str]):
        self.classes = classes
        self._exact, self._loose = dict[str, list[int]](), dict[str, list[int]]()
        for number, name in enumerate(classes):
            self._exact.setdefault(name, []).append(number)
            self._loose.setdefault(_loosely(name), []).append(number)

    def find(self, name: str) -> list[int]:
        return self._exact.get(name) or self._loose.get(_loosely(name)) or []

    def number(self, name: str, whose: str, at: str) -> int:
        """Raises UserError if not exactly one class is found: it is `whose`, and `at` names the place in a file."""
        if len(found := self.find(name)) == 1:
            return found[0]
        if found:
            raise UserError(f"{at}: {len(found)} classes of {whose} are called {name!r}: write a number in a .json file")
        close = difflib.get_close_matches(name, self.classes, 3)
        hint = f"did you mean {' or '.join(map(repr, close))}?" if close else f"it has {some(self.classes)}"
        raise UserError(f"{at}: {whose} has no class {name!r}: {hint}")


def some(names: Collection[str], most: int = 5) -> str:
    """The first names, and how many others there are."""
    others = f" and {len(names) - most:,} others" if len(names) > most else ""
    return ", ".join(list(names)[:most]) + others


def match_by_name(classes: Sequence[str], known: Sequence[str]) -> Answers:
    """The class of the same name: exactly, or else regardless of case, spaces, underscores and hyphens.

    Args:
        classes: names of the set's classes.
        known: names of the network's classes.

    Returns:
        For each class of the set the number of the network's class; nothing if there is none, or more than one.
    """
    names = _Names(known)
    found = [names.find(name) for name in classes]
    return tuple(tuple(numbers) if len(numbers) == 1 else () for numbers in found)


def read_class_map(path: Path, classes: Sequence[str], known: Sequence[str]) -> Answers:
    """The answers that a file lists. A class of the set that is not in the file has none.

    A `.json` file holds an object: `{"CLASS OF THE SET": "CLASS OF THE NETWORK"}`, or a list of several, as names or as
    numbers from 0. Any other file has a line for each class, with tabs between the class of the set and those of the
    network. A class alone is called the same by both. Empty lines and lines that begin with `#` are skipped.

    Args:
        path: the file, UTF-8.
        classes: names of the set's classes.
        known: names of the network's classes.

    Raises:
        UserError: the file cannot be read, names no class, an unknown or ambiguous one, or one of them twice.
    """
    flag = f"--class_map={path}"
    check_input(flag, path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        entries = list(_json_entries(text) if path.suffix == ".json" else _lines(text))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{flag} cannot be read: {' '.join(str(error).split())[:200]}") from error
    if not entries:
        raise UserError(f"{flag} names no class: write one in each line, as SET'S<tab>NETWORK'S")
    own, network = _Names(classes), _Names(known)
    answers: list[tuple[int, ...]] = [()] * len(classes)
    for where, name, right in entries:
        at = f"{flag}, {where}"
        number = own.number(name, "the set", at)
        if answers[number]:
            raise UserError(f"{at}: class {name!r} is named twice: write all its answers at one place")
        answers[number] = _right(right, network, at)
    return tuple(answers)


def _right(right: Sequence[str | int], network: _Names, at: str) -> tuple[int, ...]:
    numbers = [one if isinstance(one, int) else network.number(one, "the network", at) for one in right]
    for number, count in Counter(numbers).items():
        if not 0 <= number < len(network.classes):
            raise UserError(f"{at}: the network has no class {number}: its numbers are 0 to {len(network.classes) - 1}")
        if count > 1:
            raise UserError(f"{at}: answer {network.classes[number]!r} is named twice: write it once")
    return tuple(sorted(numbers))


_Entry = tuple[str, str, Sequence[str | int]]  # where it stands, the class of the set, those of the network


def _lines(text: str) -> Iterable[_Entry]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip() and not line.startswith("#"):
            name, *right = (part.strip() for part in line.rstrip().split("\t"))
            yield f"line {number}", name, right or [name]


def _json_entries(text: str) -> Iterable[_Entry]:
    """Raises ValueError if it is no object of answers. A name that stands twice is given twice."""
    content = json.loads(text, object_pairs_hook=lambda pairs: pairs) if text.strip() else []
    for entry in content if isinstance(content, list) else [content]:
        if not isinstance(entry, tuple):
            raise ValueError('it is no object such as {"class of the set": ["class of the network"]}')
        name, value = entry
        right: list[Any] = value if isinstance(value, list) else [value]
        if not right or any(type(one) not in (str, int) for one in right):
            raise ValueError(f"the answers of {name!r} are no names or numbers of classes")
        yield f"class {name!r}", name, right
