"""What tells tokens apart by place: rotations, embeddings and biases. When decoding, each counts the tokens it has seen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from ..ir.dims import Facts
from ..ir.types import Type
from .attention import alibi_slopes, distance
from .declare import brick
from .scan import working
from .shapes import axis_at
from .signature import Misfit
from .state import positional, tokens
from .torch_lazy import Tensor, torch

State = Mapping[str, Any]
LARGEST_KEPT = 2**20  # numbers in a table of turns that is kept for the next call


def _rope_shape(types: Sequence[Type], names: Mapping[str, Any], facts: Facts) -> tuple[Type, ...]:
    axis = axis_at(names["axis"], len(types[0].shape), types[0].shape)
    given = names.get("P")
    length = types[0].shape[axis]
    if given is not None and not (len(given) in (1, 2) and facts.same(given[-1], length)):
        raise Misfit("E0205", f"`position` takes [{length}] or [batch, {length}], not [{', '.join(map(str, given))}]", 1)
    return (types[0],)


def _rope_step(
    state: State, x: Tensor, position: Tensor | None = None, theta: float = 10000.0, layout: str = "half",
    dims: int | None = None, scaling: float = 1.0, axis: int = -2,
) -> tuple[Tensor, dict[str, Any]]:
    length = x.shape[axis]
    at = tokens(length, state["offset"], x) if position is None else position
    return _rotate(x, at, theta, layout, dims, scaling, axis), {"offset": state["offset"] + length}


@brick(
    'rope(theta = 10000.0, layout = "half", dims = none, scaling = 1.0, axis = -2)(x: [*S, k], position: int[*P]) -> [*S, k]',
    optional=("position",),
    require=('layout in ["half", "interleaved"]', "k % 2 == 0 or dims != none", "dims == none or dims % 2 == 0 and dims <= k"),
    shape=_rope_shape,
    state=positional(_rope_step),
    examples=(
        "rope : float[2, 4, 5, 8]",
        "rope : float[2, 4, 5, 8], position = int[5]",
        'rope(theta = 500.0, layout = "interleaved", dims = 4) : float[2, 4, 5, 8]',
    ),
    source="Su et al. 2021, arXiv 2104.09864",
)
def rope(
    x: Tensor, position: Tensor | None = None, theta: float = 10000.0, layout: str = "half", dims: int | None = None,
    scaling: float = 1.0, axis: int = -2,
) -> Tensor:
    """y [*S, k]: pair i of the first `dims` channels turned by t / scaling * theta ** (-2 i / dims), t counted along `axis`.

    `layout` "half" pairs channel i with i + dims / 2, "interleaved" 2 i with 2 i + 1. `position` (int [T] or [B, T]) replaces the count.
    """
    return _rotate(x, position, theta, layout, dims, scaling, axis)


def _rotate(
    x: Tensor, at: Tensor | None, theta: float, layout: str, dims: int | None, scaling: float, axis: int
) -> Tensor:
    """`at`: the positions, None for 0, 1, 2, ..."""
    dims = x.shape[-1] if dims is None else dims
    whole = dims == x.shape[-1]
    turned = (x if whole else x[..., :dims]).to(working(x))
    cos, sin = _turns(turned, x.shape[axis], at, theta, layout, scaling)
    axis = axis + x.dim() if axis < 0 else axis
    shape = [1] * (x.dim() - 1) + [dims]
    shape[axis] = cos.shape[-2]
    if cos.dim() == 3:
        shape[0] = cos.shape[0]
    cos, sin = cos.view(shape), sin.view(shape)
    if layout == "interleaved":
        other = torch.stack((turned[..., 1::2], turned[..., 0::2]), -1).flatten(-2)
    else:
        first, second = turned.chunk(2, -1)
        other = torch.cat((second, first), -1)
    y = torch.addcmul(turned * cos, other, sin).to(x.dtype)
    return y if whole else torch.cat([y, x[..., dims:]], -1)


def _turns(like: Tensor, length: int, at: Tensor | None, theta: float, layout: str, scaling: float) -> tuple[Tensor, Tensor]:
    """cos and signed sin of each channel's turn, each [T, dims] or [B, T, dims]: y = x cos + (the other of the pair) sin."""
    dims = like.shape[-1]
    small = at is None and length * dims <= LARGEST_KEPT
    if small and type(like) is torch.Tensor and not torch.compiler.is_compiling():
        return _kept_turns(length, dims, theta, layout, scaling, like.dtype, like.device)
    return _new_turns(tokens(length, 0, like) if at is None else at, dims, theta, layout, scaling, like.dtype)


