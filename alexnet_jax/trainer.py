"""The training loop: steps that never wait for the one before, rows, validations and checkpoints."""

import contextlib
import itertools
import math
from collections.abc import Callable, Generator
from dataclasses import replace
from typing import Any, NamedTuple, NoReturn

import jax
import numpy as np
import optax
from jax.sharding import PartitionSpec as P
from jaxtyping import Float32, Int32, Int64

from alexnet_jax.augment import COLOUR_NOISE
from alexnet_jax.data.dataset import Dataset
from alexnet_jax.data.loader import Loader
from alexnet_jax.data.splits import Order
from alexnet_jax.evaluation import Evaluator, make_eval_fn
from alexnet_jax.inference.analysis import confusion
from alexnet_jax.inference.pictures import confusion_sheet, kernel_sheet
from alexnet_jax.optimizer import Schedule
from alexnet_jax.run.checkpoint import Checkpoints
from alexnet_jax.run.clock import Clock, SpeedMeter
from alexnet_jax.run.diagnostics import DeadNetwork, label_entropy
from alexnet_jax.run.intervals import Intervals, Progress
from alexnet_jax.run.metrics import OF_EMA, MetricSums, Row
from alexnet_jax.run.param_stats import ParamStatsMeter
from alexnet_jax.run.profile import Profiler
from alexnet_jax.run.recorder import Recorder
from alexnet_jax.scores import Score
from alexnet_jax.step import ImageStats, Metrics, Setup, StepHparams, TrainState, make_nonfinite_count, make_train_step
from alexnet_jax.system.errors import Diverged
from alexnet_jax.system.signals import RESUME_STATUS, Interrupted, Interruption
from alexnet_jax.system.watchdog import Watchdog

SHOWN_CLASSES = 100  # the most classes whose confusions are drawn for TensorBoard


class _Pending(NamedTuple):
    """A step that the devices still work on."""

    step: int
    rate: float
    metrics: Metrics
    examples: Int64[np.ndarray, "batch"]
    vote: jax.Array | None


