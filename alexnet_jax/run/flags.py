"""Flags that several commands share."""

from absl import flags

from alexnet_jax.config import define_flags as define_config_flags


def define_step(options: flags.FlagValues) -> None:
    """--step: the checkpoint to read."""
    help = "checkpoint: a step, 'latest' or 'best' (lowest validation error)"
    flags.DEFINE_string("step", "latest", help, flag_values=options)


def define_batch_size(options: flags.FlagValues) -> None:
    """--batch_size: only of the forward pass, so the batch size of the training does not matter."""
    flags.DEFINE_integer("batch_size", 64, "images in one batch", lower_bound=1, flag_values=options)


def define_shown_runs(options: flags.FlagValues) -> None:
    """The runs that a figure or a report shows, their checkpoint, and the images to show them with."""
    help = "folder of a run; repeat it to compare several"
    flags.DEFINE_multi_string("workdir", [], help, flag_values=options)
    define_step(options)
    help = "images that the networks are shown"
    flags.DEFINE_enum("split", "test", ("train", "validation", "test"), help, flag_values=options)
    help = "folder of the prepared sets, if they have moved since the training"
    flags.DEFINE_string("data_dir", None, help, flag_values=options)
    flags.DEFINE_integer("sample_seed", 0, "seed for choosing images", lower_bound=0, flag_values=options)
    flags.DEFINE_alias("lot", "sample_seed", flag_values=options)  # its name in older command lines
    define_batch_size(options)
    define_config_flags(options, only=("host_devices",))
