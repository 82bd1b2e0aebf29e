"""Joins: several tensors in, one out. Arithmetic aligns at the last axis; the other joins take equal shapes (stitching comes before)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..ir.dims import Dim, Facts
from ..ir.scalar import show
from ..ir.types import Type
from .declare import brick
from .shapes import axis_at, elementwise_shape, equal_shapes, expect_same, numeric, one_dtype, replaced, show_shape
from .signature import Misfit
from .torch_lazy import F, torch

Types = Sequence[Type]
Names = Mapping[str, Any]


def _arithmetic(types: Types, names: Names, facts: Facts) -> tuple[Type, ...]:
    dtype = numeric(types)
    if dtype == "int" and isinstance(names.get("alpha", 1.0), float) and names.get("alpha", 1.0) != 1.0:
        raise Misfit("E0201", f"integers and the fraction {names['alpha']} do not mix", 0, ("`float` turns integers into numbers",))
    return (Type(dtype, elementwise_shape([t.shape for t in types], facts)),)


@brick(
    "add(alpha = 1.0)(x: any[*S]) -> any[*S]",
    kind="join",
    variadic=True,
    shape=_arithmetic,
    inline=True,
    elementwise=True,
    examples=("add : float[B, 4], float[B, 4]", "add(alpha = 0.5) : float[B, 4], float[B, 4], float[B, 4]", "add : int[B, 3], int[3]"),
)
def add(*xs: torch.Tensor, alpha: float = 1.0) -> torch.Tensor:
    """y = x_1 + alpha * (x_2 + ... + x_n), [*S], aligned at the last axis."""
    if len(xs) == 1:
        return xs[0]
    rest = xs[1]
    for x in xs[2:]:
        rest = torch.add(rest, x)
    return torch.add(xs[0], rest) if alpha == 1 else torch.add(xs[0], rest, alpha=alpha)


@brick(
    "sub(x: any[*S], y: any[*R]) -> any[*S]", kind="join", shape=_arithmetic, inline=True, elementwise=True,
    examples=("sub : float[B, 4], float[B, 4]", "sub : float[B, 4], float[B, 1]"),
)
def sub(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """x - y, [*S], aligned at the last axis."""
    return torch.sub(x, y)


@brick(
    "mul(x: any[*S]) -> any[*S]", kind="join", variadic=True, shape=_arithmetic, inline=True, elementwise=True,
    examples=("mul : float[B, 4], float[B, 4]", "mul : float[B, T, 4], float[B, T, 1], float[4]"),
)
def mul(*xs: torch.Tensor) -> torch.Tensor:
    """y = x_1 * ... * x_n, [*S], aligned at the last axis."""
    product = xs[0]
    for x in xs[1:]:
        product = torch.mul(product, x)
    return product


def _quotient(types: Types, names: Names, facts: Facts) -> tuple[Type, ...]:
    return (Type("float", elementwise_shape([t.shape for t in types], facts)),)


@brick(
    "div(x: [*S], y: [*R]) -> [*S]", kind="join", shape=_quotient, inline=True, elementwise=True,
    examples=("div : float[B, 4], float[B, 4]", "div : float[B, 4], float[B, 1]"),
)
def div(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """x / y, [*S], aligned at the last axis."""
    return torch.div(x, y)


@brick(
    "mean(x: [*S]) -> [*S]", kind="join", variadic=True, inline=True, elementwise=True,
    examples=("mean : float[B, 4], float[B, 4], float[B, 4]",),
)
def mean(*xs: torch.Tensor) -> torch.Tensor:
    """y = (x_1 + ... + x_n) / n, [*S]."""
    return torch.mul(add(*xs), 1.0 / len(xs))


def _equal(types: Types, names: Names, facts: Facts) -> tuple[Type, ...]:
    numeric(types)
    equal_shapes(types, facts, "branches")
    return (types[0],)


@brick(
    "max(x: any[*S]) -> any[*S]", kind="join", variadic=True, shape=_equal, inline=True, elementwise=True,
    examples=("max : float[B, 4], float[B, 4], float[B, 4]",),
)
def maximum(*xs: torch.Tensor) -> torch.Tensor:
    """y = the largest of x_1 ... x_n, element by element, [*S]."""
    largest = xs[0]
    for x in xs[1:]:
        largest = torch.maximum(largest, x)
    return largest


def _concat_shape(types: Types, names: Names, facts: Facts) -> tuple[Type, ...]:
    first = types[0].shape
    dtype, axis = one_dtype(types), axis_at(names["axis"], len(first), first)
    total: Dim = 0
    for index, type in enumerate(types):
        message = f"`concat` along axis {axis} of {show_shape(first)} and {show_shape(type.shape)}"
        if len(type.shape) != len(first):
            raise Misfit("E0202", message, index)
        for place, (a, b) in enumerate(zip(first, type.shape)):
            if place != axis:
                expect_same(facts, a, b, message, index)
        total = total + type.shape[axis]
    return (Type(dtype, replaced(first, axis, total)),)


@brick(
    "concat(axis = -1)(x: any[*S]) -> any[*R]",
    kind="join",
    variadic=True,
    shape=_concat_shape,
    inline=True,
    causal=lambda attrs: attrs.get("axis", -1) != 1,
    examples=("concat : float[B, 4], float[B, 3]", "concat(axis = 1) : float[B, 2, 4], float[B, 3, 4], float[B, 1, 4]"),
)
def concat(*xs: torch.Tensor, axis: int = -1) -> torch.Tensor:
    """[x_1, ..., x_n] one behind the other along one axis; `concat(with = y)` puts y behind what comes in."""
    return torch.cat(xs, axis)


def _stack_shape(types: Types, names: Names, facts: Facts) -> tuple[Type, ...]:
    equal_shapes(types, facts, "branches")
    shape = types[0].shape
    axis = axis_at(names["axis"], len(shape) + 1)
    return (Type(one_dtype(types), (*shape[:axis], len(types), *shape[axis:])),)


@brick(
    "stack(axis = 0)(x: any[*S]) -> any[*R]",
    kind="join",
    variadic=True,
    shape=_stack_shape,
    inline=True,
    causal=lambda attrs: attrs.get("axis", 0) != 1,
    examples=("stack : float[B, 4], float[B, 4]", "stack(axis = -1) : float[B, 4], float[B, 4], float[B, 4]"),
)
def stack(*xs: torch.Tensor, axis: int = 0) -> torch.Tensor:
    """[*S], n times -> the same with a new axis of length n."""
    return torch.stack(xs, axis)


@brick(
    "gate(content: [*S], control: [*R]) -> [*S]", kind="join", shape=_quotient, inline=True, elementwise=True,
    examples=("gate : float[B, 4], float[B, 4]", "gate : float[B, 4], float[B, 1]"),
)
def gate(content: torch.Tensor, control: torch.Tensor) -> torch.Tensor:
    """y = content * sigmoid(control), [*S], aligned at the last axis."""
    return torch.mul(content, torch.sigmoid(control))


GATES = {
    "sigmoid": lambda x: torch.sigmoid(x),
    "silu": lambda x: F.silu(x),
    "gelu": lambda x: F.gelu(x),
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": lambda x: F.relu(x),
    "tanh": lambda x: torch.tanh(x),
    "none": lambda x: x,
}


@brick(
    'glu(activation = "sigmoid")(x: [*S, i]) -> [*S, i // 2]',
    require=("i % 2 == 0", 'activation in ["sigmoid", "silu", "gelu", "gelu_tanh", "relu", "tanh", "none"]'),
    inline=True,
    per_token=True,
    examples=("glu : float[B, T, 6]", 'glu("gelu") : float[B, 6]', 'glu("none") : float[B, 6]'),
    source="Dauphin et al. 2017; Shazeer 2020",
)
def glu(x: torch.Tensor, activation: str = "sigmoid") -> torch.Tensor:
    """y = a * act(b), [*S, i] -> [*S, i / 2]; a is the first half of the last axis, b the second. `none`: bilinear."""
    halves = x.chunk(2, -1)
    return torch.mul(halves[0], GATES[activation](halves[1]))


@brick(
    "blend(weights = none, learnable = false)(x: [*S]) -> [*S]",
    weights="logits: [count] = zeros if learnable",
    kind="join",
    variadic=True,
    require=("learnable or weights != none", "not (learnable and weights != none)", "learnable or len(weights) == count"),
    inline=True,
    examples=("blend(weights = [0.7, 0.3]) : float[B, 4], float[B, 4]", "blend(learnable = true) : float[B, 4], float[B, 4], float[B, 4]"),
)
def blend(*xs: torch.Tensor, weights: Sequence[float] | None = None, logits: torch.Tensor | None = None) -> torch.Tensor:
    """y = w_1 x_1 + ... + w_n x_n, [*S]; w as given, or softmax of learned logits that start at zero (the mean)."""
    parts: Any = torch.softmax(logits, 0).unbind(0) if logits is not None else weights
    total = torch.mul(xs[0], parts[0])
    for index in range(1, len(xs)):
        total = torch.add(total, torch.mul(xs[index], parts[index]))
    return total


@brick(
    "attend(heads = 1, hidden = d)(query: [*S, q], branches: [*S, d]) -> [*S, d]",
    weights="query_weight: [hidden, q] = xavier; key_weight: [hidden, d] = xavier",
    flops="2 * S * hidden * (q + d * (count - 1))",
    kind="join",
    variadic=True,
    require=("heads >= 1", "hidden % heads == 0", "d % heads == 0"),
    inline=True,
    per_token=True,
    examples=(
        "attend : float[B, T, 3], float[B, T, 4], float[B, T, 4]",
        "attend(heads = 2, hidden = 6) : float[B, 4], float[B, 4], float[B, 4]",
    ),
    source="attentive ensemble",
)
def attend(
    query: torch.Tensor,
    *branches: torch.Tensor,
    query_weight: torch.Tensor,
    key_weight: torch.Tensor,
    hidden: int,
    heads: int = 1,
) -> torch.Tensor:
    """y = sum_i a_i b_i, a = softmax_i((W_q x) . (W_k b_i) / sqrt(hidden / heads)), per token and head; query [*S, q], branches [*S, d]."""
    q = F.linear(query, query_weight).unflatten(-1, (heads, 1, -1))
    values = torch.stack(branches, -2)
    keys = F.linear(values, key_weight).unflatten(-1, (heads, -1)).transpose(-2, -3)
    shares = torch.softmax((q * keys).sum(-1) / math.sqrt(hidden / heads), -1)
    mixed = values.unflatten(-1, (heads, -1)).transpose(-2, -3) * shares.unsqueeze(-1)
    return mixed.sum(-2).flatten(-2)


def grid_order(count: int, positions: Sequence[Any] | None, shape: Sequence[int] | None) -> list[int]:
    """The branches in the order of their cells. Raises Misfit for a cell outside of the grid, or one that two branches want."""
    side = math.isqrt(count - 1) + 1 if count > 1 else 1
    cells = [tuple(p) for p in positions] if positions is not None else [(i // side, i % side) for i in range(count)]
    bounds = tuple(shape) if shape is not None else (side, side)
    if len(cells) != count:
        raise Misfit("E0305", f"`grid` has {len(cells)} positions for {count} branches")
    bounds += (1,) * (3 - len(bounds))
    taken: dict[tuple[int, ...], int] = {}
    for branch, cell in enumerate(cells):
        place = cell + (0,) * (3 - len(cell))
        if len(place) != 3 or not all(isinstance(p, int) and 0 <= p < b for p, b in zip(place, bounds)):
            raise Misfit("E0405", f"`grid` has no cell {show(cell)}: its shape is {show(bounds)}", branch)
        if place in taken:
            raise Misfit("E0210", f"branches {taken[place]} and {branch} of `grid` stand on the same cell {show(cell)}", branch)
        taken[place] = branch
    return [taken[place] for place in sorted(taken)]


def _grid_shape(types: Types, names: Names, facts: Facts) -> tuple[Type, ...]:
    grid_order(len(types), names["positions"], names["shape"])
    return _concat_shape(types, {"axis": -1}, facts)


@brick(
    "grid(positions = none, shape = none)(x: [*S]) -> [*R]",
    kind="join",
    variadic=True,
    shape=_grid_shape,
    inline=True,
    per_token=True,
    examples=("grid([(1, 0), (0, 0), (0, 1)], shape = (2, 2)) : float[B, 2], float[B, 3], float[B, 4]", "grid : float[B, 2], float[B, 3]"),
    source="Loom (grid_scatter)",
)
def grid(*xs: torch.Tensor, positions: Sequence[Any] | None = None, shape: Sequence[int] | None = None) -> torch.Tensor:
    """[x_i, x_j, ...] along the last axis in the order of their cells (row, column, layer); without positions a square, row by row."""
    return torch.cat([xs[i] for i in grid_order(len(xs), positions, shape)], -1)
