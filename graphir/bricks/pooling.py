"""Bricks that make an axis shorter or longer: pools and interpolation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..ir.dims import Facts
from ..ir.scalar import show
from ..ir.types import Type
from .declare import brick
from .shapes import a_size, axis_at, divided, known_false, replaced
from .signature import Misfit
from .tensor import not_along_tokens
from .torch_lazy import F, torch

Types = Sequence[Type]
Names = Mapping[str, Any]

POOLS = {
    "mean": lambda x, axis: x.mean(axis),
    "max": lambda x, axis: x.amax(axis),
    "min": lambda x, axis: x.amin(axis),
    "sum": lambda x, axis: x.sum(axis),
    "first": lambda x, axis: x.select(axis, 0),
    "last": lambda x, axis: x.select(axis, -1),
}


def _pool_axis(types: Types, names: Names) -> int:
    if names["op"] not in POOLS:
        raise Misfit("E0404", f"`op` is one of {', '.join(POOLS)}, not {show(names['op'])}")
    return axis_at(names["axis"], len(types[0].shape), types[0].shape)


def _pool_shape(types: Types, names: Names, facts: Facts) -> tuple[Type, ...]:
    return (Type("float", replaced(types[0].shape, _pool_axis(types, names))),)


@brick(
    'pool(op = "mean", axis = 1)(x: [*S]) -> [*R]',
    shape=_pool_shape,
    inline=True,
    causal=lambda attrs: not_along_tokens(attrs) or attrs.get("op") == "last",
    examples=(
        "pool : float[B, 3, 4]",
        'pool("max", axis = -1) : float[B, 3, 4]',
        'pool("last") : float[B, 3, 4]',
        'pool("sum", axis = 2) : float[B, 3, 4]',
    ),
)
def pool(x: torch.Tensor, op: str = "mean", axis: int = 1) -> torch.Tensor:
    """x: [*S] -> [*R]: one axis reduced to its mean, max, min, sum, first or last element. The mean of no elements is not a number."""
    return POOLS[op](x, axis)


def _windows_shape(types: Types, names: Names, facts: Facts) -> tuple[Type, ...]:
    shape = types[0].shape
    axis = _pool_axis(types, names)
    return (Type("float", replaced(shape, axis, divided(shape[axis], names["size"], facts, "`pool_windows`"))),)


@brick(
    'pool_windows(size, op = "mean", axis = 1)(x: [*S]) -> [*R]',
    shape=_windows_shape,
    inline=True,
    causal=not_along_tokens,
    examples=("pool_windows(2) : float[B, 6, 4]", 'pool_windows(3, "max", axis = -1) : float[B, 6]'),
)
def pool_windows(x: torch.Tensor, size: int, op: str = "mean", axis: int = 1) -> torch.Tensor:
    """x: [*S] -> [*R]: one axis cut into windows of `size` elements, each reduced by `op`; the length must be a multiple of `size`."""
    within = axis + 1 if axis >= 0 else axis
    return POOLS[op](x.unflatten(axis, (-1, size)), within)


def _windowed(types: Types, names: Names, facts: Facts) -> tuple[Type, ...]:
    kernel, stride, padding = names["kernel"], names["stride"], names["padding"]
    batch, c, *axes = types[0].shape
    out = []
    for dim in axes:
        padded = dim + 2 * padding
        if known_false(">=", padded, kernel, facts):
            raise Misfit("E0405", f"a window of {kernel} does not fit an axis of {padded}", 0)
        out.append((padded - kernel) // stride + 1)
    return (Type("float", (batch, c, *out)),)


WINDOW = ("kernel >= 1", "stride >= 1", "padding >= 0", "2 * padding <= kernel")


@brick(
    "avg_pool2d(kernel, stride = kernel, padding = 0)(x: [B, c, H, W]) -> [B, c, I, J]",
    shape=_windowed,
    require=WINDOW,
    inline=True,
    causal=False,
    examples=("avg_pool2d(2) : float[B, 2, 4, 6]", "avg_pool2d(3, stride = 2, padding = 1) : float[B, 2, 5, 6]"),
)
def avg_pool2d(x: torch.Tensor, kernel: int, stride: int | None = None, padding: int = 0) -> torch.Tensor:
    """x: [B, c, H, W] -> [B, c, (H + 2 padding - kernel) // stride + 1, ...]; means of windows, padding counted."""
    return F.avg_pool2d(x, kernel, stride, padding)


@brick(
    "max_pool2d(kernel, stride = kernel, padding = 0)(x: [B, c, H, W]) -> [B, c, I, J]",
    shape=_windowed,
    require=WINDOW,
    inline=True,
    causal=False,
    examples=("max_pool2d(2) : float[B, 2, 4, 6]", "max_pool2d(3, stride = 2, padding = 1) : float[B, 2, 5, 6]"),
)
def max_pool2d(x: torch.Tensor, kernel: int, stride: int | None = None, padding: int = 0) -> torch.Tensor:
    """x: [B, c, H, W] -> [B, c, (H + 2 padding - kernel) // stride + 1, ...]; the largest of each window."""
    return F.max_pool2d(x, kernel, stride, padding)


def _interpolate_shape(types: Types, names: Names, facts: Facts) -> tuple[Type, ...]:
    shape = types[0].shape
    axis = axis_at(names["axis"], len(shape), shape)
    return (Type("float", replaced(shape, axis, a_size(names["size"], "`size`"))),)


@brick(
    'interpolate(size, axis = 1, mode = "linear")(x: [*S]) -> [*R]',
    shape=_interpolate_shape,
    require=('mode in ["linear", "nearest"]', "size >= 1"),
    causal=not_along_tokens,
    examples=("interpolate(5) : float[B, 3, 4]", 'interpolate(2, axis = -1, mode = "nearest") : float[B, 3, 4]'),
)
def interpolate(x: torch.Tensor, size: int, axis: int = 1, mode: str = "linear") -> torch.Tensor:
    """x: [*S] -> [*R]: one axis resampled to `size` points; linear (centres of cells aligned, ends held) or nearest (floor)."""
    length = x.shape[axis]
    places = torch.arange(size, device=x.device)
    if mode == "nearest":
        return x.index_select(axis, (places * length).div(size, rounding_mode="floor"))
    # (place + 1/2) * length / size - 1/2 in units of 1 / (2 size), so that no rounding moves a point over a cell's edge
    wanted = ((2 * places + 1) * length - size).clamp(0, (length - 1) * 2 * size)
    left = wanted.div(2 * size, rounding_mode="floor")
    right = (left + 1).clamp(max=length - 1)
    share = ((wanted - left * 2 * size).to(torch.promote_types(x.dtype, torch.float32)) / (2 * size)).to(x.dtype)
    share = share.reshape([-1] + [1] * (x.dim() - 1 - axis if axis >= 0 else -1 - axis))
    low, high = x.index_select(axis, left), x.index_select(axis, right)
    return low + (high - low) * share
