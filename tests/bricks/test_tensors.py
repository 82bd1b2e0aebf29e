"""Parts of axes, places, pools, layouts and tensors out of nothing."""

import pytest
import torch
import torch.nn.functional as F
from brick_cases import case, use

from graphir.bricks.call import call
from graphir.bricks.declare import REGISTRY
from graphir.bricks.signature import Misfit
from graphir.ir.dims import Facts, symbol
from graphir.ir.graph import Attrs
from graphir.ir.types import Type

B, T = symbol("B"), symbol("T")


def infer(name, *shapes, dtypes=(), facts=None, **attrs):
    types = tuple(Type(d, s) for d, s in zip([*dtypes, *["float"] * len(shapes)], shapes))
    return [t.shape for t in REGISTRY[name].infer(types, Attrs(attrs), facts or Facts())]


def test_split():
    x = torch.randn(2, 6)
    a, b, c = use("split(3)", x)
    assert torch.equal(torch.cat([a, b, c], -1), x)
    p, q = use("split([4, 2])", x)
    assert torch.equal(p, x[:, :4])
    assert torch.equal(q, x[:, 4:])
    assert infer("split", (B, T, 6), parts=(T, 0), axis=1) == [(B, T, 6), (B, 0, 6)]
    for width, parts, code in [(7, 2, "E0401"), (7, (3, 3), "E0205"), (T, 2, "E0401"), (T, (1, 1), "E0204"), (6, 0, "E0404")]:
        with pytest.raises(Misfit) as failed:
            infer("split", (B, width), parts=parts)
        assert failed.value.code == code


