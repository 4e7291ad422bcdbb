"""Measures how fast the paper's network runs on this machine.

    python -m alexnet_jax.benchmark [flags of a run] [--steps=N] [--rounds=N] [--against=pytorch] [--figure=F.png]
    python -m alexnet_jax.benchmark --input [flags of a run] [--seconds=S] [--figure=F.png]

Prints a table on stderr and one JSON object on stdout, `images_per_second` first. PyTorch is in requirements-benchmark.txt.
`python -m experiments.input_pipelines` measures --input beside other input pipelines.
"""

from absl import flags

from alexnet_jax.benchmark import inputs, results, steps
from alexnet_jax.config import define_flags as define_config_flags
from alexnet_jax.config import from_flags
from alexnet_jax.system import cli, runtime
from alexnet_jax.system.errors import UserError


def main(options: flags.FlagValues) -> None:
    """The command line."""
    config = from_flags(options)
    if options.input and options.against:
        raise UserError("--input and --against are two measurements: choose one")
    figure = results.figure_path(options.figure)
    runtime.start(config.host_devices)
    count = config.steps or results.DEFAULT_STEPS
    if options.input:
        inputs.publish_input(inputs.measure_input(config, options.rounds, options.seconds, count), figure)
        return
    result = steps.measure_steps(
        config, against=bool(options.against), layers=options.layers, rounds=options.rounds, steps=count
    )
    steps.publish_steps(config, result, figure)


def define_flags(options: flags.FlagValues) -> None:
    """The flags of this command."""
    define_config_flags(options)
    results.define_flags(options)
    flags.DEFINE_boolean("input", False, "measure the input pipeline instead of the network", flag_values=options)
    flags.DEFINE_enum("against", None, ("pytorch",), "measure the same networks in PyTorch in turn", flag_values=options)
    flags.DEFINE_boolean("layers", True, "also measure each layer and direction alone", flag_values=options)


COMMAND = cli.Command(__doc__, define_flags, main)

if __name__ == "__main__":
    COMMAND.run()
