"""Flags that several commands share, and the flags of a run as text."""

import os
from collections.abc import Collection, Sequence
from typing import Any

from absl import flags

from alexnet_jax.config import Config, as_dict
from alexnet_jax.config import define_flags as define_config_flags
from alexnet_jax.system.errors import UserError
from alexnet_jax.values import SPLITS, WEIGHTS


def changed(config: Config, without: Collection[str] = ()) -> dict[str, Any]:
    """The flags of a config that differ from their defaults, but not those in `without`."""
    defaults = as_dict(Config())
    return {name: value for name, value in as_dict(config).items() if value != defaults[name] and name not in without}


def value_text(value: Any) -> str:
    """A flag's value for a reader; a list has commas."""
    return ",".join(map(str, value)) or "none" if isinstance(value, tuple | list) else str(value)


def check_workdirs(workdirs: Sequence[str], purpose: str) -> None:
    """Raises UserError if --workdir names no run, or one of them twice. `purpose`: what it is repeated for."""
    if not workdirs:
        raise UserError(f"--workdir is missing: name the folder of a run; repeat it to {purpose}")
    places = dict[str, str]()
    for workdir in workdirs:
        place = os.path.realpath(workdir)
        if place in places:
            raise UserError(f"--workdir={places[place]} and --workdir={workdir} are one run: name it once")
        places[place] = workdir


def define_step(options: flags.FlagValues) -> None:
    """--step: the checkpoint to read."""
    help = "checkpoint: a `step`, latest, or best (lowest validation error)"
    flags.DEFINE_string("step", "latest", help, flag_values=options)


def define_weights(options: flags.FlagValues) -> None:
    """--weights: which of a checkpoint's."""
    help = "which weights of the checkpoint: the last ones, or ema, their average of a run trained with --ema"
    flags.DEFINE_enum("weights", "last", WEIGHTS, help, flag_values=options)


def define_batch_size(options: flags.FlagValues) -> None:
    """--batch_size: of the forward pass; it need not be that of the training."""
    flags.DEFINE_integer("batch_size", 64, "`images` in one batch", lower_bound=1, flag_values=options)


def define_shown_runs(options: flags.FlagValues) -> None:
    """The flags of figures and reports: runs, their checkpoint, and the images that they are shown."""
    flags.DEFINE_multi_string("workdir", [], "`folder` of a run; repeat it to compare several", flag_values=options)
    define_step(options)
    flags.DEFINE_enum("split", "test", SPLITS, "images that the networks are shown", flag_values=options)
    help = "`folder` of the prepared sets, if they have moved since the training"
    flags.DEFINE_string("data_dir", None, help, flag_values=options)
    flags.DEFINE_integer("sample_seed", 0, "seed for choosing images", lower_bound=0, flag_values=options)
    flags.DEFINE_alias("lot", "sample_seed", flag_values=options)  # its name in older command lines
    define_batch_size(options)
    define_config_flags(options, only=("host_devices",))
