"""What each brick is in MLX: arithmetic, activations, layouts, norms, linear maps, routing. Mixers over time are in `mlx_mixers.py`.

A function here takes what the brick's torch body takes, arrays for tensors, and computes the same; the meaning is the torch
body's, which the tests compare with. `KEYED` ones also take `key`, a key of MLX's random numbers.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import reduce as fold
from typing import TYPE_CHECKING, Any

from graphir.bricks.einops import equation, plan
from graphir.bricks.join import grid_order

from .mlx_lazy import half, mx, wide

if TYPE_CHECKING:
    Array = Any

BRICKS: dict[str, Callable[..., Any]] = {}
KEYED = frozenset({"dropout"})


def brick(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Enter a function in the table."""

    def enter(function: Callable[..., Any]) -> Callable[..., Any]:
        BRICKS.update(dict.fromkeys(names, function))
        return function

    return enter


# activations


def gelu(x: Array, approximate: str = "none") -> Array:
    if approximate == "tanh":
        return 0.5 * x * (1.0 + mx.tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))
    return 0.5 * x * (1.0 + mx.erf(x * 0.7071067811865476))


def softplus(x: Array) -> Array:
    return mx.logaddexp(x, mx.zeros_like(x))


def silu(x: Array) -> Array:
    return x * mx.sigmoid(x)


def relu(x: Array) -> Array:
    return mx.maximum(x, 0.0)


def elu(x: Array, alpha: float = 1.0) -> Array:
    return mx.where(x > 0, x, alpha * mx.expm1(mx.minimum(x, 0.0)))


GATES: dict[str, Callable[[Array], Array]] = {
    "sigmoid": lambda x: mx.sigmoid(x),
    "silu": silu,
    "gelu": gelu,
    "gelu_tanh": lambda x: gelu(x, "tanh"),
    "relu": relu,
    "tanh": lambda x: mx.tanh(x),
    "none": lambda x: x,
}


@brick("glu")
def glu(x: Array, activation: str = "sigmoid") -> Array:
    content, control = mx.split(x, 2, axis=-1)
    return content * GATES[activation](control)


# joins


@brick("add")
def add(*xs: Array, alpha: float = 1.0) -> Array:
    if len(xs) == 1:
        return xs[0]
    rest = fold(operator.add, xs[1:])
    return xs[0] + (rest if alpha == 1 else alpha * rest)


@brick("mul")
def mul(*xs: Array) -> Array:
    return fold(operator.mul, xs)


@brick("mean")
def mean(*xs: Array) -> Array:
    return add(*xs) * (1.0 / len(xs))


@brick("max")
def maximum(*xs: Array) -> Array:
    return fold(lambda a, b: mx.maximum(a, b), xs)


@brick("concat")
def concat(*xs: Array, axis: int = -1) -> Array:
    return mx.concatenate(xs, axis)


@brick("stack")
def stack(*xs: Array, axis: int = 0) -> Array:
    return mx.stack(xs, axis)


@brick("grid")
def grid(*xs: Array, positions: Sequence[Any] | None = None, shape: Sequence[int] | None = None) -> Array:
    return mx.concatenate([xs[i] for i in grid_order(len(xs), positions, shape)], -1)


# layouts


def _reduction(op: str, x: Array, axes: tuple[int, ...]) -> Array:
    return {"mean": mx.mean, "sum": mx.sum, "max": mx.max, "min": mx.min}[op](x, axis=axes)


def _patterned(x: Array, pattern: str, kind: str, sizes: Any, op: str = "") -> Array:
    """The steps of a pattern, as `graphir.bricks.einops.apply` takes them."""
    steps, known = plan(pattern, kind), dict(sizes or ())
    for axis, group in steps.unflatten:
        x = mx.unflatten(x, axis, tuple([1 if n == "1" else known.get(n, -1) for n in group]))
    for axis in steps.squeeze:
        x = mx.squeeze(x, axis)
    if steps.reduce:
        x = _reduction(op, x, steps.reduce)
    if steps.permute:
        x = mx.transpose(x, steps.permute)
    elif steps.move[0]:
        x = mx.transpose(x, _moved(x.ndim, *steps.move))
    for axis in steps.unsqueeze:
        x = mx.expand_dims(x, axis)
    for axis, name in steps.expand:
        x = mx.repeat(x, known[name], axis)
    for first, last in steps.flatten:
        x = mx.flatten(x, first, last)
    return x


