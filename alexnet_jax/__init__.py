"""The two-tower AlexNet of 2012 as living research code in JAX and Flax.

    from alexnet_jax import load_trained
    load_trained("runs/quickstart").classify(["apple.jpg", "pear.png"])

`load_trained` opens a run, `Network` is the module of a layer table, and `ARCHITECTURES` has the tables by name. They are
imported when they are first asked for: the help of a command needs no JAX.
"""

import importlib
import importlib.metadata
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

from alexnet_jax.system.signals import end

if TYPE_CHECKING:
    from alexnet_jax.architectures import ARCHITECTURES
    from alexnet_jax.inference.predictor import load_trained
    from alexnet_jax.network import Network

__all__ = ["ARCHITECTURES", "Network", "__version__", "load_trained"]
__version__ = "0.1.0"

_HOMES = {"ARCHITECTURES": "architectures", "Network": "network", "load_trained": "inference.predictor"}

# Each program that jaxlib before 0.12 takes from its own cache on a CPU, it calls made for another machine, in long errors
# (openxla/xla issue 44565). The level is read when jaxlib is loaded; 1 is what jax sets, for its child processes too.
_OLD = importlib.metadata.version("jaxlib").startswith(("0.10.", "0.11."))
if _OLD and os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

# So it is while `python -m` or `alexnet` looks for one of our commands. `system.cli.Command.run` takes over.
_BY_NAME = [os.path.basename(word) for word in sys.argv[:1]] in (["-m"], ["alexnet"])
if _BY_NAME and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, end)


def __getattr__(name: str) -> Any:
    """What is public, imported when it is asked for (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
