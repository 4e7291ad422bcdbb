"""The names of classes, as folders, labels or a list give them."""

import unicodedata
from collections.abc import Iterable, Mapping

from alexnet_jax.system.errors import UserError


def common_classes(names: Mapping[str, Iterable[str]], where: str) -> tuple[str, ...]:
    """The classes of the train split.

    Args:
        names: the classes of each split, in order.
        where: what names the set, as it was typed.

    Raises:
        UserError: another split has more classes, a name is not UTF-8, or two differ only in case or encoding.
    """
    classes = tuple(names["train"])
    for split, found in names.items():
        found = tuple(found)
        _check_names((*classes, *found), where)
        if unknown := [name for name in found if name not in classes]:
            raise UserError(f"{where}: class {unknown[0]!r} of split {split} has no training images")
    return classes


def _check_names(names: Iterable[str], where: str) -> None:
    folded: dict[str, str] = {}
    for name in names:
        if any("\ud800" <= character <= "\udfff" for character in name):
            raise UserError(f"{where}: the name of class {name!r} is not in UTF-8: rename it")
        other = folded.setdefault(unicodedata.normalize("NFKC", name).casefold(), name)
        if other != name:
            raise UserError(f"{where}: classes {other!r} and {name!r} differ only in case or encoding: rename or merge them")
