"""The stitch: an adapter between widths, written by the author or put in by the compiler."""

from __future__ import annotations

from .declare import brick
from .torch_lazy import F, torch

# `weight`, the last map, comes first: an author's `init` is for it, so that "zeros" gives a stitch that starts silent
WEIGHTS = """
weight: [out, i] = he if form == "linear";
weight: [out, (i + out) // 2] = he if form == "mlp";
weight: [out, rank] = he if form == "low-rank";
bias: [out] = zeros;
weight_in: [(i + out) // 2, i] = he if form == "mlp"; weight_in: [rank, i] = he if form == "low-rank";
bias_in: [(i + out) // 2] = zeros if form == "mlp"
"""
FLOPS = '2 * S * i * out if form == "linear" else 2 * S * (i + out) * (rank if form == "low-rank" else (i + out) // 2)'


@brick(
    'stitch(out, form = "linear", rank = none, open = false)(x: [*S, i]) -> [*S, out]',
    weights=" ".join(WEIGHTS.split()),
    flops=FLOPS,
    kind="stitch",
    require=('form in ["linear", "mlp", "low-rank"]', 'form != "low-rank" or rank != none', "rank == none or rank >= 1"),
    inline=True,
    per_token=True,
    examples=(
        "stitch(4) : float[B, 3]",
        'stitch(4, form = "mlp") : float[B, T, 6]',
        'stitch(4, form = "low-rank", rank = 2) : float[B, 6]',
    ),
    source="Loom; SN-Net",
)
def stitch(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    weight_in: torch.Tensor | None = None,
    bias_in: torch.Tensor | None = None,
    form: str = "linear",
) -> torch.Tensor:
    """x: [*S, i] -> [*S, out]; y = W x + b, or W gelu(V x + c) + b with (i + out) // 2 hidden (mlp), or W (V x) + b (low-rank)."""
    if form == "linear" or weight_in is None:
        return F.linear(x, weight, bias)
    hidden = F.linear(x, weight_in, bias_in)
    return F.linear(F.gelu(hidden) if form == "mlp" else hidden, weight, bias)
