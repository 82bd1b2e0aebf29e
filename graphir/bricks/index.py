"""Bricks about places: picking, placing, ordering, counting; and tensors made out of numbers alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..ir.dims import Dim, Facts
from ..ir.scalar import show
from ..ir.types import Type
from .declare import StateRule, brick
from .shapes import a_size, axis_at, expect_same, known_false, numeric, replaced, show_shape
from .signature import Misfit
from .tensor import not_along_tokens
from .torch_lazy import torch

Types = Sequence[Type]
Names = Mapping[str, Any]


def _index_shape(types: Types, names: Names, facts: Facts) -> tuple[int, Dim]:
    """The axis that the index picks along, and how many places it picks."""
    x, index = types[0].shape, types[1].shape
    axis = axis_at(names["axis"], len(x), x)
    if len(index) != axis + 1:
        raise Misfit("E0202", f"the index of axis {axis} has {axis + 1} axes, not {show_shape(index)}", 1)
    for a, b in zip(x[:axis], index[:axis]):
        expect_same(facts, a, b, f"the index is {show_shape(index)} and the tensor {show_shape(x)}", 1)
    return axis, index[-1]


def _gather_shape(types: Types, names: Names, facts: Facts) -> tuple[Type, ...]:
    axis, picked = _index_shape(types, names, facts)
    return (Type(types[0].dtype, replaced(types[0].shape, axis, picked)),)


def widened(index: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The index [..., C] with the trailing axes of `like` added, as wide as they are."""
    extra = like.shape[index.dim() :]
    return index.reshape(*index.shape, *[1] * len(extra)).expand(*index.shape, *extra)


@brick(
    "gather(axis = 1)(x: any[*S], index: int[*I]) -> any[*R]",
    shape=_gather_shape,
    causal=not_along_tokens,
    examples=("gather : float[B, 3, 4], int[B, 2]", "gather : float[B, 3], int[B, 2]", "gather(axis = 0) : float[3, 4], int[2]"),
)
def gather(x: torch.Tensor, index: torch.Tensor, axis: int = 1) -> torch.Tensor:
    """y[b, c, ...] = x[b, index[b, c], ...]: x: [B, T, *S] and index: int[B, C] -> [B, C, *S], for axis 1; trailing axes go along."""
    return x.gather(axis, widened(index, x))


def _scatter_shape(types: Types, names: Names, facts: Facts) -> tuple[Type, ...]:
    axis, picked = _index_shape(types, names, facts)
    wanted = replaced(types[0].shape, axis, picked)
    if len(types[2].shape) != len(wanted):
        raise Misfit("E0202", f"the rows to add are {show_shape(wanted)}, not {show_shape(types[2].shape)}", 2)
    for a, b in zip(wanted, types[2].shape):
        expect_same(facts, a, b, f"the rows to add are {show_shape(wanted)}, not {show_shape(types[2].shape)}", 2)
    return (types[0],)


@brick(
    "scatter_add(axis = 1)(x: [*S], index: int[*I], y: [*R]) -> [*S]",
    shape=_scatter_shape,
    causal=not_along_tokens,
    examples=("scatter_add : float[B, 3, 4], int[B, 2], float[B, 2, 4]", "scatter_add : float[B, 3], int[B, 2], float[B, 2]"),
)
def scatter_add(x: torch.Tensor, index: torch.Tensor, y: torch.Tensor, axis: int = 1) -> torch.Tensor:
    """x: [B, T, *S] with the rows y: [B, C, *S] added at index: int[B, C], for axis 1; rows of one place add up."""
    return x.scatter_add(axis, widened(index, y), y.to(x.dtype))


def _topk_shape(types: Types, names: Names, facts: Facts) -> tuple[Type, ...]:
    numeric(types)
    shape = types[0].shape
    axis = axis_at(names["axis"], len(shape), shape)
    k = a_size(names["k"], "`k`")
    if known_false("<=", k, shape[axis], facts):
        raise Misfit("E0210", f"`topk` takes {k} of an axis of only {shape[axis]}", 0)
    new = replaced(shape, axis, k)
    return Type(types[0].dtype, new), Type("int", new)


