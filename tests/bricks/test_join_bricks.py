"""Joins, the GLU family and stitches against torch written by hand, with their refusals."""

import pytest
import torch
import torch.nn.functional as F
from brick_cases import FACTS, case, use

from graphir.bricks.declare import REGISTRY
from graphir.bricks.signature import Misfit
from graphir.ir.graph import Attrs
from graphir.ir.types import Type


def three(*shape):
    return [torch.randn(*shape, dtype=torch.float64) for _ in range(3)]


def test_arithmetic_joins():
    a, b, c = three(2, 4)
    torch.testing.assert_close(use("add", a, b, c), a + b + c)
    torch.testing.assert_close(use("add(alpha = 0.5)", a, b, c), a + 0.5 * (b + c))
    assert torch.equal(use("add(alpha = 0.0)", a, b), a)
    torch.testing.assert_close(use("mul", a, b, c), a * b * c)
    torch.testing.assert_close(use("mean", a, b, c), (a + b + c) / 3)
    assert torch.equal(use("max", a, b, c), torch.stack([a, b, c]).amax(0))
    assert torch.equal(use("sub", a, b), a - b)
    assert torch.equal(use("div", a, b), a / b)


def test_concat_is_per_sample():
    a, b, c = three(3, 2)
    assert torch.equal(use("concat", a, b, c), torch.cat([a, b, c], -1))
    assert torch.equal(use("stack", a, b, c), torch.stack([a, b, c]))
    assert torch.equal(use("stack(axis = -1)", a, b, c), torch.stack([a, b, c], -1))


def test_gate_and_glu():
    a, b, _ = three(2, 4)
    torch.testing.assert_close(use("gate", a, b), a * torch.sigmoid(b))
    x = torch.randn(3, 8, dtype=torch.float64)
    torch.testing.assert_close(use("glu", x), F.glu(x))
    first, second = x.chunk(2, -1)
    for name, act in {"silu": F.silu, "gelu": F.gelu, "relu": F.relu, "none": lambda v: v, "tanh": torch.tanh}.items():
        torch.testing.assert_close(use(f'glu("{name}")', x), first * act(second))
    torch.testing.assert_close(use('glu("gelu_tanh")', x), first * F.gelu(second, approximate="tanh"))


def test_blend():
    a, b, c = three(2, 4)
    torch.testing.assert_close(use("blend(weights = [0.5, 2.0, -1.0])", a, b, c), 0.5 * a + 2 * b - c)
    equal = use("blend(learnable = true)", a, b, c, logits=torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(equal, (a + b + c) / 3)
    logits = torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64)
    torch.testing.assert_close(
        use("blend(learnable = true)", a, b, c, logits=logits), torch.einsum("n,nbd->bd", logits.softmax(0), torch.stack([a, b, c]))
    )
    assert case("blend", "blend(learnable = true) : float[2, 4], float[2, 4]").weights()["logits"].shape == (2,)


@pytest.mark.parametrize("text", ["blend", "blend(weights = [0.5])", "blend(weights = [0.5, 0.5], learnable = true)"])
def test_blend_refuses(text):
    with pytest.raises(Misfit) as failed:
        use(text, torch.zeros(2, 4), torch.zeros(2, 4))
    assert failed.value.code == "E0210"


@pytest.mark.parametrize("heads", [1, 2])
def test_attend_is_a_softmax_over_branches_per_token(heads):
    x, branches = torch.randn(2, 5, 3, dtype=torch.float64), three(2, 5, 4)
    wq, wk = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64)
    y = use(f"attend(heads = {heads}, hidden = 6)", x, *branches, query_weight=wq, key_weight=wk)
    values = torch.stack(branches, 2)
    q = (x @ wq.T).reshape(2, 5, heads, -1)
    k = (values @ wk.T).reshape(2, 5, 3, heads, -1)
    shares = (torch.einsum("bthk,btnhk->bthn", q, k) / (6 / heads) ** 0.5).softmax(-1)
    wanted = torch.einsum("bthn,btnhv->bthv", shares, values.reshape(2, 5, 3, heads, -1)).reshape(2, 5, 4)
    torch.testing.assert_close(y, wanted)


