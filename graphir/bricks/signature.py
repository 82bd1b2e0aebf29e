"""Matching tensors against a header: `(x: [*S, d], m: bool[B, T])` binds names, `-> [*S, out]` is evaluated.

Blocks and primitives use the same rules. A name's first binding is remembered with the port it came from, so that a clash
can cite both. Lower-case names are config and must come out as integers; capitalized ones may stay symbolic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..ir.dims import Dim, Facts, Poly
from ..ir.scalar import ScalarError, evaluate, is_dim, kind, show
from ..ir.types import DTYPES, Type
from ..lang import syntax as s


class Misfit(Exception):
    """Why tensors do not fit a header. `port` is the index of the input at fault, -1 where none is."""

    def __init__(self, code: str, message: str, port: int = -1, help: Sequence[str] = (), notes: Sequence[str] = ()):
        super().__init__(message)
        self.code, self.message, self.port, self.help, self.notes = code, message, port, tuple(help), tuple(notes)


def show_type(type: s.TypeOf, names: Mapping[str, Any] | None = None) -> str:
    """A header's type as text, with the names that are bound replaced by their values."""
    names = names or {}
    parts = []
    for dim in type.dims:
        if isinstance(dim, s.Rest):
            bound = names.get(dim.name)
            parts += [str(d) for d in bound] if isinstance(bound, tuple) else [f"*{dim.name}"]
        else:
            try:
                parts.append(str(evaluate(dim, names)))
            except ScalarError:
                parts.append(dim.span.text)
    return f"{type.dtype or ''}[{', '.join(parts)}]"


def match(ports: Sequence[s.Port], types: Sequence[Type], names: dict[str, Any], facts: Facts) -> None:
    """Check each type against its port and add to `names` what the ports bind. Raises Misfit."""
    binders: dict[str, str] = {}
    for index, (port, type) in enumerate(zip(ports, types)):
        _match_dtype(port, type, names, index)
        _match_shape(port, type, names, facts, index, binders)


def _match_dtype(port: s.Port, type: Type, names: dict[str, Any], index: int) -> None:
    wanted = port.type.dtype or "float"
    if wanted == "any":
        wanted = names.setdefault("any", type.dtype)
    if wanted != type.dtype:
        help = ("`float` turns integers and truth values into numbers",) if wanted == "float" else ()
        raise Misfit("E0201", f"`{port.name}` takes {wanted} elements, not {type.dtype}", index, help)


def _match_shape(port: s.Port, type: Type, names: dict[str, Any], facts: Facts, index: int, binders: dict[str, str]) -> None:
    dims, shape = port.type.dims, type.shape
    rest = next((i for i, d in enumerate(dims) if isinstance(d, s.Rest)), None)
    fixed = len(dims) - (rest is not None)
    if len(shape) < fixed or (rest is None and len(shape) != fixed):
        axes = f"{fixed} {'axis' if fixed == 1 else 'axes'}" if rest is None else f"at least {fixed}"
        raise Misfit("E0202", f"`{port.name}` takes {axes}, {show_type(port.type, names)}, not {type}", index)
    if rest is None:
        pairs = list(zip(dims, shape))
    else:
        after = len(dims) - rest - 1
        middle = shape[rest : len(shape) - after]
        pairs = list(zip(dims[:rest], shape[:rest])) + list(zip(dims[rest + 1 :], shape[len(shape) - after :]))
        _match_rest(port, dims[rest].name, middle, names, facts, index)  # type: ignore[union-attr]
    for pattern, dim in pairs:
        _match_dim(port, pattern, dim, type, names, facts, index, binders)  # type: ignore[arg-type]


