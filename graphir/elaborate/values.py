"""What an expression of the language may be: config values, tensors (`ir.Value`) and the brick values below.

A brick value is a template: it holds config, captured tensors and other bricks, and makes nodes only when it is applied.
Bricks are immutable; `token` numbers them by structure, so that applying an equal brick to equal types can be replayed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from ..bricks.declare import Declaration
from ..ir.graph import Value
from ..lang import syntax as s
from ..lang.source import Span

if TYPE_CHECKING:
    from .project import Module


class Poison:
    """Stands for a value whose error was reported already; whatever touches it stays silent."""


POISON = Poison()


class Poisoned(Exception):
    """Something poisoned was touched: nothing new to report."""


@dataclass(frozen=True, eq=False)
class Brick:
    """Anything that takes tensors and gives tensors."""


@dataclass(frozen=True, eq=False)
class Primitive(Brick):
    """A declared brick with its config and the inputs that are bound already (port -> tensor)."""

    declaration: Declaration
    args: Mapping[str, Any] = field(default_factory=dict)
    bound: Mapping[str, Value] = field(default_factory=dict)
    called: bool = False

    @property
    def name(self) -> str:
        return self.declaration.name


@dataclass(frozen=True, eq=False)
class BlockBrick(Brick):
    """A `block` or `model` of a program or of the standard library."""

    block: s.Block
    module: Module
    args: Mapping[str, Any] = field(default_factory=dict)
    bound: Mapping[str, Value] = field(default_factory=dict)
    called: bool = False

    @property
    def name(self) -> str:
        return self.block.header.name


@dataclass(frozen=True, eq=False)
class Stage:
    """A place in a pipe: the value there, the path segment it gets (None: splice it in), its text, the arrow before it."""

    value: Any
    segment: str | None
    span: Span
    arrow: str = "->"


@dataclass(frozen=True, eq=False)
class Pipeline(Brick):
    """`a -> b` without a tensor at its head."""

    stages: tuple[Stage, ...]


@dataclass(frozen=True, eq=False)
class Fork(Brick):
    branches: tuple[tuple[str, Stage], ...]


@dataclass(frozen=True, eq=False)
class Filter(Brick):
    """A router, branches and options; `listed` where the branches came as a list and are numbered."""

    router: Stage
    branches: tuple[tuple[str, Stage], ...]
    options: Mapping[str, Any]
    listed: bool
    span: Span


@dataclass(frozen=True, eq=False)
class Named(Brick):
    brick: Any
    name: str


@dataclass(frozen=True, eq=False)
class Placed(Brick):
    brick: Any
    backend: str


@dataclass(frozen=True, eq=False)
class Frozen(Brick):
    brick: Any


@dataclass(frozen=True)
class Start:
    """How weights start inside `with_init`: `spec` (None: their own) times `factor`.

    `which`: matrices (two axes or more), all weights, or the matrices of the last node that has any. `names`: only those of
    bricks so named. `outer` is the `with_init` around, whose settings hold for what this one does not say.
    """

    spec: str | None
    factor: float = 1.0
    which: str = "matrices"
    names: tuple[str, ...] | None = None
    outer: Start | None = None

    @property
    def depth(self) -> int:
        return 1 + (self.outer.depth if self.outer else 0)


@dataclass(frozen=True, eq=False)
class Initialised(Brick):
    """`with_init(f, ...)`."""

    brick: Any
    start: Start


@dataclass(frozen=True, eq=False)
class Shared(Brick):
    """One instance: its weights live at `path`, at every use."""

    brick: Any
    path: str
    span: Span


@dataclass(frozen=True, eq=False)
class Transposed(Brick):
    """`emb.T`: the map with the transposed weight of a shared brick."""

    shared: Shared
    primitive: Primitive


@dataclass(frozen=True, eq=False)
class Stitched(Brick):
    """`stitch(f, width = w)`: a projection to w in front of f and one back behind it."""

    brick: Stage
    width: int
    options: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Edit:
    """`at path: brick` of a graft. Each matcher is a name, or a set of list places (None: every place)."""

    matchers: tuple[str | frozenset[int] | None, ...]
    value: s.Expr
    span: Span
    env: Any


@dataclass(frozen=True, eq=False)
class Grafted(Brick):
    host: Any
    edits: tuple[Edit, ...]


@dataclass(frozen=True, eq=False)
class Site(Brick):
    """Inside a graft: the brick that stands at the place, with its weights where the host has them."""

    brick: Any
    weight_path: str


@dataclass(frozen=True, eq=False)
class Function:
    """`let f(n) = ...`."""

    item: s.Let
    module: Module


@dataclass(frozen=True, eq=False)
class Builtin:
    """A config function of the language (`min`, `sqrt`, ...) or a special form (`fork`, `filter`, ...)."""

    name: str


Results: TypeAlias = "Value | tuple[Value, ...]"


def own_name(brick: Any) -> str | None:
    """The name that a brick brings along: what a path segment falls back to. None for a pipe, which is spliced in."""
    match brick:
        case Primitive() | BlockBrick():
            return brick.name
        case Named(name=name):
            return name
        case Fork():
            return "fork"
        case Filter():
            return "filter"
        case Placed(brick=inner) | Frozen(brick=inner) | Initialised(brick=inner):
            return own_name(inner)
        case Shared(path=path):
            return path.rsplit(".", 1)[-1]
        case Transposed(shared=shared):
            return own_name(shared)
        case Stitched(brick=stage):
            return stage.segment or own_name(stage.value) or "stitched"
        case Grafted(host=host):
            return own_name(host)
        case Site():
            return "site"
        case list():
            return "layers"
    return None


def describe(value: Any) -> str:
    """What to call a value in a message."""
    if isinstance(value, Value):
        return f"a tensor {value.type}"
    if isinstance(value, tuple) and any(isinstance(v, Value) for v in value):
        return f"{len(value)} tensors"
    if isinstance(value, Brick):
        name = own_name(value)
        return f"the brick `{name}`" if name else "a pipe of bricks"
    if isinstance(value, Function):
        return f"the config function `{value.item.name}`"
    if isinstance(value, Builtin):
        return f"`{value.name}`"
    if isinstance(value, list):
        return "a list"
    from ..ir.scalar import kind

    return kind(value)
