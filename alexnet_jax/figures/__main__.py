"""Draws the figures of a run, as PNG and as SVG. They are written into its folder figures/.

    python -m alexnet_jax.figures --workdir=runs/first
    python -m alexnet_jax.figures --workdir=runs/first --workdir=runs/second
    python -m alexnet_jax.figures --workdir=W --only=activations --layer=conv2
    python -m alexnet_jax.figures --architecture=paper --out=paper.svg

Learning curves, Figures 3 and 4 of the paper, confusions, activations, and magnitudes of weights and updates.
Of a run that was trained with --profile also the time of each layer.
With --architecture and no run: Figure 2 of the paper, drawn from the layer table.
"""

from absl import flags

from alexnet_jax.config import define_flags as define_config_flags
from alexnet_jax.figures import ALL, OF_METRICS, OF_PROFILE
from alexnet_jax.run.flags import define_shown_runs
from alexnet_jax.system import cli


def define_flags(options: flags.FlagValues) -> None:
    """The flags of this command."""
    define_shown_runs(options)
    help = f"`figures` to draw, comma-separated; {', '.join((*OF_METRICS, *OF_PROFILE))} and kernels need no images"
    flags.DEFINE_list("only", list(ALL), help, flag_values=options)
    flags.DEFINE_string("layer", "conv1", "`layer` whose activations are drawn", flag_values=options)
    define_config_flags(options, only=("architecture",), unset="none, the run is drawn")
    help = "`outputs` of the network that --architecture draws"
    flags.DEFINE_integer("classes", 1000, help, lower_bound=1, flag_values=options)
    help = "the .png or .svg `file` that --architecture is drawn into; default: its name and .png"
    flags.DEFINE_string("out", None, help, flag_values=options)


COMMAND = cli.Command(__doc__, define_flags, cli.main_of("alexnet_jax.figures.command"))

if __name__ == "__main__":
    COMMAND.run()
