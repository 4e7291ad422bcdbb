"""A trial and its trainer, in place of which a small script runs that ends as it is told."""

import json
import os
import signal
import threading

import optuna
import pytest
from networks import ROOT, record_row
from optuna.trial import TrialState

from alexnet_jax.sweep import trials
from alexnet_jax.sweep.trials import Validation, final_value, run_trial, validations
from alexnet_jax.system.signals import DIVERGED_STATUS, IN_USE_STATUS, RESUME_STATUS

SCRIPT = """
import json, os, pathlib, signal, sys, time
workdir = pathlib.Path(dict(word[2:].split("=", 1) for word in sys.argv[1:])["workdir"])
workdir.mkdir(exist_ok=True)
with (workdir / "starts").open("a") as file:
    file.write(json.dumps([os.getpgrp(), os.environ.get("ALEXNET_FLAGS"), os.environ.get("ADDED")]) + chr(10))
start = len((workdir / "starts").read_text().splitlines())

def validate(step, error):
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(ROW | {"step": step, "top1_error": error}) + chr(10))

""".replace("ROW", repr(record_row(1, "validation")))
KILLED = "os.kill(os.getpid(), signal.SIGKILL)"


@pytest.fixture
def trainer(tmp_path, monkeypatch):
    """Runs a trial whose trainer is SCRIPT and then some lines. Returns the trial and its state."""
    monkeypatch.setattr(trials, "POLL_SECONDS", 0.01)

    def tried(lines, *, retries=2, stopping=lambda: False, pruner=None):
        monkeypatch.setattr(trials, "START", SCRIPT + lines)
        trial = optuna.create_study(pruner=pruner or optuna.pruners.NopPruner()).ask()
        folder = tmp_path / "0000"
        return trial, run_trial(trial, folder, {"workdir": str(folder)}, stopping, {"ADDED": "1"}, retries)

    return tried


def starts(tmp_path):
    """What each start of the trainer has noted."""
    return [json.loads(line) for line in (tmp_path / "0000" / "starts").read_text().splitlines()]


@pytest.mark.parametrize("end", [KILLED, "sys.exit(137)", f"sys.exit({RESUME_STATUS})"])
def test_a_trainer_that_is_killed_from_outside_is_resumed_and_keeps_its_validations(trainer, tmp_path, end):
    trial, state = trainer(f"validate(start, 50 - start)\nif start < 3:\n    {end}", retries=1)
    assert state is TrialState.COMPLETE
    assert len(starts(tmp_path)) == 3  # a new validation makes good for a retry
    assert validations(tmp_path / "0000") == [(49, 1), (48, 2), (47, 3)]
    assert trial.study.trials[0].intermediate_values == {1: 49, 2: 48, 3: 47}
    assert final_value(trial, tmp_path / "0000") == 47
    assert trial.user_attrs == {"best_step": 3}


@pytest.mark.parametrize(
    ("end", "retries", "why"),
    [
        (KILLED, 2, "killed by signal 9 (Killed): error: no memory"),
        ("sys.exit(143)", 0, "status 143: error: no memory"),
        (f"sys.exit({RESUME_STATUS})", 1, "status 75: error: no memory"),
    ],
)
def test_a_trainer_that_is_killed_without_end_fails_with_the_reason(trainer, tmp_path, end, retries, why):
    said = "print('error: no memory', flush=True)\nprint('noise', flush=True)"
    trial, state = trainer(f"if start == 1: validate(1, 60)\n{said}\n{end}", retries=retries)
    assert state is TrialState.FAIL
    # The first validation came with the first start.
    assert len(starts(tmp_path)) == retries + 1
    assert trial.user_attrs["error"] == why


def test_a_trainer_that_refuses_its_flags_is_not_started_again(trainer, tmp_path):
    trial, state = trainer("print('error: --mesh=3x3 is wrong')\nsys.exit(1)")
    assert (state, len(starts(tmp_path))) == (TrialState.FAIL, 1)
    assert trial.user_attrs["error"] == "status 1: error: --mesh=3x3 is wrong"


