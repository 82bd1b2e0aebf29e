"""Shape rules that several bricks share: axes, alignment of elementwise inputs, exact division of dims."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..ir.dims import Dim, Facts, Poly, floordiv
from ..ir.scalar import compare, is_dim, show
from ..ir.types import Type
from .signature import Misfit

Shape = tuple[Dim, ...]


def show_shape(shape: Sequence[Dim]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def axis_at(axis: Any, rank: int, shape: Sequence[Dim] = ()) -> int:
    """The axis counted from the front. Raises Misfit where a tensor of that rank has no such axis."""
    if not isinstance(axis, int) or isinstance(axis, bool):
        raise Misfit("E0404", f"`axis` takes an integer, not {show(axis)}")
    if not -rank <= axis < rank:
        of = f" ({show_shape(shape)})" if shape else ""
        raise Misfit("E0202", f"axis {axis} does not exist: the tensor has {rank} {'axis' if rank == 1 else 'axes'}{of}", 0)
    return axis % rank


def replaced(shape: Shape, axis: int, *dims: Dim) -> Shape:
    """The shape with one axis replaced by others (by none: removed)."""
    return shape[:axis] + dims + shape[axis + 1 :]


def numeric(types: Sequence[Type]) -> str:
    """The one element type of all inputs, which must not be bool. Raises Misfit."""
    return one_dtype(types, numbers=True)


def one_dtype(types: Sequence[Type], numbers: bool = False) -> str:
    """The one element type of all inputs. Raises Misfit: nothing is converted in silence."""
    wanted = types[0].dtype
    for index, type in enumerate(types):
        if numbers and type.dtype == "bool":
            raise Misfit("E0201", "truth values are not numbers here", index, ("`float` or `int` turns truth values into numbers",))
        if type.dtype != wanted:
            help = ("`float` and `int` convert, written where it happens",)
            raise Misfit("E0201", f"one input has {wanted} elements, another {type.dtype}", index, help)
    return wanted


def elementwise_shape(shapes: Sequence[Shape], facts: Facts) -> Shape:
    """The language's alignment: at the last axis; missing leading axes and literal 1 extend; nothing else does. Raises Misfit."""
    rank = max(len(s) for s in shapes)
    out: list[Dim] = []
    for place in range(-rank, 0):
        dims = [(index, s[place]) for index, s in enumerate(shapes) if len(s) >= -place]
        wide = [(index, d) for index, d in dims if d != 1]
        if not wide:
            out.append(1)
            continue
        first, chosen = wide[0]
        for index, d in wide[1:]:
            _agree(facts, chosen, d, shapes[first], shapes[index], index)
        out.append(chosen)
    return tuple(out)


def _agree(facts: Facts, wanted: Dim, given: Dim, first: Shape, other: Shape, port: int) -> None:
    same = facts.same(wanted, given)
    if same:
        return
    message = f"{show_shape(first)} and {show_shape(other)} do not align at the last axis"
    if same is None:
        raise Misfit("E0204", f"{message}: cannot show `{given}` = `{wanted}`", port, (settles(given, wanted),))
    raise Misfit("E0207", f"{message}: {given} against {wanted}", port, ("only a missing leading axis or a literal 1 extends",))


def settles(given: Dim, wanted: Dim) -> str:
    return f"add `require {given} == {wanted}` where both are known"


def equal_shapes(types: Sequence[Type], facts: Facts, what: str = "inputs") -> None:
    """Check that all shapes are the same. Raises Misfit at the first that differs."""
    wanted = types[0].shape
    for index, type in enumerate(types):
        if len(type.shape) != len(wanted):
            raise Misfit("E0202", f"the {what} have shapes {show_shape(wanted)} and {show_shape(type.shape)}", index)
        for a, b in zip(wanted, type.shape):
            expect_same(facts, a, b, f"the {what} have shapes {show_shape(wanted)} and {show_shape(type.shape)}", index)


def expect_same(facts: Facts, wanted: Dim, given: Dim, message: str, port: int = -1) -> None:
    """Raise Misfit unless the dims are known to be equal."""
    same = facts.same(wanted, given)
    if same:
        return
    if same is None:
        raise Misfit("E0204", f"{message}: cannot show `{given}` = `{wanted}`", port, (settles(given, wanted),))
    raise Misfit("E0205", message, port)


def divided(dim: Dim, by: Dim, facts: Facts, what: str) -> Dim:
    """`dim / by`, known to be whole. Raises Misfit, with the `require` that would settle it, where it is not."""
    if by == 1:
        return dim
    if isinstance(by, int):
        if by < 1:
            raise Misfit("E0405", f"{what}: `{dim}` cannot be divided by {by}", 0)
        whole = facts.is_divisible(dim, by)
        if whole:
            return floordiv(facts.normal(dim), by)
        if whole is None:
            raise Misfit("E0401", f"{what}: `{dim}` is not known to be a multiple of {by}", 0, (f"add `require {dim} % {by} == 0`",))
        raise Misfit("E0401", f"{what}: {dim} is not a multiple of {by}", 0)
    quotient = _monomial_quotient(facts.normal(dim), facts.normal(by))
    if quotient is None:
        raise Misfit("E0401", f"{what}: `{dim}` is not known to be a multiple of `{by}`", 0)
    return quotient


def _monomial_quotient(dim: Dim, by: Dim) -> Dim | None:
    if isinstance(by, int) or isinstance(dim, int) or len(by.terms) != 1:
        return None if dim != 0 else 0
    (atoms, factor), terms = by.terms[0], []
    for monomial, coefficient in dim.terms:
        rest = list(monomial)
        for atom in atoms:
            if atom not in rest:
                return None
            rest.remove(atom)
        if coefficient % factor:
            return None
        terms.append((tuple(rest), coefficient // factor))
    total: Dim = 0
    for monomial, coefficient in terms:
        total = total + (Poly(((monomial, coefficient),)) if monomial else coefficient)
    return total


def product(dims: Sequence[Dim]) -> Dim:
    total: Dim = 1
    for d in dims:
        total = total * d
    return total


def is_size(value: Any) -> bool:
    """A dim that is not known to be negative."""
    return is_dim(value) and compare(">=", value, 0) is not False


def a_size(value: Any, what: str) -> Dim:
    """The value, if it can be a length. Raises Misfit."""
    if not is_size(value):
        raise Misfit("E0404", f"{what} takes a width from 0 up, not {show(value)}")
    return value


def known_false(op: str, left: Dim, right: Dim, facts: Facts) -> bool:
    return compare(op, left, right, facts) is False


def same_type(types: Sequence[Type], names: Mapping[str, Any], facts: Facts) -> tuple[Type, ...]:
    """The shape rule of a brick that gives what it takes, numbers of any kind."""
    numeric(types)
    return (types[0],)
