"""Recurrences with a vector state: LSTM, GRU, sLSTM, RG-LRU and the bare linear recurrence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..ir.types import Type
from .declare import StateRule, brick
from .recurrent_ops import fused
from .scan import recurrence, working
from .state import StateShapes
from .torch_lazy import F, Tensor, torch

State = Mapping[str, Any]
Result = tuple["Tensor", dict[str, Any]]


def _hidden(*roles: str) -> Any:
    return lambda types, names: {role: ((names["B"], names["hidden"]), "float") for role in roles}


def _lstm_step(
    state: State, x: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
) -> Result:
    y, h, c = fused("lstm", x, (state["h"].to(x.dtype), state["c"].to(x.dtype)), (weight_ih, weight_hh, bias_ih, bias_hh))
    return y, {"h": h, "c": c}


@brick(
    "lstm(hidden, bias = true)(x: [B, T, d]) -> [B, T, hidden]",
    weights="weight_ih: [4 * hidden, d] = xavier; weight_hh: [4 * hidden, hidden] = xavier;"
    " bias_ih: [4 * hidden] = zeros if bias; bias_hh: [4 * hidden] = zeros if bias",
    flops="8 * B * T * hidden * (d + hidden)",
    state=StateRule(_hidden("h", "c"), _lstm_step),
    examples=("lstm(8) : float[2, 5, 4]", "lstm(3, bias = false) : float[2, 5, 4]"),
    source="Hochreiter and Schmidhuber 1997; gates in torch's order: input, forget, cell, output",
)
def lstm(
    x: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor | None = None, bias_hh: Tensor | None = None
) -> Tensor:
    """h_t [B, T, hidden] = s(o) tanh(c_t), c_t = s(f) c_{t-1} + s(i) tanh(g); (i, f, g, o) = W_ih x_t + W_hh h_{t-1} + biases.

    State: h, c.
    """
    zero = x.new_zeros(x.shape[0], weight_hh.shape[1])
    return _lstm_step({"h": zero, "c": zero}, x, weight_ih, weight_hh, bias_ih, bias_hh)[0]


def _gru_step(
    state: State, x: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
) -> Result:
    y, h = fused("gru", x, (state["h"].to(x.dtype),), (weight_ih, weight_hh, bias_ih, bias_hh))
    return y, {"h": h}


@brick(
    "gru(hidden, bias = true)(x: [B, T, d]) -> [B, T, hidden]",
    weights="weight_ih: [3 * hidden, d] = xavier; weight_hh: [3 * hidden, hidden] = xavier;"
    " bias_ih: [3 * hidden] = zeros if bias; bias_hh: [3 * hidden] = zeros if bias",
    flops="6 * B * T * hidden * (d + hidden)",
    state=StateRule(_hidden("h"), _gru_step),
    examples=("gru(8) : float[2, 5, 4]", "gru(3, bias = false) : float[2, 5, 4]"),
    source="Cho et al. 2014, arXiv 1406.1078; gates in torch's order: reset, update, new",
)
def gru(
    x: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor | None = None, bias_hh: Tensor | None = None
) -> Tensor:
    """h_t [B, T, hidden] = (1 - z) n + z h_{t-1}, n = tanh(W_n x + r (U_n h_{t-1})); r, z sigmoid gates. State: h."""
    zero = x.new_zeros(x.shape[0], weight_hh.shape[1])
    return _gru_step({"h": zero}, x, weight_ih, weight_hh, bias_ih, bias_hh)[0]


def _slstm_shapes(types: Sequence[Type], names: Mapping[str, Any]) -> StateShapes:
    return {role: ((names["B"], names["d"]), "float") for role in ("y", "c", "n", "m")}


FIRST_MAXIMUM = -1e30  # the running maximum before the first token: below every gate, so that the first maximum is the first input gate


def _slstm_step(
    state: State, i: Tensor, f: Tensor, z: Tensor, o: Tensor, recurrent: Tensor, bias: Tensor
) -> Result:
    wide, narrow = working(i), i.dtype
    y, c, n, m = (state[role].to(wide) for role in ("y", "c", "n", "m"))
    heads = recurrent.shape[0]
    kernel = recurrent.to(wide).transpose(1, 2)
    logits = torch.stack([i, f, z, o], 2).to(wide) + bias.to(wide).view(4, -1)
    gates = logits.unflatten(-1, (heads, -1)).transpose(2, 3).flatten(3)
    out = []
    for gate in gates.unbind(1):
        back = torch.einsum("bhk,hkg->bhg", y.unflatten(-1, (heads, -1)), kernel)
        i_t, f_t, z_t, o_t = (part.flatten(1) for part in (gate + back).chunk(4, -1))
        kept = F.logsigmoid(f_t) + m
        m = torch.maximum(i_t, kept)
        forget, take = (kept - m).exp(), (i_t - m).exp()
        c, n = forget * c + take * z_t.tanh(), forget * n + take
        y = o_t.sigmoid() * c / n
        out.append(y)
    series = torch.stack(out, 1) if out else i.new_zeros(i.shape)
    return series.to(narrow), {"y": y, "c": c, "n": n, "m": m}


@brick(
    "slstm_cell(heads)(i: [B, T, d], f: [B, T, d], z: [B, T, d], o: [B, T, d]) -> [B, T, d]",
    weights="recurrent: [heads, 4 * (d // heads), d // heads] = zeros; bias: [4 * d] = zeros",
    flops="8 * B * T * d * (d // heads)",
    require=("d % heads == 0",),
    state=StateRule(_slstm_shapes, _slstm_step, fill={"m": FIRST_MAXIMUM}),
    examples=("slstm_cell(2) : float[2, 5, 4], float[2, 5, 4], float[2, 5, 4], float[2, 5, 4]",),
    source="Beck et al. 2024 (xLSTM), arXiv 2405.04517",
)
def slstm_cell(
    i: Tensor, f: Tensor, z: Tensor, o: Tensor, recurrent: Tensor, bias: Tensor
) -> Tensor:
    """y_t [B, T, d] = s(o) c_t / n_t, c_t = f' c_{t-1} + i' tanh(z), n_t = f' n_{t-1} + i'.

    f' = exp(log s(f) + m_{t-1} - m_t), i' = exp(i - m_t).
    Ports are gate logits; recurrent[head] y_{t-1} is added, its rows in the order i, f, z, o within the head, and bias, gate after gate.
    m_t = max(i, log s(f) + m_{t-1}), and i at the first token. Gates are truly recurrent: tokens run one after the other.
    """
    zero = i.new_zeros(i.shape[0], i.shape[2], dtype=working(i))
    return _slstm_step({"y": zero, "c": zero, "n": zero, "m": zero + FIRST_MAXIMUM}, i, f, z, o, recurrent, bias)[0]


def _channel(types: Sequence[Type], names: Mapping[str, Any]) -> StateShapes:
    return {"h": ((names["B"], names["d"]), "float")}


def _linear_step(state: State, x: Tensor, a: Tensor) -> Result:
    wide = working(x)
    h = recurrence(a.to(wide), x.to(wide), state["h"].to(wide))
    return h.to(x.dtype), {"h": h[:, -1]}


@brick(
    "linear_recurrence(x: [B, T, d], a: [B, T, d]) -> [B, T, d]",
    state=StateRule(_channel, _linear_step),
    examples=("linear_recurrence : float[2, 5, 4], float[2, 5, 4]",),
)
def linear_recurrence(x: Tensor, a: Tensor) -> Tensor:
    """h_t [B, T, d] = a_t h_{t-1} + x_t, elementwise, h_0 = 0, as a parallel scan."""
    return recurrence(a.to(working(x)), x.to(working(x)), _zero(x)).to(x.dtype)


def _zero(x: Tensor) -> Tensor:
    return x.new_zeros(x.shape[0], *x.shape[2:], dtype=working(x))


def _rg_lru_shapes(types: Sequence[Type], names: Mapping[str, Any]) -> StateShapes:
    return _channel(types, names) | {"offset": ((), "int")}


def _rg_lru_step(
    state: State, x: Tensor, input_gate: Tensor, recurrent_gate: Tensor, weight: Tensor, c: float = 8.0
) -> Result:
    wide, length = working(x), x.shape[1]
    log_a = -c * recurrent_gate.to(wide).sigmoid() * F.softplus(weight.to(wide))
    first = (torch.arange(length, device=x.device) + state["offset"] == 0).view(1, -1, 1)
    amount = (-torch.expm1(2.0 * log_a)).clamp(min=1e-12).sqrt().masked_fill(first, 1.0)
    h = recurrence(log_a.exp(), x.to(wide) * input_gate.to(wide).sigmoid() * amount, state["h"].to(wide))
    return h.to(x.dtype), {"h": h[:, -1] if length else state["h"], "offset": state["offset"] + length}


@brick(
    "rg_lru(c = 8.0)(x: [B, T, d], input_gate: [B, T, d], recurrent_gate: [B, T, d]) -> [B, T, d]",
    weights="weight: [d] = linspace(-7.0, -2.0)",
    state=StateRule(_rg_lru_shapes, _rg_lru_step),
    examples=("rg_lru : float[2, 5, 4], float[2, 5, 4], float[2, 5, 4]",),
    source="De et al. 2024 (Griffin), arXiv 2402.19427",
)
def rg_lru(
    x: Tensor, input_gate: Tensor, recurrent_gate: Tensor, weight: Tensor, c: float = 8.0
) -> Tensor:
    """h_t [B, T, d] = a_t h_{t-1} + sqrt(1 - a_t^2) s(input_gate_t) x_t, log a_t = -c s(recurrent_gate_t) softplus(weight).

    The first token of all is taken whole (1 in place of the square root). Both gates are logits.
    """
    offset = torch.zeros((), dtype=torch.long, device=x.device)
    return _rg_lru_step({"h": _zero(x), "offset": offset}, x, input_gate, recurrent_gate, weight, c)[0]
