"""How the package is built: imports go one way, and no file or function is longer than a reader can hold."""

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

from networks import ROOT

PACKAGE = ROOT / "alexnet_jax"
# From the bottom to the top. A module imports from its own row and from those above it in this list.
LAYERS = (
    ("system",),
    ("values", "fields", "layers"),
    ("architectures", "cifar_architectures", "ablations", "ops", "winograd", "gradients"),
    ("mesh", "placement", "pmap", "norm_pool"),
    ("network", "augment"),
    ("config", "optimizer"),
    ("data",),
    ("step",),
    ("run",),
    ("scores",),
    ("evaluation",),
    ("inference",),
    ("figures",),
    ("train", "evaluate", "predict", "prepare"),
    ("trainer", "training", "prediction", "preparation", "convert", "report", "sweep", "benchmark"),
    ("__main__",),
)
FILE_LINES, FUNCTION_LINES = 300, 50


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name below it; a folder's __init__ has the folder's name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(path: Path, known: dict[str, Path]) -> Iterator[str]:
    """The package's own modules that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            top, _, rest = name.partition(".")
            if top == "alexnet_jax":
                yield rest if rest in known else rest.rpartition(".")[0]


def layer(module: str) -> int:
    """The row of LAYERS that a module is in."""
    (row,) = (number for number, row in enumerate(LAYERS) if module.split(".")[0] in row)
    return row


def test_imports_go_down_and_in_no_circle():
    known = modules()
    # The package itself has no row: it imports what is public when that is asked for.
    graph = {module: set(imported(path, known)) - {module, ""} for module, path in known.items() if module}
    upward = [(a, b) for a, names in graph.items() for b in names if layer(b) > layer(a)]
    assert upward == []
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_every_product_of_the_network_names_its_precision():
    """By default a TPU multiplies float32 as bfloat16, and a GPU as TF32."""
    products = ("jnp.einsum", "jnp.matmul", "jnp.dot", "jnp.tensordot", "lax.dot_general", "lax.conv_general_dilated")
    found = {}
    for module in ("ops", "winograd", "gradients", "network", "augment", "step", "evaluation"):
        for node in ast.walk(ast.parse(modules()[module].read_text())):
            assert not (isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult)), (
                f"{module}:{node.lineno}: @ has none"
            )
            if isinstance(node, ast.Call) and ast.unparse(node.func) in products:
                found[f"{module}:{node.lineno}"] = "precision" in [keyword.arg for keyword in node.keywords]
    assert len(found) > 10
    assert [place for place, named in found.items() if not named] == []


def test_files_and_functions_are_short():
    long = []
    for path in modules().values():
        text = path.read_text()
        if (lines := len(text.splitlines())) > FILE_LINES:
            long.append((path.name, lines))
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and node.end_lineno is not None:
                lines = node.end_lineno - node.lineno + 1
                if lines > FUNCTION_LINES:
                    long.append((f"{path.name}:{node.name}", lines))
    assert long == []
