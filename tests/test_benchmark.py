"""The benchmark of the network: the order of measurement, ratios that match the rows, and the peers' networks."""

import importlib.util
import itertools
import json
import math
import os
import signal
import time
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.colors import to_hex
from networks import CLASSES, CROP, SIZE, make_mesh, run, small_config
from pictures import assert_rates, recorded

from alexnet_jax.architectures import ARCHITECTURES, _narrow
from alexnet_jax.benchmark import results, steps
from alexnet_jax.benchmark.ours import MODES, Ours, training_flops
from alexnet_jax.benchmark.peers import Torch, forms
from alexnet_jax.benchmark.worker import Failed, Worker
from alexnet_jax.config import Config
from alexnet_jax.layers import Architecture, Classifier, Convolution, trace
from alexnet_jax.network import merge, split
from alexnet_jax.step import cross_entropy, make_setup
from alexnet_jax.system.errors import UserError
from alexnet_jax.values import MeshShape

HAS_TORCH = importlib.util.find_spec("torch") is not None
needs_torch = pytest.mark.skipif(not HAS_TORCH, reason="PyTorch is in requirements-benchmark.txt")


def test_a_ratio_is_taken_within_each_round():
    rates = {"a": [10.0, 90.0, 40.0], "b": [5.0, 30.0, 40.0]}
    assert results.ratio(rates, "a", "b") == {"median": 2.0, "low": 1.0, "high": 3.0}
    assert results.ratio(rates, "b", "a", times=6) == {"median": 3.0, "low": 2.0, "high": 6.0}
    assert results.row(rates["a"]) == {"images_per_second": 40.0, "low": 10.0, "high": 90.0}


class Scripted:
    """Replaces `steps.Worker`. Has a rate for each turn by the workload's name, or the text of its failure."""

    rates: dict  # each test makes a subclass with its own
    turns: list

    def __init__(self, workload):
        if isinstance(self.rates.get(workload.name), str):
            raise Failed(self.rates[workload.name])
        self.workload, self.first_step_seconds = workload, 1.5

    def __enter__(self):
        return self

    def __exit__(self, *error): ...

    def measure(self, count):
        self.turns.append((self.workload.name, count))
        return self.rates[self.workload.name].pop(0)

    def peak_memory(self):
        return 300 if "alexnet_jax" in self.workload.name else 200


def scripted(monkeypatch, rates: dict, *, against: bool) -> tuple[dict, list]:
    """Measures the network in two rounds of three steps, with scripted rates. Returns the result and the turns taken."""
    worker = type("Worker", (Scripted,), {"rates": rates, "turns": []})
    monkeypatch.setattr(steps, "Worker", worker)
    monkeypatch.setattr(steps, "matrix_product", lambda *_: 1e9)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr("importlib.metadata.version", lambda name: "1.0")
    config = small_config(mesh="1x1")
    modes = MODES[:2] if against else MODES
    return steps.measure_steps(config, against=against, layers=False, rounds=2, steps=3, modes=modes), worker.turns


FORMS = ("eager", "channels_last", "compiled", "channels_last, compiled")


def test_the_fastest_form_of_the_peer_is_measured_in_turn_with_ours(monkeypatch, capsys):
    ours, peer = "alexnet_jax paper_eighth", "PyTorch paper_eighth"
    rates = {f"{ours}: train": [60.0, 80.0], f"{ours}: forward": [300.0, 100.0]}
    for mode in ("train", "forward"):
        rates |= {f"{peer}: {mode} ({form})": [5.0] for form in FORMS}
        rates[f"{peer}: {mode} ({FORMS[3]})"] = [9.0, 20.0, 40.0]
    rates[f"{peer}: train (compiled)"] = "no compiler"
    result, turns = scripted(monkeypatch, rates, against=True)
    best = f"{peer}: train ({FORMS[3]})"
    assert turns[3:7] == [(f"{ours}: train", 3), (best, 3)] * 2
    assert all(count == steps.TRIAL_STEPS for _, count in turns[:3])
    assert result["ratios"][f"ours / {best}"] == {"median": 2.5, "low": 2.0, "high": 3.0}
    assert len(result["ratios"]) == 2
    assert result["peak_memory_ratios"] == {best: 1.5}
    assert len(result["peers_tried"]) == 2 * 4
    assert result["peers_tried"][f"{peer}: train (compiled)"] == "no compiler"
    assert result["peers_tried"][best] == 9.0
    assert (result["images_per_second"], result["rows"][best]["images_per_second"]) == (70.0, 30.0)
    assert result["flops_per_second"] == 70.0 * result["flops_per_image"]
    assert result["of_matrix_product"] == result["flops_per_second"] / 1e9
    steps.publish_steps(small_config(), result, None)
    assert "not measured: no compiler" in capsys.readouterr().err


