"""The standard sequence mixers once more: token by token, from the formulas of the papers, in plain torch. `w` gives weights by name."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F


def heads(x, n):
    """[B, T, n k] -> [B, n, T, k]"""
    return x.unflatten(-1, (n, -1)).transpose(1, 2)


def merged(x):
    return x.transpose(1, 2).flatten(2)


def rms(x, weight=None, eps=1e-5):
    y = x / (x.square().mean(-1, keepdim=True) + eps).sqrt()
    return y if weight is None else y * weight


def layer(x, n, weight, bias, eps):
    y = F.layer_norm(x.unflatten(-1, (n, -1)), (x.shape[-1] // n,), eps=eps).flatten(-2)
    return y * weight + bias


def blurred(x, weight, bias=None):
    """Each channel convolved with its kernel, zeros before the first token."""
    size = weight.shape[-1]
    padded = F.pad(x, (0, 0, size - 1, 0))
    y = sum(padded[:, j : j + x.shape[1]] * weight[:, 0, j] for j in range(size))
    return y if bias is None else y + bias


def shifted(x):
    return F.pad(x, (0, 0, 1, 0))[:, :-1]


def remembered(q, k, v, advance):
    """y_t = q_t S_t, S_t = advance(S_{t-1}, t), S_0 = 0 [B, h, k, v]."""
    memory = q.new_zeros(q.shape[0], q.shape[1], k.shape[-1], v.shape[-1])
    out = []
    for t in range(q.shape[2]):
        memory = advance(memory, t)
        out.append(torch.einsum("bhk,bhkv->bhv", q[:, :, t], memory))
    return torch.stack(out, 2)


def outer(k, v):
    return k.unsqueeze(-1) * v.unsqueeze(-2)


def linear_attention(x, w, n=2):
    q, k, v = (heads(x @ w[p].T, n) for p in ("q.weight", "k.weight", "v.weight"))
    q, k = F.elu(q) + 1, F.elu(k) + 1
    scores = (q @ k.transpose(-1, -2)).tril()
    return merged(scores @ v / (scores.sum(-1, keepdim=True) + 1e-6)) @ w["o.weight"].T


def gla(x, w, n=2):
    q, k, v = (heads(x @ w[p].T, n) for p in ("q.weight", "k.weight", "v.weight"))
    decay = heads(torch.sigmoid(x @ w["decay_in.weight"].T @ w["decay_out.weight"].T + w["decay_out.bias"]) ** (1 / 16), n)
    y = remembered(q * q.shape[-1] ** -0.5, k, v, lambda s, t: decay[:, :, t].unsqueeze(-1) * s + outer(k[:, :, t], v[:, :, t]))
    return (merged(rms(y, w["norm.weight"])) * F.silu(x @ w["gate.weight"].T)) @ w["o.weight"].T


def turned(x):
    """Rotary positions on neighbouring pairs, as a product of complex numbers."""
    length, width = x.shape[2:]
    rates = 10000.0 ** (-torch.arange(0, width, 2, dtype=x.dtype) / width)
    angle = torch.arange(length, dtype=x.dtype).unsqueeze(1) * rates
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle)).flatten(-2)


def retnet(x, w, n=2):
    q, k = (turned(heads(x @ w[p].T, n)) for p in ("q.weight", "k.weight"))
    v = heads(x @ w["v.weight"].T, n)
    decay = torch.tensor([1 - 2.0 ** (-5 - h) for h in range(n)], dtype=x.dtype).view(1, n, 1, 1)
    y = remembered(q * q.shape[-1] ** -0.5, k, v, lambda s, t: decay * s + outer(k[:, :, t], v[:, :, t]))
    return (merged(rms(y, eps=1e-6)) * F.silu(x @ w["gate.weight"].T)) @ w["o.weight"].T


def _delta(x, w, n, gated):
    q, k, v = (heads(F.silu(blurred(x @ w[f"{p}.weight"].T, w[f"{p}_conv.weight"])), n) for p in "qkv")
    q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
    beta = torch.sigmoid(x @ w["beta.weight"].T).transpose(1, 2)
    keep = torch.ones_like(beta)
    if gated:
        keep = torch.exp(-w["A_log.weight"].exp() * F.softplus(x @ w["decay.weight"].T + w["decay.bias"])).transpose(1, 2)

    def advance(s, t):
        s = keep[:, :, t, None, None] * s
        wrong = v[:, :, t] - torch.einsum("bhk,bhkv->bhv", k[:, :, t], s)
        return s + beta[:, :, t, None, None] * outer(k[:, :, t], wrong)

    return merged(rms(remembered(q * q.shape[-1] ** -0.5, k, v, advance), w["norm.weight"]))


def delta_net(x, w, n=2):
    return _delta(x, w, n, False) @ w["o.weight"].T


def gated_delta_net(x, w, n=2):
    return (_delta(x, w, n, True) * F.silu(x @ w["gate.weight"].T)) @ w["o.weight"].T


def mixed(x, weight):
    return x * weight + shifted(x) * (1 - weight)


def rwkv4(x, w):
    r, k, v = (mixed(x, w[f"{p}_mix.mix.weight"]) @ w[f"{p}.weight"].T for p in "rkv")
    decay, bonus = w["wkv.decay"].exp(), w["wkv.bonus"]
    out = []
    for t in range(x.shape[1]):
        weights = [torch.exp(k[:, j] - (t - 1 - j) * decay) for j in range(t)] + [torch.exp(k[:, t] + bonus)]
        out.append(sum(a * v[:, j] for j, a in enumerate(weights)) / sum(weights))
    return (torch.sigmoid(r) * torch.stack(out, 1)) @ w["o.weight"].T


def _matrix_rwkv(r, k, v, decay, bonus):
    """y_t = r_t (S_{t-1} + diag(bonus) k_t v_t^T), S_t = diag(decay_t) S_{t-1} + k_t v_t^T"""
    memory = r.new_zeros(*r.shape[:2], k.shape[-1], v.shape[-1])
    out = []
    for t in range(r.shape[2]):
        new = outer(k[:, :, t], v[:, :, t])
        out.append(torch.einsum("bhk,bhkv->bhv", r[:, :, t], memory + bonus.unsqueeze(-1) * new))
        memory = decay[:, :, t].unsqueeze(-1) * memory + new
    return merged(torch.stack(out, 2))


def rwkv5(x, w, n=2):
    r, k, v = (heads(mixed(x, w[f"{p}_mix.mix.weight"]) @ w[f"{p}.weight"].T, n) for p in "rkv")
    gate = F.silu(mixed(x, w["gate_mix.mix.weight"]) @ w["gate.weight"].T)
    y = _matrix_rwkv(r, k, v, torch.exp(-w["wkv.decay"].exp()).unsqueeze(1).expand(r.shape), w["wkv.bonus"])
    return (layer(y, n, w["norm.weight"], w["norm.bias"], 64e-5) * gate) @ w["o.weight"].T


def rwkv6(x, w, n=2):
    change = shifted(x) - x
    low = torch.tanh((x + change * w["mix.weight"]) @ w["mix_in.weight"].T).unflatten(-1, (5, -1))
    deltas = torch.einsum("btnr,ndr->nbtd", low, w["mix_out.weight"])
    places = ("decay_mix", "k_mix", "v_mix", "r_mix", "gate_mix")
    xw, xk, xv, xr, xg = (x + change * (w[f"{p}.weight"] + d) for p, d in zip(places, deltas))
    logit = torch.tanh(xw @ w["decay_in.weight"].T) @ w["decay_out.weight"].T + w["decay_out.bias"]
    r, k, v = (heads(y @ w[f"{p}.weight"].T, n) for y, p in ((xr, "r"), (xk, "k"), (xv, "v")))
    y = _matrix_rwkv(r, k, v, heads(torch.exp(-logit.exp()), n), w["wkv.bonus"])
    return (layer(y, n, w["norm.weight"], w["norm.bias"], 64e-5) * F.silu(xg @ w["gate.weight"].T)) @ w["o.weight"].T


def rwkv_channel(x, w):
    k = F.relu(mixed(x, w["k_mix.mix.weight"]) @ w["k.weight"].T).square()
    return torch.sigmoid(mixed(x, w["r_mix.mix.weight"]) @ w["r.weight"].T) * (k @ w["v.weight"].T)


def hyena(x, w, order=3, bands=2, depth=2, length=16):
    """Filters by the network at each place, and the convolution as a sum."""
    parts = blurred(x @ w["in_proj.weight"].T + w["in_proj.bias"], w["short_conv.weight"], w["short_conv.bias"]).chunk(order + 1, -1)
    size, width = x.shape[1], parts[0].shape[-1]
    place = torch.arange(size, dtype=x.dtype).unsqueeze(1)
    tones = torch.linspace(1e-4, bands - 1, bands, dtype=x.dtype)
    wave = torch.exp(-1j * tones * 2 * math.pi * place / length)
    z = torch.cat([place / (length - 1), wave.real, wave.imag], -1)
    for i in range(depth + 1):
        z = torch.sin(w["pulse.weight"] * (z @ w[f"filter.{i}.linear.weight"].T + w[f"filter.{i}.linear.bias"]))
    rates = torch.linspace(-math.log(0.01) / 1.5, -math.log(0.01) / 0.3, width, dtype=x.dtype)
    window = torch.exp(-place / (length - 1) * rates)
    v = parts[order]
    for i in range(order - 1):
        v = v * parts[i + 1]
        taps = (z @ w[f"steps.{i}.filter.weight"].T) * window
        conv = torch.stack([sum(taps[j] * v[:, t - j] for j in range(t + 1)) for t in range(size)], 1)
        v = conv + w[f"steps.{i}.skip.weight"] * v
    return (parts[0] * v) @ w["out_proj.weight"].T + w["out_proj.bias"]