@lru_cache(maxsize=16)
def _kept_turns(
    length: int, dims: int, theta: float, layout: str, scaling: float, dtype: Any, device: Any
) -> tuple[Tensor, Tensor]:
    """The same for the queries and keys of all layers; made outside of inference mode, so that training may use it too."""
    with torch.inference_mode(False):
        return _new_turns(torch.arange(length, device=device), dims, theta, layout, scaling, dtype)


def _new_turns(at: Tensor, dims: int, theta: float, layout: str, scaling: float, dtype: Any) -> tuple[Tensor, Tensor]:
    rates = theta ** (-torch.arange(0, dims, 2, dtype=dtype, device=at.device) / dims)
    angle = (at.to(dtype) / scaling).unsqueeze(-1) * rates
    cos, sin = angle.cos(), angle.sin()
    if layout == "interleaved":
        return torch.stack((cos, cos), -1).flatten(-2), torch.stack((-sin, sin), -1).flatten(-2)
    return torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)


def _bias_shape(types: Sequence[Type], names: Mapping[str, Any], facts: Facts) -> tuple[Type, ...]:
    return (Type("float", (1, names["heads"], names["T"], names.get("M", names["T"]))),)


def _keys(length: int, offset: Any, memory: Tensor | None) -> Any:
    return offset + length if memory is None else memory.shape[1]


def _relative_step(
    state: State, x: Tensor, memory: Tensor | None = None, *, weight: Tensor, max_distance: int = 128, bidirectional: bool = True
) -> tuple[Tensor, dict[str, Any]]:
    length, offset = x.shape[1], state["offset"]
    bias = _bucketed(tokens(length, offset, x), int(_keys(length, offset, memory)), weight, max_distance, bidirectional)
    return bias, {"offset": offset + length}


@brick(
    "relative_bias(heads, buckets = 32, max_distance = 128, bidirectional = true)"
    "(x: any[B, T, *R], memory: float[C, M, *Q]) -> [1, heads, T, T]",
    weights="weight: [buckets, heads] = normal(0.02)",
    optional=("memory",),
    require=("buckets >= 4", "max_distance > buckets // 2"),
    shape=_bias_shape,
    state=positional(_relative_step),
    examples=("relative_bias(4) : float[2, 5, 8]", "relative_bias(4, bidirectional = false) : int[2, 5], memory = float[2, 3, 8]"),
    source="Raffel et al. 2020 (T5), arXiv 1910.10683",
)
def relative_bias(
    x: Tensor, memory: Tensor | None = None, *, weight: Tensor, max_distance: int = 128, bidirectional: bool = True
) -> Tensor:
    """bias [1, heads, T, S] = weight[bucket(j - i)]: near distances have a bucket each, far ones share some.

    Buckets grow logarithmically up to `max_distance`. Queries are the tokens of x; keys are those of `memory`,
    or of x itself (when decoding, all seen so far).
    """
    return _bucketed(tokens(x.shape[1], 0, x), _keys(x.shape[1], 0, memory), weight, max_distance, bidirectional)


def bucket(relative: Tensor, buckets: int, max_distance: int, bidirectional: bool) -> Tensor:
    """int: T5's bucket of a relative position (key minus query); half of the buckets look ahead where `bidirectional`."""
    base = torch.zeros_like(relative)
    if bidirectional:
        buckets //= 2
        base, away = (relative > 0) * buckets, relative.abs()
    else:
        away = (-relative).clamp(min=0)
    exact = buckets // 2
    growth = (away.clamp(min=1).float() / exact).log() / math.log(max_distance / exact)
    far = (exact + (growth * (buckets - exact)).long()).clamp(max=buckets - 1)
    return base + torch.where(away < exact, away, far)