def test_a_peer_that_runs_in_no_form_is_named(monkeypatch):
    rates = dict.fromkeys((f"PyTorch paper_eighth: train ({form})" for form in FORMS), "no memory")
    rates[f"PyTorch paper_eighth: train ({FORMS[3]})"] = "no memory either"
    with pytest.raises(UserError, match=r"paper_eighth: train .* does not run here: no memory either"):
        scripted(monkeypatch, rates, against=True)


@needs_torch
def test_a_peer_has_each_form_once():
    found = forms(ARCHITECTURES["caffe"], True, "float32", 8, CROP, 1000)
    assert [form.name for form in found] == [f"PyTorch caffe: train ({form})" for form in FORMS]
    assert {(form.table.name, form.examples, form.crop) for form in found} == {("caffe", 8, CROP)}


def test_a_table_that_pytorch_has_no_layer_for_is_refused():
    with pytest.raises(UserError, match=r"fc6 of --architecture=no_crosstalk reads its own tower"):
        forms(ARCHITECTURES["no_crosstalk"], True, "float32", 8, 227, 1000)


def test_a_compiled_peer_says_that_it_lacks_a_compiler(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match=r"torch\.compile needs a C\+\+ compiler, and there is no no-such-compiler"):
        Torch(ARCHITECTURES["cifar_13pct"], True, False, True, "float32", 2, 24, 10).start()


@pytest.mark.parametrize("fastest", [50.0, 5000.0])
def test_rates_are_bars_from_zero_or_dots_on_a_logarithmic_axis(tmp_path, monkeypatch, fastest):
    drawn = recorded(monkeypatch, results)
    rows = {"ours": results.row([20.0, 10.0, 30.0]), "other": results.row([fastest, 40.0, 9000.0])}
    results.draw_rates(rows, {"ours"}, "images per second", tmp_path / "f.svg")
    (axis,) = drawn[0].axes
    assert axis.get_xscale() == ("log" if fastest > 200 else "linear")
    assert_rates(drawn[0], rows)
    assert axis.get_ylim()[0] < 0 < 1 < axis.get_ylim()[1]  # upwards: the first row is the topmost
    colours = axis.collections[1].get_facecolors() if fastest > 200 else [bar.get_facecolor() for bar in axis.patches]
    other, ours = map(to_hex, colours)
    assert ours == results.OUR_COLOUR.lower() != other
    assert [text.get_text() for text in axis.texts] == [f"{fastest:,.1f}" if fastest < 100 else "5,000", "20.0"]
    marks = "dot: median, line: range; logarithmic axis" if fastest > 200 else "bar: median, line: range"
    assert axis.get_xlabel() == f"images per second\n{marks}"
    assert f"<!-- {marks} -->" in (tmp_path / "f.svg").read_text()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--input", "--against=pytorch"], "--input and --against"),
        (["--against=keras"], "--against"),
        (["--mesh=8x2"], "--mesh=8x2 needs 16 devices"),
        (["--input", "--figure=a.txt"], "--figure=a.txt does not end in .png or .svg"),
        (["--input", "--batch_size=0"], "--batch_size=0"),
    ],
)
def test_bad_input_is_one_line(flags, message):
    done = run("benchmark", *flags)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert message in done.stderr


def paper_model(**fields):
    config = Config(mesh=MeshShape(1, 1), **fields)
    return make_setup(config, 1000, make_mesh("1x1", config.table().towers, config.batch_size))


