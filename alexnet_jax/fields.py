"""One field of a config: its limits, its absl flag, and its text in flag files and in config.json."""

import dataclasses
import math
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import flags

from alexnet_jax.system.errors import UserError
from alexnet_jax.system.help import Group
from alexnet_jax.values import number_text

INT32_MAX, FLOAT32_MAX = 2**31 - 1, 3.4e38

Field = dataclasses.Field[Any]


def setting(
    default: Any,
    help: str,
    *,
    choices: Sequence[str] = (),
    fixed_on_resume: bool = True,
    minimum: float | None = None,
    maximum: float | None = None,
    parse: Callable[[Any], Any] | None = None,
    absent: str | int | None = None,
    old_name: str = "",
    old_values: Mapping[str, str] | None = None,
) -> Any:
    """One field and its flag.

    Args:
        default: of the field.
        help: of the flag; a word in backquotes stands for its value, as `alexnet_jax.system.help` says.
        choices: all values that the flag may have.
        fixed_on_resume: whether a run that is resumed must keep the value.
        minimum: of a number.
        maximum: of a number; None: what 32 bits hold.
        parse: makes the field's value of the flag's text or texts.
        absent: what the flag says for None.
        old_name: by which flag files and config.json of an earlier version know it.
        old_values: what an earlier version called some of the choices, each with its name of today.
    """
    metadata = {
        "help": help, "choices": tuple(choices), "fixed_on_resume": fixed_on_resume, "minimum": minimum, "maximum": maximum,
        "parse": parse, "absent": absent, "old_name": old_name, "old_values": old_values or {},
    }  # fmt: skip
    return dataclasses.field(default=default, metadata=metadata)


def check_field(field: Field, value: Any) -> None:
    """Raises UserError, naming the flag, on a value that the field cannot have."""
    choices, minimum, maximum = (field.metadata[name] for name in ("choices", "minimum", "maximum"))
    if choices and value not in choices:
        raise UserError(f"--{field.name}={value} is not one of {', '.join(choices)}")
    if isinstance(value, str) and "\0" in value:
        raise UserError(f"--{field.name}={value!r} has a null character")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    if not math.isfinite(value):
        raise UserError(f"--{field.name}={value} is not a finite number")
    if minimum is not None and value < minimum:
        raise UserError(f"--{field.name}={value} is less than {minimum:g}")
    most = (INT32_MAX if isinstance(value, int) else FLOAT32_MAX) if maximum is None else maximum
    if value > most:
        raise UserError(f"--{field.name}={value} is more than {most}")
    if value < -most:
        raise UserError(f"--{field.name}={value} is less than {-most}")


def _kind(field: Field) -> Any:
    """The type of the field's values but for None."""
    kinds = [kind for kind in typing.get_args(field.type) if kind is not type(None)]
    return kinds[0] if kinds and type(None) in typing.get_args(field.type) else field.type


def _is_list(field: Field) -> bool:
    return type(field.default) is tuple


class _Choices(flags.EnumParser):
    """One of several values. A value's name of an earlier version is read as that of today."""

    def __init__(self, choices: Sequence[str], old_values: Mapping[str, str]):
        super().__init__(choices)
        self._old_values = old_values

    def parse(self, argument: str) -> str:
        return super().parse(self._old_values.get(argument, argument))


def define_flag(field: Field, options: flags.FlagValues, group: Group, unset: str = "") -> None:
    """The absl flag of the field, in a group of `--help`, and its alias.

    `unset`: what holds if the flag is not given, where that is not the field's default. The flag is then None.
    """
    default: Any = None if unset else to_text(field, field.default)
    name, help, choices = field.name, field.metadata["help"], field.metadata["choices"]
    help = f"{help}; default: {unset}" if unset else help
    if choices:
        parser, serializer = _Choices(choices, field.metadata["old_values"]), flags.ArgumentSerializer()
        flags.DEFINE(parser, name, default, help, options, serializer, group)
    elif _kind(field) is bool:
        flags.DEFINE_boolean(name, default, help, options, group)
    elif _kind(field) is int:
        flags.DEFINE_integer(name, default, help, flag_values=options, module_name=group)
    elif _kind(field) is float:
        flags.DEFINE_float(name, default, help, flag_values=options, module_name=group)
    elif _is_list(field):
        flags.DEFINE_list(name, default, help, flag_values=options, module_name=group)
    else:
        flags.DEFINE_string(name, default, help, options, module_name=group)
    if field.metadata["old_name"]:
        flags.DEFINE_alias(field.metadata["old_name"], name, flag_values=options, module_name=group)


def to_text(field: Field, value: Any) -> Any:
    """A value as its flag says it: a text, a list of texts, a number, or None where the flag has no word for it."""
    if value is None:
        return field.metadata["absent"]
    if _is_list(field):
        return [number_text(item) if isinstance(item, float) else str(item) for item in value]
    return str(value) if field.metadata["parse"] else value


def from_text(field: Field, text: Any) -> Any:
    """The reverse of `to_text`. Raises UserError, naming the flag, on a text of another type, or one that means nothing."""
    absent, parse, kind = field.metadata["absent"], field.metadata["parse"], _kind(field)
    if text is field.default is None or (text == absent and type(text) is type(absent) and absent is not None):
        return None
    if _is_list(field):
        fits = isinstance(text, list | tuple) and all(isinstance(item, str) for item in text)
    elif kind is float:
        fits = type(text) in (int, float)
    else:
        fits = type(text) is (kind if kind in (bool, int) else str)
    if not fits:
        raise UserError(f"--{field.name}={text!r} is of the wrong type: {type(text).__name__}")
    if parse is not None:
        return parse(text)
    return tuple(text) if _is_list(field) else field.metadata["old_values"].get(text, text)
