"""Sequence mixers against their recurrences, one token at a time, and their forms against each other."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import elu, logsigmoid, normalize, softplus

from graphir.bricks.conv import causal_conv1d, depthwise_conv1d, fft_conv
from graphir.bricks.linear_attention import (
    decayed_attention,
    delta_rule,
    gated_delta_rule,
    gla,
    linear_attention,
    retention,
)
from graphir.bricks.mlstm import mlstm
from graphir.bricks.recurrent import gru, linear_recurrence, lstm, rg_lru, slstm_cell
from graphir.bricks.rwkv import rwkv4_wkv, rwkv5_wkv, rwkv6_wkv
from graphir.bricks.ssm import selective_scan, ssd
from graphir.bricks.torch_lazy import load

T = 11


def draws(seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(shape, generator=g, dtype=dtype)


def matrices(q, k, v, update, read=lambda q, memory, t: q[:, :, t].unsqueeze(2) @ memory):
    """S = update(S, k_t v_t^T, t), y_t = q_t S, one token at a time."""
    memory, out = q.new_zeros(*q.shape[:2], q.shape[3], v.shape[3]), []
    for t in range(q.shape[2]):
        memory = update(memory, k[:, :, t].unsqueeze(3) * v[:, :, t].unsqueeze(2), t)
        out.append(read(q, memory, t))
    return torch.cat(out, 2)


@pytest.fixture
def qkv():
    make = draws()
    return make(2, 3, T, 4), make(2, 3, T, 4), make(2, 3, T, 5), make


def same(a, b):
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)


CHUNKS = pytest.mark.parametrize("chunk", [1, 4, 11, 64])


@CHUNKS
def test_decayed_memories(qkv, chunk):
    q, k, v, make = qkv
    g, rates = logsigmoid(make(2, 3, T)), logsigmoid(make(2, 3, T, 4) * 8)
    fixed = 1 - 2.0 ** (-5.0 - torch.arange(3, dtype=torch.float64)).view(3, 1, 1)
    same(decayed_attention(q, k, v, g, chunk=chunk), matrices(q / 2, k, v, lambda s, kv, t: g[:, :, t, None, None].exp() * s + kv))
    same(retention(q, k, v, chunk=chunk), matrices(q / 2, k, v, lambda s, kv, t: fixed * s + kv))
    same(gla(q, k, v, rates, chunk=chunk), matrices(q / 2, k, v, lambda s, kv, t: rates[:, :, t, :, None].exp() * s + kv))
    same(gla(q, k, v, rates, scale=1.0, chunk=chunk), 2 * gla(q, k, v, rates))


@CHUNKS
def test_linear_attention_is_a_weighted_mean(qkv, chunk):
    q, k, v, _ = qkv
    fq, fk = elu(q) + 1, elu(k) + 1
    sums = matrices(fq, fk, v, lambda s, kv, t: s + kv)
    counts = matrices(fq, fk, torch.ones_like(v[..., :1]), lambda s, kv, t: s + kv)
    same(linear_attention(q, k, v, chunk=chunk), sums / (counts + 1e-6))
    same(linear_attention(q, k, v, "identity", False, scale=0.5, chunk=chunk), matrices(q / 2, k, v, lambda s, kv, t: s + kv))


@CHUNKS
def test_delta_rules_write_what_is_missing(qkv, chunk):
    q, k, v, make = qkv
    k, beta, g = normalize(k, dim=-1), torch.sigmoid(make(2, 3, T)), logsigmoid(make(2, 3, T))

    def write(decay):
        def update(s, _, t):
            s = decay[:, :, t, None, None] * s
            key = k[:, :, t].unsqueeze(3)
            return s + beta[:, :, t, None, None] * key * (v[:, :, t].unsqueeze(2) - (s * key).sum(2, keepdim=True))

        return update

    same(delta_rule(q, k, v, beta, chunk=chunk), matrices(q / 2, k, v, write(torch.ones_like(g))))
    same(gated_delta_rule(q, k, v, beta, g, chunk=chunk), matrices(q / 2, k, v, write(g.exp())))
    one = torch.ones_like(beta)
    same(delta_rule(k, k, v, one, scale=1.0, chunk=chunk), v)  # a key that has just been written reads back its value


@CHUNKS
def test_rwkv_gives_the_own_token_a_bonus(qkv, chunk):
    r, k, v, make = qkv
    w, u, decay = logsigmoid(make(2, 3, T, 4)), make(3, 4), make(3, 4)

    def slow(rates):
        memory, out = torch.zeros(2, 3, 4, 5, dtype=torch.float64), []
        for t in range(T):
            kv = k[:, :, t].unsqueeze(3) * v[:, :, t].unsqueeze(2)
            out.append(r[:, :, t].unsqueeze(2) @ (memory + u.unsqueeze(2) * kv))
            memory = rates[:, :, t].unsqueeze(3) * memory + kv
        return torch.cat(out, 2)

    same(rwkv6_wkv(r, k, v, w, u, chunk), slow(w.exp()))
    same(rwkv5_wkv(r, k, v, decay, u, chunk), slow((-decay.exp()).exp().unsqueeze(1).expand(2, 3, T, 4)))


@CHUNKS
def test_rwkv4_is_a_weighted_mean_that_never_overflows(chunk):
    make = draws()
    k, v, decay, bonus = make(2, T, 3), make(2, T, 3), make(3), make(3)
    y = rwkv4_wkv(k, v, decay, bonus, chunk)
    for t in range(T):
        age = torch.arange(t - 1, -1, -1, dtype=torch.float64).view(1, -1, 1)
        weights = torch.cat([(k[:, :t] - age * decay.exp()).exp(), (k[:, t : t + 1] + bonus).exp()], 1)
        same(y[:, t], (weights * v[:, : t + 1]).sum(1) / weights.sum(1))
    assert torch.isfinite(rwkv4_wkv(1000 * k, v, decay, bonus, chunk)).all()


def plain_mlstm(q, k, v, i, f, eps=1e-6):
    """The stabilised recurrence, m_0 = 0."""
    batch, heads, length, width = q.shape
    c, n, m = q.new_zeros(batch, heads, width, v.shape[3]), q.new_zeros(batch, heads, width), q.new_zeros(batch, heads)
    out = []
    for t in range(length):
        log_f = logsigmoid(f[:, :, t])
        new = torch.maximum(log_f + m, i[:, :, t])
        keep, take, m = (log_f + m - new).exp()[..., None], (i[:, :, t] - new).exp()[..., None], new
        key = k[:, :, t] * width**-0.5
        c = keep[..., None] * c + (take * key).unsqueeze(3) * v[:, :, t].unsqueeze(2)
        n = keep * n + take * key
        above = (q[:, :, t].unsqueeze(2) @ c).squeeze(2)
        below = torch.maximum((q[:, :, t] * n).sum(-1).abs(), (-m).exp()) + eps
        out.append(above / below.unsqueeze(-1))
    return torch.stack(out, 2)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-5), (torch.float64, 1e-10)])
def test_forms_of_the_mlstm_agree(dtype, tolerance):
    make = draws(3, dtype)
    q, k, v = (make(2, 4, 128, 16) for _ in range(3))
    i, f = 0.1 * make(2, 4, 128), torch.linspace(3, 6, 4, dtype=dtype).view(1, 4, 1) + 0.1 * make(2, 4, 128)  # the gates of a fresh layer
    forms = [mlstm(q, k, v, i, f, form) for form in ("parallel", "chunkwise", "recurrent")]
    forms += [mlstm(q, k, v, i, f, chunk=48), plain_mlstm(q, k, v, i, f)]
    for other in forms[1:]:
        torch.testing.assert_close(other, forms[0], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("form", ["parallel", "chunkwise", "recurrent"])
def test_mlstm_is_its_recurrence_also_at_extreme_gates(qkv, form):
    q, k, v, make = qkv
    i, f = 40 * make(2, 3, T), 40 * make(2, 3, T)
    same(mlstm(q, k, v, i, f, form, 4), plain_mlstm(q, k, v, i, f))
    leaves = [t.requires_grad_() for t in (q, k, v, i, f)]
    mlstm(*leaves, form, 4).sum().backward()
    assert all(torch.isfinite(t.grad).all() for t in leaves)


def test_slstm_is_its_recurrence():
    make = draws()
    heads, d = 2, 6
    i, f, z, o = (2 * make(2, T, d) for _ in range(4))
    recurrent, bias = make(heads, 4 * 3, 3), make(4 * d)
    y = c = n = torch.zeros(2, d, dtype=torch.float64)
    m = None
    out = []
    for t in range(T):
        back = torch.einsum("bhk,hgok->bgho", y.view(2, heads, 3), recurrent.view(heads, 4, 3, 3)).reshape(2, 4, d)
        gi, gf, gz, go = (torch.stack([i, f, z, o], 1)[:, :, t] + back + bias.view(4, d)).unbind(1)
        new = gi if m is None else torch.maximum(gi, logsigmoid(gf) + m)
        keep = torch.zeros_like(gi) if m is None else (logsigmoid(gf) + m - new).exp()
        c, n, m = keep * c + (gi - new).exp() * gz.tanh(), keep * n + (gi - new).exp(), new
        y = torch.sigmoid(go) * c / n
        out.append(y)
    same(slstm_cell(i, f, z, o, recurrent, bias), torch.stack(out, 1))
    assert torch.isfinite(slstm_cell(i - 500, f, z, o, recurrent, bias)).all()


@pytest.mark.parametrize("bias", [True, False])
def test_lstm_and_gru_are_torch_s(bias):
    torch.manual_seed(0)
    x = torch.randn(2, T, 4)
    for module, brick in ((torch.nn.LSTM(4, 5, bias=bias, batch_first=True), lstm), (torch.nn.GRU(4, 5, bias=bias, batch_first=True), gru)):
        weights = {name.removesuffix("_l0"): w for name, w in module.named_parameters()}
        torch.testing.assert_close(brick(x, **weights), module(x)[0])
        assert brick(x[:, :0], **weights).shape == (2, 0, 5)


@pytest.mark.parametrize(("brick", "gates"), [(lstm, 4), (gru, 3)])
def test_recurrences_compile_for_any_length(brick, gates):
    load()
    make = draws()
    weights = [make(gates * 5, 4), make(gates * 5, 5), make(gates * 5), make(gates * 5)]
    compiled = torch.compile(lambda x: brick(x, *weights), backend="aot_eager", fullgraph=True, dynamic=True)
    for length in (3, 7):
        x = make(2, length, 4).requires_grad_()
        same(compiled(x), brick(x, *weights))
        found, wanted = (torch.autograd.grad(g(x).square().sum(), [x])[0] for g in (compiled, lambda x: brick(x, *weights)))
        same(found, wanted)

    class Net(torch.nn.Module):
        def forward(self, x):
            return brick(x, *weights)

    program = torch.export.export(Net(), (make(2, 7, 4),), dynamic_shapes={"x": {1: torch.export.Dim("T", min=2)}})
    x = make(2, 12, 4)
    same(program.module()(x), brick(x, *weights))


def test_linear_recurrence_and_rg_lru():
    make = draws()
    x, a = make(2, T, 3), torch.sigmoid(make(2, T, 3))
    h, out = torch.zeros(2, 3, dtype=torch.float64), []
    for t in range(T):
        h = a[:, t] * h + x[:, t]
        out.append(h)
    same(linear_recurrence(x, a), torch.stack(out, 1))
    gate_x, gate_a, weight = make(2, T, 3), make(2, T, 3), make(3)
    decay = (-8 * torch.sigmoid(gate_a) * softplus(weight)).exp()
    scale = (1 - decay**2).sqrt()
    scale[:, 0] = 1
    same(rg_lru(x, gate_x, gate_a, weight), linear_recurrence(scale * torch.sigmoid(gate_x) * x, decay))
    assert linear_recurrence(x[:, :0], a[:, :0]).shape == (2, 0, 3)


@pytest.mark.parametrize("length", [1, 11, 130])
def test_selective_scan_is_its_recurrence(length):
    make = draws()
    x, dt, b, c = make(2, length, 6), make(2, length, 6), make(2, length, 3), make(2, length, 3)
    a_log, d = make(6, 3), make(6)
    h, out = torch.zeros(2, 6, 3, dtype=torch.float64), []
    for t in range(length):
        step = softplus(dt[:, t]).unsqueeze(2)
        h = (-step * a_log.exp()).exp() * h + step * x[:, t].unsqueeze(2) * b[:, t].unsqueeze(1)
        out.append((h * c[:, t].unsqueeze(1)).sum(2) + d * x[:, t])
    same(selective_scan(x, dt, b, c, a_log, d), torch.stack(out, 1))
    same(selective_scan(x, softplus(dt), b, c, a_log, d, softplus=False), torch.stack(out, 1))


@CHUNKS
def test_ssd_is_its_recurrence_and_mamba_with_one_rate_per_head(chunk):
    make = draws()
    x, dt, b, c = make(2, T, 4, 3), make(2, T, 4), make(2, T, 2, 5), make(2, T, 2, 5)
    a_log, d, bias = make(4), make(4), make(4)
    step = softplus(dt + bias).clamp(0.1, 0.9)
    y = ssd(x, dt, b, c, a_log, d, bias, dt_min=0.1, dt_max=0.9, chunk=chunk)
    for head in range(4):
        rates = a_log[head].expand(3, 5)
        group = head // 2
        wide = step[:, :, head : head + 1].expand(2, T, 3)
        same(y[:, :, head], selective_scan(x[:, :, head], wide, b[:, :, group], c[:, :, group], rates, d[head].expand(3), softplus=False))


def test_convolutions_over_tokens():
    make = draws()
    x, weight, bias = make(2, T, 4), make(6, 2, 3), make(6)
    y = causal_conv1d(x, weight, bias, dilation=2, groups=2)
    for t in range(T):
        past = [x[:, t - 2 * j] if t >= 2 * j else torch.zeros(2, 4, dtype=torch.float64) for j in (2, 1, 0)]
        for out in range(6):
            part = slice(0, 2) if out < 3 else slice(2, 4)
            same(y[:, t, out], bias[out] + sum((p[:, part] * weight[out, :, j]).sum(1) for j, p in enumerate(past)))
    own = make(4, 1, 3)
    same(depthwise_conv1d(x, own), causal_conv1d(x, own, groups=4))
    kernel = own[:, 0].flip(1).T
    same(fft_conv(x, kernel), depthwise_conv1d(x, own))
    same(fft_conv(x, torch.cat([kernel, torch.zeros(T, 4, dtype=torch.float64), make(5, 4)])[: T + 5]), depthwise_conv1d(x, own))
