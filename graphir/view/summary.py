"""The table of a model: path, brick, output shape, parameters, FLOPs and state of every scope and node.

Counts come from the declarations, never from running anything, so a model of any size costs milliseconds. A weight is counted
where it is used first; later uses show its name in brackets. FLOPs count a multiply-add as two. State is what decoding
keeps in float32 once a whole sequence has been read. Where a runtime name has no size, counts are polynomials in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from html import escape
from itertools import accumulate
from typing import Any

from ..bricks.declare import REGISTRY
from ..ir.dims import Dim
from ..ir.graph import Graph, Node, Value
from . import format as f
from .costs import BYTES, call_of, flops_of, kept_by, total
from .scopes import Fold, Part, Piece, contents, postorder, relative, tree
from .shared import Sharing

COLUMNS = ("Layer", "Brick", "Output", "Parameters", "FLOPs", "State bytes")


@dataclass(frozen=True, slots=True)
class Row:
    """One line. A row that is repeated counts all repeats; the rows below it count one of them."""

    path: str
    name: str
    kind: str
    brick: str
    repeat: int
    depth: int
    output: str
    parameters: int
    shared: tuple[str, ...]
    flops: Dim
    state_bytes: Dim


def summary(graph: Graph, sizes: Mapping[str, int] | None = None) -> Summary:
    """The summary of a graph; `sizes` give runtime names integers. Nothing is computed before it is asked for."""
    return Summary(graph, dict(sizes or {}))


class Summary:
    """Totals and rows of a graph, each computed when first read."""

    def __init__(self, graph: Graph, sizes: Mapping[str, int]):
        self.graph, self.sizes = graph, sizes

    @property
    def parameters(self) -> int:
        """Numbers in all weights, shared ones once, buffers not counted."""
        return self.graph.parameters

    @cached_property
    def frozen(self) -> int:
        """Parameters that training leaves alone."""
        return sum(w.numel for w in self.graph.weights.values() if w.frozen and not w.buffer)

    @property
    def trainable(self) -> int:
        return self.parameters - self.frozen

    @cached_property
    def buffers(self) -> int:
        """Numbers that training updates outside the gradient."""
        return sum(w.numel for w in self.graph.weights.values() if w.buffer)

    @property
    def weight_bytes(self) -> int:
        """Bytes of parameters and buffers in float32."""
        return 4 * (self.parameters + self.buffers)

    @cached_property
    def flops(self) -> Dim:
        """Floating-point operations of one forward pass."""
        return total(self.graph, flops_of, self.sizes)

    @cached_property
    def state_bytes(self) -> Dim:
        """Bytes that decoding keeps, in float32, after a whole sequence."""
        return _add(f.partial(bytes, self.sizes) for bytes in kept_by(self.graph).values())

    @cached_property
    def activation_bytes(self) -> Dim:
        """Bytes of every result of every node in float32: what training would keep without recomputation or fusion."""
        out: Dim = 0
        for node in self.graph.nodes:
            for value in node.outputs:
                out = out + BYTES[value.type.dtype] * _product(f.partial(d, self.sizes) for d in value.type.shape)
        return out

    @cached_property
    def stitches(self) -> int:
        """How many stitches the compiler or the author put in."""
        return sum(times for op, times in self.graph.ops.items() if op == "stitch")

    @cached_property
    def preconditions(self) -> tuple[str, ...]:
        """What the caller's sizes must meet."""
        return tuple(f"{r}: {r.message}" if r.message else str(r) for r in self.graph.requires)

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """Every scope and node, repeats folded, to full depth."""
        return tuple(_Rows(self.graph, self.sizes).walk())

    def to_dict(self, depth: int | None = None) -> dict[str, Any]:
        """Plain data for JSON; counts that depend on runtime names are text."""
        rows = [{name: getattr(row, name) for name in Row.__slots__} for row in self.rows if depth is None or row.depth < depth]
        return _plain({
            "model": self.graph.name,
            "sizes": self.sizes,
            "inputs": {name: str(value.type) for name, value in self.graph.inputs},
            "outputs": {name: str(value.type) for name, value in self.graph.outputs},
            "parameters": self.parameters,
            "trainable": self.trainable,
            "frozen": self.frozen,
            "buffers": self.buffers,
            "weight_bytes": self.weight_bytes,
            "flops": self.flops,
            "state_bytes": self.state_bytes,
            "nodes": len(self.graph.nodes),
            "stitches": self.stitches,
            "preconditions": self.preconditions,
            "rows": rows,
        })

    def totals(self) -> list[tuple[str, str]]:
        """The lines under the table."""
        lines = [
            ("Parameters", f"{self.parameters:,}"),
            ("Trainable", f"{self.trainable:,}") if self.frozen else None,
            ("Frozen", f"{self.frozen:,}") if self.frozen else None,
            ("Buffers", f"{self.buffers:,}") if self.buffers else None,
            ("Weights (float32)", f"{f.human(self.weight_bytes)} bytes"),
            ("FLOPs", f.cost(self.flops)),
            ("State (float32)", f"{f.cost(self.state_bytes)} bytes") if self.state_bytes != 0 else None,
            ("Stitches", str(self.stitches)) if self.stitches else None,
            *(("Requires", text) for text in self.preconditions),
        ]
        return [line for line in lines if line]

    def cells(self, depth: int | None = 3) -> list[tuple[str, ...]]:
        """The table as text: one tuple for each row of less than `depth` (None: all), in the order of `COLUMNS`."""
        rows = [row for row in self.rows if depth is None or row.depth < depth]
        return [
            (
                lead + row.name + (f" ×{row.repeat}" if row.repeat > 1 else ""), row.brick, row.output, _parameters(row),
                f.cost(row.flops) if row.flops != 0 else "", f.cost(row.state_bytes) if row.state_bytes != 0 else "",
            )
            for lead, row in zip(_branches([row.depth for row in rows]), rows)
        ]

    def render(self, depth: int | None = 3) -> str:
        """The table as plain text, `depth` levels deep (None: all)."""
        cells = [COLUMNS, *self.cells(depth)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(COLUMNS))]
        lines = [_line(row, widths) for row in cells]
        rule = "─" * max(len(line) for line in lines)
        label = max(len(name) for name, _ in self.totals())
        below = [f"{name:<{label}}  {value}" for name, value in self.totals()]
        return "\n".join([self.title(), rule, lines[0], rule, *lines[1:], rule, *below])

    def title(self) -> str:
        """`Odds(x: float[B, 8]) -> float[B, 1]`, and the sizes that were given."""
        inputs = ", ".join(f"{name}: {value.type}" for name, value in self.graph.inputs)
        outputs = ", ".join(str(value.type) for _, value in self.graph.outputs)
        sizes = ", ".join(f"{name} = {size}" for name, size in self.sizes.items())
        return f"{self.graph.name}({inputs}) -> {outputs}" + (f"  at {sizes}" if sizes else "")

    def __str__(self) -> str:
        return self.render()

    def _repr_html_(self) -> str:
        head = "".join(f"<th style='text-align:left'>{name}</th>" for name in COLUMNS)
        style = "text-align:left;white-space:pre"
        body = "".join("<tr>" + "".join(f"<td style='{style}'>{escape(c)}</td>" for c in row) + "</tr>" for row in self.cells())
        below = "<br>".join(f"{escape(name)}: {escape(value)}" for name, value in self.totals())
        return f"<table><caption>{escape(self.title())}</caption><tr>{head}</tr>{body}</table><p>{below}</p>"

    def rich(self, depth: int | None = 3) -> Any:
        """The table as a `rich` renderable."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(title=Text(self.title()), title_justify="left", box=None, pad_edge=False, header_style="bold")
        for i, name in enumerate(COLUMNS):
            table.add_column(name, justify="right" if i > 2 else "left", no_wrap=i == 0, style={1: "cyan", 2: "dim"}.get(i, ""))
        for row in self.cells(depth):
            table.add_row(*map(Text, row))
        below = Table.grid(padding=(0, 2))
        for name, value in self.totals():
            below.add_row(Text(name, style="bold"), Text(value))
        return Group(table, Text(""), below)


class _Rows:
    """Sums costs over the tree of scopes and lists its rows."""

    def __init__(self, graph: Graph, sizes: Mapping[str, int]):
        self.graph, self.sizes = graph, sizes
        self.root = tree(graph)
        self.parameters: dict[Part, int] = {}
        self.flops: dict[Part, Dim] = {}
        self.state: dict[Part, Dim] = {}
        self.sharing = Sharing(graph)
        self.kept = kept_by(graph)
        self._sum()

    def _sum(self) -> None:
        for part in postorder(self.root):
            if part.node is None:
                self.parameters[part] = sum(self.parameters[child] for child in part.children)
                self.flops[part] = _add(self.flops[child] for child in part.children)
                self.state[part] = _add(self.state[child] for child in part.children)
                continue
            node, call = part.node, call_of(part.node, self.graph)
            self.parameters[part] = self.sharing.owned(self.graph, [node])
            self.flops[part] = f.partial(flops_of(call, self.graph), self.sizes)
            self.state[part] = f.partial(self.kept.get(node.where.path, 0), self.sizes)

    def walk(self) -> Iterator[Row]:
        for name, value in self.graph.inputs:
            yield Row(name, name, "input", "input", 1, 0, f.shape(value.type, self.sizes, self.graph.facts), 0, (), 0, 0)
        stack: list[tuple[Piece, str, int]] = [(piece, "", 0) for piece in reversed([*contents(self.root)])]
        while stack:
            piece, base, depth = stack.pop()
            yield self._row(piece, base, depth)
            below = piece.unit if isinstance(piece, Fold) else [*contents(piece)]
            if isinstance(piece, Fold) and len(below) == 1 and isinstance(below[0], Part):
                base = below[0].path
                below = [*contents(below[0])]
            elif isinstance(piece, Part):
                base = piece.path
            stack.extend((inner, base, depth + 1) for inner in reversed(below))

    def _row(self, piece: Piece, base: str, depth: int) -> Row:
        copies = piece.copies if isinstance(piece, Fold) else ((piece,),)
        parts = [part for copy in copies for part in copy]
        last = parts[-1]
        count = len(copies[0])
        alone = count == 1 and last.node is not None
        node = last.node if alone else None
        return Row(
            piece.path, relative(piece.path, base), _kind(node), f"({count} places)" if count > 1 else last.frame, len(copies), depth,
            f.shapes([v.type for v in self._given(last)], self.sizes, self.graph.facts), sum(self.parameters[p] for p in parts),
            self._shared(last, node) if count == 1 else (),
            _add(self.flops[p] for p in parts), _add(self.state[p] for p in parts),
        )

    def _given(self, part: Part) -> list[Value]:
        """What a part gives the rest, auxiliary outputs apart."""
        aside = {value for _, value in self.graph.aux if self.graph.uses[value] == 1 or part.node is None}
        return [value for value in part.gives if value not in aside] or list(part.gives)

    def _shared(self, part: Part, node: Node | None) -> tuple[str, ...]:
        """The weights of a node, or the name of a scope's, that earlier rows have counted."""
        if node is not None:
            return tuple(name for _, name in node.weights if self.sharing.first[name] is not node)
        mark = self.sharing.whole(part)
        return (mark.name,) if mark and not mark.first else ()


