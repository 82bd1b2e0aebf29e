"""Mixers over time in MLX: attention, convolutions, recurrences, state space models, in their whole-sequence form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from graphir.bricks.attention import alibi_slopes
from graphir.bricks.scan import windows

from .mlx_bricks import brick, elu, softplus
from .mlx_lazy import lower, mx, wide

if TYPE_CHECKING:
    Array = Any


# attention


def _distance(queries: int, keys: int) -> Array:
    return mx.arange(queries)[:, None] + (keys - queries) - mx.arange(keys)[None, :]


def _visible(queries: int, keys: int, causal: bool, window: int | None, chunk: int | None) -> Array | None:
    """bool [T, S]: what position alone lets each query see; None where that is everything."""
    behind = _distance(queries, keys)
    conditions = [behind >= 0] if causal else []
    if window is not None:
        conditions.append((behind if causal else mx.abs(behind)) < window)
    if chunk is not None:
        mine = mx.arange(queries) + (keys - queries)
        conditions.append((mine // chunk)[:, None] == (mx.arange(keys) // chunk)[None, :])
    return _all(conditions)


def _all(conditions: Sequence[Array]) -> Array | None:
    result = None
    for condition in conditions:
        result = condition if result is None else mx.logical_and(result, condition)
    return result


@brick("sdpa")
def sdpa(
    q: Array, k: Array, v: Array, mask: Array | None = None, bias: Array | None = None, sinks: Array | None = None, causal: bool = False,
    scale: float | None = None, window: int | None = None, chunk: int | None = None, softcap: float | None = None, alibi: bool = False,
) -> Array:
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    seen = _visible(q.shape[2], k.shape[2], causal, window, chunk)
    if mask is not None:
        mask = mask[:, None, None, :] if mask.ndim == 2 else mask
        seen = _all([c for c in (mask, seen) if c is not None])
    if alibi:
        slopes = mx.array(alibi_slopes(q.shape[1]), dtype=q.dtype).reshape(-1, 1, 1)
        slant = -slopes * mx.abs(_distance(q.shape[2], k.shape[2])).astype(q.dtype)
        bias = slant if bias is None else bias + slant
    empty = None if seen is None else mx.logical_not(mx.any(seen, axis=-1, keepdims=True))
    if softcap is None and sinks is None and bias is None:
        y = mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=None if seen is None else mx.logical_or(seen, empty))
    else:
        y = _by_hand(q, k, v, None if seen is None else mx.logical_or(seen, empty), bias, sinks, scale, softcap)
    return y if empty is None else mx.where(empty, mx.zeros_like(y), y)


def _by_hand(
    q: Array, k: Array, v: Array, seen: Array | None, bias: Array | None, sinks: Array | None, scale: float, softcap: float | None
) -> Array:
    k, v = (mx.repeat(t, q.shape[1] // k.shape[1], 1) for t in (k, v))
    logits = wide(q @ mx.swapaxes(k, -1, -2)) * scale
    if softcap is not None:
        logits = softcap * mx.tanh(logits / softcap)
    if bias is not None:
        logits = logits + bias
    if seen is not None:
        logits = mx.where(seen, logits, -mx.inf)
    if sinks is not None:
        drain = mx.broadcast_to(sinks.astype(logits.dtype).reshape(1, -1, 1, 1), (*logits.shape[:3], 1))
        logits = mx.concatenate([logits, drain], -1)
    return mx.softmax(logits, axis=-1)[..., : k.shape[2]].astype(q.dtype) @ v


@brick("rope")
def rope(
    x: Array, position: Array | None = None, theta: float = 10000.0, layout: str = "half", dims: int | None = None, scaling: float = 1.0,
    axis: int = -2,
) -> Array:
    dims, axis = x.shape[-1] if dims is None else dims, axis % x.ndim
    turned, rest = wide(x[..., :dims]), x[..., dims:]
    at = mx.arange(x.shape[axis]) if position is None else position
    rates = theta ** (-mx.arange(0, dims, 2).astype(turned.dtype) / dims)
    angle = (at.astype(turned.dtype) / scaling)[..., None] * rates
    shape = [1] * (x.ndim - 1) + [angle.shape[-1]]
    shape[axis] = angle.shape[-2]
    if angle.ndim == 3:
        shape[0] = angle.shape[0]
    cos, sin = mx.cos(angle).reshape(shape), mx.sin(angle).reshape(shape)
    first, second = (turned[..., 0::2], turned[..., 1::2]) if layout == "interleaved" else mx.split(turned, 2, axis=-1)
    pair = (first * cos - second * sin, second * cos + first * sin)
    y = mx.flatten(mx.stack(pair, -1), -2, -1) if layout == "interleaved" else mx.concatenate(pair, -1)
    return mx.concatenate([y.astype(x.dtype), rest], -1)


@brick("learned_positions")
def learned_positions(x: Array, weight: Array, size: int, offset: int = 0) -> Array:
    return weight[offset : offset + x.shape[1]]


@brick("sinusoidal_positions")
def sinusoidal_positions(x: Array, theta: float = 10000.0, layout: str = "interleaved") -> Array:
    kind = wide(x).dtype
    rates = theta ** (-mx.arange(0, x.shape[-1], 2).astype(kind) / x.shape[-1])
    angle = mx.arange(x.shape[1]).astype(kind)[:, None] * rates
    pair = (mx.sin(angle), mx.cos(angle))
    return (mx.concatenate(pair, -1) if layout == "half" else mx.flatten(mx.stack(pair, -1), -2, -1)).astype(x.dtype)


# convolutions


@brick("causal_conv1d")
def causal_conv1d(x: Array, weight: Array, bias: Array | None = None, dilation: int = 1, groups: int = 1) -> Array:
    past = mx.pad(x, [(0, 0), (dilation * (weight.shape[-1] - 1), 0), (0, 0)])
    y = mx.conv1d(past, mx.swapaxes(weight, 1, 2), dilation=dilation, groups=groups)
    return y if bias is None else y + bias


@brick("depthwise_conv1d")
def depthwise_conv1d(x: Array, weight: Array, bias: Array | None = None, dilation: int = 1) -> Array:
    """A sum of shifted products: the kernels are short, and MLX's grouped convolution of the CPU is slow and has no gradient everywhere."""
    kernel, length = weight.shape[-1], x.shape[1]
    past = mx.pad(x, [(0, 0), (dilation * (kernel - 1), 0), (0, 0)])
    y = past[:, :length] * weight[:, 0, 0]
    for tap in range(1, kernel):
        y = y + past[:, tap * dilation : tap * dilation + length] * weight[:, 0, tap]
    return y if bias is None else y + bias


