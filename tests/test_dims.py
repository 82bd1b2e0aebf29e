"""Dims obey the laws of integers, and facts never lie."""

import subprocess
import sys
from itertools import product

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from graphir.ir.dims import Facts, Poly, Quotient, evaluate, extremum, floordiv, free_names, substitute, symbol
from graphir.ir.graph import Attrs, Graph, Precondition
from graphir.ir.scalar import evaluate as evaluate_expression
from graphir.lang.parser import parse_expression
from graphir.lang.source import Source

NAMES = ("B", "T", "N")
B, T, N = map(symbol, NAMES)
sizes = st.fixed_dictionaries({name: st.integers(-40, 40) for name in NAMES})


def _grow(dims):
    pairs = st.tuples(dims, dims)
    return st.one_of(
        pairs.map(lambda p: p[0] + p[1]),
        pairs.map(lambda p: p[0] - p[1]),
        pairs.map(lambda p: p[0] * p[1]),
        st.tuples(dims, st.integers(1, 12)).map(lambda p: floordiv(*p)),
        st.tuples(dims, st.integers(1, 12)).map(lambda p: p[0] % p[1]),
        st.tuples(st.sampled_from(("min", "max")), st.lists(dims, min_size=1, max_size=3)).map(lambda p: extremum(p[0], tuple(p[1]))),
    )


polynomials = st.recursive(
    st.one_of(st.sampled_from((B, T, N)), st.integers(-9, 9)),
    lambda inner: st.tuples(inner, inner, st.booleans()).map(lambda p: p[0] + p[1] if p[2] else p[0] * p[1]),
    max_leaves=5,
)
dims = st.recursive(st.one_of(st.sampled_from((B, T, N)), st.integers(-9, 9)), _grow, max_leaves=6)


@settings(max_examples=300, deadline=None)
@given(dims, dims, st.integers(1, 12), sizes)
def test_arithmetic_is_that_of_integers(a, b, k, at):
    x, y = evaluate(a, at), evaluate(b, at)
    assert evaluate(a + b, at) == x + y
    assert evaluate(a - b, at) == x - y
    assert evaluate(a * b, at) == x * y
    assert evaluate(-a, at) == -x
    assert evaluate(floordiv(a, k), at) == x // k
    assert evaluate(a % k, at) == x % k
    assert evaluate(extremum("min", (a, b)), at) == min(x, y)
    assert evaluate(extremum("max", (a, b)), at) == max(x, y)
    assert substitute(a, at.get) == x


@settings(max_examples=200, deadline=None)
@given(dims, dims, dims, st.integers(1, 9))
def test_normal_form_identifies_what_algebra_does(a, b, c, k):
    assert (a + b) + c == a + (b + c)
    assert a * (b + c) == a * b + a * c
    assert a * b == b * a
    assert a - a == 0
    assert floordiv(a * k, k) == a
    assert floordiv(a * k + b, k) == a + floordiv(b, k)
    assert extremum("min", (a, b)) == extremum("min", (b, a))
    assert extremum("max", (a, a + 1)) == a + 1


@settings(max_examples=200, deadline=None)
@given(polynomials, st.integers(1, 9), st.integers(1, 9), st.integers(-9, 9))
def test_floors_of_floors_merge(a, k, m, r):
    assert floordiv(floordiv(a, k), m) == floordiv(a, k * m)
    assert floordiv(floordiv(a, k) + r, m) == floordiv(a + r * k, k * m)


@settings(max_examples=200, deadline=None)
@given(dims)
def test_text_means_the_same_to_the_language(a):
    expression = parse_expression(Source("dim", str(a)))
    for values in product((-7, 0, 5), repeat=3):
        at = dict(zip(NAMES, values))
        assert evaluate_expression(expression, at) == evaluate(a, at)


