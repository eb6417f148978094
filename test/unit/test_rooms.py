"""Who may import whom, and what no file may do, read from the syntax trees: nothing is run but the last test.

Every import counts, also one inside a function or under TYPE_CHECKING: a room that names another's types knows it.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "python" / "sglang"

# A room imports itself and these. "grammar.rules" is one file of a room. Files beside the rooms may import anything.
ROOMS = {
    "base": (),
    "bench": ("base", "text"),
    "kernels": (),
    "lang": ("base",),
    "media": ("base",),
    "grammar": ("base",),
    "parallel": ("base",),
    "server": ("base", "text", "grammar.search"),
    "text": ("base", "media"),
    "schedule": ("base", "grammar.rules"),
    "attention": ("base", "kernels"),
    "quant": ("base", "kernels"),
    "layers": ("attention", "quant", "parallel", "kernels", "base"),
    "models": ("layers", "quant", "parallel", "base"),
    "engine": ("models", "layers", "attention", "parallel", "kernels", "base", "grammar"),
    "worker": ("engine", "schedule", "grammar", "parallel", "base"),
}
# As files beside the rooms: test tools, and folders that keep a documented `sglang.X.Y` alive.
OUTSIDE = ("srt", "test", "eval", "backend")
TORCH_FREE = ("base", "bench", "lang", "server", "text", "schedule", "grammar")
TORCH = {"torch", "triton", "torchvision", "flashinfer"}
# Modules that run code found in data.
DANGEROUS = {"pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "torch.package"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}


def files() -> dict[Path, ast.Module]:
    return {path.relative_to(PACKAGE): ast.parse(path.read_text(), str(path)) for path in sorted(PACKAGE.rglob("*.py"))}


TREES = files()


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything `tree` imports, also by import_module("literal")."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute"
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Call) and dotted(node.func) in ("importlib.import_module", "import_module"):
            for argument in node.args[:1]:
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    yield node.lineno, argument.value


def dotted(node: ast.expr) -> str:
    """`a.b.c` of a Name or Attribute; "" of anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (left := dotted(node.value)):
        return f"{left}.{node.attr}"
    return ""


def room_of(path: Path) -> str:
    """The room of a file of the package; "" for a file beside the rooms."""
    return path.parts[0] if len(path.parts) > 1 else ""


def wrong_imports(path: Path, tree: ast.Module) -> list[str]:
    room = room_of(path)
    if room == "" or room in OUTSIDE:
        return []
    wrong = []
    for line, name in imports(tree):
        if name.split(".")[0] in TORCH and room in TORCH_FREE:
            wrong.append(f"{path}:{line}: {room} knows no torch, but imports {name}")
        if name.split(".")[0] != "sglang":
            continue
        target = name.removeprefix("sglang").lstrip(".")
        allowed = (room, *ROOMS[room])
        if not any(target == one or target.startswith(one + ".") for one in allowed):
            wrong.append(f"{path}:{line}: {room} may import {', '.join(allowed)}; not {name}")
    return wrong


def dangers(path: Path, tree: ast.Module) -> list[str]:
    """What could run code that came as data."""
    found = []
    for line, name in imports(tree):
        if any(name == one or name.startswith(one + ".") for one in DANGEROUS) or name == "torch.load":
            found.append(f"{path}:{line}: imports {name}")
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = dotted(node.func)
        words = {word.arg: word.value for word in node.keywords}
        if called in FORBIDDEN_CALLS and called not in own:
            found.append(f"{path}:{node.lineno}: calls {called}()")
        if called == "torch.load" and not is_constant(words.get("weights_only"), True):
            found.append(f"{path}:{node.lineno}: torch.load without weights_only=True")
        if called in ("np.load", "numpy.load") and not is_constant(
            words.get("allow_pickle", ast.Constant(False)), False
        ):
            found.append(f"{path}:{node.lineno}: numpy.load with allow_pickle")
        if called in ("torch.jit.load", "yaml.load", "yaml.unsafe_load"):
            found.append(f"{path}:{node.lineno}: calls {called}()")
        if not is_constant(words.get("shell", ast.Constant(False)), False):
            found.append(f"{path}:{node.lineno}: a shell for {called}()")
    return found


