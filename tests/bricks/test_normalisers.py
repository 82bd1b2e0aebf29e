"""Normalisers against published numbers, the `entmax` package and torch; gradients of the hard and sampled ones."""

import entmax as oracle
import pytest
import torch
from brick_cases import case, use

from graphir.bricks.signature import Misfit

Z = torch.tensor([2.0, 1.8, 0.1], dtype=torch.float64)


@pytest.mark.parametrize(
    ("text", "wanted", "within"),
    [
        ("softmax", [0.5081, 0.4160, 0.0760], 1e-4),
        ("softmax(temperature = 0.1)", [0.8808, 0.1192, 5e-9], 1e-4),
        ("softmax(temperature = 5.0)", [0.3781, 0.3633, 0.2586], 1e-4),
        ("sparsemax", [0.6, 0.4, 0.0], 1e-12),
        ("entmax", [0.5705, 0.4295, 0.0], 1e-4),
    ],
)
def test_check_values(text, wanted, within):
    torch.testing.assert_close(use(text, Z), torch.tensor(wanted, dtype=torch.float64), atol=within, rtol=0)


def test_sparsemax_values_and_zeros():
    y = use("sparsemax", torch.tensor([[3.0, 1.0, -1.0, -3.0], [0.2, 0.1, 0.0, -9.0]]))
    assert y[0].tolist() == [1, 0, 0, 0]
    torch.testing.assert_close(y[1], torch.tensor([0.4333, 0.3333, 0.2333, 0.0]), atol=1e-4, rtol=0)
    assert y[1, 3] == 0


@pytest.mark.parametrize("width", [1, 2, 7, 40])
@pytest.mark.parametrize("alpha", [1.0, 1.1, 1.3, 1.5, 1.9, 2.0, 2.5, 3.0])
def test_entmax_agrees_with_the_package(alpha, width):
    generator = torch.Generator().manual_seed(width)
    x = (torch.randn(50, width, generator=generator, dtype=torch.float64) * 3).requires_grad_()
    seen = torch.randn(50, width, generator=generator, dtype=torch.float64)
    mine = case("entmax", f"entmax(alpha = {alpha}) : float[50, {width}]").run([x], {})[0]
    theirs = {1.0: torch.softmax, 1.5: oracle.entmax15, 2.0: oracle.sparsemax}.get(alpha)
    other = theirs(x, -1) if theirs else oracle.entmax_bisect(x, alpha, -1, 60)
    torch.testing.assert_close(mine, other, atol=1e-6, rtol=0)
    torch.testing.assert_close(mine.sum(-1), torch.ones(50, dtype=torch.float64), atol=1e-9, rtol=0)
    wanted = torch.autograd.grad(other, x, seen)[0]
    torch.testing.assert_close(torch.autograd.grad(mine, x, seen)[0], wanted, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("text", ["softmax", "sparsemax", "entmax", "entmax(alpha = 1.3)", "entmax(alpha = 2.5)"])
def test_minus_infinity_has_no_weight(text):
    x = torch.tensor([[1.0, 0.5, -torch.inf], [-torch.inf, 3.0, -torch.inf]], dtype=torch.float64, requires_grad=True)
    y = use(text, x)
    kept = use(text, torch.tensor([[1.0, 0.5]], dtype=torch.float64))
    torch.testing.assert_close(y[0, :2], kept[0])
    assert y[:, 2].tolist() == [0, 0]
    assert y[1].tolist() == [0, 1, 0]
    (y * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("text", ["sparsemax", "entmax", "entmax(alpha = 1.3)"])
def test_half_precision_is_as_good_as_float32(text):
    x = torch.randn(20, 300, generator=torch.Generator().manual_seed(0)).bfloat16()
    torch.testing.assert_close(use(text, x), use(text, x.float()).bfloat16())


def test_equal_scores_share_equally():
    for text in ("softmax", "sparsemax", "entmax", "entmax(alpha = 1.2)"):
        torch.testing.assert_close(use(text, torch.zeros(2, 4)), torch.full((2, 4), 0.25))


def test_softmax_masked():
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True, True, False, True], [False] * 4, [True] * 4])
    y = use("softmax_masked(temperature = 0.5)", x, mask)
    torch.testing.assert_close(y[0, [0, 1, 3]], torch.softmax(x[0, [0, 1, 3]] / 0.5, -1))
    assert y[0, 2] == 0
    assert y[1].tolist() == [0.25] * 4
    torch.testing.assert_close(y[2], torch.softmax(x[2] / 0.5, -1))
    (y * torch.randn(3, 4, dtype=torch.float64)).sum().backward()
    assert x.grad.isfinite().all()
    assert x.grad[1].abs().max() == 0


