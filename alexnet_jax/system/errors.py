"""The one exception that a person is meant to read."""


class UserError(Exception):
    """Something the user can mend: the message is one line that names the flag, file or shape at fault and what to do.

    Entry points print it without a traceback and exit with status 1 (`alexnet_jax.system.cli.run`).
    """
