"""Trains a network; the same command resumes it.

python -m alexnet_jax.train --flagfile=experiments/quickstart.cfg --workdir=W [flags]
"""

import contextlib
import itertools
import math
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags
from jax.experimental import multihost_utils
from jax.sharding import PartitionSpec as P
from jaxtyping import Int32, Int64

from alexnet_jax import cli, runtime
from alexnet_jax.augment import COLOUR_NOISE
from alexnet_jax.calendar import Calendar, Progress
from alexnet_jax.checkpoint import Checkpoints
from alexnet_jax.config import Config, define_flags, from_flags
from alexnet_jax.data.dataset import Dataset, open_dataset
from alexnet_jax.data.feed import Feed
from alexnet_jax.data.loader import Order
from alexnet_jax.errors import UserError
from alexnet_jax.evaluate import Evaluator, make_viewer
from alexnet_jax.interrupt import RESUME_STATUS, Interrupted, Interruption
from alexnet_jax.magnitudes import MagnitudeMeter
from alexnet_jax.mesh import make_mesh
from alexnet_jax.metrics import Recorder, Row, Stopwatch, Window
from alexnet_jax.optimizer import Schedule
from alexnet_jax.step import Knobs, Metrics, Model, Pixels, TrainState, make_model, make_nonfinite_count, make_train_step
from alexnet_jax.transfer import transfer, transferred_layers
from alexnet_jax.workdir import locked, open_for_training

DEAD_AFTER_STEPS = 500
DEAD_MARGIN = 0.98  # of the entropy of the labels


class _Started(NamedTuple):
    """A step whose metrics are still on the devices."""

    step: int
    rate: float
    metrics: Metrics
    examples: Int64[np.ndarray, "batch"]
    vote: jax.Array | None


