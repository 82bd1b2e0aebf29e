"""Joins and composition, written in `.arch`, against torch written by hand. Semantics: additive, gated, blended, attentive, grid."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from models import initial, model, problem, random_weights, run, tokens

X = tokens()


def linear(w, name, x):
    return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))


def check(body, wanted, x=X, result="float[B, T, 8]", **options):
    """The model gives what the function of its weights and input gives, with weights of which none is special."""
    graph = model(body, result=result, **options)
    w = random_weights(graph)
    torch.testing.assert_close(run(graph, w, x), wanted(w, x), rtol=1e-10, atol=1e-10)
    return graph, w


THREE = "fork { a: linear(8)  b: linear(8)  c: linear(8) }"


def outs(w, x, names="abc", at="fork"):
    return [linear(w, f"{at}.{n}", x) for n in names]


def test_add_is_base_plus_modules():
    check(f"x -> {THREE} -> add", lambda w, x: sum(outs(w, x)))
    check(f"x -> {THREE} -> add(alpha = 0.5)", lambda w, x: outs(w, x)[0] + 0.5 * sum(outs(w, x)[1:]))
    silent = model('x -> fork { base: linear(8)  new: linear(8, init = "zeros") } -> add')
    w = initial(silent)
    assert torch.equal(run(silent, w, X), linear(w, "fork.base", X)), "a zero-initialised module adds nothing, to the bit"


def test_mean_is_add_over_n_and_so_is_its_gradient():
    graph, w = check(f"x -> {THREE} -> mean", lambda w, x: sum(outs(w, x)) / 3)
    x = X.clone().requires_grad_()
    run(graph, w, x, training=True).sum().backward()
    torch.testing.assert_close(x.grad, sum(w[f"fork.{n}.weight"].sum(0) for n in "abc").expand_as(x) / 3)


def test_mul_and_max():
    check(f"x -> {THREE} -> mul", lambda w, x: math.prod(outs(w, x)))
    check(f"x -> {THREE} -> max", lambda w, x: torch.stack(outs(w, x)).amax(0))


def test_concat_and_stack_are_per_sample():
    check(f"x -> {THREE} -> concat", lambda w, x: torch.cat(outs(w, x), -1), result="float[B, T, 24]")
    check(f"x -> {THREE} -> stack(axis = 1)", lambda w, x: torch.stack(outs(w, x), 1), result="float[B, 3, T, 8]")


def test_gate_and_glu():
    check(
        "x -> fork { content: linear(8)  control: linear(8) } -> gate",
        lambda w, x: linear(w, "fork.content", x) * torch.sigmoid(linear(w, "fork.control", x)),
    )
    check("x -> GatedLinear(6)", lambda w, x: F.glu(linear(w, "GatedLinear.proj", x)), result="float[B, T, 6]")
    check(
        'x -> GatedLinear(6, activation = "silu")',
        lambda w, x: (lambda a, b: a * F.silu(b))(*linear(w, "GatedLinear.proj", x).chunk(2, -1)),
        result="float[B, T, 6]",
    )


def test_blends():
    check(f"x -> {THREE} -> blend(weights = [0.5, 0.3, 0.2])", lambda w, x: 0.5 * outs(w, x)[0] + 0.3 * outs(w, x)[1] + 0.2 * outs(w, x)[2])
    graph, _ = check(
        f"x -> {THREE} -> blend(learnable = true)",
        lambda w, x: torch.einsum("n,nbtd->btd", w["blend.logits"].softmax(0), torch.stack(outs(w, x))),
    )
    w = initial(graph)
    torch.testing.assert_close(run(graph, w, X), sum(outs(w, X)) / 3)


@pytest.mark.parametrize("start", [0.5, 0.7, 0.01])
def test_interpolation_starts_where_it_is_told(start):
    body = f"x -> Interpolate(linear(8), linear(8), start = {start})"

    def wanted(w, x):
        share = torch.sigmoid(w["Interpolate.mixing.weight"])
        return share * linear(w, "Interpolate.f", x) + (1 - share) * linear(w, "Interpolate.g", x)

    graph, _ = check(body, wanted)
    assert torch.sigmoid(initial(graph)["Interpolate.mixing.weight"]).item() == pytest.approx(start, abs=1e-6)


def test_attend_is_a_softmax_over_branches_per_token():
    def wanted(w, x):
        values = torch.stack(outs(w, x, "01", "AttentiveEnsemble.members"), -2)
        q = F.linear(x, w["AttentiveEnsemble.attend.query_weight"]).unsqueeze(-2)
        k = F.linear(values, w["AttentiveEnsemble.attend.key_weight"])
        shares = ((q @ k.mT) / math.sqrt(6)).softmax(-1)
        return (shares @ values).squeeze(-2)

    check("x -> AttentiveEnsemble([linear(4), linear(4)], hidden = 6)", wanted, result="float[B, T, 4]")


@pytest.mark.parametrize(
    ("join", "wanted"),
    [
        ("mean", lambda o: sum(o) / 2),
        ("add", sum),
        ("concat", lambda o: torch.cat(o, -1)),
        ("max", lambda o: torch.maximum(*o)),
    ],
)
def test_independent_ensembles(join, wanted):
    width = 16 if join == "concat" else 8
    check(
        f"x -> Ensemble([linear(8), linear(8)], {join})",
        lambda w, x: wanted(outs(w, x, "01", "Ensemble.members")),
        result=f"float[B, T, {width}]",
    )


def test_listed_forks_are_forks_and_may_share():
    graph = model("shared f = linear(8)\nreturn x -> fork([f, f, linear(8)]) -> add")
    assert graph.ops["fork"] == 1
    assert sorted(graph.weights) == ["f.bias", "f.weight", "fork.2.bias", "fork.2.weight"]
    w = random_weights(graph)
    torch.testing.assert_close(run(graph, w, X), 2 * linear(w, "f", X) + linear(w, "fork.2", X))
    assert problem("x -> fork([]) -> add").code == "E0410"
    assert problem("x -> fork(3) -> add").code == "E0306"


def test_a_branch_may_be_another_module_by_name_and_gradients_accumulate():
    graph = model("shared f = linear(8, bias = false)\nreturn x -> fork { a: f  b: f } -> add")
    w = {n: t.requires_grad_() for n, t in random_weights(graph).items()}
    run(graph, w, X, training=True).sum().backward()
    torch.testing.assert_close(w["f.weight"].grad, 2 * X.sum((0, 1)).expand(8, 8))


def test_stream_reads_and_adds_in_turn():
    def wanted(w, x):
        for i in range(3):
            x = x + linear(w, f"Stream.layers.{i}.f", x)
        return x

    check("x -> Stream([linear(8)] * 3)", wanted)


@pytest.mark.parametrize("heads", [1, 3])
def test_stream_module_reads_and_writes_through_projections(heads):
    graph, _ = check(
        f"x -> StreamModule(linear({8 * heads}), heads = {heads})",
        lambda w, x: x + linear(w, "StreamModule.write", linear(w, "StreamModule.f", linear(w, "StreamModule.read", x))),
    )
    assert graph.weights["StreamModule.read.weight"].shape == (8 * heads, 8)
    assert graph.weights["StreamModule.write.weight"].shape == (8, 8 * heads)
    silent = model(f'x -> StreamModule(linear({8 * heads}), heads = {heads}, init = "zeros")')
    assert torch.equal(run(silent, initial(silent), X), X)


def test_grid_puts_branches_in_cells():
    widths = "fork { a: linear(2)  b: linear(3)  c: linear(4) }"
    check(
        f"x -> {widths} -> grid([(1, 0), (0, 1), (0, 0)], shape = (2, 2))",
        lambda w, x: torch.cat(outs(w, x, "cba"), -1),
        result="float[B, T, 9]",
    )
    check(
        f"x -> {widths} -> grid([(0, 0, 1), (0, 0, 0), (1, 0, 0)], shape = (2, 1, 2))",
        lambda w, x: torch.cat(outs(w, x, "bac"), -1),
        result="float[B, T, 9]",
    )
    check(f"x -> {widths} -> grid", lambda w, x: torch.cat(outs(w, x), -1), result="float[B, T, 9]")


@pytest.mark.parametrize(("count", "side"), [(1, 1), (2, 2), (4, 2), (5, 3), (9, 3), (10, 4)])
def test_grid_layout_is_the_smallest_square(count, side):
    assert side == math.ceil(math.sqrt(count))
    graph = model(f"x -> linear(grid_side({count}))", result=f"float[B, T, {side}]")
    assert graph.weights["linear.weight"].shape == (side, 8)
    explicit = model(
        f"x -> fork([linear(2)] * {count}) -> grid(grid_positions({count}), shape = ({side}, {side}))", result=f"float[B, T, {2 * count}]"
    )
    default = model(f"x -> fork([linear(2)] * {count}) -> grid", result=f"float[B, T, {2 * count}]")
    w = random_weights(explicit)
    assert torch.equal(run(explicit, w, X), run(default, w, X))


def test_hard_routes_train_only_the_chosen_branch():
    graph = model("x -> filter(linear(2) -> hardmax) { a: linear(8)  b: linear(8) }")
    w = random_weights(graph)
    w["filter.router.linear.weight"] = torch.zeros(2, 8, dtype=torch.float64)
    w["filter.router.linear.bias"] = torch.tensor([0.0, 1.0], dtype=torch.float64)
    w = {n: t.requires_grad_() for n, t in w.items()}
    out = run(graph, w, X, training=True)
    torch.testing.assert_close(out, linear(w, "filter.b", X))
    out.sum().backward()
    assert w["filter.a.weight"].grad is None or not w["filter.a.weight"].grad.any()
    assert w["filter.b.weight"].grad.any()


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("x -> fork { a: linear(8)  b: linear(6) } -> add", "E0206"),
        ("x -> fork { a: linear(8)  b: linear(8) } -> blend", "E0210"),
        ("x -> fork { a: linear(8)  b: linear(8) } -> blend(weights = [1.0])", "E0210"),
        ("x -> fork { a: linear(4)  b: linear(4) } -> grid([(0, 0), (0, 0)], shape = (1, 2))", "E0210"),
        ("x -> fork { a: linear(4)  b: linear(4) } -> grid([(0, 0), (1, 0)], shape = (1, 2))", "E0405"),
        ("x -> Interpolate(linear(8), linear(8), start = 1.5)", "E0405"),
    ],
)
def test_refusals(body, code):
    assert problem(body).code == code


def test_widths_are_stitched_on_request():
    graph = model("x -> fork { a: linear(8)  b: linear(6) } -> add(width = 8)")
    w = random_weights(graph)
    assert graph.ops["stitch"] == 1
    stitch = next(n for n in graph.nodes if n.op == "stitch").where.path
    torch.testing.assert_close(run(graph, w, X), linear(w, "fork.a", X) + linear(w, stitch, linear(w, "fork.b", X)))


@pytest.mark.parametrize(
    "body",
    [
        "x -> Interpolate(linear(8), linear(8))",
        "x -> AttentiveEnsemble([linear(8), linear(8)], hidden = 4)",
        "x -> GatedLinear(8)",
        "x -> StreamModule(linear(16), heads = 2)",
        "x -> fork([linear(8), linear(8)]) -> grid(width = 4)",
    ],
)
def test_gradients(body):
    graph = model(body)
    w = random_weights(graph)
    names = list(w)
    from graphir.backends.interpreter import Interpreter

    def f(x, *values):
        return Interpreter(graph, dict(zip(names, values)), torch.float64).run({"x": x})["output"]

    assert torch.autograd.gradcheck(f, [tokens(1, 2, 8).requires_grad_(), *(t.requires_grad_() for t in w.values())], fast_mode=True)
