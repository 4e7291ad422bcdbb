"""Exact evaluation: every example once, whatever the batch and the mesh; one view or ten; one run or several averaged."""

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.sharding import PartitionSpec as P
from jaxtyping import Float32
from rich.console import Console
from rich.progress import track

from alexnet_jax.augment import views
from alexnet_jax.config import parsed
from alexnet_jax.data.class_map import Questions, match_by_name, own_questions, questions, read_class_map, some
from alexnet_jax.data.dataset import open_dataset
from alexnet_jax.data.loader import Loader
from alexnet_jax.data.splits import Subset, evaluation_order
from alexnet_jax.mesh import TowerMesh, make_mesh
from alexnet_jax.network import Params
from alexnet_jax.run.flags import check_workdirs
from alexnet_jax.run.open import Run, Trained, open_run
from alexnet_jax.run.workdir import Stored, read_stored
from alexnet_jax.scores import Score, as_json, mean_score, readable, score_any, write_predictions, write_results
from alexnet_jax.step import Setup, make_view_step, rank
from alexnet_jax.system import processes, runtime
from alexnet_jax.system.errors import UserError
from alexnet_jax.system.files import check_output
from alexnet_jax.system.signals import Interrupted


@dataclass(frozen=True)
class EvalFn:
    """A network's compiled view step, with the mean image on the devices; the parameters come with each call."""

    view_step: Callable[..., jax.Array]
    mean: jax.Array
    image_size: int
    crop_size: int
    classes: int


EnsembleMember = tuple[EvalFn, Params]  # parameters in the form that the compiled functions take


def make_eval_fn(setup: Setup, mean: Float32[np.ndarray, "size size 3"]) -> EvalFn:
    """Make it once per network: every call compiles anew."""
    mean_there = setup.mesh.put(mean, P())
    return EvalFn(make_view_step(setup), mean_there, setup.config.image_size, setup.config.crop, setup.classes)


def check_images(images: np.ndarray | jax.Array, size: int, axes: tuple[int, ...] = (3, 4)) -> None:
    """Checks one image or several: (size, size, 3) or (count, size, size, 3), or as many `axes` as there may be.

    Raises:
        TypeError: the pixels are not uint8.
        ValueError: the images have another shape.
    """
    if images.dtype != np.uint8:
        raise TypeError(f"expected uint8 pixels, from 0 to 255; found {images.dtype}")
    if images.ndim not in axes or images.shape[-3:] != (size, size, 3):
        wanted = f"RGB images of {size} x {size} pixels, shape (..., {size}, {size}, 3)"
        raise ValueError(f"expected {wanted}; found {images.shape}")


class Evaluator:
    """Evaluates networks on a split. Compiles once; keep it for the next validation."""

    def __init__(self, mesh: TowerMesh, batch_size: int):
        self._mesh = mesh
        self._batch_size = batch_size

        def average(total, one):
            return jnp.logaddexp(total, one)

        def judge(log_probabilities, labels):
            return -jnp.take_along_axis(log_probabilities, labels[:, None], 1)[:, 0], rank(log_probabilities, labels)

        self._average = mesh.compile(average, (P("data"), P("data")), P("data"), donate=(0,))
        self._judge = mesh.compile(judge, (P("data"), P("data")), (P("data"), P("data")))

    def __call__(
        self,
        members: Sequence[EnsembleMember],
        loader: Loader,
        view_count: int = 1,
        *,
        keep: bool = False,
        quiet: bool = True,
        stop: Callable[[], object] = lambda: None,
    ) -> tuple[Score, Float32[np.ndarray, "examples classes"] | None]:
        """The score of the averaged softmax of all members and views, and with `keep` its logarithm for every example.

        Args:
            members: networks on this evaluator's mesh, at least one.
            loader: the examples, at least one.
            view_count: 1 (centre) or 10.
            keep: return the averaged log probabilities.
            quiet: show no progress.
            stop: asked before every batch.

        Raises:
            Interrupted: `stop` said so.
            TypeError: the pixels are not uint8.
            ValueError: there is no network or no example, or the images or labels are not the networks'.
            RuntimeError: the examples judged are not all examples of the split.
        """
        losses, ranks, kept, split = [], [], [], loader.split
        _check(members, split)
        order = list(evaluation_order(len(split), self._batch_size))
        batches = loader.batches(numbers for numbers, _ in order)
        steps = zip(order, batches, strict=True)
        for (_, real), batch in track(steps, "evaluating", len(order), console=Console(stderr=True), disable=quiet):
            if stop():
                raise Interrupted("the evaluation was stopped")
            results, total = self.judge_batch(members, batch, view_count)
            losses.append(results[0][:real])
            ranks.append(results[1][:real])
            if keep:
                kept.append(self._mesh.fetch(total, P("data"))[:real])
        score = mean_score(np.concatenate(losses), np.concatenate(ranks))
        if score.examples != len(split):
            raise RuntimeError(f"judged {score.examples} examples of {len(split)}")
        return score, np.concatenate(kept) if keep else None

    def judge_batch(self, members: Sequence[EnsembleMember], batch: Any, view_count: int) -> tuple[Any, Any]:
        """One batch on the devices: (losses, ranks) as NumPy arrays, and log probabilities left there."""
        images, labels = batch
        total = self.log_probabilities(members, images, view_count)
        return self._mesh.fetch(self._judge(total, labels), P("data")), total

    def log_probabilities(self, members: Sequence[EnsembleMember], images: Any, view_count: int) -> Any:
        """log of the mean softmax over members and views, of one batch on the devices; left there.

        Raises TypeError or ValueError as `check_images`.
        """
        total = None
        weight = -np.log(len(members) * view_count).astype(np.float32)
        for eval_fn, params in members:
            check_images(images, eval_fn.image_size, axes=(4, 5))  # 5 in pmap's form
            for view in views(view_count, eval_fn.image_size, eval_fn.crop_size):
                place = (np.int32(view.top), np.int32(view.left), np.bool_(view.flipped), weight)
                one = eval_fn.view_step(params, images, eval_fn.mean, *self._mesh.put(place, P()))
                total = one if total is None else self._average(total, one)
        return total


