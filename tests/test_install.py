"""What pip installs: the program, the examples, and extras that a command asks for where it needs them."""

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from networks import ROOT, run, tiny_flags
from pictures import encode, smooth
from test_sweep import space_file

from alexnet_jax import __version__
from alexnet_jax.config import from_words
from alexnet_jax.system import examples, extras
from alexnet_jax.system.errors import UserError

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_an_example_is_found_in_any_folder_and_a_file_on_disk_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert from_words(["--flagfile=quickstart.cfg"]).weight_decay == 0.003
    assert from_words(["--flagfile", "experiments/quickstart.cfg"]).weight_decay == 0.003
    caffe = from_words(["--flagfile=imagenet2012_caffe.cfg", "--steps=5"])  # begins with experiments/imagenet2012.cfg
    assert (caffe.architecture, caffe.dataset, caffe.batch_size, caffe.steps) == ("caffe", "imagenet2012", 256, 5)
    Path("quickstart.cfg").write_text("--weight_decay=0.5\n")
    assert from_words(["--flagfile=quickstart.cfg"]).weight_decay == 0.5
    assert examples.found("sweeps/quickstart.toml") == str(ROOT / "alexnet_jax" / "examples" / "sweeps" / "quickstart.toml")
    for other in ("", "README.md", "../pyproject.toml", "../experiments/quickstart.cfg", "/quickstart.cfg", "sweeps"):
        assert examples.found(other) == other


def test_a_flag_file_that_is_nowhere_is_named_with_the_examples(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    known = "imagenet2012.cfg, imagenet2012_batch32768.cfg, .*quickstart.cfg, sweeps/quickstart.cfg"
    with pytest.raises(
        UserError, match=f"^--flagfile=quick.cfg: there is no such file; the package's examples are {known}$"
    ):
        from_words(["--flagfile=quick.cfg"])
    Path("mine.cfg").write_text("--flagfile=other.cfg\n")
    with pytest.raises(UserError, match=r"^--flagfile=other.cfg: there is no such file"):
        from_words(["--flagfile=mine.cfg"])


def test_the_space_of_a_sweep_is_looked_for_among_the_examples_too(data_dir, tmp_path):
    later = tiny_flags(data_dir, tmp_path / "sweep", dataset="nothing")  # is looked at once the space has been read
    assert run("sweep", *later, "--space=sweeps/quickstart.toml").stderr.startswith(
        "error: --dataset=nothing is not prepared"
    )
    missing = run("sweep", *tiny_flags(data_dir, tmp_path / "sweep"), "--space=sweeps/nothing.toml")
    assert missing.stderr.startswith("error: --space=sweeps/nothing.toml")


@pytest.fixture
def without(monkeypatch):
    """Takes a package away, and our module that imports it out of memory."""

    def block(package: str, importer: str) -> None:
        monkeypatch.setitem(sys.modules, package, None)
        monkeypatch.delitem(sys.modules, importer, raising=False)

    return block


@pytest.mark.parametrize(
    ("package", "importer", "command", "words"),
    [
        ("optuna", "alexnet_jax.sweep.command", "sweep", ["--space=sweeps/quickstart.toml"]),
        ("psycopg", "", "sweep", ["--storage=postgresql+psycopg://localhost:1/x"]),
        ("tensorflow_datasets", "alexnet_jax.data.tfds_sets", "prepare", ["--dataset=cifar10"]),
    ],
)
def test_a_missing_extra_is_one_line_with_the_command_that_installs_it(
    data_dir, tmp_path, monkeypatch, without, package, importer, command, words
):
    if package == "psycopg":
        words = [*words, *tiny_flags(data_dir, tmp_path / "sweep"), f"--space={space_file(tmp_path)}"]
    elif command == "prepare":
        words = [*words, f"--data_dir={tmp_path}"]
    without(package, importer)
    monkeypatch.setattr(extras, "ROOT", tmp_path)
    done = run(command, *words)
    install = f'pip install "alexnet_jax[{extras.EXTRAS[package]}]"'
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"error: this needs {package}, which is not installed: {install}\n"


def test_a_module_of_no_extra_keeps_its_traceback(without):
    without("jax.experimental.nothing", "")
    with pytest.raises(ModuleNotFoundError), extras.needed():
        import jax.experimental.nothing  # noqa: F401  # pyright: ignore[reportMissingImports]


def test_the_command_that_installs_an_extra_fits_a_clone_and_an_installed_package(tmp_path, monkeypatch):
    assert extras.install("optuna") == "pip install -r requirements.txt"
    assert extras.install("torch") == "pip install -r requirements-benchmark.txt"
    monkeypatch.setattr(extras, "ROOT", tmp_path)
    assert extras.install("torch") == 'pip install "alexnet_jax[benchmark]"'


def test_every_extra_is_in_the_project_and_in_a_file_of_requirements():
    offered = PROJECT["project"]["optional-dependencies"]
    assert set(extras.EXTRAS.values()) <= set(offered)
    wanted = {name.split("[")[0].split(">")[0].split("=")[0] for names in offered.values() for name in names}
    listed = " ".join(path.read_text() for path in ROOT.glob("requirements*.txt"))
    others = {"alexnet_jax", "filelock"}
    assert [name for name in wanted - others if name not in listed] == []
    everything = offered["all"][0]  # sweep and tfds are in others of it; accelerators are 2 GB of compilers
    assert all(extra in everything for extra in set(extras.EXTRAS.values()) - {"sweep", "tfds", "accelerators"})
    base = " ".join(PROJECT["project"]["dependencies"]).lower()
    assert not any(module.replace("_", "-") in base for module in extras.EXTRAS)


def copied(folder: Path) -> list[str]:
    """What git has of the package and the experiments, in a folder where setuptools may write. Returns the names."""
    parts = ("alexnet_jax", "experiments", "pyproject.toml", "README.md", "LICENSE")
    listed = subprocess.run(["git", "ls-files", *parts], cwd=ROOT, capture_output=True, text=True, check=True)
    names = listed.stdout.splitlines()
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)
    return names


