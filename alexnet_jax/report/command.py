"""What `report` does: writes one HTML page about a run, or about several side by side."""

from pathlib import Path

from absl import flags

from alexnet_jax.config import parsed
from alexnet_jax.report.gather import gather
from alexnet_jax.report.page import render
from alexnet_jax.run.flags import check_workdirs
from alexnet_jax.run.workdir import read_config
from alexnet_jax.system import runtime
from alexnet_jax.system.files import check_output, output_file


def main(options: flags.FlagValues) -> None:
    """The command line."""
    check_workdirs(options.workdir, "see several side by side")
    out = Path(options.out) if options.out else Path(options.workdir[0]) / "report.html"
    if not options.out:
        read_config(options.workdir[0])  # it says so if the folder is no run
    check_output(f"--out={out}", out, (".html", ".htm"))
    runtime.start(**parsed(options, ("host_devices",)))
    runs = gather(
        options.workdir, step=options.step, split=options.split, data_dir=options.data_dir, batch_size=options.batch_size,
        sample_seed=options.sample_seed,
    )  # fmt: skip
    page = render(runs)
    with output_file(out) as file:
        file.write(page)
    print(out)
