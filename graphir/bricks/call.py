"""The convention by which a declaration's body is called, and the reading of its examples. Interpreter, fx and tests use these.

Inputs go in port order, optional ones by their port's name, weights by role, then the attributes that the body names.
A body that names `training` is told whether the module trains; one that names `device` or `dtype` makes a tensor out of
nothing, or floats out of integers, and is told where it lives and how precise floats are (None: torch's defaults).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..ir.dims import Dim, Facts, Poly, evaluate, symbol
from ..ir.graph import Attrs
from ..ir.scalar import evaluate as evaluate_config
from ..ir.types import Type
from ..lang import syntax as s
from ..lang.parser import parse_expression
from ..lang.source import Source
from .declare import Declaration

Arguments = tuple[list[Any], dict[str, Any]]


def arguments(
    declaration: Declaration, inputs: Sequence[Any], weights: Mapping[str, Any], attrs: Mapping[str, Any], **context: Any
) -> Arguments:
    """Positional and keyword arguments of the body. `context`: training, device, dtype; each is passed on if the body names it."""
    static = declaration.static_arguments(attrs)
    told = {k: v for k, v in context.items() if k in declaration.accepts}
    if not declaration.optional:
        return list(inputs), {**static, **weights, **told}
    ports = [p.name for p in declaration.given_ports(attrs)]
    optional = {n: v for n, v in zip(ports, inputs) if n in declaration.optional}
    required = [v for n, v in zip(ports, inputs) if n not in declaration.optional]
    return required, {**optional, **static, **weights, **told}


def call(
    declaration: Declaration,
    inputs: Sequence[Any],
    weights: Mapping[str, Any] | None = None,
    attrs: Mapping[str, Any] | None = None,
    training: bool = False,
    device: Any = None,
    dtype: Any = None,
) -> tuple[Any, ...]:
    """Run the body; the results as a tuple, one per result of the brick. Attributes must be concrete (see `concrete`)."""
    positional, keyword = arguments(declaration, inputs, weights or {}, attrs or {}, training=training, device=device, dtype=dtype)
    out = declaration.body(*positional, **keyword)
    return tuple(out) if isinstance(out, (tuple, list)) else (out,)


def concrete(value: Any, sizes: Mapping[str, int]) -> Any:
    """A config value with runtime dims replaced by integers. KeyError where a name has no size."""
    if isinstance(value, Poly):
        return evaluate(value, sizes)
    if isinstance(value, tuple | list):
        return tuple(concrete(v, sizes) for v in value)
    return value


def complete(declaration: Declaration, types: tuple[Type, ...], attrs: Attrs, facts: Facts) -> Attrs:
    """The attributes with every formal's default filled in, as elaboration does. Raises Misfit."""
    names = declaration.names(types, attrs, facts)
    defaults = {name: _frozen(names[name]) for name in declaration.formals if name in names and name not in attrs}
    return Attrs({**attrs, **defaults})


_TYPE = re.compile(r"(?:(\w+) = )?(float|int|bool)\[([^\]]*)\]")


def read_example(declaration: Declaration, text: str) -> tuple[Attrs, tuple[Type, ...]]:
    """The attributes and input types of an example, `linear(8) : float[2, 4]`; an optional port is named, `mask = bool[2, 4]`."""
    use, _, ports = text.partition(" : ")
    types, given = [], []
    for name, dtype, dims in _TYPE.findall(ports):
        types.append(Type(dtype, tuple(_dim(d) for d in dims.split(",") if d.strip())))
        given += [name] if name else []
    attrs = _config(declaration, parse_expression(Source(f"example of {declaration.name}", use)))
    if declaration.optional:
        attrs["given"] = tuple(given)
    return Attrs(attrs), tuple(types)


def _dim(text: str) -> Dim:
    expr = parse_expression(Source("example", text.strip()))
    names = {n: symbol(n) for n in re.findall(r"[A-Z]\w*", text)}
    return evaluate_config(expr, names)


def _config(declaration: Declaration, use: s.Expr) -> dict[str, Any]:
    if not isinstance(use, s.Call):
        return {}
    attrs: dict[str, Any] = {}
    extra: list[tuple[str, Any]] = []
    formals = list(declaration.formals)
    for index, argument in enumerate(use.arguments):
        names = {n: symbol(n) for n in re.findall(r"\b[A-Z]\w*", argument.span.text)}
        value = _frozen(evaluate_config(argument.value, names))
        name = argument.name or formals[index]
        if name in declaration.formals:
            attrs[name] = value
        else:
            assert declaration.extra, f"`{declaration.name}` has no formal `{name}`"
            extra.append((name, value))
    if extra:
        attrs[declaration.extra] = tuple(extra)
    return attrs


def _frozen(value: Any) -> Any:
    return tuple(_frozen(v) for v in value) if isinstance(value, list | tuple) else value
