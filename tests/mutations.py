"""Breaks one line at a time in the core and runs the quick tests: what they do not notice is a survivor.

    python tests/mutations.py [--count=60] [--start=0] [--seed=0] [--jobs=1] [--out=FILE.json]

The places are drawn from the syntax trees by the seed, evenly over the files. Copies of the repository are broken, so the
work tree stays as it is. Prints a line for each mutant, and the share that was killed.
"""

import argparse
import ast
import copy
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from alexnet_jax.system.runtime import cache_folder  # noqa: E402

# The files that are broken, each with the tests that are likeliest to notice. The other quick tests follow.
CORE = {
    "network": ("torch_reference", "mesh", "architectures", "step"),
    "ops": ("ops",),
    "gradients": ("ops",),
    "step": ("step", "evaluate", "train"),
    "optimizer": ("optimizer", "train"),
    "augment": ("augment", "step"),
    "mesh": ("mesh", "loader", "step"),
    "run/checkpoint": ("checkpoint", "train", "lost_runs"),
    "run/reader": ("checkpoint", "lost_runs"),
    "data/splits": ("splits", "loader"),
    "run/metrics": ("metrics", "train"),
    "run/clock": ("clock", "train"),
    "run/starts": ("clock", "train"),
}
QUICK = "not slow"
SECONDS = 1800  # of one mutant; one that hangs is killed, and so counts
COMPARISONS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
OPERATORS = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
    ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip


SYMMETRIC = ("min", "max", "jnp.add", "jnp.logaddexp", "isinstance")  # an exchange of arguments changes nothing, or all


@dataclass(frozen=True)
class Mutant:
    """One broken line."""

    file: str  # below the package
    line: int
    before: str
    after: str
    source: str  # of the whole broken file


def variants(node: ast.AST) -> Iterator[ast.AST]:  # noqa: C901
    """The node broken in each way that is known for its kind."""
    match node:
        case ast.Compare(ops=[operator]) if type(operator) in COMPARISONS:
            yield ast.Compare(node.left, [COMPARISONS[type(operator)]()], node.comparators)
        case ast.BinOp(op=operator) if type(operator) in OPERATORS and not isinstance(
            node.left, ast.Constant | ast.JoinedStr
        ):
            yield ast.BinOp(node.left, OPERATORS[type(operator)](), node.right)
        case ast.BoolOp(op=ast.And()):
            yield ast.BoolOp(ast.Or(), node.values)
        case ast.BoolOp(op=ast.Or()):
            yield ast.BoolOp(ast.And(), node.values)
        case ast.UnaryOp(op=ast.Not() | ast.USub() | ast.Invert()):
            yield node.operand
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int(value) | float(value)):
            yield ast.Constant(value + 1)
        case ast.IfExp():
            yield ast.IfExp(node.test, node.orelse, node.body)
        case ast.If():
            yield ast.If(ast.UnaryOp(ast.Not(), node.test), node.body, node.orelse)
        case ast.Expr(value=ast.Call()):
            yield ast.Pass()
        case ast.AugAssign(op=operator) if type(operator) in OPERATORS:
            yield ast.AugAssign(node.target, OPERATORS[type(operator)](), node.value)
        case ast.Call(args=[ast.Name() | ast.Constant() as first, ast.Name() | ast.Constant() as second, *rest]) if (
            ast.unparse(node.func) not in SYMMETRIC
        ):
            yield ast.Call(node.func, [second, first, *rest], node.keywords)


def breakable(tree: ast.Module) -> list[ast.AST]:
    """The nodes inside functions, but for annotations, messages of errors and warnings, and words of subscripts' types."""
    found: list[ast.AST] = []

    def visit(node: ast.AST, inside: bool) -> None:
        if isinstance(node, ast.Raise | ast.JoinedStr | ast.arg | ast.AnnAssign) or _is_message(node):
            return
        if isinstance(node, ast.FunctionDef):
            for statement in node.body:
                visit(statement, True)
            return
        if inside and any(variants(node)):
            found.append(node)
        for child in ast.iter_child_nodes(node):
            visit(child, inside)

    visit(tree, False)
    return found


def _is_message(node: ast.AST) -> bool:
    call = node.value if isinstance(node, ast.Expr) else node
    name = ast.unparse(call.func) if isinstance(call, ast.Call) else ""
    return name.startswith(("logging.", "logger.", "warnings.")) or name.endswith(("Error", ".say"))


def mutants(file: str, rng: random.Random) -> Iterator[Mutant]:
    """Every mutant of a file, in the order of the draw."""
    text = (ROOT / "alexnet_jax" / f"{file}.py").read_text()
    tree = ast.parse(text)
    nodes = breakable(tree)
    rng.shuffle(nodes)
    for node in nodes:
        for variant in variants(node):
            broken = _Replaced(node, variant).visit(copy.copy(tree))
            source = ast.unparse(ast.fix_missing_locations(broken))
            line = getattr(node, "lineno", 0)
            yield Mutant(f"{file}.py", line, ast.unparse(node).splitlines()[0], _first(variant), source)