@brick(
    "topk(k, axis = -1)(x: any[*S]) -> (values: any[*R], places: int[*R])",
    shape=_topk_shape,
    inline=True,
    causal=not_along_tokens,
    examples=("topk(2) : float[B, 5]", "topk(2, axis = 1) : float[B, 3, 4]"),
)
def topk(x: torch.Tensor, k: int, axis: int = -1) -> tuple[torch.Tensor, torch.Tensor]:
    """x: [*S] -> the k largest along one axis, largest first, and their places; among equals the lower place comes first."""
    ordered = torch.sort(x, dim=axis, descending=True, stable=True)
    return ordered[0].narrow(axis, 0, k), ordered[1].narrow(axis, 0, k)


def _along(types: Types, names: Names, facts: Facts) -> tuple[Type, ...]:
    axis_at(names["axis"], len(types[0].shape), types[0].shape)
    return (types[0],)


@brick(
    "sort(axis = -1, descending = false)(x: any[*S]) -> any[*S]",
    shape=_along,
    inline=True,
    causal=not_along_tokens,
    examples=("sort : float[B, 5]", "sort(axis = 1, descending = true) : int[B, 3]"),
)
def sort(x: torch.Tensor, axis: int = -1, descending: bool = False) -> torch.Tensor:
    """x: any [*S] -> the same, in order along one axis."""
    return torch.sort(x, dim=axis, descending=descending, stable=True)[0]


def _places(types: Types, names: Names, facts: Facts) -> tuple[Type, ...]:
    axis_at(names["axis"], len(types[0].shape), types[0].shape)
    return (Type("int", types[0].shape),)


@brick(
    "argsort(axis = -1, descending = false)(x: any[*S]) -> int[*S]",
    shape=_places,
    inline=True,
    causal=not_along_tokens,
    examples=("argsort : float[B, 5]", "argsort(axis = 1, descending = true) : int[B, 3]"),
)
def argsort(x: torch.Tensor, axis: int = -1, descending: bool = False) -> torch.Tensor:
    """x: any [*S] -> int [*S]: the places that put an axis in order; equals keep theirs."""
    return torch.sort(x, dim=axis, descending=descending, stable=True)[1]


def _argmax_shape(types: Types, names: Names, facts: Facts) -> tuple[Type, ...]:
    numeric(types)
    return (Type("int", replaced(types[0].shape, axis_at(names["axis"], len(types[0].shape), types[0].shape))),)


@brick(
    "argmax(axis = -1)(x: any[*S]) -> int[*R]",
    shape=_argmax_shape,
    inline=True,
    causal=not_along_tokens,
    examples=("argmax : float[B, 5]", "argmax(axis = 1) : int[B, 3, 2]"),
)
def argmax(x: torch.Tensor, axis: int = -1) -> torch.Tensor:
    """x: [*S] -> int [*R]: the place of the largest along one axis, the lowest of equals; the axis is dropped."""
    return x.argmax(axis)


def _cumsum_shape(types: Types, names: Names, facts: Facts) -> tuple[Type, ...]:
    numeric(types)
    return _along(types, names, facts)


def _cumsum_state(types: Types, names: Names) -> dict[str, tuple[tuple[Dim, ...], str]]:
    shape = types[0].shape
    axis = axis_at(names["axis"], len(shape), shape)
    return {"total": (replaced(shape, 1), types[0].dtype)} if axis == 1 else {}


def _cumsum_step(state: Mapping[str, Any], x: torch.Tensor, axis: int = 1) -> tuple[torch.Tensor, dict[str, Any]]:
    if "total" not in state:
        return x.cumsum(axis), {}
    y = x.cumsum(axis) + state["total"].to(x.dtype).unsqueeze(1)
    return y, {"total": y.select(1, -1)}


@brick(
    "cumsum(axis = 1)(x: any[*S]) -> any[*S]",
    shape=_cumsum_shape,
    state=StateRule(_cumsum_state, _cumsum_step),
    inline=True,
    examples=("cumsum : float[B, T, 4]", "cumsum(axis = -1) : int[B, T]"),
)
def cumsum(x: torch.Tensor, axis: int = 1) -> torch.Tensor:
    """y[t] = x[0] + ... + x[t] along one axis, [*S]."""
    return x.cumsum(axis)


