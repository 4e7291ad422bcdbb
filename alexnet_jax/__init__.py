"""The two-tower AlexNet of 2012 as living research code in JAX and Flax."""

import importlib.metadata
import os
import signal
import sys

from alexnet_jax.system.signals import end

__version__ = "0.1.0"

# Each program that jaxlib before 0.12 takes from its own cache on a CPU, it calls made for another machine, in long errors
# (openxla/xla issue 44565). The level is read when jaxlib is loaded; 1 is what jax sets, for its child processes too.
_OLD = importlib.metadata.version("jaxlib").startswith(("0.10.", "0.11."))
if _OLD and os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

# So it is while `python -m` or `alexnet` looks for one of our commands. `system.cli.Command.run` takes over.
_BY_NAME = [os.path.basename(word) for word in sys.argv[:1]] in (["-m"], ["alexnet"])
if _BY_NAME and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, end)