def test_the_operations_of_the_paper_are_counted():
    """724 million multiplications (Section 3.5's layers); 4.136 GFLOP per training image, no gradient for the pixels."""
    macs = {one.name: one.multiply_adds for one in trace(Config().table(), 227)}
    assert macs["conv1"] == 55 * 55 * 11 * 11 * 3 * 96
    assert macs["conv2"] == 27 * 27 * 5 * 5 * 48 * 256
    assert macs["conv3"] == 13 * 13 * 9 * 256 * 384
    assert macs["fc6"] == 6 * 6 * 256 * 4096
    assert training_flops(Config().table(), 227, 1000) / 1e9 == pytest.approx(4.136, abs=5e-4)


def test_the_sides_are_those_of_the_network():
    sides = {one.name: (one.in_side, one.conv_side) for one in trace(Config().table(), 227)}
    assert sides["conv1"] == (227, 55)
    assert sides["conv2"] == (27, 27)
    assert sides["conv5"] == (13, 13)
    assert sides["fc6"] == (6, 1)


class InProcess:
    """Replaces `steps.Worker` and measures in this process."""

    def __init__(self, workload):
        self.workload, self.first_step_seconds = workload, 1.5
        self._step = workload.start()
        self._step()

    def __enter__(self):
        return self

    def __exit__(self, *error): ...

    def measure(self, count):
        started = time.perf_counter()
        for _ in range(count):
            self._step()
        return self.workload.examples * count / (time.perf_counter() - started)

    def peak_memory(self):
        return 1 << 30


@pytest.mark.slow
def test_the_network_is_measured_and_drawn(tmp_path, monkeypatch):
    """All four uses and every layer, in this process."""
    monkeypatch.setattr(steps, "Worker", InProcess)
    monkeypatch.setattr(steps, "PRODUCT_SIDE", {"cpu": 64})
    drawn = recorded(monkeypatch, results)
    small = ["--architecture=paper_eighth", f"--crop_size={CROP}", f"--image_size={SIZE}", "--batch_size=8", "--mesh=1x1"]
    done = run("benchmark", *small, "--rounds=2", "--steps=1", f"--figure={tmp_path}/steps.svg")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert next(iter(result)) == "images_per_second"
    rows = result["rows"]
    assert list(rows) == [f"alexnet_jax paper_eighth: {mode}" for mode in ("train", "forward", "evaluate", "ten views")]
    assert all(0 < row["low"] <= row["images_per_second"] <= row["high"] for row in rows.values())
    assert result["images_per_second"] == rows["alexnet_jax paper_eighth: train"]["images_per_second"]
    setup = paper_model(architecture="paper_eighth", crop_size=CROP, image_size=SIZE)
    flops = training_flops(setup.config.table(), CROP, 1000)
    assert result["flops_per_image"] == flops
    assert result["flops_per_second"] == pytest.approx(result["images_per_second"] * flops)
    share = result["flops_per_second"] / result["matrix_product_flops_per_second"]
    assert result["of_matrix_product"] == pytest.approx(share)
    settings = {name: result["settings"][name] for name in ("architecture", "batch_size", "crop_size", "rounds", "steps")}
    assert settings == {"architecture": "paper_eighth", "batch_size": 8, "crop_size": CROP, "rounds": 2, "steps": 1}
    macs = {one.name: one.multiply_adds for one in trace(setup.config.table(), setup.config.crop)}
    directions = ("forward", "weight gradient", "input gradient")
    assert {(each["layer"], each["direction"]) for each in result["layers"]} == {
        (layer, direction) for layer in macs for direction in directions
    } - {("conv1", "input gradient")}
    for each in result["layers"]:
        assert each["flops_per_second"] * each["seconds"] == pytest.approx(2 * 8 * macs[each["layer"]])
    assert (result["ratios"], result["peers_tried"], result["pytorch"]) == ({}, {}, None)
    assert all(name in done.stderr for name in (*rows, *macs, *directions))
    assert_rates(drawn[0], rows)
    assert (tmp_path / "steps.svg").read_text().count("<svg") == 1


