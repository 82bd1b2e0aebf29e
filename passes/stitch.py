"""Settling the stitches that `~>`, joins and filters left open.

Elaboration puts a stitch wherever an author let the compiler adapt a width. An open one takes its form here (one linear map,
a small network, or a product of two thin maps), its weights and how they start; it is closed then, so the pass has nothing
to do the second time. An open stitch between equal widths is removed. A stitch that an author wrote out is left alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from ..bricks.declare import REGISTRY, make_weight
from ..ir.graph import Attrs, Graph, Node, Value, Weight
from ..lang.diagnostic import Diagnostic, GraphirError
from .report import Report
from .rewrite import Rewriter


@dataclass(frozen=True, slots=True)
class Stitch:
    """`form`: what an open stitch becomes. `rank`: inner width of `low-rank` (0: a quarter of the narrower side, at least 1).

    `init`: `random` as the brick declares; `zero` starts as the zero map (only the last matrix is zero, so that gradients flow);
    `identity` copies the leading channels; `orthogonal` keeps lengths as far as widths allow.
    """

    form: Literal["linear", "mlp", "low-rank"] = "linear"
    rank: int = 0
    init: Literal["random", "zero", "identity", "orthogonal"] = "random"


def stitch(graph: Graph, options: Stitch, report: Report) -> Graph:
    """Open stitches take their form and their weights; those between equal widths go."""
    if "stitch" not in graph.ops or not any(_is_open(node) for node in graph.nodes):
        return graph
    if options.form == "mlp" and options.init == "identity":
        help = "`init=zero`, or the forms `linear` and `low-rank`, can"
        raise GraphirError(Diagnostic("E0902", "a stitch of form `mlp` cannot start as the identity", help=(help,)))
    rewriter = Rewriter(graph, report=report)
    for node in graph.nodes:
        carried = rewriter.carried(node)
        rewriter.replace(node.outputs, _settled(carried, options, rewriter) if _is_open(carried) else rewriter.offer(carried))
    return rewriter.finish()


def _is_open(node: Node) -> bool:
    return node.op == "stitch" and bool(node.attrs.get("open"))


def _settled(node: Node, options: Stitch, rewriter: Rewriter) -> tuple[Value, ...]:
    (source,) = node.inputs
    if source.type.shape[-1] == node.attrs["out"]:
        rewriter.report.fired["an_open_stitch_of_equal_widths_is_nothing"] += 1
        return (source,)
    declaration, facts, base = REGISTRY["stitch"], rewriter.graph.facts, _base(node)
    attrs = Attrs({**node.attrs, "form": options.form, "rank": _rank(node, options), "open": False})
    names = declaration.names((source.type,), attrs, facts)
    weights = []
    for rule, shape in declaration.weight_shapes(names, facts):
        weight = make_weight(rule, shape, names, None, _frozen(node, rewriter))
        name = f"{base}.{rule.role}"
        rewriter.weights[name] = Weight(shape, _spec(rule.role, weight, options.init), weight.frozen)
        weights.append((rule.role, name))
    rewriter.report.fired["an_open_stitch_takes_its_form"] += 1
    return rewriter.emit("stitch", (source,), attrs, tuple(weights), node.where)


def _rank(node: Node, options: Stitch) -> int | None:
    """The inner width of a low-rank stitch: the option's, else a quarter of the narrower side."""
    if options.form != "low-rank":
        return None
    source = node.inputs[0].type.shape[-1]
    assert isinstance(source, int)
    return options.rank or max(1, min(source, node.attrs["out"]) // 4)


def _base(node: Node) -> str:
    """The path that the weights' names begin with: that of the declaration, which a shared stitch's calls have in common."""
    return node.weights[0][1].rsplit(".", 1)[0] if node.weights else node.where.path


def _frozen(node: Node, rewriter: Rewriter) -> bool:
    return bool(node.weights) and all(rewriter.graph.weights[name].frozen for _, name in node.weights)


def _spec(role: str, weight: Weight, init: str) -> str:
    if len(weight.shape) != 2 or init == "random":
        return weight.init
    if init == "zero":
        return "zeros" if role == "weight" else weight.init
    return {"identity": "eye", "orthogonal": "orthogonal"}[init]


class StitchRow(NamedTuple):
    """One stitch, for `--show-stitches`."""

    path: str
    place: str
    source: int
    target: int
    form: str
    parameters: int
    open: bool

    def __str__(self) -> str:
        form = f"{self.form}, open" if self.open else self.form
        place = f"  ({self.place})" if self.place else ""
        return f"{self.path}: {self.source} -> {self.target}, {form}, {self.parameters:,} parameters{place}"


def show_stitches(graph: Graph) -> list[StitchRow]:
    """One row per stitch of the graph, in order: path, place in the text, widths, form, parameters, whether still open."""
    return [_row(graph, node) for node in graph.nodes if node.op == "stitch"]


def _row(graph: Graph, node: Node) -> StitchRow:
    parameters = sum(graph.weights[name].numel for _, name in node.weights)
    place = str(node.where.span) if node.where.span else ""
    width = node.inputs[0].type.shape[-1]
    assert isinstance(width, int)
    return StitchRow(node.where.path, place, width, node.attrs["out"], node.attrs["form"], parameters, _is_open(node))
