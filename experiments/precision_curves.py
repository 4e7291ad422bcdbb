"""Compares the training losses of one run in float32 and in bfloat16.

    python -m experiments.precision_curves --float32=W --bfloat16=V --figure=F.png

Prints one JSON object: both curves, and the largest and the last difference in nats.
"""

import json
from pathlib import Path

import matplotlib
from absl import flags

from alexnet_jax.figures import FIGURE_SUFFIXES
from alexnet_jax.figures.style import PALETTE, write_figure
from alexnet_jax.run.workdir import read_config
from alexnet_jax.system import cli
from alexnet_jax.system.errors import UserError
from alexnet_jax.system.files import check_output

PRECISIONS = dict(zip(("float32", "bfloat16"), PALETTE, strict=False))


def training_losses(workdir: str) -> dict[int, float]:
    """Loss of each training row, by step. Raises UserError if the folder holds no run."""
    read_config(workdir)
    rows = map(json.loads, (Path(workdir) / "metrics.jsonl").read_text().splitlines())
    return {row["step"]: row["loss"] for row in rows if row["split"] == "train"}


def main(options: flags.FlagValues) -> None:
    """The command line."""
    for name in PRECISIONS:
        if not options[name].value or read_config(options[name].value).precision != name:
            raise UserError(f"--{name}={options[name].value} is not the folder of a run with --precision={name}")
    path = check_output(f"--figure={options.figure}", Path(options.figure), FIGURE_SUFFIXES)
    curves = {name: training_losses(options[name].value) for name in PRECISIONS}
    if curves["float32"].keys() != curves["bfloat16"].keys():
        raise UserError("the runs have rows for different steps: train both with the same --steps and --log_every")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for name, colour in PRECISIONS.items():
        axes.plot(list(curves[name]), list(curves[name].values()), color=colour, label=name)
    axes.set(xlabel="step", ylabel="training loss (nats)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    write_figure(figure, path)
    differences = [curves["bfloat16"][step] - loss for step, loss in curves["float32"].items()]
    largest = max(differences, key=abs)
    print(json.dumps({"largest_difference": largest, "last_difference": differences[-1], **curves}))


def define_flags(options: flags.FlagValues) -> None:
    """The flags of this command."""
    for name in PRECISIONS:
        flags.DEFINE_string(name, "", f"folder of the run with --precision={name}", flag_values=options)
    flags.DEFINE_string("figure", "precision.png", "draw the curves into this .png or .svg", flag_values=options)


COMMAND = cli.Command(__doc__, define_flags, main)

if __name__ == "__main__":
    COMMAND.run()
