"""Where an application stands (`Place`), and the names that a block's body sees (`Env`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..lang.source import Span
from .values import Edit, Start

if TYPE_CHECKING:
    from .project import Module


@dataclass(eq=False, slots=True)  # not frozen, though never changed: a frozen one takes three times as long to make
class Call:
    """One step of the chain that led here: `name` was applied at `span`."""

    name: str
    span: Span


@dataclass(frozen=True, eq=False)
class Grafting:
    """A graft under way: edits keyed by paths below `root`; `seen` collects the paths met, `hit` the edits that matched, `results` what came out."""

    root: str
    edits: tuple[Edit, ...]
    seen: list[str] = field(default_factory=list)
    hit: set[int] = field(default_factory=set)
    results: dict[str, Any] = field(default_factory=dict)

    def below(self, path: str) -> str | None:
        """The path relative to the host, None for one outside of it."""
        return path[len(self.root) + 1 :] if path.startswith(self.root + ".") else None


@dataclass(frozen=True, eq=False)
class Tap:
    """`tap` inside a graft: `tap(layers[2].mlp)` is what came out of that place of the host."""

    grafting: Grafting


@dataclass(eq=False, slots=True)  # never changed but for `taken`; see Call
class Scope:
    """A box of the graph being built: its path, the path that its weights get, and what holds inside it."""

    path: str = ""
    weights: str = ""
    frames: tuple[str, ...] = ()
    backend: str | None = None
    frozen: bool = False
    shared: bool = False
    calls: tuple[Call, ...] = ()
    grafting: tuple[Grafting, ...] = ()
    start: Start | None = None
    taken: set[str] = field(default_factory=set)

    def segment(self, wanted: str) -> str:
        """`wanted`, or `wanted_1`, `wanted_2` where it is taken in this scope."""
        name = self.next(wanted)
        self.taken.add(name)
        return name

    def next(self, wanted: str) -> str:
        """What `segment` would give."""
        name, count = wanted, 0
        while name in self.taken:
            count += 1
            name = f"{wanted}_{count}"
        return name

    def inside(self, segment: str, frame: str, calls: tuple[Call, ...] | None = None, weights: str | None = None) -> Scope:
        """The scope that a segment (already unique) opens."""
        if weights is None:
            weights = join(self.weights, segment)
        chain = self.calls if calls is None else calls
        return Scope(
            join(self.path, segment),
            weights,
            (*self.frames, frame),
            self.backend,
            self.frozen,
            self.shared,
            chain,
            self.grafting,
            self.start,
        )

    def within(self, **changes: Any) -> Scope:
        """The same box with another backend, freezing or weight path."""
        return replace(self, **changes)


def join(path: str, segment: str) -> str:
    return f"{path}.{segment}" if path else segment


@dataclass(eq=False)
class Env:
    """Names that an expression sees: its own, then those around it, then the module's."""

    names: dict[str, Any]
    module: Module
    scope: Scope | None = None
    parent: Env | None = None
    spans: dict[str, Span] = field(default_factory=dict)

    def find(self, name: str) -> tuple[bool, Any]:
        env: Env | None = self
        while env is not None:
            if name in env.names:
                return True, env.names[name]
            env = env.parent
        return False, None

    def child(self, names: Mapping[str, Any]) -> Env:
        return Env(dict(names), self.module, self.scope, self)

    def visible(self) -> list[str]:
        found: list[str] = []
        env: Env | None = self
        while env is not None:
            found += env.names
            env = env.parent
        return found
