"""Sparse dispatch means what the dense filter means, outputs and gradients, in every corner; and it computes less."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import graphir
from graphir.backends.base import compile_module
from graphir.backends.dispatch import dispatch
from graphir.backends.fx import lower
from graphir.backends.interpreter import Interpreter
from graphir.backends.pt2 import export
from graphir.backends.weights import initialise
from graphir.bricks.declare import REGISTRY
from graphir.ir.text import read
from graphir.ir.verify import verify

D = 6


def program(body: str, shape: str = "B, T, d") -> graphir.Graph:
    return graphir.load(f"model M(d = {D})(x: float[{shape}]) -> float[{shape}] {{ return x -> {body} }}")


CAPPED = "filter(linear(4) -> softmax, keep = 1, renormalise = false, capacity = 2, branches = [MLP(8)] * 4)"
PROGRAMS = {
    "mixtral": "SparseMoE(SwiGLU(8), 4, 2, balance = 0.1)",
    "shazeer": "ShazeerMoE(MLP(8), 4, 2)",
    "switch": CAPPED,
    "expert choice": "ExpertChoiceMoE(MLP(8), 3)",
    "deepseek": "DeepSeekV3MoE(8, routed = 8, keep = 3, groups = 4, keep_groups = 2)",
    "hard": "filter(linear(3) -> hardmax) { a: MLP(8)  b: rmsnorm  c: id }",
    "sparsemax": "filter(linear(3) -> sparsemax) { a: MLP(8)  b: rmsnorm  c: id }",
    "entmax": "filter(linear(4) -> entmax(alpha = 1.5), keep = 2, branches = [MLP(8)] * 4)",
    "sigmoid, chosen first": "filter(linear(4) -> sigmoid, keep = 2, keep_first = true, branches = [MLP(8)] * 4)",
    "widths": "filter(linear(3) -> softmax, keep = 1, width = d) { a: linear(4) -> gelu  b: linear(9)  c: headnorm(2) }",
    "mixing": "filter(linear(3) -> softmax, keep = 1) { a: Attention(3) -> MLP(8)  b: lstm(d)  c: MLP(8) }",
    "outside": "rmsnorm -> residual(filter(linear(2) -> softmax, keep = 1) {"
    " a: fork { u: linear(d)  v: gelu } -> gate  b: concat(with = x0) -> linear(d) })",
    "nested": "residual(SparseMoE(SparseMoE(MLP(8), 3, 1), 3, 2))",
    "nested, three deep": "SparseMoE(SparseMoE(SparseMoE(MLP(4), 2, 1), 2, 1), 3, 2)",
}
BOUNDED = ("switch", "expert choice")


def graph_of(name: str) -> graphir.Graph:
    body = PROGRAMS[name]
    if name == "outside":
        return graphir.load(f"model M(d = {D})(x: float[B, T, d]) -> float[B, T, d] {{ x0 = x -> linear(3)\n return x -> {body} }}")
    return program(body)


def tensors(graph: graphir.Graph, router: str = "random") -> dict[str, torch.Tensor]:
    """float64 weights; routers that tie (zeros), or that send every token to the last branch of each filter."""
    made = {}
    generator = torch.Generator().manual_seed(3)
    for name, weight in graph.weights.items():
        w = torch.randn(weight.shape, generator=generator, dtype=torch.float64) * 0.5
        made[name] = torch.zeros_like(w) if weight.buffer or (router == "ties" and "router" in name) else w
    return made


def run(
    graph: graphir.Graph, weights: dict[str, torch.Tensor], x: torch.Tensor, fx: bool
) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
    """All results, and the gradients of their weighted sum for x and every trained weight."""
    x = x.clone().requires_grad_()
    leaves = {n: w.clone().requires_grad_(not graph.weights[n].buffer) for n, w in weights.items()}
    if fx:
        network = lower(graph, weights, mode="infer")
        out, aux = torch.func.functional_call(network, leaves, (x,), {"aux": True})
        results = {"output": out, **aux}
    else:
        outputs, aux = Interpreter(graph, leaves).run({"x": x}, aux=True)
        results = {**outputs, **aux}
    generator = torch.Generator().manual_seed(4)
    total = sum((y * torch.randn(y.shape, generator=generator, dtype=y.dtype)).sum() for y in results.values())
    asked = [x, *[w for w in leaves.values() if w.requires_grad]]
    return results, list(torch.autograd.grad(total, asked, materialize_grads=True))


def assert_same(graph: graphir.Graph, form: str, weights: dict[str, torch.Tensor], x: torch.Tensor) -> None:
    sparse = dispatch(graph, form)
    assert sparse.ops["collect"] >= 1
    assert sparse.weights == graph.weights
    verify(sparse, REGISTRY)
    assert read(str(sparse)).key == sparse.key
    wanted, gradients = run(graph, weights, x, fx=False)
    for fx in (False, True):
        given, slopes = run(sparse, weights, x, fx)
        assert given.keys() == wanted.keys()
        for name, y in wanted.items():
            torch.testing.assert_close(given[name], y, rtol=1e-11, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")
        for a, b in zip(slopes, gradients, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def tokens(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, D, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


FORMS = [(name, "sorted") for name in PROGRAMS] + [(name, "static") for name in BOUNDED]


@pytest.mark.parametrize(("name", "form"), FORMS)
@pytest.mark.parametrize("shape", [(2, 7), (1, 1), (0, 5), (1, 9)], ids=str)
def test_equal_to_the_dense_meaning(name, form, shape):
    graph = graph_of(name)
    assert_same(graph, form, tensors(graph), tokens(*shape))


@pytest.mark.parametrize(("name", "form"), [f for f in FORMS if f[0] != "outside"])
def test_ties_go_to_the_lower_index(name, form):
    graph = graph_of(name)
    weights = tensors(graph, "ties")
    if name in ("mixtral", "switch", "deepseek", "shazeer"):
        chosen = Interpreter(graph, weights).run({"x": tokens(2, 7)}, aux=True)[1]
        first = next(v for k, v in chosen.items() if k.endswith("weights"))
        assert not first[..., 3:].any()
    assert_same(graph, form, weights, tokens(2, 7))


@pytest.mark.parametrize("form", ["sorted", "static"])
def test_a_branch_with_no_token_and_one_with_all(form):
    graph = program(CAPPED)
    weights = tensors(graph)
    weights["filter.router.linear.bias"] = torch.tensor([0.0, 0.0, 1e3, 0.0], dtype=torch.float64)
    aux = Interpreter(graph, weights).run({"x": tokens(3, 2)}, aux=True)[1]["filter.weights"]
    assert (aux != 0).sum((0, 1)).tolist() == [0, 0, 6, 0]
    assert_same(graph, form, weights, tokens(3, 2))
    assert_same(graph, form, weights, tokens(3, 5))  # the third to fifth token of each sequence are dropped


def test_one_axis_of_tokens_and_three():
    for shape, x in (("B, d", tokens(5)), ("B, H, W, d", tokens(2, 3, 2))):
        graph = program("SparseMoE(MLP(8), 4, 2)", shape)
        assert_same(graph, "sorted", tensors(graph), x)


def test_a_kept_weight_of_zero():
    """keep = 3 of a sparsemax with two winners: the third is kept at weight zero and has no gradient."""
    graph = program("filter(linear(4) -> sparsemax, keep = 3, branches = [MLP(8)] * 4)")
    weights = tensors(graph)
    weights["filter.router.linear.weight"] *= 20
    assert_same(graph, "sorted", weights, tokens(2, 7))


DENSE = {
    "no choice": "filter(linear(3) -> softmax, branches = [MLP(8)] * 3)",
    "straight through": "filter(linear(3) -> hardmax(straight_through = true), branches = [MLP(8)] * 3)",
    "gumbel, straight through": "filter(linear(3) -> gumbel(straight_through = true), keep = 1, branches = [MLP(8)] * 3)",
    "raw scores: a weight of zero has a gradient": "filter(linear(3), keep = 1, branches = [MLP(8)] * 3)",
    "one choice a sample": "filter(linear(3) -> softmax, keep = 1, per_sample = true, branches = [MLP(8)] * 3)",
    "branches that mix tokens": "filter(linear(2) -> softmax, keep = 1) { a: causal_conv1d(d, 3)  b: lstm(d) }",
    "dropout": "filter(linear(2) -> softmax, keep = 1, branches = [dropout(0.5)] * 2)",
    "alpha 1": "filter(linear(3) -> entmax(alpha = 1.0), branches = [MLP(8)] * 3)",
}


@pytest.mark.parametrize("name", DENSE)
def test_what_stays_dense(name):
    graph = program(DENSE[name])
    assert dispatch(graph, "sorted") is graph


def test_forms_that_are_not_asked_for_or_not_possible():
    unbounded, small = program(PROGRAMS["mixtral"]), program("gelu")
    assert dispatch(unbounded, "static") is unbounded
    assert dispatch(unbounded, "dense") is unbounded
    assert dispatch(small, "sorted") is small
    with pytest.raises(graphir.GraphirError, match="E0806"):
        dispatch(small, "sort")


def flops(network: torch.nn.Module, x: torch.Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        network(x)
    return counter.get_total_flops()


@pytest.mark.parametrize("keep", [1, 2, 4])
def test_only_what_was_chosen_is_computed(keep):
    graph = program(f"filter(linear(4, bias = false) -> softmax, keep = {keep}, branches = [MLP(8)] * 4)")
    x = torch.randn(3, 5, D)
    router, expert = 2 * 15 * D * 4, 2 * 15 * 2 * D * 8
    assert flops(graphir.compile(graph, dispatch="dense"), x) == router + 4 * expert
    assert flops(graphir.compile(graph, dispatch="sorted"), x) == router + keep * expert


def test_seats_bound_the_work():
    x = torch.randn(3, 8, D)
    dense, static = (flops(graphir.compile(program(CAPPED), dispatch=f), x) for f in ("dense", "static"))
    assert dense - static == 4 * 2 * 2 * D * 8 * 3 * (8 - 2)


def test_the_end_of_a_branch_that_mixes_tokens_is_sparse():
    graph = program("filter(linear(2, bias = false) -> softmax, keep = 1) { a: Attention(3) -> MLP(8)  b: MLP(8) }")
    sparse = dispatch(graph, "sorted")
    rows = {n.where.path for n in sparse.nodes if len(n.outputs[0].type.shape) == 2}
    ours = {"up", "act", "down"}
    assert {p for p in rows if ".a." in p or ".b." in p} == {
        "filter.a.Attention.o", *(f"filter.a.MLP.{n}" for n in ours), *(f"filter.b.{n}" for n in ours)
    }


def test_the_cost_model():
    big = graphir.load("model M(x: float[B, T, 256]) -> float[B, T, 256] { return x -> SparseMoE(MLP(512), 8, 2) }")
    all_kept = graphir.load("model M(x: float[B, T, 256]) -> float[B, T, 256] { return x -> SparseMoE(MLP(512), 8, 8) }")
    tiny = program("SparseMoE(MLP(4), 3, 2)")
    few = graphir.load("model M(x: float[1, 2, 32]) -> float[1, 2, 32] { return x -> SparseMoE(MLP(64), 4, 2) }")
    assert dispatch(big).ops["collect"] == 1
    middle = graphir.load("model M(x: float[B, T, 64]) -> float[B, T, 64] { return x -> SparseMoE(MLP(128), 8, 2) }")
    assert dispatch(middle, tokens=1024).ops["collect"] == 1
    assert dispatch(middle, tokens=8) is middle, "for few tokens the calls cost more than they save"
    for graph in (all_kept, tiny, few):
        assert dispatch(graph) is graph


def test_compile_takes_it_and_state_dicts_agree():
    graph = graphir.load("model M(x: float[B, T, 128]) -> float[B, T, 128] { return x -> SparseMoE(MLP(256), 8, 2) }")
    auto, dense = graphir.compile(graph), graphir.compile(graph, dispatch="dense")
    assert auto.graphir.ops["collect"] == 1
    assert dense.graphir.ops["collect"] == 0
    assert list(auto.state_dict()) == list(dense.state_dict())
    x = torch.randn(2, 9, 128)
    torch.testing.assert_close(auto(x), dense(x), rtol=1e-4, atol=1e-5)
    assert compile_module(graph, "interpreter").graphir is graph


def test_equal_experts_share_one_class():
    network = graphir.compile(program("SparseMoE(SwiGLU(8), 6, 2)"), dispatch="sorted")
    assert len({type(m) for n, m in network.named_modules() if n.startswith("SparseMoE.moe.branches.") and n.count(".") == 3}) == 1


def test_training_moves_the_balance_bias_alike():
    graph = program("DeepSeekV3MoE(8, routed = 8, keep = 3, groups = 4, keep_groups = 2, bias_update = 0.1)")
    weights = tensors(graph)
    nets = [lower(dispatch(graph, form), weights) for form in ("dense", "sorted")]
    for _ in range(5):
        x = torch.randn(2, 7, D, dtype=torch.float64)
        torch.testing.assert_close(nets[0](x), nets[1](x))
    (a, b) = (dict(n.named_buffers())["DeepSeekV3MoE.moe.choice.bias"] for n in nets)
    assert a.any()
    assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["mixtral", "switch", "expert choice", "nested"])
def test_exported(name):
    graph = graph_of(name)
    network = lower(dispatch(graph, "sorted"), initialise(graph, 0), mode="infer")
    exported = export(network).module()
    for shape in ((2, 3), (3, 7), (1, 5), (4, 1), (0, 4)):
        x = torch.randn(*shape, D)
        torch.testing.assert_close(exported(x), network(x))
