"""Kernels that may start early touch what others write only after they waited (`kernels/matvec.py`). By their text,
since a race shows on no machine reliably; `scripts/gpu_compile.py` looks at what the compiler makes of them."""

import ast
from pathlib import Path

import pytest

KERNELS = Path(__file__).parents[3] / "python" / "sglang" / "kernels"
# Loads that may come before the wait: weights, which nothing writes while a model serves.
BEFORE = {"_matvec": {"own"}, "_gated": {"weight"}, "_split": {"own"}, "_pair": {"first", "second"}}


def calls(node: ast.AST, name: str) -> list[ast.Call]:
    return [n for n in ast.walk(node) if isinstance(n, ast.Call) and ast.unparse(n.func).split(".")[-1] == name]


def kernels() -> list[ast.FunctionDef]:
    trees = [ast.parse(path.read_text()) for path in sorted(KERNELS.glob("*.py"))]
    functions = [node for tree in trees for node in tree.body if isinstance(node, ast.FunctionDef)]
    return [f for f in functions if "EARLY" in {arg.arg for arg in f.args.args}]


def launches() -> list[ast.Call]:
    trees = [ast.parse(path.read_text()) for path in sorted(KERNELS.glob("*.py"))]
    found = [n for tree in trees for n in ast.walk(tree) if isinstance(n, ast.Call)]
    return [n for n in found if any(word.arg == "launch_pdl" for word in n.keywords)]


def launched(call: ast.Call) -> str:
    """The kernel of kernel[grid](...)."""
    return ast.unparse(call.func).split("[")[0]


def is_early(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.If) and ast.unparse(statement.test) == "EARLY"


def touched(node: ast.AST) -> set[str]:
    """Names that the addresses of loads and stores begin with."""
    found = [call.args[0] for name in ("load", "store", "atomic_add") for call in calls(node, name)]
    return {ast.unparse(leftmost(address)) for address in found}


def leftmost(address: ast.expr) -> ast.expr:
    while isinstance(address, ast.BinOp):
        address = address.left
    return address


def test_there_are_such_kernels() -> None:
    assert {f.name for f in kernels()} >= {"_matvec", "_gated", "_rms", "_file", "decode_part", "merge_parts"}


@pytest.mark.parametrize("kernel", kernels(), ids=lambda f: f.name)
def test_a_kernel_waits_before_it_touches_what_others_write(kernel: ast.FunctionDef) -> None:
    body = [s for s in kernel.body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))]
    waits = [i for i, s in enumerate(body) if is_early(s) and calls(s, "gdc_wait")]
    assert waits, "it never waits, so what comes after it does not wait for what was before it either"
    assert len(calls(kernel, "gdc_wait")) == 1
    before = body[: waits[0]]
    assert not any(isinstance(s, ast.Return) for s in before)
    names = set().union(*(touched(s) for s in before), set())
    assert names <= BEFORE.get(kernel.name, set())
    assert not any(calls(s, "store") for s in before)


@pytest.mark.parametrize("launch", launches(), ids=launched)
def test_a_kernel_is_launched_early_exactly_where_it_waits(launch: ast.Call) -> None:
    words = {word.arg: ast.unparse(word.value) for word in launch.keywords}
    assert words["launch_pdl"] == words["EARLY"]


def test_every_kernel_that_waits_is_launched_somewhere() -> None:
    assert {launched(n) for n in launches()} >= {f.name for f in kernels()}
