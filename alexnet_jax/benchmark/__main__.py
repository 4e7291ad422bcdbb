"""Measures how fast the paper's network runs on this machine.

    python -m alexnet_jax.benchmark --batch_size=64
    python -m alexnet_jax.benchmark --against=pytorch --figure=speed.png
    python -m alexnet_jax.benchmark --input --seconds=5
    python -m alexnet_jax.benchmark --waiting --flagfile=quickstart.cfg
    python -m alexnet_jax.benchmark --compile_for=v5e:2x2 --figure=places.png

Prints a table on stderr and one JSON object on stdout, `images_per_second` first. --steps are those of a round.
--against=pytorch needs PyTorch, the extra benchmark.

--waiting starts real commands on the set of the given flags, and shows how long a person waits for the first step, a
resume, the first prediction, a save and a validation, `first_step_seconds` first.

--compile_for runs nothing. It compiles for accelerators that are not here, and shows what their compilers expect,
`estimated_seconds` first. It needs these compilers, the extra accelerators.
"""

from absl import flags

from alexnet_jax.benchmark.chips import CHIPS
from alexnet_jax.benchmark.flags import define_measurement
from alexnet_jax.config import define_flags as define_config_flags
from alexnet_jax.system import cli


def define_flags(options: flags.FlagValues) -> None:
    """The flags of this command."""
    define_config_flags(options)
    define_measurement(options)
    flags.DEFINE_boolean("input", False, "measure the input pipeline instead of the network", flag_values=options)
    help = "measure what a person waits for: start, resume, save, validation, prediction; and how fast images are prepared"
    flags.DEFINE_boolean("waiting", False, help, flag_values=options)
    against = "pytorch: measure the same network in PyTorch in turn; with --compile_for a `file`, an earlier record of it"
    flags.DEFINE_string("against", None, against, flag_values=options)
    help = f"`chip:shape`, such as v5e:2x2: only compile, for chips that need not be here; known are {', '.join(CHIPS)}"
    flags.DEFINE_string("compile_for", None, help, flag_values=options)
    help = "`classes` of the images of noise"
    flags.DEFINE_integer("classes", 1000, help, lower_bound=1, flag_values=options)
    flags.DEFINE_boolean("layers", True, "also measure each layer and direction alone", flag_values=options)


COMMAND = cli.Command(__doc__, define_flags, cli.main_of("alexnet_jax.benchmark.command"))

if __name__ == "__main__":
    COMMAND.run()