@pytest.mark.slow
def test_a_workload_runs_in_its_own_process_that_ends():
    workload = Ours(small_config(mesh="1x1"), "forward")
    with Worker(workload) as worker:
        process = worker._process
        assert process.is_alive()
        assert process.pid != os.getpid()
        assert worker.first_step_seconds > 0
        assert worker.measure(2) > 0
        assert worker.peak_memory() > 100 << 20  # JAX alone
    assert process.exitcode == 0


@pytest.mark.slow
@needs_torch
def test_a_step_of_the_peer_trains(monkeypatch):
    """In this process: the training step changes every weight, the forward pass none."""
    import torch

    from alexnet_jax.benchmark import torch_network

    made = []
    network = torch_network.torch_network
    monkeypatch.setattr(torch_network, "torch_network", lambda *given: made.append(network(*given)) or made[-1])
    for train in (True, False):
        step = Torch(ARCHITECTURES["cifar_11pct"], train, False, False, "float32", 2, 24, 10).start()
        before = [weights.clone() for weights in made[-1].parameters()]
        step()
        same = [torch.equal(one, other) for one, other in zip(before, made[-1].parameters(), strict=True)]
        assert same == [not train] * len(before)
        assert made[-1].training == train


@pytest.mark.slow
@needs_torch
def test_a_peer_is_measured():
    with Worker(Torch(ARCHITECTURES["torchvision"], False, True, False, "float32", 2, CROP, 1000)) as worker:
        assert worker.measure(1) > 0
        assert worker.peak_memory() > 4 * 40_000_000  # its weights


@pytest.mark.nightly
@needs_torch
def test_pytorch_is_measured_in_turn():
    small = [f"--crop_size={CROP}", f"--image_size={SIZE}", "--batch_size=2", "--rounds=1", "--steps=1", "--nolayers"]
    done = run("benchmark", "--against=pytorch", "--architecture=paper_eighth", *small, "--mesh=1x1")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    rows = {name: row["images_per_second"] for name, row in result["rows"].items()}
    peers = [name for name in rows if "PyTorch paper_eighth: train" in name]
    assert len(peers) == 1
    expected = rows["alexnet_jax paper_eighth: train"] / rows[peers[0]]
    assert result["ratios"][f"ours / {peers[0]}"]["median"] == pytest.approx(expected)
    assert len(result["peers_tried"]) == 2 * 4
    tried = {name: rate for name, rate in result["peers_tried"].items() if ": train" in name}
    assert peers[0] == max(tried, key=lambda name: tried[name] if isinstance(tried[name], float) else 0)


def as_torch(params: dict, table: Architecture, crop: int) -> dict:
    """The weights of a network by PyTorch's names, in its layout: towers side by side along the outputs."""
    state = {}
    for one in trace(table, crop, CLASSES):
        kernel, bias = (np.asarray(params[one.name][part]) for part in ("kernel", "bias"))
        if isinstance(one.layer, Convolution) and not one.layer.shared:
            weight, bias = kernel.reshape(-1, *kernel.shape[3:]), bias.reshape(-1, 1, bias.shape[-1])
        elif isinstance(one.layer, Convolution):
            weight, bias = np.concatenate(kernel, axis=-1).transpose(3, 2, 0, 1), bias.reshape(-1)
        else:  # inputs are counted by row, column and map here, and by map first there
            whole = np.concatenate(kernel, axis=0 if isinstance(one.layer, Classifier) else -1)
            places = whole.reshape(one.in_side**2, -1, whole.shape[-1])
            weight, bias = places.transpose(2, 1, 0).reshape(whole.shape[-1], -1), bias.reshape(-1)
        state |= {f"{one.name}.weight": weight, f"{one.name}.bias": bias}
    return state


def narrow(name: str) -> Architecture:
    return _narrow(ARCHITECTURES[name], name, 8)


SLOWLY = [(narrow("caffe"), CROP), (narrow("torchvision"), CROP), (narrow("paper"), 67), (ARCHITECTURES["cifar_18pct"], 32)]


