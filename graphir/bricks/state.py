"""Bricks that only remember: caches and token positions. Standard attention is written with these.

State convention of all stateful bricks: batch is axis 0 of every state tensor; `offset` (no axes, int) counts the tokens
seen so far; growing caches start with length 0. Accumulators are float32 in half precision.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..ir.dims import Dim, Facts
from ..ir.types import Type
from .declare import StateRule, brick
from .shapes import axis_at
from .torch_lazy import Tensor, torch

StateShapes = dict[str, tuple[tuple[Dim, ...], str]]
OFFSET: StateShapes = {"offset": ((), "int")}


def tokens(length: int, offset: Any, like: Tensor) -> Tensor:
    """int[T]: the positions of the tokens of this call, the first being `offset`."""
    return torch.arange(length, device=like.device) + offset


def crop_offset(state: Mapping[str, Any], length: int, attrs: Mapping[str, Any]) -> dict[str, Any]:
    """The state after the first `length` tokens, where a counter is all there is."""
    return {**state, "offset": state["offset"].clamp(max=length)}


def positional(step: Callable[..., Any]) -> StateRule:
    """The state of a brick whose only memory is how many tokens it has seen."""
    return StateRule(lambda types, names: dict(OFFSET), step, crop=crop_offset)


def _same(types: Sequence[Type], names: Mapping[str, Any], facts: Facts) -> tuple[Type, ...]:
    axis_at(names["axis"], len(types[0].shape), types[0].shape)
    return (types[0],)


def _empty(types: Sequence[Type], names: Mapping[str, Any]) -> StateShapes:
    type = types[0]
    axis = axis_at(names["axis"], len(type.shape), type.shape)
    return {"past": ((*type.shape[:axis], 0, *type.shape[axis + 1:]), type.dtype)}


def _crop_past(state: Mapping[str, Any], length: int, attrs: Mapping[str, Any]) -> dict[str, Any]:
    past = state["past"]
    return {"past": past.narrow(attrs.get("axis", 1), 0, min(length, past.shape[attrs.get("axis", 1)]))}


def _cache_step(state: Mapping[str, Any], x: Tensor, axis: int = 1) -> tuple[Tensor, dict[str, Any]]:
    whole = torch.cat([state["past"].to(x.dtype), x], axis)
    return whole, {"past": whole}


@brick(
    "cache(axis = 1)(x: any[*S]) -> any[*S]",
    shape=_same,
    state=StateRule(_empty, _cache_step, crop=_crop_past),
    examples=("cache : float[2, 5, 4]", "cache(axis = 2) : float[2, 3, 5, 4]"),
)
def cache(x: Tensor, axis: int = 1) -> Tensor:
    """y = x [*S]; when decoding, everything so far along `axis` (keys and values of attention)."""
    return x


def _window_step(state: Mapping[str, Any], x: Tensor, size: int, axis: int = 1) -> tuple[Tensor, dict[str, Any]]:
    whole = torch.cat([state["past"].to(x.dtype), x], axis)
    kept = min(size - 1, whole.shape[axis])
    return whole, {"past": whole.narrow(axis, whole.shape[axis] - kept, kept)}


def _crop_window(state: Mapping[str, Any], length: int, attrs: Mapping[str, Any]) -> dict[str, Any] | None:
    """Tokens that left the window do not come back: there is a way back while none has."""
    if attrs["size"] > 1 and state["past"].shape[attrs.get("axis", 1)] == attrs["size"] - 1:
        return None
    return _crop_past(state, length, attrs)


@brick(
    "window_cache(size, axis = 1)(x: any[*S]) -> any[*S]",
    require=("size >= 1",),
    shape=_same,
    state=StateRule(_empty, _window_step, crop=_crop_window),
    examples=("window_cache(3) : float[2, 5, 4]",),
)
def window_cache(x: Tensor, size: int, axis: int = 1) -> Tensor:
    """y = x [*S]; when decoding, the last `size` - 1 tokens before x, then x. Enough for `sdpa(window = size)`, in bounded memory."""
    return x


def _counted(types: Sequence[Type], names: Mapping[str, Any], facts: Facts) -> tuple[Type, ...]:
    return (Type("int", (types[0].shape[axis_at(names["axis"], len(types[0].shape), types[0].shape)],)),)


def _position_step(state: Mapping[str, Any], x: Tensor, axis: int = 1) -> tuple[Tensor, dict[str, Any]]:
    length = x.shape[axis]
    return tokens(length, state["offset"], x), {"offset": state["offset"] + length}


@brick(
    "position(axis = 1)(x: any[*S]) -> int[T]",
    shape=_counted,
    state=positional(_position_step),
    examples=("position : float[2, 5, 4]",),
)
def position(x: Tensor, axis: int = 1) -> Tensor:
    """y_t = t, int[T]: the index of each token along `axis`; when decoding, counted from the first token ever seen."""
    return tokens(x.shape[axis], 0, x)
