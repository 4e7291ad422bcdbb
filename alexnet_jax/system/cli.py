"""How every entry point starts and ends: absl flags in; on bad input one clear line and exit status 1.

An entry point is a `Command`. Each call makes its own `FlagValues`, so a process can call it more than once:

    COMMAND = cli.Command(__doc__, define_flags, main)
    if __name__ == "__main__":
        COMMAND.run()
"""

import errno
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

from absl import flags, logging

from alexnet_jax.system.errors import UserError
from alexnet_jax.system.signals import RESUME_STATUS, Interrupted

EXTRA = "ALEXNET_FLAGS"
ABOUT_EXTRA = (
    f"The environment variable {EXTRA} holds flags, such as {EXTRA}='--architecture=paper_eighth --epochs=1'. Every command "
    "adds those that it has to the end of its command line, and says so on stderr."
)


@dataclass(frozen=True)
class Command:
    """One entry point.

    about: what `--help` says before the flags.
    main: gets the parsed flags, and the words if `takes_words`.
    takes_words: False refuses words besides flags. Such a word is nearly always a flag without its dashes.
    """

    about: str | None
    define: Callable[[flags.FlagValues], None]
    main: Callable[..., None]
    takes_words: bool = False

    def run(self) -> NoReturn:
        """Runs the command line of this process and ends the process."""
        logging.use_absl_handler()
        logging.set_verbosity(logging.WARNING)  # at INFO libraries print too much
        flags.FLAGS.mark_as_parsed()  # the flags of libraries keep their defaults
        sys.exit(self(sys.argv[1:]))

    def __call__(self, argv: Sequence[str]) -> int:
        """Runs one command line.

        Returns:
            The exit status: 0; 1 after a line on stderr about bad input or a full or read-only disk; `IN_USE_STATUS` if
            another process works in the folder; `DIVERGED_STATUS` if the loss is not finite; `RESUME_STATUS` if the run
            was interrupted and saved.
        """
        try:
            options = flags.FlagValues()
            self.define(options)
            if {"--help", "-h", "-help"} & set(argv):
                shown = options.get_help(include_special_flags=False).strip("\n")
                print((self.about or "").strip(), shown, ABOUT_EXTRA, sep="\n\n")
                return 0
            argv = [*argv, *_extra(options)]
            if self.takes_words:
                self.main(options, parse(options, argv))
            else:
                parse_flags(options, argv)
                self.main(options)
        except UserError as error:
            _say("error: " + " ".join(str(error).splitlines()))
            return error.status
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
                raise
            _say(f"error: {error.filename or 'the disk'} cannot be written: {error.strerror}")
            return 1
        except Interrupted as stop:
            _say(str(stop))
            return RESUME_STATUS
        return 0


def parse(options: flags.FlagValues, argv: Sequence[str]) -> list[str]:
    """Parses a command line into `options`. Returns the words that are not flags; they may stand anywhere.

    Raises:
        UserError: an unknown flag, or a value that its flag cannot have.
    """
    options.set_gnu_getopt(True)
    try:
        return options(["command", *argv])[1:]
    except flags.Error as error:
        raise UserError(" ".join(str(error).split())) from error


def parse_flags(options: flags.FlagValues, argv: Sequence[str]) -> None:
    """Like `parse`, for flags alone. Raises UserError on any other word too."""
    if words := parse(options, argv):
        raise UserError(f"{words[0]!r} is not a flag: flags are written --name=value")


def _say(line: str) -> None:
    """Prints to stderr in one write. Unbuffered `print` makes two, and lines of several processes would mix."""
    sys.stderr.write(f"{line}\n")


def _extra(options: flags.FlagValues) -> list[str]:
    """The flags of $ALEXNET_FLAGS that this command has. Raises UserError if quotes in it do not match."""
    try:
        words = shlex.split(os.environ.get(EXTRA, ""))
    except ValueError as error:
        raise UserError(f"{EXTRA}={os.environ[EXTRA]} cannot be read: {error}") from error
    mine = [word for word in words if _has(options, word.lstrip("-").partition("=")[0])]
    if mine:
        _say(f"note: {EXTRA} adds {shlex.join(mine)}")
    return mine


def _has(options: flags.FlagValues, name: str) -> bool:
    switch = name.removeprefix("no")
    return name in options or (switch in options and bool(options[switch].boolean))
