"""Breaks one line at a time in the core and runs the quick tests: what they do not notice is a survivor.

    python tests/mutations.py --out=FILE.json [--count=66] [--seed=0] [--reach=FILE.json]

Needs `pip install coverage`. The last commit is cloned, and the clone is broken. The unbroken tests run once, and `coverage`
notes the lines that each of them executes. Then every mutant meets the tests that execute its line, the likeliest
first. Survivors meet all other quick tests too: a test may get from an earlier one what it would execute alone, such as a
traced step.

Run again with the same `--out`, and what has been killed is not tried again. `--reach` keeps what the tests execute; delete
it when they change.
"""

import argparse
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import coverage
import flax.nnx  # noqa: F401  (the forks have what is imported here)
import optax  # noqa: F401
import orbax.checkpoint  # noqa: F401
import pytest
from mutants import Mutant, sample

ROOT = Path(__file__).parents[1]
# The files that are broken, each with the tests that are likeliest to notice and meet it first.
CORE = {
    "network": ("torch_reference", "architectures", "mesh"),
    "ops": ("ops",),
    "gradients": ("ops",),
    "step": ("step",),
    "optimizer": ("optimizer",),
    "augment": ("augment",),
    "mesh": ("mesh",),
    "run/checkpoint": ("checkpoint",),
    "run/reader": ("checkpoint",),
    "data/splits": ("splits",),
    "run/metrics": ("metrics",),
    "run/clock": ("clock",),
    "run/starts": ("clock",),
}
QUICK = ("-q", "-m", "not slow", "-n", "0", "-p", "no:cacheprovider")
SECONDS = 1200  # of one mutant's tests; what hangs is killed, and so counts
# Programs are read from the kept cache, which JAX knows by its path, and none is written: a broken one must not stay.
ENVIRONMENT = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1e9"}


class Reach:
    """A plugin of pytest that writes how long each test takes, and which lines of the core it executes."""

    def __init__(self, package: Path, out: Path):
        self._package, self._out = package, out
        self._seconds: dict[str, float] = {}
        self._failed: list[str] = []
        self._coverage = coverage.Coverage(
            data_file=None, config_file=False, include=[str(package / f"{file}.py") for file in CORE]
        )

    def pytest_sessionstart(self) -> None:
        """Before anything of the package is imported."""
        self._coverage.start()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item):
        """A context and a time for each test."""
        self._coverage.switch_context(item.nodeid)
        start = time.monotonic()
        result = yield
        self._seconds[item.nodeid] = time.monotonic() - start
        return result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A test that fails without a mutant shows nothing with one."""
        if report.failed:
            self._failed.append(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        """Tests by their numbers, as most lines have hundreds."""
        self._coverage.stop()
        for test in self._failed:
            self._seconds.pop(test, None)
        data, numbers = self._coverage.get_data(), {test: number for number, test in enumerate(self._seconds)}
        lines = {}
        for path in data.measured_files():
            by_line = data.contexts_by_lineno(path)
            file = Path(path).relative_to(self._package).as_posix()
            lines[file] = {
                line: sorted(numbers[test] for test in tests if test in numbers) for line, tests in by_line.items()
            }
        self._out.write_text(json.dumps({"seconds": self._seconds, "lines": lines, "left_out": self._failed}))


class Chosen:
    """A plugin of pytest that runs only some tests, the files that take least first, and writes which one failed."""

    def __init__(self, seconds: dict[str, float], out: Path):
        self._seconds, self._out = seconds, out

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Whole files stay together, since tests share what a file sets up."""
        others = [item for item in items if item.nodeid not in self._seconds]
        of_file = defaultdict(float)
        items[:] = [item for item in items if item.nodeid in self._seconds]
        for item in items:
            of_file[item.path] += self._seconds[item.nodeid]
        items.sort(key=lambda item: of_file[item.path])
        config.hook.pytest_deselected(items=others)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """The test that ends the run."""
        if report.failed:
            self._out.write_text(report.nodeid)


