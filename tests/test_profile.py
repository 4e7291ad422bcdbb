"""--profile: a trace in which every layer and every step has its name, and a run that is not changed by it."""

import contextlib
import functools
import gzip
import json
import operator
from typing import NamedTuple

import jax
import matplotlib as mpl
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from networks import constant_rates, run, small_batch, small_config, small_mean, small_setup, tiny_flags
from test_train import reproducible_rows

from alexnet_jax import step, trainer
from alexnet_jax.config import from_dict
from alexnet_jax.figures.layer_times import OTHER, draw_layer_times, times_by_part
from alexnet_jax.run.profile import PERFETTO
from alexnet_jax.run.trace import Instruction, Scope, Trace, scope_of
from alexnet_jax.system.errors import UserError
from alexnet_jax.values import StepRange

mpl.use("agg")
LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")


@pytest.fixture(scope="module")
def traced(data_dir, tmp_path_factory):
    """A run of four steps whose steps 2 and 3 are traced, and what it has said. Its step is compiled for it alone: a program
    that another test has compiled may come from the cache, without the names."""
    workdir = tmp_path_factory.mktemp("profile") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "make_train_step", step.make_train_step)
        result = run("train", *tiny_flags(data_dir, workdir, mesh="1x1", profile="1:3"))
    assert result.returncode == 0, result.stderr
    return workdir, result.stderr


@pytest.fixture(scope="module")
def trace(traced):
    """What was written."""
    return Trace(traced[0] / "profile", small_config().table())


@pytest.mark.slow
def test_every_layer_is_in_the_trace_forward_and_backward(trace):
    seen = {operation.scope for operation in trace.operations()}
    assert {(scope.part, scope.backward) for scope in seen if scope} >= {
        (name, way) for name in LAYERS for way in (False, True)
    }
    assert {scope.part for scope in seen if scope} >= {"augment", "loss", "update"}
    assert seen >= {Scope("conv1", "ResponseNorm", False), Scope("conv1", "MaxPool", True), Scope("fc6", "Dropout", False)}
    times = {part: sum(scopes.values()) for part, scopes in times_by_part(trace).items()}
    assert times[OTHER] < 0.1 * sum(times.values())


@pytest.mark.slow
def test_the_steps_asked_for_are_traced_and_annotated(trace, traced):
    assert list(trace.steps()) == [2, 3]
    said = traced[1].splitlines()
    assert (
        f"steps 2 to 3 are traced; the time of each layer: python -m alexnet_jax.figures --workdir={traced[0]}" in traced[1]
    )
    assert any(line.endswith(f"or open {trace.path.parent / PERFETTO} at ui.perfetto.dev") for line in said)
    assert next(line for line in said if line.startswith("folder")).endswith("tensorboard/, profile/")
    assert not jax.config.jax_compilation_cache_include_metadata_in_key  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.slow
def test_perfetto_shows_scopes_in_place_of_the_compilers_names(trace):
    content = json.loads(gzip.decompress((trace.path.parent / PERFETTO).read_bytes()))
    names = {event.get("name") for event in content["traceEvents"]}
    assert names >= {"conv1", "conv1 backward", "conv2/MaxPool backward", "update"}
    assert "metadata" not in content


@pytest.mark.slow
def test_the_figure_has_the_times_of_the_trace(trace):
    figure = draw_layer_times(trace.path.parents[3], small_config().table(), "a run")
    (axis,) = figure.axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["augment", *LAYERS, "loss", "average", "update", OTHER]
    drawn = sum(bar.get_width() for bar in axis.patches)
    assert drawn == pytest.approx(sum(operation.milliseconds for operation in trace.operations()) / 2)
    assert figure.get_suptitle().startswith("a run\nsteps 2 to 3: ")
    mpl.pyplot.close(figure)


def test_an_operation_has_the_scope_of_the_program_that_ran(tmp_path):
    def program(scope, products):
        def step(values):
            with jax.named_scope(scope):
                return functools.reduce(operator.matmul, [values] * products)

        values = jax.numpy.ones((32, 32))
        return functools.partial(jax.jit(step).lower(values).compile(), values)

    programs = [program("conv1", 2), program("conv2", 4), program("conv3", 3)]  # of one name, with instructions of one name
    with jax.profiler.trace(tmp_path):
        programs[1]().block_until_ready()
    scopes = {operation.scope for operation in Trace(tmp_path, small_config().table()).operations()}
    assert Scope("conv2", "", False) in scopes
    assert scopes <= {Scope("conv2", "", False), None}


@pytest.mark.parametrize(
    ("name", "scope"),
    [
        ("jit(step)/jvp(conv1)/conv_general_dilated", Scope("conv1", "", False)),
        ("jit(step)/transpose(jvp(conv1))/MaxPool/slice", Scope("conv1", "MaxPool", True)),
        ("jit(step)/shmap_body/transpose(jvp(fc6))/cross_talk/psum", Scope("fc6", "cross_talk", True)),
        ("jit(step)/update/add", Scope("update", "", False)),
        ("jit(step)/jvp()/slice", None),
        ("state.params['conv1']['kernel']", None),
    ],
)
def test_a_name_says_layer_operation_and_direction(name, scope):
    assert scope_of(name, (*LAYERS, "update")) == scope