@pytest.mark.slow
def test_a_wheel_has_the_program_the_flag_files_and_nothing_else_of_the_experiments(tmp_path):
    names = copied(tmp_path / "copy")
    build = ["pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", f"--wheel-dir={tmp_path}"]
    subprocess.run([sys.executable, "-m", *build, str(tmp_path / "copy")], check=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name == f"alexnet_jax-{__version__}-py3-none-any.whl"
    inside = zipfile.ZipFile(wheel).namelist()
    sources = {name for name in names if name.startswith("alexnet_jax/") and name.endswith(".py")}
    assert {name for name in inside if name.endswith(".py")} == sources
    flag_files = [path for pattern in ("*.cfg", "*/*.cfg", "*/*.toml") for path in (ROOT / "experiments").glob(pattern)]
    there = {str(path.relative_to(ROOT / "experiments")) for path in flag_files}
    brought = {name.removeprefix("alexnet_jax/examples/") for name in inside if name.startswith("alexnet_jax/examples/")}
    assert brought == there >= {"quickstart.cfg", "sweeps/quickstart.toml", "claims/figure1_relu.cfg"}
    (scripts,) = [name for name in inside if name.endswith("entry_points.txt")]
    assert "alexnet = alexnet_jax.__main__:main" in zipfile.ZipFile(wheel).read(scripts).decode()


@pytest.mark.nightly
def test_an_installed_package_trains_evaluates_and_predicts_in_an_empty_folder(tmp_path):
    """From `pip install .` in a new environment: what a person does first, at full size for three steps."""
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    installed = tmp_path / "venv" / "bin"
    copied(tmp_path / "copy")
    subprocess.run([str(installed / "pip"), "install", "--quiet", str(tmp_path / "copy")], check=True, timeout=1800)
    empty = tmp_path / "empty"
    empty.mkdir()

    def alexnet(*words: str) -> str:
        environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "ALEXNET_FLAGS")}
        done = subprocess.run(
            [str(installed / "alexnet"), *words], cwd=empty, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "\n    alexnet train --flagfile=quickstart.cfg --workdir=runs/first\n" in alexnet("train", "--help")
    alexnet("train", "--flagfile=quickstart.cfg", "--workdir=w", "--steps=3")
    assert '"examples": 661' in alexnet("evaluate", "--workdir=w")
    (empty / "photo.png").write_bytes(encode(smooth(90, 70), "PNG"))
    assert alexnet("predict", "--workdir=w", "photo.png").count("%") == 5
    lacking = subprocess.run(
        [str(installed / "alexnet"), "sweep", "--space=sweeps/quickstart.toml", "--workdir=s"],
        cwd=empty, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert lacking.stderr == 'error: this needs optuna, which is not installed: pip install "alexnet_jax[sweep]"\n'
