"""Filters as programs write them: every option by its formula, its gradient, when it acts; named outputs; diagnostics."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

import graphir
from graphir.backends.interpreter import Interpreter

N = 4
D = 5


def load(options: str, n: int = N, shape: str = "B, T", branches: str = "linear(d)", router: str = "") -> graphir.Graph:
    """x -> filter(...): branches that are all alike, a linear router unless another is given."""
    router = router or f"linear({n}, bias = false) -> softmax"
    body = f"x -> filter({router}, {options} branches = [{branches}] * {n})"
    return graphir.load(f"model M(d = {D})(x: float[{shape}, d]) -> float[{shape}, d] {{ return {body} }}")


def tensors(graph: graphir.Graph, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    made = {n: torch.randn(w.shape, generator=generator, dtype=torch.float64) for n, w in graph.weights.items()}
    return {n: torch.zeros_like(w) if graph.weights[n].buffer else w for n, w in made.items()}


def tokens(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, D, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


Tensors = dict[str, torch.Tensor]


def told(graph: graphir.Graph, x: torch.Tensor, weights: Tensors | None = None, training: bool = False) -> Tensors:
    """The auxiliary outputs, without the filter's path; the output as `y`."""
    torch.manual_seed(1)
    outputs, aux = Interpreter(graph, tensors(graph) if weights is None else weights, training=training).run({"x": x}, aux=True)
    return {"y": outputs["output"], **{n.removeprefix("filter."): v for n, v in aux.items()}}


def scores(z: list[float], normaliser: str, options: str = "") -> list[float]:
    """The weights that a filter gives to logits z: the router passes them on."""
    n = len(z)
    source = f"model M(x: float[B, {n}]) -> float[B, {n}] {{ return x -> filter(id -> {normaliser}, {options} branches = [id] * {n}) }}"
    return told(graphir.load(source), torch.tensor([z], dtype=torch.float64))["weights"][0].tolist()


def logits(weights: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, weights["filter.router.linear.weight"])


# normalisers, by the check values of facts/seed_systems.md


@pytest.mark.parametrize(
    ("z", "normaliser", "options", "wanted"),
    [
        ([2, 1.8, 0.1], "softmax", "", [0.5081, 0.4160, 0.0760]),
        ([2, 1.8, 0.1], "softmax(temperature = 0.1)", "", [0.8808, 0.1192, 5e-9]),
        ([2, 1.8, 0.1], "softmax(temperature = 5.0)", "", [0.3781, 0.3633, 0.2586]),
        ([3, 1, -1, -3], "sparsemax", "", [1, 0, 0, 0]),
        ([2, 1.8, 0.1], "sparsemax", "", [0.6, 0.4, 0]),
        ([2, 1.8, 0.1], "entmax(alpha = 1.5)", "", [0.5705, 0.4295, 0]),
        ([2, 1, 0.5, -1], "softmax_mad(2)", "", [0.610, 0.225, 0.083, 0.083]),
        ([2, 1, 0.5, -1], "softmax", "keep = 2,", [0.731, 0.269, 0, 0]),
        ([2, 1, 0.5, -1], "softmax", "keep = 2, keep_first = true,", [0.731, 0.269, 0, 0]),
        ([2, 1, 0.5, -1], "softmax", "keep = 1, renormalise = false,", [0.6095, 0, 0, 0]),
        ([0.5, 0.4, 0.3], "sparsemax", "keep = 2, renormalise = false,", [0.4333, 0.3333, 0]),
        ([0.5, 0.4, 0.3], "sparsemax", "keep = 2, keep_first = true,", [0.55, 0.45, 0]),
        ([2, 1, 0.5, -1], "sigmoid", "keep = 2, keep_first = true,", [0.8808, 0.7311, 0, 0]),
        ([1, 3, 3, 2], "hardmax", "", [0, 1, 0, 0]),
        ([1, 1, 1, 1], "softmax", "keep = 2,", [0.5, 0.5, 0, 0]),
        ([2, 1, 0.5, -1], "softmax", "keep = 2, scale = 2.5,", [2.5 * 0.7311, 2.5 * 0.2689, 0, 0]),
        ([2, 1, 0.5, -1], "softmax", "keep = 2, keep_first = true, scale = 2.0,", [2 * 0.7311, 2 * 0.2689, 0, 0]),
    ],
)
def test_weights(z, normaliser, options, wanted):
    assert scores(z, normaliser, options) == pytest.approx(wanted, abs=6e-4 if max(z) == 2 else 5e-5)