class Clone:
    """A clone of the last commit, to break."""

    def __init__(self, folder: Path):
        """`folder`: an empty one."""
        self._root, self._folder = folder / "repository", folder
        subprocess.run(["git", "clone", "--quiet", "--shared", str(ROOT), str(self._root)], check=True)

    def reach(self) -> dict:
        """What the unbroken tests execute. Ends this process if they cannot run."""
        out = self._folder / "reach.json"
        self._status([], Reach(self._root / "alexnet_jax", out), None)
        if not out.exists():
            sys.exit(f"the unbroken tests cannot run:\n{(self._folder / 'said').read_text(errors='replace')[-3000:]}")
        return json.loads(out.read_text())

    def killer(self, mutant: Mutant, rounds: Iterable[dict[str, float]]) -> str:
        """The first test that fails with this line broken; empty if all rounds pass."""
        whole, failed = self._root / "alexnet_jax" / mutant.file, self._folder / "failed"
        unbroken = whole.read_text()
        whole.write_text(mutant.source)
        try:
            for tests in filter(None, rounds):
                failed.unlink(missing_ok=True)
                files = sorted({test.partition("::")[0] for test in tests})
                if status := self._status(files, Chosen(tests, failed), SECONDS, "-x"):
                    return failed.read_text() if failed.exists() else _ends(status)
        finally:
            whole.write_text(unbroken)
        return ""

    def _status(self, files: list[str], plugin: object, seconds: float | None, *words: str) -> int | None:
        """pytest's exit status in a fork; that of an alarm after so many seconds."""
        fork = multiprocessing.get_context("fork").Process(target=self._run, args=(plugin, *words, *files))
        fork.start()
        fork.join(seconds)
        status = fork.exitcode
        if fork.is_alive():
            os.killpg(fork.pid or 0, signal.SIGKILL)
            fork.join()
            return -signal.SIGALRM
        return status

    def _run(self, plugin: object, *words: str) -> None:
        os.setsid()
        os.chdir(self._root)
        sys.path.remove(str(ROOT / "tests"))
        sys.dont_write_bytecode = isinstance(plugin, Chosen)  # broken files of one second and one size look alike
        del sys.modules["mutants"]
        os.environ.update(ENVIRONMENT)
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        said = os.open(self._folder / "said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(said, 1), os.dup2(said, 2)
        status = pytest.main([*QUICK, f"--basetemp={self._folder / 'tmp'}", *words], plugins=[plugin])
        sys.stdout.flush()
        os._exit(status)


def _ends(status: int) -> str:
    """How tests ended that none of them failed."""
    return "too slow" if status == -signal.SIGALRM else f"pytest ended with status {status}"


def rounds(mutant: Mutant, reach: dict) -> list[dict[str, float]]:
    """The tests that meet a mutant, with seconds: the likeliest that execute its line, the others that do, and the rest."""
    seconds, names = reach["seconds"], list(reach["seconds"])
    lines = reach["lines"].get(mutant.file, {})
    near = {names[number] for line in mutant.lines for number in lines.get(str(line), ())}
    files = tuple(f"tests/test_{name}.py" for name in CORE[mutant.file.removesuffix(".py")])
    first = {test for test in near if test.startswith(files)}
    return [{test: seconds[test] for test in sorted(chosen)} for chosen in (first, near - first, seconds.keys() - near)]


def row_of(mutant: Mutant) -> dict:
    """What names a mutant in the record."""
    return {"file": mutant.file, "line": mutant.line, "before": mutant.before, "after": mutant.after}


def main() -> None:
    """Prints a line for each mutant, and the share that was killed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=66, help="mutants")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--out", type=Path, required=True, help="the record, a JSON file; what it has killed is left alone")
    parser.add_argument(
        "--reach", type=Path, help="a JSON file of what the tests execute: read if it is there, else written"
    )
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message="os.fork")
    commit = subprocess.run(["git", "rev-parse", "--short=7", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    old = json.loads(options.out.read_text())["mutants"] if options.out.exists() else []
    killed = {tuple(row[name] for name in ("file", "line", "before", "after")): row for row in old if row["killed_by"]}
    with tempfile.TemporaryDirectory(prefix="mutations-") as folder:
        clone = Clone(Path(folder))
        reach = json.loads(options.reach.read_text()) if options.reach and options.reach.exists() else clone.reach()
        if options.reach:
            options.reach.write_text(json.dumps(reach))
        rows = []
        for mutant in sample(ROOT / "alexnet_jax", list(CORE), options.count, options.seed):
            row = killed.get(tuple(row_of(mutant).values()))
            if row is None:
                killer = clone.killer(mutant, rounds(mutant, reach))
                row = row_of(mutant) | {"killed_by": killer, "commit": commit.stdout.strip()}
            rows.append(row)
            print(
                f"{row['file']}:{row['line']}: {row['before']}  ->  {row['after']}: {row['killed_by'] or 'SURVIVED'}",
                flush=True,
            )
            options.out.write_text(
                json.dumps({"seed": options.seed, "left_out": reach["left_out"], "mutants": rows}, indent=1) + "\n"
            )
    dead = sum(bool(row["killed_by"]) for row in rows)
    print(f"{dead} of {len(rows)} mutants killed ({100 * dead / len(rows):.0f} %)")


if __name__ == "__main__":
    main()
