"""What a person waits for: the parts of a start, the pauses of a run, and the experiments beside them."""

import json
import math
import os
import subprocess
from pathlib import Path

import pytest
from networks import SIZE, run, small_setup, tiny_config
from pictures import recorded

from alexnet_jax.benchmark import compiled, inputs, pauses, steps, waiting, waiting_figure
from alexnet_jax.run.metrics import STARTS
from alexnet_jax.system.errors import UserError
from experiments import beside_pytorch, decoders

SCRIPT = Path(decoders.__file__).parent / "waiting.sh"


def test_a_first_step_is_waited_for_from_the_command_on(data_dir, tmp_path, monkeypatch):
    """Python starts at 1000 and needs 2 s to its first line; phases after the first step do not count."""
    commands = []

    def command(name, words, cache):
        commands.append((name, words))
        phases = {"starting": 1.5, "restoring": 0.0, "compiling": 4.0, "training": 9.0, "validating": 8.0, "saving": 7.0}
        (tmp_path / STARTS).write_text('{"an": "earlier start"}\n' + json.dumps({"time": 1002.0, "phases": phases}) + "\n")
        return 1000.0, math.nan

    monkeypatch.setattr(waiting, "run_command", command)
    config = tiny_config(data_dir, "elsewhere", init="another")
    parts = waiting.to_first_step(config, tmp_path, 2, tmp_path / "cache")
    assert parts == {"Python and imports": 2.0, "data and network": 1.5, "first step, and compiling it": 4.0}
    ((name, words),) = commands
    assert name == "train"
    assert {f"--workdir={tmp_path}", "--steps=2", f"--data_dir={data_dir}", f"--image_size={SIZE}"} <= set(words)
    assert not [word for word in words if "elsewhere" in word or "another" in word]


def test_a_wait_is_the_median_of_its_rounds():
    rounds = [{"a": 1.0, "b": 2.0}, {"a": 5.0, "b": 0.5}, {"a": 2.0, "b": 2.5}]
    assert waiting.waited(rounds) == {"seconds": 4.5, "low": 3.0, "high": 5.5, "parts": {"a": 2.0, "b": 2.0}}


@pytest.mark.slow
def test_a_save_holds_the_steps_for_its_parts():
    held, summed, written = pauses.saves(small_setup(), 1)
    assert (held[0], summed[0], written[0]) == (pauses.HELD, pauses.SUMMED, pauses.WRITTEN)
    assert list(held[1]) == ["looking for NaN", "checksums and copying"]
    assert summed[1]["all"] > 0
    assert sum(held[1].values()) == pytest.approx(written[1]["steps are held"])
    assert written[1]["beside the next steps"] > 0


def test_waits_are_bars_of_their_parts(tmp_path, monkeypatch):
    drawn = recorded(monkeypatch, waiting_figure)
    starts = {"start": waiting.waited([{"imports": 2.0, "compiling": 6.0}]), "predict": waiting.waited([{"all": 3.0}])}
    waiting_figure.draw_waits([starts, {"save": waiting.waited([{"all": 0.5}])}], "a run", tmp_path / "w.svg")
    above, below = drawn[0].axes
    assert [(bar.get_x(), bar.get_width()) for bar in above.patches] == [(0, 2), (2, 6), (0, 3)]
    assert [text.get_text() for text in above.texts] == ["8.00 s", "3.00 s"]
    assert [text.get_text() for text in below.texts] == ["0.50 s"]
    assert below.get_xlim()[1] < 1 < above.get_xlim()[1]


@pytest.mark.parametrize("others", [("--input",), ("--against=pytorch",), ("--compile_for=v5e:2x2",)])
def test_two_measurements_at_once_are_refused(others, monkeypatch):
    measures = (
        (waiting, "measure_waiting"),
        (inputs, "measure_input"),
        (steps, "measure_steps"),
        (compiled, "compile_programs"),
    )
    for module, name in measures:
        monkeypatch.setattr(module, name, None)  # were they not refused, nothing may be measured
    done = run("benchmark", "--waiting", *others)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "are two measurements: choose one" in done.stderr