@brick("one_hot(n)(x: int[*S]) -> [*S, n]", require=("n >= 0",), examples=("one_hot(3) : int[B, T]",))
def one_hot(x: torch.Tensor, n: int, dtype: torch.dtype | None = None) -> torch.Tensor:
    """x: int [*S] -> [*S, n]; 1 at the place x, 0 elsewhere (all zeros where x is outside of 0..n)."""
    return (x.unsqueeze(-1) == torch.arange(n, device=x.device)).to(dtype or torch.get_default_dtype())


# out of nothing


@brick("arange(n)() -> int[n]", require=("n >= 0",), examples=("arange(4)", "arange(T)"))
def arange(n: int, device: Any = None) -> torch.Tensor:
    """int [n]: 0, 1, ... n - 1."""
    return torch.arange(n, device=device)


def _full_shape(types: Types, names: Names, facts: Facts) -> tuple[Type, ...]:
    if not isinstance(names["shape"], list | tuple):
        raise Misfit("E0404", f"`shape` of `full` takes a list of widths, not {show(names['shape'])}")
    return (Type(_kind_of(names["value"], "full"), tuple(a_size(d, "`shape`") for d in names["shape"])),)


def _kind_of(value: Any, name: str) -> str:
    kinds = {bool: "bool", int: "int", float: "float"}
    if type(value) not in kinds:
        raise Misfit("E0404", f"`{name}` takes a number or a truth value, not {show(value)}")
    return kinds[type(value)]


def torch_dtype(kind: str, dtype: torch.dtype | None) -> torch.dtype:
    """The torch dtype of an element type, `dtype` being that of floats."""
    return {"bool": torch.bool, "int": torch.int64}.get(kind) or dtype or torch.get_default_dtype()


@brick("full(shape, value)() -> [*shape]", shape=_full_shape, examples=("full([2, 3], 0.5)", "full([T], 1)", "full([], true)"))
def full(shape: Sequence[int], value: float, device: Any = None, dtype: torch.dtype | None = None) -> torch.Tensor:
    """[*shape], each element `value`; integers, truth values or floats as `value` is."""
    return torch.full(tuple(shape), value, device=device, dtype=torch_dtype(_kind_of(value, "full"), dtype))


def nested_shape(values: Any) -> tuple[int, ...]:
    """The shape of nested lists. Raises Misfit where they are ragged."""
    if not isinstance(values, list | tuple):
        return ()
    inner = {nested_shape(v) for v in values}
    if len(inner) > 1:
        raise Misfit("E0404", "the lists of `constant` have unequal lengths")
    return (len(values), *(inner.pop() if inner else ()))


def leaves(values: Any) -> list[Any]:
    return [leaf for v in values for leaf in leaves(v)] if isinstance(values, list | tuple) else [values]


def _constant_kind(values: Any) -> str:
    kinds = {_kind_of(v, "constant") for v in leaves(values)} or {"float"}
    if "bool" in kinds and len(kinds) > 1:
        raise Misfit("E0404", "`constant` mixes truth values and numbers")
    return "float" if "float" in kinds else kinds.pop()


def _constant_shape(types: Types, names: Names, facts: Facts) -> tuple[Type, ...]:
    values, shape = names["values"], names["shape"]
    kind, nested = _constant_kind(values), nested_shape(values)
    if shape is None:
        return (Type(kind, nested),)
    total = 1
    for dim in shape if isinstance(shape, list | tuple) else [shape]:
        if not isinstance(dim, int) or isinstance(dim, bool) or dim < 0:
            raise Misfit("E0404", f"`shape` of `constant` takes whole widths, not {show(dim)}")
        total *= dim
    if total != len(leaves(values)):
        raise Misfit("E0205", f"`constant` holds {len(leaves(values))} values, but {show_shape(shape)} has room for {total}")
    return (Type(kind, tuple(shape)),)


@brick(
    "constant(values, shape = none)() -> [*R]",
    shape=_constant_shape,
    examples=("constant([1.0, 2.5])", "constant([1, 2, 3, 4], shape = [2, 2])", "constant([[true], [false]])"),
)
def constant(values: Any, shape: Sequence[int] | None = None, device: Any = None, dtype: torch.dtype | None = None) -> torch.Tensor:
    """[*shape] of the given numbers, nested lists or a flat one; never trained."""
    tensor = torch.tensor(values, device=device, dtype=torch_dtype(_constant_kind(values), dtype))
    return tensor if shape is None else tensor.reshape(tuple(shape))
