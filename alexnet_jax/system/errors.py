"""The exceptions whose message is for a person."""

from alexnet_jax.system.signals import DIVERGED_STATUS, IN_USE_STATUS


class UserError(Exception):
    """The user can fix it. The message is one line that names the flag, file or shape at fault, and says what to do.

    Entry points print it without a traceback and exit with `status` (`alexnet_jax.system.cli.Command`).
    """

    status: int = 1


class InUse(UserError):
    """Another process works in the folder of a run."""

    status = IN_USE_STATUS


class FailedElsewhere(UserError):
    """Another one of several processes has failed and says why. This one ends with the same status, and says nothing."""

    def __init__(self, status: int):
        super().__init__()
        self.status = status


class Diverged(UserError):
    """The loss or a parameter is no longer finite. The same command would come to the same end."""

    status = DIVERGED_STATUS
