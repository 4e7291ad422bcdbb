"""--compile_for: what it shows of a record, its errors, and a small step compiled for a TPU where libtpu is installed."""

import importlib.util
import json
import re
import sys

import jax
import numpy as np
import pytest
from networks import run, small_config, small_setup
from pictures import recorded

from alexnet_jax.benchmark import chips, compiled, programs
from alexnet_jax.benchmark.chips import CHIPS, Slice
from alexnet_jax.mesh import make_mesh
from alexnet_jax.system.errors import UserError
from alexnet_jax.values import MeshShape
from experiments.kernel_cycles import compiled_text

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is in requirements-accelerators.txt"
)


def program(places: dict[str, float], **fields) -> dict:
    """One program's part of a record."""
    defaults = {
        "estimated_seconds": sum(places.values()), "flops_seconds": 0.001, "bytes_seconds": 0.002,
        "memory": {"total": 4 * 10**9}, "places": places, "unestimated": {"sort": {"count": 1, "bytes_seconds": 0.0005}},
        "collectives": {}, "copies": {"count": 2, "bytes": 3 * 10**9}, "padding": 0.25, "loops": [], "instructions": 9,
    }  # fmt: skip
    return defaults | fields


def record(places: dict[str, float], **fields) -> dict:
    """A result of `compile_programs`."""
    train = program(places, **fields)
    settings = {"architecture": "paper", "batch_size": 128, "crop_size": 224, "precision": "bfloat16", "mesh": "1x2"}
    return {
        "estimated_seconds": train["estimated_seconds"], "compiled_for": "v5e:1x2", "settings": settings,
        "programs": {"train": train, "evaluate": program({"ops.py:9 relu": 0.003})}, "tower_pairs_adjacent": True,
    }  # fmt: skip


EARLIER = {"augment.py:36 crop": 0.020, "augment.py:40 crop": 0.010, "ops.py:9 relu": 0.002, "gone.py:1 f": 0.001}
NOW = {"ops.py:12 relu": 0.002, "augment.py:50 crop": 0.0005}


def test_the_tables_show_a_record(capsys):
    loops = [{"place": "augment.py:50 crop", "trips": 128, "seconds": 0.1, "largest_copy": 25 * 10**6}]
    result = record(NOW, loops=loops, collectives={"all-gather": {"count": 3, "bytes": 14 * 10**6}})
    compiled.publish_compiled(result, None, None)
    out, shown = capsys.readouterr()
    assert json.loads(out) == result
    train = next(line for line in shown.splitlines() if re.match(r"│ train ", line))
    assert [cell.strip() for cell in train.split("│")[1:-1]] == [
        "train", "2.5", "0.5", "1", "2", "4.00 of 16", "3.000", "25 %",
    ]  # fmt: skip
    assert "paper, batch 128, 224 px, bfloat16, mesh 1x2 of v5e:1x2" in shown
    assert re.search(r"ops.py:12 relu +│ +2 │ +80 %", shown)
    assert re.search(r"train: all-gather +│ +3 │ +14.00", shown)
    assert re.search(r"train: loop at augment.py:50 crop.* 128 │ +25.00", shown)
    assert "the compiler's own estimate. Nothing was run." in shown


def test_an_earlier_record_is_compared_by_function():
    """Lines move between versions."""
    assert compiled.compared(record(NOW), record(EARLIER)) == {
        "augment.py crop": (0.0005, 0.03), "ops.py relu": (0.002, 0.002), "gone.py f": (0.0, 0.001),
    }  # fmt: skip