def test_grid_softmax_is_a_softmax_for_each_row():
    x = torch.randn(5, 6)
    assert torch.equal(use("grid_softmax(3)", x), x.reshape(5, 2, 3).softmax(-1).reshape(5, 6))


def test_hierarchical_softmax_is_a_product_along_the_tree():
    x = torch.randn(4, 2 + 6 + 12, dtype=torch.float64)
    top, middle, bottom = x[:, :2].softmax(-1), x[:, 2:8].reshape(4, 2, 3).softmax(-1), x[:, 8:].reshape(4, 2, 3, 2).softmax(-1)
    wanted = (top[:, :, None, None] * middle[..., None] * bottom).reshape(4, 12)
    y = use("hierarchical_softmax([2, 3, 2])", x)
    torch.testing.assert_close(y, wanted)
    torch.testing.assert_close(y.sum(-1), torch.ones(4, dtype=torch.float64))
    with pytest.raises(Misfit, match="takes 2 \\+ 6 = 8 scores, not 6"):
        use("hierarchical_softmax([2, 3])", x[:, :6])


def test_mixture_softmax():
    x = torch.randn(4, 3 + 3 * 5, dtype=torch.float64)
    wanted = torch.einsum("bk,bkn->bn", x[:, :3].softmax(-1), x[:, 3:].reshape(4, 3, 5).softmax(-1))
    torch.testing.assert_close(use("mixture_softmax(3)", x), wanted)


def test_softmax_mad_gives_inactive_branches_weight():
    y = use("softmax_mad(2)", torch.tensor([2.0, 1.0, 0.5, -1.0]))
    torch.testing.assert_close(y, torch.tensor([0.610, 0.225, 0.083, 0.083]), atol=5e-4, rtol=0)
    true = use("softmax", use("keep_logits(2)", torch.tensor([2.0, 1.0, 0.5, -1.0])))
    torch.testing.assert_close(true, torch.tensor([0.731, 0.269, 0.0, 0.0]), atol=5e-4, rtol=0)


def test_hardmax():
    x = torch.tensor([[1.0, 3.0, 3.0], [2.0, 2.0, 1.0]], requires_grad=True)
    y = use("hardmax", x)
    assert y.tolist() == [[0, 1, 0], [1, 0, 0]]
    assert not y.requires_grad
    straight = use("hardmax(straight_through = true)", x)
    assert straight.tolist() == y.tolist()
    seen = torch.randn(2, 3)
    given = torch.autograd.grad(straight, x, seen)[0]
    torch.testing.assert_close(given, torch.autograd.grad(x.softmax(-1), x, seen)[0])
    assert given.abs().max() > 0


def test_gumbel_samples_the_softmax_in_training_and_is_it_otherwise():
    x = torch.tensor([1.0, 0.0, -1.0])
    assert torch.equal(use("gumbel(temperature = 0.5)", x), torch.softmax(x / 0.5, -1))
    torch.manual_seed(0)
    many = use("gumbel(straight_through = true)", x.expand(40000, 3), training=True)
    assert set(many.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(many.mean(0), x.softmax(-1), atol=0.01, rtol=0)
    torch.manual_seed(1)
    first = use("gumbel", x, training=True)
    torch.manual_seed(1)
    assert torch.equal(first, use("gumbel", x, training=True))
    assert not torch.equal(first, use("gumbel", x))


def test_gumbel_straight_through_has_the_gradient_of_the_soft_sample():
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    seen = torch.randn(3, 4, dtype=torch.float64)
    torch.manual_seed(3)
    hard = torch.autograd.grad(use("gumbel(straight_through = true)", x, training=True), x, seen)[0]
    torch.manual_seed(3)
    soft = torch.autograd.grad(use("gumbel", x, training=True), x, seen)[0]
    torch.testing.assert_close(hard, soft)