def _match_rest(port: s.Port, name: str, shape: tuple[Dim, ...], names: dict[str, Any], facts: Facts, index: int) -> None:
    if name not in names:
        names[name] = shape
        return
    bound = names[name]
    if not isinstance(bound, tuple | list):
        raise Misfit("E0308", f"`{name}` names two things: the axes `*{name}` of `{port.name}`, and {kind(bound)}", index)
    for old, new in zip(bound, shape):
        _compare(facts, old, new, f"`*{name}` is {_shape(bound)} by an earlier input, but {_shape(shape)} in `{port.name}`", index, "E0205")
    if len(bound) != len(shape):
        raise Misfit("E0205", f"`*{name}` is {_shape(bound)} by an earlier input, but {_shape(shape)} in `{port.name}`", index)


def _shape(shape: Sequence[Dim]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _compare(facts: Facts, wanted: Dim, given: Dim, message: str, index: int, code: str) -> None:
    same = facts.same(wanted, given)
    if same:
        return
    if same is None:
        raise Misfit(
            "E0204", f"{message}: cannot show `{given}` = `{wanted}`", index, (f"add `require {given} == {wanted}` where both are known",)
        )
    raise Misfit(code, message, index)


def _number_help(name: str, source: str) -> tuple[str, ...]:
    if source.startswith(("brick ", "std/")):
        return ("this width must be a number known before run time: give the axis a number, or bring another axis there",)
    return (f"capitalize `{name}` in the header if any length will do",)


def _match_dim(
    port: s.Port, pattern: s.Expr, dim: Dim, type: Type, names: dict[str, Any], facts: Facts, index: int, binders: dict[str, str]
) -> None:
    if isinstance(pattern, s.Name):
        name = pattern.id
        if name not in names:
            if isinstance(dim, Poly) and name[0].islower():
                raise Misfit(
                    "E0204",
                    f"`{name}` in `{port.name}` needs a number, but `{dim}` is known only at run time",
                    index,
                    _number_help(name, pattern.span.source.name),
                )
            names[name] = dim
            binders[name] = port.name
            return
        wanted = names[name]
        if not is_dim(wanted):
            raise Misfit("E0404", f"`{name}` is used as a width but is {show(wanted)}", index)
        source = f" by input `{binders[name]}`" if name in binders else ""
        _compare(facts, wanted, dim, f"`{name}` is {wanted}{source}, but {dim} in `{port.name}` ({type})", index, "E0205")
        return
    try:
        wanted = evaluate(pattern, names, facts)
    except ScalarError as e:
        raise Misfit(e.code, f"{e.message} (a width of `{port.name}`)", index, e.help) from None
    if not is_dim(wanted):
        raise Misfit("E0404", f"a width of `{port.name}` is {show(wanted)}, not an integer", index)
    _compare(facts, wanted, dim, f"`{port.name}` takes {show_type(port.type, names)}, not {type}", index, "E0205")


def result(type: s.TypeOf, names: Mapping[str, Any], facts: Facts) -> Type:
    """The type that a header's result has under the bound names. Raises Misfit."""
    shape: list[Dim] = []
    for dim in type.dims:
        if isinstance(dim, s.Rest):
            if dim.name not in names:
                raise Misfit("E0301", f"`*{dim.name}` of the result is bound by no input")
            axes = names[dim.name]
            if not isinstance(axes, tuple | list):
                raise Misfit("E0308", f"`{dim.name}` names two things: the axes `*{dim.name}` of the result, and {kind(axes)}")
            shape.extend(axes)
            continue
        try:
            value = evaluate(dim, names, facts)
        except ScalarError as e:
            raise Misfit(e.code, f"{e.message} (in the result {show_type(type)})", help=e.help) from None
        if not is_dim(value):
            raise Misfit("E0404", f"`{dim.span.text}` is {show(value)}, not a width")
        if isinstance(value, int) and value < 0:
            raise Misfit("E0405", f"`{dim.span.text}` is {value}: a width is never negative")
        shape.append(value)
    dtype = type.dtype or "float"
    if dtype == "any":
        dtype = names.get("any", "float")
    assert dtype in DTYPES, dtype
    return Type(dtype, tuple(shape))
