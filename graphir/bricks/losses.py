"""What a filter tells of itself: balance losses, loads, entropies. Scalars, or one number a branch; sums run over all tokens.

`chosen` is anything with one entry a branch that is zero (or false) where the branch was not chosen: the kept weights, say.
"""

from __future__ import annotations

from .declare import brick
from .torch_lazy import torch


def _tokens(x: torch.Tensor) -> torch.Tensor:
    return x.reshape(-1, x.shape[-1])


def _share(total: torch.Tensor, count: int | torch.Tensor) -> torch.Tensor:
    """total / count, zero where there was nothing to count."""
    return total / (count.clamp(min=1) if isinstance(count, torch.Tensor) else max(count, 1))


def _chosen(chosen: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return _tokens(chosen != 0).to(like.dtype)


@brick(
    "switch_balance(normalise = true)(probabilities: [*S, n], chosen: any[*S, n]) -> []",
    causal=False,
    examples=("switch_balance : float[B, T, 4], float[B, T, 4]", "switch_balance(normalise = false) : float[B, 4], bool[B, 4]"),
    source="Switch Transformer (Fedus et al. 2021)",
)
def switch_balance(probabilities: torch.Tensor, chosen: torch.Tensor, normalise: bool = True) -> torch.Tensor:
    """n * sum_i f_i P_i, [*S, n] -> []; f_i the share of choices that fell on i, P_i its mean probability.

    With `normalise = false` f_i is the share of tokens that chose i, so that choices of k branches count k times.
    """
    counts = _chosen(chosen, probabilities).sum(0)
    flat = _tokens(probabilities)
    fraction = _share(counts, counts.sum() if normalise else flat.shape[0])
    return (fraction * _share(flat.sum(0), flat.shape[0])).sum() * flat.shape[1]


@brick(
    "importance(weights: [*S, n]) -> []", causal=False, examples=("importance : float[B, T, 4]",), source="Shazeer et al. 2017"
)
def importance(weights: torch.Tensor) -> torch.Tensor:
    """var(I) / mean(I)^2, [*S, n] -> []; I_i the sum of branch i's weights, var the mean square deviation."""
    total = _tokens(weights).sum(0)
    return total.var(correction=0) / (total.mean().square() + 1e-10)


@brick(
    "balance_document(probabilities: [*S, n]) -> []",
    require=("n >= 2",),
    causal=False,
    examples=("balance_document : float[B, T, 4]",),
    source="modular neural composition (LoadBalancedMoE)",
)
def balance_document(probabilities: torch.Tensor) -> torch.Tensor:
    """n * sum_i P_i^2 + var(I) / mean(I)^2, [*S, n] -> []; P the mean, I the sum over tokens, var with n - 1 below."""
    flat = _tokens(probabilities)
    total = flat.sum(0)
    average = _share(total, flat.shape[0])
    return average.square().sum() * flat.shape[1] + total.var() / (total.mean().square() + 1e-10)


@brick("z_loss(logits: [*S, N]) -> []", causal=False, examples=("z_loss : float[B, T, 4]",), source="ST-MoE (Zoph et al. 2022)")
def z_loss(logits: torch.Tensor) -> torch.Tensor:
    """mean over tokens of logsumexp(logits)^2, [*S, n] -> []."""
    flat = _tokens(logits)
    return _share(torch.logsumexp(flat, -1).square().sum(), flat.shape[0])


@brick(
    "load(chosen: any[*S, n]) -> [n]", causal=False, examples=("load : float[B, T, 4]", "load : bool[B, 4]")
)
def load(chosen: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """The share of tokens that chose each branch, [*S, n] -> [n]."""
    flat = _tokens(chosen != 0).to(chosen.dtype if chosen.is_floating_point() else dtype or torch.get_default_dtype())
    return _share(flat.sum(0), flat.shape[0])


@brick("entropy(weights: [*S, N]) -> []", causal=False, examples=("entropy : float[B, T, 4]", "entropy : float[4]"))
def entropy(weights: torch.Tensor) -> torch.Tensor:
    """mean over tokens of -sum_i w_i ln w_i, [*S, n] -> []; in nats, 0 ln 0 = 0."""
    flat = _tokens(weights)
    logs = flat.clamp(min=torch.finfo(flat.dtype).tiny).log()
    return _share(-(flat * logs).sum(), flat.shape[0])


@brick(
    "drop_rate(before: any[*S, n], after: any[*S, n]) -> []",
    causal=False,
    examples=("drop_rate : float[B, T, 4], float[B, T, 4]",),
    source="Switch Transformer",
)
def drop_rate(before: torch.Tensor, after: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """The share of choices in `before` that `after` lacks, [*S, n] -> []: tokens dropped for want of capacity."""
    float_dtype = before.dtype if before.is_floating_point() else dtype or torch.get_default_dtype()
    wanted = before != 0
    lost = wanted & (after == 0)
    return _share(lost.sum().to(float_dtype), wanted.sum())
