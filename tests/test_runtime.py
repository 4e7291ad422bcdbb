"""A second start compiles nothing; JAX's own settings come first."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from networks import ROOT, tiny_flags

from alexnet_jax.system import runtime


def start(module, *flags, **environment):
    """Runs an entry point without the cache that the tests share."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    command = [sys.executable, "-W", "error", "-m", f"alexnet_jax.{module}", *flags]
    done = subprocess.run(command, env=clean | environment, check=True, capture_output=True, text=True, cwd=ROOT)
    assert "doesn't match the machine" not in done.stderr


def programs(cache: Path) -> set[Path]:
    return set(cache.glob("*/*/*-cache"))


@pytest.fixture
def settings(monkeypatch):
    """JAX's cache settings of a new process, restored afterwards."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    for name in names:
        monkeypatch.delenv(name.upper(), raising=False)
    yield lambda: tuple(getattr(jax.config, name) for name in names)
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.mark.slow
def test_a_second_start_compiles_nothing(data_dir, tmp_path):
    """Each compilation writes a file to the cache, so a second compilation would leave a new one.

    The processes are new, because a process keeps what it compiled. The cache starts empty. XLA does not optimise.
    """
    cache = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    start("train", *tiny_flags(data_dir, tmp_path / "first", mesh="1x1", steps=1), **cache)
    compiled = programs(tmp_path / "cache")
    assert any("jit_step" in path.name for path in compiled)
    start("train", *tiny_flags(data_dir, tmp_path / "second", mesh="1x1", steps=1), **cache)
    assert programs(tmp_path / "cache") == compiled
    assert (tmp_path / "first" / "metrics.jsonl").exists()
    assert (tmp_path / "second" / "metrics.jsonl").exists()


def test_each_processor_and_each_jaxlib_has_a_cache_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folders = [
        runtime.cache_folder("xla", processor, jaxlib)
        for processor in ("flags: sse", "flags: avx")
        for jaxlib in ("1.0", "1.1")
    ]
    assert len(set(folders)) == 4
    assert {folder.parent for folder in folders} == {tmp_path / "alexnet_jax"}
    assert folders[1].name.startswith("xla-1.1-")
    assert runtime.cache_folder("xla", "flags: sse", "1.0") == folders[0]
    assert runtime.cache_folder("other", "flags: sse", "1.0") != folders[0]
    assert runtime.cache_folder() not in folders
    assert list(tmp_path.iterdir()) == []  # the call makes no folder
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert runtime.cache_folder().parent == Path.home() / ".cache" / "alexnet_jax"


def test_a_start_keeps_every_program_in_the_cache_folder(settings, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    runtime.start()
    assert settings() == (str(runtime.cache_folder()), 0.0)
    assert runtime.cache_folder().is_dir()


def test_the_environment_comes_before_the_cache_folder(settings, tmp_path, monkeypatch):
    before = settings()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "somewhere else")  # JAX has already read it
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "5")
    runtime.start()
    assert settings() == before
    assert list(tmp_path.iterdir()) == []


def test_a_start_works_without_a_cache_that_can_be_written(settings, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    before = settings()
    runtime.start()
    assert settings()[0] == before[0]


def slurm(task: str, seen: str, tasks: str = "", per_task: str = "", **other: str) -> dict[str, str]:
    """The environment of a task of Slurm: its number on its node, the GPUs that it sees, and what was asked for."""
    environment = {"SLURM_LOCALID": task, "CUDA_VISIBLE_DEVICES": seen}
    return environment | {"SLURM_NTASKS_PER_NODE": tasks, "SLURM_GPUS_PER_TASK": per_task} | other


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        # Not on Slurm, without a GPU, by the user's own word, or by a bare srun: as JAX does.
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, None),
        ({"SLURM_LOCALID": "1"}, None),
        (slurm("1", ""), None),
        (slurm("", "0"), None),
        (slurm("1", "0", JAX_LOCAL_DEVICE_IDS="0"), None),
        (slurm("1", "0,1"), None),
        # Every task sees all GPUs of the node.
        (slurm("3", "0,1,2,3", tasks="4"), [3]),
        (slurm("1", "0,1,2,3", tasks="2"), [2, 3]),
        (slurm("0", "0,1,2,3", tasks="1"), [0, 1, 2, 3]),
        (slurm("1", "0,1", tasks="2", per_task="1"), [1]),  # --gpus-per-task=1 --gpu-bind=none
        # Each task sees only GPUs of its own.
        (slurm("0", "0", tasks="4"), [0]),
        (slurm("3", "0", tasks="4"), [0]),
        (slurm("3", "2", tasks="4", per_task="1"), [0]),
        (slurm("1", "GPU-1f3a"), [0]),
        (slurm("3", "0,1"), [0, 1]),
        (slurm("1", "0,1", tasks="4"), [0, 1]),
        (slurm("1", "0,1", tasks="2", per_task="2"), [0, 1]),
        (slurm("1", "0,1", tasks="2", per_task="h100:2"), [0, 1]),
    ],
)
def test_a_task_of_slurm_takes_gpus_that_it_sees(environment, expected):
    assert runtime.own_gpus(environment) == expected


TOLD = {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1", "JAX_COORDINATOR_ADDRESS": "localhost:1"}


@pytest.mark.parametrize(
    ("environment", "gpus", "detection"),
    [
        (slurm("1", "0", tasks="2"), [0], None),
        (slurm("1", "0", tasks="2", JAX_COORDINATOR_ADDRESS="localhost:1"), [0], None),
        (slurm("1", "0,1", tasks="2"), [1], None),
        # launch/local in a job of Slurm, whose task is not the one that trains: what the process sees is its share.
        ({"CUDA_VISIBLE_DEVICES": "2,3"} | TOLD, None, "deactivate"),
        (slurm("0", "2,3", tasks="2") | TOLD, None, "deactivate"),
    ],
)
def test_jax_is_told_the_gpus_of_a_process(settings, monkeypatch, environment, gpus, detection):
    said = {}
    monkeypatch.setattr(jax.distributed, "initialize", lambda **given: said.update(given))
    for name in (*TOLD, "JAX_LOCAL_DEVICE_IDS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    runtime.start(distributed=True)
    assert (said["local_device_ids"], said["cluster_detection_method"]) == (gpus, detection)