def is_constant(node: ast.expr | None, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def test_every_room_is_known():
    rooms = {room_of(path) for path in TREES} - {""}
    assert rooms <= ROOMS.keys() | set(OUTSIDE)
    assert len(TREES) > 60, "the package was not found"


def test_the_documentation_has_the_same_table():
    text = (PACKAGE.parents[1] / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| (.*)\|$", text, re.MULTILINE)
    assert {room: tuple(re.findall(r"`([\w.]+)`", may)) for room, may in rows} == ROOMS


def test_rooms_import_only_what_their_row_names():
    assert not [line for path, tree in TREES.items() for line in wrong_imports(path, tree)]


def test_the_table_has_no_circle():
    """A room is below whoever imports it."""
    below: dict[str, set[str]] = {}

    def reach(room: str, above: tuple[str, ...] = ()) -> set[str]:
        assert room not in above, f"circle: {' -> '.join((*above, room))}"
        if room not in below:
            targets = {target.split(".")[0] for target in ROOMS[room]}
            below[room] = targets.union(*(reach(target, (*above, room)) for target in targets))
        return below[room]

    for room in ROOMS:
        reach(room)


def test_nothing_runs_code_that_came_as_data():
    assert not [line for path, tree in TREES.items() for line in dangers(path, tree)]


def test_every_room_says_what_it_knows():
    for room in {room_of(path) for path in TREES} & ROOMS.keys():
        tree = TREES.get(Path(room, "__init__.py"))
        assert tree is not None, f"{room} has no __init__.py"
        assert len(ast.get_docstring(tree) or "") > 80, f"{room}/__init__.py says too little"


@pytest.mark.parametrize(
    ("path", "code", "says"),
    [
        ("schedule/x.py", "def f():\n    import torch", "knows no torch"),
        ("text/x.py", "import importlib\nimportlib.import_module('torch.cuda')", "knows no torch"),
        ("schedule/x.py", "from sglang.grammar.regex import parse", "may import"),
        ("base/x.py", "from sglang.text import tokenizer", "may import"),
        (
            "models/x.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from sglang.engine import pool",
            "may",
        ),
        ("layers/x.py", "import sglang", "may import"),
    ],
)
def test_a_wrong_import_is_seen(path: str, code: str, says: str):
    [line] = wrong_imports(Path(path), ast.parse(code))
    assert says in line


def test_right_imports_are_not_complained_about():
    code = "import torch\nfrom sglang import quant\nfrom sglang.base.errors import ConfigError"
    assert not wrong_imports(Path("models/x.py"), ast.parse(code))
    assert not wrong_imports(Path("launch.py"), ast.parse("from sglang.server import app"))


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from pickle import loads",
        "def f():\n    import marshal",
        "eval(text)",
        "exec(text)",
        "torch.load(file)",
        "torch.load(file, weights_only=safe)",
        "from torch import load",
        "np.load(file, allow_pickle=True)",
        "subprocess.run(command, shell=True)",
    ],
)
def test_a_danger_is_seen(code: str):
    assert dangers(Path("x.py"), ast.parse(code))


def test_what_is_safe_is_not_called_a_danger():
    code = "def compile(x): ...\ncompile(1)\nmodel.eval()\ntorch.load(f, weights_only=True)\nnp.load(f)\nre.compile(p)"
    assert not dangers(Path("x.py"), ast.parse(code))


def test_torch_free_rooms_load_where_there_is_no_torch():
    """The same promise kept by what the files import in turn."""
    names = [
        "sglang." + ".".join(path.with_suffix("").parts).removesuffix(".__init__")
        for path in TREES
        if room_of(path) in TORCH_FREE
    ]
    code = f"import sys; sys.modules.update(torch=None, triton=None)\nfor name in {names}: __import__(name)"
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
