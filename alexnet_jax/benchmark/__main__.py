"""Measures this machine on the paper's network.

    python -m alexnet_jax.benchmark [flags of a run] [--steps=N] [--rounds=N] [--against=pytorch] [--figure=F.png]
    python -m alexnet_jax.benchmark --input [flags of a run] [--seconds=S] [--figure=F.png]

Prints a table on stderr and one JSON object on stdout, `images_per_second` first. PyTorch is in requirements-benchmark.txt.
"""

import json
import sys
from pathlib import Path

from absl import flags
from rich.console import Console

from alexnet_jax.benchmark import inputs, steps
from alexnet_jax.benchmark.ours import Ours
from alexnet_jax.benchmark.results import draw
from alexnet_jax.config import define_flags as define_config_flags
from alexnet_jax.config import from_flags
from alexnet_jax.system import cli, runtime
from alexnet_jax.system.errors import UserError

DEFAULT_STEPS = 5


def main(options: flags.FlagValues) -> None:
    """The command line."""
    config = from_flags(options)
    if options.input and options.against:
        raise UserError("--input and --against are two measurements: ask for one of them")
    if options.figure and (Path(options.figure).suffix not in (".png", ".svg") or not Path(options.figure).parent.is_dir()):
        raise UserError(f"--figure={options.figure} is not a .png or .svg in a folder that exists")
    runtime.start(config.host_devices)
    size, count = config.batch_size, config.steps or DEFAULT_STEPS
    if options.input:
        result = inputs.measure_input(config, options.rounds, options.seconds, count)
        tables, ours = [inputs.input_table(result)], set(inputs.OURS)
        title = f"images per second, {config.image_size} x {config.image_size} px"
    else:
        result = steps.measure_steps(
            config, against=bool(options.against), layers=options.layers, rounds=options.rounds, steps=count
        )
        tables, ours = steps.step_tables(result), {Ours(config, mode).name for mode in steps.MODES}
        title = f"images per second, batch {size}, {config.crop} x {config.crop} px, {config.precision}"
    console = Console(stderr=True, width=None if sys.stderr.isatty() else 120)
    for table in tables:
        console.print(table)
    if options.figure:
        draw(result["rows"], ours, title, Path(options.figure))
    print(json.dumps(result))


def define_flags(options: flags.FlagValues) -> None:
    """The flags of this command."""
    define_config_flags(options)
    flags.DEFINE_boolean("input", False, "measure the input pipeline instead of the network", flag_values=options)
    flags.DEFINE_enum("against", None, ("pytorch",), "measure the same networks in PyTorch in turn", flag_values=options)
    flags.DEFINE_boolean("layers", True, "measure each layer and direction alone too", flag_values=options)
    flags.DEFINE_integer("rounds", 5, "times that each contender is measured, in turn", lower_bound=1, flag_values=options)
    flags.DEFINE_float(
        "seconds", 1.0, "--input: that each contender is measured in a round", lower_bound=0.0, flag_values=options
    )
    flags.DEFINE_string("figure", None, "draw the bars into this .png or .svg", flag_values=options)


COMMAND = cli.Command(__doc__, define_flags, main)

if __name__ == "__main__":
    COMMAND.run()
