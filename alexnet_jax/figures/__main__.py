"""Draws what a run has learned into its folder figures/, each figure as PNG and SVG.

python -m alexnet_jax.figures --workdir=W [--workdir=W2 ...] [--only=curves,kernels ...] [--layer=conv1] [--split=test]
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from absl import flags
from matplotlib.figure import Figure

from alexnet_jax.config import Config
from alexnet_jax.data.dataset import Dataset
from alexnet_jax.figures import (
    draw_activations,
    draw_confusion,
    draw_curves,
    draw_kernels,
    draw_magnitudes,
    draw_nearest,
    draw_predictions,
    draw_training_error,
    run_labels,
    save_figure,
)
from alexnet_jax.figures.curves import Rows
from alexnet_jax.inference.analysis import (
    confusion,
    guessed,
    judge,
    last_hidden,
    neighbours,
    open_data,
    right_and_wrong,
    sample,
)
from alexnet_jax.inference.flags import define_shown_runs
from alexnet_jax.inference.predictor import Features, Trained, load_trained
from alexnet_jax.run.metrics import read_rows
from alexnet_jax.run.workdir import read_config
from alexnet_jax.system import cli, runtime
from alexnet_jax.system.errors import UserError

OF_RECORD = ("curves", "training_error", "magnitudes")
OF_IMAGES = ("predictions", "nearest", "confusion", "activations")
ALL = (*OF_RECORD, "kernels", *OF_IMAGES)
SHOWN = 4  # images that are right, and as many that are wrong
QUERIES = 5  # as in Figure 4
MAPPED = 3  # images whose activations are drawn

Named = tuple[str, Figure]


def recorded(config: Config, wanted: Sequence[str], all_wanted: bool) -> Rows:
    """The rows of a run.

    Raises:
        UserError: there are none, or magnitudes were asked for by name and none of the rows has them.
    """
    rows = read_rows(Path(config.workdir))
    if not rows:
        raise UserError(
            f"--workdir={config.workdir} has no metrics yet: train longer than --log_every={config.log_every} steps, or "
            f"choose others than {', '.join(OF_RECORD)} with --only"
        )
    if "magnitudes" in wanted and not any("magnitudes" in row for row in rows):
        why = (
            f"--workdir={config.workdir} has no magnitudes in its metrics: it was never validated, or by an earlier version"
        )
        if not all_wanted:
            raise UserError(f"{why}; leave them out of --only")
        print(f"{why}; that figure is left out", file=sys.stderr)
    return rows


def of_record(rows: Rows, title: str, wanted: Sequence[str]) -> Iterator[Named]:
    """The figures of one run's metrics."""
    if "curves" in wanted:
        yield "curves", draw_curves(rows, title)
    if "magnitudes" in wanted and any("magnitudes" in row for row in rows):
        yield "magnitudes", draw_magnitudes(rows, f"magnitudes, {title}")


def of_images(
    trained: Trained, dataset: Dataset, split: str, wanted: Sequence[str], activations: Features | None, seed: int
) -> Iterator[Named]:
    """The figures that look at images. `activations`: of the layer to draw, where it is wanted."""
    judged = judge(trained, dataset.split(split))
    words = f"{split} split, {trained.title}"
    chosen = right_and_wrong(judged, SHOWN, seed)
    if "predictions" in wanted:
        right = int((judged.guesses == judged.split.labels).sum())
        about = f"chosen at random from the {right} right and the {len(judged.split) - right} wrong of the {words}"
        yield "predictions", draw_predictions(guessed(trained, judged, chosen), about)
    if "nearest" in wanted:
        queries = neighbours(trained, judged, sample(judged.split, QUERIES, seed), dataset.split("train"))
        yield (
            "nearest",
            draw_nearest(queries, f"nearest training images by {last_hidden(trained)} (place, distance)\n{words}"),
        )
    if "confusion" in wanted:
        counts = confusion(judged.split.labels, judged.guesses, len(trained.classes))
        title = f"{judged.score.top1_error:.1f} % top-1 error, {words}"
        yield "confusion", draw_confusion(counts, trained.classes, title)
    if activations is not None:
        images = judged.split.read(sample(judged.split, MAPPED, seed)).images
        title = f"activations of {activations.layer}, {trained.title}"
        towers = trained.config.table().towers
        yield f"activations_{activations.layer}", draw_activations(list(images), activations(images), towers, title)


def draw(options: flags.FlagValues, workdir: str, wanted: Sequence[str], rows: Rows) -> Iterator[Named]:
    """The figures of one run."""
    config = read_config(workdir)
    title = f"{config.architecture} on {config.dataset}, seed {config.seed}"
    trained = None
    if set(wanted) - set(OF_RECORD):
        trained = load_trained(workdir, options.step, batch_size=options.batch_size)
    dataset = activations = None
    if trained is not None and set(wanted) & set(OF_IMAGES):
        dataset = open_data(trained, options.data_dir)
        dataset.split(options.split)
        activations = Features(trained, options.layer, "layer") if "activations" in wanted else None
    yield from of_record(rows, title, wanted)
    if trained is not None and "kernels" in wanted:
        kernel = np.asarray(trained.params["conv1"]["kernel"])
        yield "conv1_kernels", draw_kernels(kernel, f"conv1 kernels, {title}, step {trained.step}")
    if trained is not None and dataset is not None:
        yield from of_images(trained, dataset, options.split, wanted, activations, options.sample_seed)


def main(options: flags.FlagValues) -> None:
    """The command line."""
    if not options.workdir:
        raise UserError("--workdir is missing: name the folder of a run; repeat it to compare several")
    if unknown := sorted(set(options.only) - set(ALL)):
        raise UserError(f"--only={','.join(unknown)}: no such figure; there are {', '.join(ALL)}")
    configs = [read_config(workdir) for workdir in options.workdir]
    needs_rows = bool(set(options.only) & set(OF_RECORD))
    every = options["only"].using_default_value
    rows = [recorded(config, options.only, every) if needs_rows else [] for config in configs]
    runtime.start(options.host_devices)
    matplotlib.use("agg")
    folder = Path(options.workdir[0]) / "figures"
    try:
        for config, mine in zip(configs, rows, strict=True):
            folder = Path(config.workdir) / "figures"
            for name, figure in draw(options, config.workdir, options.only, mine):
                print(save_figure(figure, folder, name), flush=True)
        if "training_error" in options.only:
            folder = Path(options.workdir[0]) / "figures"
            runs = dict(zip(run_labels(configs), rows, strict=True))
            print(save_figure(draw_training_error(runs), folder, "training_error"))
    except OSError as error:
        raise UserError(f"--workdir={folder.parent}: {folder} cannot be written: {error.strerror or error}") from error


def define_flags(options: flags.FlagValues) -> None:
    """The flags of this command."""
    define_shown_runs(options)
    help = f"figures to draw, comma-separated; {', '.join(OF_RECORD)} and kernels need no images"
    flags.DEFINE_list("only", list(ALL), help, flag_values=options)
    flags.DEFINE_string("layer", "conv1", "layer whose activations are drawn", flag_values=options)


COMMAND = cli.Command(__doc__, define_flags, main)

if __name__ == "__main__":
    COMMAND.run()