@pytest.mark.parametrize("earlier", [None, record(EARLIER)])
def test_the_bars_are_the_estimates(tmp_path, monkeypatch, earlier):
    drawn = recorded(monkeypatch, compiled)
    compiled.draw_places(record(NOW), earlier, tmp_path / "f.svg")
    (axes,) = drawn[0].axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    bars = {bars.get_label(): [bar.get_width() for bar in bars] for bars in axes.containers}
    if earlier is None:
        assert names == ["augment.py:50 crop", "ops.py:12 relu"]
        assert bars == {"now": [0.5, 2.0]}
    else:
        assert names == ["gone.py f", "ops.py relu", "augment.py crop"]
        assert {name: np.round(values, 9).tolist() for name, values in bars.items()} == {
            "now": [0, 2, 0.5], "earlier": [1, 2, 30],
        }  # fmt: skip
    total = "2.5 ms, earlier 33 ms" if earlier else "2.5 ms"
    assert f"mesh 1x2 of v5e:1x2\na training step in {total}, by place" in axes.get_title()
    assert axes.get_xlabel() == "ms: the compiler's own estimate. Nothing was run."


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--compile_for=v9:2x2"], "--compile_for=v9:2x2: no such chip; known are v4, v5e"),
        (["--compile_for=v5e"], "is not of the form CHIP:SHAPE"),
        (["--compile_for=v5e:2x0"], "is not of the form CHIP:SHAPE"),
        (["--compile_for=v5e:2x2x1"], "is not of the form CHIP:SHAPE"),
        (["--compile_for=v5e:2x2", "--spmd=pmap"], "--spmd=pmap: only the shard_map form"),
        (["--compile_for=v5e:2x2", "--input"], "--input and --compile_for"),
        (["--compile_for=v5e:2x2", "--against=pytorch"], "--against=pytorch cannot be read"),
        (["--compile_for=v5e:2x2", "--against=pyproject.toml"], "--against=pyproject.toml"),
        (["--against=earlier.json"], "--against=earlier.json is not pytorch"),
    ],
)
def test_bad_input_is_one_line(flags, message):
    done = run("benchmark", *flags)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert message in done.stderr


def test_another_json_file_is_no_record(tmp_path):
    (tmp_path / "other.json").write_text('{"images_per_second": 4}')
    with pytest.raises(UserError, match=r"other.json is no record of --compile_for"):
        compiled.read_record(f"{tmp_path}/other.json")


def test_a_missing_compiler_is_named(monkeypatch):
    def missing(name):
        raise chips.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(chips.importlib.metadata, "version", missing)
    for text, package in (("v5e:1x2", "libtpu"), ("h100:1x2", "jax-cuda13-plugin")):
        with pytest.raises(UserError, match=f"--compile_for={text} needs {package}: pip install -r requirements-accel"):
            Slice.parse(text).check_packages()


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo a check failed >&2; exit 134", "the compiler's process ended with 134; it said: a check failed"),
        ("""echo '{"error": "--mesh=4x2 needs 8 devices"}'""", "--mesh=4x2 needs 8 devices"),
    ],
)
def test_what_goes_wrong_in_the_compilers_process_is_said(tmp_path, monkeypatch, script, message):
    stub = tmp_path / "python"
    stub.write_text(f"#!/bin/sh\n{script}\n")
    stub.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(stub))
    monkeypatch.setattr(Slice, "check_packages", lambda self: None)
    with pytest.raises(UserError, match=re.escape(message)):
        compiled.compile_programs(small_config(), Slice.parse("v5e:1x2"))


def test_a_mesh_that_a_slice_cannot_hold_is_refused():
    with pytest.raises(UserError, match=r"--mesh=2x2 needs 4 devices and 2 are present; choose .* a larger slice"):
        make_mesh(MeshShape(2, 2), 2, 8, devices=jax.devices()[:2])


def test_a_batch_that_is_too_large_is_told_how_much_and_what_fits():
    """Of a v5e's 16 GB, three times the parameters stay whatever the batch is."""
    setup = small_setup(mesh="2x2", architecture="paper", batch_size=8000)
    held = 4 * 3 * sum(x.size for x in jax.tree.leaves(setup.shapes)) // 2
    needed = held + 2 * (16 * 10**9 - held) - 10**5
    said = str(programs._too_large(setup, Slice.parse("v5e:2x2"), "train", needed, 16e9))
    wanted = f"needs {needed / 1e9:.1f} GB on each device of v5e:2x2, {needed / 1e9 - 16:.1f} GB more than it has"
    assert said == f"--batch_size=8000: the train program {wanted}; about 4,000 would fit"


