"""Composition beyond joins, filters and grafts: contracts, lists of layers, states of shared parts, gates of several steps."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from models import model, problem, random_weights, run, tokens

from graphir.backends.interpreter import Interpreter

X = tokens()


def linear(w, name, x):
    return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))


def rms(w, name, x):
    return F.rms_norm(x, x.shape[-1:], w[f"{name}.weight"], 1e-6)


def check(body, wanted, **options):
    """The model gives what the function of its weights and input gives, with weights of which none is special."""
    graph = model(body, **options)
    w = random_weights(graph)
    torch.testing.assert_close(run(graph, w, X), wanted(w, X), rtol=1e-9, atol=1e-9)
    return graph


# contracts


def test_a_block_is_a_contract():
    eight = {"rest": "block Eight(x: [*S, 8]) -> [*S, 4] { return x -> linear(4) }", "result": "float[B, T, 4]"}
    check("x -> Eight", lambda w, x: linear(w, "Eight.linear", x), **eight)
    found = problem("x -> linear(7) -> Eight", **eight)
    assert (found.code, found.span.text) == ("E0203", "linear(7)")
    lying = problem("x -> Eight", rest="block Eight(x: [*S, 8]) -> [*S, 4] { return x -> linear(5) }", result="float[B, T, 4]")
    assert lying.code == "E0208"


def test_a_list_runs_in_order_and_its_widths_must_meet():
    check("a = linear(12)\nb = linear(8)\nreturn x -> [a, gelu, b]", lambda w, x: linear(w, "layers.2", F.gelu(linear(w, "layers.0", x))))
    eight = "block Eight(x: [*S, 8]) -> [*S, 8] { return x -> linear(8) }"
    found = problem("x -> [linear(12), gelu, Eight]", rest=eight)
    assert found.code == "E0203"
    assert "takes [B, T, 8], not float[B, T, 12]" in " ".join(found.notes)


def test_a_brick_between_two_stitches():
    graph = check("x -> stitch(gelu, width = 3)", lambda w, x: linear(w, "gelu.stitch_out", F.gelu(linear(w, "gelu.stitch_in", x))))
    assert graph.weights["gelu.stitch_in.weight"].shape == (3, 8)


def test_mlp_by_its_formula():
    check("x -> MLP(6, act = relu)", lambda w, x: linear(w, "MLP.down", F.relu(linear(w, "MLP.up", x))))


def test_qk_norm_by_its_formula():
    def wanted(w, x):
        q, k, v = (linear(w, f"Attention.{n}", x).unflatten(-1, (2, 4)).transpose(1, 2) for n in "qkv")
        scores = rms(w, "Attention.q_norm", q) @ rms(w, "Attention.k_norm", k).mT / math.sqrt(4)
        seen = torch.ones(5, 5).tril().bool()
        mixed = scores.masked_fill(~seen, -math.inf).softmax(-1) @ v
        return linear(w, "Attention.o", mixed.transpose(1, 2).flatten(-2))

    check("x -> Attention(2, qk_norm = true, theta = none)", wanted)


# lists of layers


def kinds(graph):
    """Which kind each layer is of, by the operation that is its mark."""
    marks = {"sdpa": "attention", "depthwise_conv1d": "conv"}
    return [marks[n.op] for n in graph.nodes if n.op in marks]


@pytest.mark.parametrize(
    "choice",
    ['kind == "full_attention" else Layer(ShortConv, SwiGLU) for kind in ["conv", "conv", "full_attention", "conv"]',
     "i in [2] else Layer(ShortConv, SwiGLU) for i in 0..4"],
)
def test_layers_follow_a_list_of_kinds(choice):
    graph = model(f"x -> [Layer(Attention(2), SwiGLU) if {choice}]")
    assert kinds(graph) == ["conv", "conv", "attention", "conv"]
    assert {n.split(".")[1] for n in graph.weights} == set("0123")
    assert "layers.2.mixer.q.weight" in graph.weights
    written = model("x -> [Layer(ShortConv, SwiGLU), Layer(ShortConv, SwiGLU), Layer(Attention(2), SwiGLU), Layer(ShortConv, SwiGLU)]")
    w = random_weights(graph)
    assert torch.equal(run(graph, w, X), run(written, w, X))


def test_layers_take_parameters_of_their_own():
    graph = check(
        "x -> [residual(MLP(hidden, act)) for hidden, act in [(3, relu), (7, tanh)]]",
        lambda w, x: (lambda h: h + linear(w, "layers.1.f.down", torch.tanh(linear(w, "layers.1.f.up", h))))(
            x + linear(w, "layers.0.f.down", F.relu(linear(w, "layers.0.f.up", x)))
        ),
    )
    assert [graph.weights[f"layers.{i}.f.up.weight"].shape[0] for i in (0, 1)] == [3, 7]


def test_lists_add_and_multiply():
    names = {"rmsnorm": "n", "linear": "l"}
    for text, wanted in [("[rmsnorm] * 3", "nnn"), ("[rmsnorm, linear(8)] * 2", "nlnl"), ("([rmsnorm] * 2 + [linear(8)]) * 2", "nnlnnl")]:
        graph = model(f"x -> ({text})")
        assert "".join(names[n.op] for n in graph.nodes) == wanted
        assert len({n.rpartition(".")[0] for n in graph.weights}) == len(wanted), "each place has weights of its own"


def test_a_layer_says_its_backend():
    plain, placed = (model(f"x -> [MLP(4){a}, linear(8){b}]") for a, b in [("", ""), (" on inductor", " on fx")])
    assert [n.where.backend for n in placed.nodes] == ["inductor"] * 3 + ["fx"]
    w = random_weights(plain)
    out = Interpreter(placed, w, torch.float64).run({"x": X})["output"]
    assert torch.equal(out, Interpreter(plain, w, torch.float64).run({"x": X})["output"])


def test_shared_bricks_have_one_set_of_weights_and_states_of_their_own():
    both = model("shared f = lstm(8)\nreturn x -> fork { a: f  b: gelu -> f } -> add")
    assert {n.split(".")[0] for n in both.weights} == {"f"}
    alone = model("x -> lstm(8) as f")
    w = random_weights(both)
    net, single = Interpreter(both, w, torch.float64), Interpreter(alone, w, torch.float64)
    wanted = sum(single.run({"x": x})["output"] for x in (X, F.gelu(X)))
    torch.testing.assert_close(net.run({"x": X})["output"], wanted)
    state, out = None, []
    for t in range(X.shape[1]):
        y, state = net.run_step({"x": X[:, t : t + 1]}, state)
        out.append(y["output"])
    torch.testing.assert_close(torch.cat(out, 1), wanted)
    assert len([s for s in state if s != "position"]) >= 2, "a state for each place"
    fresh = model("f = lstm(8)\nreturn x -> fork { a: f  b: gelu -> f } -> add")
    assert fresh.parameters == 2 * both.parameters


# gates


def experts(w, x):
    return torch.stack([x, linear(w, "filter.b", x)], -1)


def test_a_gate_with_an_activation_before_its_normaliser():
    def wanted(w, x):
        gate = torch.softmax(F.relu(1.1 * linear(w, "filter.router.linear", x)) / 0.5, -1)
        return (experts(w, x) * gate.unsqueeze(-2)).sum(-1)

    check("x -> filter(linear(2) -> scaled_relu -> softmax(temperature = 0.5)) { a: id  b: linear(8) }", wanted)


def test_dropout_in_a_gate():
    graph = check(
        "x -> filter(linear(2) -> dropout(0.5) -> softmax) { a: id  b: linear(8) }",
        lambda w, x: (experts(w, x) * torch.softmax(linear(w, "filter.router.linear", x), -1).unsqueeze(-2)).sum(-1),
    )
    w = random_weights(graph)
    torch.manual_seed(0)
    shares = Interpreter(graph, w, torch.float64, True).run({"x": X}, aux=True)[1]["filter.weights"]
    z = linear(w, "filter.router.linear", X)
    possible = torch.stack([torch.softmax(2 * z * torch.tensor(kept), -1) for kept in ((0, 0), (0, 1), (1, 0), (1, 1))])
    matches = torch.isclose(shares, possible).all(-1)
    assert matches.any(0).all(), "each logit is dropped, or counts twice"
    assert (matches.flatten(1).any(1)).all(), "and all four happen"


def test_gradients_flow_through_stitched_experts():
    graph = model("x -> filter(linear(2) -> softmax, width = 8) { a: linear(3) -> sigmoid  b: lstm(5) }")
    assert graph.ops["stitch"] == 2
    w = random_weights(graph)
    names = list(w)

    def f(x, *values):
        return Interpreter(graph, dict(zip(names, values)), torch.float64).run({"x": x})["output"]

    leaves = [tokens(1, 3, 8).requires_grad_(), *(t.requires_grad_() for t in w.values())]
    assert torch.autograd.gradcheck(f, leaves, fast_mode=True)
    slopes = torch.autograd.grad(f(*leaves).square().sum(), leaves)
    assert all(s.any() for s in slopes)


def test_switch_all_by_its_parts():
    graph = model("x -> SwitchAll(2) as s")
    w = random_weights(graph)

    def part(body, path, x):
        inner = model(f"x -> {body} as p")
        mine = {n: w[n.replace("p.", f"{path}.", 1)] for n in inner.weights}
        return Interpreter(inner, mine, torch.float64).run({"x": x})["output"]

    def norm(name, x):
        return F.layer_norm(x, (8,), w[f"{name}.weight"], w[f"{name}.bias"])

    layer = next(n for n in graph.weights if n.endswith("mixer_norm.weight")).removesuffix(".mixer_norm.weight")
    h = X + part("SwitchHead(2, experts = 4, keep = 1)", f"{layer}.mixer", norm(f"{layer}.mixer_norm", X))
    wanted = h + part("SwitchMoE(experts = 4)", f"{layer}.mlp", norm(f"{layer}.mlp_norm", h))
    torch.testing.assert_close(run(graph, w, X), wanted, rtol=1e-9, atol=1e-9)
