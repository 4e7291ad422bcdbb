"""The launch scripts and the README's commands, word for word, in a copy of the repository with short training."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from imagenet_tars import write_tars
from networks import ROOT

from alexnet_jax.data.sources import open_source

TFDS = ROOT.parent / "shared" / "data" / "tfds"
PREFIX = Path(sys.prefix)


def readme_blocks() -> list[str]:
    """The bash blocks of the README and of the page on data, in order."""
    pages = "".join((ROOT / page).read_text() for page in ("README.md", "alexnet_jax/data/README.md"))
    return re.findall(r"```bash\n(.*?)```", pages, flags=re.DOTALL)


def shell(script: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A block as a person pastes it into a terminal, stopping at the first failure."""
    return subprocess.run(
        ["bash", "-euc", script], cwd=cwd, capture_output=True, text=True, timeout=1200, check=False,
        env={name: value for name, value in os.environ.items() if name != "REQUIREMENTS"} | environment,
    )  # fmt: skip


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """The repository as git would hand it out, with one epoch in the quickstart and this environment as its .venv."""
    folder = tmp_path_factory.mktemp("clone") / "alexnet_jax"
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in tracked.stdout.splitlines():
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    for name, shorter in {
        "quickstart": "--epochs=1\n--log_every=5\n",
        "sweeps/quickstart": "--trials=1\n--steps=2\n",
        "imagenet2012": "--steps=1\n--batch_size=4\n",
    }.items():
        flagfile = folder / "experiments" / f"{name}.cfg"
        flagfile.write_text(flagfile.read_text() + shorter)
    (folder / ".venv").symlink_to(PREFIX)
    for number, example in enumerate(open_source("groceries", None).splits["train"].read(0)):
        photograph = folder / "photos" / f"class {example.label}" / f"{number}.jpg"
        photograph.parent.mkdir(parents=True, exist_ok=True)
        photograph.write_bytes(example.image)
    return folder


@pytest.mark.slow
def test_the_readme_word_for_word(copy):
    blocks = readme_blocks()
    assert "./launch/test\n" in blocks
    for block in blocks:
        if block == "./launch/test\n":  # which is what runs this
            continue
        if "cifar10" in block and not TFDS.exists():
            print("skipped, for CIFAR-10 is not at hand:", block)
            continue
        if "imagenet2012" in block:
            if importlib.util.find_spec("tensorflow") is None:
                print("skipped, for TensorFlow is not installed:", block)
                continue
            write_tars(copy / "tfds")
        path = f"{PREFIX}/bin:{os.environ['PATH']}"  # activated once, in an earlier block
        result = shell(block, copy, TFDS_DATA_DIR=str(TFDS), PATH=path)
        assert result.returncode == 0, f"{block}\n{result.stdout}\n{result.stderr}"
        if "quickstart\n" in block:
            lines = result.stdout.splitlines()
            scores = [json.loads(line) for line in lines if line.startswith("{")]
            assert [(score["views"], score["examples"]) for score in scores] == [(1, 661), (10, 661)]
            assert all((copy / line).exists() for line in lines if line.endswith(".png"))
            assert sum(line.endswith(".png") for line in lines) == 8
    for workdir in ("seed1", "towers", "quickstart", "photos"):
        assert (copy / "runs" / workdir / "metrics.jsonl").exists()
    assert (copy / "runs" / "both.npz").exists()
    assert (copy / "runs" / "sweep" / "trials.csv").read_text().count(",complete,") == 1


def test_an_old_python_is_told_what_is_needed(tmp_path):
    old = tmp_path / "python"
    old.write_text("#!/bin/sh\n[ \"$1\" = --version ] && echo 'Python 3.9.1' && exit\nexit 1\n")
    old.chmod(0o755)
    result = shell(f"{ROOT}/launch/quickstart", tmp_path, PYTHON=str(old), VENV=str(tmp_path / "venv"))
    assert result.returncode == 1
    assert result.stderr.startswith(f"error: {old} is Python 3.9.1; Python 3.11, 3.12 or 3.13 is needed")
    assert not (tmp_path / "venv").exists()


def test_the_quickstart_takes_no_flags_and_says_so_at_once(tmp_path):
    result = shell(f"{ROOT}/launch/quickstart --help", tmp_path)
    assert (result.returncode, result.stderr) == (2, "error: --help: usage: ./launch/quickstart [workdir]\n")
    assert not (tmp_path / ".venv").exists()


def test_the_scripts_parse_and_can_be_run():
    for script in (*sorted((ROOT / "launch").glob("[a-z]*")), ROOT / ".ci" / "run"):
        assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
        assert os.access(script, os.X_OK) or script.name == "environment"


def test_every_module_is_in_the_packages_readme():
    readme = (ROOT / "alexnet_jax" / "README.md").read_text()
    for module in (ROOT / "alexnet_jax").glob("*.py"):
        assert module.name == "__init__.py" or module.name in readme, module.name
