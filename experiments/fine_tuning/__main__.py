"""Fine-tuning against training from scratch, at equal epochs, on the test split.

    python -m experiments.fine_tuning --init=runs/pretrained --seeds=3 --data_dir=data

`--init` is the run that `python -m experiments.fine_tuning.weights` makes. Unfinished runs are resumed, finished ones are
kept. The record and its figure go to experiments/results/fine_tuning.
"""

import statistics
from pathlib import Path
from typing import Any

import matplotlib
from absl import flags
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from alexnet_jax.figures.style import PALETTE, save_figure
from alexnet_jax.run.metrics import read_rows
from alexnet_jax.run.workdir import read_config
from alexnet_jax.system import cli
from alexnet_jax.system.files import read_json, write_json
from experiments.claims.estimate import unpaired
from experiments.claims.runs import Run, provenance_of, train_and_score

FOLDER = Path(__file__).parent
RESULTS = FOLDER.parent / "results" / "fine_tuning"
ARMS = dict(zip(("scratch", "frozen", "fine_tuned"), PALETTE, strict=False))  # flag files, and their colours in the figure
VIEWS = (1, 10)
SCORES = ("top1_error", "top5_error", "loss")


def run_arms(seeds: int, init: Path, out: Path, data_dir: str) -> dict[str, dict[str, Any]]:
    """Runs what is missing. For each arm 'curve' is the epochs and losses of each seed, '1' and '10' the scores by views."""
    arms: dict[str, dict[str, Any]] = {arm: {"1": [], "10": [], "curve": []} for arm in ARMS}
    for seed in range(seeds):
        for arm, results in arms.items():
            workdir = out / arm / f"seed{seed}"
            words = [f"--data_dir={data_dir}", f"--seed={seed}", *([] if arm == "scratch" else [f"--init={init}"])]
            for views in VIEWS:
                score = train_and_score(Run(FOLDER / f"{arm}.cfg", workdir, words, views))
                results[str(views)].append({name: score[name] for name in SCORES})
            rows = [row for row in read_rows(workdir) if row["split"] == "train"]
            results["curve"].append([(row["epoch"], row["loss"]) for row in rows])
    return arms


def gains(arms: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Each arm's gain over scratch in points of top-1 error, by views, with the ends of its interval at 90 %."""

    def errors(arm: str, views: int) -> list[float]:
        return [score["top1_error"] for score in arms[arm][str(views)]]

    found: dict[str, Any] = {arm: {} for arm in ARMS if arm != "scratch"}
    for arm, by_views in found.items():
        for views in VIEWS:
            gain = unpaired(errors(arm, views), errors("scratch", views))
            by_views[str(views)] = dict(zip(("effect", "low", "high"), (gain.effect, *gain.interval()), strict=True))
    return found


def draw(arms: dict[str, dict[str, Any]]) -> Figure:
    """Training loss over epochs, and the test error of each seed with one view and with ten."""
    figure, (curves, errors) = plt.subplots(1, 2, figsize=(9.5, 3.8), layout="constrained")
    for place, (arm, colour) in enumerate(ARMS.items()):
        label = arm.replace("_", " ")
        for curve in arms[arm]["curve"]:
            curves.plot(*zip(*curve, strict=True), color=colour, linewidth=1, alpha=0.8, label=label)
            label = "_"  # one legend entry for all seeds
        for offset, views in zip((-0.15, 0.15), VIEWS, strict=True):
            seen = [score["top1_error"] for score in arms[arm][str(views)]]
            errors.plot([place + offset] * len(seen), seen, "o", color=colour, fillstyle="full" if views == 1 else "none")
            mean = statistics.mean(seen)
            errors.annotate(f"{mean:.1f}", (place + offset, max(seen)), (0, 6), textcoords="offset points", ha="center")
    curves.set(xlabel="epoch", ylabel="training loss (nats)", ylim=(0, None))
    curves.legend(frameon=False)
    errors.set_xticks(range(len(ARMS)), [arm.replace("_", " ") for arm in ARMS])
    errors.set(xlim=(-0.5, len(ARMS) - 0.5), ylim=(0, 100), ylabel="top-1 error on test (%)")
    errors.set_title("every seed, and the mean\nfilled: centre crop, open: ten views", fontsize=10)
    for axis in (curves, errors):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="0.9")
    return figure


def main(options: flags.FlagValues) -> None:
    """The command line."""
    init, out = Path(options.init).absolute(), Path(options.out).absolute()
    read_config(str(init))  # refuse a wrong --init before scratch is trained
    arms = run_arms(options.seeds, init, out, str(Path(options.data_dir).absolute()))
    workdirs = [out / arm / f"seed{seed}" for seed in range(options.seeds) for arm in ARMS]
    record = {
        "seeds": list(range(options.seeds)), "weights": read_json(init / "config.json")["dataset"]["fingerprint"],
        "against_scratch": gains(arms), "arms": arms,
        "command": f"python -m experiments.fine_tuning --init=runs/pretrained --seeds={options.seeds}",
        **provenance_of(workdirs),
    }  # fmt: skip
    RESULTS.mkdir(parents=True, exist_ok=True)
    write_json(RESULTS / "fine_tuning.json", record, indent=None)
    matplotlib.use("agg")
    print(save_figure(draw(arms), RESULTS, "fine_tuning"))


def define_flags(options: flags.FlagValues) -> None:
    """The flags of this command."""
    flags.DEFINE_string(
        "init", None, "folder of the run that experiments.fine_tuning.weights made", required=True, flag_values=options
    )
    flags.DEFINE_integer("seeds", 3, "runs of each arm, with the seeds 0, 1, ...", lower_bound=2, flag_values=options)
    flags.DEFINE_string("out", "runs/fine_tuning", "folder of the runs", flag_values=options)
    flags.DEFINE_string("data_dir", "data", "folder of the prepared sets", flag_values=options)


COMMAND = cli.Command(__doc__, define_flags, main)

if __name__ == "__main__":
    COMMAND.run()