@pytest.mark.slow
def test_a_command_that_fails_is_named_with_its_last_line(tmp_path):
    with pytest.raises(UserError, match=r"predict failed with status 1: error: --workdir is missing"):
        waiting.run_command("predict", ["a.jpg"], tmp_path)


def record(ours: list[float], peer: list[float]) -> dict:
    rows = {
        "alexnet_jax paper: train": {"images_per_second": ours[0]},
        "PyTorch paper: train (channels_last, compiled)": {"images_per_second": peer[0]},
    }
    return {"rows": rows, "ratios": {"x": {"median": 1.5, "low": 1.25, "high": 2.0}}, "commit": "0123456789+"}


def test_rows_beside_pytorch_are_kept_and_only_missing_ones_measured(tmp_path, monkeypatch):
    measured = []
    row = record([30.0], [20.0])
    monkeypatch.setattr(beside_pytorch, "measure_row", lambda name, *_: measured.append(name) or row)
    command = ["experiments.beside_pytorch", f"--out={tmp_path}"]
    assert run(*command, "--only=paper_64").returncode == 0
    done = run(*command, "--only=caffe_128,paper_64")
    assert measured == ["paper_64", "caffe_128"]
    line = "| 30.0 | 20.0, channels_last, compiled | 1.50 (1.25 to 2.00) | 0123456+ |"
    assert done.stdout.splitlines()[2:] == [f"| `paper` | 64 {line}", f"| `caffe` | 128 {line}"]
    assert "measuring caffe_128, row 2 of 2" in done.stderr
    assert (tmp_path / "ratios.png").exists()


def test_the_script_goes_on_where_it_failed(tmp_path):
    """Its Python is replaced by one that fails the second time."""
    python, out, calls = tmp_path / "bin" / "python", tmp_path / "out", tmp_path / "calls"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\necho "$2" >>{calls}\necho half\n[ $(wc -l <{calls}) != 2 ]\n')
    python.chmod(0o755)
    environment = os.environ | {"PATH": f"{python.parent}:{os.environ['PATH']}"}

    def started():
        return subprocess.run([SCRIPT, out], env=environment, capture_output=True, text=True)

    first = started()
    assert (first.returncode, [file.name for file in out.glob("*.json")]) == (1, ["quickstart.json"])
    again = started()
    assert again.returncode == 0
    assert again.stderr.splitlines()[:2] == [f"kept {out}/quickstart.json", "measuring full_size"]
    assert {file.name for file in out.iterdir()} == {"quickstart.json", "full_size.json", "decoders.json"}
    assert calls.read_text().split() == ["alexnet_jax.benchmark"] * 3 + ["experiments.decoders"]


def test_every_row_beside_pytorch_has_a_config_and_a_peer():
    configs = {name: beside_pytorch.row_config(name) for name in beside_pytorch.ROWS}
    assert (configs["paper_256"].batch_size, configs["paper_256"].crop) == (256, 227)
    assert (configs["torchvision_64"].crop, configs["cifar_11pct_128"].crop) == (224, 24)
    assert len(configs) == 11
    done = run("experiments.beside_pytorch", "--out=x", "--only=paper_63")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "there is no row paper_63" in done.stderr


@pytest.mark.slow
def test_a_shortcut_of_decoding_is_compared_with_the_packages_own_pixels():
    """1600 pixels to 64: draft mode scales them. To 256 it has nothing to scale, and gives the same pixels."""
    encoded = decoders.encoded_image("mosaic", (1600, 1200))
    shrunk, same = (decoders.compare(encoded, size, 1) for size in (64, 512))
    assert shrunk["package"]["largest_difference"] == 0
    assert 0 < shrunk["Pillow's draft mode"]["mean_difference"] < 1
    assert same["Pillow's draft mode"]["largest_difference"] == 0
