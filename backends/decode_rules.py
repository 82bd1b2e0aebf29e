"""Steps of decoding that differ between growing state and state of a fixed size: caches, and the attention that reads them.

With fixed sizes (`init_state(batch, length=...)`) every tensor keeps its shape: a cache is a buffer of `length` tokens of which
the first `filled` count, a windowed one the last size - 1 tokens, and attention sees what position allows. `filled` is a tensor,
so nothing is read back from the device. Without fixed sizes it is None, and caches are as long as what they hold.
"""

from __future__ import annotations

from typing import Any

import torch

from graphir.bricks.attention import alibi_slopes, sdpa
from graphir.bricks.declare import REGISTRY

Tensor = torch.Tensor


def cache_step(state: dict[str, Any], x: Tensor, axis: int = 1) -> tuple[Tensor, dict[str, Any]]:
    """Everything so far along `axis`, and the state with x in it; with fixed sizes, the whole buffer."""
    filled = state["filled"]
    if filled is None:
        return _grown("cache", state, x, axis=axis)
    places = filled + torch.arange(x.shape[axis], device=x.device)
    whole = state["past"].to(x.dtype).index_copy(axis, places, x)
    return whole, {"past": whole, "filled": filled + x.shape[axis]}


def window_cache_step(state: dict[str, Any], x: Tensor, size: int, axis: int = 1) -> tuple[Tensor, dict[str, Any]]:
    """The last size - 1 tokens before x, then x; with fixed sizes, zeros stand for tokens that there were not."""
    filled = state["filled"]
    if filled is None:
        return _grown("window_cache", state, x, size=size, axis=axis)
    whole = torch.cat([state["past"].to(x.dtype), x], axis)
    past = whole.narrow(axis, whole.shape[axis] - (size - 1), size - 1)
    return whole, {"past": past, "filled": filled + x.shape[axis]}


def _grown(op: str, state: dict[str, Any], x: Tensor, **attrs: Any) -> tuple[Tensor, dict[str, Any]]:
    rule = REGISTRY[op].state
    assert rule is not None
    y, new = rule.step({"past": state["past"]}, x, **attrs)
    return y, {**new, "filled": None}


def attention_step(
    state: dict[str, Any], q: Tensor, k: Tensor, v: Tensor, *, behind: int | None = None, mask: Tensor | None = None,
    bias: Tensor | None = None, **attrs: Any,
) -> tuple[Tensor, dict[str, Any]]:
    """`sdpa` of new queries over cached keys. `behind`: how many places before x a windowed cache holds, None for a whole one."""
    filled = state["filled"]
    if filled is None:
        return sdpa(q, k, v, mask=mask, bias=bias, **attrs), {"filled": None}
    queries = filled + torch.arange(q.shape[2], device=q.device)
    keys = torch.arange(k.shape[2], device=q.device)
    keys = keys if behind is None else keys + (filled - behind)
    far = queries.unsqueeze(1) - keys
    seen = (far >= 0) & (keys >= 0)
    if attrs.get("window") is not None:
        seen = seen & (far < attrs["window"])
    if attrs.get("chunk") is not None:
        seen = seen & ((queries // attrs["chunk"]).unsqueeze(1) == keys.div(attrs["chunk"], rounding_mode="floor"))
    if attrs.get("alibi"):
        slopes = torch.tensor(alibi_slopes(q.shape[1]), dtype=q.dtype).to(q.device).view(-1, 1, 1)
        bias = -slopes * far.abs()
    seen = seen.view(1, 1, *seen.shape)
    if mask is not None:
        seen = seen & (mask[:, None, None, :] if mask.dim() == 2 else mask)
    plain = {name: value for name, value in attrs.items() if name not in ("causal", "window", "chunk", "alibi")}
    return sdpa(q, k, v, mask=seen, bias=bias, **plain), {"filled": filled + q.shape[2]}


FIXED = {"cache": cache_step, "window_cache": window_cache_step, "sdpa": attention_step}
