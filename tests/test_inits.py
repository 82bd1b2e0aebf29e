"""How weights start, what is frozen, and which group of an optimiser trains what."""

from __future__ import annotations

import pytest
import torch
from models import initial, model, problem, run, tokens

import graphir
from graphir.backends.weights import MAKERS
from graphir.bricks.inits import TAKES, check_init, read_init
from graphir.bricks.signature import Misfit
from graphir.lang.diagnostic import GraphirError

X = tokens()


def inits(body, **options):
    return {name: w.init for name, w in model(body, **options).weights.items()}


# words


def test_the_words_that_checking_knows_are_those_that_can_be_made():
    assert set(TAKES) == set(MAKERS)


@pytest.mark.parametrize(
    ("word", "wanted"),
    [
        ("zeros", lambda w: not w.any()),
        ("identity", lambda w: torch.equal(w, torch.eye(8).double())),
        ("orthogonal", lambda w: torch.allclose(w @ w.T, torch.eye(8).double(), atol=1e-5)),
        ("small", lambda w: 0 < w.abs().max() < 0.05),
        ("normal(0.5)", lambda w: 0.3 < w.std() < 0.7),
        ("ones", lambda w: (w == 1).all()),
    ],
)
def test_words_on_any_brick(word, wanted):
    w = initial(model(f'x -> linear(8, init = "{word}")'))
    assert wanted(w["linear.weight"])
    assert not w["linear.bias"].any(), "the bias starts as ever"


def test_a_number_is_a_constant():
    assert inits("x -> linear(8, init = 0.25)")["linear.weight"] == "constant(0.25)"


@pytest.mark.parametrize(
    ("brick", "weight"),
    [
        ('depthwise_conv1d(3, init = "zeros")', "depthwise_conv1d.weight"),
        ('rmsnorm(init = "zeros")', "rmsnorm.weight"),
        ('gain(init = "zeros")', "gain.weight"),
        ('stitch(8, init = "zeros")', "stitch.weight"),
        ('headwise_linear(2, init = "zeros")', "headwise_linear.weight"),
    ],
)
def test_every_brick_with_weights_takes_one(brick, weight):
    assert inits(f"x -> {brick}")[weight] == "zeros"


@pytest.mark.parametrize(
    ("brick", "help"),
    [
        ('linear(8, init = "zero")', "zeros"),
        ('gain("onez")', "ones"),
        ('linear(8, init = "hee")', "he"),
        ('linear(8, init = "normal(0.1, 2)")', ""),
        ("linear(8, init = true)", ""),
        ('linear(8, init = "he * x")', ""),
        ('with_init(MLP, "zerros")', "zeros"),
    ],
)
def test_unknown_words_are_told_where_they_stand_before_anything_is_made(brick, help):
    found = problem(f"x -> {brick}")
    assert found.code == "E0404"
    assert found.span.text in f"x -> {brick}"
    assert help in " ".join(found.help)


def test_the_span_is_that_of_the_argument():
    assert problem('x -> linear(8, init = "zero")').span.text == 'init = "zero"'


# factors and depth


def test_factors():
    assert read_init("normal(0.02) * 0.5 * 2.0").factor == 1.0
    plain, half = (initial(model(f"x -> linear(8, init = {i}) as f"))["f.weight"] for i in ('"he"', 'scaled_init("he", 0.5)'))
    torch.testing.assert_close(half, plain * 0.5)
    for wrong in ("he * ", "he*2", "2 * he", "he * inf", "he * nan"):
        with pytest.raises(Misfit):
            check_init(wrong)


@pytest.mark.parametrize("depth", [2, 12])
def test_a_start_that_depends_on_the_depth(depth):
    graph = model(f'return x -> ([residual(linear(8, init = scaled_init("normal(0.02)", 1.0 / sqrt(2 * {depth}))))] * {depth})')
    word = graph.weights["layers.1.f.weight"].init
    assert read_init(word)[:2] == ("normal", (0.02,))
    assert read_init(word).factor == pytest.approx((2 * depth) ** -0.5)


def test_dumps_keep_factors():
    from graphir.ir.text import read

    graph = model('x -> linear(8, init = scaled_init("normal(0.02)", 0.1))')
    assert read(str(graph)).weights["linear.weight"].init == graph.weights["linear.weight"].init


# with_init


def test_with_init_reaches_every_matrix_and_leaves_norms_and_biases_alone():
    found = inits('x -> with_init(residual(rmsnorm -> Attention(2)) -> MLP, "orthogonal") as f')
    for name, init in found.items():
        matrix = name.rsplit(".", 2)[-2] in ("q", "k", "v", "o", "up", "down") and name.endswith("weight")
        assert (init == "orthogonal") == matrix, name
    assert sum(init == "orthogonal" for init in found.values()) == 6


def test_with_init_of_all_weights_is_that_of_the_composition_document():
    found = inits('x -> with_init(rmsnorm -> MLP, "small", weights = "all") as f')
    assert set(found.values()) == {"small"}
    assert len(found) == 5


def test_with_init_of_the_last_matrix_starts_silent_and_still_learns():
    graph = model('x -> residual(with_init(rmsnorm -> MLP, "zeros", weights = "last"))')
    w = {n: t.requires_grad_() for n, t in initial(graph).items()}
    assert torch.equal(run(graph, w, X), X)
    run(graph, w, X, training=True).square().sum().backward()
    down = next(n for n in w if n.endswith("down.weight"))
    assert w[down].grad.any()
    everything = model('x -> residual(with_init(rmsnorm -> MLP, "zeros"))')
    w = {n: t.requires_grad_() for n, t in initial(everything).items()}
    run(everything, w, X, training=True).square().sum().backward()
    assert not any(w[n].grad.any() for n in w if n.endswith(("up.weight", "down.weight"))), (
        "all matrices at zero never move: why `last` is there"
    )