def _bucketed(at: Tensor, keys: int, weight: Tensor, max_distance: int, bidirectional: bool) -> Tensor:
    relative = torch.arange(keys, device=at.device) - at.unsqueeze(1)
    return weight[bucket(relative, weight.shape[0], max_distance, bidirectional)].permute(2, 0, 1).unsqueeze(0)


def _alibi_step(state: State, x: Tensor, heads: int) -> tuple[Tensor, dict[str, Any]]:
    length, offset = x.shape[1], state["offset"]
    return _slanted(x, length, int(offset) + length, heads), {"offset": offset + length}


@brick(
    "alibi(heads)(x: [B, T, *R]) -> [1, heads, T, T]",
    state=positional(_alibi_step),
    examples=("alibi(4) : float[2, 5, 8]",),
    source="Press et al. 2022, arXiv 2108.12409",
)
def alibi(x: Tensor, heads: int) -> Tensor:
    """bias [1, heads, T, S] = -slope_h |i - j|; `sdpa(alibi = true)` adds the same without the tensor in the graph."""
    return _slanted(x, x.shape[1], x.shape[1], heads)


def _slanted(x: Tensor, queries: int, keys: int, heads: int) -> Tensor:
    slopes = torch.tensor(alibi_slopes(heads), dtype=x.dtype, device=x.device).view(1, -1, 1, 1)
    return -slopes * distance(queries, keys, x).abs()


def _sinusoidal_step(state: State, x: Tensor, theta: float = 10000.0, layout: str = "interleaved") -> tuple[Tensor, dict[str, Any]]:
    length, offset = x.shape[1], state["offset"]
    return _waves(tokens(length, offset, x), x, theta, layout), {"offset": offset + length}


@brick(
    'sinusoidal_positions(theta = 10000.0, layout = "interleaved")(x: [B, T, d]) -> [T, d]',
    require=("d % 2 == 0", 'layout in ["half", "interleaved"]'),
    state=positional(_sinusoidal_step),
    examples=("sinusoidal_positions : float[2, 5, 8]",),
    source="Vaswani et al. 2017, arXiv 1706.03762",
)
def sinusoidal_positions(x: Tensor, theta: float = 10000.0, layout: str = "interleaved") -> Tensor:
    """p [T, d]: sin and cos of t * theta ** (-2 i / d), alternating or (`layout` "half") all sines first; to be added to x."""
    return _waves(tokens(x.shape[1], 0, x), x, theta, layout)


def _waves(at: Tensor, x: Tensor, theta: float, layout: str) -> Tensor:
    width, dtype = x.shape[-1], working(x)
    angle = at.to(dtype).unsqueeze(1) * theta ** (-torch.arange(0, width, 2, dtype=dtype, device=x.device) / width)
    pair = (angle.sin(), angle.cos())
    return (torch.cat(pair, -1) if layout == "half" else torch.stack(pair, -1).flatten(-2)).to(x.dtype)


def _learned_step(state: State, x: Tensor, weight: Tensor, size: int, offset: int = 0) -> tuple[Tensor, dict[str, Any]]:
    length = x.shape[1]
    return weight[tokens(length, state["offset"] + offset, x)], {"offset": state["offset"] + length}


@brick(
    "learned_positions(size, offset = 0)(x: [B, T, d]) -> [T, d]",
    weights="weight: [size + offset, d] = normal(0.02)",
    require=("T <= size", "offset >= 0"),
    state=positional(_learned_step),
    examples=("learned_positions(16) : float[2, 5, 8]", "learned_positions(16, offset = 2) : float[2, 5, 8]"),
)
def learned_positions(x: Tensor, weight: Tensor, size: int, offset: int = 0) -> Tensor:
    """p [T, d] = weight[t + offset] for up to `size` tokens; to be added to x. Longer inputs are an index error."""
    return weight[tokens(x.shape[1], offset, x)]
