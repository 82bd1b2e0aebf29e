"""Attention proper: queries, keys and values in, weighted sums of values out. Projections, norms and caches stand outside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..ir.dims import Facts
from ..ir.types import Type
from .declare import brick
from .flex import flex, suits
from .scan import working
from .signature import Misfit
from .torch_lazy import F, Tensor, torch


def alibi_slopes(heads: int) -> list[float]:
    """The slope of each head: 2^(-8 i / n) for n a power of two, else those of the power below, then every other of the power above."""
    power = 1 << (heads.bit_length() - 1)
    slopes = [2.0 ** (-8.0 * (i + 1) / power) for i in range(power)]
    between = [2.0 ** (-4.0 * (2 * i + 1) / power) for i in range(power)]
    return (slopes + between)[:heads]


def distance(queries: int, keys: int, like: Tensor) -> Tensor:
    """int [T, S]: how far key j lies behind query i; the last query stands at the last key."""
    at = torch.arange(queries, device=like.device) + (keys - queries)
    return at.unsqueeze(1) - torch.arange(keys, device=like.device)


def visible(queries: int, keys: int, like: Tensor, causal: bool, window: int | None, chunk: int | None) -> Tensor | None:
    """bool [T, S]: what position alone lets each query see; None where that is everything."""
    behind = distance(queries, keys, like)
    seen = behind >= 0 if causal else None
    if window is not None:
        near = behind < window if causal else behind.abs() < window
        seen = near if seen is None else seen & near
    if chunk is not None:
        place = torch.arange(keys, device=like.device)
        mine = torch.arange(queries, device=like.device) + (keys - queries)
        same = (mine // chunk).unsqueeze(1) == place // chunk
        seen = same if seen is None else seen & same
    return seen


def _shape(types: Sequence[Type], names: Mapping[str, Any], facts: Facts) -> tuple[Type, ...]:
    if "M" in names:
        _fits("mask", names["M"], ("B", "h", "T", "S") if len(names["M"]) != 2 else ("B", "S"), names, facts)
    if "P" in names:
        _fits("bias", names["P"], ("B", "h", "T", "S"), names, facts)
    return (Type("float", (names["B"], names["h"], names["T"], names["v"])),)


def _fits(port: str, shape: tuple[Any, ...], wanted: tuple[str, ...], names: Mapping[str, Any], facts: Facts) -> None:
    fits = len(shape) == len(wanted) and all(
        facts.same(names[name], d) or (d == 1 and name in "Bh") for name, d in zip(wanted, shape)
    )
    if not fits:
        expected = f"[{', '.join(str(names[n]) for n in wanted)}]"
        also = f", or [{names['B']}, {names['S']}] for padding" if port == "mask" else ""
        raise Misfit("E0205", f"`{port}` takes {expected} (1 for batch or heads extends){also}, not [{', '.join(map(str, shape))}]")


@brick(
    "sdpa(causal = false, scale = none, window = none, chunk = none, softcap = none, sink = false, alibi = false)"
    "(q: [B, h, T, k], k: [B, g, S, k], v: [B, g, S, v], mask: bool[*M], bias: [*P]) -> [B, h, T, v]",
    weights="sinks: [h] = zeros if sink",
    flops="2 * B * h * T * S * (k + v)",
    require=("h % g == 0", "window == none or window >= 1", "chunk == none or chunk >= 1"),
    optional=("mask", "bias"),
    shape=_shape,
    causal=lambda attrs: attrs.get("causal") is True,
    looks_at=("k", "v"),
    examples=(
        "sdpa(causal = true) : float[2, 4, 5, 8], float[2, 2, 5, 8], float[2, 2, 5, 6]",
        "sdpa : float[2, 4, 5, 8], float[2, 2, 7, 8], float[2, 2, 7, 6], mask = bool[2, 7], bias = float[1, 4, 5, 7]",
        "sdpa(causal = true, window = 3, softcap = 5.0, sink = true) : float[2, 4, 5, 8], float[2, 1, 5, 8], float[2, 1, 5, 8]",
    ),
    source="Vaswani et al. 2017 (arXiv 1706.03762); grouped queries: arXiv 2305.13245; sinks: arXiv 2309.17453; soft cap: arXiv 2408.00118",
)
def sdpa(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, bias: Tensor | None = None,
    sinks: Tensor | None = None, causal: bool = False, scale: float | None = None, window: int | None = None,
    chunk: int | None = None, softcap: float | None = None, alibi: bool = False,
) -> Tensor:
    """y [B, h, T, v] = softmax(softcap(scale q k^T) + bias) v; query head i reads key head i // (h / g).

    The last query stands at the last key, so cached decoding needs no offset: `causal` shows query i the keys up to
    i + S - T, `window` those less than `window` away, `chunk` those of its own chunk. `mask` is true where attention may
    go, [B, S] (padding) or [B, h, T, S]; a query that may see nothing gives zeros. `bias` is added to the logits. `scale`
    defaults to k ** -0.5, `softcap` c is c tanh(s / c), `sink` adds a learned logit per head that takes weight and gives nothing.

    Runs on torch's fused attention; soft caps and sinks, which that lacks, by hand. On CUDA these, windows, chunks and `alibi` run on a
    compiled FlexAttention kernel where that takes the tensors (`flex.suits` says which).
    """
    beyond = softcap is not None or sinks is not None or window is not None or chunk is not None or alibi
    if beyond and suits(q, k, v, bias):
        return _compiled(q, k, v, mask, bias, sinks, causal, scale, window, chunk, softcap, alibi)
    fused = softcap is None and sinks is None
    triangle = fused and causal and not alibi and q.shape[2] == k.shape[2] and mask is bias is window is chunk is None
    seen, empty = (None, None) if triangle else _seen(q, k, mask, causal, window, chunk)
    if alibi:
        slopes = torch.tensor(alibi_slopes(q.shape[1]), dtype=q.dtype, device=q.device).view(-1, 1, 1)
        slant = -slopes * distance(q.shape[2], k.shape[2], q).abs()
        bias = slant if bias is None else bias + slant
    if fused:
        y = _fused(q, k, v, seen, bias, triangle, scale)
    else:
        y = _by_hand(q, k, v, seen, bias, sinks, scale, softcap)
    return y if empty is None else y.masked_fill(empty, 0.0)


def _compiled(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, bias: Tensor | None, sinks: Tensor | None, causal: bool, scale: float | None,
    window: int | None, chunk: int | None, softcap: float | None, alibi: bool,
) -> Tensor:
    slopes = torch.tensor(alibi_slopes(q.shape[1]), dtype=working(q), device=q.device) if alibi else None
    mask = mask[:, None, None, :] if mask is not None and mask.dim() == 2 else mask
    factor = q.shape[-1] ** -0.5 if scale is None else float(scale)
    return flex(q, k, v, mask, bias, sinks, slopes, causal, factor, window, chunk, None if softcap is None else float(softcap))


def _seen(
    q: Tensor, k: Tensor, mask: Tensor | None, causal: bool, window: int | None, chunk: int | None
) -> tuple[Tensor | None, Tensor | None]:
    """What each query sees (None: all), and which queries see nothing; those are shown everything, so that no row is empty."""
    queries, keys = q.shape[2], k.shape[2]
    seen = visible(queries, keys, q, causal, window, chunk)
    if mask is not None:
        mask = mask[:, None, None, :] if mask.dim() == 2 else mask
        seen = mask if seen is None else seen & mask
    if seen is None or (mask is None and queries <= keys):
        return seen, None
    empty = ~seen.any(-1, keepdim=True)
    return seen | empty, empty


def _fused(
    q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, bias: Tensor | None, triangle: bool, scale: float | None
) -> Tensor:
    if bias is not None:
        bias = bias.to(q.dtype)
        seen = bias if seen is None else torch.where(seen, bias, float("-inf"))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, is_causal=triangle, scale=scale, enable_gqa=q.shape[1] != k.shape[1])


def _by_hand(
    q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, bias: Tensor | None, sinks: Tensor | None,
    scale: float | None, softcap: float | None,
) -> Tensor:
    if q.shape[1] != k.shape[1]:
        k, v = (t.repeat_interleave(q.shape[1] // k.shape[1], 1) for t in (k, v))
    logits = (q @ k.transpose(-1, -2)).to(working(q)) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    if bias is not None:
        logits = logits + bias
    if seen is not None:
        logits = logits.masked_fill(~seen, float("-inf"))
    if sinks is not None:
        drain = sinks.to(logits.dtype).view(1, -1, 1, 1).expand(*logits.shape[:3], 1)
        logits = torch.cat([logits, drain], -1)
    weights = logits.softmax(-1)[..., : k.shape[2]]
    return weights.to(q.dtype) @ v