def _check(members: Sequence[EnsembleMember], split: Subset) -> None:
    if not members or not len(split):
        raise ValueError(f"expected networks and examples; found {len(members)} and {len(split)}")
    labels, classes = split.labels, min(eval_fn.classes for eval_fn, _ in members)
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"expected labels from 0 to {classes - 1}; found {labels.min()} to {labels.max()}")


def not_finite(*networks: Trained) -> UserError:
    """The error about a network that answers NaN: its parameters are finite, but what it computes is not."""
    which = " or ".join(f"--workdir={network.config.workdir} at step {network.step}" for network in networks)
    return UserError(f"{which} answers with numbers that are not finite: choose an earlier checkpoint with --step")


def _check_same_images(runs: Sequence[Stored], split: str, *, elsewhere: bool) -> None:
    """Raises UserError if the images of a split are not the same ones, prepared alike, for all of these runs.

    `elsewhere`: the images are those of another set, so only how they are prepared and the classes matter.
    """
    first = runs[0]
    fields = ("image_size", "resize") if elsewhere else ("dataset", "image_size", "resize")
    for run in runs:
        differs = [name for name in fields if getattr(run.config, name) != getattr(first.config, name)]
        if not elsewhere and split != "test" and run.config.fold != first.config.fold:
            differs.append("fold")
        same_content = elsewhere or run.fingerprint == first.fingerprint or run.is_imported or first.is_imported
        if differs or not same_content or run.classes != first.classes:
            what = f"--{differs[0]}" if differs else "the content" if not same_content else "the classes"
            raise UserError(
                f"--workdir={run.config.workdir} was trained on other images than --workdir={first.config.workdir}: "
                f"{what} of their data differs"
            )


def ask(run: Run, split: str, dataset: str | None = None, class_map: Path | None = None) -> Questions:
    """The images of a split that the network of a run knows the classes of, with its right answers.

    Args:
        run: the mean image and the preparation stay its own.
        split: 'train', 'validation' or 'test'.
        dataset: another set than the run's own, prepared alike.
        class_map: a file as `read_class_map` takes it. Without it classes are matched by name.

    Raises:
        UserError: the set or the file cannot be read, or the network knows no image's class.
    """
    config = replace(run.config, dataset=dataset or run.config.dataset, fold=None)
    data = open_dataset(config, run.mean) if dataset else run.data()
    examples = data.split(split)
    if class_map:
        answers = read_class_map(class_map, data.classes, run.classes)
    elif dataset:
        answers = match_by_name(data.classes, run.classes)
    else:
        return own_questions(examples, data.classes)
    if not any(answers):
        raise UserError(
            f"--dataset={dataset} has no class of --workdir={config.workdir}: it has {some(data.classes)}; the network has "
            f"{some(run.classes)}: name equal ones in a --class_map"
        )
    asked = questions(examples, data.classes, answers)
    if not len(asked.split):
        raise UserError(f"--split={split}: no image of {data.name} has a class that the network knows: choose another split")
    return asked