class Trainer:
    """The loop and what it needs. It never waits for the step it has just started: metrics are read one step late."""

    def __init__(
        self,
        setup: Setup,
        dataset: Dataset,
        checkpoints: Checkpoints,
        recorder: Recorder,
        intervals: Intervals,
        interruption: Interruption,
        watchdog: Watchdog,
        clock: Clock,
    ):
        config, self._clock = setup.config, clock
        self._setup, self._dataset, self._intervals, self._watchdog = setup, dataset, intervals, watchdog
        self._checkpoints, self._recorder, self._interruption = checkpoints, recorder, interruption
        self._schedule = Schedule(config, tuple(setup.shapes), intervals.examples, intervals.total_steps)
        self._train_step = make_train_step(setup)
        self._evaluator = Evaluator(setup.mesh, config.batch_size)
        self._eval_fn = make_eval_fn(setup, dataset.mean)
        used = ("train", "validation") if intervals.validates else ("train",)
        self._loaders = {name: Loader(setup.mesh, dataset.splits[name], config.data_on_device) for name in used}
        self._count_nonfinite = make_nonfinite_count(setup)
        self._param_stats = ParamStatsMeter(setup)
        self._speed = SpeedMeter(clock, config.batch_size)
        self._profiler = Profiler(config, clock, recorder.say, silent=recorder.silent)
        self._vote = setup.mesh.vote() if jax.process_count() > 1 else None
        self._saved: int | None = None  # the step of the last checkpoint of this start
        self._dead = DeadNetwork(label_entropy(dataset.splits["train"].labels), len(dataset.classes))

    def run(self, state: TrainState, progress: Progress) -> None:
        """Trains from `progress.step` to the end.

        Raises:
            Diverged: the loss or a parameter is no longer finite.
            Interrupted: a signal asked for it; the state of the last step is saved.
        """
        if progress.validation_due:
            progress = self._pause(state, progress)
        self._profiler.begin(progress.step)
        self._clock.enter("compiling")
        hparams = _OnDevices(self._setup.mesh.put)
        stats = ImageStats(self._eval_fn.mean, self._setup.mesh.put(self._dataset.colours, P()))
        pending = None
        closing, guard = contextlib.closing(self._batches(progress.step)), jax.transfer_guard("disallow")
        with self._profiler as profiler, closing as batches, guard:
            for batch, examples in batches:
                arguments = state, batch, hparams(self.hparams_at(progress)), stats
                state, metrics = profiler.step(progress.step + 1, self._train_step, *arguments)
                rate = self._schedule.rate(progress.step, progress.plateau)
                progress, stopping = self._read(pending, progress)
                progress = replace(progress, step=progress.step + 1)
                pending = _Pending(progress.step, rate, metrics, examples, self._ask())
                if self._intervals.pauses_after(progress.step):
                    (progress, voted), pending = self._read(pending, progress), None
                    progress, stopping = self._pause(state, progress), stopping or voted
                if self._stops(stopping) and progress.step < self._intervals.total_steps:
                    self._stop(state, self._read(pending, progress)[0])
            self._clock.enter("saving")  # until all is on the disk

    def _batches(self, first: int) -> Generator[tuple[Any, Int64[np.ndarray, "batch"]]]:
        """The batches of all steps from `first` on, each with the numbers of its examples."""
        loader, config = self._loaders["train"], self._setup.config
        order = Order(config.seed, len(loader.split), config.batch_size)
        ahead, shown = itertools.tee(map(order.step, range(first, self._intervals.total_steps)))
        with contextlib.closing(loader.batches(ahead)) as batches:
            yield from self._watchdog.steps(zip(batches, shown, strict=True), first + 1)

    def hparams_at(self, progress: Progress) -> StepHparams:
        """The learning rates and the colour noise of the step to come, on the host."""
        noisy = self._intervals.epoch(progress.step) < self._setup.config.colour_noise_epochs
        rates = self._schedule.rates(progress.step, progress.plateau)
        return StepHparams(rates, COLOUR_NOISE if noisy else 0.0)  # pyright: ignore[reportArgumentType]

    def _ask(self) -> jax.Array | None:
        """With several processes: a vote on whether any of them was asked to stop, counted on the devices."""
        return self._vote(bool(self._interruption.requested)) if self._vote else None

    def _stops(self, voted: bool) -> bool:
        """A single process stops now. Several stop one step later, after the vote."""
        return voted if self._vote else bool(self._interruption.requested)

    def _read(self, pending: _Pending | None, progress: Progress) -> tuple[Progress, bool]:
        """Waits for a step, and records it. Returns the progress with its metrics, and whether the vote was to stop."""
        if pending is None:
            return progress, False
        fetch = self._setup.mesh.fetch
        stopping = pending.vote is not None and bool(fetch(pending.vote, P()))
        loss, top1_error, top5_error = (float(value) for value in fetch(pending.metrics, P()))
        if not math.isfinite(loss):
            raise self._diverged(pending.step, f"the loss is {loss}")
        if self._clock.phase == "training":
            self._speed.count()
        self._clock.enter("training")  # the first step of this start has compiled
        self._recorder.examples(pending.step, pending.examples)
        sums = progress.sums.plus(loss, top1_error, top5_error)
        if self._intervals.logs(pending.step):
            self._write_row(pending, sums)
            sums = MetricSums()
        self._recorder.progress(pending.step, loss, top1_error, pending.rate)
        return replace(progress, sums=sums), stopping

    def _write_row(self, pending: _Pending, sums: MetricSums) -> None:
        """The row of training metrics that a step completes."""
        loss, top1_error, top5_error = sums.means()
        row = Row(
            step=pending.step,
            epoch=self._intervals.epoch(pending.step),
            split="train",
            loss=loss,
            top1_error=top1_error,
            top5_error=top5_error,
            learning_rate=pending.rate,
            images_per_second=self._speed.lap(),
            examples=sums.steps * self._setup.config.batch_size,
            time=round(self._clock.now(), 3),
            seconds=round(self._clock.training, 3),
        )
        self._recorder.write(row)
        if warning := self._dead.warning(pending.step, row.loss):
            self._recorder.say(warning)

    def _pause(self, state: TrainState, progress: Progress) -> Progress:
        """Validation, then checkpoint, where the intervals say."""
        error, best = None, progress.plateau.best_error
        if self._intervals.validates_after(progress.step):
            try:
                with self._clock.during("validating"):
                    progress, error = self._validate(state, progress)
            except Interrupted:
                self._stop(state, replace(progress, validation_due=True))
        if self._intervals.saves_after(progress.step) or (error is not None and error < best):
            self._save(state, progress, error)
        return progress

    def _validate(self, state: TrainState, progress: Progress) -> tuple[Progress, float]:
        """Top-1 error in percent on the validation split, recorded and shown to the schedule."""
        step, config = progress.step, self._setup.config
        score, seconds, ema = self._judge(state, step)
        self._watchdog.watch("statistics", step)
        self._recorder.write(
            Row(
                step=step,
                epoch=self._intervals.epoch(step),
                split="validation",
                loss=score.loss,
                top1_error=score.top1_error,
                top5_error=score.top5_error,
                learning_rate=self._schedule.rate(step - 1, progress.plateau),
                images_per_second=score.examples / seconds,
                examples=score.examples,
                time=round(self._clock.now(), 3),
                seconds=round(self._clock.training, 3),
                magnitudes=self._param_stats(state, self._schedule.rates(step - 1, progress.plateau)),
                ema=ema and {name: getattr(ema, name) for name in OF_EMA},
            )
        )
        max_drops = config.max_drops if config.schedule == "plateau" else 0
        plateau = progress.plateau.after(score.top1_error, patience=config.patience, max_drops=max_drops)
        if plateau.drops > progress.plateau.drops:
            rate = self._schedule.rate(step, plateau)
            self._recorder.say(f"no better in {config.patience} validations: learning rate {rate:g} from step {step + 1}")
        return replace(progress, plateau=plateau, validation_due=False), score.top1_error

    def _judge(self, state: TrainState, step: int) -> tuple[Score, float, Score | None]:
        """The score on the validation split, the seconds that it took, and with --ema the score of the averaged weights.

        Raises Interrupted.
        """
        loader, watch, judged = self._loaders["validation"], self._watchdog.watch, itertools.count()
        averaged = optax.tree.get(state.optimizer, "ema") if self._setup.config.ema else None
        batches = math.ceil(len(loader.split) / self._setup.config.batch_size) * (1 if averaged is None else 2)
        began = self._clock.spent("validating")
        watch("reading", step)

        def stop() -> object:
            """Several processes finish a validation: none of them may leave it alone."""
            watch("validation", step)
            self._recorder.validating(next(judged) / batches)
            return not self._vote and self._interruption.requested

        last = step == self._intervals.total_steps and self._setup.classes <= SHOWN_CLASSES
        score, logs = self._evaluator([(self._eval_fn, state.params)], loader, stop=stop, keep=last)
        seconds = self._clock.spent("validating") - began
        ema = self._evaluator([(self._eval_fn, averaged)], loader, stop=stop)[0] if averaged is not None else None
        self._show(state, step, loader.split.labels, logs)
        return score, seconds, ema

    def _show(
        self, state: TrainState, step: int, labels: Int32[np.ndarray, "n"], logs: Float32[np.ndarray, "n classes"] | None
    ) -> None:
        """Pictures for TensorBoard: the kernels of the first layer, and at the end the confusions of classes."""
        layer = next(iter(self._setup.shapes))
        kernel = self._setup.mesh.fetch(state.params[layer]["kernel"], self._setup.specs[layer]["kernel"])
        if self._recorder.silent:
            return
        self._recorder.picture(f"train/{layer}_kernels", kernel_sheet(kernel), step)
        if logs is not None:
            counts = confusion(labels, logs.argmax(axis=1), self._setup.classes)
            self._recorder.picture("validation/confusions", confusion_sheet(counts), step)

    def _save(self, state: TrainState, progress: Progress, error: float | None) -> None:
        self._watchdog.watch("checkpoint", progress.step)
        with self._clock.during("saving"):
            if self._setup.mesh.fetch(self._count_nonfinite(state.params), P()):
                raise self._diverged(progress.step, "a parameter is not finite")
            host = replace(progress, seconds=self._clock.training).as_dict()
            self._checkpoints.save(self._setup, state, host, error)
            self._recorder.saved(progress.step)
        self._saved = progress.step

    def _stop(self, state: TrainState, progress: Progress) -> NoReturn:
        """Saves what is not, and raises Interrupted."""
        self._clock.enter("saving")
        if progress.validation_due or self._saved != progress.step:
            self._save(state, progress, None)
        why = self._interruption.requested or "a signal to another process"
        saved = f"{why}: stopped after step {progress.step}, which is saved"
        raise Interrupted(f"{saved}; rerun the same command to resume (exit status {RESUME_STATUS})")

    def _diverged(self, step: int, what: str) -> Diverged:
        rate = self._setup.config.learning_rate
        return Diverged(f"step {step}: {what}; {self._checkpoints.kept()}. Lower --learning_rate, which was {rate:g}")


class _OnDevices:
    """Puts hyper-parameters on the devices when they change: seldom, but for warm-up and the polynomial schedule."""

    def __init__(self, put: Callable[[Any, P], Any]):
        self._put = put
        self._host: StepHparams | None = None
        self._device: Any = None

    def __call__(self, hparams: StepHparams) -> Any:
        if hparams != self._host:
            self._host, self._device = hparams, self._put(jax.tree.map(np.float32, hparams), P())
        return self._device
