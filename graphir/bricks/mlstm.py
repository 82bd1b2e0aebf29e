"""The mLSTM: a matrix memory with exponential input gates, kept in range by a running maximum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..ir.types import Type
from .declare import StateRule, brick
from .scan import lower, windows, working
from .state import StateShapes
from .torch_lazy import F, Tensor, torch

State = Mapping[str, Any]


def _shapes(types: Sequence[Type], names: Mapping[str, Any]) -> StateShapes:
    batch, heads, keys, values = names["B"], names["h"], names["k"], names["v"]
    return {"C": ((batch, heads, keys, values), "float"), "n": ((batch, heads, keys), "float"), "m": ((batch, heads), "float")}


def _step(
    state: State, q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, form: str = "chunkwise", chunk: int = 64,
    eps: float = 1e-6,
) -> tuple[Tensor, dict[str, Tensor]]:
    wide, narrow = working(q), v.dtype
    q, k, v, i, f = (t.to(wide) for t in (q, k * k.shape[-1] ** -0.5, v, i, f))
    memory = tuple(state[name].to(wide) for name in ("C", "n", "m"))
    size = {"parallel": max(q.shape[2], 1), "chunkwise": chunk, "recurrent": 1}[form]
    parts = [v[:, :, :0]]
    for at in windows(q.shape[2], size):
        y, memory = _chunk(q[:, :, at], k[:, :, at], v[:, :, at], i[:, :, at], F.logsigmoid(f[:, :, at]), memory, eps)
        parts.append(y)
    return torch.cat(parts, 2).to(narrow), dict(zip(("C", "n", "m"), memory))


def _chunk(
    q: Tensor, k: Tensor, v: Tensor, i: Tensor, log_f: Tensor, memory: tuple[Tensor, ...], eps: float
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """All tokens of a chunk at once: a token's weight on token j is exp(F_t - F_j + i_j - m_t), on what came before exp(F_t + m - m_t)."""
    c, n, m = memory
    total = log_f.cumsum(-1)
    logits = (total.unsqueeze(-1) - total.unsqueeze(-2) + i.unsqueeze(-2)).masked_fill(~lower(q.shape[2], q), float("-inf"))
    carried = total + m.unsqueeze(-1)
    top = torch.maximum(logits.amax(-1), carried)
    scores = q @ k.transpose(-1, -2) * (logits - top.unsqueeze(-1)).exp()
    past = (carried - top).exp().unsqueeze(-1)
    numerator = scores @ v + past * (q @ c)
    weight = scores.sum(-1, keepdim=True) + past * (q @ n.unsqueeze(-1))
    y = numerator / (torch.maximum(weight.abs(), (-top).exp().unsqueeze(-1)) + eps)
    m = top[..., -1]
    kept = k * (total[..., -1:] - total + i - m.unsqueeze(-1)).exp().unsqueeze(-1)
    old = (carried[..., -1] - m).exp().unsqueeze(-1)
    return y, (old.unsqueeze(-1) * c + kept.transpose(-1, -2) @ v, old * n + kept.sum(2), m)


@brick(
    'mlstm(form = "chunkwise", chunk = 64, eps = 1e-6)'
    "(q: [B, h, T, k], k: [B, h, T, k], v: [B, h, T, v], i: [B, h, T], f: [B, h, T]) -> [B, h, T, v]",
    flops='2 * B * h * T * ((T if form == "parallel" else 1 if form == "recurrent" else chunk) * (k + v) + 2 * k * v)',
    require=('form in ["parallel", "chunkwise", "recurrent"]', "chunk >= 1"),
    state=StateRule(_shapes, _step),
    examples=(
        "mlstm : float[2, 3, 5, 4], float[2, 3, 5, 4], float[2, 3, 5, 6], float[2, 3, 5], float[2, 3, 5]",
        "mlstm(chunk = 2) : float[2, 3, 5, 4], float[2, 3, 5, 4], float[2, 3, 5, 6], float[2, 3, 5], float[2, 3, 5]",
    ),
    source="Beck et al. 2024 (xLSTM), arXiv 2405.04517",
)
def mlstm(
    q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, form: str = "chunkwise", chunk: int = 64, eps: float = 1e-6
) -> Tensor:
    """h_t [B, h, T, v] = C_t^T q_t / (max(|n_t q_t|, exp(-m_t)) + eps), C_t = s(f_t) C_{t-1} + exp(i_t) k_t v_t^T / sqrt(k), n_t likewise.

    i and f are gate logits [B, h, T], s the sigmoid; C and n are held divided by exp(m_t), m_t = max(log s(f_t) + m_{t-1}, i_t), m_0 = 0.
    The three forms differ only in how many tokens are taken at once: all, `chunk`, one.
    """
    zeros = lambda *shape: q.new_zeros(*q.shape[:2], *shape, dtype=working(q))  # noqa: E731
    start = {"C": zeros(q.shape[3], v.shape[3]), "n": zeros(q.shape[3]), "m": zeros()}
    return _step(start, q, k, v, i, f, form, chunk, eps)[0]
