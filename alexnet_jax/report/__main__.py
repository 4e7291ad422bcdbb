"""Writes one HTML page about a run, or about several side by side. The page needs no other file and no network.

python -m alexnet_jax.report --workdir=runs/first
python -m alexnet_jax.report --workdir=V --workdir=W --out=both.html
"""

from absl import flags

from alexnet_jax.run.flags import define_shown_runs
from alexnet_jax.system import cli


def define_flags(options: flags.FlagValues) -> None:
    """The flags of this command."""
    define_shown_runs(options)
    help = "`file` of the page, in place of report.html in the first --workdir"
    flags.DEFINE_string("out", None, help, flag_values=options)


COMMAND = cli.Command(__doc__, define_flags, cli.main_of("alexnet_jax.report.command"))

if __name__ == "__main__":
    COMMAND.run()
