"""The declaration of a primitive brick: one header string, one body.

    @brick(
        "linear(out, bias = true)(x: [*S, i]) -> [*S, out]",
        weights="weight: [out, i] = he; bias: [out] = zeros if bias",
        flops="2 * S * i * out",
    )
    def linear(x, weight, bias=None):
        '''Affine map of the last axis.'''
        return torch.nn.functional.linear(x, weight, bias)

The header is parsed by the language's own grammar, when first needed. It gives the shape rule, the weights, the defaults,
the line in the manual and the generator of random programs; the body is the reference meaning and the default lowering.

A body takes the inputs in port order (optional ports by keyword), each weight by its role, and those attributes (formals)
that it names. A body that names `training` is told whether the module trains; one that names `dims` gets no special care:
attributes that are runtime dims arrive as integers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ..ir.dims import Dim, Facts, Poly
from ..ir.graph import Attrs, Weight
from ..ir.scalar import ScalarError, evaluate, is_dim, is_number, kind, show
from ..ir.types import Type
from ..lang import syntax as s
from ..lang.parser import parse_expression, parse_header
from ..lang.source import Source
from .inits import init_spec
from .signature import Misfit, match, result

KINDS = ("brick", "fork", "join", "stitch", "filter")
ShapeRule = Callable[[tuple[Type, ...], Mapping[str, Any], Facts], Sequence[Type]]
FlopsRule = Callable[[tuple[Type, ...], Mapping[str, Any], Facts], Dim]


@dataclass(frozen=True)
class WeightRule:
    """One weight of a brick: role, dims, initialisation, the condition under which it exists.

    `path` is what the weight's name ends in where that is not its role (modules of a host have dots in it).
    """

    role: str
    dims: tuple[s.Expr, ...]
    init: str
    when: s.Expr | None
    buffer: bool = False
    path: str = ""
    frozen: bool = False


@dataclass(frozen=True)
class StateRule:
    """How a brick carries state when decoding.

    `init(types, names)` gives `{name: (shape, dtype)}` of the state before the first token: `types` are the input types, `names`
    the attributes and bound dims (`Declaration.names`). All zeros, or what `fill` says by name. Batch is axis 0 of every state
    tensor that has axes; a growing cache is called `past` and starts with length 0; `offset` (no axes) counts the tokens seen.
    `step(state, *inputs, **weights_and_attrs)` is called like the body with a leading mapping of state tensors, for any number
    of new tokens from one up, and returns (result, new state mapping); the new tensors may be longer, or float32 in half precision.
    `crop(state, length, attrs)` gives the state after the first `length` tokens, None where that is gone.
    """

    init: Callable[..., Mapping[str, tuple[tuple[Dim, ...], str]]]
    step: Callable[..., Any]
    crop: Callable[..., Mapping[str, Any] | None] | None = None
    fill: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Declaration:
    """All that graphir knows of a primitive brick."""

    header_text: str
    body: Callable[..., Any]
    weights_text: str = ""
    flops_text: str = "0"
    require: tuple[str, ...] = ()
    kind: str = "brick"
    variadic: bool = False
    optional: tuple[str, ...] = ()
    shape: ShapeRule | None = None
    state: StateRule | None = None
    inline: bool = False
    random: bool = False
    causal: bool | Callable[[Mapping[str, Any]], bool] = True
    elementwise: bool = False
    per_token: bool = False
    examples: tuple[str, ...] = ()
    source: str = ""
    file: str = ""
    extra: str = ""
    flops_rule: FlopsRule | None = None
    looks_at: tuple[str, ...] = ()

    @cached_property
    def name(self) -> str:
        return self.header_text.split("(", 1)[0].strip()

    @cached_property
    def doc(self) -> str:
        return (self.body.__doc__ or "").strip()

    @cached_property
    def header(self) -> s.Header:
        return parse_header(Source(f"brick {self.name}", self.header_text))

    @cached_property
    def formals(self) -> Mapping[str, s.Formal]:
        return {f.name: f for f in self.header.formals}

    @cached_property
    def ports(self) -> tuple[s.Port, ...]:
        return self.header.ports

    @cached_property
    def port_names(self) -> tuple[str, ...]:
        return tuple(p.name for p in self.ports)

    @cached_property
    def weights(self) -> tuple[WeightRule, ...]:
        return tuple(_weight_rule(text.strip()) for text in self.weights_text.split(";") if text.strip())

    @cached_property
    def defaults(self) -> Mapping[str, s.Expr]:
        return {f.name: f.default for f in self.header.formals if f.default is not None}

    @cached_property
    def conditions(self) -> tuple[tuple[str, s.Expr], ...]:
        return tuple((text, parse_expression(Source(f"brick {self.name}", text))) for text in self.require)

    @cached_property
    def accepts(self) -> frozenset[str]:
        """The parameter names of the body."""
        return accepted(self.body)

    def given_ports(self, attrs: Mapping[str, Any]) -> tuple[s.Port, ...]:
        """The ports that a node with these attrs has inputs for (its optional ones are listed in attrs["given"])."""
        if not self.optional:
            return self.ports
        given = attrs.get("given", ())
        return tuple(p for p in self.ports if p.name not in self.optional or p.name in given)

    def names(self, types: tuple[Type, ...], attrs: Mapping[str, Any], facts: Facts) -> dict[str, Any]:
        """Attributes, what the ports bind, and defaults that depend on it. Raises Misfit."""
        names: dict[str, Any] = {k: list(v) if isinstance(v, tuple) else v for k, v in attrs.items() if k != "given"}
        ports = self.given_ports(attrs)
        if self.variadic:
            least = 1 if self.shape is not None else len(ports)
            if len(types) < least:
                raise Misfit("E0305", f"`{self.name}` takes at least {least} tensor{'s' * (least != 1)}, not {len(types)}")
            names["count"] = len(types)
            ports = ports[:-1] + ports[-1:] * (len(types) - len(ports) + 1) if self.shape is None else ()
        elif len(types) != len(ports):
            wanted = ", ".join(f"`{p.name}`" for p in ports)
            raise Misfit("E0305", f"`{self.name}` takes {len(ports)} tensor{'s' * (len(ports) != 1)} ({wanted}), not {len(types)}")
        match(ports, types, names, facts)
        for name, default in self.defaults.items():
            if name not in names:
                names[name] = self._evaluate(default, names, facts)
        for text, condition in self.conditions:
            if self._evaluate(condition, names, facts) is False:
                shown = ", ".join(f"{n} = {show(v)}" for n, v in names.items() if re.search(rf"\b{n}\b", text))
                raise Misfit("E0210", f"`{self.name}` requires {text}, but {shown}")
        return names

    def _evaluate(self, expr: s.Expr, names: Mapping[str, Any], facts: Facts) -> Any:
        try:
            return evaluate(expr, names, facts)
        except ScalarError as e:
            raise Misfit(e.code, f"{e.message} (in `{self.name}`)", help=e.help) from None

    def infer(self, types: tuple[Type, ...], attrs: Mapping[str, Any], facts: Facts) -> tuple[Type, ...]:
        """The result types for these input types and attributes. Raises Misfit."""
        names = self.names(types, attrs, facts)
        if self.shape is not None:
            return tuple(self.shape(types, names, facts))
        return tuple(result(p.type, names, facts) for p in self.header.results)

    def weight_shapes(self, names: Mapping[str, Any], facts: Facts) -> tuple[tuple[WeightRule, tuple[int, ...]], ...]:
        """The weights that exist under these names, with their shapes. Raises Misfit."""
        out = []
        for rule in self.weights:
            if rule.when is not None and not self._evaluate(rule.when, names, facts):
                continue
            shape: list[int] = []
            for dim in rule.dims:
                size = self._evaluate(dim, names, facts)
                parts = size if isinstance(size, list | tuple) else (size,)
                for part in parts:
                    if isinstance(part, Poly):
                        needs = "needs a width that is a number known before run time"
                        message = f"weight `{rule.role}` of `{self.name}` {needs}, but `{dim.span.text}` is {show(part)}"
                        raise Misfit("E0204", message)
                    if not isinstance(part, int) or isinstance(part, bool):
                        raise Misfit(
                            "E0204", f"weight `{rule.role}` of `{self.name}` needs whole widths, but `{dim.span.text}` is {show(part)}"
                        )
                    if part < 0:
                        raise Misfit("E0405", f"weight `{rule.role}` of `{self.name}` has the negative width {part}")
                    shape.append(part)
            out.append((rule, tuple(shape)))
        return tuple(out)

    def flops(self, types: tuple[Type, ...], attrs: Mapping[str, Any], facts: Facts) -> Any:
        """Floating-point operations of one call (a multiply-add is two), symbolic in runtime dims."""
        if self.flops_text == "0" and self.flops_rule is None:
            return 0
        names = self.names(types, attrs, facts)
        if self.flops_rule is not None:
            return self.flops_rule(types, names, facts)
        for name, value in list(names.items()):
            if isinstance(value, tuple):
                product: Dim = 1
                for d in value:
                    product = product * d
                names[name] = product
        return self._evaluate(self._flops, names, facts)

    @cached_property
    def _flops(self) -> s.Expr:
        return parse_expression(Source(f"flops of {self.name}", self.flops_text))

    def is_causal(self, attrs: Mapping[str, Any]) -> bool:
        """Whether an output token depends only on input tokens up to its own place."""
        return self.causal(attrs) if callable(self.causal) else self.causal

    def static_arguments(self, attrs: Mapping[str, Any]) -> dict[str, Any]:
        """The attributes that the body (or step) is called with; defaults that depend on nothing are the body's own."""
        return {k: v for k, v in attrs.items() if k in self._static}

    @cached_property
    def _static(self) -> frozenset[str]:
        """What the body takes from attrs: a weight or an optional port may share its name with a formal (`bias`)."""
        return self.accepts - {rule.role for rule in self.weights} - set(self.port_names)

    def check_config(self, name: str, value: Any) -> None:
        """Check the kind of one config argument against its default. Raises Misfit."""
        default = self.formals[name].default
        if not isinstance(default, s.Literal) or default.value is None:
            return
        wanted = default.value
        if isinstance(wanted, bool):
            fits = isinstance(value, bool)
        elif isinstance(wanted, int):
            fits = is_dim(value) or isinstance(value, list | tuple)
        elif isinstance(wanted, float):
            fits = is_number(value)
        else:
            fits = isinstance(value, str | float | int | list | tuple) if name == "init" else isinstance(value, str)
        if value is not None and not fits:
            raise Misfit("E0404", f"`{name}` of `{self.name}` takes {kind(wanted)}, not {show(value)}")


