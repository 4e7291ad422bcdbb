"""Eight forced CPU devices for every test, and a compilation cache that the tests' own processes share."""

import os
import tempfile
from pathlib import Path

import jax
import pytest

DEVICES = 8
CACHE = {"JAX_COMPILATION_CACHE_DIR": "", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5"}


def pytest_configure(config: pytest.Config) -> None:
    """Before any test module asks for a device."""
    folder = tempfile.TemporaryDirectory(prefix="xla-cache-")
    config.add_cleanup(folder.cleanup)
    os.environ.update(CACHE | {"JAX_COMPILATION_CACHE_DIR": folder.name})
    jax.config.update("jax_compilation_cache_dir", folder.name)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    jax.config.update("jax_num_cpu_devices", DEVICES)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The quick ones first."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny set prepared."""
    from networks import SIZE, tiny_source

    from alexnet_jax.data.store import store_path
    from alexnet_jax.data.writer import write_store

    folder = tmp_path_factory.mktemp("data")
    write_store(tiny_source(), store_path(folder, "tiny", SIZE), SIZE)
    return folder