def test_grid_places_branches_by_cell():
    a, b, c = torch.zeros(2, 1), torch.ones(2, 2), torch.full((2, 3), 2.0)
    assert use("grid([(1, 0), (0, 1), (0, 0)], shape = (2, 2))", a, b, c)[0].tolist() == [2, 2, 2, 1, 1, 0]
    assert use("grid([(0, 0, 1), (0, 0, 0), (1, 0, 0)], shape = (2, 1, 2))", a, b, c)[0].tolist() == [1, 1, 0, 2, 2, 2]
    assert torch.equal(use("grid", a, b, c), torch.cat([a, b, c], -1))


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("grid([(0, 0), (0, 0)], shape = (2, 2))", "E0210"),
        ("grid([(0, 0), (0, 2)], shape = (2, 2))", "E0405"),
        ("grid([(0, 0), (-1, 0)], shape = (2, 2))", "E0405"),
        ("grid([(0, 0)], shape = (2, 2))", "E0305"),
    ],
)
def test_grid_refuses(text, code):
    with pytest.raises(Misfit) as failed:
        use(text, torch.zeros(2, 1), torch.zeros(2, 1))
    assert failed.value.code == code


@pytest.mark.parametrize("name", ["mean", "max", "stack", "add", "concat(axis = 0)"])
def test_unequal_branches(name):
    with pytest.raises(Misfit) as failed:
        use(name, torch.zeros(2, 4), torch.zeros(2, 3))
    assert failed.value.code == ("E0207" if name == "add" else "E0205")


@pytest.mark.parametrize("name", ["add", "mean", "concat", "stack", "max", "mul"])
def test_no_branch_at_all(name):
    with pytest.raises(Misfit) as failed:
        REGISTRY[name].infer((), Attrs(), FACTS)
    assert failed.value.code == "E0305"


@pytest.mark.parametrize(
    ("text", "width", "parameters"),
    [
        ("stitch(4)", 3, 16),
        ("stitch(4)", 5, 24),
        ("stitch(10)", 7, 80),
        ('stitch(10, form = "mlp")', 6, 6 * 8 + 8 + 8 * 10 + 10),
        ('stitch(10, form = "low-rank", rank = 2)', 6, 6 * 2 + 2 * 10 + 10),
    ],
)
def test_stitch_parameters(text, width, parameters):
    it = case("stitch", f"{text} : float[2, {width}]")
    assert sum(w.numel() for w in it.weights().values()) == parameters
    assert next(iter(it.weights())) == "weight", "the author's init goes to the last map"
    silent = {k: torch.zeros_like(w) if k == "weight" else w for k, w in it.weights().items()}
    out = it.run(it.inputs(), {**silent, "bias": torch.zeros_like(silent["bias"])})[0]
    assert out.abs().max() == 0


def test_stitch_forms():
    x = torch.randn(3, 6)
    w = {"weight": torch.randn(4, 5), "bias": torch.randn(4), "weight_in": torch.randn(5, 6), "bias_in": torch.randn(5)}
    wanted = F.linear(F.gelu(F.linear(x, w["weight_in"], w["bias_in"])), w["weight"], w["bias"])
    torch.testing.assert_close(use('stitch(4, form = "mlp")', x, **w), wanted)
    low = {k: v for k, v in w.items() if k != "bias_in"}
    wanted = F.linear(x @ w["weight_in"].T, w["weight"], w["bias"])
    torch.testing.assert_close(use('stitch(4, form = "low-rank", rank = 5)', x, **low), wanted)
    for text in ('stitch(4, form = "cubic")', 'stitch(4, form = "low-rank")'):
        with pytest.raises(Misfit) as failed:
            use(text, x)
        assert failed.value.code == "E0210"


def test_runtime_dims_do_not_become_weights():
    from graphir.ir.dims import symbol

    with pytest.raises(Misfit) as failed:
        REGISTRY["linear"].infer((Type("float", (2, symbol("T"))),), Attrs(out=3, bias=True), FACTS)
    assert failed.value.code == "E0204"
