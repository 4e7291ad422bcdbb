"""Searches for flags of the trainer with low validation error. Rerun the same command to resume.

    python -m alexnet_jax.sweep --flagfile=sweeps/quickstart.cfg --workdir=S
    python -m alexnet_jax.train --flagfile=S/best.cfg --workdir=runs/best

Optuna chooses the values. --space names a TOML file with a table for each flag to try; the others are those of `train`.
Each trial is a trainer in its own process and folder. The sweep leaves best.cfg, trials.csv,
table.md and plots. It needs the extra sweep.
"""

from absl import flags

from alexnet_jax.config import define_flags as define_config_flags
from alexnet_jax.sweep import MOST_TRIALS, SAMPLERS
from alexnet_jax.system import cli


def define_flags(options: flags.FlagValues) -> None:
    """The flags of this command."""
    define_config_flags(options)
    help = "the TOML `file` with the flags to try, on disk or among the package's examples: sweeps/quickstart.toml"
    flags.DEFINE_string("space", None, help, required=True, flag_values=options)
    help = "trials of the study; a grid has its combinations"
    flags.DEFINE_integer("trials", 20, help, lower_bound=1, upper_bound=MOST_TRIALS, flag_values=options)
    flags.DEFINE_integer("jobs", 1, "trials at a time", lower_bound=1, flag_values=options)
    help = "Optuna storage `URL`, to share a study; empty: SQLite in the workdir"
    flags.DEFINE_string("storage", "", help, flag_values=options)
    flags.DEFINE_string("study", "", "`name` of the study; empty: the name of the workdir", flag_values=options)
    flags.DEFINE_enum("sampler", "tpe", SAMPLERS, "how values are chosen", flag_values=options)
    help = "validations before the worse two thirds may end; 0: never"
    flags.DEFINE_integer("prune_after", 2, help, lower_bound=0, flag_values=options)
    help = "new starts of a trainer that was killed from outside, without a new validation between them"
    flags.DEFINE_integer("retries", 2, help, lower_bound=0, flag_values=options)
    help = "the best trials to train anew with fresh seeds, and to rank by their mean"
    flags.DEFINE_integer("confirm", 0, help, lower_bound=0, upper_bound=MOST_TRIALS, flag_values=options)
    help = "fresh seeds for each of them"
    flags.DEFINE_integer("confirm_seeds", 3, help, lower_bound=1, upper_bound=1000, flag_values=options)


COMMAND = cli.Command(__doc__, define_flags, cli.main_of("alexnet_jax.sweep.command"))

if __name__ == "__main__":
    COMMAND.run()
