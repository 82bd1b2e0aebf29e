"""The mixtures of the standard library against formulas written out here, token by token where that is plainest."""

from __future__ import annotations

import copy
import pickle
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import graphir
from graphir.backends.interpreter import Interpreter
from graphir.backends.weights import initialise

D = 6
Weights = dict[str, torch.Tensor]


def load(body: str, inputs: str = "", **options) -> graphir.Graph:
    return graphir.load(f"model M(d = {D})(x: float[B, T, d]{inputs}) -> float[B, T, d] {{ return {body} }}", **options)


def tensors(graph: graphir.Graph, seed: int = 0) -> Weights:
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(w.shape, generator=generator, dtype=torch.float64) * 0.7 for n, w in graph.weights.items()}


def tokens(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, D, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


def run(
    graph: graphir.Graph, weights: Weights, x: torch.Tensor, training: bool = False, **more: torch.Tensor
) -> tuple[torch.Tensor, Weights]:
    outputs, aux = Interpreter(graph, weights, training=training).run({"x": x, **more}, aux=True)
    return outputs["output"], aux


def mlp(w: Weights, path: str, x: torch.Tensor, act=F.gelu) -> torch.Tensor:
    return F.linear(act(F.linear(x, w[f"{path}.up.weight"], w[f"{path}.up.bias"])), w[f"{path}.down.weight"], w[f"{path}.down.bias"])


def swiglu(w: Weights, path: str, x: torch.Tensor) -> torch.Tensor:
    h = F.silu(F.linear(x, w[f"{path}.gate.weight"])) * F.linear(x, w[f"{path}.up.weight"])
    return F.linear(h, w[f"{path}.down.weight"])


def router(w: Weights, path: str, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, w[f"{path}.router.linear.weight"])


def by_token(x: torch.Tensor, mix) -> torch.Tensor:
    return torch.stack([torch.stack([mix(t) for t in row]) for row in x])


def test_mixtral_order():
    graph = load("x -> SparseMoE(SwiGLU(8), 4, 2) as m")
    w, x = tensors(graph), tokens(2, 5)

    def mix(t):
        p = torch.softmax(router(w, "m.moe", t), -1)
        best = p.topk(2)
        return sum(v / best.values.sum() * swiglu(w, f"m.moe.branches.{i}", t) for v, i in zip(best.values, best.indices.tolist()))

    torch.testing.assert_close(run(graph, w, x)[0], by_token(x, mix))


def test_shazeer_order_starts_even():
    graph = load("x -> ShazeerMoE(MLP(8), 4, 2) as m")
    w, x = tensors(graph), tokens(2, 5)
    assert not initialise(graph, 0)["m.moe.router.linear.weight"].any()
    assert not initialise(graph, 0)["m.moe.learned_noise.weight"].any()

    def mix(t):
        best = router(w, "m.moe", t).topk(2)
        return sum(v * mlp(w, f"m.moe.branches.{i}", t) for v, i in zip(torch.softmax(best.values, -1), best.indices.tolist()))

    y, aux = run(graph, w, x)
    torch.testing.assert_close(y, by_token(x, mix))
    assert set(aux) == {"m.moe.weights", "m.moe.importance"}


def test_switch_drops_what_exceeds_capacity():
    graph = load("x -> SwitchMoE(MLP(8, relu), 2) as m")
    w, x = tensors(graph), tokens(3, 8)
    room, wanted, dropped = 5 * 8 // (4 * 2), torch.zeros_like(x), 0
    for b in range(3):
        taken = [0, 0]
        for t in range(8):
            p = torch.softmax(router(w, "m.moe", x[b, t]), -1)
            i = int(p.argmax())
            taken[i] += 1
            if taken[i] <= room:
                wanted[b, t] = p[i] * mlp(w, f"m.moe.branches.{i}", x[b, t], F.relu)
            dropped += taken[i] > room
    assert dropped
    y, aux = run(graph, w, x)
    torch.testing.assert_close(y, wanted)
    assert set(aux) == {f"m.moe.{n}" for n in ("weights", "balance", "z_loss")}
    layer = load("x -> residual(SwitchMoE(MLP(8, relu), 2) as m)")
    torch.testing.assert_close(run(layer, {n.replace("m.moe", "residual.m.moe"): v for n, v in w.items()}, x)[0], x + wanted)


def test_expert_choice():
    graph = load("x -> ExpertChoiceMoE(MLP(8), 3, 1.5) as m")
    w, x = tensors(graph), tokens(2, 6)
    p = torch.softmax(router(w, "m.moe", x), -1)
    wanted = torch.zeros_like(x)
    for b in range(2):
        for i in range(3):
            for t in p[b, :, i].topk(3).indices.tolist():  # 6 tokens * 1.5 / 3 experts
                wanted[b, t] += p[b, t, i] * mlp(w, f"m.moe.branches.{i}", x[b, t])
    torch.testing.assert_close(run(graph, w, x)[0], wanted)


def test_deepseek_moe():
    graph = load("x -> DeepSeekMoE(4, common = 2, routed = 6, keep = 3) as m")
    w, x = tensors(graph), tokens(2, 5)
    assert w["m.common.gate.weight"].shape == (8, D), "two common experts of 4 side by side"

    def mix(t):
        best = torch.softmax(router(w, "m.moe", t), -1).topk(3)
        return swiglu(w, "m.common", t) + sum(v * swiglu(w, f"m.moe.branches.{i}", t) for v, i in zip(best.values, best.indices.tolist()))

    torch.testing.assert_close(run(graph, w, x)[0], by_token(x, mix))
    halves = [{n: v for n, v in w.items()} for _ in range(2)]
    for half, rows in zip(halves, (slice(0, 4), slice(4, 8))):
        half |= {f"m.common.{n}.weight": w[f"m.common.{n}.weight"][rows] for n in ("gate", "up")}
        half["m.common.down.weight"] = w["m.common.down.weight"][:, rows]
    torch.testing.assert_close(swiglu(w, "m.common", x), sum(swiglu(h, "m.common", x) for h in halves), msg="summed, not averaged")


def test_deepseek_v3():
    graph = load("x -> DeepSeekV3MoE(4, routed = 8, keep = 3, groups = 4, keep_groups = 2, bias_update = 0.25) as m")
    w, x = tensors(graph), tokens(2, 5)
    bias = w["m.moe.choice.bias"].clone()
    chosen_by = torch.zeros(8, dtype=torch.float64)
    unlike = 0

    def mix(t):
        nonlocal unlike
        s = torch.sigmoid(router(w, "m.moe", t))
        wanted = (s + bias).tolist()
        groups = sorted(range(4), key=lambda g: -(wanted[2 * g] + wanted[2 * g + 1]))[:2]
        best = sorted([i for i in range(8) if i // 2 in groups], key=lambda i: -wanted[i])[:3]
        unlike += set(best) != set(s.topk(3).indices.tolist())
        chosen_by[best] += 1
        total = sum(s[i] for i in best)
        return swiglu(w, "m.common", t) + sum(2.5 * s[i] / total * swiglu(w, f"m.moe.branches.{i}", t) for i in best)

    wanted = by_token(x, mix)
    assert unlike, "bias and groups decide"
    torch.testing.assert_close(run(graph, w, x)[0], wanted)
    assert torch.equal(w["m.moe.choice.bias"], bias)
    torch.testing.assert_close(run(graph, w, x, training=True)[0], wanted)
    torch.testing.assert_close(w["m.moe.choice.bias"], bias + 0.25 * torch.sign(chosen_by.mean() - chosen_by))


def test_heterogeneous_experts_each_run_at_their_own_width():
    graph = load("x -> HeterogeneousMoE(heads = 2, hidden = 9, lstm_width = 3, conv_width = 5, attention_width = 4) as m")
    widths = {n.split(".")[2]: w.shape for n, w in graph.weights.items() if "stitch" in n and n.endswith("weight")}
    assert widths == {"lstm_stitch": (D, 3), "conv_stitch": (D, 5), "attention_stitch": (D, 4)}
    assert {n.op for n in graph.nodes} >= {"lstm", "causal_conv1d", "sdpa", "stitch", "filter"}
    w, x = tensors(graph), tokens(2, 7)
    full = run(graph, w, x)[0]
    for name in ("dense", "lstm", "conv", "attention"):
        cut = {n: 0 * v if n.startswith((f"m.moe.{name}.", f"m.moe.{name}_stitch")) else v for n, v in w.items()}
        assert (run(graph, cut, x)[0] - full).abs().max() > 1e-3, f"{name} does not take part"
    later = x.clone()
    later[:, 5:] += 1
    torch.testing.assert_close(run(graph, w, later)[0][:, :5], full[:, :5], msg="causal")
    sees = load("x -> HeterogeneousMoE(causal = false) as m")
    assert (run(sees, tensors(sees), later)[0] - run(sees, tensors(sees), x)[0])[:, :5].abs().max() > 1e-3


def test_conditional_experts():
    graph = load("(x, c) -> ConditionalMoE([[1, 1, 0], [0, 0, 1], [1, 0, 1]], MLP(8)) as m", ", c: int[B]")
    w, x = tensors(graph), tokens(4, 5)
    y, aux = run(graph, w, x, c=torch.tensor([0, 1, 2, 0]))
    allowed = torch.tensor([[1, 1, 0], [0, 0, 1], [1, 0, 1], [1, 1, 0]], dtype=torch.float64).unsqueeze(1)
    p = torch.softmax(router(w, "m.moe", x), -1) * allowed
    p = p / p.sum(-1, keepdim=True)
    torch.testing.assert_close(aux["m.moe.weights"], p)
    torch.testing.assert_close(y, sum(p[..., i : i + 1] * mlp(w, f"m.moe.branches.{i}", x) for i in range(3)))


def test_mad_keeps_every_expert():
    graph = load("x -> MadMoE(3, 1, inner = 4) as m")
    w, x = tensors(graph), tokens(2, 5)
    h = F.linear(x, w["m.up.weight"]) * F.gelu(F.linear(x, w["m.gate.weight"]), approximate="tanh")
    parts = F.linear(h, w["m.down.weight"]).unflatten(-1, (3, D))
    z = F.linear(x, w["m.router.weight"])
    p = torch.softmax(torch.where(z == z.amax(-1, keepdim=True), z, 0.0), -1)
    torch.testing.assert_close(run(graph, w, x)[0], (p.unsqueeze(-1) * parts).sum(-2))


def test_switch_head():
    graph = load("x -> SwitchHead(2, experts = 3, keep = 2, theta = none) as m")
    w, x = tensors(graph), tokens(2, 5)
    k = D // 2
    values = w["m.v.weight"].view(2, 3, k, D)  # head, expert
    out = w["m.o.weight"].view(D, 2, 3, k)
    queries, keys = (F.linear(x, w[f"m.{n}.weight"]).view(2, 5, 2, k) for n in "qk")

    def gate(name):
        s = torch.sigmoid(F.linear(x, w[f"m.{name}.linear.weight"]).view(2, 5, 2, 3))
        return s * (s >= s.topk(2).values[..., -1:])

    s, r = gate("source"), gate("goal")
    y = torch.zeros_like(x)
    for h in range(2):
        v = sum(s[:, :, h, e, None] * F.linear(x, values[h, e]) for e in range(3))
        z = F.scaled_dot_product_attention(queries[:, :, h], keys[:, :, h], v, is_causal=True)
        y += sum(r[:, :, h, e, None] * F.linear(z, out[:, h, e]) for e in range(3))
    torch.testing.assert_close(run(graph, w, x)[0], y)


def test_switch_all_is_a_pre_norm_layer_of_both():
    graph = load("x -> SwitchAll(3) as m")
    assert sum(n.op == "layernorm" for n in graph.nodes) == 2
    w, x = tensors(graph), tokens(2, 5)
    y, aux = run(graph, w, x)
    off = {n: 0 * v if n.endswith(("o.weight", "down.weight", "down.bias")) else v for n, v in w.items()}
    torch.testing.assert_close(run(graph, off, x)[0], x)
    assert y.shape == x.shape
    assert any(n.endswith("balance") for n in aux)


@pytest.mark.parametrize("length", [1, 5, 24])
def test_mixture_of_depths(length):
    graph = load("x -> MixtureOfDepths(MLP(8)) as m")
    w, x = tensors(graph), tokens(3, length)
    r = F.linear(x, w["m.router.weight"])[..., 0]
    wanted, count = x.clone(), max(1, length // 8)
    for b in range(3):
        for t in r[b].topk(count).indices.tolist():
            wanted[b, t] += r[b, t] * mlp(w, "m.f", x[b, t])
    y = run(graph, w, x)[0]
    torch.testing.assert_close(y, wanted)
    assert ((y != x).any(-1).sum(1) == count).all()


def test_the_chosen_of_a_mixture_of_depths_keep_their_order():
    graph = load("x -> MixtureOfDepths(shift_tokens, 3) as m")
    w, x = tensors(graph), tokens(1, 8)
    r = F.linear(x, w["m.router.weight"])[0, :, 0]
    places = sorted(r.topk(3).indices.tolist())
    wanted = x.clone()
    for before, t in pairwise(places):
        wanted[0, t] += r[t] * x[0, before]
    torch.testing.assert_close(run(graph, w, x)[0], wanted)


def test_the_predictor_of_depths_learns_and_samples():
    source = f"""
    model Training(d = {D})(x: float[B, T, d]) -> (y: float[B, T, d], loss: float[]) {{
      return x -> MixtureOfDepthsTraining(MLP(8), T // 4) as m
    }}
    model Sampling(d = {D})(x: float[B, T, d]) -> float[B, T, d] {{ return x -> MixtureOfDepthsSampling(MLP(8)) as m }}
    """
    training, sampling = (graphir.load(source, n) for n in ("Training", "Sampling"))
    assert training.weights.keys() == sampling.weights.keys()
    w, x = tensors(training), tokens(16, 16)
    y, loss = (Interpreter(training, w).run({"x": x})[n] for n in ("y", "loss"))
    chosen = (y != x).any(-1).double()
    guess = F.silu(F.linear(x, w["m.predictor.up.weight"], w["m.predictor.up.bias"]))
    guess = F.linear(guess, w["m.predictor.down.weight"], w["m.predictor.down.bias"])[..., 0]
    torch.testing.assert_close(loss, F.binary_cross_entropy_with_logits(guess, chosen))
    sampled = run(sampling, w, x)[0]
    goes = guess > 0
    torch.testing.assert_close((sampled != x).any(-1), goes)
    torch.testing.assert_close(sampled[goes & (chosen > 0)], y[goes & (chosen > 0)])

    net = graphir.compile(training, weights={n: v.float() for n, v in w.items()})
    x = x.float().requires_grad_()
    net(x)[1].backward()
    assert x.grad is None, "the predictor does not train what it reads"
    assert {n for n, p in net.named_parameters() if p.grad is not None and p.grad.any()} == {n for n in w if "predictor" in n}
    steps = torch.optim.Adam([p for n, p in net.named_parameters() if "predictor" in n], 0.02)
    for _ in range(300):
        steps.zero_grad()
        net(x.detach())[1].backward()
        steps.step()
    assert net(x.detach())[1] < 0.6 * loss
    state, runner = None, Interpreter(sampling, w)
    for t in range(16):
        out, state = runner.run_step({"x": tokens(16, 16)[:, t : t + 1]}, state)
        torch.testing.assert_close(out["output"], sampled[:, t : t + 1])


@pytest.mark.parametrize(
    ("aggregate", "join"),
    [
        ("mean", lambda a, w: a.mean(0)),
        ("max", lambda a, w: a.amax(0)),
        ("concat(axis = 1)", lambda a, w: torch.cat(list(a), 1)),
        ("blend(learnable = true)", lambda a, w: (torch.softmax(w["m.aggregate.logits"], -1).view(-1, 1, 1, 1) * a).sum(0)),
    ],
)
def test_mixture_of_agents(aggregate, join):
    result = "3 * T" if "concat" in aggregate else "T"
    body = f"x -> MixtureOfAgents([MLP(8)] * 3, {aggregate}, linear(d)) as m"
    graph = graphir.load(f"model M(d = {D})(x: float[B, T, d]) -> float[B, {result}, d] {{ return {body} }}")
    w, x = tensors(graph), tokens(2, 5)
    agents = torch.stack([mlp(w, n.removesuffix(".up.weight"), x) for n in w if n.endswith(".up.weight")])
    assert len(agents) == 3
    torch.testing.assert_close(run(graph, w, x)[0], F.linear(join(agents, w), w["m.final.weight"], w["m.final.bias"]))


# slots

SLOTTED = f"""
block Layer2(width)(x: [*S, d]) -> [*S, d] {{ return x + (x -> slot(width) as plug -> linear(d) as out) }}
model M(d = {D})(x: float[B, T, d]) -> float[B, T, d] {{ return x -> ([Layer2(4)] * 2) }}
"""


@pytest.mark.parametrize("target", ["cpu", "interpreter"])
def test_a_slot_is_filled_swapped_and_emptied_at_run_time(target):
    net = graphir.compile(SLOTTED, target)
    x = torch.randn(2, 3, D)
    empty, names, code = net(x), list(net.state_dict()), getattr(net, "code", None)
    first, second = nn.Linear(D, 4), nn.Sequential(nn.Linear(D, 8), nn.ReLU(), nn.Linear(8, 4))

    def wanted(modules):
        y, state = x, net.state_dict()
        for i, module in enumerate(modules):
            h = module(y) if module else torch.zeros(2, 3, 4)
            y = y + F.linear(h, state[f"layers.{i}.out.weight"], state[f"layers.{i}.out.bias"])
        return y

    torch.testing.assert_close(empty, wanted([None, None]))
    net.set_slot("layers.1.plug", first)
    torch.testing.assert_close(net(x), wanted([None, first]))
    net.set_slot("layers.1.plug", second)
    torch.testing.assert_close(net(x), wanted([None, second]))
    net.set_slot("layers.0.plug", first)
    torch.testing.assert_close(net(x), wanted([first, second]))
    net(x).sum().backward()
    assert first.weight.grad.any()
    assert {n for n, _ in net.named_parameters()} > set(names)
    net.set_slot("layers.0.plug", None)
    net.set_slot("layers.1.plug", None)
    assert torch.equal(net(x), empty)
    assert list(net.state_dict()) == names
    assert getattr(net, "code", None) == code


def test_slots_that_do_not_fit():
    net = graphir.compile(SLOTTED)
    with pytest.raises(graphir.GraphirError, match=r"no slot `layers\.1\.plg`") as failed:
        net.set_slot("layers.1.plg", nn.Identity())
    assert failed.value.diagnostics[0].code == "E0812"
    assert "layers.1.plug" in " ".join(failed.value.diagnostics[0].help)
    net.set_slot("layers.1.plug", nn.Linear(D, 5))
    with pytest.raises(graphir.GraphirError, match="gives \\[2, 3, 5\\], not \\[2, 3, 4\\]"):
        net(torch.randn(2, 3, D))


def test_filled_slots_travel_with_copies():
    net, x = graphir.compile(SLOTTED), torch.randn(2, 3, D)
    net.set_slot("layers.0.plug", nn.Linear(D, 4))
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(twin(x), net(x))
        twin.set_slot("layers.0.plug", None)
        assert not torch.equal(twin(x), net(x))


def test_a_mixture_trains():
    """Two regimes: linear experts together fit what no linear map can; sparse, with the balance loss."""
    torch.manual_seed(0)
    body = "x -> filter(linear(4) -> softmax, keep = 2, balance = 0.01, branches = [linear(1)] * 4)"
    net = graphir.compile(f"model M(x: float[B, 2]) -> float[B, 1] {{ return {body} }}", dispatch="sorted")
    assert net.graphir.ops["collect"] == 1
    x = torch.randn(512, 2)
    y = torch.where(x[:, :1] > 0, 2 * x[:, 1:], -2 * x[:, 1:])
    line = torch.linalg.lstsq(torch.cat([x, torch.ones(512, 1)], 1), y).solution
    alone = (torch.cat([x, torch.ones(512, 1)], 1) @ line - y).square().mean()
    steps = torch.optim.Adam(net.parameters(), 0.05)
    for _ in range(600):
        steps.zero_grad()
        out, aux = net(x, aux=True)
        ((out - y).square().mean() + graphir.total_loss(aux)).backward()
        steps.step()
    assert (net(x) - y).square().mean() < 0.1 * alone