def _moved(rank: int, sources: tuple[int, ...], targets: tuple[int, ...]) -> list[int]:
    """The permutation that puts each source axis at its target, the others keeping their order."""
    places = {t % rank: s % rank for s, t in zip(sources, targets)}
    rest = iter([axis for axis in range(rank) if axis not in places.values()])
    return [places[axis] if axis in places else next(rest) for axis in range(rank)]


@brick("rearrange")
def rearrange(x: Array, pattern: str, sizes: Any = None) -> Array:
    return _patterned(x, pattern, "rearrange", sizes)


@brick("repeat")
def repeat(x: Array, pattern: str, sizes: Any = None) -> Array:
    return _patterned(x, pattern, "repeat", sizes)


@brick("reduce")
def reduce(x: Array, pattern: str, op: str = "mean", sizes: Any = None) -> Array:
    return _patterned(x, pattern, "reduce", sizes, op)


@brick("einsum")
def einsum(*xs: Array, pattern: str) -> Array:
    """MLX's einsum knows no ellipsis: the axes that it stands for get letters of their own."""
    text = equation(pattern)[0]
    if "..." in text:
        operands = text.partition("->")[0].split(",")
        rank = max(x.ndim - len(o.replace("...", "")) for x, o in zip(xs, operands) if "..." in o)
        text = text.replace("...", "".join([c for c in "ZYXWVUTSRQPONMLKJIHG" if c not in text][:rank]))
    return mx.einsum(text, *xs)


@brick("split")
def split(x: Array, parts: Any, axis: int = -1) -> tuple[Array, ...]:
    if not isinstance(parts, tuple | list):
        return tuple(mx.split(x, parts, axis))
    ends, total = [], 0
    for width in parts[:-1]:
        total += width
        ends.append(total)
    return tuple(mx.split(x, ends, axis))


@brick("select")
def select(x: Array, index: int, axis: int = 1) -> Array:
    return mx.take(x, index % x.shape[axis], axis=axis)


@brick("slice")
def slice_(x: Array, start: int = 0, stop: int | None = None, axis: int = -1) -> Array:
    place: list[Any] = [slice(None)] * x.ndim
    place[axis] = slice(start, stop)
    return x[tuple(place)]


@brick("pad")
def pad(x: Array, before: int = 0, after: int = 0, axis: int = 1, value: float = 0.0) -> Array:
    widths = [(0, 0)] * x.ndim
    widths[axis] = (before, after)
    return mx.pad(x, widths, constant_values=mx.array(value, dtype=x.dtype))


@brick("shift_tokens")
def shift_tokens(x: Array, n: int = 1) -> Array:
    return pad(x, before=n)[:, : x.shape[1]]


@brick("flip")
def flip(x: Array, axis: int = 1) -> Array:
    return mx.take(x, mx.arange(x.shape[axis] - 1, -1, -1), axis=axis)


@brick("cumsum")
def cumsum(x: Array, axis: int = 1) -> Array:
    return mx.cumsum(x, axis=axis)


@brick("pool")
def pool(x: Array, op: str = "mean", axis: int = 1) -> Array:
    if op in ("first", "last"):
        return select(x, 0 if op == "first" else -1, axis)
    return _reduction(op, x, (axis,))


@brick("arange")
def arange(n: int) -> Array:
    return mx.arange(n).astype(mx.int64)


@brick("one_hot")
def one_hot(x: Array, n: int) -> Array:
    return (x[..., None] == mx.arange(n)).astype(mx.float32)


# linear maps and norms


@brick("linear")
def linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    y = x @ weight.T
    return y if bias is None else y + bias


@brick("linear_transposed")
def linear_transposed(x: Array, weight: Array) -> Array:
    return x @ weight


@brick("headwise_linear")
def headwise_linear(x: Array, weight: Array, heads: int, bias: Array | None = None) -> Array:
    parts = mx.unflatten(x, -1, (heads, 1, -1))
    y = mx.flatten(parts @ mx.swapaxes(weight, 1, 2), -3, -1)
    return y if bias is None else y + bias


@brick("expert_linear")
def expert_linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    y = x @ mx.swapaxes(weight, 1, 2)
    return y if bias is None else y + bias[:, None]


