"""Linear maps, embeddings, free parameters, dropout.

Weights that are batches of matrices ([heads, out, in]) start with `he_last`: like `he`, the fan-in being the last axis alone.
"""

from __future__ import annotations

from .declare import brick
from .torch_lazy import F, torch


@brick(
    "linear(out, bias = true)(x: [*S, i]) -> [*S, out]",
    weights="weight: [out, i] = he; bias: [out] = zeros if bias",
    flops="2 * S * i * out",
    inline=True,
    per_token=True,
    examples=("linear(8) : float[B, 4]", "linear(3, bias = false) : float[B, T, 4]"),
)
def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x: [*S, i] -> [*S, out]; y = x Wᵀ + b over the last axis."""
    return F.linear(x, weight, bias)


@brick(
    "linear_transposed(out)(x: [*S, i]) -> [*S, out]",
    weights="weight: [i, out] = he",
    flops="2 * S * i * out",
    inline=True,
    per_token=True,
    examples=("linear_transposed(8) : float[B, T, 4]",),
)
def linear_transposed(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x: [*S, i] -> [*S, out]; y = x W, the transpose of a `linear` from out to i that holds the same weight [i, out]."""
    return torch.matmul(x, weight)


@brick(
    "headwise_linear(heads, out = i, bias = true)(x: [*S, i]) -> [*S, out]",
    weights="weight: [heads, out / heads, i / heads] = he_last; bias: [out] = zeros if bias",
    flops="2 * S * i * (out // heads)",
    require=("heads >= 1", "i % heads == 0", "out % heads == 0"),
    inline=True,
    per_token=True,
    examples=("headwise_linear(2) : float[B, T, 6]", "headwise_linear(2, out = 4, bias = false) : float[B, 6]"),
    source="xLSTM",
)
def headwise_linear(x: torch.Tensor, weight: torch.Tensor, heads: int, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x: [*S, i] -> [*S, out]; y = x blockdiag(W_1 .. W_heads)ᵀ + b, each head its own slice of the last axis."""
    y = torch.einsum("...hi,hoi->...ho", x.unflatten(-1, (heads, -1)), weight).flatten(-2)
    return y if bias is None else y + bias


@brick(
    "expert_linear(experts, out, bias = false)(x: [experts, C, i]) -> [experts, C, out]",
    weights="weight: [experts, out, i] = he_last; bias: [experts, out] = zeros if bias",
    flops="2 * experts * C * i * out",
    inline=True,
    causal=False,
    examples=("expert_linear(2, 3) : float[2, C, 4]", "expert_linear(2, 3, bias = true) : float[2, C, 4]"),
)
def expert_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x: [experts, C, i] -> [experts, C, out]; y[e] = x[e] W[e]ᵀ + b[e], one product for all experts."""
    if bias is None:
        return torch.bmm(x, weight.transpose(1, 2))
    return torch.baddbmm(bias.unsqueeze(1), x, weight.transpose(1, 2))


@brick(
    "embedding(size, out)(ids: int[*S]) -> [*S, out]",
    weights="weight: [size, out] = normal(0.02)",
    inline=True,
    examples=("embedding(7, 4) : int[B, T]",),
)
def embedding(ids: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """ids: int [*S] -> [*S, out]; y = W[ids], rows drawn from a normal of deviation 0.02. An id outside of 0..size is an error."""
    return F.embedding(ids, weight)


@brick(
    "bias(x: [*S, d]) -> [*S, d]",
    weights="bias: [d] = zeros",
    inline=True,
    per_token=True,
    examples=("bias : float[B, T, 4]",),
)
def bias(x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """y = x + b, [*S, d]; a learned offset for each channel."""
    return torch.add(x, bias)


@brick(
    'gain(init = "ones", size = d)(x: [*S, d]) -> [*S, d]',
    weights="weight: [size] = $init",
    require=("size == d or size == 1",),
    inline=True,
    per_token=True,
    examples=("gain : float[B, T, 4]", "gain(init = 0.0001) : float[B, 4]", "gain(size = 1) : float[B, 4]"),
    source="CaiT (LayerScale)",
)
def gain(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """y = g * x, [*S, d]; a learned factor for each channel (`size = 1`: one for all), which starts at `init`."""
    return torch.mul(x, weight)


@brick(
    'weight(shape, init = "zeros")() -> [*shape]',
    weights="weight: [shape] = $init",
    inline=True,
    examples=("weight([2, 3])", "weight([])", 'weight([3], init = "ones")'),
)
def weight(weight: torch.Tensor) -> torch.Tensor:
    """[*shape]; a free parameter, which starts as `init` says: a number, or a word such as "normal(0.02)"."""
    return weight


@brick(
    "dropout(p = 0.1)(x: [*S]) -> [*S]",
    require=("p >= 0", "p <= 1"),
    inline=True,
    random=True,
    elementwise=True,
    examples=("dropout : float[B, T, 4]",),
    source="Srivastava et al. 2014",
)
def dropout(x: torch.Tensor, p: float = 0.1, training: bool = False) -> torch.Tensor:
    """y = x * m / (1 - p), m zero with probability p; [*S]. In training only."""
    return F.dropout(x, p, training)
