"""What `benchmark` does: measures the network beside PyTorch's, the input or waits; or compiles for other machines."""

from absl import flags

from alexnet_jax.benchmark import compiled, inputs, results, steps, waiting
from alexnet_jax.benchmark.chips import Slice
from alexnet_jax.benchmark.ours import MODES
from alexnet_jax.config import from_flags
from alexnet_jax.system import runtime
from alexnet_jax.system.errors import UserError


def main(options: flags.FlagValues) -> None:
    """The command line."""
    config = from_flags(options)
    chosen = [f"--{name}" for name in ("input", "waiting", "against", "compile_for") if options[name].value]
    if len(chosen) > 1 and chosen != ["--against", "--compile_for"]:
        raise UserError(f"{chosen[0]} and {chosen[1]} are two measurements: choose one")
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
    if options.waiting:
        waiting.publish_waiting(waiting.measure_waiting(config, options.rounds, options.seconds), figure)
        return
    result = steps.measure_steps(
        config,
        against=bool(options.against),
        layers=options.layers,
        rounds=options.rounds,
        steps=count,
        classes=options.classes,
        modes=MODES[:2] if options.against else MODES,
    )
    steps.publish_steps(config, result, figure)