class Trainer:
    """The loop and what it needs. It never waits for the step it has just started: metrics are read one step late."""

    def __init__(
        self,
        model: Model,
        dataset: Dataset,
        checkpoints: Checkpoints,
        recorder: Recorder,
        calendar: Calendar,
        interruption: Interruption,
    ):
        config = model.config
        self._model, self._dataset, self._calendar = model, dataset, calendar
        self._checkpoints, self._recorder, self._interruption = checkpoints, recorder, interruption
        self._schedule = Schedule(config, tuple(model.shapes), calendar.examples, calendar.total_steps)
        self._train_step = make_train_step(model)
        self._evaluator = Evaluator(model.mesh, config.batch_size)
        self._viewer = make_viewer(model, dataset.mean)
        used = ("train", "validation") if calendar.validates else ("train",)
        self._feeds = {name: Feed(model.mesh, dataset.splits[name], config.data_on_device) for name in used}
        self._count_nonfinite = make_nonfinite_count(model)
        self._magnitudes = MagnitudeMeter(model)
        self._watch, self._steps_timed, self._speed = Stopwatch(), 0, 0.0
        self._pending: _Started | None = None
        self._vote = model.mesh.vote() if jax.process_count() > 1 else None
        self._stopping = False
        self._label_entropy = _entropy(dataset.splits["train"].labels)
        self._warned_dead = False

    def run(self, state: TrainState, progress: Progress) -> None:
        """Trains from `progress.step` to the end.

        Raises:
            UserError: the loss is no longer finite.
            Interrupted: a signal asked for it; the state of the last step is saved.
        """
        if progress.validation_due:
            self._pause(state, progress)
        put, calendar = self._model.mesh.put, self._calendar
        order = Order(self._model.config.seed, len(self._feeds["train"].split), self._model.config.batch_size)
        numbers, shown = itertools.tee(map(order.step, range(progress.step, calendar.total_steps)))
        batches = self._feeds["train"].batches(numbers)
        knobs: Knobs | None = None
        knobs_on_device: Any = None
        pixels = Pixels(self._viewer.mean, put(self._dataset.colours, P()))
        with contextlib.closing(batches), jax.transfer_guard("disallow"):
            for batch, examples in zip(batches, shown, strict=True):
                due = self._due(progress)
                if due != knobs:  # seldom, so it costs nothing
                    knobs, knobs_on_device = due, put(jax.tree.map(np.float32, due), P())
                rate = self._schedule.rate(progress.step, progress.plateau)
                state, metrics = self._train_step(state, batch, knobs_on_device, pixels)
                self._note(progress, rate, metrics, examples)
                if calendar.validates_after(progress.step) or calendar.saves_after(progress.step):
                    self._pause(state, progress)
                if self._wants_to_stop() and progress.step < calendar.total_steps:
                    self._stop(state, progress)
        self._flush(progress)

    def _wants_to_stop(self) -> bool:
        """Alone, at once; several processes one step later, when all of them have read that one of them wants to."""
        return self._stopping if self._vote else bool(self._interruption.requested)

    def _stop(self, state: TrainState, progress: Progress) -> None:
        """Saves what the calendar has not, and raises Interrupted."""
        self._flush(progress)
        if progress.validation_due or not self._calendar.saves_after(progress.step):
            self._save(state, progress, None)
        why = self._interruption.requested or "a signal to another process"
        saved = f"{why}: stopped after step {progress.step}, which is saved"
        raise Interrupted(f"{saved}; the same command goes on (exit status {RESUME_STATUS})")

    def _due(self, progress: Progress) -> Knobs:
        """The learning rates and the colour noise of the step to come, on the host."""
        config, step = self._model.config, progress.step
        noise = COLOUR_NOISE if self._calendar.epoch(step) < config.colour_noise_epochs else 0.0
        rates = self._schedule.rates(step, progress.plateau)
        return Knobs(rates, noise)  # pyright: ignore[reportArgumentType]

    def _note(self, progress: Progress, rate: float, metrics: Metrics, examples: Int64[np.ndarray, "batch"]) -> None:
        """Counts the step just started and reads the metrics of the one before it."""
        self._flush(progress)
        progress.step += 1
        vote = self._vote(bool(self._interruption.requested)) if self._vote else None
        self._pending = _Started(progress.step, rate, metrics, examples, vote)

    def _flush(self, progress: Progress) -> None:
        """Reads the metrics that are still on the devices, and writes the row that they complete."""
        if self._pending is None:
            return
        started, self._pending = self._pending, None
        step = started.step
        if started.vote is not None and int(self._model.mesh.fetch(started.vote, P())):
            self._stopping = True
        metrics = self._model.mesh.fetch(started.metrics, P())
        loss, top1, top5 = (float(value) for value in (metrics.loss, metrics.top1, metrics.top5))
        if not math.isfinite(loss):
            raise self._diverged(step, f"the loss is {loss}")
        self._recorder.examples(step, started.examples)
        window = progress.window
        window.add(loss, top1, top5)
        self._steps_timed += 1
        if self._calendar.logs(step):
            batch_size = self._model.config.batch_size
            # A window may have begun before a resume, so its own steps are not what the watch has timed.
            self._speed, self._steps_timed = self._steps_timed * batch_size / self._watch.lap(), 0
            row = Row(
                step=step,
                epoch=self._calendar.epoch(step),
                split="train",
                loss=window.loss / window.steps,
                top1_error=100 * window.top1 / window.steps,
                top5_error=100 * window.top5 / window.steps,
                learning_rate=started.rate,
                images_per_second=self._speed,
                examples=window.steps * batch_size,
            )
            self._recorder.write(row)
            self._warn_if_dead(step, row.loss)
            progress.window = Window()
        self._recorder.progress(step, loss, top1, self._speed)

    def _pause(self, state: TrainState, progress: Progress) -> None:
        """Validation, then checkpoint, where the calendar says."""
        self._flush(progress)
        with self._watch.paused():
            error = None
            if self._calendar.validates_after(progress.step):
                progress.validation_due = True
                try:
                    error = self._validate(state, progress)
                except Interrupted:
                    self._stop(state, progress)
                progress.validation_due = False
            if self._calendar.saves_after(progress.step):
                self._save(state, progress, error)

    def _validate(self, state: TrainState, progress: Progress) -> float:
        """Top-1 error in percent on the validation split, recorded and shown to the schedule."""
        step, config = progress.step, self._model.config
        watch = Stopwatch()
        # Several processes finish a validation: no one of them may leave it alone.
        stop = lambda: not self._vote and self._interruption.requested  # noqa: E731
        score, _ = self._evaluator([(self._viewer, state.params)], self._feeds["validation"], stop=stop)
        row = Row(
            step=step,
            epoch=self._calendar.epoch(step),
            split="validation",
            loss=score.loss,
            top1_error=score.top1_error,
            top5_error=score.top5_error,
            learning_rate=self._schedule.rate(step - 1, progress.plateau),
            images_per_second=score.examples / watch.lap(),
            examples=score.examples,
            magnitudes=self._magnitudes(state, self._schedule.rates(step - 1, progress.plateau)),
        )
        self._recorder.write(row)
        before = progress.plateau
        max_drops = config.max_drops if config.schedule == "plateau" else 0
        progress.plateau = before.after(score.top1_error, patience=config.patience, max_drops=max_drops)
        if progress.plateau.drops > before.drops:
            rate = self._schedule.rate(step, progress.plateau)
            self._recorder.say(f"no better in {config.patience} validations: learning rate {rate:g} from step {step + 1}")
        return score.top1_error

    def _save(self, state: TrainState, progress: Progress, error: float | None) -> None:
        if self._model.mesh.fetch(self._count_nonfinite(state.params), P()):
            raise self._diverged(progress.step, "a parameter is not finite")
        self._checkpoints.save(self._model, state, progress.as_dict(), error)

    def _diverged(self, step: int, what: str) -> UserError:
        steps = self._checkpoints.steps()
        kept = f"checkpoint {steps[-1]} is kept" if steps else "there is no checkpoint yet"
        return UserError(
            f"step {step}: {what}; {kept}. Lower --learning_rate, which was {self._model.config.learning_rate:g}"
        )

    def _warn_if_dead(self, step: int, loss: float) -> None:
        if step < DEAD_AFTER_STEPS or self._warned_dead or loss < DEAD_MARGIN * self._label_entropy:
            return
        self._warned_dead = True
        self._recorder.say(
            f"warning: the network looks dead: after {step} steps the loss {loss:.3f} is still that of guessing from the "
            f"class frequencies ({self._label_entropy:.3f}, ln {len(self._dataset.classes)} = "
            f"{math.log(len(self._dataset.classes)):.3f}). Try --bias_init=0.1 or another --learning_rate"
        )


