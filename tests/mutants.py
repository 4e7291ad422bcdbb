"""Source files of the core with one line broken, drawn from their syntax trees by a seed."""

import ast
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

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
    lines: range  # of the statement, without the statements inside it
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


def breakable(tree: ast.Module) -> list[tuple[ast.AST, range]]:
    """The nodes inside functions, each with the lines of its statement.

    Left out are annotations, messages of errors and warnings, and words of subscripts' types.
    """
    found: list[tuple[ast.AST, range]] = []

    def visit(node: ast.AST, lines: range | None) -> None:
        if isinstance(node, ast.Raise | ast.JoinedStr | ast.arg | ast.AnnAssign) or _is_message(node):
            return
        if isinstance(node, ast.FunctionDef):
            for statement in node.body:
                visit(statement, _lines(statement))
            return
        if lines is not None:
            lines = _lines(node) if isinstance(node, ast.stmt) else lines
            if any(variants(node)):
                found.append((node, lines))
        for child in ast.iter_child_nodes(node):
            visit(child, lines)

    visit(tree, None)
    return found


def _lines(statement: ast.stmt) -> range:
    body = getattr(statement, "body", None)
    end = body[0].lineno if body else (statement.end_lineno or statement.lineno) + 1
    return range(statement.lineno, max(end, statement.lineno + 1))


def _is_message(node: ast.AST) -> bool:
    call = node.value if isinstance(node, ast.Expr) else node
    name = ast.unparse(call.func) if isinstance(call, ast.Call) else ""
    return name.startswith(("logging.", "logger.", "warnings.")) or name.endswith(("Error", ".say"))


def _broken(text: str, node: ast.AST, variant: ast.AST) -> str:
    """The text with the node's place taken by the variant; every other character stays."""
    if isinstance(node, ast.If) and isinstance(variant, ast.If):
        node, variant = node.test, variant.test
    word = ast.unparse(ast.fix_missing_locations(variant))
    if isinstance(node, ast.expr):
        word = f"({word})"
    lines = text.encode().splitlines(keepends=True)
    (first, start), (last, end) = (node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)  # type: ignore
    replaced = lines[first - 1][:start] + word.encode() + lines[last - 1][end:]
    return b"".join([*lines[: first - 1], replaced, *lines[last:]]).decode()


def mutants(package: Path, file: str, rng: random.Random) -> Iterator[Mutant]:
    """Every mutant of a file, in the order of the draw."""
    text = (package / f"{file}.py").read_text()
    nodes = breakable(ast.parse(text))
    rng.shuffle(nodes)
    for node, lines in nodes:
        for variant in variants(node):
            line, before, after = getattr(node, "lineno", 0), _first(node), _first(variant)
            yield Mutant(f"{file}.py", line, lines, before, after, _broken(text, node, variant))


def _first(node: ast.AST) -> str:
    return ast.unparse(ast.fix_missing_locations(node)).splitlines()[0]


def sample(package: Path, files: Sequence[str], count: int, seed: int) -> list[Mutant]:
    """So many mutants, dealt out evenly over the files."""
    queues = [mutants(package, file, random.Random(f"{seed} {file}")) for file in files]
    chosen: list[Mutant] = []
    while len(chosen) < count and queues:
        for queue in list(queues):
            if len(chosen) == count:
                break
            if mutant := next(queue, None):
                chosen.append(mutant)
            else:
                queues.remove(queue)
    return chosen