def test_any_brick_routes():
    graph = graphir.load(
        "block Mine(n)(x: [B, T, d]) -> [B, T, n] { return x -> lstm(7) -> linear(n) -> sigmoid }\n"
        f"model M(d = {D})(x: float[B, T, d]) -> float[B, T, d] {{ return x -> filter(Mine(3)) {{ a: id  b: gelu  c: linear(d) }} }}"
    )
    out, x = told(graph, tokens(2, 6)), tokens(2, 6)
    w = out["weights"]
    last = F.linear(x, tensors(graph)["filter.c.weight"], tensors(graph)["filter.c.bias"])
    torch.testing.assert_close(out["y"], w[..., :1] * x + w[..., 1:2] * F.gelu(x) + w[..., 2:] * last)


# noise


@pytest.mark.parametrize("option", ["noise = 0.3,", "learned_noise = true,", "jitter = 0.2,"])
def test_noise_is_in_training_only(option):
    graph, plain, x = load(option), load(""), tokens(2, 6)
    calm = {n: tensors(graph)[n] for n in plain.weights}
    assert torch.equal(told(graph, x)["weights"], told(plain, x, calm)["weights"])
    assert not torch.allclose(told(graph, x, training=True)["weights"], told(plain, x, calm)["weights"])


def test_the_formulas_of_noise():
    x = tokens(2, 6)
    graph = load("noise = 0.3,")
    z = logits(tensors(graph), x)
    torch.manual_seed(1)
    torch.testing.assert_close(told(graph, x, training=True)["weights"], torch.softmax(z + 0.3 * _again(torch.randn_like, z), -1))
    graph = load("learned_noise = true, keep = 2, keep_first = true,")
    weights = tensors(graph)
    z = logits(weights, x)
    noisy = z + _again(torch.randn_like, z) * F.softplus(F.linear(x, weights["filter.learned_noise.weight"]))
    best = noisy.topk(2).indices
    wanted = torch.zeros_like(z).scatter(-1, best, torch.softmax(noisy.gather(-1, best), -1))
    torch.testing.assert_close(told(graph, x, training=True)["weights"], wanted)
    graph = load("jitter = 0.2,", branches="id")
    factor = 1 + 0.2 * (2 * _again(torch.rand_like, x) - 1)
    out = told(graph, x, training=True)
    torch.testing.assert_close(out["weights"], torch.softmax(logits(tensors(graph), x * factor), -1))
    torch.testing.assert_close(out["y"], x, msg="branches read the input without jitter")


def _again(draw, like):
    torch.manual_seed(1)
    return draw(like)


# one choice a sample


def test_one_choice_a_sample():
    graph, x = load("per_sample = true, keep = 2,"), tokens(3, 6)
    out = told(graph, x)
    p = torch.softmax(logits(tensors(graph), x).mean(1, keepdim=True), -1)
    kept = p * (p >= p.topk(2).values[..., -1:])
    torch.testing.assert_close(out["weights"], kept / kept.sum(-1, keepdim=True))
    assert out["y"].shape == x.shape
    flat = load("per_sample = true,", shape="B")
    torch.testing.assert_close(told(flat, x[0])["weights"], torch.softmax(logits(tensors(flat), x[0]), -1))


def test_a_prompt_decides_for_what_follows():
    graph, x = load("per_sample = true, cache = true, keep = 1,"), tokens(2, 9)
    runner = Interpreter(graph, tensors(graph))
    whole = runner.run({"x": x[:, :5]})["output"]
    prompt, state = runner.run_step({"x": x[:, :5]})
    torch.testing.assert_close(prompt["output"], whole)
    alone = Interpreter(graph, tensors(graph)).run({"x": x[:, :5]}, aux=True)[1]["filter.weights"]
    weights = tensors(graph)
    experts = torch.stack([F.linear(x, weights[f"filter.branches.{i}.weight"], weights[f"filter.branches.{i}.bias"]) for i in range(N)], -1)
    for t in range(5, 9):
        y, state = runner.run_step({"x": x[:, t : t + 1]}, state)
        torch.testing.assert_close(y["output"], (experts[:, t : t + 1] * alone.unsqueeze(-2)).sum(-1))
    with pytest.raises(graphir.GraphirError, match="E0810"):
        Interpreter(load("per_sample = true,"), tensors(load("per_sample = true,"))).run_step({"x": x})


