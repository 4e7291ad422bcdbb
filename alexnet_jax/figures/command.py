"""What `figures` does: draws the figures of a run into its folder figures/, each as PNG and SVG."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from absl import flags
from matplotlib.figure import Figure

from alexnet_jax.architectures import ARCHITECTURES
from alexnet_jax.config import Config, parsed
from alexnet_jax.data.dataset import Dataset
from alexnet_jax.figures import ALL, FIGURE_SUFFIXES, OF_IMAGES, OF_METRICS, OF_PROFILE
from alexnet_jax.figures.architecture import draw_architecture
from alexnet_jax.figures.confusion import draw_confusion
from alexnet_jax.figures.curves import Rows, draw_curves, draw_magnitudes, draw_training_error, run_labels, unfinished
from alexnet_jax.figures.examples import draw_nearest, draw_predictions
from alexnet_jax.figures.kernels import draw_activations, draw_kernels
from alexnet_jax.figures.layer_times import draw_layer_times
from alexnet_jax.figures.style import RIGHT_MARK, WRONG_MARK, draw_absence, save_figure, write_figure
from alexnet_jax.inference import analysis
from alexnet_jax.inference.predictor import Features, Trained, load_trained
from alexnet_jax.run.checkpoint import Checkpoints
from alexnet_jax.run.flags import check_workdirs
from alexnet_jax.run.metrics import read_rows
from alexnet_jax.run.trace import FOLDER
from alexnet_jax.run.workdir import read_config
from alexnet_jax.system import runtime
from alexnet_jax.system.errors import UserError
from alexnet_jax.system.files import check_output

SHOWN = 4  # right images, and as many wrong ones
QUERIES = 5  # as in Figure 4
MAPPED = 3  # images whose activations are drawn
KERNELS = "conv1_kernels"

Named = tuple[str, Figure]


def read_metrics(config: Config, options: flags.FlagValues) -> Rows:
    """The rows of a run.

    Raises:
        UserError: there are none, or --only names magnitudes and no row has them.
    """
    rows = read_rows(Path(config.workdir))
    if not rows:
        raise UserError(
            f"--workdir={config.workdir} has no metrics yet: train longer than --log_every={config.log_every} steps, or "
            f"choose others than {', '.join(OF_METRICS)} with --only"
        )
    if options["only"].present and "magnitudes" in options.only and not any("magnitudes" in row for row in rows):
        raise UserError(
            f"--workdir={config.workdir} has no magnitudes in its metrics: no validation, or one by an earlier version; "
            "leave them out of --only"
        )
    return rows


def check_folder(config: Config) -> Path:
    """The folder of a run's figures. Raises UserError if it cannot be made, or a figure in it cannot be replaced."""
    folder = Path(config.workdir) / "figures"
    if os.path.lexists(folder) and not folder.is_dir():
        raise UserError(f"--workdir={config.workdir}: {folder} is not a folder: move it away")
    old = [path for path in folder.glob("*") if path.suffix in FIGURE_SUFFIXES]
    for path in (folder / "curves.png" if folder.is_dir() else folder, *old):
        check_output(f"--workdir={config.workdir}: {path}", path)
    return folder


def has_checkpoint(config: Config) -> bool:
    """Whether a checkpoint of the run is complete."""
    with Checkpoints(Path(config.workdir), keep=config.keep, writable=False) as checkpoints:
        return bool(checkpoints.steps())


def of_images(options: flags.FlagValues, trained: Trained, dataset: Dataset, layer: Features | None) -> Iterator[Named]:
    """The figures that look at images. `layer`: the one whose activations are drawn, if they are wanted."""
    judged, seed = analysis.judge(trained, dataset.split(options.split)), options.sample_seed
    split, which = judged.split, f"{options.split} split, {trained.title}"
    if "predictions" in options.only:
        shown = analysis.guessed(trained, judged, analysis.right_and_wrong(judged, SHOWN, seed))
        right = int((judged.guesses == split.labels).sum())
        title = f"chosen at random from the {right} right and the {len(split) - right} wrong of the {which}"
        title += f"\n{RIGHT_MARK} hatched: the right class, as above; {WRONG_MARK} a wrong first guess"
        yield "predictions", draw_predictions(shown, title)
    if "nearest" in options.only:
        queries = analysis.neighbours(trained, judged, analysis.sample(split, QUERIES, seed), dataset.split("train"))
        same = f"{RIGHT_MARK} the same class, {WRONG_MARK} another"
        title = f"nearest training images by {analysis.last_hidden(trained)} (place, distance): {same}\n{which}"
        yield "nearest", draw_nearest(queries, title)
    if "confusion" in options.only:
        counts = analysis.confusion(split.labels, judged.guesses, len(trained.classes))
        title = f"{judged.score.top1_error:.1f} % top-1 error, {which}"
        yield "confusion", draw_confusion(counts, trained.classes, title)
    if layer is not None:
        images = split.read(analysis.sample(split, MAPPED, seed)).images
        title, towers = f"activations of {layer.layer}, {trained.title}", trained.config.table().towers
        yield f"activations_{layer.layer}", draw_activations(list(images), layer(images), towers, title)


