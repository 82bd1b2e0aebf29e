"""Bricks that move elements and change none: patterns, parts of an axis, layouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..ir.dims import Dim, Facts
from ..ir.scalar import show
from ..ir.types import Type
from .declare import StateRule, brick
from .einops import REDUCTIONS, REST, Sizes, apply, einsum_flops, einsum_sizes, equation, plan, shape_of
from .shapes import a_size, axis_at, divided, expect_same, known_false, numeric, product, replaced
from .signature import Misfit
from .torch_lazy import F, torch

Types = Sequence[Type]
Names = Mapping[str, Any]


def not_along_tokens(attrs: Mapping[str, Any]) -> bool:
    """Causal, unless the brick works along axis 1, where tokens stand."""
    return attrs.get("axis", 1) != 1


@brick("id(x: any[*S]) -> any[*S]", inline=True, elementwise=True, examples=("id : float[B, 4]",))
def identity(x: torch.Tensor) -> torch.Tensor:
    """y = x, any [*S]."""
    return x


@brick("detach(x: any[*S]) -> any[*S]", inline=True, elementwise=True, examples=("detach : float[B, 4]",))
def detach(x: torch.Tensor) -> torch.Tensor:
    """y = x, any [*S]; no gradient flows back."""
    return x.detach()


# patterns


def _patterned(kind: str) -> Any:
    def rule(types: Types, names: Names, facts: Facts) -> tuple[Type, ...]:
        if kind == "reduce" and names["op"] not in REDUCTIONS:
            raise Misfit("E0404", f"`op` of `reduce` is one of {', '.join(REDUCTIONS)}, not {show(names['op'])}")
        if kind == "reduce":
            numeric(types)
        return (Type(types[0].dtype, shape_of(names["pattern"], kind, types[0].shape, names["sizes"], facts)),)

    return rule


@brick(
    "rearrange(pattern, sizes = none)(x: any[*S]) -> any[*R]",
    shape=_patterned("rearrange"),
    extra="sizes",
    inline=True,
    examples=(
        'rearrange("b t (h k) -> b h t k", h = 2) : float[B, T, 6]',
        'rearrange("b h t k -> b t (h k)") : float[B, 2, T, 3]',
        'rearrange("b t 1 -> b t") : float[B, T, 1]',
        'rearrange("b t k -> b 1 t k") : float[B, T, 6]',
        'rearrange("... (h k) -> h ... k", h = 2) : float[B, T, 6]',
        'rearrange("b ... c -> b c (...)") : float[B, 2, 3, 4]',
        'rearrange("(b t) d -> b t d", t = 3) : int[6, 2]',
    ),
    source="einops",
)
def rearrange(x: torch.Tensor, pattern: str, sizes: Sizes | None = None) -> torch.Tensor:
    """x: [*S] -> [*R]; axes split, permuted, grouped, ones added or dropped, as the pattern says: `b t (h k) -> b h t k`."""
    return apply(x, plan(pattern, "rearrange"), dict(sizes or ()))


@brick(
    "repeat(pattern, sizes = none)(x: any[*S]) -> any[*R]",
    shape=_patterned("repeat"),
    extra="sizes",
    inline=True,
    examples=(
        'repeat("b 1 s k -> b h s k", h = 2) : float[B, 1, T, 3]',
        'repeat("b t k -> b t (k n)", n = 2) : float[B, T, 3]',
        'repeat("... k -> ... n k", n = 2) : float[B, T, 3]',
    ),
    source="einops",
)
def repeat(x: torch.Tensor, pattern: str, sizes: Sizes | None = None) -> torch.Tensor:
    """x: [*S] -> [*R]; like `rearrange`, and names that only the right side has repeat the tensor that often."""
    return apply(x, plan(pattern, "repeat"), dict(sizes or ()))


@brick(
    'reduce(pattern, op = "mean", sizes = none)(x: any[*S]) -> any[*R]',
    shape=_patterned("reduce"),
    extra="sizes",
    inline=True,
    causal=False,
    examples=(
        'reduce("b t d -> b d", "mean") : float[B, 3, 4]',
        'reduce("b (t p) d -> b t d", "max", p = 2) : float[B, 4, 3]',
        'reduce("b t d -> d b", "sum") : float[B, 2, 3]',
    ),
    source="einops",
)
def reduce(x: torch.Tensor, pattern: str, op: str = "mean", sizes: Sizes | None = None) -> torch.Tensor:
    """x: [*S] -> [*R]; names that the right side lacks are reduced by `op`: mean, sum, max or min."""
    return apply(x, plan(pattern, "reduce"), dict(sizes or ()), op)


def _einsum_shape(types: Types, names: Names, facts: Facts) -> tuple[Type, ...]:
    numeric(types)
    for index, type in enumerate(types):
        if type.dtype != "float":
            raise Misfit("E0201", f"`einsum` takes float elements, not {type.dtype}", index, ("`float` turns integers into numbers",))
    sizes = einsum_sizes(names["pattern"], [t.shape for t in types], facts)
    shape: list[Dim] = []
    for name in equation(names["pattern"])[2]:
        shape += sizes[name] if name == REST else [sizes[name]]
    return (Type("float", tuple(shape)),)


def _einsum_flops(types: Types, names: Names, facts: Facts) -> Dim:
    return einsum_flops(names["pattern"], einsum_sizes(names["pattern"], [t.shape for t in types], facts))


@brick(
    "einsum(pattern)(x: [*S]) -> [*R]",
    shape=_einsum_shape,
    flops=_einsum_flops,
    variadic=True,
    inline=True,
    causal=False,
    examples=(
        'einsum("b h t k, b h s k -> b h t s") : float[B, 2, 5, 3], float[B, 2, 4, 3]',
        'einsum("i d, j d -> i j") : float[B, 3], float[B, 3]',
        'einsum("... in, out in -> ... out") : float[B, 2, 3], float[4, 3]',
        'einsum("i, j -> i j") : float[2], float[3]',
        'einsum("i j, j k, k l -> i l") : float[2, 3], float[3, 4], float[4, 2]',
    ),
    source="einops",
)
def einsum(*xs: torch.Tensor, pattern: str) -> torch.Tensor:
    """y [*R] = the sum, over the names that the right side lacks, of the product of the inputs: `b h t k, b h s k -> b h t s`."""
    return torch.einsum(equation(pattern)[0], *xs)


# parts of an axis


def _split_sizes(parts: Any, dim: Dim, facts: Facts) -> list[Dim]:
    if isinstance(parts, list | tuple):
        sizes = [a_size(p, "`parts`") for p in parts]
        total: Dim = 0
        for size in sizes:
            total = total + size
        expect_same(facts, dim, total, f"the parts of `split` sum to {total}, but the axis is {dim}", 0)
        return sizes
    if not isinstance(parts, int) or isinstance(parts, bool) or parts < 1:
        raise Misfit("E0404", f"`parts` of `split` is a number of equal parts or a list of widths, not {show(parts)}")
    return [divided(dim, parts, facts, f"`split` into {parts} equal parts")] * parts


def _split_shape(types: Types, names: Names, facts: Facts) -> tuple[Type, ...]:
    shape = types[0].shape
    axis = axis_at(names["axis"], len(shape), shape)
    return tuple(Type(types[0].dtype, replaced(shape, axis, size)) for size in _split_sizes(names["parts"], shape[axis], facts))


@brick(
    "split(parts, axis = -1)(x: any[*S]) -> any[*R]",
    shape=_split_shape,
    inline=True,
    examples=("split(2) : float[B, 6]", "split([1, 3], axis = 1) : int[B, 4, 2]"),
)
def split(x: torch.Tensor, parts: Any, axis: int = -1) -> tuple[torch.Tensor, ...]:
    """x: [*S] -> several [*R]: `parts` equal parts of one axis, or one for each width in the list `parts`."""
    return x.split(parts, axis) if isinstance(parts, tuple | list) else x.chunk(parts, axis)


def _index_of(what: str, index: Any, dim: Dim) -> int:
    if not isinstance(index, int) or isinstance(index, bool):
        raise Misfit("E0404", f"`{what}` takes an integer, not {show(index)}")
    if isinstance(dim, int) and not -dim <= index < dim:
        raise Misfit("E0405", f"place {index} is outside of the axis of length {dim}", 0)
    return index


def _select_shape(types: Types, names: Names, facts: Facts) -> tuple[Type, ...]:
    shape = types[0].shape
    axis = axis_at(names["axis"], len(shape), shape)
    _index_of("index", names["index"], shape[axis])
    return (Type(types[0].dtype, replaced(shape, axis)),)


@brick(
    "select(index, axis = 1)(x: any[*S]) -> any[*R]",
    shape=_select_shape,
    inline=True,
    causal=not_along_tokens,
    examples=("select(0) : float[B, 3, 4]", "select(-1, axis = -1) : int[B, 3]"),
)
def select(x: torch.Tensor, index: int, axis: int = 1) -> torch.Tensor:
    """x: [*S] -> [*R]: the slice at place `index` of one axis (negative: from the end), the axis dropped."""
    return x.select(axis, index)


def _slice_shape(types: Types, names: Names, facts: Facts) -> tuple[Type, ...]:
    shape = types[0].shape
    axis = axis_at(names["axis"], len(shape), shape)
    dim = shape[axis]
    start = _bound("start", names["start"], dim, facts)
    stop = dim if names["stop"] is None else _bound("stop", names["stop"], dim, facts)
    if known_false("<=", start, stop, facts):
        raise Misfit("E0405", f"`slice` starts at {start}, after its end {stop}", 0)
    return (Type(types[0].dtype, replaced(shape, axis, stop - start)),)


def _bound(what: str, value: Any, dim: Dim, facts: Facts) -> Dim:
    place = dim + value if isinstance(value, int) and value < 0 else a_size(value, f"`{what}`")
    if known_false(">=", place, 0, facts) or known_false("<=", place, dim, facts):
        raise Misfit("E0405", f"`{what} = {value}` is outside of the axis of length {dim}", 0)
    return place


@brick(
    "slice(start = 0, stop = none, axis = -1)(x: any[*S]) -> any[*R]",
    shape=_slice_shape,
    causal=not_along_tokens,
    examples=("slice(1, 3) : float[B, 4]", "slice(start = 1, axis = 1) : float[B, 3, 4]", "slice(stop = -1, axis = 1) : int[B, 4]"),
)
def slice_(x: torch.Tensor, start: int = 0, stop: int | None = None, axis: int = -1) -> torch.Tensor:
    """x: [*S] -> [*R]: places `start` to `stop` (exclusive; negative: from the end) of one axis. Too short an axis is an error."""
    length = x.shape[axis]
    first = start + length if start < 0 else start
    last = length if stop is None else stop + length if stop < 0 else stop
    return x.narrow(axis, first, last - first)


@brick("last(x: any[B, T, *S]) -> any[B, *S]", inline=True, examples=("last : float[B, 3, 4]", "last : int[B, 3]"))
def last(x: torch.Tensor) -> torch.Tensor:
    """x: [B, T, *S] -> [B, *S]; the last token, x[:, -1]."""
    return x.select(1, -1)


@brick("first(x: any[B, T, *S]) -> any[B, *S]", inline=True, causal=False, examples=("first : float[B, 3, 4]",))
def first(x: torch.Tensor) -> torch.Tensor:
    """x: [B, T, *S] -> [B, *S]; the first token, x[:, 0]."""
    return x.select(1, 0)


def _along(types: Types, names: Names, facts: Facts) -> tuple[Type, ...]:
    axis_at(names["axis"], len(types[0].shape), types[0].shape)
    return (types[0],)


@brick("flip(axis = 1)(x: any[*S]) -> any[*S]", shape=_along, inline=True, causal=not_along_tokens, examples=("flip : float[B, 3, 4]",))
def flip(x: torch.Tensor, axis: int = 1) -> torch.Tensor:
    """y[i] = x[n - 1 - i] along one axis, any [*S]."""
    return x.flip(axis)


def _pad_shape(types: Types, names: Names, facts: Facts) -> tuple[Type, ...]:
    type = types[0]
    axis = axis_at(names["axis"], len(type.shape), type.shape)
    if type.dtype == "int" and isinstance(names["value"], float) and names["value"] != int(names["value"]):
        raise Misfit("E0201", f"`pad` cannot put {names['value']} among integers", 0)
    total = type.shape[axis] + a_size(names["before"], "`before`") + a_size(names["after"], "`after`")
    return (Type(type.dtype, replaced(type.shape, axis, total)),)


@brick(
    "pad(before = 0, after = 0, axis = 1, value = 0.0)(x: any[*S]) -> any[*R]",
    shape=_pad_shape,
    causal=not_along_tokens,
    examples=("pad(1, 2) : float[B, 3, 4]", "pad(after = 1, axis = -1, value = 1) : int[B, 3]"),
)
def pad(x: torch.Tensor, before: int = 0, after: int = 0, axis: int = 1, value: float = 0.0) -> torch.Tensor:
    """x: [*S] -> [*R]: one axis made longer by `before` and `after` places that hold `value`."""
    behind = x.dim() - 1 - axis if axis >= 0 else -1 - axis
    return F.pad(x, [0, 0] * behind + [before, after], value=value)


def _shift_state(types: Types, names: Names) -> dict[str, tuple[tuple[Dim, ...], str]]:
    shape = types[0].shape
    return {"past": ((shape[0], names["n"], *shape[2:]), types[0].dtype)}


def _shift_step(state: Mapping[str, Any], x: torch.Tensor, n: int = 1) -> tuple[torch.Tensor, dict[str, Any]]:
    whole = torch.cat([state["past"].to(x.dtype), x], 1)
    length = x.shape[1]
    return whole.narrow(1, 0, length), {"past": whole.narrow(1, length, n)}


@brick(
    "shift_tokens(n = 1)(x: any[B, T, *S]) -> any[B, T, *S]",
    require=("n >= 0",),
    state=StateRule(_shift_state, _shift_step),
    examples=("shift_tokens : float[B, T, 4]", "shift_tokens(n = 2) : int[B, T]"),
    source="RWKV",
)
def shift_tokens(x: torch.Tensor, n: int = 1) -> torch.Tensor:
    """y[:, t] = x[:, t - n], zeros before the first token; any [B, T, *S]."""
    zeros = x.new_zeros((x.shape[0], n, *x.shape[2:]))
    return torch.cat([zeros, x], 1).narrow(1, 0, x.shape[1])


# layouts


def _flatten_shape(types: Types, names: Names, facts: Facts) -> tuple[Type, ...]:
    shape = types[0].shape
    first, final = axis_at(names["axis"], len(shape), shape), axis_at(names["stop"], len(shape), shape)
    if first > final:
        raise Misfit("E0202", f"`flatten` from axis {first} to axis {final} holds no axis", 0)
    return (Type(types[0].dtype, (*shape[:first], product(shape[first : final + 1]), *shape[final + 1 :])),)


@brick(
    "flatten(axis = 1, stop = -1)(x: any[*S]) -> any[*R]",
    shape=_flatten_shape,
    inline=True,
    causal=False,
    examples=("flatten : float[B, 3, 4]", "flatten(0, 1) : float[B, 3, 4]"),
)
def flatten(x: torch.Tensor, axis: int = 1, stop: int = -1) -> torch.Tensor:
    """x: [*S] -> [*R]: the axes from `axis` to `stop` (inclusive) as one."""
    return x.flatten(axis, stop)


@brick("to_nhwc(x: any[B, C, H, W]) -> any[B, H, W, C]", inline=True, causal=False, examples=("to_nhwc : float[B, 3, 4, 5]",))
def to_nhwc(x: torch.Tensor) -> torch.Tensor:
    """x: [B, C, H, W] -> [B, H, W, C]; channels from behind the batch to the end."""
    return x.permute(0, 2, 3, 1)


@brick("to_nchw(x: any[B, H, W, C]) -> any[B, C, H, W]", inline=True, causal=False, examples=("to_nchw : float[B, 4, 5, 3]",))
def to_nchw(x: torch.Tensor) -> torch.Tensor:
    """x: [B, H, W, C] -> [B, C, H, W]; channels from the end to behind the batch."""
    return x.permute(0, 3, 1, 2)


PATCHES = "b c (h p) (w q) -> b (h w) (c p q)"


def _patchify_shape(types: Types, names: Names, facts: Facts) -> tuple[Type, ...]:
    sizes = (("p", names["size"]), ("q", names["size"]))
    return (Type(types[0].dtype, shape_of(PATCHES, "rearrange", types[0].shape, sizes, facts)),)


@brick(
    "patchify(size)(x: any[B, c, H, W]) -> any[B, N, k]",
    shape=_patchify_shape,
    inline=True,
    causal=False,
    examples=("patchify(2) : float[B, 3, 4, 6]",),
    source="ViT",
)
def patchify(x: torch.Tensor, size: int) -> torch.Tensor:
    """x: [B, c, H, W] -> [B, (H / size) * (W / size), c * size * size]; patches in rows, each in the order of a convolution's weight."""
    return apply(x, plan(PATCHES), {"p": size, "q": size})


UNPATCHES = "b (h w) (c p q) -> b c (h p) (w q)"


def _unpatchify_shape(types: Types, names: Names, facts: Facts) -> tuple[Type, ...]:
    sizes = (("p", names["size"]), ("q", names["size"]), ("h", names["rows"]))
    return (Type(types[0].dtype, shape_of(UNPATCHES, "rearrange", types[0].shape, sizes, facts)),)


@brick(
    "unpatchify(size, rows)(x: any[B, N, k]) -> any[B, c, H, W]",
    shape=_unpatchify_shape,
    inline=True,
    causal=False,
    examples=("unpatchify(2, rows = 2) : float[B, 6, 12]",),
)
def unpatchify(x: torch.Tensor, size: int, rows: int) -> torch.Tensor:
    """x: [B, N, c * size * size] -> [B, c, rows * size, N / rows * size]; the inverse of `patchify`, `rows` patches high."""
    return apply(x, plan(UNPATCHES), {"p": size, "q": size, "h": rows})
