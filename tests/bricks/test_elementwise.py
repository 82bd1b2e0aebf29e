"""The alignment rule of elementwise bricks, conversions and comparisons."""

import pytest
import torch
from brick_cases import use

from graphir.bricks.declare import REGISTRY
from graphir.bricks.shapes import divided, elementwise_shape
from graphir.bricks.signature import Misfit
from graphir.ir.dims import Facts, symbol
from graphir.ir.graph import Attrs
from graphir.ir.types import Type

B, T = symbol("B"), symbol("T")


@pytest.mark.parametrize(
    ("shapes", "result"),
    [
        ([(B, T, 4), (4,)], (B, T, 4)),
        ([(B, T, 4), (B, T, 1)], (B, T, 4)),
        ([(B, T, 4), (T, 1), (1, 1, 1)], (B, T, 4)),
        ([(), (B, 3)], (B, 3)),
        ([(1, 3), (2, 1)], (2, 3)),
        ([(1,), (1,)], (1,)),
    ],
)
def test_alignment(shapes, result):
    assert elementwise_shape(shapes, Facts()) == result
    assert elementwise_shape(shapes[::-1], Facts()) == result


@pytest.mark.parametrize(
    ("shapes", "code"),
    [
        ([(B, 4), (B, 3)], "E0207"),
        ([(B, 4), (T, 4)], "E0204"),
        ([(B, T), (T, B)], "E0204"),
        ([(B, 2), (B, T)], "E0204"),
        ([(3, B), (4, B)], "E0207"),
    ],
)
def test_nothing_else_extends(shapes, code):
    with pytest.raises(Misfit) as failed:
        elementwise_shape(shapes, Facts())
    assert failed.value.code == code
    assert failed.value.port == 1


def test_facts_settle_it():
    facts = Facts()
    facts.add_equal(T, 4 * B)
    assert elementwise_shape([(T, 2), (4 * B, 2)], facts) == (T, 2)


def test_division_of_dims():
    assert divided(6 * B, 3, Facts(), "x") == 2 * B
    assert divided(B * T, T, Facts(), "x") == B
    assert divided(2 * B * T + 4 * T, 2 * T, Facts(), "x") == B + 2
    for dim, by in [(T, 2), (7, 2), (B, T), (B * T + B, T)]:
        with pytest.raises(Misfit):
            divided(dim, by, Facts(), "x")


def infer(name, types, **attrs):
    return REGISTRY[name].infer(tuple(types), Attrs(attrs), Facts())


@pytest.mark.parametrize(
    ("name", "types", "attrs"),
    [
        ("add", ["float", "int"], {}),
        ("add", ["bool", "bool"], {}),
        ("mul", ["int", "float"], {}),
        ("div", ["int", "int"], {}),
        ("scale", ["int"], {"factor": 0.5}),
        ("shift", ["bool"], {"by": 1}),
        ("where", ["bool", "int", "float"], {}),
        ("less", ["int", "float"], {"given": ("y",)}),
        ("relu", ["int"], {}),
        ("both", ["int", "bool"], {}),
        ("add", ["int", "int"], {"alpha": 0.5}),
    ],
)
def test_nothing_is_cast_in_silence(name, types, attrs):
    with pytest.raises(Misfit) as failed:
        infer(name, [Type(t, (B, 4)) for t in types], **attrs)
    assert failed.value.code == "E0201"


def test_integers_stay_integers():
    x = torch.tensor([1, 2, 3])
    for text, wanted in [("scale(3)", [3, 6, 9]), ("shift(-1)", [0, 1, 2]), ("clamp(high = 2)", [1, 2, 2]), ("abs", [1, 2, 3])]:
        y = use(text, x)
        assert y.dtype == torch.int64
        assert y.tolist() == wanted
    assert infer("add", [Type("int", (B,)), Type("int", (B,))])[0].dtype == "int"


def test_comparisons():
    x, y = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 2.0, 2.0])
    for name, op in {"equal": "eq", "not_equal": "ne", "less": "lt", "less_equal": "le", "greater": "gt", "greater_equal": "ge"}.items():
        assert torch.equal(REGISTRY[name].body(x, y=y), getattr(torch, op)(x, y))
        assert torch.equal(use(f"{name}(to = 2.0)", x), getattr(torch, op)(x, 2.0))
    for attrs, types in [({}, 1), ({"to": 1, "given": ("y",)}, 2)]:
        with pytest.raises(Misfit):
            infer("less", [Type("int", (B,))] * types, **attrs)


def test_conversions_and_logic():
    assert use("float", torch.tensor([1, 0])).dtype == torch.float32
    assert use("int", torch.tensor([1.9, -1.9])).tolist() == [1, -1]
    a, b = torch.tensor([True, True, False]), torch.tensor([True, False, False])
    assert use("both", a, b).tolist() == [True, False, False]
    assert use("either", a, b).tolist() == [True, True, False]
    assert use("negate", b).tolist() == [False, True, True]
    assert use("where", a, torch.tensor([1, 2, 3]), torch.tensor([4, 5, 6])).tolist() == [1, 2, 6]
    assert use("one_hot(3)", torch.tensor([2, 0])).tolist() == [[0, 0, 1], [1, 0, 0]]