def _kind(node: Node | None) -> str:
    if node is None:
        return "scope"
    declaration = REGISTRY.get(node.op)
    return declaration.kind if declaration else "brick"


def _add(dims: Any) -> Dim:
    out: Dim = 0
    for dim in dims:
        out = out + dim
    return out


def _product(dims: Any) -> Dim:
    *_, last = accumulate(dims, lambda a, b: a * b, initial=1)
    return last


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value if isinstance(value, int | str) else str(value)


def _parameters(row: Row) -> str:
    own = f"{row.parameters:,}" if row.parameters else ""
    shared = f"({', '.join(row.shared)})" if row.shared else ""
    return f"{own} {shared}".strip()


def _branches(depths: list[int]) -> list[str]:
    """The lines in front of each row of a tree, given the depths in order."""
    out: list[str] = []
    open_at: set[int] = set()
    for depth in reversed(depths):
        bars = "".join("│  " if level in open_at else "   " for level in range(1, depth))
        out.append(bars + ("├─ " if depth in open_at else "└─ ") if depth else "")
        open_at = {level for level in open_at if level < depth} | {depth}
    return out[::-1]


def _line(row: tuple[str, ...], widths: list[int]) -> str:
    cells = [text.ljust(width) if i < 3 else text.rjust(width) for i, (text, width) in enumerate(zip(row, widths))]
    return "  ".join(cells).rstrip()
