"""A second start compiles nothing; JAX's own settings come first."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from networks import ROOT, tiny_flags

from alexnet_jax import runtime


def start(module, *flags, **environment):
    """An entry point without the cache that the tests share."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    command = [sys.executable, "-W", "error", "-m", f"alexnet_jax.{module}", *flags]
    done = subprocess.run(command, env=clean | environment, check=True, capture_output=True, text=True, cwd=ROOT)
    assert "doesn't match the machine" not in done.stderr


def programs(cache: Path) -> set[Path]:
    return set(cache.glob("*/*/*-cache"))


@pytest.mark.slow
def test_a_second_start_compiles_nothing(data_dir, tmp_path):
    """Every program that is compiled is written to the cache, so one that is compiled again leaves a new file."""
    cache = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    start("train", *tiny_flags(data_dir, tmp_path / "first", mesh="1x2", host_devices=2), **cache)
    compiled = programs(tmp_path / "cache")
    assert any("jit_step" in path.name for path in compiled)
    start("train", *tiny_flags(data_dir, tmp_path / "second", mesh="1x2", host_devices=2), **cache)
    assert programs(tmp_path / "cache") == compiled
    assert (tmp_path / "first" / "metrics.jsonl").exists()
    assert (tmp_path / "second" / "metrics.jsonl").exists()


def test_the_cache_is_kept_apart_by_processor_and_yields_to_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = runtime.cache_folder()
    assert folder.parent == tmp_path / "alexnet_jax"
    monkeypatch.setattr(Path, "read_text", lambda path: "flags : another processor")
    assert runtime.cache_folder() not in (folder, folder.parent)
    assert not (tmp_path / "alexnet_jax").exists()
