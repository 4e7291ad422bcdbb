"""Measures how fast the paper's network runs on this machine.

    python -m alexnet_jax.benchmark [flags of a run] [--steps=N] [--rounds=N] [--against=pytorch] [--figure=F.png]
    python -m alexnet_jax.benchmark --input [flags of a run] [--seconds=S] [--figure=F.png]
    python -m alexnet_jax.benchmark --compile_for=v5e:2x2 [flags of a run] [--against=EARLIER.json] [--figure=F.png]

Prints a table on stderr and one JSON object on stdout, `images_per_second` first. PyTorch is in requirements-benchmark.txt.
`python -m experiments.input_pipelines` measures --input beside other input pipelines.

--compile_for runs nothing. It compiles for accelerators that are not here, and shows what their compilers expect,
`estimated_seconds` first. These compilers are in requirements-accelerators.txt.
"""

from absl import flags

from alexnet_jax.benchmark import compiled, inputs, results, steps
from alexnet_jax.benchmark.chips import CHIPS, Slice
from alexnet_jax.config import define_flags as define_config_flags
from alexnet_jax.config import from_flags
from alexnet_jax.system import cli, runtime
from alexnet_jax.system.errors import UserError


def main(options: flags.FlagValues) -> None:
    """The command line."""
    config = from_flags(options)
    if options.input and (options.against or options.compile_for):
        other = "--against" if options.against else "--compile_for"
        raise UserError(f"--input and {other} are two measurements: choose one")
    figure = results.figure_path(options.figure)
    if options.compile_for:
        chips = Slice.parse(options.compile_for)
        earlier = compiled.read_record(options.against) if options.against else None
        compiled.publish_compiled(compiled.compile_programs(config, chips), earlier, figure)
        return
    if options.against not in (None, "pytorch"):
        raise UserError(f"--against={options.against} is not pytorch; an earlier record goes with --compile_for")
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
    against = "'pytorch': measure the same networks in PyTorch in turn; with --compile_for an earlier record of it, a .json"
    flags.DEFINE_string("against", None, against, flag_values=options)
    compile_for = (
        "CHIP:SHAPE, such as v5e:2x2 or h100:1x2: compile the run's programs for chips that need not be here, and show what "
        f"their compiler expects; chips: {', '.join(CHIPS)}"
    )
    flags.DEFINE_string("compile_for", None, compile_for, flag_values=options)
    flags.DEFINE_boolean("layers", True, "also measure each layer and direction alone", flag_values=options)


COMMAND = cli.Command(__doc__, define_flags, main)

if __name__ == "__main__":
    COMMAND.run()
