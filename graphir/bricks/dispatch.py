"""Running a filter's branches only on the tokens that chose them: who goes where, the rows of each branch, and the way back.

`graphir.backends.dispatch` puts these in the place of a dense filter; programs may use them too. A weight of zero is no choice.
The rows of a branch come in the order of its tokens. Lengths that depend on data have names of their own (`total`, `rows`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..ir.dims import Dim, Facts
from ..ir.types import Type
from .declare import brick
from .shapes import show_shape
from .signature import Misfit
from .torch_lazy import torch

Types = Sequence[Type]
Names = Mapping[str, Any]


def _routes_shape(types: Types, names: Names, facts: Facts) -> tuple[Type, ...]:
    total = (names["total"],)
    return Type("int", total), Type("int", total), Type("int", (names["n"],))


@brick(
    "routes(total)(weights: [*S, n]) -> (tokens: int[P], cells: int[P], counts: int[n])",
    shape=_routes_shape,
    causal=False,
    examples=("routes(P) : float[B, T, 4]",),
)
def routes(weights: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Weights [*S, n] -> int[P], int[P], int[n]: who chose branch 0, then 1, ...; their places in the weights; how many each.

    Tokens are counted through *S; P is how many weights are not zero.
    """
    branches = weights.shape[-1]
    chosen = torch.ne(weights, 0).reshape(-1, branches).t()
    branch, tokens = chosen.nonzero(as_tuple=True)
    return tokens, tokens * branches + branch, chosen.sum(1)


def _seats_shape(types: Types, names: Names, facts: Facts) -> tuple[Type, ...]:
    return (Type("int", (names["total"],)),) * 2


def seats_of(length: int, branches: int, limit: int | None, factor: float | None) -> Any:
    """How many tokens of a sequence a branch has room for: `limit`, or what `expert_choice(factor)` gives each."""
    if limit is not None:
        return torch.sym_min(limit, length)
    assert factor is not None
    share: Any = torch.sym_max(torch.sym_int(length * factor) // branches, 1)
    return torch.sym_min(share, length)


@brick(
    "seats(total, limit = none, factor = none)(weights: [B, T, n]) -> (tokens: int[P], cells: int[P])",
    shape=_seats_shape,
    require=("limit != none or factor != none",),
    causal=False,
    examples=("seats(P, limit = 2) : float[B, T, 4]",),
)
def seats(weights: torch.Tensor, limit: int | None = None, factor: float | None = None) -> tuple[torch.Tensor, ...]:
    """`routes` with as many rows for each branch: weights [B, T, n] -> int[P], int[P]; P = n * B * min(limit, T), known from shapes alone.

    Seats that nobody chose go to tokens that did not choose the branch, whose weight is zero. No more than `limit` may have chosen it.
    """
    batch, length, branches = weights.shape
    count = seats_of(length, branches, limit, factor)
    order = torch.sort(torch.eq(weights, 0).to(torch.uint8), dim=1, stable=True)[1].narrow(1, 0, count)
    tokens = order + torch.arange(batch, device=weights.device).view(-1, 1, 1) * length
    cells = tokens * branches + torch.arange(branches, device=weights.device)
    return tokens.permute(2, 0, 1).reshape(-1), cells.permute(2, 0, 1).reshape(-1)


def _rows(x: Type, lengths: Sequence[Dim]) -> tuple[Type, ...]:
    return tuple(Type(x.dtype, (length, x.shape[-1])) for length in lengths)


def _send_shape(types: Types, names: Names, facts: Facts) -> tuple[Type, ...]:
    if types[2].shape != (len(names["rows"]),):
        raise Misfit("E0205", f"the counts {show_shape(types[2].shape)} are not those of {len(names['rows'])} branches", 2)
    return _rows(types[0], names["rows"])


@brick(
    "send(rows)(x: any[*S, d], tokens: int[P], counts: int[n]) -> any[*R]",
    shape=_send_shape,
    causal=False,
    examples=("send([Q, R]) : float[B, T, 4], int[P], int[2]",),
)
def send(x: torch.Tensor, tokens: torch.Tensor, counts: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """x: any [*S, d] -> the rows of each branch, [R_i, d]; tokens: int[P] and counts: int[n] come from `routes`."""
    lengths = counts.tolist()
    if torch.compiler.is_compiling():
        for length in lengths:
            torch._check(length >= 0)
        torch._check(sum(lengths) == tokens.shape[0])
    return x.reshape(-1, x.shape[-1]).index_select(0, tokens).split(lengths)


def _deal_shape(types: Types, names: Names, facts: Facts) -> tuple[Type, ...]:
    return _rows(types[0], [names["rows"]] * names["parts"])


@brick(
    "deal(rows, parts)(x: any[*S, d], tokens: int[P]) -> any[*R]",
    shape=_deal_shape,
    require=("parts >= 1",),
    causal=False,
    examples=("deal(R, 2) : float[B, T, 4], int[P]",),
)
def deal(x: torch.Tensor, tokens: torch.Tensor, parts: int) -> tuple[torch.Tensor, ...]:
    """x: any [*S, d] -> equally many rows for each branch, [P / parts, d]; tokens: int[P] come from `seats`."""
    rows = x.reshape(-1, x.shape[-1]).index_select(0, tokens)
    return rows.reshape(parts, tokens.shape[0] // parts, x.shape[-1]).unbind(0)


def _collect_shape(types: Types, names: Names, facts: Facts) -> tuple[Type, ...]:
    weights, values = types[0], types[3:]
    if not values or any(len(v.shape) != 2 or v.shape[1] != values[0].shape[1] for v in values):
        raise Misfit("E0205", f"rows of one width, [R, d], come back, not {', '.join(show_shape(v.shape) for v in values)}")
    if weights.shape[-1] != len(values):
        raise Misfit("E0205", f"the router gives {weights.shape[-1]} scores for {len(values)} branches", 0)
    return (Type("float", (*weights.shape[:-1], values[0].shape[1])),)


@brick(
    "collect(weights: [*S, n], tokens: int[P], cells: int[P], values: [*R]) -> [*S, d]",
    variadic=True,
    shape=_collect_shape,
    causal=False,
    examples=("collect : float[B, T, 2], int[P], int[P], float[Q, 4], float[R, 4]",),
)
def collect(weights: torch.Tensor, tokens: torch.Tensor, cells: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
    """y = sum_i w_i b_i per token, the rows [R_i, d] of the branches back at their tokens; weights [*S, n] -> [*S, d]. No row: zero."""
    shares = weights.reshape(-1).index_select(0, cells).unsqueeze(-1)
    rows = torch.cat(values) * shares
    total = rows.new_zeros(weights.numel() // weights.shape[-1], rows.shape[-1]).index_add(0, tokens, rows)
    return total.reshape(*weights.shape[:-1], rows.shape[-1])
