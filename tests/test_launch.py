"""The launch scripts and continuous integration, run with stubs; and flags from the environment."""

import os
import subprocess
from pathlib import Path

import pytest
from absl import flags
from networks import ROOT

from alexnet_jax.system import cli

SET_BY_SCRIPTS = ("PYTHON", "VENV", "REQUIREMENTS", "WORKERS")  # these tests may be run by .ci/run itself


def shell(script: str, cwd: Path, timeout: float = 60, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a block as pasted into a terminal. It stops at the first failure."""
    return subprocess.run(
        ["bash", "-euc", script], cwd=cwd, capture_output=True, text=True, timeout=timeout, check=False,
        env={name: value for name, value in os.environ.items() if name not in SET_BY_SCRIPTS} | environment,
    )  # fmt: skip


def define_two(options: flags.FlagValues) -> None:
    """A number and a switch."""
    flags.DEFINE_integer("steps", 1, "steps", flag_values=options)
    flags.DEFINE_boolean("mirror", True, "mirror", flag_values=options)


@pytest.mark.parametrize(
    ("extra", "seen", "said"),
    [
        ("", (2, True), ""),
        ("--colour=red --steps=5", (5, True), "note: ALEXNET_FLAGS adds --steps=5\n"),
        ("--nomirror --nothing", (2, False), "note: ALEXNET_FLAGS adds --nomirror\n"),
        ("--steps=many", None, "note: ALEXNET_FLAGS adds --steps=many\nerror: flag --steps=many"),
        ("--steps='5", None, "error: ALEXNET_FLAGS=--steps='5 cannot be read: No closing quotation"),
    ],
)
def test_flags_of_the_environment_come_last_where_a_command_has_them(monkeypatch, capsys, extra, seen, said):
    monkeypatch.setenv("ALEXNET_FLAGS", extra)
    got = []
    command = cli.Command("Tries.", define_two, lambda options: got.append((options.steps, options.mirror)))
    assert command(["--steps=2"]) == (seen is None)
    assert got == ([] if seen is None else [seen])
    stderr = capsys.readouterr().err
    assert stderr.startswith(said)
    assert bool(stderr) == bool(said)
    assert command(["--help"]) == 0
    assert "The environment variable ALEXNET_FLAGS holds flags" in capsys.readouterr().out


def test_an_old_python_is_told_what_is_needed(tmp_path):
    old = tmp_path / "python"
    old.write_text("#!/bin/sh\n[ \"$1\" = --version ] && echo 'Python 3.9.1' && exit\nexit 1\n")
    old.chmod(0o755)
    result = shell(f"{ROOT}/launch/quickstart", tmp_path, PYTHON=str(old), VENV=str(tmp_path / "venv"))
    assert result.returncode == 1
    assert result.stderr.startswith(f"error: {old} is Python 3.9.1; Python 3.11, 3.12 or 3.13 is needed")
    assert not (tmp_path / "venv").exists()


# Replaces python, pyenv and the linters: notes its calls, fails on a call that matches $FAILS, and can make a .venv.
STUB = """#!/bin/bash
case "$*" in
  "-m venv "*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python" ;;
  --version) echo "Python $(cat "$0.version" 2>/dev/null)" ;;
  root) echo "${0%/*}" ;;
esac
case $* in "-m pytest "* | check* | format* | --pythonpath*) printf '%s\\n' "${0#"$HERE/"}" "$@" '' >> "$HERE/calls" ;; esac
if [ -n "${FAILS:-}" ] && [[ "$0 $*" == $FAILS ]]; then exit 3; fi
"""


def stubs(folder: Path, *paths: str) -> dict[str, str]:
    """Makes stubs at these paths. Returns the environment in which scripts find only them."""
    for name in paths:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(STUB)
        path.chmod(0o755)
    return {"PATH": f"{folder}/bin:/usr/bin:/bin", "VENV": str(folder / "venv"), "HERE": str(folder)}


def calls_in(folder: Path) -> list[list[str]]:
    """The calls of stubs, each with its arguments."""
    return [call.split("\n") for call in (folder / "calls").read_text().removesuffix("\n\n").split("\n\n")]


@pytest.mark.parametrize(
    ("words", "marks", "passed"),
    [
        ("", ["-m", "not nightly"], []),
        ("-k 'a or b' tests/test_train.py", ["-m", "not nightly"], ["-k", "a or b", "tests/test_train.py"]),
        ("--all -x", [], ["-x"]),
        ("-m 'not slow'", [], ["-m", "not slow"]),
        ("-mnightly", [], ["-mnightly"]),
    ],
)
def test_the_test_script_leaves_out_nightly_ones_unless_it_is_told(tmp_path, words, marks, passed):
    environment = stubs(tmp_path, "venv/bin/python")
    assert shell(f"{ROOT}/launch/test {words}", tmp_path, WORKERS="3", **environment).returncode == 0
    ((program, *called),) = calls_in(tmp_path)
    assert program == "venv/bin/python"
    ours = ["-m", "pytest", "--durations=15", "--durations-min=1", *marks, "-n", "3", "--maxprocesses=8", "--dist=loadfile"]
    ours += ["--no-loadscope-reorder"]
    assert called == [*ours, *passed]


def test_the_test_script_can_do_without_several_processes(tmp_path):
    environment = stubs(tmp_path, "venv/bin/python")
    for words in ("-n 0", "-p no:xdist"):
        assert shell(f"{ROOT}/launch/test {words}", tmp_path, **environment).returncode == 0
    none, without = calls_in(tmp_path)
    assert [none[place + 1] for place, word in enumerate(none) if word == "-n"] == ["auto", "0"]  # the last one counts
    assert without[1:] == ["-m", "pytest", "--durations=15", "--durations-min=1", "-m", "not nightly", "-p", "no:xdist"]


NOTES_PACKAGES = """#!/bin/bash
case "$*" in
  "-m pip install "*) echo "${*: -1}" >> "$HERE/installed" ;;
  *'version("jax")'*) echo 0.12.0.1 ;;
