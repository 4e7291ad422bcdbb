"""Draws the figures of a run, as PNG and as SVG. They are written into its folder figures/.

    python -m alexnet_jax.figures --workdir=runs/first
    python -m alexnet_jax.figures --workdir=runs/first --workdir=runs/second
    python -m alexnet_jax.figures --workdir=W --only=activations --layer=conv2

Learning curves, Figures 3 and 4 of the paper, confusions, activations, and magnitudes of weights and updates.
"""

from absl import flags

from alexnet_jax.figures import ALL, OF_METRICS
from alexnet_jax.run.flags import define_shown_runs
from alexnet_jax.system import cli


def define_flags(options: flags.FlagValues) -> None:
    """The flags of this command."""
    define_shown_runs(options)
    help = f"`figures` to draw, comma-separated; {', '.join(OF_METRICS)} and kernels need no images"
    flags.DEFINE_list("only", list(ALL), help, flag_values=options)
    flags.DEFINE_string("layer", "conv1", "`layer` whose activations are drawn", flag_values=options)


COMMAND = cli.Command(__doc__, define_flags, cli.main_of("alexnet_jax.figures.command"))

if __name__ == "__main__":
    COMMAND.run()