def _entropy(labels: Int32[np.ndarray, "examples"]) -> float:
    """Loss in nats of a network that knows only how frequent the classes are: ln(classes) where they are balanced."""
    frequencies = np.bincount(labels) / len(labels)
    return float(-sum(p * math.log(p) for p in frequencies if p > 0))


def _opened(config: Config) -> Dataset:
    """The data set. Of several processes the first one may have to prepare it; the others wait."""
    dataset = None if jax.process_index() else open_dataset(config)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("the data set is prepared")
    return dataset or open_dataset(config)


def train(config: Config) -> None:
    """Trains or resumes the run in `config.workdir`, up to the end. Call it in the main thread.

    Raises:
        UserError: bad input, before anything is compiled or overwritten; or the run diverged, or the disk is full.
        Interrupted: SIGTERM or SIGINT; what was done is saved.
    """
    mesh = make_mesh(config.mesh, config.table().towers, config.batch_size, config.spmd)
    if config.batch_size // config.accumulate % mesh.data_size:
        raise UserError(
            f"--accumulate={config.accumulate} parts of --batch_size={config.batch_size} cannot be shared evenly by the "
            f"{mesh.data_size} rows of the mesh"
        )
    dataset = _opened(config)
    model = make_model(config, len(dataset.classes), mesh)
    calendar = Calendar(config, len(dataset.splits["train"]), "validation" in dataset.splits)
    taken = transferred_layers(model) if config.init else []
    with Interruption() as interruption, locked(config.workdir):
        workdir = open_for_training(config, dataset.fingerprint, dataset.classes, dataset.mean)
        with Checkpoints(workdir, keep=config.keep, writable=True) as checkpoints:
            restored = checkpoints.restore_latest(model)
            progress = Progress() if restored is None else Progress.from_dict(restored[1])
            if progress.step < calendar.total_steps:
                checkpoints.check_room(model)
            state = _initial_state(model, taken) if restored is None else restored[0]
            silent = jax.process_index() > 0
            with Recorder(
                workdir,
                resume_step=progress.step,
                total_steps=calendar.total_steps,
                validation_due=progress.validation_due,
                silent=silent,
                log_examples=config.log_examples,
            ) as recorder:
                recorder.say(
                    f"{config.architecture} on {config.dataset}: step {progress.step} of {calendar.total_steps}, "
                    f"mesh {mesh.data_size}x{mesh.tower_size} (data x tower), {config.spmd}, {config.precision}"
                )
                if config.init and restored is None:
                    anew = ", ".join(layer for layer in model.shapes if layer not in taken) or "nothing"
                    recorder.say(f"from {config.init}: {', '.join(taken)}; begins anew: {anew}")
                Trainer(model, dataset, checkpoints, recorder, calendar, interruption).run(state, progress)


def _initial_state(model: Model, taken: list[str]) -> TrainState:
    state = model.initial_state()
    return transfer(model, state, taken) if taken else state


def main(options: flags.FlagValues) -> None:
    """The command line."""
    config = from_flags(options)
    if config.init and not options["mean"].present:
        config = replace(config, mean="own")
    runtime.start(config.host_devices, config.distributed)
    train(config)


COMMAND = cli.Command(__doc__, define_flags, main)

if __name__ == "__main__":
    COMMAND.run()
