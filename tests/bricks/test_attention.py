"""Attention and positions against their formulas, written out for one query at a time."""

from __future__ import annotations

import math

import pytest
import torch
from mixing import Case

from graphir.bricks.attention import alibi_slopes, sdpa
from graphir.bricks.declare import REGISTRY, Misfit
from graphir.bricks.positions import alibi, bucket, learned_positions, relative_bias, rope, sinusoidal_positions
from graphir.ir.dims import Facts, symbol
from graphir.ir.graph import Attrs
from graphir.ir.types import Type


def one_by_one(q, k, v, mask=None, bias=None, sinks=None, causal=False, scale=None, window=None, chunk=None, softcap=None, alibi=False):
    """The definition: query i, key j, one score at a time."""
    batch, heads, queries, width = q.shape
    keys = k.shape[2]
    y = torch.zeros(batch, heads, queries, v.shape[3], dtype=q.dtype)
    for b in range(batch):
        for h in range(heads):
            g = h // (heads // k.shape[1])
            for i in range(queries):
                place, scores, values = i + keys - queries, [], []
                for j in range(keys):
                    hidden = (
                        (causal and j > place)
                        or (window is not None and abs(place - j) >= window)
                        or (chunk is not None and place // chunk != j // chunk)
                        or (mask is not None and not (mask[b, j] if mask.dim() == 2 else mask.expand(batch, heads, -1, -1)[b, h, i, j]))
                    )
                    if hidden:
                        continue
                    s = torch.dot(q[b, h, i], k[b, g, j]) * (width**-0.5 if scale is None else scale)
                    s = softcap * torch.tanh(s / softcap) if softcap is not None else s
                    s = s if bias is None else s + bias.expand(batch, heads, -1, -1)[b, h, i, j]
                    s = s - alibi_slopes(heads)[h] * abs(place - j) if alibi else s
                    scores.append(s)
                    values.append(v[b, g, j])
                if scores:
                    total = torch.stack(scores + ([sinks[h]] if sinks is not None else []))
                    y[b, h, i] = total.softmax(0)[: len(values)] @ torch.stack(values)
    return y


def tensors(queries=5, keys=5, heads=4, groups=2, seed=0):
    g = torch.Generator().manual_seed(seed)
    make = lambda *shape: torch.randn(shape, generator=g, dtype=torch.float64)  # noqa: E731
    return make(2, heads, queries, 6), make(2, groups, keys, 6), make(2, groups, keys, 3), g


OPTIONS = [
    {},
    {"causal": True},
    {"causal": True, "scale": 1.0},
    {"causal": True, "window": 2},
    {"window": 2},
    {"causal": True, "chunk": 3},
    {"chunk": 2},
    {"causal": True, "softcap": 2.0},
    {"causal": True, "window": 3, "softcap": 2.0, "scale": 0.3},
    {"causal": True, "alibi": True},
    {"alibi": True, "softcap": 1.0},
]


@pytest.mark.parametrize("extra", [(), ("mask",), ("heads mask",), ("bias",), ("sinks",), ("mask", "bias", "sinks")], ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("queries", "keys"), [(5, 5), (2, 5), (5, 2)])
def test_attention_is_its_definition(options, extra, queries, keys):
    q, k, v, g = tensors(queries, keys)
    given = {}
    if "mask" in extra:
        given["mask"] = torch.rand(2, keys, generator=g) > 0.5
        given["mask"][0] = False
    if "heads mask" in extra:
        given["mask"] = torch.rand(2, 1, queries, keys, generator=g) > 0.5
    if "bias" in extra:
        given["bias"] = torch.randn(1, 4, queries, keys, generator=g, dtype=torch.float64)
    if "sinks" in extra:
        given["sinks"] = torch.randn(4, generator=g, dtype=torch.float64)
    y = sdpa(q, k, v, **given, **options)
    assert torch.isfinite(y).all()
    torch.testing.assert_close(y, one_by_one(q, k, v, **given, **options), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("options", [{"causal": True}, {"softcap": 2.0}, {"causal": True, "softcap": 3.0, "sinks": True}], ids=str)
def test_gradients_are_finite_where_a_query_sees_nothing(options):
    q, k, v, _ = tensors(3, 3)
    options = dict(options)
    sinks = torch.zeros(4, dtype=torch.float64, requires_grad=True) if options.pop("sinks", False) else None
    mask = torch.tensor([[True, True, False], [False, False, False]])
    leaves = [t.requires_grad_() for t in (q, k, v)]
    assert torch.autograd.gradcheck(lambda *t: sdpa(*t, mask=mask, sinks=sinks, **options), leaves, fast_mode=True)
    assert sdpa(*leaves, mask=mask, **options)[1].abs().max() == 0


def test_attention_in_half_precision_and_on_empty_batches():
    q, k, v, _ = tensors(4, 4)
    for options in ({"causal": True}, {"causal": True, "softcap": 5.0}):
        exact = sdpa(q, k, v, **options)
        half = sdpa(q.bfloat16(), k.bfloat16(), v.bfloat16(), **options)
        assert half.dtype == torch.bfloat16
        torch.testing.assert_close(half.double(), exact, rtol=0.05, atol=0.05)
        assert sdpa(q[:0], k[:0], v[:0], **options).shape == (0, 4, 4, 3)


def attention_type(attrs, *shapes, dtypes=None):
    types = tuple(Type(d, s) for d, s in zip(dtypes or ["float"] * len(shapes), shapes))
    return REGISTRY["sdpa"].infer(types, Attrs(attrs), Facts())[0]


def test_attention_types():
    b, t = symbol("B"), symbol("T")
    q, k, v = (b, 4, t, 8), (b, 2, t, 8), (b, 2, t, 6)
    assert str(attention_type({}, q, k, v)) == "float[B, 4, T, 6]"
    given = {"given": ("mask",)}
    for mask in ((b, t), (b, 1, t, t), (1, 4, t, t)):
        attention_type(given, q, k, v, mask, dtypes=["float"] * 3 + ["bool"])
    for mask in ((t, b), (b, 3, t, t), (b, t, t)):
        with pytest.raises(Misfit, match="mask"):
            attention_type(given, q, k, v, mask, dtypes=["float"] * 3 + ["bool"])
    with pytest.raises(Misfit, match="h % g"):
        attention_type({}, q, (b, 3, t, 8), (b, 3, t, 6))
    with pytest.raises(Misfit):
        attention_type({"window": 0}, q, k, v)
    assert not REGISTRY["sdpa"].is_causal(Attrs(causal=False))
    assert REGISTRY["sdpa"].is_causal(Attrs(causal=True))


def test_attention_flops_are_torch_s():
    from torch.utils.flop_counter import FlopCounterMode

    case = Case("sdpa(causal = true) : float[2, 4, 5, 8], float[2, 4, 5, 8], float[2, 4, 5, 8]")
    with FlopCounterMode(display=False) as counter:
        case.whole(softcap=1.0)
    assert counter.get_total_flops() == case.declaration.flops(case.types, case.attrs, Facts())


@pytest.mark.parametrize("layout", ["half", "interleaved"])
@pytest.mark.parametrize("dims", [None, 4])
def test_rope_turns_pairs(layout, dims):
    x = torch.randn(2, 3, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = rope(x, theta=100.0, layout=layout, dims=dims, scaling=2.0)
    width = dims or 8
    expected = x.clone()
    for t in range(5):
        for i in range(width // 2):
            first, second = (2 * i, 2 * i + 1) if layout == "interleaved" else (i, i + width // 2)
            turn = complex(math.cos(a := t / 2.0 * 100.0 ** (-2 * i / width)), math.sin(a))
            turned = torch.complex(x[..., t, first], x[..., t, second]) * turn
            expected[..., t, first], expected[..., t, second] = turned.real, turned.imag
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(rope(x.transpose(1, 2), theta=100.0, layout=layout, dims=dims, scaling=2.0, axis=1).transpose(1, 2), y)
    torch.testing.assert_close(rope(x, torch.arange(5), 100.0, layout, dims, 2.0), y)
    rows = torch.stack([torch.arange(5), torch.arange(5) + 3])
    torch.testing.assert_close(rope(x, rows, 100.0, layout, dims)[1], rope(x[1], rows[1], 100.0, layout, dims))


def test_rope_makes_scores_depend_on_distance_alone():
    q, k = torch.randn(2, 1, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).unbind(0)
    at = lambda x, t: rope(x, torch.tensor([t]))  # noqa: E731
    torch.testing.assert_close((at(q, 9) * at(k, 4)).sum(), (at(q, 1005) * at(k, 1000)).sum())


def plain_bucket(relative, buckets, furthest, bidirectional):
    """T5's rule for one distance."""
    base = 0
    if bidirectional:
        buckets //= 2
        base = buckets if relative > 0 else 0
        relative = abs(relative)
    else:
        relative = max(-relative, 0)
    exact = buckets // 2
    if relative < exact:
        return base + relative
    return base + min(buckets - 1, exact + int(math.log(relative / exact) / math.log(furthest / exact) * (buckets - exact)))


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("buckets", "furthest"), [(32, 128), (8, 20)])
def test_relative_buckets_are_t5_s(buckets, furthest, bidirectional):
    distances = [d for d in range(-150, 151) if abs(d) not in (16, 32, 64, 128)]  # there the logarithm is whole and its rounding decides
    found = bucket(torch.tensor(distances), buckets, furthest, bidirectional)
    assert found.tolist() == [plain_bucket(d, buckets, furthest, bidirectional) for d in distances]
    assert sorted(set(found.tolist())) == list(range(buckets)) or bidirectional


def test_relative_bias_reads_the_distance_from_query_to_key():
    weight = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    x, memory = torch.zeros(2, 4, 1), torch.zeros(2, 6, 1)
    bias = relative_bias(x, memory, weight=weight, max_distance=20)
    assert bias.shape == (1, 3, 4, 6)
    for i in range(4):
        for j in range(6):
            assert torch.equal(bias[0, :, i, j], weight[plain_bucket(j - i, 8, 20, True)])
    assert torch.equal(relative_bias(x, weight=weight, max_distance=20), bias[:, :, :, :4])


def test_alibi_slopes_and_bias():
    assert alibi_slopes(8) == [2.0**-i for i in range(1, 9)]
    assert alibi_slopes(6)[:4] == [2.0 ** (-2 * i) for i in range(1, 5)]
    assert alibi_slopes(6)[4:] == [2.0**-1, 2.0**-3]
    q, k, v, _ = tensors(4, 4)
    slant = alibi(torch.zeros(2, 4, 1, dtype=torch.float64), 4)
    torch.testing.assert_close(sdpa(q, k, v, causal=True, alibi=True), sdpa(q, k, v, causal=True, bias=slant))


def test_position_embeddings():
    x = torch.zeros(2, 5, 6, dtype=torch.float64)
    waves, halves = sinusoidal_positions(x), sinusoidal_positions(x, layout="half")
    for t in range(5):
        for i in range(3):
            angle = t * 10000.0 ** (-2 * i / 6)
            assert waves[t, 2 * i].item() == pytest.approx(math.sin(angle))
            assert waves[t, 2 * i + 1].item() == pytest.approx(math.cos(angle))
            assert halves[t, i] == waves[t, 2 * i]
            assert halves[t, i + 3] == waves[t, 2 * i + 1]
    weight = torch.arange(21.0).view(7, 3)
    assert torch.equal(learned_positions(torch.zeros(2, 4, 3), weight, 5, 2), weight[2:6])
    with pytest.raises(IndexError):
        learned_positions(torch.zeros(2, 6, 3), weight, 5, 2)
    with pytest.raises(Misfit, match="T <= size"):
        REGISTRY["learned_positions"].infer((Type("float", (2, 6, 3)),), Attrs(size=5), Facts())