@pytest.mark.parametrize(
    "said",
    ["RESOURCE_EXHAUSTED: E1000: memory for temporaries (102.00G) exceeds available HBM (15.75G). HLO module: jit_step.",
     "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 102.00G of 15.75G hbm. Exceeded by 86G."],
)  # fmt: skip
def test_a_compiler_that_runs_out_of_memory_is_understood(monkeypatch, said):
    class Program:
        def compile(self):
            raise jax.errors.JaxRuntimeError(said + "\nThe largest buffer takes 1.00G")

    monkeypatch.setattr(programs, "lowered", lambda setup: [("train", Program())])
    wanted = r"needs 109.5 GB on each device of v5e:1x1, 92.6 GB more than it has; about 1 would fit"
    with pytest.raises(UserError, match=wanted):
        next(programs.compile_all(small_setup(), Slice.parse("v5e:1x1")))


def test_the_programs_are_lowered_from_shapes_alone_and_multiply_float32_as_float32():
    """Every product names the highest precision: by default a TPU multiplies float32 as bfloat16, and a GPU as TF32."""
    texts = {name: program.as_text() for name, program in programs.lowered(small_setup(mesh="1x2"))}
    assert list(texts) == ["train", "evaluate", "checksum"]
    for name, products in (("train", 3 * 8), ("evaluate", 8)):
        lines = [line for line in texts[name].splitlines() if re.search(r"stablehlo.(convolution|dot_general)", line)]
        assert len(lines) >= products
        assert [line for line in lines if line.count("HIGHEST") != 2] == []


def test_every_chip_says_what_it_can_do():
    for name, chip in CHIPS.items():
        shape = Slice.parse(f"{name}:2x2")
        assert shape.is_tpu == (not chip.description)
        assert shape.count == 4
        assert 0.1 < 1e-3 * chip.flops_per_second / chip.bytes_per_second < 1  # FLOPs for each byte, in thousands


@needs_libtpu
@pytest.mark.slow
def test_a_small_step_compiles_for_a_tpu():
    """Figure 2's exchanges and no others; no loop moves as much as one image. The estimates are for the eye."""
    config = small_config(crop_size=67, image_size=70, precision="bfloat16")
    result = compiled.compile_programs(config, Slice.parse("v5e:1x2"))
    print(json.dumps({name: each["estimated_seconds"] for name, each in result["programs"].items()}))
    assert result["settings"]["mesh"] == "1x2"
    assert result["tower_pairs_adjacent"] is True
    collectives = {name: each["collectives"] for name, each in result["programs"].items()}
    assert {opcode: one["count"] for opcode, one in collectives["evaluate"].items()} == {"all-gather": 3, "all-reduce": 1}
    assert collectives["train"]["all-gather"]["count"] == 3
    back = {opcode: one["count"] for opcode, one in collectives["train"].items() if opcode != "all-gather"}
    assert sum(back.values()) == 4  # fc8's sum, and the gradients of the three gathers
    for each in result["programs"].values():
        assert all(loop["largest_copy"] < 3 * 70**2 for loop in each["loops"])
        assert 0 < each["estimated_seconds"] < 1
        assert each["memory"]["total"] < 10**9


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("shape", [(128, 55, 55, 48), (128, 27, 27, 128), (256, 55, 55, 96)], ids=str)
def test_the_kernels_of_norm_and_pooling_compile_for_a_tpu(shape):
    """Also with as many maps as one tower of the whole width has. A block that is too large for the memory would not."""
    text = compiled_text(Slice.parse("v5e:1x2"), shape)
    assert text.count('target="tpu_custom_call"') == 2