# losses and reports


def routed(z: torch.Tensor, options: str, normaliser: str = "softmax") -> dict[str, torch.Tensor]:
    n = z.shape[-1]
    body = f"x -> filter(id -> {normaliser}, {options} branches = [id] * {n})"
    source = f"model M(x: float[B, T, {n}]) -> float[B, T, {n}] {{ return {body} }}"
    return told(graphir.load(source), z)


EVEN = torch.zeros(2, 16, 8, dtype=torch.float64)
COLLAPSED = EVEN + 1e3 * torch.eye(8, dtype=torch.float64)[5]
TURNS = 1e3 * torch.eye(8, dtype=torch.float64).repeat(2, 2, 1).view(2, 16, 8)


@pytest.mark.parametrize(
    ("z", "form", "wanted"),
    [
        (EVEN, "switch", 1), (TURNS, "switch", 1), (COLLAPSED, "switch", 8),
        (EVEN, "document", 1), (TURNS, "document", 1), (COLLAPSED, "document", 16),
    ],
)
def test_balance(z, form, wanted):
    loss = routed(z, f'keep = 1, balance = 0.5, balance_form = "{form}",')["balance"]
    assert loss.item() == pytest.approx(0.5 * wanted)


def test_switch_balance_is_the_published_sum():
    z = torch.randn(3, 7, 4, dtype=torch.float64)
    p = torch.softmax(z, -1)
    f = F.one_hot(p.argmax(-1), 4).double().mean((0, 1))
    wanted = 4**2 * (f * p.mean((0, 1))).mean()
    torch.testing.assert_close(routed(z, "keep = 1, renormalise = false, balance = 1.0, capacity = 1,")["balance"], wanted)


def test_the_loss_of_kept_logits_sees_all_scores():
    z = torch.randn(3, 7, 4, dtype=torch.float64)
    first, later = (routed(z, f"keep = 2, balance = 1.0{o},") for o in (", keep_first = true", ""))
    torch.testing.assert_close(first["balance"], later["balance"])


def test_importance_and_z_loss():
    z = torch.randn(3, 7, 4, dtype=torch.float64)
    out = routed(z, "keep = 2, importance = 0.1, z_loss = 0.01,", "softmax(temperature = 2.0)")
    total = out["weights"].sum((0, 1))
    torch.testing.assert_close(out["importance"], 0.1 * total.var(correction=0) / total.mean() ** 2)
    torch.testing.assert_close(out["z_loss"], 0.01 * torch.logsumexp(z, -1).square().mean())
    assert routed(TURNS, "importance = 1.0,")["importance"].item() == pytest.approx(0, abs=1e-9)
    assert routed(COLLAPSED, "importance = 1.0,")["importance"].item() == pytest.approx(7)


def test_capacity_drops_by_sequence_and_is_reported():
    z = COLLAPSED.clone()
    z[1, ::2, 2] = 1e4
    out = routed(z, "keep = 1, renormalise = false, capacity = 3, report = true,")
    assert (out["weights"] != 0).sum(1).tolist() == [[0, 0, 0, 0, 0, 3, 0, 0], [0, 0, 3, 0, 0, 3, 0, 0]]
    assert out["drop_rate"].item() == pytest.approx(1 - 9 / 32)
    torch.testing.assert_close(out["load"] * 32, torch.tensor([0, 0, 3, 0, 0, 6, 0, 0], dtype=torch.float64))
    assert out["entropy"].item() == pytest.approx(0, abs=1e-9)
    dropped = (out["weights"] == 0).all(-1)
    assert not out["y"][dropped].any()
    assert routed(EVEN, "report = true,")["entropy"].item() == pytest.approx(math.log(8))