def _say_left_out(asked: Questions, why: str) -> None:
    if names := asked.unmatched:
        total = asked.left_out + len(asked.split)
        print(
            f"note: {len(names):,} of {len(asked.classes):,} classes {why}: {some(names)}; "
            f"{asked.left_out:,} of {total:,} images are left out",
            file=sys.stderr,
        )


def _open(options: flags.FlagValues) -> tuple[list[Run], Questions, dict[str, Path]]:
    """The runs on one mesh, the images that they are asked about, and the files to write by their flags.

    Raises UserError on bad input. Nothing is compiled, and nothing but the embedded photographs is written.
    """
    check_workdirs(options.workdir, "average several")
    stored = [read_stored(workdir) for workdir in options.workdir]
    configs = [run.config for run in stored]
    given = [name for name in ("batch_size", "data_dir", "precision", "dataset") if options[name].present]
    machine = parsed(options, ("spmd", "mesh", *given))
    other = machine.pop("dataset", None)
    dataset = None if {config.dataset for config in configs} == {other} else other
    _check_same_images(stored, options.split, elsewhere=dataset is not None)
    suffixes = {"predictions": ".npz", "results": ".csv"}
    outputs = {flag: Path(options[flag].value or "") for flag in suffixes if options[flag].value}
    for flag, path in outputs.items() if processes.is_first() else ():  # it writes them
        check_output(f"--{flag}={path}", path, (suffixes[flag],))
    batch_size = machine.setdefault("batch_size", configs[0].batch_size)
    mesh = make_mesh(machine["mesh"], min(config.table().towers for config in configs), batch_size, options.spmd)
    runs = [open_run(config.workdir, on=mesh, **machine) for config in configs]
    class_map = Path(options.class_map) if options.class_map else None
    # Of each run, as all of their data have to be there; another set is one for all.
    asked, *_ = [ask(run, options.split, dataset, class_map) for run in (runs[:1] if dataset else runs)]
    if processes.is_first():
        _say_left_out(asked, f"are not in --class_map={class_map}" if class_map else "match no class of the network by name")
    return runs, asked, outputs


def main(options: flags.FlagValues) -> None:
    """The command line. Of several processes the first one prints and writes.

    On CPUs its files are those of one process byte for byte. Their last digits differ where XLA sums in another order, as it
    does if a device's share of a batch is a single image.
    """
    runtime.start(**parsed(options, ("host_devices", "distributed")))
    runs, asked, outputs = processes.first_alone(lambda: _open(options))
    processes.check_alike(asked.split.rows.tobytes() + asked.labels.tobytes(), "the images")
    networks = [run.restore(options.step, weights=options.weights, average=options.average) for run in runs]
    members = [(make_eval_fn(network.setup, network.mean), network.params) for network in networks]
    mesh, first, began = runs[0].setup.mesh, processes.is_first(), time.monotonic()
    evaluate, loader = Evaluator(mesh, runs[0].config.batch_size), Loader(mesh, asked.split)
    quiet = not (first and sys.stderr.isatty())
    score, kept = evaluate(members, loader, options.views, keep=bool(outputs) or asked.has_several, quiet=quiet)
    seconds = time.monotonic() - began
    with processes.together():
        if not math.isfinite(score.loss):
            raise not_finite(*networks)
        if kept is not None and asked.has_several:
            score = score_any(kept, asked)
        if kept is not None and first:
            _write(outputs, kept, asked, runs[0].classes)
    if not first:
        return
    steps = [network.step for network in networks]
    if sys.stdout.isatty():
        print(readable(score, options.split, options.views, steps, seconds, [network.which_weights for network in networks]))
    else:
        dataset = options.dataset or runs[0].config.dataset
        averaged = [network.averaged for network in networks] if options.average > 1 else []
        print(as_json(score, dataset, options.split, asked.left_out, options.views, steps, averaged, options.weights))


def _write(outputs: dict[str, Path], kept: Float32[np.ndarray, "examples classes"], asked: Questions, classes: Any) -> None:
    """Writes the files of --predictions and --results."""
    if path := outputs.get("predictions"):
        write_predictions(path, kept, asked.split, classes)
    if path := outputs.get("results"):
        write_results(path, kept, asked, classes)
