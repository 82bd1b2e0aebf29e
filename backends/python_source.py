"""A network as one readable Python file that imports torch alone: bricks as functions, blocks as classes, weights by the same names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import nn

from graphir.bricks.call import arguments
from graphir.bricks.declare import REGISTRY, Registry
from graphir.ir.dims import Dim, Extremum, Poly, Quotient
from graphir.ir.graph import Graph, Node, Value, Weight

from .base import axis_that_gives, declaration_of, gives, gives_tuple, telling_attrs
from .modules import LIKE, argument, attribute
from .plan import Part, Plan, plan
from .quote import Quotation

RESERVED = frozenset({"Part", "Model", "grow", "load", "json", "math", "torch", "nn", "F", "self", "aux"})
WIDTH = 120

_HEAD = '''"""{name}, written by graphir. Imports torch alone; `load(model, path)` fills in weights from a safetensors file."""

from __future__ import annotations

{imports}
'''

_ODD = '''
    def __setattr__(self, name, value):
        if name in self.__dict__.get("_modules", ()) and not isinstance(value, nn.Module):
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)
'''

_TAIL = '''

class Part(nn.Module):
    """A place in the tree of names: further parts, and parameters by shape, which start at zero. `part[0]` is the part called "0"."""

    def __init__(self, parts=(), **weights):
        super().__init__()
        grow(self, parts, **weights)

    def __getitem__(self, name):
        return self._modules[str(name)]
{odd}

def grow(module, parts=(), frozen=(), buffers=(), aliases=(), **shapes):
    """Give a module parts, parameters and buffers. `aliases` are attributes for parts whose names Python or torch have taken."""
    for name, shape in shapes.items():
        if name in buffers:
            module.register_buffer(name, torch.zeros(shape))
        else:
            module.register_parameter(name, nn.Parameter(torch.zeros(shape), requires_grad=name not in frozen))
    for name, part in dict(parts).items():
        module._modules[str(name)] = part
    for name, alias in dict(aliases).items():
        module.__dict__[alias] = module._modules[name]


def load(model, path):
    """Copy the tensors of a safetensors file into the model; every name must be there, and no other."""
    kinds = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        data = bytearray(file.read())
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__":
            start, stop = entry["data_offsets"]
            flat = torch.frombuffer(data[start:stop] or bytearray(8), dtype=kinds[entry["dtype"]])
            tensors[name] = flat[: math.prod(entry["shape"])].reshape(entry["shape"])
    model.load_state_dict(tensors)
    return model
'''


def emit(graph: Graph, registry: Registry = REGISTRY) -> str:
    """Python source with a class `Model`: its state dict has the graph's names, its forward the fx module's signature.

    Raises GraphirError E0805 for names that cannot be a module's.
    """
    planned = plan(graph, registry)
    inputs = [argument(name) for name, _ in graph.inputs]
    quotation = Quotation(RESERVED.union(inputs))
    for node in graph.nodes:
        if (declaration := declaration_of(node, registry)).kind != "fork":
            quotation.function(declaration.body)
    writer = _Writer(planned, quotation)
    classes = [writer.part(kind) for kind in planned.kinds]
    lines = dict.fromkeys(["import json", "import math", *sorted(i for i in quotation.imports if "torch" not in i)])
    lines |= dict.fromkeys(["import torch", "from torch import nn", *sorted(quotation.imports)])
    head = _HEAD.format(name=graph.name, imports="\n".join(lines))
    odd = any(a in vars(nn.Module()) for path in planned.paths.union(graph.weights) for a in path.split("."))
    tail = _TAIL.replace("{odd}", _ODD.rstrip() if odd else "").replace("\n\n\n\ndef grow", "\n\n\ndef grow").strip()
    return "\n\n\n".join([head.rstrip(), tail, *quotation.texts.values(), *classes]) + "\n"


class _Writer:
    def __init__(self, planned: Plan, quotation: Quotation):
        self.plan, self.quotation = planned, quotation
        self.classes: dict[int, str] = {}
        self.taken = {*RESERVED, *quotation.names.values()}

    def part(self, part: Part) -> str:
        """The class of a kind of part."""
        body = _Body(part, self.plan, self.quotation)
        forward = body.write()
        name = "Model" if part.parent is None else self._class_name(part)
        self.classes[part.kind] = name
        setup = self._setup(part, body.like)
        init = ["def __init__(self):", *_indent(["super().__init__()", *setup])]
        return "\n".join([f"class {name}(Part):", *_indent([*init, "", *forward])])

    def _class_name(self, part: Part) -> str:
        wanted = re.sub(r"\W", "", part.frame) or "Block"
        wanted = wanted if not wanted[0].isdigit() else f"Block{wanted}"
        name, number = wanted, 1
        while name in self.taken:
            number += 1
            name = f"{wanted}_{number}"
        self.taken.add(name)
        return name

    def _setup(self, part: Part, like: bool) -> list[str]:
        tree = _tree(part)
        lines = [f'self.register_buffer("{LIKE}", torch.empty(0), persistent=False)'] if like else []
        plain = {n for n, b in tree.items() if not isinstance(b, Weight) and attribute(n) == n and not n.isdigit()}
        rest = {n: b for n, b in tree.items() if n not in plain}
        if rest:
            lines += _call("grow", ["self", *self._contents(rest)])
        for name, below in tree.items():
            if name in plain:
                first, *more = self._made(below)
                lines += [f"self.{name} = {first}", *more]
        return lines

    def _made(self, below: Any) -> list[str]:
        """The lines of an expression that makes a part or a plain scope."""
        return [f"{self.classes[below.kind]}()"] if isinstance(below, Part) else _call("Part", self._contents(below))

    def _contents(self, tree: Mapping[str, Any]) -> list[str]:
        """The arguments of `Part` or `grow` for what a scope holds."""
        parts = {n: self._made(b) for n, b in tree.items() if not isinstance(b, Weight)}
        weights = {n: w for n, w in tree.items() if isinstance(w, Weight)}
        aliases = {n: attribute(n) for n in parts if attribute(n) != n}
        lines = [_table(parts)] if parts else []
        lines += [f"{n}={w.shape}" for n, w in weights.items() if n.isidentifier()]
        odd = {n: w.shape for n, w in weights.items() if not n.isidentifier()}
        frozen = tuple(n for n, w in weights.items() if w.frozen and not w.buffer)
        buffers = tuple(n for n, w in weights.items() if w.buffer)
        lines += [f"**{odd}"] if odd else []
        return lines + [f"{word}={what}" for word, what in (("frozen", frozen), ("buffers", buffers), ("aliases", aliases)) if what]


def _table(parts: Mapping[str, list[str]]) -> str:
    """A dict of parts; a run of equal ones as a comprehension."""
    made = ["\n".join(lines) for lines in parts.values()]
    if len(made) > 1 and len(set(made)) == 1 and list(parts) == [str(i) for i in range(len(parts))]:
        return f"{{i: {made[0]} for i in range({len(made)})}}"
    entries = [f"{_key(n)}: {m}" for n, m in zip(parts, made)]
    flat = f"{{{', '.join(entries)}}}"
    if len(flat) <= WIDTH and "\n" not in flat:
        return flat
    return "\n".join(["{", *_indent([line for e in entries for line in f"{e},".split("\n")]), "}"])


def _key(segment: str) -> str:
    return segment if segment.isdigit() and str(int(segment)) == segment else f'"{segment}"'


def _call(function: str, inside: list[str]) -> list[str]:
    flat = f"{function}({', '.join(inside)})"
    if len(flat) <= WIDTH or "\n" in flat:
        return flat.split("\n")
    return [f"{function}(", *_indent([line for a in inside for line in f"{a},".split("\n")]), ")"]


def _tree(part: Part) -> dict[str, Any]:
    """What a part holds, by path segment: weights, parts, and tables of the same for plain scopes in between."""
    tree: dict[str, Any] = {}
    for entry in part.contents:
        path, thing = (part.local(entry.path), entry) if isinstance(entry, Part) else entry
        *scopes, last = path.split(".")
        level = tree
        for segment in scopes:
            level = level.setdefault(segment, {})
        level[last] = thing
    return tree


def _indent(lines: list[str]) -> list[str]:
    return [f"    {line}" if line else line for line in lines]


class _Body:
    """The forward of one part, line by line; the counterpart of `fx.Writer`."""

    def __init__(self, part: Part, planned: Plan, quotation: Quotation):
        self.part, self.plan, self.quotation = part, planned, quotation
        self.lines: list[str] = []
        self.values: dict[Value, str] = {}
        self.weights: dict[str, str] = {}
        self.taken: set[str] = {*RESERVED, *quotation.names.values()}
        self.like = False

    def write(self) -> list[str]:
        """`def forward(...)` and its body."""
        names = self._parameters()
        for item in self.part.items:
            self._node(item) if isinstance(item, Node) else self._call(item)
        self._return()
        return [f"def forward({', '.join(['self', *names])}):", *_indent(self.lines)]

    def _parameters(self) -> list[str]:
        graph = self.plan.graph
        named = {v: argument(n) for n, v in graph.inputs}
        if self.part.parent is None:
            self.values.update(named)
            self.taken.update(named.values())
            self._preconditions()
            return [*named.values(), "aux=False"]
        for value in self.part.inputs:
            self.values[value] = self._name(named.get(value, "x"))
        for name in self.part.weights:
            self.weights[name] = self._name(argument(name.replace(".", "_")))
        return [*self.values.values(), *self.weights.values()]

    def _preconditions(self) -> None:
        told = {known[0]: v for _, v in reversed(self.plan.graph.inputs) for d in v.type.shape if (known := gives(d))}
        for r in self.plan.graph.requires:
            try:
                left, right = self._dim(r.left, told), self._dim(r.right, told)
            except KeyError:
                continue
            left = f"({left}) % {r.divisor}" if r.divisor else left
            self.lines += [f"if not {left} {r.op} {right}:", f"    raise ValueError({f'the model requires {r}'!r})"]

    def _return(self) -> None:
        graph = self.plan.graph
        if self.part.parent is not None:
            self.lines.append(f"return {', '.join(self.values[v] for v in self.part.outputs)}")
            return
        shown = ", ".join(self.values[self.plan.source(v)] for _, v in graph.outputs)
        shown = f"({shown})" if len(graph.outputs) > 1 else shown
        extra = ", ".join(f'"{n}": {self.values[self.plan.source(v)]}' for n, v in graph.aux)
        self.lines += ["if aux:", f"    return {shown}, {{{extra}}}", f"return {shown}"]

    def _call(self, part: Part) -> None:
        inputs = [self.values[v] for v in part.inputs] + [self._weight(n) for n in part.weights]
        call = f"{self._reach(part.path)}({', '.join(inputs)})"
        self._assign(tuple(part.outputs), part.path.rpartition(".")[2], call, len(part.outputs) > 1)

    def _node(self, node: Node) -> None:
        declaration = declaration_of(node, self.plan.registry)
        inputs = [_Text(self.values[v]) for v in self.plan.inputs_of(node)]
        weights = {role: _Text(self._weight(name)) for role, name in node.weights}
        told = self.plan.sizes.get(node, {})
        attrs = {k: _Text(self._config(v, told)) if k != "given" else v for k, v in telling_attrs(declaration, node.attrs).items()}
        context = {what: _Text(self._context(what)) for what in ("training", "device", "dtype") if what in declaration.accepts}
        positional, keywords = arguments(declaration, inputs, weights, attrs, **context)
        function = self.quotation.function(declaration.body)
        passed = [str(p) for p in positional] + [f"{k}={v}" for k, v in keywords.items()]
        self._assign(node.outputs, node.where.path.rpartition(".")[2], f"{function}({', '.join(passed)})", gives_tuple(declaration, node))

    def _assign(self, outputs: tuple[Value, ...], hint: str, call: str, several: bool) -> None:
        hint = hint if hint.isidentifier() else "x"
        names = [self._name(attribute(argument(hint))) for _ in outputs]
        self.values.update(zip(outputs, names))
        left = ", ".join(names) + ("," if several and len(names) == 1 else "")
        self.lines.append(f"{left} = {call}")

    def _weight(self, name: str) -> str:
        return self.weights.get(name) or self._reach(name)

    def _reach(self, path: str) -> str:
        """The expression for a part or a weight below this part."""
        text = "self"
        for segment in self.part.local(path).split("."):
            text = f"{text}[{_key(segment)}]" if segment.isdigit() else f"{text}.{attribute(segment)}"
        return text

    def _context(self, what: str) -> str:
        if what == "training":
            return "self.training"
        self.like = True
        return f"self.{LIKE}.{what}"

    def _config(self, value: Any, told: Mapping[str, Value]) -> str:
        if isinstance(value, Poly):
            return self._dim(value, told)
        if isinstance(value, tuple | list):
            return f"({', '.join(self._config(v, told) for v in value)}{',' if len(value) == 1 else ''})"
        return f'float("{value}")' if isinstance(value, float) and value in (float("inf"), float("-inf")) else repr(value)

    def _dim(self, dim: Dim, told: Mapping[str, Value]) -> str:
        if not isinstance(dim, Poly):
            return str(dim)
        terms = []
        for monomial, factor in dim.terms:
            atoms = [self._atom(a, told) for a in monomial]
            terms.append(" * ".join([str(factor), *atoms] if factor != 1 or not atoms else atoms))
        return terms[0] if len(terms) == 1 else f"({' + '.join(terms)})"

    def _atom(self, atom: Any, told: Mapping[str, Value]) -> str:
        if isinstance(atom, Quotient):
            return f"({self._dim(atom.poly, told)} // {atom.divisor})"
        if isinstance(atom, Extremum):
            return f"{atom.op}({', '.join(self._dim(d, told) for d in atom.of)})"
        value = told[atom]
        axis, factor, constant = axis_that_gives(value.type, atom)  # type: ignore[misc]
        text = f"{self.values[value]}.size({axis})"
        text = f"({text} - {constant})" if constant else text
        return f"({text} // {factor})" if factor != 1 else text

    def _name(self, wanted: str) -> str:
        name, number = wanted, 1
        while name in self.taken:
            number += 1
            name = f"{wanted}_{number}"
        self.taken.add(name)
        return name


class _Text(str):
    """Python source that stands for a value."""