def test_losses_are_summed_on_request():
    x = tokens(2, 6)
    graph = load("keep = 2, balance = 0.1, importance = 0.2, z_loss = 0.3, report = true,")
    net = graphir.compile(graph)
    y, aux = net(x.float(), aux=True)
    assert {n.removeprefix("filter.") for n in aux} == {"weights", "balance", "importance", "z_loss", "load", "entropy", "drop_rate"}
    loss = graphir.total_loss(aux)
    torch.testing.assert_close(loss, aux["filter.balance"] + aux["filter.importance"] + aux["filter.z_loss"])
    loss.backward()
    assert net.get_parameter("filter.router.linear.weight").grad.any()
    assert graphir.total_loss({"filter.weights": y}) == 0.0
    two = "model M(x: float[B, T, 4]) -> float[B, T, 4] { return x -> ([residual(SparseMoE(MLP, 4, 2, balance = 0.1))] * 2) }"
    aux = graphir.compile(two)(torch.randn(2, 3, 4), aux=True)[1]
    torch.testing.assert_close(graphir.total_loss(aux), aux["layers.0.f.moe.balance"] + aux["layers.1.f.moe.balance"])


def test_balance_without_loss():
    graph = load("keep = 1, bias_update = 0.01,", router=f"linear({N}, bias = false) -> sigmoid")
    assert graph.weights["filter.choice.bias"].buffer
    weights, x = tensors(graph), tokens(8, 32).abs()
    weights["filter.router.linear.weight"][2] += 1.0  # one branch is far ahead
    runner = Interpreter(graph, weights, training=True)
    before = Interpreter(graph, weights).run({"x": x}, aux=True)[1]["filter.weights"]
    assert not weights["filter.choice.bias"].any(), "no step outside training"
    for _ in range(400):
        runner.run({"x": x})
    bias = weights["filter.choice.bias"]
    assert bias[2] < 0
    after = Interpreter(graph, weights).run({"x": x}, aux=True)[1]["filter.weights"]
    loads = [(w != 0).double().mean((0, 1)).max().item() for w in (before, after)]
    assert loads[0] > 0.9
    assert loads[1] < 0.35, "even would be a quarter"
    assert set(after[after != 0].tolist()) == {1.0}, "the bias is in no weight"


def test_groups():
    z = torch.tensor([[[1.0, 0.1, 0.9, 0.8, 0.95, 0.2]]], dtype=torch.float64)
    body = "x -> filter(id, keep = 2, groups = 3, keep_groups = 1, branches = [id] * 6)"
    graph = graphir.load(f"model M(x: float[B, T, 6]) -> float[B, T, 6] {{ return {body} }}")
    weights = told(graph, z, {"filter.choice.bias": torch.zeros(6, dtype=torch.float64)})["weights"]
    assert weights.flatten().tolist() == pytest.approx([0, 0, 0.9 / 1.7, 0.8 / 1.7, 0, 0])


# gradients

SMOOTH = [
    "", "keep = 2,", "keep = 2, renormalise = false,", "keep = 2, keep_first = true,", "per_sample = true,",
    "keep = 1, renormalise = false, capacity = 2,",
    "keep = 2, scale = 1.5, balance = 0.3, importance = 0.2, z_loss = 0.1, report = true,", 'balance = 0.3, balance_form = "document",',
    "keep = 2, groups = 2, keep_groups = 1, bias_update = 0.1,",
]


@pytest.mark.parametrize("options", SMOOTH)
@pytest.mark.parametrize("normaliser", ["softmax(temperature = 0.7)", "sigmoid", "entmax(alpha = 1.5)"])
def test_gradients(options, normaliser):
    graph = load(options, router=f"linear({N}) -> {normaliser}")
    weights = tensors(graph)
    trained = [n for n in weights if not graph.weights[n].buffer]
    x = tokens(2, 3)

    def run(x, *leaves):
        outputs, aux = Interpreter(graph, {**weights, **dict(zip(trained, leaves))}).run({"x": x}, aux=True)
        smooth = [v for n, v in aux.items() if not n.endswith(("load", "drop_rate"))]
        return (*outputs.values(), *smooth)

    assert torch.autograd.gradcheck(run, [x.requires_grad_(), *[weights[n].requires_grad_() for n in trained]])


def slope(normaliser: str) -> torch.Tensor | None:
    graph = load("", router=f"linear({N}, bias = false) -> {normaliser}")
    weights = tensors(graph)
    router = weights["filter.router.linear.weight"].requires_grad_()
    y = Interpreter(graph, weights).run({"x": tokens(2, 3)})["output"]
    return torch.autograd.grad(y.square().sum(), router, allow_unused=True)[0] if y.requires_grad else None


