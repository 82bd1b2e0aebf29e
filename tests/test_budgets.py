"""Regressions of a review: short programs that took long, messages without measure, nested `with_init`, runtime dims as numbers."""

from __future__ import annotations

import resource

import pytest
from models import model, problem

import graphir
from graphir import GraphirError
from graphir.ir.scalar import ScalarError, show, weigh


def doubled(first: str, count: int, step: str) -> str:
    return f"x0 = {first}\n" + "".join(f"x{i + 1} = {step.format(f'x{i}')}\n" for i in range(count))


HEAVY = {
    "in": "a = [1] * 150000\nb = [i for i in 0..1000 if i in a]\nreturn x -> linear(len(b))",
    "a long list": "a = [1] * 1000000\nb = [i for i in 0..1000 if i in a]\nreturn x -> linear(len(b))",
    "lists of lists": "a = [[0] * 1000000 for i in 0..400]\nreturn x -> linear(len(a))",
    "lists of shorter lists": "a = [[0] * 10000 for i in 0..400]\nreturn x -> linear(len(a))",
    "ranges": "a = [[j for j in 0..100000] for i in 0..400]\nreturn x -> linear(len(a))",
    "equals": "a = [1] * 50000\nb = [1] * 50000\nc = [i for i in 0..1000 if a == b]\nreturn x -> linear(len(c))",
    "differs": "a = [1] * 50000\nb = [1] * 50000\nc = [i for i in 0..1000 if a != b]\nreturn x -> linear(len(c))",
    "min": "a = [1] * 50000\nc = [min(a) for i in 0..1000]\nreturn x -> linear(len(c))",
    "max": "a = [1] * 50000\nc = [max(a) for i in 0..1000]\nreturn x -> linear(len(c))",
    "plus": "a = [1] * 50000\nc = [a + a for i in 0..1000]\nreturn x -> linear(len(c))",
    "slices": "a = [1] * 50000\nc = [a[0..40000] for i in 0..1000]\nreturn x -> linear(len(c))",
    "nested equals": doubled("[1]", 40, "[{0}, {0}]")
    + doubled("[1]", 40, "[{0}, {0}]").replace("x", "y")
    + "return x -> linear(8 if x40 == y40 else 9)",
    "nested config": doubled("[1]", 40, "[{0}, {0}]") + "return x -> linear(x40)",
    "nested init": doubled("[1]", 40, "[{0}, {0}]") + "return x -> with_init(linear(8), x40)",
    "deep": doubled("[1]", 200, "[{0}]") + "return x -> linear(8 if x200 == x200 else 9)",
    "doubling in with_init": doubled("linear(8)", 25, 'with_init([{0}, {0}], "zeros", weights = "last")') + "return x -> x25",
}


@pytest.mark.parametrize("name", HEAVY)
def test_heavy_programs_are_refused_early(name):
    before = resource.getrusage(resource.RUSAGE_SELF)
    with pytest.raises(GraphirError) as failed:
        model(HEAVY[name])
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert {d.code for d in failed.value.diagnostics} == {"E0606"}
    assert after.ru_utime - before.ru_utime < 2
    assert after.ru_maxrss - before.ru_maxrss < 200 * 1024