def _norm(x: Array, weight: Array | None, offset: float, cast: str, statistic: Array) -> Array:
    y = wide(x) * statistic
    if weight is None:
        return y.astype(x.dtype)
    weight = weight + offset if offset else weight
    return (y * wide(weight)).astype(x.dtype) if cast == "gemma" else y.astype(x.dtype) * weight


@brick("rms_statistic")
def rms_statistic(x: Array, eps: float = 1e-6) -> Array:
    return mx.rsqrt(mx.mean(mx.square(wide(x)), axis=-1, keepdims=True) + eps)


@brick("rmsnorm_with")
def rmsnorm_with(x: Array, statistic: Array, weight: Array | None = None, offset: float = 0.0, cast: str = "llama") -> Array:
    return _norm(x, weight, offset, cast, statistic)


@brick("rmsnorm")
def rmsnorm(x: Array, weight: Array | None = None, eps: float = 1e-6, offset: float = 0.0, cast: str = "llama") -> Array:
    if half(x) or offset:
        return _norm(x, weight, offset, cast, rms_statistic(x, eps))
    return mx.fast.rms_norm(x, weight, eps)


@brick("add_rmsnorm")
def add_rmsnorm(
    x: Array, r: Array, weight: Array | None = None, eps: float = 1e-6, offset: float = 0.0, cast: str = "llama"
) -> tuple[Array, Array]:
    return x + r, rmsnorm(x + r, weight, eps, offset, cast)


@brick("layernorm")
def layernorm(x: Array, weight: Array | None = None, bias: Array | None = None, eps: float = 1e-5) -> Array:
    return mx.fast.layer_norm(x, weight, bias, eps)


@brick("add_layernorm")
def add_layernorm(x: Array, r: Array, weight: Array | None = None, bias: Array | None = None, eps: float = 1e-5) -> tuple[Array, Array]:
    return x + r, layernorm(x + r, weight, bias, eps)


@brick("moments")
def moments(x: Array, eps: float = 1e-5) -> tuple[Array, Array]:
    x = wide(x)
    center = mx.mean(x, axis=-1, keepdims=True)
    return center, mx.rsqrt(mx.mean(mx.square(x - center), axis=-1, keepdims=True) + eps)


@brick("layernorm_with")
def layernorm_with(x: Array, mean: Array, inverse: Array, weight: Array | None = None, bias: Array | None = None) -> Array:
    return _affine((wide(x) - mean) * inverse, weight, bias).astype(x.dtype)


def _affine(y: Array, weight: Array | None, bias: Array | None) -> Array:
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


@brick("headnorm")
def headnorm(
    x: Array, heads: int, weight: Array | None = None, bias: Array | None = None, kind: str = "rms", eps: float = 1e-6
) -> Array:
    parts = mx.unflatten(x, -1, (heads, -1))
    parts = mx.fast.layer_norm(parts, None, None, eps) if kind == "layer" else mx.fast.rms_norm(parts, None, eps)
    return _affine(mx.flatten(parts, -2, -1), weight, bias)


@brick("group_rmsnorm")
def group_rmsnorm(x: Array, groups: int, weight: Array | None = None, eps: float = 1e-5) -> Array:
    return headnorm(x, groups, weight, eps=eps)


@brick("l2norm")
def l2norm(x: Array, axis: int = -1, eps: float = 1e-12) -> Array:
    squares = mx.sum(mx.square(x), axis=axis, keepdims=True)
    length = mx.sqrt(mx.where(squares > 0, squares, 1.0))
    return x / mx.maximum(mx.where(squares > 0, length, 0.0), eps)


@brick("dropout")
def dropout(x: Array, p: float = 0.1, training: bool = False, key: Array = None) -> Array:
    if not training or p == 0:
        return x
    kept = mx.random.bernoulli(1.0 - p, x.shape, key=key)
    return mx.where(kept, x * (1.0 / (1.0 - p) if p < 1 else 0.0), mx.zeros_like(x))


# routing


def largest(scores: Array, k: int) -> Array:
    """bool [*S, n]: the k largest of the last axis, the lower index first among equals: those that fewer than k come before."""
    mine, other = scores[..., :, None], scores[..., None, :]
    before = (other > mine) | ((other == mine) & lower_index(scores.shape[-1]))
    return mx.sum(before, axis=-1) < k


