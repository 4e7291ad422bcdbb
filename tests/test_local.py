"""launch/local with stand-ins for the trainers: who gets which devices and signals, who is named when one fails."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from networks import ROOT

# Stands for `python`: says how it was started, then does what $BEHAVIOURS has for its rank.
PYTHON = f"""#!{sys.executable} -SE
import os, pathlib, signal, sys, time
if sys.argv[1] != "-m" or sys.argv[2] not in ("alexnet_jax.train", "alexnet_jax.evaluate"):
    sys.exit(print(12345))  # a free port, or nothing to install
rank, log = int(os.environ["JAX_PROCESS_ID"]), pathlib.Path(os.environ["HERE"], os.environ["JAX_PROCESS_ID"])
def note(*words):
    with log.open("a") as file:
        print(*words, file=file, flush=True)
signals = []
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, _: signals.append(signal.Signals(number).name))
note(os.environ.get("CUDA_VISIBLE_DEVICES"), *sys.argv[3:])
for word in os.environ.get("BEHAVIOURS", "exit:0").split(",")[rank].split("+"):
    verb, _, value = word.partition(":")
    if verb == "sleep":
        time.sleep(float(value))
    elif verb == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif verb == "signals":
        while not signals:
            time.sleep(0.01)
        time.sleep(0.3)  # a second one would come now
        note(*signals)
    elif verb == "exit":
        sys.exit(int(value))
"""


def stubs(folder: Path, gpus: int = 0) -> dict[str, str]:
    """An environment with stand-ins for Python and, if there are GPUs, for nvidia-smi."""
    programs = {"venv/bin/python": PYTHON}
    if gpus:
        programs["bin/nvidia-smi"] = f'#!/bin/bash\nfor ((n = 0; n < {gpus}; n++)); do echo "GPU $n: H100"; done\n'
    for name, text in programs.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    clean = {name: value for name, value in os.environ.items() if name not in ("CUDA_VISIBLE_DEVICES", "REQUIREMENTS")}
    return clean | {"PATH": f"{folder}/bin:/usr/bin:/bin", "VENV": f"{folder}/venv", "HERE": str(folder), "GRACE": "1"}


def local(folder: Path, *words: str, gpus: int = 0, **environment: str) -> subprocess.Popen[str]:
    """launch/local in a session of its own, as in a terminal."""
    return subprocess.Popen(
        [f"{ROOT}/launch/local", *words], env=stubs(folder, gpus) | environment, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def finished(process: subprocess.Popen[str]) -> tuple[int, list[str]]:
    """Exit status and lines on stderr."""
    _, said = process.communicate(timeout=60)
    return process.returncode, [line for line in said.splitlines() if not line.startswith("installing")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("behaviours", "status", "said"),
    [
        ("exit:0,exit:0", 0, []),
        # The first one to fail is the one at fault, whatever the others say of it.
        ("sleep:0.3+exit:134,exit:1", 1, ["1 ended with status 1", "0 ended with status 134", "1 was the first to fail"]),
        ("exit:75,sleep:0.3+exit:1", 75, ["0 ended with status 75", "1 ended with status 1", "0 was the first to fail"]),
        ("exit:0,sleep:0.3+exit:3", 3, ["1 ended with status 3", "1 was the first to fail"]),
        # One that is alive and stuck is killed, after its time.
        (
            "sleep:60,exit:75",
            75,
            [
                "1 ended with status 75",
                "0 has not ended within 1 s: killed",
                "0 ended with status 137",
                "1 was the first to fail",
            ],
        ),
        # One that was stopped has made the others fail.
        (
            "stop,exit:134",
            75,
            ["1 ended with status 134", "0 is stopped: killed", "0 ended with status 137", "0 was stopped"],
        ),
        ("exit:75,stop", 75, ["0 ended with status 75", "1 is stopped: killed", "1 ended with status 137", "1 was stopped"]),
    ],
)
def test_all_end_when_one_fails_and_the_one_at_fault_is_named(tmp_path, behaviours, status, said):
    lines = [f"launch/local: process {line}" for line in said]
    assert finished(local(tmp_path, "--", "--workdir=w", BEHAVIOURS=behaviours)) == (status, lines)


@pytest.mark.slow
def test_a_process_that_does_not_fail_is_waited_for(tmp_path):
    process = local(tmp_path, "--", "--workdir=w", BEHAVIOURS="exit:0,sleep:1.5+exit:0")
    assert finished(process) == (0, [])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sent", "to_all", "got"),
    [
        (signal.SIGTERM, False, "SIGTERM"),
        (signal.SIGHUP, False, "SIGTERM"),
        (signal.SIGINT, False, "SIGINT"),
        (signal.SIGINT, True, "SIGINT"),  # Ctrl-C in a terminal goes to the whole group
    ],
)
def test_each_process_gets_a_signal_once(tmp_path, sent, to_all, got):
    process = local(tmp_path, "--", "--workdir=w", BEHAVIOURS="signals+exit:75,signals+exit:75")
    logs = [tmp_path / "0", tmp_path / "1"]
    deadline = time.monotonic() + 30
    while not all(log.exists() and log.read_text() for log in logs):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    (os.killpg if to_all else os.kill)(process.pid, sent)
    assert finished(process)[0] == 75
    assert [log.read_text().splitlines()[1:] for log in logs] == [[got], [got]]


@pytest.mark.parametrize(
    ("gpus", "environment", "shown"),
    [
        (0, {}, ["None --distributed --host_devices=3", "None --distributed --host_devices=3"]),
        (5, {}, ["0,1 --distributed", "2,3 --distributed"]),
        (2, {}, ["0 --distributed", "1 --distributed"]),
        (8, {"CUDA_VISIBLE_DEVICES": "3,GPU-5ab"}, ["3 --distributed", "GPU-5ab --distributed"]),
        (8, {"CUDA_VISIBLE_DEVICES": ""}, [" --distributed --host_devices=3", " --distributed --host_devices=3"]),
    ],
)
def test_each_process_gets_its_share_of_the_devices(tmp_path, gpus, environment, shown):
    process = local(tmp_path, "--devices=3", "--", "--workdir=a b", gpus=gpus, BEHAVIOURS="exit:0,exit:0", **environment)
    assert finished(process) == (0, [])
    assert [(tmp_path / rank).read_text() for rank in ("0", "1")] == [f"{line} --workdir=a b\n" for line in shown]


@pytest.mark.parametrize(
    ("gpus", "environment", "count"), [(2, {}, 2), (8, {"CUDA_VISIBLE_DEVICES": "4"}, 1)], ids=["2", "1 of 8"]
)
def test_more_processes_than_gpus_are_refused(tmp_path, gpus, environment, count):
    status, (line,) = finished(local(tmp_path, "--processes=3", "--", "--workdir=w", gpus=gpus, **environment))
    assert status == 2
    assert line.startswith(f"error: --processes=3 is more than the {count} GPUs here")
    assert sorted(path.name for path in (tmp_path / "venv").rglob("*")) == ["bin", "python"]
