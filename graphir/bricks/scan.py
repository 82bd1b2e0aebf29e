"""Prefix scans shared by the recurrent bricks: elementwise linear recurrences, and attention-like sums under a decay.

Every function takes the state before the first token and gives (outputs, state after the last), so that a brick's
whole-sequence form is its step from a zero state, and prefill followed by single steps is the same sum.
Decays are logarithms, at most zero, and only differences that are at most zero are exponentiated: nothing overflows.
"""

from __future__ import annotations

from collections.abc import Iterator

from .torch_lazy import Tensor, torch


def working(x: Tensor) -> torch.dtype:
    """The dtype to accumulate in: float32 for half precision, the tensor's own otherwise."""
    return torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype


def windows(length: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` tokens that cover `length`; the last may be shorter."""
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))


def recurrence(a: Tensor, x: Tensor, start: Tensor) -> Tensor:
    """h_t = a_t * h_{t-1} + x_t along axis 1, from h = `start` [B, ...]; a and x [B, T, ...], in log2(T) full-width steps."""
    x = torch.cat([x[:, :1] + a[:, :1] * start.unsqueeze(1), x[:, 1:]], 1)
    span = 1
    while span < x.shape[1]:
        x = torch.cat([x[:, :span], x[:, span:] + a[:, span:] * x[:, :-span]], 1)
        a = torch.cat([a[:, :span], a[:, span:] * a[:, :-span]], 1)
        span *= 2
    return x


def lower(length: int, like: Tensor, diagonal: int = 0) -> Tensor:
    """bool [T, T]: key j is seen by query i, j <= i + diagonal."""
    return torch.ones(length, length, dtype=torch.bool, device=like.device).tril(diagonal)


def pair_decay(total: Tensor) -> Tensor:
    """exp(total_i - total_j) for j <= i, zero above the diagonal; `total` [..., T] is the running sum of log decays."""
    difference = total.unsqueeze(-1) - total.unsqueeze(-2)
    return difference.masked_fill(~lower(total.shape[-1], total), float("-inf")).exp()


def scalar_decay(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, memory: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    """S_t = exp(decay_t) S_{t-1} + k_t v_t^T, y_t = q_t S_t; q, k [B, h, T, k], v [B, h, T, v], decay [B, h, T], S [B, h, k, v]."""
    parts = [v[:, :, :0]]
    for at in windows(q.shape[2], chunk):
        total = decay[:, :, at].cumsum(-1)
        qs, ks, vs = q[:, :, at], k[:, :, at], v[:, :, at]
        inside = (qs @ ks.transpose(-1, -2) * pair_decay(total)) @ vs
        parts.append(inside + total.exp().unsqueeze(-1) * (qs @ memory))
        last = total[..., -1:]
        kept = ks * (last - total).exp().unsqueeze(-1)
        memory = last.unsqueeze(-1).exp() * memory + kept.transpose(-1, -2) @ vs
    return torch.cat(parts, 2), memory


def vector_decay(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, memory: Tensor, chunk: int, bonus: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """S_t = diag(exp(decay_t)) S_{t-1} + k_t v_t^T with a decay for each key channel, [B, h, T, k].

    y_t = q_t S_t; with `bonus` [h, k] instead y_t = q_t (S_{t-1} + diag(bonus) k_t v_t^T), as RWKV has it.
    """
    parts = [v[:, :, :0]]
    for at in windows(q.shape[2], chunk):
        qs, ks, vs = q[:, :, at], k[:, :, at], v[:, :, at]
        total = decay[:, :, at].cumsum(2)
        reach = total if bonus is None else total - decay[:, :, at]
        seen = lower(total.shape[2], total, 0 if bonus is None else -1).unsqueeze(-1)
        between = (reach.unsqueeze(3) - total.unsqueeze(2)).masked_fill(~seen, float("-inf")).exp()
        scores = torch.einsum("bhik,bhjk,bhijk->bhij", qs, ks, between)
        y = scores @ vs + (qs * reach.exp()) @ memory
        if bonus is not None:
            y = y + (qs * bonus.unsqueeze(1) * ks).sum(-1, keepdim=True) * vs
        parts.append(y)
        last = total[:, :, -1:]
        memory = last.transpose(-1, -2).exp() * memory + (ks * (last - total).exp()).transpose(-1, -2) @ vs
    return torch.cat(parts, 2), memory


def delta(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, decay: Tensor, memory: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    """S_t = exp(decay_t) S_{t-1} + k_t u_t^T, u_t = beta_t (v_t - exp(decay_t) S_{t-1}^T k_t), y_t = q_t S_t; beta, decay [B, h, T].

    Within a chunk the u_t solve a unit lower triangular system (the WY form of a product of Householder-like factors).
    """
    parts = [v[:, :, :0]]
    for at in windows(q.shape[2], chunk):
        qs, ks, vs = q[:, :, at], k[:, :, at], v[:, :, at]
        rate = beta[:, :, at].unsqueeze(-1)
        total = decay[:, :, at].cumsum(-1)
        between, since = pair_decay(total), total.exp().unsqueeze(-1)
        mixing = (rate * (ks @ ks.transpose(-1, -2)) * between).tril(-1)
        wanted = rate * (vs - since * (ks @ memory))
        u = torch.linalg.solve_triangular(mixing, wanted, upper=False, unitriangular=True)
        parts.append((qs @ ks.transpose(-1, -2) * between) @ u + since * (qs @ memory))
        last = total[..., -1:]
        kept = ks * (last - total).exp().unsqueeze(-1)
        memory = last.unsqueeze(-1).exp() * memory + kept.transpose(-1, -2) @ u
    return torch.cat(parts, 2), memory