@pytest.mark.parametrize(
    ("table", "crop"),
    [
        (narrow("paper"), CROP),
        (ARCHITECTURES["cifar_11pct"], 24),
        *(pytest.param(*one, marks=pytest.mark.slow) for one in [*SLOWLY, (ARCHITECTURES["cifar_13pct"], 24)]),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_the_peer_has_our_loss_on_the_same_weights(table, crop):
    """In evaluation, on weights that are large enough for every layer to matter. At 67 px conv1 is padded on two sides."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed (requirements-benchmark.txt)")
    from alexnet_jax.benchmark.torch_network import torch_network

    graph, shapes = split(table, classes=CLASSES, crop_size=crop, dtype=jnp.dtype("float32"))
    rng = np.random.default_rng(0)

    def drawn(path, leaf):
        deviation = 0.5 if path[-1].key == "bias" else (2 / math.prod(leaf.shape[-4:-1])) ** 0.5
        return rng.normal(0, deviation, leaf.shape).astype(np.float32)

    params = jax.tree.map_with_path(drawn, shapes)
    images, labels = rng.normal(0, 20, (4, crop, crop, 3)).astype(np.float32), np.array([3, 9, 0, 1])
    logits = jax.jit(lambda params, images: merge(graph, params)(images))(params, images)
    network = torch_network(table, crop, CLASSES).eval()
    network.load_state_dict({name: torch.tensor(value) for name, value in as_torch(params, table, crop).items()})
    with torch.no_grad():
        theirs = network(torch.tensor(images.transpose(0, 3, 1, 2)))
    np.testing.assert_allclose(logits, theirs.numpy(), rtol=0, atol=2e-5 * float(abs(theirs).max()))
    assert logits.std() > 0.1
    loss = cross_entropy(logits, jnp.asarray(labels)).mean()
    assert float(loss) == pytest.approx(float(torch.nn.functional.cross_entropy(theirs, torch.tensor(labels))), rel=1e-4)


@dataclass(frozen=True)
class Broken:
    """A workload that cannot start, or, if `later`, whose process ends in its second step."""

    error: BaseException
    later: bool = False
    name: str = "broken"
    examples: int = 1

    def start(self):
        if not self.later:
            raise self.error
        calls = itertools.count()
        return lambda: next(calls) and os._exit(7)

    def device_memory(self):
        return None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workload", "said"),
    [
        (Broken(MemoryError("too large")), "broken: MemoryError: too large"),
        (Broken(RuntimeError("no\nmemory")), "broken: RuntimeError: no"),
        (Broken(KeyError("mine")), "broken: its process ended with status 1"),  # with its traceback on stderr
        (Broken(SystemExit(3)), "broken: its process ended with status 3"),
    ],
)
def test_a_workload_that_fails_says_why(workload, said):
    with pytest.raises(Failed, match=f"^{said}$"):
        Worker(workload)


@pytest.mark.slow
def test_a_worker_that_dies_is_named_whenever_it_is_asked():
    with Worker(Broken(KeyError(), later=True)) as worker:
        for ask in (lambda: worker.measure(1), worker.peak_memory):
            with pytest.raises(Failed, match=r"^broken: its process ended with status 7$"):
                ask()


class Stuck(Broken):
    """A workload whose second step takes for ever."""

    def start(self):
        calls = itertools.count()
        return lambda: next(calls) and time.sleep(1000)


@pytest.mark.slow
def test_a_worker_in_the_middle_of_a_step_ends_with_a_measurement_that_is_stopped():
    """By Ctrl-C, which the worker itself is not told of."""

    def stopped() -> None:
        with Worker(Stuck(KeyError())) as worker:
            processes.append(worker._process)
            worker._connection.send(1)
            time.sleep(0.5)
            os.kill(worker._process.pid, signal.SIGINT)
            time.sleep(0.5)
            assert worker._process.is_alive()
            raise KeyboardInterrupt

    processes = []
    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert processes[0].exitcode == -signal.SIGTERM


def test_our_network_that_does_not_run_is_one_line(monkeypatch):
    with pytest.raises(UserError, match=r"^no memory$"):
        scripted(monkeypatch, {"alexnet_jax paper_eighth: train": "no memory"}, against=False)