def test_select_and_slice():
    x = torch.arange(24).reshape(2, 4, 3)
    assert torch.equal(use("select(-1)", x), x[:, -1])
    assert torch.equal(use("slice(1, 3, axis = 1)", x), x[:, 1:3])
    assert torch.equal(use("slice(start = -2)", x), x[..., -2:])
    assert torch.equal(use("slice(stop = -1, axis = 1)", x), x[:, :-1])
    assert torch.equal(use("last", x), x[:, -1])
    assert torch.equal(use("first", x), x[:, 0])
    assert infer("slice", (B, T, 4), start=1, axis=1) == [(B, T - 1, 4)]
    assert infer("slice", (B, T, 4), start=T // 2, axis=1) == [(B, T - T // 2, 4)]
    for attrs in [{"start": 5}, {"stop": 9}, {"start": 3, "stop": 2}, {"stop": -5}]:
        with pytest.raises(Misfit) as failed:
            infer("slice", (B, 4), **attrs)
        assert failed.value.code == "E0405"
    with pytest.raises(Misfit):
        infer("select", (B, 4), index=4)
    too_short = case("slice", "slice(stop = 4, axis = 1) : float[B, T]")
    with pytest.raises((RuntimeError, IndexError)):
        too_short.run([torch.zeros(2, 3)], {})


def test_gather_and_scatter_add_are_inverse():
    x, order = torch.randn(2, 5, 3), torch.tensor([[4, 0], [1, 1]])
    picked = use("gather", x, order)
    assert torch.equal(picked, torch.stack([x[b, order[b]] for b in range(2)]))
    added = use("scatter_add", torch.zeros(2, 5, 3), order, picked)
    assert torch.equal(added[0, 4], x[0, 4])
    torch.testing.assert_close(added[1, 1], 2 * x[1, 1])
    assert torch.equal(use("gather", x[..., 0], order), picked[..., 0])
    assert infer("gather", (B, T, 8), (B, 3), dtypes=("float", "int"), axis=1) == [(B, 3, 8)]
    for shapes, code in [(((B, T, 8), (B, 3, 8)), "E0202"), (((B, T, 8), (T, 3)), "E0204"), (((2, T, 8), (3, 3)), "E0205")]:
        with pytest.raises(Misfit) as failed:
            infer("gather", *shapes, dtypes=("float", "int"))
        assert failed.value.code == code
    with pytest.raises(Misfit):
        infer("scatter_add", (B, T, 8), (B, 3), (B, 4, 8), dtypes=("float", "int"))


def test_topk_takes_a_runtime_number():
    facts = Facts()
    facts.add_divisible(T, 8)
    assert infer("topk", (B, T), k=T // 8, axis=1, facts=facts)[0] == (B, T // 8)
    with pytest.raises(Misfit) as failed:
        infer("topk", (B, 4), k=5)
    assert failed.value.code == "E0210"


def test_orders():
    x = torch.tensor([[3, 1, 2, 1]])
    assert use("sort", x).tolist() == [[1, 1, 2, 3]]
    assert use("argsort", x).tolist() == [[1, 3, 2, 0]]
    assert use("argsort(descending = true)", x).tolist() == [[0, 2, 1, 3]]
    assert use("cumsum(axis = -1)", x).tolist() == [[3, 4, 6, 7]]
    assert use("flip(axis = -1)", x).tolist() == [[1, 2, 1, 3]]


def test_pad_and_shift():
    x = torch.ones(2, 3, 4)
    y = use("pad(1, 2, value = 5.0)", x)
    assert torch.equal(y, F.pad(x, (0, 0, 1, 2), value=5.0))
    assert torch.equal(use("pad(after = 1, axis = -1)", x), F.pad(x, (0, 1)))
    z = torch.arange(1, 5).reshape(1, 4)
    assert use("shift_tokens(n = 2)", z).tolist() == [[0, 0, 1, 2]]
    assert use("shift_tokens(n = 9)", z).tolist() == [[0, 0, 0, 0]]
    with pytest.raises(Misfit):
        use("pad(before = -1)", x)


def test_pools():
    x = torch.randn(2, 6, 4)
    for op, wanted in {"mean": x.mean(1), "max": x.amax(1), "sum": x.sum(1), "first": x[:, 0], "last": x[:, -1]}.items():
        torch.testing.assert_close(use(f'pool("{op}")', x), wanted)
    torch.testing.assert_close(use('pool_windows(2, "max")', x), F.max_pool1d(x.transpose(1, 2), 2).transpose(1, 2))
    torch.testing.assert_close(use("pool_windows(2, axis = -1)", x), F.avg_pool1d(x, 2))
    image = torch.randn(2, 3, 7, 9)
    torch.testing.assert_close(use("avg_pool2d(3, stride = 2, padding = 1)", image), F.avg_pool2d(image, 3, 2, 1))
    torch.testing.assert_close(use("max_pool2d(2)", image), F.max_pool2d(image, 2))
    with pytest.raises(Misfit) as failed:
        infer("pool_windows", (B, T, 4), size=2)
    assert failed.value.help == ("add `require T % 2 == 0`",)


@pytest.mark.parametrize("mode", ["linear", "nearest"])
@pytest.mark.parametrize(("length", "size"), [(4, 9), (9, 4), (5, 5), (1, 3), (7, 1)])
def test_interpolate(mode, length, size):
    x = torch.randn(2, 3, length, dtype=torch.float64)
    wanted = F.interpolate(x, size=size, mode=mode)
    near = {"rtol": 1e-5, "atol": 1e-6}  # torch computes the places in float32
    torch.testing.assert_close(use(f'interpolate({size}, axis = -1, mode = "{mode}")', x), wanted, **near)
    torch.testing.assert_close(use(f'interpolate({size}, mode = "{mode}")', x.transpose(1, 2)), wanted.transpose(1, 2), **near)


def test_layouts():
    image = torch.randn(2, 3, 4, 6)
    assert torch.equal(use("to_nchw", use("to_nhwc", image)), image)
    patches = use("patchify(2)", image)
    assert torch.equal(use("unpatchify(2, rows = 2)", patches), image)
    weight = torch.randn(5, 3, 2, 2)
    convolved = F.conv2d(image, weight, stride=2).flatten(2).transpose(1, 2)
    torch.testing.assert_close(patches @ weight.flatten(1).T, convolved)
    assert torch.equal(use("flatten(2)", image), image.flatten(2))
    assert infer("flatten", (B, T, 4), axis=0, stop=1) == [(B * T, 4)]


def test_tensors_out_of_nothing():
    assert use("arange(3)").tolist() == [0, 1, 2]
    assert use("full([2], 0.5)").tolist() == [0.5, 0.5]
    assert use("full([2], true)").dtype == torch.bool
    assert use("constant([1, 2, 3, 4], shape = [2, 2])").tolist() == [[1, 2], [3, 4]]
    assert use("constant([[1.5, 2]])").tolist() == [[1.5, 2]]
    assert call(REGISTRY["full"], [], attrs={"shape": (2,), "value": 1.0}, dtype=torch.float64)[0].dtype == torch.float64
    assert infer("arange", n=T) == [(T,)]
    assert infer("full", shape=(T, 3), value=1) == [(T, 3)]
    for text in ("constant([[1], [2, 3]])", "constant([1, 2, 3], shape = [2, 2])", "constant([true, 1])", "full([2], \"x\")"):
        with pytest.raises(Misfit):
            use(text)


def test_basic():
    x, w = torch.randn(2, 3, 6), torch.randn(4, 6)
    torch.testing.assert_close(use("linear_transposed(6)", use("linear(4, bias = false)", x, weight=w), weight=w), x @ w.T @ w)
    blocks = torch.randn(2, 2, 3)
    torch.testing.assert_close(use("headwise_linear(2, out = 4, bias = false)", x, weight=blocks), x @ torch.block_diag(*blocks).T)
    e, experts, b = torch.randn(3, 5, 6), torch.randn(3, 4, 6), torch.randn(3, 4)
    wanted = torch.stack([F.linear(e[i], experts[i], b[i]) for i in range(3)])
    torch.testing.assert_close(use("expert_linear(3, 4, bias = true)", e, weight=experts, bias=b), wanted)
    table = torch.randn(7, 4)
    assert torch.equal(use("embedding(7, 4)", torch.tensor([[6, 0]]), weight=table), table[[6, 0]][None])
    with pytest.raises(Misfit) as failed:
        use("headwise_linear(4)", x)
    assert failed.value.code == "E0210"


def test_dropout_is_for_training():
    x = torch.ones(10000)
    assert torch.equal(use("dropout(p = 0.25)", x), x)
    torch.manual_seed(0)
    y = use("dropout(p = 0.25)", x, training=True)
    assert y.unique().tolist() == pytest.approx([0, 4 / 3])
    assert (y == 0).float().mean().item() == pytest.approx(0.25, abs=0.02)
    with pytest.raises(Misfit):
        use("dropout(p = 1.5)", x)


def test_detach_stops_the_gradient():
    x = torch.randn(3, requires_grad=True)
    assert not use("detach", x).requires_grad
    assert torch.equal(use("detach", x), x)


def test_activations():
    x = torch.linspace(-3, 3, 13)
    torch.testing.assert_close(use("scaled_relu", x), torch.clamp(1.1 * x, min=0))
    torch.testing.assert_close(use("relu2", x), torch.clamp(x, min=0) ** 2)
    torch.testing.assert_close(use("leaky_relu", x), torch.where(x > 0, x, 0.1 * x))
    torch.testing.assert_close(use("softcap(2.0)", x), 2 * torch.tanh(x / 2))
    torch.testing.assert_close(use("gelu", x), x * 0.5 * (1 + torch.erf(x / 2**0.5)))
    cubic = (2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)
    torch.testing.assert_close(use('gelu(approximate = "tanh")', x), 0.5 * x * (1 + torch.tanh(cubic)))
    torch.testing.assert_close(use("mish", x), x * torch.tanh(torch.log1p(torch.exp(x))))
    torch.testing.assert_close(use("silu", x), x / (1 + torch.exp(-x)))
    torch.testing.assert_close(use("log_sigmoid", x), torch.log(torch.sigmoid(x)))
    torch.testing.assert_close(use("elu(alpha = 0.5)", x), torch.where(x > 0, x, 0.5 * (torch.exp(x) - 1)))
    with pytest.raises(Misfit):
        use('gelu(approximate = "rough")', x)
