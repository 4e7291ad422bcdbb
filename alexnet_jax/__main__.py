"""AlexNet of 2012 in JAX: two towers, trained from flags, restored anywhere."""

import importlib
import sys
from typing import NoReturn

from rich.text import Text

from alexnet_jax import __version__
from alexnet_jax.system.help import as_started, printed, table
from alexnet_jax.system.suggest import question, similar

# In the order in which a run needs them. Each module has a `COMMAND`.
COMMANDS = {
    "prepare": "alexnet_jax.prepare",
    "train": "alexnet_jax.train",
    "evaluate": "alexnet_jax.evaluate",
    "predict": "alexnet_jax.predict",
    "figures": "alexnet_jax.figures.__main__",
    "report": "alexnet_jax.report.__main__",
    "sweep": "alexnet_jax.sweep.__main__",
    "convert": "alexnet_jax.convert.__main__",
    "benchmark": "alexnet_jax.benchmark.__main__",
}
EXAMPLE = "train --flagfile=quickstart.cfg --workdir=runs/first"


def main() -> NoReturn:
    """The console script `alexnet`, and `python -m alexnet_jax`."""
    name, words = sys.argv[1] if sys.argv[1:] else "--help", sys.argv[2:]
    if name == "help" and words:
        name, words = words[0], ["--help"]
    if name in COMMANDS:
        importlib.import_module(COMMANDS[name]).COMMAND.run(words)
    sys.exit(answer(name))


def answer(word: str) -> int:
    """Prints what a word that is no command asks for. Returns the exit status."""
    if word == "--version":
        print(f"alexnet_jax {__version__}")
    elif word in ("--help", "-h", "-help", "--helpfull", "help"):
        print(overview(), end="", flush=True)
    else:
        meant = question(similar(word, COMMANDS))
        sys.stderr.write(f"error: {word} is not a command{meant} the commands are {', '.join(COMMANDS)}\n")
        return 1
    return 0


def overview() -> str:
    """What `alexnet` alone prints: every command with its first sentence."""
    abouts = {name: importlib.import_module(module).COMMAND.about for name, module in COMMANDS.items()}
    sentences = {name: [Text(" ".join(about.split()).partition(". ")[0].rstrip("."))] for name, about in abouts.items()}
    lines = (
        Text(__doc__ or "", "bold"),
        Text(),
        Text(f"{as_started('python -m alexnet_jax COMMAND')} --help has the flags of a command:"),
        Text(),
        *table(sentences, 13),
        Text(),
        Text("To start, in any folder:"),
        Text(),
        Text(as_started(f"    python -m alexnet_jax {EXAMPLE}"), "cyan"),
    )
    return printed(lines)


if __name__ == "__main__":
    main()