def draw(options: flags.FlagValues, config: Config, rows: Rows) -> Iterator[Named]:
    """The figures of one run. Raises UserError before the first one if something is missing."""
    title, wanted = f"{config.architecture} on {config.dataset}, seed {config.seed}", set(options.only)
    of_network = [name for name in ALL if name in wanted.difference(OF_METRICS, OF_PROFILE)]
    chosen = options["only"].present or options["step"].present
    absent = bool(of_network) and not chosen and not has_checkpoint(config)
    trained = dataset = layer = None
    if of_network and not absent:
        trained = load_trained(config.workdir, options.step, batch_size=options.batch_size)
    if trained is not None and wanted & set(OF_IMAGES):
        dataset = trained.data(options.data_dir)
        dataset.split(options.split)  # raises if there is none
        layer = Features(trained, options.layer, "layer") if "activations" in wanted else None
    if "curves" in wanted:
        yield "curves", draw_curves(rows, title, config)
    if "magnitudes" in wanted:
        yield "magnitudes", draw_magnitudes(rows, f"magnitudes, {title}")
    traces = Path(config.workdir) / FOLDER
    if "layer_times" in wanted and (options["only"].present or traces.is_dir()):
        yield "layer_times", draw_layer_times(traces, config.table(), title)
    if trained is not None and "kernels" in wanted:
        kernel = np.asarray(trained.params["conv1"]["kernel"])
        yield KERNELS, draw_kernels(kernel, f"conv1 kernels, {trained.title}")
    if trained is not None and dataset is not None:
        yield from of_images(options, trained, dataset, layer)
    stems = {"kernels": KERNELS, "activations": f"activations_{options.layer}"}
    for name in of_network if absent else ():
        yield stems.get(name, name), draw_absence(f"{name}, {title}", "the run has no finished checkpoint yet")


def draw_table(options: flags.FlagValues) -> None:
    """Figure 2 of a layer table. Raises UserError on a flag that needs a run, or if the file cannot be written."""
    for name in ("only", "layer", "split", "step", "data_dir", "sample_seed"):
        if options[name].present:
            raise UserError(
                f"--{name} is about a run, and --architecture draws a table: add --workdir, or leave --{name} out"
            )
    out = Path(options.out or f"{options.architecture}.png")
    check_output(f"--out={out}", out, FIGURE_SUFFIXES)
    matplotlib.use("agg")
    table = ARCHITECTURES[options.architecture]
    write_figure(draw_architecture(table, classes=options.classes), out)
    print(out)


def check_alone(options: flags.FlagValues, configs: Sequence[Config]) -> None:
    """Raises UserError on a flag that is about a table, or contradicts a run."""
    for name in ("out", "classes"):
        if options[name].present:
            raise UserError(f"--{name} needs --architecture without --workdir: a run has its own folder and classes")
    for config in configs:
        if options["architecture"].present and options.architecture != config.architecture:
            raise UserError(
                f"--architecture={options.architecture}, and --workdir={config.workdir} is a run of {config.architecture}: "
                "leave --workdir out to draw the table, or --architecture to draw the run"
            )


def main(options: flags.FlagValues) -> None:
    """The command line."""
    if options["architecture"].present and not options.workdir:
        draw_table(options)
        return
    check_workdirs(options.workdir, "compare several")
    if not options.only or len(set(options.only)) < len(options.only):
        raise UserError(f"--only={','.join(options.only)} names no figure, or one of them twice")
    if unknown := sorted(set(options.only) - set(ALL)):
        raise UserError(f"--only={','.join(unknown)}: no such figure; there are {', '.join(ALL)}")
    configs = [read_config(workdir) for workdir in options.workdir]
    check_alone(options, configs)
    folders = [check_folder(config) for config in configs]
    needs_rows = set(options.only) & set(OF_METRICS)
    rows = [read_metrics(config, options) if needs_rows else [] for config in configs]
    runtime.start(**parsed(options, ("host_devices",)))
    matplotlib.use("agg")
    for config, folder, mine in zip(configs, folders, rows, strict=True):
        for name, figure in draw(options, config, mine):
            print(save_figure(figure, folder, name), flush=True)
    if "training_error" in options.only:
        progress = [unfinished(mine, config) for mine, config in zip(rows, configs, strict=True)]
        labels = [", ".join(filter(None, pair)) for pair in zip(run_labels(configs), progress, strict=True)]
        runs = dict(zip(labels, rows, strict=True))
        print(save_figure(draw_training_error(runs), folders[0], "training_error"))
