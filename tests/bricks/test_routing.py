"""Fork, filter, the orders of keeping, group-limited and biased choice, capacity, noise: values, ties, gradients, errors."""

import pytest
import torch
from brick_cases import case, use

from graphir.bricks.declare import REGISTRY
from graphir.bricks.signature import Misfit
from graphir.ir.dims import Facts, symbol
from graphir.ir.graph import Attrs
from graphir.ir.types import Type


def test_filter_is_the_weighted_sum_of_its_branches():
    w, branches = torch.randn(2, 5, 3), [torch.randn(2, 5, 4) for _ in range(3)]
    torch.testing.assert_close(use("filter", w, *branches), torch.einsum("btn,nbtd->btd", w, torch.stack(branches)))
    one = torch.randn(2, 1, 3)
    torch.testing.assert_close(use("filter", one, *branches), torch.einsum("bn,nbtd->btd", one[:, 0], torch.stack(branches)))


B, T = symbol("B"), symbol("T")


@pytest.mark.parametrize(
    ("types", "attrs", "code", "words"),
    [
        ([(B, T, 3), (B, T, 4), (B, T, 4)], {}, "E0205", "gives 3 scores for 2 branches"),
        ([(B, T, 2), (B, T, 4), (B, T, 5)], {}, "E0205", "branches have shapes"),
        ([(B, T, 2), (B, 4), (B, 4)], {}, "E0205", "no weights of tokens"),
        ([(B, T, 2)], {}, "E0305", "at least one branch"),
        ([(B, T, 2), (B, T, 4), (B, T, 4)], {"branches": ("a",)}, "E0305", "names 1 branches"),
    ],
)
def test_filter_refuses(types, attrs, code, words):
    with pytest.raises(Misfit) as failed:
        REGISTRY["filter"].infer(tuple(Type("float", t) for t in types), Attrs(attrs), Facts())
    assert failed.value.code == code
    assert words in failed.value.message


def test_fork_needs_a_branch():
    with pytest.raises(Misfit, match="at least one branch"):
        REGISTRY["fork"].infer((Type("float", (B, 4)),), Attrs(branches=()), Facts())


def test_the_two_orders_of_keeping():
    z = torch.tensor([2.0, 1.0, 0.5, -1.0])
    softmax_first = use("keep_top(2)", use("softmax", z))
    keep_first = use("softmax", use("keep_logits(2)", z))
    torch.testing.assert_close(softmax_first, keep_first)
    not_renormalised = use("keep_top(2, renormalise = false)", use("softmax", z))
    torch.testing.assert_close(not_renormalised, torch.tensor([*torch.softmax(z, -1)[:2].tolist(), 0.0, 0.0]))
    # with sparsemax the orders differ: what is kept decides what is projected
    sparse = torch.tensor([0.5, 0.4, 0.3])
    assert not torch.allclose(use("keep_top(2)", use("sparsemax", sparse)), use("sparsemax", use("keep_logits(2)", sparse)))


def test_ties_go_to_the_lower_index():
    equal = torch.full((3, 40), 0.025)
    assert use("keep_top(2)", equal)[0].nonzero().flatten().tolist() == [0, 1]
    assert use("keep_logits(3)", equal)[0].isfinite().nonzero().flatten().tolist() == [0, 1, 2]
    x = torch.tensor([1.0, 2.0, 2.0, 0.0, 2.0])
    values, places = use("topk(4)", x)
    assert values.tolist() == [2, 2, 2, 1]
    assert places.tolist() == [1, 2, 4, 0]
    assert use("argmax", torch.ones(7)).item() == 0


def test_nothing_kept_is_nothing():
    w = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    y = use("keep_top(2)", w)
    assert y.tolist() == [[0, 0, 0]]
    y.sum().backward()
    assert w.grad.isfinite().all()


