"""The exceptions whose message is for a person."""


class UserError(Exception):
    """The user can fix it. The message is one line that names the flag, file or shape at fault, and says what to do.

    Entry points print it without a traceback and exit with status 1 (`alexnet_jax.system.cli.Command`).
    """


class InUse(UserError):
    """Another process works in the folder of a run. Entry points exit with IN_USE_STATUS of `alexnet_jax.system.signals`."""
