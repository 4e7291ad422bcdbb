"""Writes one HTML page about a run, or about several side by side. The page needs no other file and no network.

python -m alexnet_jax.report --workdir=W [--workdir=W2 ...] [--out=FILE] [--split=test]
"""

from pathlib import Path

import matplotlib
from absl import flags

from alexnet_jax.report.gather import gather
from alexnet_jax.report.page import render
from alexnet_jax.run.flags import define_shown_runs
from alexnet_jax.system import cli, runtime
from alexnet_jax.system.errors import UserError
from alexnet_jax.system.files import replacing


def main(options: flags.FlagValues) -> None:
    """The command line."""
    if not options.workdir:
        raise UserError("--workdir is missing: name the folder of a run; repeat it to see several side by side")
    out = Path(options.out) if options.out else Path(options.workdir[0]) / "report.html"
    if options.out and not out.absolute().parent.is_dir():
        raise UserError(f"--out={options.out}: there is no folder {out.parent}")
    if out.is_dir():
        raise UserError(f"--out={options.out} is a folder: name a file in it")
    runtime.start(options.host_devices)
    matplotlib.use("agg")
    runs = gather(
        options.workdir, step=options.step, split=options.split, data_dir=options.data_dir, batch_size=options.batch_size,
        sample_seed=options.sample_seed,
    )  # fmt: skip
    try:
        with replacing(out) as file:
            file.write(render(runs))
    except OSError as error:
        raise UserError(f"--out={out} cannot be written: {error.strerror or error}") from error
    print(out)


def define_flags(options: flags.FlagValues) -> None:
    """The flags of this command."""
    define_shown_runs(options)
    flags.DEFINE_string("out", "", "file of the page, in place of report.html in the first --workdir", flag_values=options)


COMMAND = cli.Command(__doc__, define_flags, main)

if __name__ == "__main__":
    COMMAND.run()
