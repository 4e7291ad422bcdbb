"""Error against batch size at equal epochs, with and without linear scaling, warm-up and LARS.

    python -m alexnet_jax.prepare --dataset=cifar10 --image_size=32
    python -m experiments.large_batches --seeds=1

All errors are on the half of the training images that `large_batches.cfg` holds out; test is not read. Unfinished runs are
resumed, finished ones are kept. The record and its figure go to experiments/results/large_batches.
"""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from absl import flags
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from alexnet_jax.config import from_words
from alexnet_jax.figures.style import PALETTE, bare, save_figure
from alexnet_jax.run.metrics import read_rows
from alexnet_jax.system import cli, runtime
from alexnet_jax.system.errors import Diverged, UserError
from alexnet_jax.system.files import read_json, write_json
from alexnet_jax.training import train
from experiments.claims.runs import provenance_of

FLAGFILE = Path(__file__).with_suffix(".cfg")
RESULTS = Path(__file__).parent / "results" / "large_batches"
BASE = 32  # the batch that the rates are meant for
CHANCE = 90.0  # top-1 error of a guess, in percent
SCALED = (f"--base_batch_size={BASE}",)
WARMED = "--warmup_epochs=0.5"
LARS = "warm-up, LARS"
ARMS = {"one rate": (), "linear scaling": SCALED, "scaling, warm-up": (*SCALED, WARMED), LARS: (WARMED, "--lars=0.001")}
# The best of powers of two on seed 1000, for each size as in You et al. 2017. Scaled linearly from 32, 512 stays a guess.
LARS_RATES = {32: 2, 128: 4, 512: 8, 2048: 4}
MARKS = "oD^s"


def workdir_of(arm: str, size: int, seed: int, out: Path) -> Path:
    """Where one run is kept."""
    return out / arm.replace(", ", "_").replace(" ", "_") / f"batch{size}" / f"seed{seed}"


def run(arm: str, size: int, seed: int, out: Path, data_dir: str) -> dict[str, Any]:
    """The result of one run: its last validation error in percent, or the step where it diverged."""
    workdir = workdir_of(arm, size, seed, out)
    words = [f"--flagfile={FLAGFILE}", f"--batch_size={size}", *ARMS[arm]]
    words += [f"--learning_rate={LARS_RATES[size]}"] if arm == LARS else []
    words += [f"--data_dir={data_dir}", f"--workdir={workdir}", f"--seed={seed}"]
    result = workdir / "result.json"
    if not result.exists():
        diverged = None
        try:
            train(from_words(words))
        except Diverged as error:
            diverged = str(error).partition(";")[0]
        rows = [row for row in read_rows(workdir) if row["split"] == "validation"]
        error = None if diverged else rows[-1]["top1_error"]
        write_json(result, {"error": error, "diverged": diverged})
    return {"arm": arm, "batch_size": size, "seed": seed, **read_json(result)}


def draw(runs: Sequence[dict[str, Any]]) -> Figure:
    """The mean error of each arm over batch sizes, and every run. A run that diverged counts as a guess, an open mark."""
    figure, axis = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    sizes = sorted({one["batch_size"] for one in runs})
    for place, (arm, colour, mark) in enumerate(zip(ARMS, PALETTE, MARKS, strict=False)):
        shift = 1.03 ** (place - 1.5)  # so that equal errors do not hide each other
        means = []
        for size in sizes:
            own = [one for one in runs if (one["arm"], one["batch_size"]) == (arm, size)]
            errors = [CHANCE if one["error"] is None else one["error"] for one in own]
            if own:
                means.append((size * shift, statistics.mean(errors)))
            for one, error in zip(own, errors, strict=True):
                style = "none" if one["error"] is None else "full"
                axis.plot(size * shift, error, mark, color=colour, fillstyle=style)
        axis.plot(*zip(*means, strict=True), color=colour, linewidth=1.2)
        axis.plot([], [], f"{mark}-", color=colour, label=arm)  # its line in the legend
    axis.axhline(CHANCE, color="0.4", linewidth=0.9, linestyle=":")
    axis.set_xscale("log", base=2)
    axis.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axis.minorticks_off()
    axis.set(xlabel="batch size", ylabel="top-1 error on held-out images (%)", ylim=(None, 95))
    axis.set_title("dotted: a guess" + "; open marks: diverged" * any(one["error"] is None for one in runs), fontsize=10)
    bare(axis)
    axis.legend(frameon=False)
    return figure


def main(options: flags.FlagValues) -> None:
    """The command line."""
    runtime.start()
    out, data_dir = Path(options.out).absolute(), str(Path(options.data_dir).absolute())
    sizes = [int(size) for size in options.batch_sizes]
    if unknown := set(sizes) - set(LARS_RATES):
        raise UserError(f"--batch_sizes={unknown.pop()} has no rate for LARS: choose from {', '.join(map(str, LARS_RATES))}")
    planned = [
        (arm, size, seed)
        for seed in range(options.seeds)
        for size in sizes
        for arm in ARMS
        if size != BASE or arm in ("one rate", LARS)  # scaling changes nothing there
    ]
    found = [run(*one, out, data_dir) for one in planned]
    flags_given = f"--seeds={options.seeds} --batch_sizes={','.join(options.batch_sizes)}"
    record = {
        "command": f"python -m experiments.large_batches {flags_given}",
        "arms": {arm: list(words) for arm, words in ARMS.items()},
        "lars_rates": {str(size): LARS_RATES[size] for size in sizes},
        "runs": found,
        **provenance_of(workdir_of(*one, out) for one in planned),
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    write_json(RESULTS / "large_batches.json", record)
    matplotlib.use("agg")
    print(save_figure(draw(found), RESULTS, "large_batches"))


def define_flags(options: flags.FlagValues) -> None:
    """The flags of this command."""
    flags.DEFINE_integer("seeds", 1, "runs of each arm, with the seeds 0, 1, ...", lower_bound=1, flag_values=options)
    flags.DEFINE_list(
        "batch_sizes", [str(size) for size in LARS_RATES], "examples per step, comma-separated", flag_values=options
    )
    flags.DEFINE_string("out", "runs/large_batches", "folder of the runs", flag_values=options)
    flags.DEFINE_string("data_dir", "data", "folder of the prepared sets", flag_values=options)


COMMAND = cli.Command(__doc__, define_flags, main)

if __name__ == "__main__":
    COMMAND.run()
