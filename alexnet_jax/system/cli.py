"""How every entry point starts and ends: absl flags in; on bad input one clear line and exit status 1.

An entry point is a `Command`. Each call makes its own `Options`, so a process can call it more than once:

    COMMAND = cli.Command(__doc__, define_flags, cli.main_of("alexnet_jax.training"))
    if __name__ == "__main__":
        COMMAND.run()

Its module imports no JAX, so that help and wrong flags need not wait for it. What does the work is imported when it runs.
"""

import errno
import importlib
import io
import logging
import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

from absl import flags
from absl import logging as absl_logging

from alexnet_jax.system import examples, extras
from alexnet_jax.system.errors import FailedElsewhere, UserError
from alexnet_jax.system.help import help_text
from alexnet_jax.system.signals import RESUME_STATUS, Interrupted, ends_at_once
from alexnet_jax.system.suggest import question, similar

# What a disk or a path may raise anywhere. The others would be mistakes of ours.
OF_A_DISK = (
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM, errno.ESTALE, errno.ENAMETOOLONG,
    errno.ELOOP, errno.EMFILE, errno.ENFILE,
)  # fmt: skip
# What the collectives of CPUs and of GPUs say of another process that no longer answers.
OF_A_LOST_PROCESS = ("closed by peer", "reset by peer", "Broken pipe", "remote process exited")
EXTRA = "ALEXNET_FLAGS"
HELP = {"--help", "-h", "-help"}
HELP_IN_FULL = {"--helpfull", "-helpfull"}


class Options(flags.FlagValues):
    """The flags of one command line. Their files are also looked for among the package's examples."""

    def _get_flag_file_lines(self, filename: str, parsed_file_stack: list[str] | None = None) -> list[str]:
        """absl's own, called for each file, also for one that another file names."""
        path = examples.found(filename)
        if path and not os.path.exists(path):
            known = f"the package's examples are {', '.join(examples.names('.cfg'))}"
            raise UserError(f"--flagfile={filename}: there is no such file; {known}")
        return super()._get_flag_file_lines(path, parsed_file_stack)


def main_of(module: str) -> Callable[..., None]:
    """The `main` of a module that is imported when it is called."""

    def main(*given: object) -> None:
        with ends_at_once():  # imports are not made to be interrupted: NumPy's then end in a RecursionError
            found = importlib.import_module(module).main
        found(*given)

    return main


@dataclass(frozen=True)
class Command:
    """One entry point.

    about: what `--help` says before the flags: what the command does, and an indented example.
    main: gets the parsed flags, and the words if `takes_words`.
    takes_words: False refuses words besides flags. Such a word is nearly always a flag without its dashes.
    """

    about: str | None
    define: Callable[[flags.FlagValues], None]
    main: Callable[..., None]
    takes_words: bool = False

    def run(self, argv: Sequence[str] | None = None) -> NoReturn:
        """Runs a command line, by default that of this process, and ends the process."""
        shown, ours = logging.StreamHandler(), logging.getLogger("alexnet_jax")
        shown.setFormatter(logging.Formatter("warning: %(message)s"))
        ours.addHandler(shown)
        ours.propagate = False  # libraries add handlers of their own at the root
        absl_logging.set_verbosity(absl_logging.FATAL)  # what Orbax says of an error, we say in one line
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # Orbax's reads beside the one that failed
        flags.FLAGS.mark_as_parsed()  # the flags of libraries keep their defaults
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: for names that the locale cannot print
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # `alexnet_jax` had another one for the start
        status = 1
        try:
            status = self(sys.argv[1:] if argv is None else argv)
        finally:
            if status not in (0, RESUME_STATUS):
                _leave_others(status)
        sys.exit(status)

    def __call__(self, argv: Sequence[str]) -> int:
        """Runs one command line.

        Returns:
            The exit status: 0; 1 after a line on stderr about bad input, the disk, the memory or a lost process;
            `IN_USE_STATUS` if another process works in the folder; `DIVERGED_STATUS` if the loss is not finite;
            `RESUME_STATUS` if the run was interrupted and saved; 130 after Ctrl-C.
        """
        try:
            with extras.needed():
                self._run(argv)
        except FailedElsewhere as error:
            return error.status
        except UserError as error:
            _say("error: " + " ".join(str(error).splitlines()))
            return error.status
        except Interrupted as stop:
            _say(str(stop))
            return RESUME_STATUS
        except KeyboardInterrupt:
            _say("stopped by Ctrl-C")
            return 128 + signal.SIGINT
        except BrokenPipeError:  # whoever read our stdout has ended, such as `head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            return 128 + signal.SIGPIPE
        except OSError as error:
            if error.errno not in OF_A_DISK:
                raise
            _say(f"error: {error.filename or 'the disk'}: {error.strerror}")
            return 1
        except (MemoryError, RuntimeError) as error:
            if not (why := _why(error)):
                raise
            _say(f"error: {why}")
            return 1
        return 0

    def _run(self, argv: Sequence[str]) -> None:
        options = Options()
        self.define(options)
        if asked := (HELP | HELP_IN_FULL) & set(argv):
            print(help_text(self.about or "", options, full=bool(asked & HELP_IN_FULL)), end="", flush=True)
            return
        argv = [*argv, *_extra(options)]
        if self.takes_words:
            self.main(options, parse(options, argv))
        else:
            parse_flags(options, argv)
            self.main(options)


