"""Patterns against torch written by hand, their symbolic shapes, and what they refuse."""

import pytest
import torch
from brick_cases import use

from graphir.bricks.catalogue import tensor  # noqa: F401
from graphir.bricks.declare import REGISTRY
from graphir.bricks.einops import apply, plan, shape_of
from graphir.bricks.signature import Misfit
from graphir.ir.dims import Facts, symbol
from graphir.ir.types import Type

B, T, H, W = map(symbol, "BTHW")


def shape(pattern, dims, kind="rearrange", facts=None, **sizes):
    return shape_of(pattern, kind, dims, tuple(sizes.items()), facts or Facts())


def run(pattern, x, kind="rearrange", op="", **sizes):
    y = apply(x, plan(pattern, kind), sizes, op)
    assert tuple(y.shape) == shape(pattern, tuple(x.shape), kind, **sizes)
    return y


def test_rearrange_is_what_one_writes_by_hand():
    x = torch.randn(2, 3, 8)
    assert torch.equal(run("b t (h k) -> b h t k", x, h=4), x.reshape(2, 3, 4, 2).transpose(1, 2))
    assert torch.equal(run("b t (h k) -> b h t k", x, k=4), x.reshape(2, 3, 2, 4).transpose(1, 2))
    assert torch.equal(run("b t d -> (t b) d", x), x.transpose(0, 1).reshape(6, 8))
    assert torch.equal(run("b t (h k) -> (b h) (k t)", x, h=4), x.reshape(2, 3, 4, 2).permute(0, 2, 3, 1).reshape(8, 6))
    assert torch.equal(run("b t d -> b 1 t d 1", x), x[:, None, :, :, None])
    assert torch.equal(run("b t d -> b t d", x), x)
    assert torch.equal(run("b 1 t 1 -> t b", torch.arange(6).reshape(2, 1, 3, 1)), torch.arange(6).reshape(2, 3).T)
    image = torch.randn(2, 3, 4, 6)
    assert torch.equal(run("b d h w -> b (h w) d", image), image.flatten(2).transpose(1, 2))
    cut = run("b c (h p) (w q) -> b (h w) (c p q)", image, p=2, q=3)
    assert torch.equal(cut, torch.nn.functional.unfold(image, (2, 3), stride=(2, 3)).transpose(1, 2))


@pytest.mark.parametrize("rank", [2, 3, 5])
def test_an_ellipsis_stands_for_any_axes(rank):
    x = torch.randn(*range(2, 2 + rank), 6)
    split = x.unflatten(-1, (2, 3))
    assert torch.equal(run("... (h k) -> ... k h", x, h=2), split.transpose(-1, -2))
    assert torch.equal(run("... (h k) -> h ... k", x, h=2), split.movedim(-2, 0))
    assert torch.equal(run("b ... c -> c ... b", x), x.transpose(0, -1))
    assert torch.equal(run("b ... c -> b (...) c", x), x.flatten(1, -2))
    assert torch.equal(run("b ... c -> b (... c)", x), x.flatten(1))
    moved = x.unflatten(-1, (2, 3)).movedim(0, -1).flatten(0, -4).unsqueeze(1)
    assert torch.equal(run("(a b) ... (c d) -> (b ...) 1 c d a", x, b=1, c=2), moved)
    assert torch.equal(run("b ... c -> b 1 ... 1 c", x), x.unsqueeze(1).unsqueeze(-2))


def test_an_ellipsis_may_stand_for_nothing():
    x = torch.randn(2, 6)
    assert run("b ... c -> b (...) c", x).shape == (2, 1, 6)
    assert run("b ... c -> (b ...) c", x).shape == (2, 6)


def test_repeat_and_reduce():
    x = torch.randn(2, 1, 3, 4)
    assert torch.equal(run("b 1 s k -> b h s k", x, "repeat", h=5), x.expand(2, 5, 3, 4))
    assert torch.equal(run("b 1 s k -> b s (k n)", x, "repeat", n=2), x[:, 0].repeat_interleave(2, -1))
    assert torch.equal(run("b 1 s k -> b s (n k)", x, "repeat", n=2), x[:, 0].repeat(1, 1, 2))
    assert torch.equal(run("... k -> n ... (k m)", x, "repeat", n=2, m=3), torch.stack([x.repeat_interleave(3, -1)] * 2))
    y = torch.randn(2, 6, 4)
    assert torch.equal(run("b (t p) d -> d b t", y, "reduce", "max", p=2), y.reshape(2, 3, 2, 4).amax(2).permute(2, 0, 1))
    torch.testing.assert_close(run("b t d -> b", y, "reduce", "mean"), y.mean((1, 2)))
    torch.testing.assert_close(run("b ... d -> ... b", y, "reduce", "sum"), y.sum(-1).T)


