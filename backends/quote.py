"""Python definitions quoted from the modules they stand in, with all that they refer to, as text that imports torch alone.

Works on source text: the top-level statement that defines a name is found in its module's syntax tree, and the names that it
uses are followed, through the package's own imports too.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from graphir.lang.diagnostic import Diagnostic, GraphirError

LAZY = {"Tensor": "from torch import Tensor", "torch": "import torch", "F": "from torch.nn import functional as F"}
_BUILTINS = frozenset(dir(builtins))


@dataclass
class Quotation:
    """Definitions collected so far, in an order in which they can run: what is used stands before. `reserved` names stay free."""

    reserved: frozenset[str] = frozenset()
    imports: dict[str, None] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    names: dict[tuple[str, str], str] = field(default_factory=dict)
    modules: dict[str, _Module] = field(default_factory=dict)

    def function(self, function: Callable[..., Any]) -> str:
        """Quote a function; the name under which the text knows it."""
        name, module = function.__name__, function.__module__
        if _stands(self._module(module).statements.get(name), function):
            return self._define(module, name)
        key = (module, f"{function.__qualname__} {name} {function.__code__.co_firstlineno}")
        if key not in self.names:
            self.names[key] = self._free_name(name)
            text = textwrap.dedent(inspect.getsource(function))
            self._write(key, ast.parse(text).body[0], text, module, self._enclosed(function))
        return self.names[key]

    def _enclosed(self, function: Callable[..., Any]) -> dict[str, str]:
        """What stands for each variable that a function has from the one around it: another function's name, or the value."""
        found = {}
        for name, value in inspect.getclosurevars(function).nonlocals.items():
            if not inspect.isfunction(value) and not isinstance(value, int | float | str | bool | None | tuple):
                raise _unquotable(function.__module__, name)
            found[name] = self.function(value) if inspect.isfunction(value) else repr(value)
        return found

    def _module(self, name: str) -> _Module:
        found = self.modules.get(name)
        if found is None:
            found = self.modules[name] = _Module(inspect.getsource(sys.modules[name]))
        return found

    def _define(self, module: str, name: str) -> str:
        key = (module, name)
        source = self._module(module)
        if name not in source.statements:
            raise _unquotable(module, name)
        if key not in self.names:
            self.names[key] = self._free_name(name)
            self._write(key, source.statements[name], source.text, module)
        return self.names[key]

    def _free_name(self, name: str) -> str:
        taken = {*self.names.values(), *self.reserved}
        candidate, number = name, 1
        while candidate in taken:
            number += 1
            candidate = f"{name}_{number}"
        return candidate

    def _write(self, key: tuple[str, str], statement: ast.stmt, text: str, module: str, known: Mapping[str, str] | None = None) -> None:
        """Add a statement's text, after what it refers to."""
        renamed = {getattr(statement, "name", key[1]): self.names[key], **(known or {})}
        for name in used_names(statement):
            if name not in renamed and (found := self._refer(module, name)) is not None:
                renamed[name] = found
        self.texts[self.names[key]] = rename(statement, text, renamed)

    def _refer(self, module: str, name: str) -> str | None:
        """Make a global name of a module available; what to call it, None for builtins and locals."""
        source = self._module(module)
        if name in source.statements:
            return self._define(module, name)
        if name not in source.imported:
            return None
        origin, original = source.imported[name]
        origin = _absolute(origin, module) if origin.startswith(".") else origin
        top = origin.partition(".")[0]
        if origin == "graphir.bricks.torch_lazy":
            self.imports[LAZY[name]] = None
            return name
        if top in ("graphir", module.partition(".")[0]):
            return self._define(origin, original or name)
        if top != "torch" and top not in sys.stdlib_module_names:
            raise _unquotable(module, name)
        line = f"import {origin}" if original is None else f"from {origin} import {original}"
        self.imports[line if (original or origin) == name else f"{line} as {name}"] = None
        return name


