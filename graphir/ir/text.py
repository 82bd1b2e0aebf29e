"""A graph as text and back: a header, then one line per node. For passes, tests, workers and the wire.

    gir 1
    graph LFM2
    param vocab = 65536
    require T % 8 == 0 "whole blocks of eight"
    input %tokens : int[B, T]
    %0 = embedding(%tokens) {size=65536, out=2048} w{weight=emb.weight} : float[B, T, 2048] @emb|embedding -- lfm2.arch:5:18
    %1, %2 = split(%0) {parts=2} : float[B, T, 64], float[B, T, 64] @layers.0.split|[],Layer,split !mlx -- lfm2.arch:7:3
    aux balance = %2
    return logits = %1
    weight emb.weight [65536, 2048] normal(0.02) frozen buffer

`{...}` are attributes, `w{...}` weights by role, `@path|frames` the place in the model, `!` the backend, `--` the line of
source. `read(dump(g))` is the same graph and `dump(read(t)) == t` for every dumped t. A line that starts with `#` and an
empty one mean nothing; values may have any names when read and are counted from %0 when dumped.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from json.encoder import encode_basestring_ascii as quote
from typing import Any, NoReturn, TypeVar

from ..lang.diagnostic import Diagnostic, GraphirError
from ..lang.limits import DEFAULT, Limits
from ..lang.source import Place, Source, Span
from .dims import Dim
from .graph import NO_ATTRS, Attrs, Graph, Node, Precondition, Value, Weight, Where
from .literals import NAME, PATH, SEGMENT, STRING, Malformed, read_attrs, read_dim, read_types, read_value, write, write_attrs

VERSION = "gir 1"
MAX_LINE = 262_144

T = TypeVar("T")


def dump(graph: Graph) -> str:
    """The graph as text, the same for the same graph in every process. GraphirError (E0903) for a value that no text can hold."""
    try:
        return "\n".join([*header_lines(graph), *node_lines(graph), *footer_lines(graph), ""])
    except ValueError as e:
        raise GraphirError(Diagnostic("E0903", f"graph `{graph.name}` cannot be dumped: {e}")) from None


def header_lines(graph: Graph) -> list[str]:
    lines = [VERSION, f"graph {graph.name}"]
    lines += [f"param {name} = {write(value)}" for name, value in graph.params.items()]
    lines += [f"require {r}{' ' + quote(r.message) if r.message else ''}" for r in graph.requires]
    lines += [f"input %{name} : {value.type}" for name, value in graph.inputs]
    return lines


def value_names(graph: Graph) -> dict[Value, str]:
    """What a dump calls each value: `%tokens`, `%0`, `%1`, ..."""
    names = {value: f"%{name}" for name, value in graph.inputs}
    for node in graph.nodes:
        for value in node.outputs:
            names[value] = f"%{len(names) - len(graph.inputs)}"
    return names


def node_lines(graph: Graph, show: Callable[[Any], str] = write_attrs) -> list[str]:
    """One line per node, in order. A value that is not of this graph is `%?`."""
    names = value_names(graph)
    attrs: dict[int, str] = {}
    types: dict[int, str] = {}
    frames: dict[tuple[str, ...], str] = {}
    sources: dict[str, str] = {}
    lines = []
    for node in graph.nodes:
        text = attrs.get(id(node.attrs))
        if text is None:
            text = attrs[id(node.attrs)] = f" {{{show(node.attrs)}}}" if node.attrs else ""
        if node.weights:
            text += f" w{{{', '.join([f'{role}={name}' for role, name in node.weights])}}}"
        for value in node.outputs:
            if id(value.type) not in types:
                types[id(value.type)] = str(value.type)
        path, framed, span, backend = node.where
        if framed:
            if framed not in frames:
                frames[framed] = "|" + ",".join(framed)
            path += frames[framed]
        inputs = ", ".join([names.get(v, "%?") for v in node.inputs])
        outputs = ", ".join([names.get(v, "%?") for v in node.outputs])
        typed = ", ".join([types[id(v.type)] for v in node.outputs])
        line = f"{outputs} = {node.op}({inputs}){text} : {typed}"
        if path:
            line += f" @{path}"
        if backend:
            line += f" !{backend}"
        lines.append(line if span is None else f"{line} -- {_place(span, sources)}")
    return lines


def footer_lines(graph: Graph) -> list[str]:
    names = value_names(graph)
    lines = [f"aux {name} = {names.get(value, '%?')}" for name, value in graph.aux]
    lines += [f"return {name + ' = ' if name else ''}{names.get(value, '%?')}" for name, value in graph.outputs]
    for name, weight in graph.weights.items():
        init = weight.init if _is_plain_init(weight.init) else quote(weight.init)
        flags = " frozen" * weight.frozen + " buffer" * weight.buffer
        lines.append(f"weight {name} [{', '.join(map(str, weight.shape))}] {init}{flags}")
    return lines


def _place(span: Span | Place, sources: dict[str, str]) -> str:
    name, line, column = (span.source.name, span.line, span.column) if isinstance(span, Span) else (span.name, span.line, span.column)
    if name not in sources:
        sources[name] = name if _is_plain_source(name) else quote(name)
    return f"{sources[name]}:{line}:{column}"


_INIT = r"[A-Za-z_]\w{0,63}(?:\([\w.+-]*(?:,[\w.+-]*)*\))?"
_SOURCE = r"[\w./<>+-]+"
_is_plain_init = re.compile(_INIT, re.ASCII).fullmatch
_is_plain_source = re.compile(_SOURCE, re.ASCII).fullmatch
_VALUE = r"%\w{1,64}"
_FRAME = rf"(?:\[\]|{SEGMENT}(?:\.{SEGMENT})*)"
_WEIGHT = rf"{NAME}={PATH}"
_TYPES = r"(?:float|int|bool)\[[^\]]*+\]"
_PIECES = (  # of a node's line, in order, with what to call each where it is missing
    ("results such as `%0`", rf"({_VALUE}(?:, {_VALUE})*+)"),
    ("` = ` and an op", rf" = ({NAME})"),
    ("inputs such as `(%0, %x)`", rf"\(((?:{_VALUE}(?:, {_VALUE})*+)?)\)"),
    ("attributes", rf'(?: \{{((?:[^"{{}}]++|{STRING})*+)\}})?'),
    ("weights", rf"(?: w\{{({_WEIGHT}(?:, {_WEIGHT})*+)\}})?"),
    ("` : ` and the results' types", rf" : ({_TYPES}(?:, {_TYPES})*+)"),
    ("a path", rf"(?: @({PATH})?(?:\|({_FRAME}(?:,{_FRAME})*+))?)?"),
    ("a backend", rf"(?: !({NAME}))?"),
    ("a place such as `-- file.arch:1:2`", rf"(?: -- ({_SOURCE}|{STRING}):(\d{{1,9}}):(\d{{1,9}}))?"),
)
_NODE = re.compile("".join(piece for _, piece in _PIECES), re.ASCII)
_STATEMENTS = {
    "graph": re.compile(rf"graph ({PATH})", re.ASCII),
    "param": re.compile(rf"param ({NAME}) = (.+)", re.ASCII),
    "require": re.compile(rf'require ([^"%=!<>]+?)(?: % (\d{{1,18}}))? (==|!=|<=|>=|<|>) ([^"%=!<>]+?)(?: ({STRING}))?', re.ASCII),
    "input": re.compile(rf"input %({NAME}) : (.+)", re.ASCII),
    "aux": re.compile(rf"aux ({PATH}) = ({_VALUE})", re.ASCII),
    "return": re.compile(rf"return (?:({NAME}) = )?({_VALUE})", re.ASCII),
    "weight": re.compile(rf"weight ({PATH}) \[((?:\d{{1,18}}(?:, \d{{1,18}})*+)?)\] ({_INIT}|{STRING})( frozen)?( buffer)?", re.ASCII),
}


def read(text: str, name: str = "<graph>", limits: Limits = DEFAULT) -> Graph:
    """The graph that a dump holds. `name` is what errors call the text. Raises GraphirError (E0901) with the place at fault.

    Names are checked, values are defined before they are used, and nothing of the text is ever run; whether ops exist and
    types agree with them is for `verify`.
    """
    return _Reader(Source(name, text), limits).read()


class _Reader:
    """What has been read so far, and the line that is being read."""

    def __init__(self, source: Source, limits: Limits):
        self.source, self.limits = source, limits
        self.start = 0
        self.name: str | None = None
        self.values: dict[str, Value] = {}
        self.inputs: dict[str, Value] = {}
        self.outputs: dict[str, Value] = {}
        self.aux: dict[str, Value] = {}
        self.params: dict[str, Any] = {}
        self.weights: dict[str, Weight] = {}
        self.requires: list[Precondition] = []
        self.nodes: list[Node] = []
        self.attrs: dict[str | None, Attrs] = {None: NO_ATTRS}
        self.types: dict[str, tuple[Any, ...]] = {}
        self.frames: dict[str | None, tuple[str, ...]] = {None: ()}
        self.sources: dict[str | None, str] = {}

    def read(self) -> Graph:
        lines = self.source.text.split("\n")
        if lines[0] != VERSION:
            self.fail(f"a graph's text starts with the line `{VERSION}`; other versions are not read", 0, len(lines[0][:80]))
        self.start = len(VERSION) + 1
        for line in lines[1:]:
            if len(line) > MAX_LINE:
                self.fail(f"the line is longer than {MAX_LINE:,} characters", 0, 80)
            if line.startswith("%"):
                self.node(line)
            elif line and not line.startswith("#"):
                self.statement(line)
            self.start += len(line) + 1
        self.start = 0
        if self.name is None:
            self.fail("the line `graph NAME` is missing", 0, len(VERSION))
        return Graph(
            self.name or "", tuple(self.inputs.items()), tuple(self.nodes), tuple(self.outputs.items()), self.weights,
            tuple(self.aux.items()), tuple(self.requires), self.params,
        )

    def fail(self, message: str, start: int = 0, end: int = 0) -> NoReturn:
        """Raise E0901 at these characters of the current line."""
        span = Span(self.source, self.start + start, max(self.start + end, self.start + start))
        raise GraphirError(Diagnostic("E0901", message, span))

    def parse(self, parser: Callable[[str], T], text: str, start: int) -> T:
        """A literal that begins `start` characters into the line."""
        try:
            return parser(text)
        except Malformed as e:
            self.fail(e.message, start + e.at, min(start + e.at + 1, start + len(text)))

    def node(self, line: str) -> None:
        found = _NODE.fullmatch(line)
        if found is None:
            self.explain(line)
        results, op, inputs, attrs, weights, types, path, frames, backend, source, row, column = found.groups()
        if attrs not in self.attrs:
            self.attrs[attrs] = Attrs(self.parse(read_attrs, attrs, found.start(4)))
        if types not in self.types:
            self.types[types] = self.parse(read_types, types, found.start(6))
        if frames not in self.frames:
            self.frames[frames] = tuple(frames.split(","))
        values = self.values
        try:
            arguments = tuple([values[name] for name in inputs.split(", ")]) if inputs else ()
        except KeyError as e:
            at = line.index(e.args[0] + (")" if inputs.endswith(e.args[0]) else ","), found.start(3))
            self.fail(f"`{e.args[0]}` is used before it is defined", at, at + len(e.args[0]))
        pairs = tuple([(role, name) for role, _, name in [pair.partition("=") for pair in weights.split(", ")]]) if weights else ()
        span = Place(self.sources.get(source) or self.source_name(source, found.start(10)), int(row), int(column)) if source else None
        where = Where(path or "", self.frames[frames], span, backend)
        node = Node(op, arguments, self.attrs[attrs], pairs, where, self.types[types])
        if len(self.nodes) >= self.limits.nodes:
            self.fail(f"there are more than {self.limits.nodes:,} nodes", 0, len(line))
        self.nodes.append(node)
        names = results.split(", ")
        if len(names) != len(node.outputs):
            self.fail(f"{len(names)} results, but {len(node.outputs)} types", found.start(6), found.end(6))
        for name, value in zip(names, node.outputs):
            if name in values:
                self.fail(f"`{name}` is defined twice", 0, len(results))
            values[name] = value

    def source_name(self, text: str, start: int) -> str:
        if text not in self.sources:
            self.sources[text] = str(self.parse(read_value, text, start)) if text.startswith('"') else text
        return self.sources[text]

    def explain(self, line: str) -> NoReturn:
        """Say which piece of a node's line is the first that is not there."""
        at = 0
        for what, piece in _PIECES:
            found = re.compile(piece, re.ASCII).match(line, at)
            if found is None:
                self.fail(f"{what} expected here", at, min(len(line), at + 20))
            at = found.end()
        self.fail("attributes, weights, types, path, backend and place are expected in this order, and this is none of them", at, len(line))

    def statement(self, line: str) -> None:
        word = line.split(" ", 1)[0]
        pattern = _STATEMENTS.get(word)
        if pattern is None:
            self.fail(f"a line starts with `%`, {', '.join(_STATEMENTS)} or `#`", 0, min(len(line), 20))
        found = pattern.fullmatch(line)
        if found is None:
            self.fail(f"this is not how a `{word}` line is written", 0, min(len(line), 80))
        getattr(self, f"read_{word}")(found)

    def define(self, table: dict[str, T], name: str, value: T, found: re.Match[str]) -> None:
        if name in table:
            self.fail(f"`{name}` is given twice", found.start(1), found.end(1))
        table[name] = value

    def value(self, found: re.Match[str]) -> Value:
        name = found[2]
        if name not in self.values:
            self.fail(f"`{name}` is used before it is defined", found.start(2), found.end(2))
        return self.values[name]

    def read_graph(self, found: re.Match[str]) -> None:
        if self.name is not None:
            self.fail("a text holds one graph", 0, found.end())
        self.name = found[1]

    def read_param(self, found: re.Match[str]) -> None:
        self.define(self.params, found[1], self.parse(read_value, found[2], found.start(2)), found)

    def read_require(self, found: re.Match[str]) -> None:
        left: Dim = self.parse(read_dim, found[1], found.start(1))
        right: Dim = self.parse(read_dim, found[4], found.start(4))
        divisor = int(found[2]) if found[2] else None
        if divisor == 0:
            self.fail("division by zero", found.start(2), found.end(2))
        message = self.parse(read_value, found[5], found.start(5)) if found[5] else ""
        self.requires.append(Precondition(left, found[3], right, divisor, message))

    def read_input(self, found: re.Match[str]) -> None:
        types = self.parse(read_types, found[2], found.start(2))
        if len(types) != 1:
            self.fail("an input has one type", found.start(2), found.end(2))
        value = Value(types[0])
        self.define(self.inputs, found[1], value, found)
        self.define(self.values, f"%{found[1]}", value, found)

    def read_aux(self, found: re.Match[str]) -> None:
        self.define(self.aux, found[1], self.value(found), found)

    def read_return(self, found: re.Match[str]) -> None:
        self.define(self.outputs, found[1] or "", self.value(found), found)

    def read_weight(self, found: re.Match[str]) -> None:
        name, shape, init, frozen, buffer = found.groups()
        if init.startswith('"'):
            init = self.parse(read_value, init, found.start(3))
        sizes = tuple([int(size) for size in shape.split(", ")]) if shape else ()
        self.define(self.weights, name, Weight(sizes, init, bool(frozen), bool(buffer)), found)
