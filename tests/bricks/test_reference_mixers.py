"""The mixers of reference models, put together by hand over the primitives: their taps in, their taps out (`tests/parity`)."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import gelu, layer_norm, linear, rms_norm, silu

from graphir.bricks.attention import sdpa
from graphir.bricks.conv import depthwise_conv1d
from graphir.bricks.mlstm import mlstm
from graphir.bricks.positions import relative_bias, rope
from graphir.bricks.recurrent import rg_lru, slstm_cell
from graphir.bricks.ssm import selective_scan, ssd

PARITY = Path(__file__).parents[1] / "parity"


class Reference:
    """Weights and taps of one model, by prefix."""

    def __init__(self, name: str):
        self.weights = load_file(PARITY / name / "weights.safetensors")
        self.taps = load_file(PARITY / name / "io.safetensors")
        self.meta = json.loads((PARITY / name / "meta.json").read_text())
        self.eps = 1e-5 if "xlstm_" in name and name != "xlstm_hf" else 2e-3

    def close(self, y: torch.Tensor, tap: str) -> None:
        torch.testing.assert_close(y, self.taps[f"hidden.{tap}"], rtol=1e-5, atol=self.meta["suggested_atol"])


@cache
def reference(name: str) -> Reference:
    return Reference(name)


def split_heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def headwise(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Block-diagonal linear map, weight [blocks, out, in]."""
    return torch.einsum("btgi,goi->btgo", x.unflatten(-1, (weight.shape[0], -1)), weight).flatten(2)


@pytest.mark.parametrize("layer", range(3))
def test_mamba(layer):
    m, p = reference("mamba"), f"backbone.layers.{layer}."
    w = {k.removeprefix(p + "mixer."): v for k, v in m.weights.items() if k.startswith(p + "mixer.")}
    u, z = linear(m.taps[f"hidden.{p}norm"], w["in_proj.weight"]).chunk(2, -1)
    u = silu(depthwise_conv1d(u, w["conv1d.weight"], w["conv1d.bias"]))
    dt, b, c = linear(u, w["x_proj.weight"]).split([4, 8, 8], -1)
    y = selective_scan(u, linear(dt, w["dt_proj.weight"], w["dt_proj.bias"]), b, c, w["A_log"], w["D"])
    m.close(linear(y * silu(z), w["out_proj.weight"]), p + "mixer")


@pytest.mark.parametrize("chunk", [64, 8, 1])
def test_mamba2(chunk):
    m, p = reference("mamba2"), "backbone.layers.1."
    w = {k.removeprefix(p + "mixer."): v for k, v in m.weights.items() if k.startswith(p + "mixer.")}
    z, xbc, dt = linear(m.taps[f"hidden.{p}norm"], w["in_proj.weight"]).split([64, 96, 4], -1)
    x, b, c = silu(depthwise_conv1d(xbc, w["conv1d.weight"], w["conv1d.bias"])).split([64, 16, 16], -1)
    heads = lambda t, n: t.unflatten(-1, (n, -1))  # noqa: E731
    y = ssd(heads(x, 4), dt, heads(b, 2), heads(c, 2), w["A_log"], w["D"], w["dt_bias"], chunk=chunk).flatten(2) * silu(z)
    y = rms_norm(heads(y, 2), (32,), None, m.eps).flatten(2) * w["norm.weight"]
    m.close(linear(y, w["out_proj.weight"]), p + "mixer")


