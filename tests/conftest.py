"""Eight forced CPU devices for every test, quick compilation, and a cache of programs that is kept between runs."""

import os
import signal
from pathlib import Path

import jax
import pytest
from filelock import FileLock

from alexnet_jax.system.runtime import cache_folder

pytest_plugins = ["programs"]

DEVICES = 8
# The files that take longest come first, so that the workers end together.
LONGEST = (
    "readme", "several", "sweep", "step", "torch_reference", "several_evaluate", "faults", "train", "lost_runs", "imagenet",
    "classify", "profile", "ops", "benchmark", "notebook", "claims", "checkpoint", "average", "bad_input", "loader", "mesh",
)  # fmt: skip
QUICK = "JAX_DISABLE_MOST_OPTIMIZATIONS"
# With a bound JAX guards the cache by a lock, which several workers and the processes that they start need. Without most
# of the compiler's optimisations a first run takes three quarters of the time, and a later one as long as before.
SETTINGS = {
    "jax_compilation_cache_dir": os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(cache_folder("tests")),
    "jax_compilation_cache_max_size": 4 << 30,
    "jax_persistent_cache_min_compile_time_secs": float(os.environ.get("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", 0)),
    "jax_disable_most_optimizations": QUICK not in os.environ or jax.config.read(QUICK.lower()),
}


def pytest_configure(config: pytest.Config) -> None:
    """Before any test module asks for a device."""
    for number in (signal.SIGINT, signal.SIGHUP):  # nohup and a shell's & ignore them, and every process would inherit that
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    for name, value in SETTINGS.items():
        os.environ[name.upper()] = str(value)  # for the processes that tests start
        jax.config.update(name, value)
    jax.config.update("jax_num_cpu_devices", DEVICES)
    if not hasattr(config, "workerinput"):
        mend_cache(Path(SETTINGS["jax_compilation_cache_dir"]))


def mend_cache(folder: Path) -> None:
    """Deletes programs that a killed process was writing. JAX would warn of them at every other program, for ever.

    It writes NAME-cache and then NAME-atime.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lockfile"):
        files = {path.name for path in folder.iterdir()}
        for ours, other in (("-cache", "-atime"), ("-atime", "-cache")):
            for name in files:
                if name.endswith(ours) and name.removesuffix(ours) + other not in files:
                    (folder / name).unlink()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole files go to the workers in this order. A nightly test is a slow one too, before the marks are chosen from."""
    for item in items:
        if item.get_closest_marker("nightly"):
            item.add_marker("slow")

    def place(item: pytest.Item) -> tuple[int, bool]:
        name = item.path.stem.removeprefix("test_")
        order = LONGEST.index(name) if name in LONGEST else len(LONGEST)
        return order, item.get_closest_marker("slow") is not None

    items.sort(key=place)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny set prepared."""
    from networks import SIZE, tiny_source

    from alexnet_jax.data.store import store_path
    from alexnet_jax.data.writer import write_store

    folder = tmp_path_factory.mktemp("data")
    write_store(tiny_source(), store_path(folder, "tiny", SIZE), SIZE)
    return folder
