"""A few bricks and graphs of the backends' tests own, in a registry apart from the catalogue."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from graphir.bricks.build import Builder
from graphir.bricks.declare import Misfit, Registry, StateRule, brick
from graphir.ir.dims import symbol
from graphir.ir.graph import Graph, Value, Where
from graphir.ir.types import Type

BRICKS = Registry()
B, T = symbol("B"), symbol("T")


def _norm(x: torch.Tensor, eps: float) -> torch.Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)


@brick(
    "linear(out, bias = true)(x: [*S, i]) -> [*S, out]",
    weights="weight: [out, i] = he; bias: [out] = zeros if bias",
    inline=True,
    registry=BRICKS,
)
def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    return F.linear(x, weight, bias)


@brick("embedding(vocab, d)(tokens: int[*S]) -> [*S, d]", weights="weight: [vocab, d] = normal(1.0)", inline=True, registry=BRICKS)
def embedding(tokens: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return F.embedding(tokens, weight)


@brick("unembed(vocab)(x: [*S, d]) -> [*S, vocab]", weights="weight: [vocab, d]", inline=True, registry=BRICKS)
def unembed(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return F.linear(x, weight)


@brick("rmsnorm(eps = 1e-6)(x: [*S, d]) -> [*S, d]", weights="weight: [d] = ones", registry=BRICKS)
def rmsnorm(x: torch.Tensor, weight: torch.Tensor, eps: float = 1e-6) -> torch.Tensor:
    return _norm(x, eps) * weight


@brick("silu(x: [*S]) -> [*S]", inline=True, registry=BRICKS)
def silu(x: torch.Tensor) -> torch.Tensor:
    return F.silu(x)


@brick("add(x: [*S], y: [*S]) -> [*S]", inline=True, registry=BRICKS)
def add(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return x + y


@brick("scale(factor = 1.0, shift = none)(x: [*S], by: [*S]) -> [*S]", optional=("by",), registry=BRICKS)
def scale(x: torch.Tensor, by: torch.Tensor | None = None, factor: float = 1.0) -> torch.Tensor:
    return x * factor if by is None else x * factor * by


@brick("float(x: int[*S]) -> float[*S]", registry=BRICKS)
def to_float(x: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    return x.to(dtype or torch.get_default_dtype())


@brick("ramp(n)() -> int[n]", registry=BRICKS)
def ramp(n: int, device: torch.device | None = None) -> torch.Tensor:
    return torch.arange(n, device=device)


@brick("head(n)(x: [B, T, *S]) -> [B, n, *S]", inline=True, registry=BRICKS)
def head(x: torch.Tensor, n: int) -> torch.Tensor:
    return x.narrow(1, 0, n)


@brick("dropout(p = 0.5)(x: [*S]) -> [*S]", random=True, registry=BRICKS)
def dropout(x: torch.Tensor, p: float = 0.5, training: bool = False) -> torch.Tensor:
    return F.dropout(x, p, training)


@brick("reversed(x: [B, T, d]) -> [B, T, d]", causal=False, registry=BRICKS)
def reversed_(x: torch.Tensor) -> torch.Tensor:
    return x.flip(1)


@brick("log(x: [*S]) -> [*S]", inline=True, registry=BRICKS)
def log(x: torch.Tensor) -> torch.Tensor:
    return x.log()


@brick("pairs(x: [*S]) -> (high: [*S], low: [*S])", registry=BRICKS)
def pairs(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x + 1, x - 1


def _split(types, names, facts):
    *rest, last = types[0].shape
    if last % names["parts"]:
        raise Misfit("E0401", "does not divide")
    return [Type("float", (*rest, last // names["parts"]))] * names["parts"]


@brick("split(parts)(x: [*S]) -> [*R]", shape=_split, inline=True, registry=BRICKS)
def split(x: torch.Tensor, parts: int) -> tuple[torch.Tensor, ...]:
    return x.chunk(parts, -1)


def _branches(types, names, facts):
    return [types[0]] * len(names["branches"])


@brick("fork(branches)(x: any[*S]) -> any[*S]", kind="fork", shape=_branches, registry=BRICKS)
def fork(x: torch.Tensor, branches: tuple[str, ...]) -> tuple[torch.Tensor, ...]:
    return (x,) * len(branches)


def _sum_step(state, x):
    y = state["total"].unsqueeze(1) + x.cumsum(1)
    return y, {"total": y[:, -1]}


@brick(
    "running_sum(x: [B, T, d]) -> [B, T, d]",
    state=StateRule(lambda types, names: {"total": ((types[0].shape[0], types[0].shape[2]), "float")}, _sum_step),
    registry=BRICKS,
)
def running_sum(x: torch.Tensor) -> torch.Tensor:
    return x.cumsum(1)


class Made(Builder):
    """A builder over the private bricks, with short ways to say the usual."""

    def __init__(self, **inputs: Type):
        super().__init__(registry=BRICKS)
        self.inputs = tuple((n, Value(t)) for n, t in inputs.items())

    def __getitem__(self, name: str) -> Value:
        return dict(self.inputs)[name]

    def put(self, op: str, *inputs: Value, path: str = "", frames: tuple[str, ...] = (), shared: str = "", **attrs) -> Value:
        """One node's first result. `shared` names the scope whose weights it uses instead of its own."""
        node = self.all(op, *inputs, path=path, frames=frames, shared=shared, **attrs)
        return node[0]

    def all(self, op, *inputs, path="", frames=(), shared="", **attrs):
        where = Where(path or f"{op}{len(self.nodes)}", frames)
        if not shared:
            return self.new(op, inputs, attrs, where).outputs
        node = self.new(op, inputs, attrs, Where(shared, frames))
        self.nodes[-1] = type(node)(op, node.inputs, node.attrs, node.weights, where, [v.type for v in node.outputs])
        return self.nodes[-1].outputs

    def graph(self, name: str = "Model", aux=(), requires=(), **outputs: Value) -> Graph:
        return Graph(name, self.inputs, tuple(self.nodes), tuple(outputs.items()), self.weights, tuple(aux), tuple(requires))


def language_model(layers: int = 3, d: int = 8, vocab: int = 11) -> Graph:
    """Token embedding, pre-norm gated feed-forward blocks, tied head."""
    made = Made(tokens=Type("int", (B, T)))
    x = made.put("embedding", made["tokens"], path="emb", vocab=vocab, d=d)
    for i in range(layers):
        at, frames = f"layers.{i}", ("[]", "Layer", "Gated", "op")
        h = made.put("rmsnorm", x, path=f"{at}.norm", frames=frames)
        gate = made.put("linear", h, path=f"{at}.ffn.gate", frames=frames, out=2 * d)
        up = made.put("linear", h, path=f"{at}.ffn.up", frames=frames, out=2 * d)
        h = made.put("silu", gate, path=f"{at}.ffn.silu", frames=frames)
        h = made.put("add", h, up, path=f"{at}.ffn.sum", frames=frames)
        h = made.put("linear", h, path=f"{at}.ffn.down", frames=frames, out=d, bias=False)
        x = made.put("add", x, h, path=f"{at}.add", frames=frames)
    x = made.put("rmsnorm", x, path="norm")
    return made.graph("Tied", logits=made.put("unembed", x, path="head", shared="emb", vocab=vocab))