def test_shapes_are_symbolic():
    assert shape("b t (h k) -> b h t k", (B, T, 512), h=8) == (B, 8, T, 64)
    assert shape("b d h w -> b (h w) d", (B, 32, H, W)) == (B, H * W, 32)
    assert shape("(b t) d -> b t d", (B * T, 4), t=T) == (B, T, 4)
    facts = Facts()
    facts.add_divisible(T, 4)
    assert shape("b (t p) d -> b t (p d)", (B, T, 8), facts=facts, p=4) == (B, facts.normal(T) // 4, 32)


@pytest.mark.parametrize(
    ("pattern", "dims", "sizes", "code", "words"),
    [
        ("b t d b t", (B, T, 4), {}, "E0404", "needs one `->`"),
        ("b t d -> b d", (B, T, 4), {}, "E0404", "`t` is lost"),
        ("b t -> b t d", (B, T), {}, "E0404", "`d` comes from nowhere"),
        ("b b -> b", (B, B), {}, "E0404", "stands twice"),
        ("b ((t d)) -> b", (B, 4), {}, "E0404", "do not nest"),
        ("b (t d -> b", (B, 4), {}, "E0404", "without `)`"),
        ("b 2 -> b", (B, 2), {}, "E0404", "the number 2"),
        ("b t & -> b t", (B, T), {}, "E0404", "`&` cannot stand"),
        ("b ... -> b", (B, T), {}, "E0404", "both sides"),
        ("b t -> t b", (B, T, 4), {}, "E0202", "takes 2 axes"),
        ("b (h k) -> b h k", (B, 6), {}, "E0404", "does not tell how 6 is divided"),
        ("b (h k) -> b h k", (B, 6), {"h": 4}, "E0401", "6 is not a multiple of 4"),
        ("b (t p) -> b t p", (B, T), {"p": 4}, "E0401", "not known to be a multiple"),
        ("b (h k) -> b h k", (B, 6), {"h": 2, "k": 4}, "E0205", "is 8, but the axis is 6"),
        ("b 1 -> b", (B, 3), {}, "E0205", "but the axis is 3"),
        ("b 1 -> b", (B, T), {}, "E0204", "cannot show"),
        ("b heads -> heads b", (B, 6), {"head": 2}, "E0302", "no axis `head`"),
    ],
)
def test_refusals(pattern, dims, sizes, code, words):
    with pytest.raises(Misfit) as failed:
        shape(pattern, dims, **sizes)
    assert failed.value.code == code
    assert words in failed.value.message


def test_a_missing_divisibility_says_which_require_would_settle_it():
    with pytest.raises(Misfit) as failed:
        shape("b (t p) d -> b t (p d)", (B, T, 8), p=4)
    assert failed.value.help == ("add `require T % 4 == 0`",)


def test_patterns_export_with_dynamic_lengths():
    class Net(torch.nn.Module):
        def forward(self, x):
            q = apply(x, plan("b t (h k) -> b h t k"), {"h": 2})
            q = apply(q, plan("b h t k -> b n h t k", "repeat"), {"n": 3})
            return apply(q, plan("b n h t k -> (n b) t (h k)"), {})

    dims = {"x": {0: torch.export.Dim("B"), 1: torch.export.Dim("T")}}
    program = torch.export.export(Net(), (torch.randn(3, 5, 6),), dynamic_shapes=dims)
    x = torch.randn(4, 7, 6)
    assert torch.equal(program.module()(x), x.repeat(3, 1, 1))


def test_einsum_names_axes_by_words():
    x, y = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 6, 5)
    scores = use('einsum("batch head query k, batch head key k -> batch head query key")', x, y)
    assert torch.equal(scores, torch.einsum("abcd,abed->abce", x, y))
    m = torch.randn(7, 5)
    torch.testing.assert_close(use('einsum("... in, out in -> ... out")', x, m), x @ m.T)


def infer(pattern, *shapes):
    from graphir.ir.graph import Attrs

    return REGISTRY["einsum"].infer(tuple(Type("float", s) for s in shapes), Attrs(pattern=pattern), Facts())[0].shape


def test_einsum_shapes():
    assert infer("b t k, b s k -> b t s", (B, T, 8), (B, 3, 8)) == (B, T, 3)
    assert infer("... i, o i -> ... o", (B, T, 8), (3, 8)) == (B, T, 3)
    for pattern, shapes, code in [
        ("b k, b k -> b", ((B, 8), (B, 9)), "E0205"),
        ("b k, b k -> b", ((B, 8), (T, 8)), "E0204"),
        ("b k -> b q", ((B, 8),), "E0404"),
        ("b k -> b", ((B, 8), (B, 8)), "E0305"),
        ("b -> b", ((B, 8),), "E0202"),
    ]:
        with pytest.raises(Misfit) as failed:
            infer(pattern, *shapes)
        assert failed.value.code == code