@pytest.mark.parametrize(("name", "block"), [("xlstm_mlstm", 0), ("xlstm_mlstm", 2), ("xlstm_7_1", 5)])
@pytest.mark.parametrize("form", ["parallel", "chunkwise", "recurrent"])
def test_xlstm_mlstm(name, block, form):
    m, p = reference(name), f"xlstm_block_stack.blocks.{block}."
    w = {k.removeprefix(p + "xlstm."): v for k, v in m.weights.items() if k.startswith(p + "xlstm.")}
    u, z = linear(m.taps[f"hidden.{p}xlstm_norm"], w["proj_up.weight"]).chunk(2, -1)
    c = silu(depthwise_conv1d(u, w["conv1d.conv.weight"], w["conv1d.conv.bias"]))
    q, k, v = (headwise(t, w[f"{r}_proj.weight"]) for t, r in ((c, "q"), (c, "k"), (u, "v")))
    gates = (linear(torch.cat([q, k, v], -1), w[f"mlstm_cell.{g}.weight"], w[f"mlstm_cell.{g}.bias"]) for g in ("igate", "fgate"))
    i, f = (g.transpose(1, 2) for g in gates)
    h = mlstm(*(split_heads(t, 4) for t in (q, k, v)), i, f, form=form, chunk=4)
    h = layer_norm(h, (16,), None, None, m.eps).transpose(1, 2).flatten(2) * (1 + w["mlstm_cell.outnorm.weight"])
    m.close(linear((h + w["learnable_skip"] * c) * silu(z), w["proj_down.weight"]), p + "xlstm")


def test_slstm():
    m, p = reference("xlstm_7_1"), "xlstm_block_stack.blocks.1."
    w = {k.removeprefix(p + "xlstm."): v for k, v in m.weights.items() if k.startswith(p + "xlstm.")}
    x = m.taps[f"hidden.{p}xlstm_norm"]
    c = silu(depthwise_conv1d(x, w["conv1d.conv.weight"], w["conv1d.conv.bias"]))
    # the package hands its `fgate` to the cell as the input gate and its `igate` as the forget gate
    i, f, z, o = (headwise(t, w[f"{g}.weight"]) for t, g in ((c, "fgate"), (c, "igate"), (x, "zgate"), (x, "ogate")))
    y = slstm_cell(i, f, z, o, w["slstm_cell._recurrent_kernel_"], w["slstm_cell._bias_"])
    y = layer_norm(y.unflatten(-1, (4, 8)), (8,), None, None, m.eps).flatten(2) * (1 + w["group_norm.weight"])
    m.close(y, p + "xlstm")
    gate, up = linear(m.taps[f"hidden.{p}ffn_norm"], m.weights[p + "ffn.proj_up.weight"]).chunk(2, -1)
    m.close(linear(gelu(gate) * up, m.weights[p + "ffn.proj_down.weight"]), p + "ffn")


@pytest.mark.parametrize(("form", "chunk"), [("parallel", 64), ("chunkwise", 8), ("recurrent", 64)])
def test_xlstm_of_the_7b_form(form, chunk):
    m, p = reference("xlstm_hf"), "backbone.blocks.1."
    w = {k.removeprefix(p + "mlstm_layer."): v for k, v in m.weights.items() if k.startswith(p + "mlstm_layer.")}
    x = m.taps[f"hidden.{p}norm_mlstm"]
    q, k, v = (split_heads(linear(x, w[f"{r}.weight"]), 4) for r in "qkv")
    i, f = (15 * torch.tanh(linear(x, w[f"{g}_preact.weight"], w[f"{g}_preact.bias"]) / 15) for g in ("igate", "fgate"))
    h = mlstm(q, k, v, i.transpose(1, 2), f.transpose(1, 2), form=form, chunk=chunk)
    h = layer_norm(h, (32,), None, None, m.eps).transpose(1, 2).flatten(2) * w["multihead_norm.weight"]
    m.close(linear(h * torch.sigmoid(linear(x, w["ogate_preact.weight"])), w["out_proj.weight"]), p + "mlstm_layer")


@pytest.mark.parametrize("layer", [0, 1, 3])
def test_recurrent_gemma_recurrent(layer):
    m, p = reference("recurrent_gemma"), f"model.layers.{layer}."
    w = {k.removeprefix(p + "temporal_block."): v for k, v in m.weights.items() if k.startswith(p + "temporal_block.")}
    x = m.taps[f"hidden.{p}temporal_pre_norm"]
    u = depthwise_conv1d(linear(x, w["linear_x.weight"], w["linear_x.bias"]), w["conv_1d.weight"], w["conv_1d.bias"])
    gates = [
        (torch.einsum("bthi,hio->btho", u.unflatten(-1, (4, 16)), w[f"rg_lru.{g}_gate_weight"]) + w[f"rg_lru.{g}_gate_bias"]).flatten(2)
        for g in ("input", "recurrent")
    ]
    h = rg_lru(u, *gates, w["rg_lru.recurrent_param"])
    y = gelu(linear(x, w["linear_y.weight"], w["linear_y.bias"]), approximate="tanh")
    m.close(linear(h * y, w["linear_out.weight"], w["linear_out.bias"]), p + "temporal_block")


