"""Attention whose memory is a matrix per head: plain, decayed, gated, delta rule, RWKV. Each runs by chunks and token by token alike.

Shapes: q, k [B, h, T, k], v [B, h, T, v]; memory [B, h, k, v]. Logits of decay are given as logarithms, at most zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..ir.types import Type
from .declare import StateRule, brick
from .scan import delta, scalar_decay, vector_decay, working
from .state import StateShapes
from .torch_lazy import F, Tensor, torch

State = Mapping[str, Any]
PORTS = "q: [B, h, T, k], k: [B, h, T, k], v: [B, h, T, v]"
QKV = "float[2, 3, 5, 4], float[2, 3, 5, 4], float[2, 3, 5, 6]"
FLOPS = "2 * B * h * T * (chunk * (k + v) + 2 * k * v)"


def memory_shape(types: Sequence[Type], names: Mapping[str, Any]) -> StateShapes:
    """One matrix [B, h, k, v]."""
    return {"memory": ((names["B"], names["h"], names["k"], names["v"]), "float")}


def empty(q: Tensor, v: Tensor) -> dict[str, Tensor]:
    """The memory before the first token."""
    return {"memory": q.new_zeros(q.shape[0], q.shape[1], q.shape[3], v.shape[3], dtype=working(q))}


def _run(
    scan: Callable[..., tuple[Tensor, Tensor]], state: State, tensors: Sequence[Tensor], chunk: int, **extra: Any
) -> tuple[Tensor, dict[str, Tensor]]:
    wide = working(tensors[0])
    y, memory = scan(*(t.to(wide) for t in tensors), state["memory"].to(wide), chunk, **extra)
    return y.to(tensors[2].dtype), {"memory": memory}


def _scaled(q: Tensor, scale: float | None) -> Tensor:
    return q * (q.shape[-1] ** -0.5 if scale is None else scale)


FEATURES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "elu": lambda x: F.elu(x) + 1.0,
    "relu": lambda x: F.relu(x),
    "identity": lambda x: x,
}


def _linear_shape(types: Sequence[Type], names: Mapping[str, Any]) -> StateShapes:
    weight: StateShapes = {"weight": ((names["B"], names["h"], names["k"], 1), "float")}
    return memory_shape(types, names) | (weight if names["normalise"] else {})


def _linear_step(
    state: State, q: Tensor, k: Tensor, v: Tensor, feature: str = "elu", normalise: bool = True, eps: float = 1e-6,
    scale: float = 1.0, chunk: int = 64,
) -> tuple[Tensor, dict[str, Tensor]]:
    wide = working(q)
    q, k = (FEATURES[feature](t.to(wide)) for t in (q, k))
    still = q.new_zeros(q.shape[:3])
    y, memory = scalar_decay(q * scale, k, v.to(wide), still, state["memory"].to(wide), chunk)
    if not normalise:
        return y.to(v.dtype), {"memory": memory}
    ones = v.new_ones(*v.shape[:3], 1, dtype=wide)
    total, weight = scalar_decay(q * scale, k, ones, still, state["weight"].to(wide), chunk)
    return (y / (total + eps)).to(v.dtype), {"memory": memory, "weight": weight}


@brick(
    f'linear_attention(feature = "elu", normalise = true, eps = 1e-6, scale = 1.0, chunk = 64)({PORTS}) -> [B, h, T, v]',
    flops=FLOPS,
    require=('feature in ["elu", "relu", "identity"]', "chunk >= 1"),
    state=StateRule(_linear_shape, _linear_step),
    examples=(f"linear_attention : {QKV}", f'linear_attention(feature = "identity", normalise = false, chunk = 2) : {QKV}'),
    source="Katharopoulos et al. 2020, arXiv 2006.16236",
)
def linear_attention(
    q: Tensor, k: Tensor, v: Tensor, feature: str = "elu", normalise: bool = True, eps: float = 1e-6, scale: float = 1.0,
    chunk: int = 64,
) -> Tensor:
    """y_t = scale f(q_t) S_t / (scale f(q_t) z_t + eps), S_t = sum_{j <= t} f(k_j) v_j^T, z_t = sum f(k_j); f is elu + 1, relu or none."""
    state = empty(q, v)
    return _linear_step(state | {"weight": state["memory"][..., :1]}, q, k, v, feature, normalise, eps, scale, chunk)[0]


def retention_decay(heads: int, like: Tensor) -> Tensor:
    """log(1 - 2 ** (-5 - i)) for head i, [h]: the decays of RetNet."""
    return torch.log1p(-(2.0 ** (-5.0 - torch.arange(heads, dtype=working(like), device=like.device))))


def _retention_step(
    state: State, q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, chunk: int = 64
) -> tuple[Tensor, dict[str, Tensor]]:
    decay = retention_decay(q.shape[1], q).view(1, -1, 1).expand(q.shape[:3])
    return _run(scalar_decay, state, (_scaled(q, scale), k, v, decay), chunk)


@brick(
    f"retention(scale = none, chunk = 64)({PORTS}) -> [B, h, T, v]",
    flops=FLOPS,
    require=("chunk >= 1",),
    state=StateRule(memory_shape, _retention_step),
    examples=(f"retention : {QKV}", f"retention(chunk = 2) : {QKV}"),
    source="Sun et al. 2023 (RetNet), arXiv 2307.08621",
)
def retention(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, chunk: int = 64) -> Tensor:
    """y_t = scale q_t S_t, S_t = g_h S_{t-1} + k_t v_t^T with the fixed decay g_h = 1 - 2 ** (-5 - h) of head h.

    `scale` defaults to k ** -0.5.
    """
    return _retention_step(empty(q, v), q, k, v, scale, chunk)[0]


def _gla_step(
    state: State, q: Tensor, k: Tensor, v: Tensor, g: Tensor, scale: float | None = None, chunk: int = 16
) -> tuple[Tensor, dict[str, Tensor]]:
    return _run(vector_decay, state, (_scaled(q, scale), k, v, g), chunk)


@brick(
    f"gla(scale = none, chunk = 16)({PORTS}, g: [B, h, T, k]) -> [B, h, T, v]",
    flops=FLOPS,
    require=("chunk >= 1",),
    state=StateRule(memory_shape, _gla_step),
    examples=(f"gla(chunk = 2) : {QKV}, float[2, 3, 5, 4]",),
    source="Yang et al. 2024 (gated linear attention), arXiv 2312.06635",
)
def gla(q: Tensor, k: Tensor, v: Tensor, g: Tensor, scale: float | None = None, chunk: int = 16) -> Tensor:
    """y_t = scale q_t S_t, S_t = diag(exp(g_t)) S_{t-1} + k_t v_t^T; g [B, h, T, k] at most zero (`logsigmoid`).

    `scale` defaults to k ** -0.5.
    """
    return _gla_step(empty(q, v), q, k, v, g, scale, chunk)[0]


def _decayed_step(
    state: State, q: Tensor, k: Tensor, v: Tensor, g: Tensor, scale: float | None = None, chunk: int = 64
) -> tuple[Tensor, dict[str, Tensor]]:
    return _run(scalar_decay, state, (_scaled(q, scale), k, v, g), chunk)


@brick(
    f"decayed_attention(scale = none, chunk = 64)({PORTS}, g: [B, h, T]) -> [B, h, T, v]",
    flops=FLOPS,
    require=("chunk >= 1",),
    state=StateRule(memory_shape, _decayed_step),
    examples=(f"decayed_attention(chunk = 2) : {QKV}, float[2, 3, 5]",),
    source="the scalar-gated form of arXiv 2312.06635 and 2405.21060",
)
def decayed_attention(q: Tensor, k: Tensor, v: Tensor, g: Tensor, scale: float | None = None, chunk: int = 64) -> Tensor:
    """y_t = scale q_t S_t, S_t = exp(g_t) S_{t-1} + k_t v_t^T, one decay per head and token; g [B, h, T] at most zero."""
    return _decayed_step(empty(q, v), q, k, v, g, scale, chunk)[0]


def _delta_step(
    state: State, q: Tensor, k: Tensor, v: Tensor, beta: Tensor, scale: float | None = None, chunk: int = 64
) -> tuple[Tensor, dict[str, Tensor]]:
    return _run(delta, state, (_scaled(q, scale), k, v, beta, torch.zeros_like(beta)), chunk)


@brick(
    f"delta_rule(scale = none, chunk = 64)({PORTS}, beta: [B, h, T]) -> [B, h, T, v]",
    flops=FLOPS,
    require=("chunk >= 1",),
    state=StateRule(memory_shape, _delta_step),
    examples=(f"delta_rule(chunk = 2) : {QKV}, float[2, 3, 5]",),
    source="Yang et al. 2024 (DeltaNet), arXiv 2406.06484",
)
def delta_rule(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, scale: float | None = None, chunk: int = 64) -> Tensor:
    """y_t = scale q_t S_t, S_t = S_{t-1} + beta_t k_t (v_t - S_{t-1}^T k_t)^T; beta [B, h, T] in (0, 1), keys of unit length (`l2norm`)."""
    return _delta_step(empty(q, v), q, k, v, beta, scale, chunk)[0]


def _gated_delta_step(
    state: State, q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g: Tensor, scale: float | None = None, chunk: int = 64
) -> tuple[Tensor, dict[str, Tensor]]:
    return _run(delta, state, (_scaled(q, scale), k, v, beta, g), chunk)


@brick(
    f"gated_delta_rule(scale = none, chunk = 64)({PORTS}, beta: [B, h, T], g: [B, h, T]) -> [B, h, T, v]",
    flops=FLOPS,
    require=("chunk >= 1",),
    state=StateRule(memory_shape, _gated_delta_step),
    examples=(f"gated_delta_rule(chunk = 2) : {QKV}, float[2, 3, 5], float[2, 3, 5]",),
    source="Yang et al. 2025 (Gated DeltaNet), arXiv 2412.06464",
)
def gated_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g: Tensor, scale: float | None = None, chunk: int = 64
) -> Tensor:
    """y_t = scale q_t S_t, S_t = a S_{t-1} + beta_t k_t (v_t - a S_{t-1}^T k_t)^T, a = exp(g_t); g [B, h, T] at most zero."""
    return _gated_delta_step(empty(q, v), q, k, v, beta, g, scale, chunk)[0]
