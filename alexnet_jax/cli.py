"""How every entry point starts and ends: absl flags in, one clear line and exit status 1 on bad input."""

import errno
import sys
from collections.abc import Callable

from absl import app, flags, logging

from alexnet_jax.errors import UserError
from alexnet_jax.interrupt import RESUME_STATUS, Interrupted


def run(main: Callable[[], None]) -> None:
    """Parses the absl flags, calls `main`, and turns a `UserError` into one line on stderr and exit status 1.

    `Interrupted` becomes a line and `RESUME_STATUS`; so does a full or read-only disk, with 1.

    A word on the command line that is not a flag is refused: it is nearly always a flag whose dashes were forgotten.
    """

    def without_words(words: list[str]) -> None:
        if words:
            raise UserError(f"{words[0]!r} is not a flag: flags are written --name=value")
        main()

    run_with_words(without_words)


def run_with_words(main: Callable[[list[str]], None]) -> None:
    """Like `run` for a command that takes words besides its flags, before or after them: `main` gets the words."""
    flags.FLAGS.set_gnu_getopt(True)

    def guarded(argv: list[str]) -> None:
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # libraries tell much at INFO
        try:
            main(argv[1:])
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(1)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
                raise
            print(f"error: {error.filename or 'the disk'} cannot be written: {error.strerror}", file=sys.stderr)
            sys.exit(1)
        except Interrupted as stop:
            print(stop, file=sys.stderr)
            sys.exit(RESUME_STATUS)

    app.run(guarded)