@pytest.mark.parametrize("text", ["3", "3:3", "4:3", "-1:2", "a:b", "1:2:3", ":2"])
def test_a_range_that_means_nothing_is_refused(text):
    with pytest.raises(UserError, match=f"^--profile={text} is not START:STOP with START < STOP, such as 10:12"):
        from_dict({"profile": text})
    assert from_dict({"profile": "0:2"}).profile == StepRange(0, 2)


def test_a_range_beyond_the_end_is_refused(data_dir, tmp_path):
    refused = run("train", *tiny_flags(data_dir, tmp_path / "run", profile="3:5"))
    assert refused.returncode == 1
    assert refused.stderr == "error: --profile=3:5: the run ends at step 4: choose an earlier STOP\n"
    assert not (tmp_path / "run").exists()


def test_a_folder_without_a_whole_trace_is_one_line(tmp_path):
    with pytest.raises(UserError, match="has no trace: train with --profile=START:STOP"):
        Trace(tmp_path, small_config().table())
    broken = tmp_path / "plugins/profile/now/vm.xplane.pb"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"\x0a\xff")
    with pytest.raises(UserError, match="is truncated or not a trace"):
        Trace(tmp_path, small_config().table())


@pytest.mark.slow
def test_a_resumed_run_says_which_steps_are_past_and_stays_the_same(traced, data_dir, tmp_path):
    workdir = tmp_path / "run"
    assert run("train", *tiny_flags(data_dir, workdir, mesh="1x1", steps=2, checkpoint_every=2)).returncode == 0
    flags = tiny_flags(data_dir, workdir, mesh="1x1", checkpoint_every=2)
    result = run("train", *flags, "--profile=0:2")
    assert "--profile=0:2: the run is at step 2 already; nothing is traced\n" in result.stderr
    assert not (workdir / "profile").exists()
    # The first start has ended at step 2 with a validation, which the traced run has not.
    ours, whole = ([row for row in reproducible_rows(run) if row["step"] == 4] for run in (workdir, traced[0]))
    assert ours == whole


@pytest.mark.slow
@pytest.mark.parametrize(("spmd", "mesh"), [("shard_map", "2x2"), ("pmap", "1x2")])
def test_names_change_no_instruction_of_the_step(spmd, mesh, monkeypatch):
    def text() -> str:
        setup = small_setup.__wrapped__(spmd, mesh)
        put = setup.mesh.put
        hparams = jax.tree.map(np.float32, step.StepHparams(constant_rates(setup), np.float32(0.1)))
        stats = step.ImageStats(small_mean(), np.eye(3, dtype=np.float32))
        arguments = setup.initial_state(), put(small_batch(), P("data")), put(hparams, P()), put(stats, P())
        return step.make_train_step(setup).lower(*arguments).as_text()

    named = text()
    monkeypatch.setattr(jax, "named_scope", lambda name: contextlib.nullcontext())
    jax.clear_caches()
    assert text() == named


class Event(NamedTuple):
    name: str
    stats: dict
    start_ns: float = 0.0
    duration_ns: float = 1e6


@pytest.fixture
def of_a_gpu(monkeypatch, tmp_path):
    """A trace whose kernels are in a CUDA graph, as an H200 has them."""
    conv1 = Scope("conv1", "", True)
    program = {
        ("jit_step", "loop_add_fusion.16"): Instruction("fusion", conv1),
        ("jit_step", "call.1"): Instruction("call", None),
    }
    graph = {"hlo_module": "jit_step", "hlo_op": "command_buffer_1", "kernel_details": "regs:32"}
    events = [
        Event("loop_add_fusion_16", graph),
        Event("loop_add_fusion_16", graph | {"hlo_op": "loop_add_fusion.16"}),
        Event("sm90_xmma_wgrad", graph),
        Event("call.1", {"hlo_module": "jit_step", "hlo_op": "call.1"}),
        Event("a thread of the host", {}),
    ]
    path = tmp_path / "plugins/profile/now/vm.xplane.pb"
    path.parent.mkdir(parents=True)
    path.touch()
    monkeypatch.setattr("alexnet_jax.run.trace._instructions", lambda content, parts, ran: program)
    monkeypatch.setattr(Trace, "_events", lambda trace: ((event, event.stats) for event in events))
    return tmp_path


def test_kernels_in_a_cuda_graph_are_found_by_their_own_names_and_none_is_lost(of_a_gpu):
    trace = Trace(of_a_gpu, small_config().table())
    found = [(one.instruction, one.scope and one.scope.part) for one in trace.operations()]
    assert found == [("loop_add_fusion.16", "conv1")] * 2 + [("command_buffer_1", None)]
    assert {part: sum(times.values()) for part, times in times_by_part(trace).items() if times} == {"conv1": 2.0, OTHER: 1.0}


def test_a_trace_without_names_is_not_drawn(of_a_gpu):
    with pytest.raises(UserError, match=r"vm.xplane.pb has no names of steps and layers: train with --profile="):
        draw_layer_times(of_a_gpu, small_config().table(), "a run")
