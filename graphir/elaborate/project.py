"""Files: a module is a parsed file with its imports; the standard library is one whose items are parsed when first used."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from ..lang import syntax as s
from ..lang.diagnostic import Diagnostic, GraphirError, Label
from ..lang.files import read_source
from ..lang.limits import DEFAULT, Limits
from ..lang.parser import index_items, parse, parse_item
from ..lang.source import Source, Span


@dataclass(eq=False)
class Module:
    """A file: its items by name, its imported modules by alias. `values` caches params and lets once evaluated."""

    source: Source
    items: dict[str, s.Param | s.Let | s.Block] = field(default_factory=dict)
    imports: dict[str, Module] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    overrides: dict[str, Any] = field(default_factory=dict)
    library: bool = False

    def find(self, name: str) -> s.Param | s.Let | s.Block | None:
        return self.items.get(name)

    def names(self) -> list[str]:
        return [*self.items, *self.imports]

    @property
    def models(self) -> dict[str, s.Block]:
        return {n: i for n, i in self.items.items() if isinstance(i, s.Block) and i.kind == "model"}


@dataclass(eq=False)
class Library(Module):
    """The standard library: an index of names; an item is parsed when somebody asks for it."""

    index: dict[str, tuple[Source, int, int]] = field(default_factory=dict)

    def find(self, name: str) -> s.Param | s.Let | s.Block | None:
        if name not in self.items and name in self.index:
            self.items[name] = parse_item(*self.index[name])
        return self.items.get(name)

    def names(self) -> list[str]:
        return list(self.index)


@cache
def library() -> Library:
    """The standard library, indexed once per process."""
    std = Library(Source("std", ""), library=True)
    folder = resources.files("graphir.bricks") / "std"
    for file in sorted(folder.iterdir(), key=lambda f: f.name):
        if file.name.endswith(".arch"):
            source = Source(f"std/{file.name}", file.read_text("utf-8"))
            for name, (start, end) in index_items(source).items():
                assert name not in std.index, f"{name} stands twice in the standard library"
                std.index[name] = (source, start, end)
    return std


def is_library(source: Source) -> bool:
    return source.name.startswith("std/")


@dataclass(eq=False)
class Project:
    """Loads files below one root folder. `root` is None for a program that came as text: it may import nothing."""

    root: Path | None
    limits: Limits = DEFAULT
    modules: dict[Path, Module] = field(default_factory=dict)

    def load_text(self, source: Source) -> Module:
        return self._module(source, None, ())

    def load_file(self, path: str | os.PathLike[str]) -> Module:
        source = read_source(str(path), self.limits)
        place = Path(path).resolve() if str(path) != "-" else None
        return self._module(source, place, (place,) if place else ())

    def _module(self, source: Source, path: Path | None, chain: tuple[Path, ...]) -> Module:
        program = parse(source, self.limits)
        module = Module(source)
        if path is not None:
            self.modules[path] = module
        problems = list(_declare(module, program))
        for item in program.imports:
            try:
                self._import(module, item, path, chain)
            except GraphirError as e:
                problems += e.diagnostics
        if problems:
            raise GraphirError(problems)
        return module

    def _import(self, module: Module, item: s.Import, path: Path | None, chain: tuple[Path, ...]) -> None:
        try:
            target = self._resolve(item, path)
        except OSError as e:
            reason = (e.strerror or str(e)).lower()
            shown = item.path if len(item.path) <= 60 else f"{item.path[:57]}..."
            raise GraphirError(Diagnostic("E0501", f'there is no file "{shown}": {reason}', item.span)) from None
        if target in chain:
            names = " -> ".join(p.name for p in (*chain[chain.index(target) :], target))
            raise GraphirError(Diagnostic("E0503", "imports form a cycle", item.span, "comes back to where it started", notes=(names,)))
        if len(chain) >= self.limits.import_depth or len(self.modules) >= self.limits.imports:
            raise GraphirError(
                Diagnostic("E0607", f"more than {self.limits.imports} imported files, or {self.limits.import_depth} deep", item.span)
            )
        alias = item.alias or target.stem
        if alias in module.items or alias in module.imports:
            raise GraphirError(
                Diagnostic("E0308", f"`{alias}` names two things in this file", item.span, help=("import it `as` another name",))
            )
        if not alias.isidentifier():
            raise GraphirError(Diagnostic("E0501", f"`{alias}` cannot be a name", item.span, help=('write `import "..." as name`',)))
        if target in self.modules:
            module.imports[alias] = self.modules[target]
            return
        try:
            source = read_source(str(target), self.limits)
        except GraphirError as e:
            raise GraphirError([_at(d, item.span) for d in e.diagnostics]) from None
        source.name = os.path.relpath(target, self.root) if self.root else target.name
        module.imports[alias] = self._module(source, target, (*chain, target))

    def _resolve(self, item: s.Import, path: Path | None) -> Path:
        """The file that an import means: below the root, reached without `..` and without a symbolic link."""
        if self.root is None or path is None:
            raise GraphirError(
                Diagnostic(
                    "E0502",
                    "a program given as text imports nothing",
                    item.span,
                    help=("save it to a file, or pass `root=` to graphir.load",),
                )
            )
        text = item.path
        parts = text.split("/")
        bad = (
            not text
            or text.startswith(("/", "~"))
            or "\\" in text
            or ":" in text
            or "\0" in text
            or any(p in ("", ".", "..") for p in parts)
        )
        if bad:
            raise GraphirError(
                Diagnostic(
                    "E0502",
                    f'"{text}" leaves the project',
                    item.span,
                    help=("imports are relative paths with `/`, without `..`, inside the file's folder",),
                )
            )
        if not text.endswith(".arch"):
            raise GraphirError(Diagnostic("E0501", f'"{text}" is not an `.arch` file', item.span))
        place = path.parent
        for part in parts:
            place = place / part
            if place.is_symlink():
                raise GraphirError(
                    Diagnostic("E0502", f'"{text}" passes through a symbolic link', item.span, help=("copy the file into the project",))
                )
        if not place.exists():
            near = sorted(p.name for p in place.parent.glob("*.arch")) if place.parent.is_dir() else []
            from ..lang.diagnostic import nearest

            raise GraphirError(Diagnostic("E0501", f'there is no file "{text}"', item.span, help=nearest(place.name, near)))
        if not place.resolve().is_relative_to(self.root.resolve()):
            raise GraphirError(Diagnostic("E0502", f'"{text}" leaves the project', item.span))
        return place.resolve()


def _at(diagnostic: Diagnostic, span: Span) -> Diagnostic:
    from dataclasses import replace

    return diagnostic if diagnostic.span else replace(diagnostic, span=span)


def _declare(module: Module, program: s.Program) -> Iterator[Diagnostic]:
    """Enter a program's items; yields one diagnostic per name that stands twice."""
    for item in program.items:
        name = item.header.name if isinstance(item, s.Block) else item.name
        if name in module.items:
            yield Diagnostic("E0308", f"`{name}` is defined twice", item.span, labels=(Label(module.items[name].span, "first here"),))
            continue
        module.items[name] = item