@brick("conv1d")
def conv1d(
    x: Array, weight: Array, bias: Array | None = None, stride: int = 1, padding: int = 0, dilation: int = 1, groups: int = 1
) -> Array:
    """MLX has channels last."""
    y = mx.conv1d(mx.swapaxes(x, 1, 2), mx.swapaxes(weight, 1, 2), stride, padding, dilation, groups)
    return mx.swapaxes(y if bias is None else y + bias, 1, 2)


@brick("conv2d")
def conv2d(
    x: Array, weight: Array, bias: Array | None = None, stride: int = 1, padding: int = 0, dilation: int = 1, groups: int = 1,
    padding_width: int | None = None,
) -> Array:
    pads = (padding, padding if padding_width is None else padding_width)
    y = mx.conv2d(mx.transpose(x, (0, 2, 3, 1)), mx.transpose(weight, (0, 2, 3, 1)), stride, pads, dilation, groups)
    return mx.transpose(y if bias is None else y + bias, (0, 3, 1, 2))


# recurrences


@brick("lstm")
def lstm(x: Array, weight_ih: Array, weight_hh: Array, bias_ih: Array | None = None, bias_hh: Array | None = None) -> Array:
    fed = x @ weight_ih.T
    fed = fed if bias_ih is None else fed + bias_ih + bias_hh
    h = c = mx.zeros((x.shape[0], weight_hh.shape[1]), dtype=x.dtype)
    out = []
    for t in range(x.shape[1]):
        i, f, g, o = mx.split(fed[:, t] + h @ weight_hh.T, 4, axis=-1)
        c = mx.sigmoid(f) * c + mx.sigmoid(i) * mx.tanh(g)
        h = mx.sigmoid(o) * mx.tanh(c)
        out.append(h)
    return _series(out, (*x.shape[:2], weight_hh.shape[1]), x)