def test_what_stands_nearer_to_the_weight_wins():
    found = inits('x -> with_init(with_init(linear(8) as a, "ones") -> linear(8, init = "eye") as b -> linear(8) as c, "zeros") as f')
    assert [found[f"f.{n}.weight"] for n in "abc"] == ["ones", "eye", "zeros"]


def test_with_init_by_name_and_factor():
    found = inits('x -> with_init(Attention(2), factor = 0.5, names = ["v", "o"]) as f')
    assert found == {"f.q.weight": "he", "f.k.weight": "he", "f.v.weight": "he * 0.5", "f.o.weight": "he * 0.5"}
    nested = inits("x -> with_init(with_init(linear(8), factor = 0.5), factor = 0.5) as f")
    assert nested["f.weight"] == "he * 0.25", "factors multiply"


def test_repeats_inside_and_outside_of_with_init_are_kept_apart():
    found = inits(
        'x -> ([MLP] * 2) as a -> with_init([MLP] * 2, "zeros", weights = "last") as b'
        ' -> with_init([MLP] * 3, "zeros", weights = "last") as c -> [MLP] as d'
    )
    silent = [n for n, init in found.items() if init == "zeros" and n.endswith("weight")]
    assert silent == ["b.1.down.weight", "c.2.down.weight"]


@pytest.mark.parametrize(
    ("form", "code"),
    [
        ("with_init(MLP)", "E0303"),
        ('with_init("zeros")', "E0306"),
        ('with_init(MLP, "zeros", weights = "some")', "E0404"),
        ('with_init(MLP, "zeros", names = "up")', "E0404"),
        ('with_init(MLP, factor = "half")', "E0404"),
    ],
)
def test_with_init_refuses(form, code):
    assert problem(f"x -> {form}").code == code


# frozen weights and parameter groups


def net(body="frozen(linear(8) as a) -> ([residual(rmsnorm -> MLP(16))] * 3) -> linear(8) as head"):
    return graphir.compile(model(f"x -> {body}"))


def names(module, group):
    known = {id(p): n for n, p in module.named_parameters()}
    return [known[id(p)] for p in group["params"]]


def test_frozen_weights_do_not_move():
    module = net()
    optimiser = torch.optim.SGD(graphir.parameter_groups(module, []), lr=0.1)
    before = {n: p.clone() for n, p in module.named_parameters()}
    module(X.float()).square().sum().backward()
    optimiser.step()
    moved = {n for n, p in module.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {n for n in before if not n.startswith("a.")}


def test_groups_by_pattern():
    module = net()
    groups = graphir.parameter_groups(
        module,
        [
            {"match": "layers.0.**", "lr": 1e-4},
            {"match": ["**.bias", "layers.*.f.rmsnorm.*"], "weight_decay": 0.0},
        ],
        frozen="skip",
        lr=1e-3,
    )
    first, second, rest = (names(module, g) for g in groups)
    assert first == [n for n in before(module) if n.startswith("layers.0.")]
    assert set(second) == {n for n in before(module) if not n.startswith(("layers.0.", "a.")) and (n.endswith("bias") or "rmsnorm" in n)}
    assert set(rest) == set(before(module)) - set(first) - set(second) - {"a.weight", "a.bias"}
    assert [g.get("lr") for g in groups] == [1e-4, None, 1e-3]
    assert groups[1]["param_names"] == second
    optimiser = torch.optim.AdamW(groups, lr=1e-2)
    assert [g["lr"] for g in optimiser.param_groups] == [1e-4, 1e-2, 1e-3]


def before(module):
    return [n for n, _ in module.named_parameters()]


@pytest.mark.parametrize(
    ("groups", "code", "said"),
    [
        ([{"match": "layer.*.**"}], "E0704", "layer.*.**"),
        ([{"match": "layers.*.up.weight"}], "E0704", ""),
        ([{"match": "**"}, {"match": "head.*"}], "E0705", "a.weight"),
        ([{"match": "a.**", "lr": 1.0}], "E0705", "a.bias"),
        ([{"match": "head.**"}, {"match": "head.weight"}], "E0704", "earlier"),
        ([{"lr": 1.0}], "E0704", "match"),
        ([{"match": [3]}], "E0704", "match"),
    ],
)
def test_groups_refuse(groups, code, said):
    with pytest.raises(GraphirError) as failed:
        graphir.parameter_groups(net(), groups)
    assert failed.value.diagnostics[0].code == code
    assert said in failed.value.diagnostics[0].message


def test_frozen_weights_can_be_left_out():
    module = net()
    groups = graphir.parameter_groups(module, [{"match": "**", "lr": 1.0}], frozen="skip")
    assert names(module, groups[0]) == [n for n in before(module) if not n.startswith("a.")]


def test_shared_weights_are_in_one_group_once():
    module = graphir.compile(model("shared f = linear(8)\nreturn x -> f -> f"))
    groups = graphir.parameter_groups(module, [{"match": "f.*"}])
    assert names(module, groups[0]) == ["f.weight", "f.bias"]
    assert len(groups) == 1
