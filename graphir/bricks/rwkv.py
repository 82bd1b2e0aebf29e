"""The recurrences of RWKV, versions 4, 5 and 6. (Its token shift is `shift_tokens`.)"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..ir.types import Type
from .declare import StateRule, brick
from .linear_attention import FLOPS, QKV, empty, memory_shape
from .scan import lower, vector_decay, windows, working
from .state import StateShapes
from .torch_lazy import Tensor, torch

State = Mapping[str, Any]
Result = tuple["Tensor", dict[str, Any]]
PORTS = "r: [B, h, T, k], k: [B, h, T, k], v: [B, h, T, v]"
NOTHING = -1e30  # the logarithm of the weight of what came before the first token


def _wkv_shapes(types: Sequence[Type], names: Mapping[str, Any]) -> StateShapes:
    return {role: ((names["B"], names["d"]), "float") for role in ("top", "bottom", "scale")}


def _wkv_step(state: State, k: Tensor, v: Tensor, decay: Tensor, bonus: Tensor, chunk: int = 32) -> Result:
    wide, narrow = working(k), v.dtype
    k, v, bonus = (t.to(wide) for t in (k, v, bonus))
    rate = decay.to(wide).exp()
    top, bottom, scale = (state[role].to(wide) for role in ("top", "bottom", "scale"))
    parts = [v[:, :0]]
    for at in windows(k.shape[1], chunk):
        ks, vs = k[:, at], v[:, at]
        length = ks.shape[1]
        age = torch.arange(length, dtype=wide, device=k.device)
        since = age.unsqueeze(1) - 1 - age
        logits = ks.unsqueeze(1) - since.unsqueeze(-1) * rate
        logits = logits.masked_fill(~lower(length, k, -1).unsqueeze(-1), float("-inf"))
        own = ks + bonus
        old = scale.unsqueeze(1) - age.unsqueeze(-1) * rate
        most = torch.maximum(torch.maximum(logits.amax(2), own), old)
        weights, mine, past = (logits - most.unsqueeze(2)).exp(), (own - most).exp(), (old - most).exp()
        above = torch.einsum("bijd,bjd->bid", weights, vs) + mine * vs + past * top.unsqueeze(1)
        parts.append(above / (weights.sum(2) + mine + past * bottom.unsqueeze(1)))
        left = ks - (length - 1 - age).unsqueeze(-1) * rate
        old = scale - length * rate
        scale = torch.maximum(left.amax(1), old)
        kept, past = (left - scale.unsqueeze(1)).exp(), (old - scale).exp()
        top, bottom = (kept * vs).sum(1) + past * top, kept.sum(1) + past * bottom
    return torch.cat(parts, 1).to(narrow), {"top": top, "bottom": bottom, "scale": scale}


@brick(
    "rwkv4_wkv(chunk = 32)(k: [B, T, d], v: [B, T, d]) -> [B, T, d]",
    weights="decay: [d] = linspace(-5.0, 2.0); bonus: [d] = normal(0.3)",
    require=("chunk >= 1",),
    state=StateRule(_wkv_shapes, _wkv_step, fill={"scale": NOTHING}),
    examples=("rwkv4_wkv(chunk = 2) : float[2, 5, 4], float[2, 5, 4]",),
    source="Peng et al. 2023 (RWKV-4), arXiv 2305.13048",
)
def rwkv4_wkv(k: Tensor, v: Tensor, decay: Tensor, bonus: Tensor, chunk: int = 32) -> Tensor:
    """y_t [B, T, d]: mean of v_j, j <= t, weighted by exp(k_j - (t - 1 - j) exp(decay)), the token itself by exp(k_t + bonus)."""
    zero = k.new_zeros(k.shape[0], k.shape[2], dtype=working(k))
    return _wkv_step({"top": zero, "bottom": zero, "scale": zero + NOTHING}, k, v, decay, bonus, chunk)[0]


def _rwkv6_step(
    state: State, r: Tensor, k: Tensor, v: Tensor, w: Tensor, bonus: Tensor, chunk: int = 16
) -> Result:
    wide = working(r)
    r, k, w, memory, values = (t.to(wide) for t in (r, k, w, state["memory"], v))
    y, memory = vector_decay(r, k, values, w, memory, chunk, bonus.to(wide))
    return y.to(v.dtype), {"memory": memory}


@brick(
    f"rwkv6_wkv(chunk = 16)({PORTS}, w: [B, h, T, k]) -> [B, h, T, v]",
    weights="bonus: [h, k] = normal(0.3)",
    flops=FLOPS,
    require=("chunk >= 1",),
    state=StateRule(memory_shape, _rwkv6_step),
    examples=(f"rwkv6_wkv(chunk = 2) : {QKV}, float[2, 3, 5, 4]",),
    source="Peng et al. 2024 (RWKV-6), arXiv 2404.05892",
)
def rwkv6_wkv(r: Tensor, k: Tensor, v: Tensor, w: Tensor, bonus: Tensor, chunk: int = 16) -> Tensor:
    """y_t [B, h, T, v] = r_t (S_{t-1} + diag(bonus) k_t v_t^T), S_t = diag(exp(w_t)) S_{t-1} + k_t v_t^T; w at most zero."""
    return _rwkv6_step(empty(r, v), r, k, v, w, bonus, chunk)[0]


def _rwkv5_step(
    state: State, r: Tensor, k: Tensor, v: Tensor, decay: Tensor, bonus: Tensor, chunk: int = 16
) -> Result:
    return _rwkv6_step(state, r, k, v, -decay.exp().unsqueeze(1).expand(r.shape), bonus, chunk)


@brick(
    f"rwkv5_wkv(chunk = 16)({PORTS}) -> [B, h, T, v]",
    weights="decay: [h, k] = linspace(-5.0, 2.0); bonus: [h, k] = normal(0.3)",
    flops=FLOPS,
    require=("chunk >= 1",),
    state=StateRule(memory_shape, _rwkv5_step),
    examples=(f"rwkv5_wkv(chunk = 2) : {QKV}",),
    source="Peng et al. 2024 (RWKV-5), arXiv 2404.05892",
)
def rwkv5_wkv(r: Tensor, k: Tensor, v: Tensor, decay: Tensor, bonus: Tensor, chunk: int = 16) -> Tensor:
    """As `rwkv6_wkv` with the same decay for every token, w = -exp(decay)."""
    return _rwkv5_step(empty(r, v), r, k, v, decay, bonus, chunk)[0]