@brick("gru")
def gru(x: Array, weight_ih: Array, weight_hh: Array, bias_ih: Array | None = None, bias_hh: Array | None = None) -> Array:
    fed = x @ weight_ih.T
    fed = fed if bias_ih is None else fed + bias_ih
    h = mx.zeros((x.shape[0], weight_hh.shape[1]), dtype=x.dtype)
    out = []
    for t in range(x.shape[1]):
        back = h @ weight_hh.T
        back = back if bias_hh is None else back + bias_hh
        (r, z, n), (r_back, z_back, n_back) = mx.split(fed[:, t], 3, axis=-1), mx.split(back, 3, axis=-1)
        z = mx.sigmoid(z + z_back)
        h = (1.0 - z) * mx.tanh(n + mx.sigmoid(r + r_back) * n_back) + z * h
        out.append(h)
    return _series(out, (*x.shape[:2], weight_hh.shape[1]), x)


def _series(steps: Sequence[Array], shape: tuple[int, ...], like: Array) -> Array:
    return mx.stack(steps, 1) if steps else mx.zeros(shape, dtype=like.dtype)


@brick("slstm_cell")
def slstm_cell(i: Array, f: Array, z: Array, o: Array, recurrent: Array, bias: Array) -> Array:
    heads, narrow = recurrent.shape[0], i.dtype
    kernel = mx.swapaxes(wide(recurrent), 1, 2)
    logits = wide(mx.stack([i, f, z, o], 2)) + wide(bias).reshape(4, -1)
    gates = mx.flatten(mx.swapaxes(mx.unflatten(logits, -1, (heads, -1)), 2, 3), 3, 4)
    y = c = n = mx.zeros((i.shape[0], i.shape[2]), dtype=logits.dtype)
    m = y - 1e30
    out = []
    for t in range(i.shape[1]):
        back = (mx.unflatten(y, -1, (heads, 1, -1)) @ kernel)[:, :, 0]
        i_t, f_t, z_t, o_t = (mx.flatten(part, 1, 2) for part in mx.split(gates[:, t] + back, 4, axis=-1))
        kept = m - softplus(-f_t)
        m = mx.maximum(i_t, kept)
        forget, take = mx.exp(kept - m), mx.exp(i_t - m)
        c, n = forget * c + take * mx.tanh(z_t), forget * n + take
        y = mx.sigmoid(o_t) * c / n
        out.append(y)
    return _series(out, i.shape, logits).astype(narrow)


def _recurrence(a: Array, x: Array, start: Array | None = None) -> Array:
    """h_t = a_t h_{t-1} + x_t along axis 1, in log2(T) full-width steps."""
    if start is not None:
        x = mx.concatenate([x[:, :1] + a[:, :1] * start[:, None], x[:, 1:]], 1)
    span = 1
    while span < x.shape[1]:
        x = mx.concatenate([x[:, :span], x[:, span:] + a[:, span:] * x[:, :-span]], 1)
        a = mx.concatenate([a[:, :span], a[:, span:] * a[:, :-span]], 1)
        span *= 2
    return x


@brick("linear_recurrence")
def linear_recurrence(x: Array, a: Array) -> Array:
    return _recurrence(wide(a), wide(x)).astype(x.dtype)


@brick("rg_lru")
def rg_lru(x: Array, input_gate: Array, recurrent_gate: Array, weight: Array, c: float = 8.0) -> Array:
    log_a = -c * mx.sigmoid(wide(recurrent_gate)) * softplus(wide(weight))
    first = (mx.arange(x.shape[1]) == 0).reshape(1, -1, 1)
    amount = mx.where(first, 1.0, mx.sqrt(mx.maximum(-mx.expm1(2.0 * log_a), 1e-12)))
    return _recurrence(mx.exp(log_a), wide(x) * mx.sigmoid(wide(input_gate)) * amount).astype(x.dtype)


# memories of a matrix per head