def accepted(function: Callable[..., Any]) -> frozenset[str]:
    """The parameter names of a plain function."""
    code = function.__code__
    return frozenset(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount])


_WEIGHT = re.compile(r"(buffer |frozen )?(\w+)(?: at ([\w.]+))?: \[(.*?)\](?: = (\$?[\w.]+(?:\([^)]*\))?))?(?: if (.+))?$")


def _weight_rule(text: str) -> WeightRule:
    found = _WEIGHT.match(text)
    assert found, f"bad weight declaration: {text}"
    flag, role, path, dims, init, when = found.groups()
    parse = lambda t: parse_expression(Source(f"weight {role}", t))  # noqa: E731
    listed = parse(f"[{dims}]")
    assert isinstance(listed, s.ListOf)
    return WeightRule(role, listed.items, init or "he", parse(when) if when else None, flag == "buffer ", path or "", flag == "frozen ")


@dataclass
class Registry:
    """The bricks that programs may name. Hosts add their own with `graphir.brick`; a built-in name cannot be replaced."""

    declarations: dict[str, Declaration] = field(default_factory=dict)

    def add(self, declaration: Declaration) -> None:
        if declaration.name in self.declarations:
            raise ValueError(f"a brick named {declaration.name!r} is registered already")
        self.declarations[declaration.name] = declaration

    def __getitem__(self, name: str) -> Declaration:
        return self.declarations[name]

    def get(self, name: str) -> Declaration | None:
        return self.declarations.get(name)

    def __contains__(self, name: str) -> bool:
        return name in self.declarations

    def __iter__(self):
        return iter(self.declarations.values())