def test_text_is_readable():
    assert str(4 * (T // 4)) == "4*(T//4)"
    assert str(B * (T // 4)) == "B*(T//4)"
    assert str((B * T) // 4) == "(B*T)//4"
    assert str(T // 4 - B) == "-B + T//4"
    assert str(-(T // 4)) == "-(T//4)"
    assert str((T + 1) // 2) == "(T + 1)//2"
    assert str(extremum("min", (T, 8))) == "min(8, T)"


def test_strided_convolutions_come_out_even():
    assert (4 * T + 3) // 4 == T
    assert (4 * T + 3 - 4) // 4 + 1 == T
    assert (5 * T) // 4 == T + T // 4


def test_extremum_folds_what_is_known():
    assert extremum("min", (3, 4)) == 3
    assert extremum("min", (T + 1, T)) == T
    assert extremum("max", (T + 1, T, 2)) == extremum("max", (2, T + 1))
    assert extremum("min", (extremum("min", (T, 4)), 8)) == extremum("min", (4, T))


facts_and_values = st.tuples(
    st.lists(st.tuples(dims, st.integers(2, 12)), max_size=3), st.lists(st.tuples(dims, dims), max_size=2), dims, dims, st.integers(2, 12)
)


@settings(max_examples=300, deadline=None)
@given(facts_and_values, st.randoms(use_true_random=False))
def test_facts_never_lie(case, random):
    """Whatever is recorded, an answer of equal, different or divisible holds at every point where the records hold."""
    divisibles, equals, a, b, k = case
    facts = Facts()
    order = [*(("%", *d) for d in divisibles), *(("=", *e) for e in equals)]
    random.shuffle(order)
    for what, left, right in order:
        if what == "%":
            facts.add_divisible(left, right)
        else:
            facts.add_equal(left, right)
    same, divides = facts.same(a, b), facts.is_divisible(a, k)
    rewritten = facts.normal(a)
    assert facts.normal(rewritten) == rewritten
    points = ({"B": x, "T": y, "N": z} for x, y, z in product(range(-3, 13, 3), range(-8, 25, 4), (-12, 0, 1, 2, 24)))
    for at in points:
        if any(evaluate(d, at) % m for d, m in divisibles) or any(evaluate(x, at) != evaluate(y, at) for x, y in equals):
            continue
        assert same is None or same == (evaluate(a, at) == evaluate(b, at))
        assert divides is None or divides == (evaluate(a, at) % k == 0)
        assert evaluate(rewritten, at) == evaluate(a, at)


@settings(max_examples=100, deadline=None)
@given(dims, dims, st.integers(2, 12))
def test_facts_know_what_they_were_told(a, b, k):
    assume(Facts().is_divisible(a, k) is not False)
    facts = Facts()
    facts.add_divisible(a, k)
    if not isinstance(a, int):
        assert facts.is_divisible(a, k)
        assert facts.same(floordiv(a, k) * k, a)
    facts = Facts()
    assume(not isinstance(a - b, int))
    facts.add_equal(a, b)
    assert facts.same(a, b)
    assert facts.same(2 * a, 2 * b)


def test_moduli_meet_nested_quotients():
    facts = Facts()
    assert facts.same(T // 8 * 8, T) is None
    facts.add_divisible(T, 4)
    assert facts.same(T // 4 * 4, T)
    assert facts.same(T // 2 // 2 * 4, T)
    assert facts.is_divisible(T, 2)
    assert facts.is_divisible(T + 1, 2) is False
    assert facts.is_divisible(T, 8) is None
    facts.add_divisible(T // 4, 2)
    assert facts.is_divisible(T, 8)
    facts.add_divisible(T, 6)
    assert facts.is_divisible(T, 24)


def test_equalities_cannot_loop():
    facts = Facts()
    facts.add_equal(T, B)
    facts.add_equal(B, T)
    facts.add_equal(B, N + 1)
    facts.add_equal(N, T - 1)
    assert facts.same(T, N + 1)
    assert facts.same(T, N) is False


def test_an_equality_keeps_an_earlier_modulus():
    facts = Facts()
    facts.add_divisible(T, 4)
    facts.add_equal(T, 2 * N)
    assert facts.is_divisible(N, 2)


def test_only_equations_become_facts():
    requires = (Precondition(T, "!=", 0, 4), Precondition(B, "<", 4))
    facts = Graph("M", (), (), (), {}, requires=requires).facts
    assert facts.is_divisible(T, 4) is None
    assert facts.same(B, 4) is None
    odd = Graph("M", (), (), (), {}, requires=(Precondition(T, "==", 1, 2),)).facts
    assert odd.is_divisible(T - 1, 2)


def _repeat(step, times, dim=T):
    for _ in range(times):
        dim = step(dim)
    return dim


@pytest.mark.parametrize(
    ("step", "times", "start"),
    [
        (lambda x: x * x, 40, B + T + N + 1),
        (lambda x: (x * 2 + 1) // 3, 1000, T),
        (lambda x: (x * x + 1) // 2, 40, T),
        (lambda x: x * 10**18, 300, T),
        (lambda x: x // 10**18, 300, T),
        (lambda x: x + symbol(f"n{len(x.terms)}"), 5000, T),
        (lambda x: extremum("max", (x, symbol(f"n{x.extent[0]}"))), 5000, T),
    ],
)
def test_growth_is_bounded(step, times, start):
    with pytest.raises(OverflowError):
        _repeat(step, times, start)


def test_division_by_nothing():
    with pytest.raises(ZeroDivisionError):
        floordiv(T, 0)
    with pytest.raises(KeyError):
        evaluate(T + B, {"T": 1})


def test_free_names_see_into_quotients():
    assert free_names(extremum("max", ((T + 1) // 2, B * N))) == {"B", "T", "N"}
    assert isinstance(T // 2, Poly)
    assert (T // 2).terms[0][0][0] == Quotient(T, 2)


def test_attrs_tell_kinds_of_numbers_apart():
    kinds = {Attrs({"a": 1}): 0, Attrs({"a": True}): 1, Attrs({"a": 1.0}): 2, Attrs({"a": (1,)}): 3, Attrs({"a": (True,)}): 4}
    assert len(kinds) == 5


def test_text_does_not_depend_on_hash_order():
    program = "from graphir.ir.dims import *; a = [symbol(c) for c in 'XYZWVU']; print((sum(a) * sum(a) + sum(a)) // 3 * a[3])"
    seen = {
        subprocess.run([sys.executable, "-c", program], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True).stdout
        for seed in ("0", "1", "2")
    }
    assert len(seen) == 1