@brick("mlstm")
def mlstm(q: Array, k: Array, v: Array, i: Array, f: Array, form: str = "chunkwise", chunk: int = 64, eps: float = 1e-6) -> Array:
    narrow = v.dtype
    q, k, v, i, f = (wide(t) for t in (q, k * k.shape[-1] ** -0.5, v, i, f))
    heads = q.shape[:2]
    memory = mx.zeros((*heads, q.shape[3], v.shape[3]), q.dtype), mx.zeros((*heads, q.shape[3]), q.dtype), mx.zeros(heads, q.dtype)
    size = {"parallel": max(q.shape[2], 1), "chunkwise": chunk, "recurrent": 1}[form]
    parts = [v[:, :, :0]]
    for at in windows(q.shape[2], size):
        y, memory = _mlstm_chunk(q[:, :, at], k[:, :, at], v[:, :, at], i[:, :, at], -softplus(-f[:, :, at]), memory, eps)
        parts.append(y)
    return mx.concatenate(parts, 2).astype(narrow)


def _mlstm_chunk(
    q: Array, k: Array, v: Array, i: Array, log_f: Array, memory: tuple[Array, ...], eps: float
) -> tuple[Array, tuple[Array, ...]]:
    c, n, m = memory
    total = mx.cumsum(log_f, axis=-1)
    logits = mx.where(lower(q.shape[2]), total[..., None] - total[..., None, :] + i[..., None, :], -mx.inf)
    carried = total + m[..., None]
    top = mx.maximum(mx.max(logits, axis=-1), carried)
    scores = q @ mx.swapaxes(k, -1, -2) * mx.exp(logits - top[..., None])
    past = mx.exp(carried - top)[..., None]
    weight = mx.sum(scores, axis=-1, keepdims=True) + past * (q @ n[..., None])
    y = (scores @ v + past * (q @ c)) / (mx.maximum(mx.abs(weight), mx.exp(-top)[..., None]) + eps)
    m = top[..., -1]
    kept = k * mx.exp(total[..., -1:] - total + i - m[..., None])[..., None]
    old = mx.exp(carried[..., -1] - m)[..., None]
    return y, (old[..., None] * c + mx.swapaxes(kept, -1, -2) @ v, old * n + mx.sum(kept, axis=2), m)


def _scalar_decay(q: Array, k: Array, v: Array, decay: Array, chunk: int) -> Array:
    """y_t = q_t S_t, S_t = exp(decay_t) S_{t-1} + k_t v_t^T; decay [B, h, T]."""
    parts, memory = [v[:, :, :0]], mx.zeros((*q.shape[:2], q.shape[3], v.shape[3]), dtype=q.dtype)
    for at in windows(q.shape[2], chunk):
        total = mx.cumsum(decay[:, :, at], axis=-1)
        qs, ks, vs = q[:, :, at], k[:, :, at], v[:, :, at]
        between = mx.exp(mx.where(lower(total.shape[-1]), total[..., None] - total[..., None, :], -mx.inf))
        parts.append((qs @ mx.swapaxes(ks, -1, -2) * between) @ vs + mx.exp(total)[..., None] * (qs @ memory))
        last = total[..., -1:]
        kept = ks * mx.exp(last - total)[..., None]
        memory = mx.exp(last)[..., None] * memory + mx.swapaxes(kept, -1, -2) @ vs
    return mx.concatenate(parts, 2)


def _scaled(q: Array, scale: float | None) -> Array:
    return q * (q.shape[-1] ** -0.5 if scale is None else scale)


FEATURES: dict[str, Callable[[Array], Array]] = {
    "elu": lambda x: elu(x) + 1.0,
    "relu": lambda x: mx.maximum(x, 0.0),
    "identity": lambda x: x,
}


@brick("linear_attention")
def linear_attention(
    q: Array, k: Array, v: Array, feature: str = "elu", normalise: bool = True, eps: float = 1e-6, scale: float = 1.0, chunk: int = 64
) -> Array:
    narrow = v.dtype
    q, k, v = FEATURES[feature](wide(q)) * scale, FEATURES[feature](wide(k)), wide(v)
    still = mx.zeros(q.shape[:3], dtype=q.dtype)
    y = _scalar_decay(q, k, v, still, chunk)
    if normalise:
        y = y / (_scalar_decay(q, k, mx.ones((*v.shape[:3], 1), dtype=q.dtype), still, chunk) + eps)
    return y.astype(narrow)