def lower_index(count: int) -> Array:
    at = mx.arange(count)
    return at[None, :] < at[:, None]


@brick("keep_top")
def keep_top(weights: Array, k: int, renormalise: bool = True) -> Array:
    kept = mx.where(largest(weights, k), weights, 0.0)
    if not renormalise:
        return kept
    total = mx.sum(kept, axis=-1, keepdims=True)
    return kept / mx.where(total == 0, 1.0, total)


@brick("keep_logits")
def keep_logits(logits: Array, k: int) -> Array:
    return mx.where(largest(logits, k), logits, -mx.inf)


@brick("filter")
def filter_(weights: Array, *values: Array) -> Array:
    return fold(operator.add, [value * weights[..., i : i + 1] for i, value in enumerate(values)])


@brick("clamp")
def clamp(x: Array, low: float | None = None, high: float | None = None) -> Array:
    x = x if low is None else mx.maximum(x, low)
    return x if high is None else mx.minimum(x, high)


def _compare(operation: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    def compare(x: Array, y: Array | None = None, to: float | None = None) -> Array:
        return operation(x, to if y is None else y)

    return compare


BRICKS.update(
    {
        "relu": relu,
        "gelu": gelu,
        "silu": silu,
        "sigmoid": lambda x: mx.sigmoid(x),
        "log_sigmoid": lambda x: -softplus(-x),
        "tanh": lambda x: mx.tanh(x),
        "softplus": softplus,
        "relu2": lambda x: mx.square(relu(x)),
        "scaled_relu": lambda x, slope=1.1: relu(x * slope),
        "leaky_relu": lambda x, slope=0.1: mx.where(x > 0, x, slope * x),
        "elu": elu,
        "mish": lambda x: x * mx.tanh(softplus(x)),
        "softcap": lambda x, cap: mx.tanh(x / cap) * cap,
        "softmax": lambda x, temperature=1.0: mx.softmax(x / temperature if temperature != 1 else x, axis=-1),
        "dyt": lambda x, alpha, weight, bias: mx.tanh(alpha * x) * weight + bias,
        "exp": lambda x: mx.exp(x),
        "log": lambda x: mx.log(x),
        "sqrt": lambda x: mx.sqrt(x),
        "rsqrt": lambda x: mx.rsqrt(x),
        "square": lambda x: mx.square(x),
        "abs": lambda x: mx.abs(x),
        "reciprocal": lambda x: 1.0 / x,
        "sin": lambda x: mx.sin(x),
        "cos": lambda x: mx.cos(x),
        "scale": lambda x, factor: x * factor,
        "shift": lambda x, by: x + by,
        "sub": operator.sub,
        "div": operator.truediv,
        "gate": lambda content, control: content * mx.sigmoid(control),
        "float": lambda x: x if mx.issubdtype(x.dtype, mx.floating) else x.astype(mx.float32),
        "int": lambda x: x.astype(mx.int64),
        "where": lambda condition, x, y: mx.where(condition, x, y),
        "both": lambda x, y: mx.logical_and(x, y),
        "either": lambda x, y: mx.logical_or(x, y),
        "negate": lambda x: mx.logical_not(x),
        "equal": _compare(operator.eq),
        "not_equal": _compare(operator.ne),
        "less": _compare(operator.lt),
        "less_equal": _compare(operator.le),
        "greater": _compare(operator.gt),
        "greater_equal": _compare(operator.ge),
        "id": lambda x: x,
        "cache": lambda x, axis=1: x,
        "window_cache": lambda x, size, axis=1: x,
        "detach": lambda x: mx.stop_gradient(x),
        "fork": lambda x, branches: (x,) * len(branches),
        "position": lambda x, axis=1: mx.arange(x.shape[axis]).astype(mx.int64),
        "last": lambda x: x[:, -1],
        "first": lambda x: x[:, 0],
        "flatten": lambda x, axis=1, stop=-1: mx.flatten(x, axis, stop),
        "to_nhwc": lambda x: mx.transpose(x, (0, 2, 3, 1)),
        "to_nchw": lambda x: mx.transpose(x, (0, 3, 1, 2)),
        "embedding": lambda ids, weight: weight[ids],
        "weight": lambda weight: weight,
        "bias": lambda x, bias: x + bias,
        "gain": lambda x, weight: x * weight,
    }
)
