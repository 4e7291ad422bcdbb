"""What `--help` prints: what a command does, an example, and its flags by subject."""

import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

from absl import flags
from rich.console import Console
from rich.text import Text

Group = Literal["run", "network", "data", "optimiser", "schedule", "devices", "records"]
GROUPS: tuple[Group, ...] = get_args(Group)
OWN = "flags of this command"  # every flag that no group claims
INDENT = 28  # the column that texts begin in
WIDEST = 110  # longer lines are hard to read
SHORT_CHOICES = 4
ALIAS = "Alias for "  # absl's help of a second name for a flag

EVERYWHERE = {
    "--flagfile=FILE": "read flags from this file, one a line; later flags win. A name that is not on disk is looked for "
    "among the package's examples: quickstart.cfg, imagenet2012.cfg, sweeps/quickstart.cfg and others",
    "--help, -h": "print this",
}
OF_ABSL = {"--helpfull": "print this", "--undefok=NAMES": "flags that may be unknown, comma-separated"}
ENVIRONMENT = (
    "The environment variable ALEXNET_FLAGS holds flags, such as ALEXNET_FLAGS='--architecture=paper_eighth --epochs=1'. "
    "Every command adds those that it has to the end of its command line, and says so on stderr."
)


def help_text(about: str, options: flags.FlagValues, *, full: bool = False) -> str:
    """The help of a command, coloured if stdout is a terminal, as wide as that; 80 columns elsewhere.

    Args:
        about: the docstring of the command. A paragraph that begins with `python` has commands, which are never wrapped.
        options: its flags. Their group is absl's "module". `A word` in backquotes in a flag's text stands for its value, as
            in Go's flag package: "side in `pixels` of the crops" makes --crop_size=PIXELS.
        full: with what absl adds to every command.
    """
    lines = list(_about(about))
    for title, group in by_group(options).items():
        lines += _titled(title, {left_of(flag): _right(flag) for flag in group})
    lines += _titled("everywhere", {left: [Text(right)] for left, right in EVERYWHERE.items()})
    if full:
        lines += _titled("of absl", {left: [Text(right)] for left, right in OF_ABSL.items()})
    return printed([*lines, Text(), *wrapped(Text(ENVIRONMENT))])


def width() -> int:
    """Columns to fill: those of the terminal if stdout is one, but no more than can be read; 80 elsewhere."""
    return min(Console().width, WIDEST)


def printed(lines: Iterable[Text]) -> str:
    """Lines as they are printed: coloured if stdout is a terminal."""
    console = Console(highlight=False, soft_wrap=True)
    with console.capture() as captured:
        for line in lines:
            console.print(line)
    return captured.get()


def wrapped(text: Text, columns: int = 0) -> list[Text]:
    """The lines of a text, without spaces at their ends; `columns`: how long they may be, by default `width()`."""
    lines = list(text.wrap(Console(), columns or width()))
    for line in lines:
        line.rstrip()
    return lines


def table(rows: Mapping[str, Sequence[Text]], indent: int) -> Iterator[Text]:
    """Rows with texts on the right, which begin in column `indent`; below the left side if that is long.

    A text stands behind the one before it if it fits there.
    """
    for left, right in rows.items():
        line = Text().append(f"  {left}", "cyan")
        if len(line) + 2 > indent:
            yield line
            line = Text()
        line.append(" " * (indent - len(line)))
        for part in _together(right, width() - indent):
            yield line.append_text(part)
            line = Text(" " * indent)


def _together(texts: Sequence[Text], columns: int) -> list[Text]:
    lines: list[Text] = []
    for text in texts:
        if lines and len(lines[-1]) + 1 + len(text) <= columns:
            lines[-1].append(" ").append_text(text)
        else:
            lines += wrapped(text, columns)
    return lines


def by_group(options: flags.FlagValues) -> dict[str, list[flags.Flag]]:
    """The flags of a command by their group, its own first; each once, without other names of the same flag."""
    groups: dict[str, list[flags.Flag]] = {title: [] for title in (OWN, *GROUPS)}
    for module, mine in options.flags_by_module_dict().items():
        group = groups[module if module in GROUPS else OWN]
        group += [flag for flag in mine if not (flag.help or "").startswith(ALIAS)]
    return {title: group for title, group in groups.items() if group}


def left_of(flag: flags.Flag) -> str:
    """The flag as it is typed, with a name for its value: --[no]flip, --crop_size=PIXELS, --resize=centre|warp."""
    if flag.boolean:
        return f"--[no]{flag.name}"
    choices = _choices(flag)
    if named := re.search("`(.+?)`", _own_help(flag)):
        value = named[1].upper() if named[1].islower() else named[1]
    elif choices:
        value = "|".join(choices) if len(choices) <= SHORT_CHOICES else "NAME"
    else:
        value = {"int": "N", "float": "X"}.get(flag.flag_type(), "TEXT")
    return f"--{flag.name}={value}"


def _right(flag: flags.Flag) -> list[Text]:
    """What the flag does, with its choices if there are many; and its default."""
    choices = _choices(flag)
    text = Text(_own_help(flag).replace("`", ""))
    if len(choices) > SHORT_CHOICES:
        text.append(f"; one of {', '.join(choices)}")
    default = _default(flag)
    return [text, Text(f"[default: {default}]", "dim")] if default else [text]


def _own_help(flag: flags.Flag) -> str:
    """The text that the flag was defined with; absl adds choices before it, and advice behind it."""
    before, after = f"<{'|'.join(_choices(flag))}>: ", ";\n    repeat this option to specify a list of values"
    return (flag.help or "").removeprefix(before).removesuffix(after)


def _choices(flag: flags.Flag) -> list[str]:
    return [str(choice) for choice in getattr(flag.parser, "enum_values", ())]


def _default(flag: flags.Flag) -> str:
    default = flag.default
    if isinstance(default, bool):
        return "yes" if default else "no"
    if isinstance(default, list | tuple):
        text = ",".join(map(str, default))
        return text if len(text) < INDENT else text.replace(",", ", ")
    return f"{default:g}" if isinstance(default, float) else str(default or ("" if default is None else default))


def _about(about: str) -> Iterator[Text]:
    """The paragraphs of a docstring: prose to wrap, and commands in the form in which this one was started.

    Python 3.13 removes the indentation that all lines but the first share, so that commands are known by their first word.
    """
    for number, paragraph in enumerate(about.strip().split("\n\n")):
        if number:
            yield Text()
        lines = [line.strip() for line in paragraph.splitlines()]
        if lines[0].startswith("python "):
            yield from (Text(f"    {as_started(line)}", "cyan") for line in lines)
        else:
            yield from wrapped(Text(as_started(" ".join(lines)), "" if number else "bold"))


def as_started(text: str) -> str:
    """`python -m alexnet_jax.train` as `alexnet train`, if this process was started so."""
    return re.sub(r"python -m alexnet_jax[. ](\w+)", r"alexnet \1", text) if Path(sys.argv[0]).name == "alexnet" else text


def _titled(title: str, rows: Mapping[str, Sequence[Text]]) -> Iterator[Text]:
    yield Text()
    yield Text(title.capitalize(), "bold")
    yield from table(rows, INDENT)