esac
"""


@pytest.mark.parametrize(
    ("said", "extra"),
    [
        ("echo 580.65.06; echo 580.65.06", "cuda13"),  # a line for each GPU
        ("echo 590.10", "cuda13"),
        ("echo 575.57.08", "cuda12"),
        ("echo No devices were found", None),
        ("echo 580.65.06; exit 9", None),  # no driver answers
    ],
)
def test_the_driver_chooses_the_cuda_of_jax(tmp_path, said, extra):
    environment = stubs(tmp_path, "venv/bin/python", "bin/nvidia-smi")
    (tmp_path / "venv/bin/python").write_text(NOTES_PACKAGES)
    wanted = '[ "$*" = "--query-gpu=driver_version --format=csv,noheader" ] || exit 2'
    (tmp_path / "bin/nvidia-smi").write_text(f"#!/bin/bash\n{wanted}\n{said}\n")
    for lines in (1, 0):  # the second time all is there
        done = shell(f". {ROOT}/launch/environment", tmp_path, **environment)
        assert (done.returncode, done.stderr.count("\n")) == (0, lines)
    installed = (tmp_path / "installed").read_text().splitlines()
    assert installed == ["requirements.txt", *([f"jax[{extra}]==0.12.0.1"] if extra else [])]


VERSIONS = {"bin/python3.11": "3.11.9", "bin/python3.12": "", "bin/versions/3.12.4/bin/python": "3.12.4"}
PIPELINE = [
    ["venv/bin/ruff", "check"], ["venv/bin/ruff", "format", "--check"], ["venv/bin/pyright", "--pythonpath"],
    ["venv/bin/python", "-m", "pytest"], ["venv-3.12/bin/python", "-m", "pytest"],
]  # fmt: skip


def run_pipeline(folder: Path, *, second: bool = True, fails: str = "") -> tuple[subprocess.CompletedProcess[str], list]:
    """.ci/run with stubs: how it ended, and what it called. `python3.12` is a shim that does not work."""
    paths = [path for path in VERSIONS if second or "3.12.4" not in path]
    environment = stubs(folder, *paths, "bin/pyenv", "venv/bin/ruff", "venv/bin/pyright")
    for path in paths:
        (folder / f"{path}.version").write_text(VERSIONS[path])
    result = shell(f"{ROOT}/.ci/run", folder, FAILS=fails, **environment)
    calls = calls_in(folder)
    assert all(call[: len(start)] == start for call, start in zip(calls, PIPELINE, strict=False)), calls
    return result, calls


def test_continuous_integration_runs_two_pythons(tmp_path):
    result, calls = run_pipeline(tmp_path)
    assert result.returncode == 0, result.stderr
    assert len(calls) == len(PIPELINE)
    assert [[call[place + 1] for place, word in enumerate(call) if word == "-m"] for call in calls[3:]] == [
        ["pytest", "not nightly"],
        ["pytest", "not slow"],
    ]


def test_continuous_integration_says_when_there_is_one_python(tmp_path):
    result, calls = run_pipeline(tmp_path, second=False)
    assert result.returncode == 0, result.stderr
    assert "no Python 3.12 was found here" in result.stderr
    assert len(calls) == len(PIPELINE) - 1


@pytest.mark.parametrize(
    ("stages", "fails"),
    [
        (1, "*ruff check*"),
        (2, "*ruff format*"),
        (3, "*pyright*"),
        (4, "*pytest*-m not nightly*"),
        (5, "*pytest*-m not slow*"),
    ],
)
def test_continuous_integration_fails_with_any_of_its_parts(tmp_path, stages, fails):
    result, calls = run_pipeline(tmp_path, fails=fails)
    assert result.returncode == 3
    assert len(calls) == stages  # and it stops there


def test_the_scripts_parse_and_can_be_run():
    scripts = [*sorted((ROOT / "launch").glob("[a-z]*")), ROOT / ".ci" / "run"]
    for script in scripts:
        assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
        assert os.access(script, os.X_OK) or script.name == "environment"
