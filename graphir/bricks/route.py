"""Routing: fork and filter, and what stands between a router's scores and a filter's weights: choices, capacity, noise.

Everything acts on a last axis with one entry a branch. The normalisers (softmax and kin) are in `simplex.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..ir.dims import Dim, Facts
from ..ir.types import Type
from .declare import StateRule, brick
from .shapes import equal_shapes, expect_same, show_shape
from .signature import Misfit
from .torch_lazy import F, torch

Types = Sequence[Type]
Names = Mapping[str, Any]


def _fork_shape(types: Types, names: Names, facts: Facts) -> tuple[Type, ...]:
    if not names["branches"]:
        raise Misfit("E0305", "a fork needs at least one branch")
    return (types[0],) * len(names["branches"])


@brick(
    "fork(branches)(x: any[*S]) -> any[*S]", kind="fork", shape=_fork_shape, inline=True, elementwise=True,
    examples=('fork(["a", "b"]) : float[B, 4]',),
)
def fork(x: torch.Tensor, branches: Sequence[str]) -> tuple[torch.Tensor, ...]:
    """x: any [*S] -> x, once for each branch."""
    return (x,) * len(branches)


def _filter_shape(types: Types, names: Names, facts: Facts) -> tuple[Type, ...]:
    weights, values, branches = types[0].shape, types[1:], names["branches"]
    if not values:
        raise Misfit("E0305", "a filter needs at least one branch")
    for index, type in enumerate(types):
        if type.dtype != "float":
            raise Misfit("E0201", f"a filter takes float elements, not {type.dtype}", index)
        if not type.shape:
            raise Misfit("E0202", "a filter takes tensors with at least one axis", index)
    if branches is not None and len(branches) != len(values):
        raise Misfit("E0305", f"the filter names {len(branches)} branches, but gets {len(values)}")
    expect_same(facts, len(values), weights[-1], f"the router gives {weights[-1]} scores for {len(values)} branches", 0)
    equal_shapes(values, facts, "branches")
    _expect_weights_of_tokens(weights, values[0].shape, facts)
    return (values[0],)


def _expect_weights_of_tokens(weights: Sequence[Dim], values: Sequence[Dim], facts: Facts) -> None:
    message = f"weights {show_shape(weights)} are no weights of tokens {show_shape(values)}"
    help = ("for one choice a sample: `rearrange(\"b n -> b 1 n\")` after the router",) if len(weights) < len(values) else ()
    if len(weights) > len(values):
        raise Misfit("E0205", message, 0)
    offset = len(values) - len(weights)
    for place, dim in enumerate(weights[:-1]):
        same = dim == 1 or facts.same(values[offset + place], dim)
        if not same:
            raise Misfit("E0204" if same is None else "E0205", message, 0, help)


@brick(
    "filter(branches = none)(weights: [*W, n], values: [*S, d]) -> [*S, d]",
    kind="filter",
    variadic=True,
    shape=_filter_shape,
    inline=True,
    per_token=True,
    examples=(
        "filter : float[B, T, 2], float[B, T, 4], float[B, T, 4]",
        'filter(["a", "b"]) : float[B, 1, 2], float[B, T, 4], float[B, T, 4]',
    ),
)
def filter_(weights: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
    """y = sum_i w_i b_i, per token; weights [*S, n], branches [*S, d] -> [*S, d]. Weights [B, 1, n]: one choice for a whole sample."""
    shares = weights.unsqueeze(-2).unbind(-1)
    total = torch.mul(values[0], shares[0])
    for index in range(1, len(values)):
        total = torch.add(total, torch.mul(values[index], shares[index]))
    return total


def largest(scores: torch.Tensor, k: int) -> torch.Tensor:
    """bool [*S, n]: the k largest of the last axis; among equals the lower index is in first."""
    order = torch.sort(scores.detach(), dim=-1, descending=True, stable=True)[1]
    return torch.zeros_like(scores, dtype=torch.bool).scatter(-1, order.narrow(-1, 0, k), True)


def _summing_to_one(weights: torch.Tensor) -> torch.Tensor:
    total = weights.sum(-1, keepdim=True)
    return torch.div(weights, total.masked_fill(total == 0, 1.0))


AT_MOST = ("k >= 1", "k <= N")


@brick(
    "keep_top(k, renormalise = true)(weights: [*S, N]) -> [*S, N]",
    require=AT_MOST,
    inline=True,
    per_token=True,
    examples=("keep_top(2) : float[B, T, 4]", "keep_top(1, renormalise = false) : float[B, 4]"),
    source="Mixtral (softmax, keep, renormalise)",
)
def keep_top(weights: torch.Tensor, k: int, renormalise: bool = True) -> torch.Tensor:
    """w_i where i is among the k largest, else 0, over their sum if `renormalise`; [*S, n]. Ties go to the lower index.

    Where all that is kept is zero, it stays zero.
    """
    kept = weights.masked_fill(torch.logical_not(largest(weights, k)), 0.0)
    return _summing_to_one(kept) if renormalise else kept


@brick(
    "keep_logits(k)(logits: [*S, N]) -> [*S, N]",
    require=AT_MOST,
    inline=True,
    per_token=True,
    examples=("keep_logits(2) : float[B, T, 4]",),
    source="Shazeer et al. 2017 (KeepTopK)",
)
def keep_logits(logits: torch.Tensor, k: int) -> torch.Tensor:
    """z_i where i is among the k largest, else -inf; [*S, n]. A normaliser comes after it. Ties go to the lower index."""
    return logits.masked_fill(torch.logical_not(largest(logits, k)), float("-inf"))


def _best_groups(scores: torch.Tensor, groups: int, keep: int, by: int) -> torch.Tensor:
    """bool [*S, n]: the members of the `keep` groups whose `by` best scores sum to most."""
    parts = scores.detach().unflatten(-1, (groups, -1))
    best = torch.sort(parts, dim=-1, descending=True)[0].narrow(-1, 0, by).sum(-1)
    return torch.logical_and(largest(best, keep).unsqueeze(-1), torch.ones_like(parts, dtype=torch.bool)).flatten(-2)


@brick(
    "group_keep(groups, keep, by = 2)(scores: [*S, n]) -> [*S, n]",
    require=("groups >= 1", "n % groups == 0", "keep >= 1", "keep <= groups", "by >= 1", "by <= n // groups"),
    inline=True,
    per_token=True,
    examples=("group_keep(3, 2) : float[B, T, 6]", "group_keep(3, 1, by = 1) : float[B, 6]"),
    source="DeepSeek-V2 (by = 1), DeepSeek-V3 (by = 2)",
)
def group_keep(scores: torch.Tensor, groups: int, keep: int, by: int = 2) -> torch.Tensor:
    """s_i in the `keep` best groups of neighbours, 0 elsewhere; [*S, n]. A group is as good as its `by` best scores together."""
    return scores.masked_fill(torch.logical_not(_best_groups(scores, groups, keep, by)), 0.0)


@brick(
    "keep_biased(k, groups = 1, keep_groups = 1, scale = 1.0, renormalise = true, rate = 0.0)(scores: [*S, n]) -> [*S, n]",
    weights="buffer bias: [n] = zeros",
    require=("k >= 1", "groups >= 1", "n % groups == 0", "keep_groups >= 1", "keep_groups <= groups", "k <= n // groups * keep_groups"),
    per_token=True,
    examples=("keep_biased(2) : float[B, T, 6]", "keep_biased(3, groups = 3, keep_groups = 2, scale = 2.5) : float[B, 6]"),
    source="DeepSeek-V3; Wang et al. 2024 (loss-free balance)",
)
def keep_biased(
    scores: torch.Tensor,
    bias: torch.Tensor,
    k: int,
    groups: int = 1,
    keep_groups: int = 1,
    scale: float = 1.0,
    renormalise: bool = True,
    rate: float = 0.0,
    training: bool = False,
) -> torch.Tensor:
    """scale * s_i / sum of the chosen s, 0 for the others; [*S, n].

    Chosen are the k of largest s + bias, in the groups whose two best of those sum to most. The bias decides who is chosen,
    never the weight. In training it moves by `rate` after each call: up for branches with less than the mean load, down for
    those with more; no gradient reaches it.
    """
    wanted = scores.detach() + bias
    if keep_groups < groups:
        inside = _best_groups(wanted, groups, keep_groups, min(2, wanted.shape[-1] // groups))
        wanted = wanted.masked_fill(~inside, float("-inf"))
    chosen = largest(wanted, k)
    kept = scores.masked_fill(~chosen, 0.0)
    if training and rate:
        load = chosen.reshape(-1, chosen.shape[-1]).sum(0).to(bias.dtype)
        with torch.no_grad():
            bias.add_(torch.sign(load.mean() - load), alpha=rate)
    return (_summing_to_one(kept) if renormalise else kept) * scale


# capacity


def _capacity_state(types: Types, names: Names) -> dict[str, tuple[tuple[Dim, ...], str]]:
    return {"counts": ((types[0].shape[0], types[0].shape[2]), "int")}


def _capacity_step(state: Mapping[str, Any], weights: torch.Tensor, limit: int) -> tuple[torch.Tensor, dict[str, Any]]:
    place = (weights != 0).cumsum(1) + state["counts"].unsqueeze(1)
    return weights.masked_fill(place > limit, 0.0), {"counts": place.select(1, -1)}


@brick(
    "capacity(limit)(weights: [B, T, n]) -> [B, T, n]",
    require=("limit >= 0",),
    state=StateRule(_capacity_state, _capacity_step),
    inline=True,
    examples=("capacity(2) : float[B, T, 4]",),
    source="Switch Transformer",
)
def capacity(weights: torch.Tensor, limit: int) -> torch.Tensor:
    """w of the first `limit` tokens of each branch and sequence, 0 beyond; [B, T, n]. A weight that is not zero is a choice."""
    place = torch.ne(weights, 0).cumsum(1)
    return weights.masked_fill(place > limit, 0.0)


@brick(
    "expert_choice(factor = 1.0)(probabilities: [B, T, n]) -> [B, T, n]",
    require=("factor > 0",),
    causal=False,
    examples=("expert_choice : float[B, 6, 3]", "expert_choice(factor = 2.0) : float[B, 6, 3]"),
    source="Zhou et al. 2022",
)
def expert_choice(probabilities: torch.Tensor, factor: float = 1.0) -> torch.Tensor:
    """p where the token is among the branch's C best, else 0; [B, T, n], C = max(1, floor(T * factor) // n).

    Every branch works equally much; a token may get several branches or none.
    """
    length, branches = probabilities.shape[1:]
    count: Any = torch.sym_max(torch.sym_int(length * factor) // branches, 1)
    order = torch.sort(probabilities.detach(), dim=1, descending=True, stable=True)[1]
    places = torch.arange(length, device=order.device).view(1, -1, 1).expand_as(order)
    chosen = torch.zeros_like(order).scatter(1, order, places) < count
    return probabilities.masked_fill(~chosen, 0.0)


# one choice for a whole sample


def _sample_shape(types: Types, names: Names, facts: Facts) -> tuple[Type, ...]:
    shape = types[0].shape
    if len(shape) < 2:
        raise Misfit("E0202", f"one choice a sample needs samples: [B, ..., n], not {show_shape(shape)}", 0)
    return (Type("float", (shape[0], *[1] * (len(shape) - 2), shape[-1])),)


def _sample_state(types: Types, names: Names) -> dict[str, tuple[tuple[Dim, ...], str]]:
    return {"prompt": (_sample_shape(types, names, Facts())[0].shape, "float"), "offset": ((), "int")}


def _sample_step(state: Mapping[str, Any], x: torch.Tensor, cache: bool = False) -> tuple[torch.Tensor, dict[str, Any]]:
    mean = torch.where(state["offset"] == 0, sample_mean(x), state["prompt"].to(x.dtype))
    return mean, {"prompt": mean, "offset": state["offset"] + x.shape[1]}


@brick(
    "sample_mean(cache = false)(x: [B, *S, n]) -> [B, *R, n]",
    shape=_sample_shape,
    state=StateRule(_sample_state, _sample_step),
    causal=lambda attrs: bool(attrs.get("cache")),
    examples=("sample_mean : float[B, T, 4]", "sample_mean : float[B, 4]"),
)
def sample_mean(x: torch.Tensor, cache: bool = False) -> torch.Tensor:
    """The mean over the tokens of each sample, [B, ..., n] -> [B, 1, ..., n]; [B, n] is itself.

    With `cache`, decoding takes the mean over the prompt (the tokens of its first call) and keeps it.
    """
    return x.flatten(1, -2).mean(1).reshape(x.shape[0], *[1] * (x.dim() - 2), x.shape[-1]) if x.dim() > 2 else x


# noise, in training only


@brick(
    "noise(std = 0.01)(x: [*S]) -> [*S]",
    require=("std >= 0",),
    random=True,
    elementwise=True,
    examples=("noise : float[B, T, 4]",),
    source="modular neural composition (noisy top-k)",
)
def noise(x: torch.Tensor, std: float = 0.01, training: bool = False) -> torch.Tensor:
    """y = x + std * N(0, 1), [*S]. In training only."""
    return x + torch.randn_like(x) * std if training else x


@brick(
    "learned_noise(logits: [*S, n], x: [*S, d]) -> [*S, n]",
    weights="weight: [n, d] = zeros",
    flops="2 * S * n * d",
    random=True,
    per_token=True,
    examples=("learned_noise : float[B, T, 3], float[B, T, 4]",),
    source="Shazeer et al. 2017",
)
def learned_noise(logits: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, training: bool = False) -> torch.Tensor:
    """y = logits + N(0, 1) * softplus(W x), [*S, n]. In training only."""
    return logits + torch.randn_like(logits) * F.softplus(F.linear(x, weight)) if training else logits


@brick(
    "jitter(amount = 0.01)(x: [*S]) -> [*S]",
    require=("amount >= 0",),
    random=True,
    elementwise=True,
    examples=("jitter : float[B, T, 4]",),
    source="Switch Transformer",
)
def jitter(x: torch.Tensor, amount: float = 0.01, training: bool = False) -> torch.Tensor:
    """y = x * U(1 - amount, 1 + amount), [*S]. In training only."""
    return x * (1.0 + amount * (2.0 * torch.rand_like(x) - 1.0)) if training else x