def test_doubling_inside_a_graft_is_refused_early():
    blocks = "block B0(x: [*S]) -> [*S] { return x -> id }\n" + "".join(
        f"block B{i}(x: [*S]) -> [*S] {{ return x -> B{i - 1} -> B{i - 1} }}\n" for i in range(1, 41)
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    with pytest.raises(GraphirError) as failed:
        graphir.load(blocks + "model M(x: float[B, 8]) -> float[B, 8] { return x -> (graft B40 { at B39_1.B0: site }) }")
    assert {d.code for d in failed.value.diagnostics} == {"E0606"}
    assert resource.getrusage(resource.RUSAGE_SELF).ru_utime - before < 4


def test_lists_of_a_usual_size_stay_cheap():
    graph = model("a = [1] * 5000 + [2] * 5000\nb = a[0..5000] + a\nreturn x -> linear(8 + min(a) - 1 if 2 in b else 9)")
    assert graph.weights["linear.weight"].shape == (8, 8)


@pytest.mark.parametrize("step", ['with_init({0}, "zeros", weights = "last")', 'with_init(residual({0}), "zeros", weights = "last")'])
def test_nested_with_init_is_linear(step):
    body = doubled("linear(8)", 25, step) + "return x -> x25"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    assert [w.init for n, w in model(body).weights.items() if n.endswith("weight")] == ["zeros"]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_utime - before < 2


def test_nested_stitches_are_linear():
    f = "linear(8)"
    for _ in range(20):
        f = f"stitch({f}, width = 8)"
    assert len(model(f"x -> {f}").nodes) == 41


def test_with_init_is_nested_to_a_bound():
    assert problem(doubled("linear(8)", 70, 'with_init({0}, "zeros")') + "return x -> x70").code == "E0606"


# messages


def test_bricks_in_lists_are_shown_in_a_few_words():
    found = problem("x -> linear([Layer(Attention(2), SwiGLU)])")
    assert found.code == "E0404"
    assert found.message == "`out` is [a brick `Layer`], not a width"


@pytest.mark.parametrize("value", ["[1] * 10000", '["' + "a" * 900 + '"] * 50', "[[[[[1]]]]]", "[MLP -> MLP] * 100", "MLP"])
@pytest.mark.parametrize(
    "use",
    ["linear({})", "linear(8, bias = {})", "conv1d(8, {})", "repeat({}, 2)", "[{}, 3]", "split({})", "rmsnorm({})", "linear(8, init = {})"],
)
def test_messages_are_short(value, use):
    try:
        model(f"x -> {use.format(value)}")
    except GraphirError as e:
        for d in e.diagnostics:
            assert all(len(text) < 2000 for text in (d.message, *d.notes, *d.help))


def test_show_is_bounded():
    assert show([1, "a", None, True, (2.5,)]) == '[1, "a", none, true, (2.5,)]'
    assert show(list(range(9))) == "[0, 1, 2, 3, 4, 5, 6, 7, ...]"
    assert show([[[[1]]]]) == "[[[[...]]]]" or show([[[[1]]]]) == "[[[...]]]"
    assert len(show("a" * 1000)) < 70
    assert len(show([["a" * 100] * 100] * 100)) < 400
    assert show([object()]) == "[a brick]"


def test_weigh_stops():
    value = [1]
    for _ in range(60):
        value = [value, value]
    assert weigh([1, [2, 3]], 100) == 5
    assert weigh(value, 1000) < 4000
    deep = [1]
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(ScalarError):
        weigh(deep, 10**6)


# nested with_init


def inits(body):
    return {n.rsplit(".", 2)[-2]: w.init for n, w in model(body).weights.items() if n.endswith("weight")}


TWO = "(linear(8) as v -> linear(8) as w)"


@pytest.mark.parametrize(
    ("brick", "v", "w"),
    [
        ('with_init(with_init({f}, "zeros", names = ["v"]), "ones")', "zeros", "ones"),
        ('with_init(with_init({f}, "ones", names = ["v"]), "zeros", names = ["w"])', "ones", "zeros"),
        ('with_init(with_init({f}, factor = 0.5), "normal")', "normal * 0.5", "normal * 0.5"),
        ('with_init(with_init({f}, "normal", names = ["v"]), factor = 0.5)', "normal * 0.5", "he * 0.5"),
        ("with_init(with_init({f}, factor = 0.5), factor = 0.5)", "he * 0.25", "he * 0.25"),
        ('with_init(with_init({f}, "normal", names = ["v"]), "lecun", factor = 0.5)', "normal", "lecun * 0.5"),
        ('with_init(with_init({f}, "zeros", weights = "last"), "ones")', "ones", "zeros"),
        ('with_init(with_init({f}, "zeros", names = ["w"]), "ones", weights = "last")', "he", "zeros"),
        ('with_init(with_init({f}, "zeros"), "ones", weights = "last")', "zeros", "zeros"),
        ('with_init(with_init({f}, "normal", weights = "last"), factor = 0.5)', "he * 0.5", "normal * 0.5"),
        ('with_init(with_init({f}, factor = 0.5, weights = "last"), "normal")', "normal", "normal * 0.5"),
        ('with_init(with_init({f}, "normal", weights = "last"), factor = 0.5, weights = "last")', "he", "normal * 0.5"),
    ],
)
def test_inner_settings_win_and_outer_ones_reach_the_rest(brick, v, w):
    assert inits("x -> " + brick.format(f=TWO)) == {"v": v, "w": w}


def test_repeats_of_nested_starts_are_alike():
    f = 'with_init([residual(linear(8))] * 2, factor = 0.5, weights = "last")'
    found = [w.init for n, w in model(f'x -> ([with_init({f}, "normal")] * 3)').weights.items() if n.endswith("weight")]
    assert found == ["normal", "normal * 0.5"] * 3


# runtime dims


@pytest.mark.parametrize("body", ["x * T", "T * x", "x + T", "x - T", "x / T", "T / x", "x ** T"])
def test_a_runtime_dim_is_no_factor(body):
    found = problem(body)
    assert found.code == "E0307"
    assert "known before run time, not the runtime dim `T`" in found.message


def test_widths_are_known_before_run_time():
    found = problem("x -> linear(T)")
    assert found.code == "E0204"
    assert "known before run time" in found.message
    found = problem("x -> linear(8)", ports="x: float[B, 8, T]")
    assert not any("capitalize" in h for h in found.help)
    assert any("known before run time" in h for h in found.help)
    found = problem("x -> F", ports="x: float[B, 8, T]", rest="block F(y: [*S, d]) -> [*S, d] { return y -> id }")
    assert any("capitalize `d`" in h for h in found.help)
