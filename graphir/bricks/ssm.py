"""State space models: the selective scan of Mamba and the scalar-decay scan of Mamba-2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..ir.types import Type
from .declare import StateRule, brick
from .scan import recurrence, scalar_decay, windows, working
from .state import StateShapes
from .torch_lazy import F, Tensor, torch

State = Mapping[str, Any]
Result = tuple["Tensor", dict[str, Any]]
SCAN_CHUNK = 64  # tokens whose [d, n] states are held at once


def _selective_shapes(types: Sequence[Type], names: Mapping[str, Any]) -> StateShapes:
    return {"h": ((names["B"], names["d"], names["n"] // names["groups"]), "float")}


def _selective_step(
    state: State, x: Tensor, dt: Tensor, b: Tensor, c: Tensor, A_log: Tensor, D: Tensor | None = None,
    softplus: bool = True, groups: int = 1,
) -> Result:
    wide, narrow = working(x), x.dtype
    x, dt, b, c = (t.to(wide) for t in (x, dt, b, c))
    b, c = (t.unflatten(-1, (groups, -1)).repeat_interleave(x.shape[2] // groups, 2) if groups > 1 else t.unsqueeze(2) for t in (b, c))
    dt = F.softplus(dt) if softplus else dt
    rate = -A_log.to(wide).exp()
    h = state["h"].to(wide)
    parts = [x[:, :0]]
    for at in windows(x.shape[1], SCAN_CHUNK):
        decay = (dt[:, at].unsqueeze(-1) * rate).exp()
        fed = (dt[:, at] * x[:, at]).unsqueeze(-1) * b[:, at]
        states = recurrence(decay, fed, h)
        parts.append((states * c[:, at]).sum(-1))
        h = states[:, -1]
    y = torch.cat(parts, 1)
    return (y if D is None else y + D.to(wide) * x).to(narrow), {"h": h}


@brick(
    "selective_scan(softplus = true, skip = true, groups = 1)(x: [B, T, d], dt: [B, T, d], b: [B, T, n], c: [B, T, n]) -> [B, T, d]",
    weights="A_log: [d, n / groups] = log_range; D: [d] = ones if skip",
    flops="2 * B * T * d * (n // groups)",
    require=("groups >= 1", "d % groups == 0", "n % groups == 0"),
    state=StateRule(_selective_shapes, _selective_step),
    examples=(
        "selective_scan : float[2, 5, 6], float[2, 5, 6], float[2, 5, 3], float[2, 5, 3]",
        "selective_scan(groups = 2) : float[2, 5, 6], float[2, 5, 6], float[2, 5, 8], float[2, 5, 8]",
    ),
    source="Gu and Dao 2023 (Mamba), arXiv 2312.00752",
)
def selective_scan(
    x: Tensor, dt: Tensor, b: Tensor, c: Tensor, A_log: Tensor, D: Tensor | None = None, softplus: bool = True, groups: int = 1
) -> Tensor:
    """y_t [B, T, d] = h_t c_t + D x_t, h_t [d, n] = exp(-dt_t exp(A_log)) h_{t-1} + dt_t x_t b_t^T.

    dt goes through softplus first. `groups`: so many runs of channels have a b and a c each, side by side. State: h [B, d, n / groups].
    """
    start = {"h": x.new_zeros(x.shape[0], x.shape[2], b.shape[2] // groups, dtype=working(x))}
    return _selective_step(start, x, dt, b, c, A_log, D, softplus, groups)[0]


def _ssd_shapes(types: Sequence[Type], names: Mapping[str, Any]) -> StateShapes:
    return {"h": ((names["B"], names["h"], names["n"], names["p"]), "float")}


def _ssd_step(
    state: State, x: Tensor, dt: Tensor, b: Tensor, c: Tensor, A_log: Tensor, D: Tensor | None = None,
    dt_bias: Tensor | None = None, softplus: bool = True, dt_min: float = 0.0, dt_max: float | None = None, chunk: int = 64,
) -> Result:
    wide, narrow = working(x), x.dtype
    x, dt, b, c = (t.to(wide) for t in (x, dt, b, c))
    dt = dt if dt_bias is None else dt + dt_bias.to(wide)
    dt = (F.softplus(dt) if softplus else dt).clamp(min=dt_min, max=dt_max)
    each = x.shape[2] // b.shape[2]
    keys, queries = (t.repeat_interleave(each, 2).transpose(1, 2) for t in (b, c))
    decay = (-dt * A_log.to(wide).exp()).transpose(1, 2)
    y, h = scalar_decay(queries, keys * dt.transpose(1, 2).unsqueeze(-1), x.transpose(1, 2), decay, state["h"].to(wide), chunk)
    y = y.transpose(1, 2)
    return (y if D is None else y + D.to(wide).unsqueeze(-1) * x).to(narrow), {"h": h}


@brick(
    "ssd(softplus = true, dt_bias = true, skip = true, dt_min = 0.0, dt_max = none, chunk = 64)"
    "(x: [B, T, h, p], dt: [B, T, h], b: [B, T, g, n], c: [B, T, g, n]) -> [B, T, h, p]",
    weights="A_log: [h] = log_uniform; D: [h] = ones if skip; dt_bias: [h] = step_bias if dt_bias",
    flops="2 * B * h * T * (chunk * (n + p) + 2 * n * p)",
    require=("h % g == 0", "chunk >= 1"),
    state=StateRule(_ssd_shapes, _ssd_step),
    examples=("ssd(chunk = 2) : float[2, 5, 4, 3], float[2, 5, 4], float[2, 5, 2, 6], float[2, 5, 2, 6]",),
    source="Dao and Gu 2024 (Mamba-2), arXiv 2405.21060",
)
def ssd(
    x: Tensor, dt: Tensor, b: Tensor, c: Tensor, A_log: Tensor, D: Tensor | None = None,
    dt_bias: Tensor | None = None, softplus: bool = True, dt_min: float = 0.0, dt_max: float | None = None, chunk: int = 64,
) -> Tensor:
    """y_t [B, T, h, p] = h_t^T c_t + D x_t, h_t [n, p] = exp(-dt_t exp(A_log)) h_{t-1} + dt_t b_t x_t^T for each head.

    b and c serve a group of heads each; dt = clamp(softplus(dt + dt_bias), dt_min, dt_max). State: h [B, h, n, p].
    """
    start = {"h": x.new_zeros(x.shape[0], x.shape[2], b.shape[3], x.shape[3], dtype=working(x))}
    return _ssd_step(start, x, dt, b, c, A_log, D, dt_bias, softplus, dt_min, dt_max, chunk)[0]