def test_recurrent_gemma_attention():
    m, p = reference("recurrent_gemma"), "model.layers.2."
    w = {k.removeprefix(p + "temporal_block."): v for k, v in m.weights.items() if k.startswith(p + "temporal_block.")}
    x = m.taps[f"hidden.{p}temporal_pre_norm"]
    q, k, v = (split_heads(linear(x, w[f"{r}_proj.weight"]), n) for r, n in (("q", 4), ("k", 1), ("v", 1)))
    q, k = (rope(t, theta=500.0, dims=8) for t in (q, k))
    y = sdpa(q, k, v, causal=True, window=m.meta["config"]["attention_window_size"])
    m.close(linear(y.transpose(1, 2).flatten(2), w["o_proj.weight"], w["o_proj.bias"]), p + "temporal_block")


@pytest.mark.parametrize("layer", [0, 1])
def test_gemma2_attention_with_soft_cap_and_window(layer):
    m, p = reference("gemma2"), f"model.layers.{layer}."
    config = m.meta["config"]
    kind = config["layer_types"][layer]
    q, k, v = (
        split_heads(linear(m.taps[f"hidden.{p}input_layernorm"], m.weights[f"{p}self_attn.{r}_proj.weight"]), config[n])
        for r, n in (("q", "num_attention_heads"), ("k", "num_key_value_heads"), ("v", "num_key_value_heads"))
    )
    theta = config["rope_parameters"].get("rope_theta") or config["rope_parameters"][kind]["rope_theta"]
    y = sdpa(
        rope(q, theta=theta), rope(k, theta=theta), v, causal=True, scale=config["query_pre_attn_scalar"] ** -0.5,
        window=config["sliding_window"] if kind == "sliding_attention" else None, softcap=config["attn_logit_softcapping"],
    )
    m.close(linear(y.transpose(1, 2).flatten(2), m.weights[f"{p}self_attn.o_proj.weight"]), p + "self_attn")


def test_mixtral_window():
    m, p = reference("mixtral"), "model.layers.0."
    config = m.meta["config"]
    q, k, v = (
        split_heads(linear(m.taps[f"hidden.{p}input_layernorm"], m.weights[f"{p}self_attn.{r}_proj.weight"]), config[n])
        for r, n in (("q", "num_attention_heads"), ("k", "num_key_value_heads"), ("v", "num_key_value_heads"))
    )
    theta = config["rope_parameters"]["rope_theta"]
    y = sdpa(rope(q, theta=theta), rope(k, theta=theta), v, causal=True, window=config["sliding_window"])
    m.close(linear(y.transpose(1, 2).flatten(2), m.weights[f"{p}self_attn.o_proj.weight"]), p + "self_attn")


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_t5_relative_bias(stack):
    m, p = reference("t5"), f"{stack}.block.0.layer.0."
    config = m.meta["config"]
    x = m.taps[f"hidden.{p}layer_norm"]
    a = p + "SelfAttention."
    q, k, v = (split_heads(linear(x, m.weights[f"{a}{r}.weight"]), config["num_heads"]) for r in "qkv")
    bias = relative_bias(
        x, weight=m.weights[a + "relative_attention_bias.weight"], max_distance=config["relative_attention_max_distance"],
        bidirectional=stack == "encoder",
    )
    padding = m.taps["in.attention_mask"].bool() if stack == "encoder" and "in.attention_mask" in m.taps else None
    y = sdpa(q, k, v, mask=padding, bias=bias, scale=1.0, causal=stack == "decoder")
    y = linear(y.transpose(1, 2).flatten(2), m.weights[a + "o.weight"])
    m.close(y, a.removesuffix("."))