def _first(node: ast.AST) -> str:
    return ast.unparse(ast.fix_missing_locations(node)).splitlines()[0]


class _Replaced(ast.NodeTransformer):
    """A tree with one node replaced; the tree that it is given stays whole."""

    def __init__(self, node: ast.AST, variant: ast.AST):
        self._node, self._variant = node, variant

    def visit(self, node: ast.AST) -> ast.AST:
        if node is self._node:
            return self._variant
        return super().visit(node)

    def generic_visit(self, node: ast.AST) -> ast.AST:
        fresh = copy.copy(node)
        for name, value in ast.iter_fields(node):
            if isinstance(value, list):
                setattr(fresh, name, [self.visit(item) if isinstance(item, ast.AST) else item for item in value])
            elif isinstance(value, ast.AST):
                setattr(fresh, name, self.visit(value))
        return fresh


def sample(count: int, seed: int) -> list[Mutant]:
    """So many mutants, dealt out evenly over the files."""
    queues = {file: list(mutants(file, random.Random(f"{seed} {file}"))) for file in CORE}
    chosen: list[Mutant] = []
    while len(chosen) < count and any(queues.values()):
        for queue in queues.values():
            if queue and len(chosen) < count:
                chosen.append(queue.pop(0))
    return chosen


class Copy:
    """A copy of the repository to break, one for each job; it keeps its bytecode, so that a start takes seconds."""

    def __init__(self, folder: Path, cache: Path, workers: int):
        """`cache`: folder of compiled programs. `workers`: processes that share the test files."""
        self._workers = workers
        self._root, self._tmp = folder / "repository", folder / "tmp"
        ignored = shutil.ignore_patterns(".git", ".venv*", "__pycache__", "runs", "data_*", ".*_cache")
        shutil.copytree(ROOT, self._root, ignore=ignored)
        self._environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache)}
        self._environment.pop("PYTHONDONTWRITEBYTECODE", None)

    def kills(self, mutant: Mutant) -> bool:
        """Whether the quick tests fail with this line broken: the likeliest first, then the others."""
        first = [f"test_{name}.py" for name in CORE[mutant.file.removesuffix(".py")]]
        broken = self._root / "alexnet_jax" / mutant.file
        broken.write_text(mutant.source)
        try:
            return self.fails(first) or self.fails([name for name in self.tests() if name not in first])
        finally:
            shutil.copy2(ROOT / "alexnet_jax" / mutant.file, broken)

    def tests(self) -> list[str]:
        """The test files."""
        return sorted(path.name for path in (self._root / "tests").glob("test_*.py"))

    def fails(self, tests: list[str], seconds: float | None = SECONDS) -> bool:
        """Whether the quick tests of these files fail, or take longer than that."""
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", QUICK, "-p", "no:cacheprovider", "--dist=loadfile"]
        command += ["-n", str(self._workers), f"--basetemp={self._tmp}", *(f"tests/{name}" for name in tests)]
        try:
            done = subprocess.run(
                command, cwd=self._root, env=self._environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                timeout=seconds, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return True
        self.said = done.stdout[-3000:]
        return done.returncode != 0


def main() -> int:
    """Returns the exit status: 1 if the tests fail on what nobody broke."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=60, help="mutants")
    parser.add_argument("--start", type=int, default=0, help="number of the first mutant to try, to resume")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--jobs", type=int, default=1, help="mutants at a time")
    parser.add_argument("--out", type=Path, help="write the mutants and whether they were killed to this JSON file")
    options = parser.parse_args()
    chosen = sample(options.count, options.seed)[options.start :]
    with tempfile.TemporaryDirectory(prefix="mutations-") as place, ThreadPoolExecutor(options.jobs) as pool:
        cache = Path(place) / "cache"  # broken programs are not kept
        if (kept := cache_folder("tests")).exists():
            shutil.copytree(kept, cache)
        copies, workers = SimpleQueue[Copy](), max(1, (os.cpu_count() or 1) // options.jobs)
        for job in range(options.jobs):
            copies.put(Copy(Path(place) / str(job), cache, workers))

        def is_killed(mutant: Mutant) -> bool:
            mine = copies.get()
            try:
                return mine.kills(mutant)
            finally:
                copies.put(mine)

        whole = copies.get()
        if whole.fails(whole.tests(), seconds=None):
            print(f"the quick tests fail without a mutant:\n{whole.said}", file=sys.stderr)
            return 1
        copies.put(whole)
        killed = []
        for mutant, dead in zip(chosen, pool.map(is_killed, chosen), strict=True):
            killed.append(dead)
            word = "killed  " if dead else "SURVIVED"
            print(f"{word} {mutant.file}:{mutant.line}: {mutant.before}  ->  {mutant.after}", flush=True)
    rows = [asdict(mutant) | {"killed": dead} for mutant, dead in zip(chosen, killed, strict=True)]
    for row in rows:
        del row["source"]
    if options.out:
        options.out.write_text(json.dumps({"seed": options.seed, "mutants": rows}, indent=1) + "\n")
    print(f"{sum(killed)} of {len(killed)} mutants killed ({100 * sum(killed) / len(killed):.0f} %)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
