"""Random hybrid models as `.arch` text: mixers of every family in residual layers, forks and filters, and shared bricks."""

from __future__ import annotations

import random

WIDTH = 16
CHUNK = 4
MIXERS = (
    "Attention(heads = 2)",
    "Attention(heads = 4, kv = 2, qk_norm = true)",
    "Attention(heads = 2, theta = none, alibi = true)",
    "Attention(heads = 2, softcap = 5.0, sink = true)",
    "Attention(heads = 2, chunk = 3)",
    "SlidingAttention(heads = 2, window = 3)",
    "SlidingAttention(heads = 4, window = 30, kv = 1)",
    "LatentAttention(heads = 2, kv_rank = 8, nope = 4, rot = 4)",
    f"mLSTM(heads = 4, chunk = {CHUNK})",
    f"mLSTM7B(heads = 2, chunk = {CHUNK})",
    "sLSTM(heads = 4)",
    "RGLRU(heads = 2)",
    "Griffin(heads = 2, width = 24)",
    "Mamba(state = 4)",
    f"Mamba2(state = 8, head_dim = 8, groups = 2, chunk = {CHUNK})",
    f"LinearAttention(heads = 2, chunk = {CHUNK})",
    f"GLA(heads = 2, chunk = {CHUNK})",
    f"RetNet(heads = 2, chunk = {CHUNK})",
    f"DeltaNet(heads = 2, chunk = {CHUNK})",
    f"GatedDeltaNet(heads = 2, chunk = {CHUNK})",
    f"RWKV4(chunk = {CHUNK})",
    f"RWKV5(heads = 2, chunk = {CHUNK})",
    f"RWKV6(heads = 2, mix_rank = 4, decay_rank = 4, chunk = {CHUNK})",
    "RWKVChannel",
    "Hyena(length = 16)",
    "ShortConv(kernel = 3)",
    "TokenMix",
    "LearnedPositions(size = 16)",
    "SinusoidalPositions",
    "lstm(16)",
    "gru(16)",
)
PLAIN = ("SwiGLU(hidden = 24)", "MLP(32, relu)", "id")
JOINS = ("add", "mean", "gate", "concat -> linear(16)", "blend(learnable = true)")
ROUTERS = ("softmax", "sparsemax", "softmax, keep = 1", "sigmoid")


def program(seed: int) -> str:
    """The text of one model M(x: float[B, T, 16]) -> float[B, T, 16]."""
    draw = random.Random(seed)
    shared = [f"s{place}" for place in range(draw.randint(1, 2))]
    lines = [f"  shared {name} = {draw.choice(MIXERS)}" for name in shared]
    layers = [_layer(draw, shared) for _ in range(draw.randint(2, 4))] + [f"residual(rmsnorm -> {name})" for name in shared]
    draw.shuffle(layers)
    body = "\n    -> ".join([*layers, "rmsnorm"])
    return "\n".join(["model M(x: float[B, T, 16]) -> float[B, T, 16] {", *lines, f"  return x\n    -> {body}", "}"])


def _layer(draw: random.Random, shared: list[str]) -> str:
    kind = draw.choice(("mixer", "fork", "filter", "plain", "repeat"))
    if kind == "mixer":
        return f"residual(rmsnorm -> {_brick(draw, shared)})"
    if kind == "fork":
        return f"residual(rmsnorm -> fork {{ a: {_brick(draw, shared)}  b: {_brick(draw, shared)} }} -> {draw.choice(JOINS)})"
    if kind == "filter":
        branches = f"a: {_brick(draw, shared)}  b: {_brick(draw, shared)}  c: {draw.choice(PLAIN)}"
        return f"residual(rmsnorm -> filter(linear(3) -> {draw.choice(ROUTERS)}) {{ {branches} }})"
    if kind == "plain":
        return f"residual(rmsnorm -> {draw.choice(PLAIN)})"
    return f"([residual(rmsnorm -> {_brick(draw, shared)})] * 2)"


def _brick(draw: random.Random, shared: list[str]) -> str:
    return draw.choice(shared) if draw.random() < 0.3 else draw.choice(MIXERS)
