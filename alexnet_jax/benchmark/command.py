"""What `benchmark` does: measures the input pipeline, or the network beside PyTorch's."""

from absl import flags

from alexnet_jax.benchmark import inputs, results, steps
from alexnet_jax.config import from_flags
from alexnet_jax.system import runtime
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