def _stands(statement: ast.stmt | None, function: Callable[..., Any]) -> bool:
    """Whether this top-level statement is the function's definition."""
    if not isinstance(statement, ast.FunctionDef):
        return False
    return min([statement.lineno, *(d.lineno for d in statement.decorator_list)]) == function.__code__.co_firstlineno


def _unquotable(module: str, name: str) -> GraphirError:
    message = f"the bricks of `{module}` use `{name}`, which is neither defined in Python there nor part of torch"
    return GraphirError(Diagnostic("E0809", message, help=("use another form: fx, pt2",)))


class _Module:
    """A module's text, its top-level definitions and its imports, those under `if TYPE_CHECKING` and the like included."""

    def __init__(self, text: str):
        self.text = text
        self.statements: dict[str, ast.stmt] = {}
        self.imported: dict[str, tuple[str, str | None]] = {}
        for statement in ast.parse(text).body:
            self._take(statement)

    def _take(self, statement: ast.stmt) -> None:
        match statement:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                self.statements[name] = statement
            case ast.Assign(targets=targets):
                self.statements.update({n.id: statement for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)})
            case ast.If(test=ast.Name(id="TYPE_CHECKING"), body=body):
                for inner in body:
                    self._take(inner)
            case ast.AnnAssign(target=ast.Name(id=name)):
                self.statements[name] = statement
            case ast.Import(names=names):
                self.imported.update({a.asname or a.name: (a.name, None) for a in names})
            case ast.ImportFrom(module=origin, names=names, level=level):
                self.imported.update({a.asname or a.name: ("." * level + (origin or ""), a.name) for a in names})


def _absolute(origin: str, module: str) -> str:
    dots = len(origin) - len(origin.lstrip("."))
    package = module.split(".")[:-dots]
    return ".".join([*package, *filter(None, origin[dots:].split("."))])


def used_names(statement: ast.stmt) -> list[str]:
    """Global names that a definition mentions: locals and builtins do not count, nor does what registers a brick."""
    local: set[str] = set()
    found: dict[str, None] = {}
    for node in _parts(statement):
        if isinstance(node, ast.arg):
            local.add(node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            found[node.id] = None
        elif isinstance(node, ast.Name) and isinstance(statement, ast.FunctionDef):
            local.add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef) and node is not statement:
            local.add(node.name)
    return [n for n in found if n not in local and n not in _BUILTINS]


def _parts(root: ast.AST) -> Iterable[ast.AST]:
    stack: list[ast.AST] = [root]
    while stack:
        node = stack.pop()
        yield node
        children = [c for c in ast.iter_child_nodes(node) if not _registers(c)]
        stack.extend(reversed(children))


def _registers(node: ast.AST) -> bool:
    """Whether this is the call `brick(...)` that decorates a body."""
    callee = node.func if isinstance(node, ast.Call) else None
    return "brick" in (getattr(callee, "id", ""), getattr(callee, "attr", ""))


def rename(statement: ast.stmt, text: str, names: dict[str, str]) -> str:
    """A definition's text with global names replaced and without the decorator that registers a brick."""
    lines = text.splitlines(keepends=True)
    head, last = statement.lineno - 1, statement.end_lineno or statement.lineno
    kept = [d for d in getattr(statement, "decorator_list", []) if not _registers(d)]
    changed = {old: new for old, new in names.items() if old != new}
    places = []
    if changed:
        places = [
            (n.lineno, n.col_offset, n.id) for n in _parts(statement) if isinstance(n, ast.Name) and n.id in changed
        ]
    for line, column, old in sorted(places, reverse=True):
        row = lines[line - 1].encode()
        lines[line - 1] = (row[:column] + changed[old].encode() + row[column + len(old.encode()) :]).decode()
    name = getattr(statement, "name", None)
    if name in changed:
        word = "class" if isinstance(statement, ast.ClassDef) else "def"
        lines[head] = lines[head].replace(f"{word} {name}", f"{word} {changed[name]}", 1)
    return "".join([*(line for d in kept for line in lines[d.lineno - 1 : d.end_lineno]), *lines[head:last]]).rstrip()