REGISTRY = Registry()


def brick(
    header: str,
    *,
    weights: str = "",
    flops: str | int | FlopsRule = 0,
    require: Sequence[str] = (),
    kind: str = "brick",
    variadic: bool = False,
    optional: Sequence[str] = (),
    shape: ShapeRule | None = None,
    state: StateRule | None = None,
    inline: bool = False,
    random: bool = False,
    causal: bool | Callable[[Mapping[str, Any]], bool] = True,
    elementwise: bool = False,
    per_token: bool = False,
    examples: Sequence[str] = (),
    source: str = "",
    extra: str = "",
    looks_at: Sequence[str] = (),
    registry: Registry = REGISTRY,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Declare a primitive; see the module's text for the header and the body.

    `weights`: `role: [dims] = init if condition; ...` (init `$name` takes it from a formal; `buffer role` is never trained
    by gradient, `frozen role` not at all; `role at path` where the weight's name does not end in its role).
    `flops`: an expression over formals and bound names (`S` stands for the product of `*S`), or a function like `shape`.
    `require`: conditions over the same names. `kind`: brick, fork, join, stitch or filter.
    `variadic`: the last port takes one input or more, all of its type unless `shape` is given; `count` is the number of inputs.
    `optional`: ports that may be left out. `extra`: the formal that collects config arguments of any other name: ((name, value), ...).
    `shape(types, names, facts)`: the shape rule where a header cannot say it; raises `Misfit`.
    `inline`: the body is plain torch calls without Python control flow on values, so fx shows those instead of one call.
    `random`: draws random numbers, so equal calls are not merged. `causal`: token t depends on tokens up to t only (or: of attrs).
    `looks_at`: the ports whose tokens it mixes, where the others are taken token by token (keys and values of attention).
    `elementwise`: each element by itself. `per_token`: acts on the last axis only, every token alike.
    `examples`: uses for the manual and the tests, `linear(8) : float[2, 4]`. `source`: paper or system.
    """
    assert kind in KINDS, kind

    def register(body: Callable[..., Any]) -> Callable[..., Any]:
        rule = flops if callable(flops) else None
        registry.add(
            Declaration(
                header,
                body,
                weights,
                "0" if rule else str(flops),
                tuple(require),
                kind,
                variadic,
                tuple(optional),
                shape,
                state,
                inline,
                random,
                causal,
                elementwise,
                per_token or elementwise,
                tuple(examples),
                source,
                body.__module__,
                extra,
                rule,
                tuple(looks_at),
            )
        )
        return body

    return register


def make_weight(rule: WeightRule, shape: tuple[int, ...], attrs: Mapping[str, Any], init: str | float | None, frozen: bool) -> Weight:
    """The inventory entry of a weight: its own rule's init, or the author's for the first weight of the brick (or for its bias)."""
    spec = rule.init
    if spec.startswith("$"):
        spec = init_spec(attrs.get(spec[1:]))
    elif init is not None:
        spec = init_spec(init)
    return Weight(shape, spec, frozen or rule.frozen or rule.buffer, rule.buffer)


__all__ = ["REGISTRY", "Attrs", "Declaration", "Misfit", "Poly", "Registry", "StateRule", "brick"]