def test_hard_routes_and_their_gradients():
    straight, hard = (load("", router=f"linear({N}, bias = false) -> {n}") for n in ("hardmax(straight_through = true)", "hardmax"))
    x = tokens(2, 3)
    torch.testing.assert_close(told(straight, x)["y"], told(hard, x)["y"])
    assert slope("hardmax") is None
    weights = tensors(straight)
    router = weights["filter.router.linear.weight"].requires_grad_()
    experts = torch.stack([F.linear(x, weights[f"filter.branches.{i}.weight"], weights[f"filter.branches.{i}.bias"]) for i in range(N)], -2)
    p = torch.softmax(F.linear(x, router), -1)
    y = told(straight, x)["y"].detach()
    wanted = torch.autograd.grad((p.unsqueeze(-1) * experts * 2 * y.unsqueeze(-2)).sum(), router)[0]
    torch.testing.assert_close(slope("hardmax(straight_through = true)"), wanted)


# diagnostics

BAD = [
    ("linear(2) -> softmax, keep = 3", "E0410", "`keep` is 3, but the filter has 2 branches"),
    ("linear(2) -> softmax, keep = 0", "E0410", "`keep` is 0"),
    ("linear(3) -> softmax", "E0410", "one score for each of 2 branches"),
    ("linear(3) -> softmax, z_loss = 0.1", "E0410", "one score for each of 2 branches"),
    ("linear(2) -> softmax, noize = 0.1", "E0302", "no argument `noize`"),
    ("linear(2) -> softmax, noise = -0.1", "E0404", "`noise` of a filter is a number from 0 up"),
    ("linear(2) -> softmax, noise = true", "E0404", "a number from 0 up"),
    ("linear(2) -> softmax, keep_first = 1, keep = 1", "E0404", "true or false"),
    ("linear(2), keep = 1, keep_first = true", "E0410", "`keep_first` needs a router that ends in a normaliser"),
    ("linear(2), z_loss = 0.1", "E0410", "`z_loss` needs a router that ends in a normaliser"),
    ("linear(2) -> softmax, keep_first = true", "E0410", "says nothing without `keep`"),
    ("linear(2) -> softmax, cache = true", "E0410", "says nothing without `per_sample`"),
    ("linear(2) -> softmax, keep = 1, keep_first = true, renormalise = true", "E0410", "exclude each other"),
    ("linear(2) -> softmax, noise = 0.1, learned_noise = true", "E0410", "exclude each other"),
    ('linear(2) -> softmax, balance = 1, balance_form = "shazeer"', "E0404", "one of switch, document"),
    ("linear(2) -> softmax, keep = 1, groups = 3", "E0410", "2 branches in 3 groups"),
    ("linear(2) -> softmax, keep = 2, groups = 2, keep_groups = 1", "E0410", "1 groups hold 1 branches"),
    ("linear(2) -> softmax, capacity = -1", "E0404", "`capacity` of a filter is a whole number"),
    ("linear(2) -> softmax, width = 0", "E0404", "`width` is a positive whole number"),
    ("rearrange(\"b t d -> t b d\") -> linear(2) -> softmax", "E0204", "no weights of tokens"),
]


@pytest.mark.parametrize(("inside", "code", "words"), BAD)
def test_diagnostics(inside, code, words):
    found = graphir.check(f"model M(x: float[B, T, 8]) -> float[B, T, 8] {{ return x -> filter({inside}) {{ a: linear(8)  b: gelu }} }}")
    assert [d.code for d in found] == [code], found
    assert words in found[0].message
    assert found[0].span is not None


def test_other_diagnostics():
    for inside, code, words in (
        ("filter(linear(2) -> softmax) { a: linear(3)  b: linear(4) }", "E0206", "a 3, b 4"),
        ("filter(linear(2) -> softmax, branches = [])", "E0410", "at least one branch"),
        ("filter(linear(2) -> softmax)", "E0410", "branches in braces"),
    ):
        found = graphir.check(f"model M(x: float[B, T, 8]) -> float[B, T, 8] {{ return x -> {inside} }}")
        assert found[0].code == code
        assert words in found[0].message
    misspelt = graphir.check("model M(x: float[B, 8]) -> float[B, 8] { return x -> filter(linear(1), noize = 1) { a: id } }")[0]
    assert "noise" in " ".join(misspelt.help)
