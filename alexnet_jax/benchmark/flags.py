"""The flags of every measurement, besides those of a run."""

from absl import flags


def define_measurement(options: flags.FlagValues) -> None:
    """How long to measure, and what to draw."""
    flags.DEFINE_integer("rounds", 5, "rounds; each measures everything once, in turn", lower_bound=1, flag_values=options)
    help = "how many `seconds` each stream of images is measured in a round"
    flags.DEFINE_float("seconds", 1.0, help, flag_values=options)
    why = "a stream is measured for more than 0 seconds, up to a day"  # the comparison refuses NaN too
    flags.register_validator("seconds", lambda seconds: 0 < seconds <= 86400, why, flag_values=options)
    flags.DEFINE_string("figure", None, "`file`, .png or .svg, to draw into", flag_values=options)