def parse(options: flags.FlagValues, argv: Sequence[str]) -> list[str]:
    """Parses a command line into `options`. Returns the words that are not flags; they may stand anywhere.

    Raises:
        UserError: an unknown flag, or a value that its flag cannot have, such as none from an unset variable.
    """
    options.set_gnu_getopt(True)
    try:
        words = options(["command", *argv])[1:]
    except flags.UnrecognizedFlagError as error:
        meant = question(similar(error.flagname, _spellings(options)), "--")
        raise UserError(f"--{error.flagname} is not a flag of this command{meant} --help lists its flags") from error
    except flags.Error as error:
        raise UserError(" ".join(str(error).split())) from error
    except (UnicodeDecodeError, IsADirectoryError) as error:
        named = " ".join(word for word in argv if word.lstrip("-").startswith("flagfile"))
        raise UserError(f"{named} is not a file of flags: {error}") from error
    for name in options:
        flag = options[name]
        if flag.present and flag.default != "" and "" in (flag.value if isinstance(flag.value, list) else [flag.value]):
            raise UserError(f"--{name} is empty: give it a value, or leave it out")
    return words


def parse_flags(options: flags.FlagValues, argv: Sequence[str]) -> None:
    """Like `parse`, for flags alone. Raises UserError on any other word too."""
    if words := parse(options, argv):
        raise UserError(f"{words[0]!r} is not a flag: flags are written --name=value")


def _spellings(options: flags.FlagValues) -> list[str]:
    """Every word that may stand after the dashes."""
    return [*options, *(f"no{name}" for name in options if options[name].boolean), "flagfile", "help"]


def _why(error: MemoryError | RuntimeError) -> str:
    """What a person can do about an error of the machine, or ''."""
    said = str(error)
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in said:
        return "the memory is exhausted: choose a smaller --batch_size, or --accumulate in training"
    if any(words in said for words in OF_A_LOST_PROCESS):
        return f"another process has ended or cannot be reached: run the command again ({said.splitlines()[0]})"
    return ""


def _say(line: str) -> None:
    """Prints to stderr in one write. Unbuffered `print` makes two, and lines of several processes would mix."""
    sys.stderr.write(f"{line}\n")


def _leave_others(status: int) -> None:
    """A process that fails while others work on must not wait for them at its end, nor they for it."""
    if runtime := sys.modules.get("alexnet_jax.system.runtime"):  # without it, and JAX, a process is alone
        runtime.leave_others(status)


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