@brick("retention")
def retention(q: Array, k: Array, v: Array, scale: float | None = None, chunk: int = 64) -> Array:
    rate = mx.log1p(-(2.0 ** (-5.0 - mx.arange(q.shape[1]).astype(wide(q).dtype))))
    return decayed_attention(q, k, v, mx.broadcast_to(rate[None, :, None], q.shape[:3]), scale, chunk)


@brick("decayed_attention")
def decayed_attention(q: Array, k: Array, v: Array, g: Array, scale: float | None = None, chunk: int = 64) -> Array:
    return _scalar_decay(wide(_scaled(q, scale)), wide(k), wide(v), wide(g), chunk).astype(v.dtype)


@brick("gla")
def gla(q: Array, k: Array, v: Array, g: Array, scale: float | None = None, chunk: int = 16) -> Array:
    narrow = v.dtype
    q, k, v, g = (wide(t) for t in (_scaled(q, scale), k, v, g))
    parts, memory = [v[:, :, :0]], mx.zeros((*q.shape[:2], q.shape[3], v.shape[3]), dtype=q.dtype)
    for at in windows(q.shape[2], chunk):
        qs, ks, vs = q[:, :, at], k[:, :, at], v[:, :, at]
        total = mx.cumsum(g[:, :, at], axis=2)
        seen = lower(total.shape[2])[..., None]
        between = mx.exp(mx.where(seen, total[:, :, :, None] - total[:, :, None], -mx.inf))
        scores = mx.sum(qs[:, :, :, None] * ks[:, :, None] * between, axis=-1)
        parts.append(scores @ vs + (qs * mx.exp(total)) @ memory)
        last = total[:, :, -1:]
        memory = mx.exp(mx.swapaxes(last, -1, -2)) * memory + mx.swapaxes(ks * mx.exp(last - total), -1, -2) @ vs
    return mx.concatenate(parts, 2).astype(narrow)


# state space models

SCAN_CHUNK = 64


@brick("selective_scan")
def selective_scan(
    x: Array, dt: Array, b: Array, c: Array, A_log: Array, D: Array | None = None, softplus: bool = True, groups: int = 1
) -> Array:
    narrow, width = x.dtype, x.shape[2]
    x, dt, b, c = (wide(t) for t in (x, dt, b, c))
    b, c = (mx.repeat(mx.unflatten(t, -1, (groups, -1)), width // groups, 2) if groups > 1 else t[:, :, None] for t in (b, c))
    dt = _softplus(dt) if softplus else dt
    rate = -mx.exp(wide(A_log))
    h = mx.zeros((x.shape[0], *A_log.shape), dtype=x.dtype)
    parts = [x[:, :0]]
    for at in windows(x.shape[1], SCAN_CHUNK):
        states = _recurrence(mx.exp(dt[:, at][..., None] * rate), (dt[:, at] * x[:, at])[..., None] * b[:, at], h)
        parts.append(mx.sum(states * c[:, at], axis=-1))
        h = states[:, -1]
    y = mx.concatenate(parts, 1)
    return (y if D is None else y + wide(D) * x).astype(narrow)


_softplus = softplus


@brick("ssd")
def ssd(
    x: Array, dt: Array, b: Array, c: Array, A_log: Array, D: Array | None = None, dt_bias: Array | None = None, softplus: bool = True,
    dt_min: float = 0.0, dt_max: float | None = None, chunk: int = 64,
) -> Array:
    narrow = x.dtype
    x, dt, b, c = (wide(t) for t in (x, dt, b, c))
    dt = dt if dt_bias is None else dt + wide(dt_bias)
    dt = mx.maximum(_softplus(dt) if softplus else dt, dt_min)
    dt = dt if dt_max is None else mx.minimum(dt, dt_max)
    each = x.shape[2] // b.shape[2]
    keys, queries = (mx.swapaxes(mx.repeat(t, each, 2), 1, 2) for t in (b, c))
    decay = mx.swapaxes(-dt * mx.exp(wide(A_log)), 1, 2)
    y = _scalar_decay(queries, keys * mx.swapaxes(dt, 1, 2)[..., None], mx.swapaxes(x, 1, 2), decay, chunk)
    y = mx.swapaxes(y, 1, 2)
    return (y if D is None else y + wide(D)[:, None] * x).astype(narrow)