def test_keep_logits_has_the_gradient_of_what_it_kept():
    def run(z):
        return use("softmax", use("keep_logits(2)", z))

    z = torch.tensor([[2.0, 1.0, 0.5, -1.0]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(run, z)
    run(z)[0, 0].backward()
    assert z.grad[0, 2:].tolist() == [0, 0]


@pytest.mark.parametrize("text", ["keep_top(5)", "keep_logits(5)", "keep_top(0)", "keep_biased(5)", "softmax_mad(5)"])
def test_more_kept_than_there_are(text):
    with pytest.raises(Misfit) as failed:
        use(text, torch.randn(2, 4), bias=torch.zeros(4)) if "biased" in text else use(text, torch.randn(2, 4))
    assert failed.value.code == "E0210"


def test_group_keep():
    x = torch.tensor([0.75, 0.0, 0.5, 0.5, 0.5, 0.25])  # the pairs sum to 0.75, 1, 0.75: the tie goes to the first
    assert use("group_keep(3, 2)", x).tolist() == [0.75, 0, 0.5, 0.5, 0, 0]
    assert use("group_keep(3, 2, by = 1)", x).tolist() == [0.75, 0, 0.5, 0.5, 0, 0]
    assert use("group_keep(3, 1, by = 1)", x).tolist() == [0.75, 0, 0, 0, 0, 0]
    assert use("group_keep(3, 1)", x).tolist() == [0, 0, 0.5, 0.5, 0, 0]


def deepseek(scores, bias, k, groups, keep_groups, scale):
    """The published routing, written token by token."""
    out = torch.zeros_like(scores)
    for row, (s, choice) in enumerate(zip(scores.tolist(), (scores + bias).tolist())):
        size = len(s) // groups
        best = [sum(sorted(choice[g * size : (g + 1) * size])[-2:]) for g in range(groups)]
        inside = sorted(range(groups), key=lambda g: -best[g])[:keep_groups]
        allowed = [i for i in range(len(s)) if i // size in inside]
        chosen = sorted(allowed, key=lambda i: -choice[i])[:k]
        for i in chosen:
            out[row, i] = s[i] / sum(s[j] for j in chosen) * scale
    return out


def test_keep_biased_is_deepseek_v3():
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(30, 16, generator=generator, dtype=torch.float64)
    bias = torch.randn(16, generator=generator, dtype=torch.float64)
    mine = use("keep_biased(3, groups = 4, keep_groups = 2, scale = 2.5)", scores, bias=bias)
    torch.testing.assert_close(mine, deepseek(scores, bias, 3, 4, 2, 2.5))
    assert (mine != deepseek(scores, 0 * bias, 3, 4, 2, 2.5)).any(), "the bias decides"


def test_the_balance_bias_moves_outside_the_gradient_in_training_only():
    scores = torch.tensor([[0.9, 0.5, 0.1], [0.8, 0.6, 0.1], [0.7, 0.2, 0.1]], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(3, dtype=torch.float64)
    it = case("keep_biased", "keep_biased(1, rate = 0.1) : float[3, 3]")
    it.run([scores], {"bias": bias})
    assert bias.tolist() == [0, 0, 0]
    y = it.run([scores], {"bias": bias}, training=True)[0]
    assert bias.tolist() == pytest.approx([-0.1, 0.1, 0.1])
    assert y.argmax(-1).tolist() == [0, 0, 0], "the choice of this call was made before"
    for _ in range(20):
        it.run([scores], {"bias": bias}, training=True)
    assert it.run([scores], {"bias": bias})[0].argmax(-1).unique().numel() > 1, "the load has spread"


def test_capacity_drops_the_tokens_that_come_too_late():
    w = torch.tensor([[[1.0, 0.0], [0.5, 0.5], [0.25, 0.75], [0.0, 1.0]]]).expand(2, 4, 2)
    y = use("capacity(2)", w)
    assert y[0].tolist() == [[1, 0], [0.5, 0.5], [0, 0.75], [0, 0]]
    assert torch.equal(use("capacity(9)", w), w)
    assert use("capacity(0)", w).abs().max() == 0
    assert use("drop_rate", w, y).item() == pytest.approx(2 / 6)


def test_expert_choice_is_in_perfect_balance():
    p = torch.randn(3, 8, 4).softmax(-1)
    y = use("expert_choice(factor = 2.0)", p)
    assert ((y != 0).sum(1) == 4).all(), "8 tokens * 2 / 4 branches"
    for b in range(3):
        for n in range(4):
            best = p[b, :, n].topk(4).indices
            torch.testing.assert_close(y[b, best, n], p[b, best, n])
    assert ((use("expert_choice(factor = 0.01)", p) != 0).sum(1) == 1).all(), "at least one"
    assert use("expert_choice(factor = 99.0)", p).equal(p), "at most all"


@pytest.mark.parametrize(("text", "spread"), [("noise(std = 0.1)", 0.1), ("jitter(amount = 0.1)", 0.2 / 12**0.5)])
def test_noise_is_for_training(text, spread):
    x = torch.ones(20000)
    assert torch.equal(use(text, x), x)
    torch.manual_seed(0)
    y = use(text, x, training=True)
    assert y.mean().item() == pytest.approx(1, abs=5e-3)
    assert y.std().item() == pytest.approx(spread, rel=0.05)
    if "jitter" in text:
        assert y.min() >= 0.9
        assert y.max() <= 1.1


def test_learned_noise():
    logits, x, weight = torch.zeros(20000, 2), torch.ones(20000, 1), torch.tensor([[0.0], [2.0]])
    it = case("learned_noise", "learned_noise : float[20000, 2], float[20000, 1]")
    assert torch.equal(it.run([logits, x], {"weight": weight})[0], logits)
    torch.manual_seed(0)
    y = it.run([logits, x], {"weight": weight}, training=True)[0]
    torch.testing.assert_close(y.std(0), torch.nn.functional.softplus(weight[:, 0]), rtol=0.05, atol=0)


@pytest.mark.parametrize(("name", "text", "cut"), [
    ("capacity", "capacity(3) : float[2, 9, 4]", 4),
    ("shift_tokens", "shift_tokens(n = 2) : float[2, 9, 4]", 1),
    ("cumsum", "cumsum : float[2, 9, 4]", 5),
])
def test_prefill_and_steps_are_the_whole_sequence(name, text, cut):
    it = case(name, text)
    x = it.inputs()[0]
    x = x * (x > 0) if name == "capacity" else x
    rule, names = it.declaration.state, it.declaration.names(it.types, it.attrs, Facts())
    dtypes = {"int": torch.int64, "float": torch.float64}
    state = {k: torch.zeros(s, dtype=dtypes[d]) for k, (s, d) in rule.init(it.types, names).items()}
    parts = [x[:, :cut], *[x[:, i : i + 1] for i in range(cut, 9)]]
    out = []
    for part in parts:
        y, state = rule.step(state, part, **it.declaration.static_arguments(it.attrs))
        out.append(y)
    torch.testing.assert_close(torch.cat(out, 1), it.run([x], {})[0])
