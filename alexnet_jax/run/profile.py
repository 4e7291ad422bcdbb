"""Traces some steps of a run for XProf and Perfetto: `--profile=START:STOP`."""

import gzip
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax
from jax.profiler import ProfileOptions, StepTraceAnnotation

from alexnet_jax.config import Config
from alexnet_jax.run.clock import Clock
from alexnet_jax.run.trace import FOLDER, STEP, Trace
from alexnet_jax.system.files import replacing

PERFETTO = "perfetto.json.gz"
_NAMES_IN_KEY = "jax_compilation_cache_include_metadata_in_key"
Result = TypeVar("Result")


class Profiler:
    """Traces the steps that --profile asks for. Use it as a context manager: an unfinished trace is written at its end.

    The folder profile/ of the run has TensorBoard's layout. Only the first process traces, and sees its own devices.
    """

    def __init__(self, config: Config, clock: Clock, say: Callable[[str], None], *, silent: bool):
        """Nothing is traced yet.

        Args:
            config: of the run.
            clock: the writing of a trace counts as saving.
            say: gets a line for a person.
            silent: trace nothing, for all processes but the first.
        """
        self._config, self._clock, self._say = config, clock, say
        self._asked = None if silent else config.profile
        self._folder = Path(config.workdir) / FOLDER
        self._names_in_key = bool(getattr(jax.config, _NAMES_IN_KEY))
        self._first: int | None = None  # step of the trace under way
        self._last = 0

    def __enter__(self) -> "Profiler":
        # A program from the cache has the names that it was compiled with, perhaps by an earlier version.
        jax.config.update(_NAMES_IN_KEY, self._names_in_key or self._asked is not None)
        return self

    def __exit__(self, *_: object) -> None:
        jax.config.update(_NAMES_IN_KEY, self._names_in_key)
        if self._first is not None:
            self._end()

    def begin(self, done: int) -> None:
        """A start of the run goes on after `done` steps. Says so if some of the steps to trace are among them."""
        asked = self._asked
        if asked is not None and done > asked.start:
            left = f"steps {done + 1} to {asked.stop} are traced" if done < asked.stop else "nothing is traced"
            self._say(f"--profile={asked}: the run is at step {done} already; {left}")
            self._asked = asked if done < asked.stop else None

    def step(self, step: int, function: Callable[..., Result], state: Any, *arguments: Any) -> Result:
        """`function(state, *arguments)`, which is training step `step`, counted from 1.

        A trace begins before its first step and ends after its last one. Both wait for the devices.
        """
        asked = self._asked
        if asked is not None and self._first is None and asked.start < step <= asked.stop:
            jax.block_until_ready(state)
            self._start(step)
        with StepTraceAnnotation(STEP, step_num=step):
            result = function(state, *arguments)
        if asked is not None and self._first is not None:
            self._last = step
            if step == asked.stop:
                jax.block_until_ready(result)
                self._end()
        return result

    def _start(self, step: int) -> None:
        options = ProfileOptions()
        options.python_tracer_level = 0  # every call in Python would hide the rest
        jax.profiler.start_trace(self._folder, profiler_options=options)
        self._first = step

    def _end(self) -> None:
        """Writes the trace, and says how to open it."""
        first, self._first = self._first, None
        with self._clock.during("saving"):
            jax.profiler.stop_trace()
            perfetto = write_perfetto(Trace(self._folder, self._config.table()))
        commands = (["python", "-m", "alexnet_jax.figures", f"--workdir={self._config.workdir}", "--only=layer_times"],
                    ["xprof", f"--logdir={self._folder}"])  # fmt: skip
        draw, show = map(shlex.join, commands)
        self._say(f"steps {first} to {self._last} are traced; the time of each layer: {draw}")
        self._say(f"the trace itself: {show} (pip install xprof), or open {perfetto} at ui.perfetto.dev")


def write_perfetto(trace: Trace) -> Path:
    """The trace for ui.perfetto.dev, with the name of its scope at each operation: 'conv1/MaxPool backward'.

    JAX's own file for Perfetto has the compiler's names.
    """
    (whole,) = trace.path.parent.glob("*.trace.json.gz")
    content = json.loads(gzip.decompress(whole.read_bytes()))
    content.pop("metadata", None)  # Perfetto does not take it
    for event in content["traceEvents"]:
        said = event.get("args", {})
        key = trace.instruction(said.get("hlo_module", ""), said.get("hlo_op", ""), event.get("name", ""))
        if scope := trace.scope(*key):
            event["name"] = str(scope)
    path = trace.path.parent / PERFETTO
    with replacing(path, "wb") as file:
        file.write(gzip.compress(json.dumps(content).encode()))
    return path