def test_a_diverged_trainer_is_a_complete_trial_with_the_worst_value(trainer, tmp_path):
    trial, state = trainer(f"validate(1, 60)\nprint('error: step 9: the loss is nan')\nsys.exit({DIVERGED_STATUS})")
    assert (state, len(starts(tmp_path))) == (TrialState.COMPLETE, 1)
    assert trial.user_attrs == {"diverged": "step 9: the loss is nan"}
    assert final_value(trial, tmp_path / "0000") == trials.WORST == 100


def test_a_trainer_waits_for_one_that_still_saves(trainer, tmp_path):
    _, state = trainer(f"validate(1, 60)\nif start < 5: sys.exit({IN_USE_STATUS})", retries=0)
    assert (state, len(starts(tmp_path))) == (TrialState.COMPLETE, 5)


def test_the_value_of_a_trial_is_its_lowest_error_with_the_step(trainer, tmp_path):
    trial, _ = trainer("for step, error in ((10, 40), (20, 31.5), (30, 31.5), (40, 33)): validate(step, error)")
    assert final_value(trial, tmp_path / "0000") == 31.5
    assert trial.user_attrs["best_step"] == 20
    assert validations(tmp_path / "0000")[1] == Validation(31.5, 20)


def test_a_trainer_gets_one_signal_and_no_flags_from_the_environment(trainer, tmp_path, monkeypatch):
    """A second signal would end it before it has saved. The flags are among its values: added again they would win."""
    monkeypatch.setenv("ALEXNET_FLAGS", "--learning_rate=0.5 --workdir=elsewhere")
    asked = threading.Event()
    lines = f"""
count = []
signal.signal(signal.SIGTERM, lambda *_: count.append(1))
validate(1, 60)
while not count: time.sleep(0.01)
time.sleep(0.2)
validate(1 + len(count), 50)
sys.exit({RESUME_STATUS})
"""

    def stopping():
        if (tmp_path / "0000" / "metrics.jsonl").exists():
            asked.set()
        return asked.is_set()

    trial, state = trainer(lines, stopping=stopping)
    assert state is TrialState.RUNNING
    assert [step for _, step in validations(tmp_path / "0000")] == [1, 2]
    assert trial.study.trials[0].intermediate_values == {1: 60, 2: 50}
    ((group, flags, added),) = starts(tmp_path)
    assert group != os.getpgrp()  # Ctrl-C in a terminal goes to a whole group
    assert (flags, added) == (None, "1")


def test_a_pruned_trainer_stops(trainer, tmp_path):
    lines = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\nvalidate(1, 60)\ntime.sleep(30)"
    _, state = trainer(lines, pruner=optuna.pruners.ThresholdPruner(upper=50))
    assert (state, len(starts(tmp_path))) == (TrialState.PRUNED, 1)


def test_a_trainer_ends_with_an_error_of_its_sweep(trainer, tmp_path):
    class Away(Exception):
        """The storage is away."""

    def stopping():
        if (tmp_path / "0000" / "metrics.jsonl").exists():
            raise Away

        return False

    with pytest.raises(Away):
        trainer("(workdir / 'pid').write_text(str(os.getpid()))\nvalidate(1, 60)\ntime.sleep(30)", stopping=stopping)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "0000" / "pid").read_text()), signal.SIGCONT)


def test_kubernetes_does_not_start_a_diverged_run_again():
    """Slurm's script looks for RESUME_STATUS and deaths alone."""
    script = (ROOT / "launch" / "kubernetes").read_text()
    assert f"values: [1, 2, {DIVERGED_STATUS}, {IN_USE_STATUS}]" in script
    assert RESUME_STATUS not in (1, 2, DIVERGED_STATUS, IN_USE_STATUS)
