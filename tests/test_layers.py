"""The house: imports go one way, torch loads late, nothing executes text, the core stays small enough to read."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = {"graphir": ROOT / "graphir", "graphir.passes": ROOT / "passes", "graphir.backends": ROOT / "backends"}
ORDER = (
    "graphir.lang",
    "graphir.ir",
    "graphir.bricks",
    "graphir.elaborate",
    "graphir.view",
    "graphir.passes",
    "graphir.backends",
    "graphir.mad",
    "graphir.cli",
)
TOP = {"graphir", "graphir.api", "graphir.folder", "graphir.atomic"}
# The graph offers its derived views as methods: it reaches up when they are called, and says so here.
REACHES_UP = {("graphir.ir.graph", "graphir.view.summary"), ("graphir.ir.graph", "graphir.view.svg")}


def modules() -> dict[str, Path]:
    found = {}
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join([package, *(p for p in parts if p != "__init__")])] = path
    return found


MODULES = modules()


def imports(name: str, path: Path, late: bool = True) -> list[str]:
    """The graphir modules that a module imports, at its top or (with `late`) anywhere outside `if TYPE_CHECKING`."""
    tree = ast.parse(path.read_text("utf-8"))
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    hidden = {id(n) for node in ast.walk(tree) if isinstance(node, ast.If) and _never(node.test) for n in ast.walk(node)}
    out = []
    for node in ast.walk(tree) if late else tree.body:
        if id(node) in hidden:
            continue
        if isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            target = ".".join([*base, *([node.module] if node.module else [])])
            out += [f"{target}.{a.name}" if f"{target}.{a.name}" in MODULES else target for a in node.names]
        elif isinstance(node, ast.Import):
            out += [a.name for a in node.names]
    return [t for t in out if t.split(".")[0] == "graphir"]


def _never(test: ast.expr) -> bool:
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (isinstance(test, ast.Constant) and test.value is False)


def room(name: str) -> int:
    return next((i for i, r in enumerate(ORDER) if name == r or name.startswith(r + ".")), -1)


@pytest.mark.parametrize("name", [n for n in MODULES if n not in TOP and room(n) < len(ORDER) - 1])
def test_imports_go_one_way(name):
    for target in imports(name, MODULES[name]):
        if (name, target) in REACHES_UP or target == "graphir":
            continue
        assert room(target) <= room(name), f"{name} imports {target}, which stands above it"
        if target not in ("graphir.atomic",):
            assert room(target) >= 0, f"{name} imports {target}, which ties the rooms together"


def test_no_cycles_of_imports_at_module_level():
    edges = {name: [t for t in imports(name, path, late=False) if t in MODULES and t != name] for name, path in MODULES.items()}
    done: set[str] = set()
    for start in edges:
        stack = [(start, iter(edges[start]))]
        path = [start]
        while stack:
            step = next(stack[-1][1], None)
            if step is None:
                done.add(path.pop())
                stack.pop()
                continue
            if step in done or step in ("graphir",) or MODULES[step].name == "__init__.py":
                continue
            assert step not in path, f"imports form a cycle: {' -> '.join([*path[path.index(step) :], step])}"
            path.append(step)
            stack.append((step, iter(edges[step])))


LATE_TORCH = """
import sys
import graphir
graph = graphir.load('''{program}''')
graph.key, str(graph), graph.summary(B=2, T=8).render(), graph.svg()
graphir.check('''{program}''')
from graphir.api import optimise
optimise(graph)
assert "torch" not in sys.modules, "torch was imported"
"""


def test_parsing_checking_costing_drawing_and_passes_do_not_load_torch():
    body = "tokens -> embedding(32, d) -> ([Layer(Attention(2), SwiGLU)] * 2) -> rmsnorm -> linear(32)"
    program = f"model M(d = 16)(tokens: int[B, T]) -> float[B, T, 32] {{ return {body} }}"
    subprocess.run([sys.executable, "-c", LATE_TORCH.format(program=program)], check=True)


def test_help_does_not_load_torch_or_the_language():
    code = "import sys; from graphir.cli.main import run; run(['--help']); bad = {'torch', 'lark', 'networkx', 'rich'} & set(sys.modules); assert not bad, bad"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


FORBIDDEN = {"eval", "exec", "__import__"}


@pytest.mark.parametrize("name", list(MODULES))
def test_nothing_executes_text_or_loads_pickles(name):
    tree = ast.parse(MODULES[name].read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in FORBIDDEN, f"{name}:{node.lineno} calls {node.func.id}"
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.name for a in node.names] + ([node.module] if isinstance(node, ast.ImportFrom) and node.module else [])
            assert not {"pickle", "marshal", "shelve", "dill"} & {n.split(".")[0] for n in names}, f"{name} imports a pickle"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "torch":
            assert node.attr != "load", f"{name}:{node.lineno} calls torch.load"


def test_the_core_can_be_read_in_a_sitting():
    lines = {name: len(path.read_text("utf-8").splitlines()) for name, path in MODULES.items()}
    assert lines["graphir.ir.graph"] <= 300
    scary = {name: count for name, count in lines.items() if count > 650}
    assert not scary, f"files that scare: {scary}"


def test_the_standard_library_has_no_unknown_names_and_no_recursion():
    from graphir.bricks import catalogue  # noqa: F401
    from graphir.elaborate.names import check_names
    from graphir.elaborate.project import library

    std = library()
    for name in std.names():
        std.find(name)
    assert [str(d) for d in check_names(std)] == []
