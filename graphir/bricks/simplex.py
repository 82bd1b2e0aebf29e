"""Normalisers: a router's scores in, weights out. All act on the last axis; sparse ones give exact zeros."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..ir.dims import Facts
from ..ir.scalar import show
from ..ir.types import Type
from .declare import brick
from .norm import working
from .route import AT_MOST, largest
from .shapes import elementwise_shape
from .signature import Misfit
from .torch_lazy import torch

Types = Sequence[Type]
Names = Mapping[str, Any]


@brick(
    "softmax(temperature = 1.0)(x: [*S, N]) -> [*S, N]",
    require=("temperature > 0",),
    inline=True,
    per_token=True,
    examples=("softmax : float[B, T, 4]", "softmax(temperature = 0.5) : float[B, 4]"),
)
def softmax(x: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """y_i = e^(x_i / t) / sum_j e^(x_j / t), [*S, n]."""
    return torch.softmax(x if temperature == 1.0 else torch.div(x, temperature), -1)


def _sparsemax_threshold(z: torch.Tensor) -> torch.Tensor:
    ordered = torch.sort(z, dim=-1, descending=True)[0]
    sums = ordered.cumsum(-1) - 1
    places = torch.arange(1, z.shape[-1] + 1, device=z.device, dtype=z.dtype)
    support = (places * ordered > sums).sum(-1, keepdim=True)
    return sums.gather(-1, support - 1) / support


@brick(
    "sparsemax(x: [*S, N]) -> [*S, N]",
    require=("N >= 1",),
    per_token=True,
    examples=("sparsemax : float[B, T, 4]",),
    source="Martins & Astudillo 2016",
)
def sparsemax(x: torch.Tensor) -> torch.Tensor:
    """y = max(0, x - t), t such that y sums to 1; [*S, n]: the Euclidean projection onto the simplex."""
    z = working(x)
    z = z - z.amax(-1, keepdim=True).detach()
    return torch.relu(z - _sparsemax_threshold(z)).to(x.dtype)


def _threshold_by_sorting(u: torch.Tensor) -> torch.Tensor:
    """The threshold for alpha = 1.5, exact: the largest t with sum over the support of (u - t)^2 = 1."""
    ordered = torch.sort(u, dim=-1, descending=True)[0]
    places = torch.arange(1, u.shape[-1] + 1, device=u.device, dtype=u.dtype)
    mean = ordered.cumsum(-1) / places
    spread = ordered.square().cumsum(-1) / places - mean.square()
    thresholds = mean - (1.0 / places - spread).clamp(min=0.0).sqrt()
    support = (thresholds <= ordered).sum(-1, keepdim=True)
    return thresholds.gather(-1, support - 1)


HALVINGS = 60  # beyond the 53 bits of a float64


def _threshold_by_bisection(u: torch.Tensor, exponent: float) -> torch.Tensor:
    """The threshold for any alpha: the sum of (u - t)_+^exponent falls from at least 1 at max(u) - 1, max(u) being 0."""
    low = torch.full_like(u.narrow(-1, 0, 1), -1.0)
    width = 1.0
    for _ in range(HALVINGS):
        width *= 0.5
        middle = low + width
        enough = (u - middle).clamp(min=0.0).pow(exponent).sum(-1, keepdim=True) >= 1.0
        low = torch.where(enough, middle, low)
    return low


def _positive_power(u: torch.Tensor, exponent: float) -> torch.Tensor:
    """u^exponent where u > 0, else 0, with the gradient 0 there even for exponents below 1."""
    inside = u > 0
    return torch.where(inside, torch.where(inside, u, 1.0).pow(exponent), 0.0)


@brick(
    "entmax(alpha = 1.5)(x: [*S, N]) -> [*S, N]",
    require=("alpha >= 1", "N >= 1"),
    per_token=True,
    examples=("entmax : float[B, T, 4]", "entmax(alpha = 1.3) : float[B, 4]", "entmax(alpha = 3.0) : float[B, 4]"),
    source="Peters et al. 2019; Correia et al. 2019",
)
def entmax(x: torch.Tensor, alpha: float = 1.5) -> torch.Tensor:
    """y = max(0, (alpha - 1) x - t)^(1 / (alpha - 1)), t such that y sums to 1; [*S, n]. 1: softmax, 2: sparsemax."""
    if alpha == 1:
        return torch.softmax(x, -1)
    if alpha == 2:
        return sparsemax(x)
    exponent = 1.0 / (alpha - 1.0)
    u = working(x) * (alpha - 1.0)
    u = u - u.amax(-1, keepdim=True).detach()
    still = u.detach()
    threshold = _threshold_by_sorting(still) if alpha == 1.5 else _threshold_by_bisection(still, exponent)
    # one Newton step: it polishes the threshold and carries its derivative with respect to x
    slope = exponent * _positive_power(still - threshold, exponent - 1.0).sum(-1, keepdim=True)
    threshold = threshold + (_positive_power(u - threshold, exponent).sum(-1, keepdim=True) - 1.0) / slope
    return _positive_power(u - threshold, exponent).to(x.dtype)


def _masked_shape(types: Types, names: Names, facts: Facts) -> tuple[Type, ...]:
    shape, mask = types[0].shape, types[1].shape
    if elementwise_shape([shape, mask], facts) != shape:
        raise Misfit("E0205", f"the mask {types[1]} is wider than the scores {types[0]}", 1)
    return (types[0],)


@brick(
    "softmax_masked(temperature = 1.0)(x: [*S], mask: bool[*M]) -> [*S]",
    shape=_masked_shape,
    require=("temperature > 0",),
    inline=True,
    per_token=True,
    examples=("softmax_masked : float[B, T, 4], bool[B, T, 4]", "softmax_masked : float[B, T, 4], bool[4]"),
)
def softmax_masked(x: torch.Tensor, mask: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """softmax over the places where the mask is true, 0 elsewhere; uniform where it is true nowhere. x: [*S, n], mask aligned."""
    hidden = torch.logical_not(mask)
    nowhere = hidden.all(-1, keepdim=True)
    return torch.softmax(torch.div(x, temperature).masked_fill(hidden, float("-inf")).masked_fill(nowhere, 0.0), -1)


def _straight(soft: torch.Tensor) -> torch.Tensor:
    """One-hot forward, exactly; the gradient of `soft` backward."""
    return largest(soft, 1).to(soft.dtype) + (soft - soft.detach())


@brick(
    "gumbel(temperature = 1.0, straight_through = false)(x: [*S, N]) -> [*S, N]",
    require=("temperature > 0", "N >= 1"),
    random=True,
    per_token=True,
    examples=("gumbel : float[B, T, 4]", "gumbel(temperature = 0.5, straight_through = true) : float[B, 4]"),
    source="Jang et al. 2016",
)
def gumbel(x: torch.Tensor, temperature: float = 1.0, straight_through: bool = False, training: bool = False) -> torch.Tensor:
    """softmax((x + g) / t), [*S, n]; g = -ln(-ln u) in training, 0 else. `straight_through`: one-hot forward, this gradient backward."""
    if training:
        x = x - torch.empty_like(working(x)).exponential_().clamp(min=1e-30).log().to(x.dtype)
    soft = torch.softmax(x / temperature, -1)
    return _straight(soft) if straight_through else soft


@brick(
    "hardmax(straight_through = false)(x: [*S, N]) -> [*S, N]",
    require=("N >= 1",),
    inline=True,
    per_token=True,
    examples=("hardmax : float[B, T, 4]", "hardmax(straight_through = true) : float[B, 4]"),
)
def hardmax(x: torch.Tensor, straight_through: bool = False) -> torch.Tensor:
    """1 at the largest (the lowest index of equals), 0 elsewhere; [*S, n]. No gradient; that of softmax with `straight_through`."""
    return _straight(torch.softmax(x, -1)) if straight_through else largest(x, 1).type_as(x)


@brick(
    "grid_softmax(cols)(x: [*S, n]) -> [*S, n]",
    require=("cols >= 1", "n % cols == 0"),
    inline=True,
    per_token=True,
    examples=("grid_softmax(3) : float[B, T, 6]",),
    source="Loom",
)
def grid_softmax(x: torch.Tensor, cols: int) -> torch.Tensor:
    """A softmax for each run of `cols` neighbours, [*S, n]; the whole sums to n / cols."""
    return torch.softmax(x.unflatten(-1, (-1, cols)), -1).flatten(-2)


def _tree(levels: Any) -> list[int]:
    """How many nodes each level of the tree has. Raises Misfit."""
    if not isinstance(levels, list | tuple) or not levels or not all(type(b) is int and b >= 1 for b in levels):
        raise Misfit("E0404", f"`levels` takes a list of branchings such as [2, 4], not {show(levels)}")
    widths, width = [], 1
    for branching in levels:
        width *= branching
        widths.append(width)
    return widths


def _tree_shape(types: Types, names: Names, facts: Facts) -> tuple[Type, ...]:
    widths = _tree(names["levels"])
    if names["i"] != sum(widths):
        total = f"{' + '.join(map(str, widths))} = {sum(widths)}"
        raise Misfit("E0205", f"a tree of {show(names['levels'])} takes {total} scores, not {names['i']}", 0)
    return (Type("float", (*types[0].shape[:-1], widths[-1])),)


@brick(
    "hierarchical_softmax(levels)(x: [*S, i]) -> [*S, n]",
    shape=_tree_shape,
    inline=True,
    per_token=True,
    examples=("hierarchical_softmax([2, 3]) : float[B, T, 8]",),
    source="Morin & Bengio 2005",
)
def hierarchical_softmax(x: torch.Tensor, levels: Sequence[int]) -> torch.Tensor:
    """p(leaf) = product over the levels of softmax among siblings, [*S, i] -> [*S, leaves]; levels [2, 3]: 2 + 6 scores, 6 leaves."""
    parts = x.split(_tree(levels), -1)
    below = torch.softmax(parts[0], -1)
    for level in range(1, len(levels)):
        siblings = torch.softmax(parts[level].unflatten(-1, (-1, levels[level])), -1)
        below = torch.mul(siblings, below.unsqueeze(-1)).flatten(-2)
    return below


@brick(
    "mixture_softmax(k)(x: [*S, i]) -> [*S, (i - k) / k]",
    require=("k >= 1", "i > k"),
    inline=True,
    per_token=True,
    examples=("mixture_softmax(2) : float[B, T, 8]",),
    source="Yang et al. 2017 (mixture of softmaxes)",
)
def mixture_softmax(x: torch.Tensor, k: int) -> torch.Tensor:
    """y = sum_j p_j softmax(z_j), [*S, k + k n] -> [*S, n]; p the softmax of the first k scores, then k times n scores."""
    shares = torch.softmax(x.narrow(-1, 0, k), -1)
    parts = torch.softmax(x.narrow(-1, k, x.shape[-1] - k).unflatten(-1, (k, -1)), -1)
    return torch.mul(parts, shares.unsqueeze(-1)).sum(-2)


@brick(
    "softmax_mad(k)(x: [*S, N]) -> [*S, N]",
    require=AT_MOST,
    inline=True,
    per_token=True,
    examples=("softmax_mad(2) : float[B, T, 4]",),
    source="MAD (MoeMlp)",
)
def softmax_mad(x: torch.Tensor, k: int) -> torch.Tensor:
    """softmax of the scores with all but the k largest set to 0, not -inf, so that all branches keep some weight; [*S, n]."""
    return torch.softmax(x.masked_fill(torch.logical_not(largest(x, k)), 0.0), -1)
