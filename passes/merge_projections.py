"""Linears of one input become one wide linear and a split: Q, K and V, or gate and up, are one product.

Only linears of the same input (seen through forks), backend and branch merge, all with a bias or none, and only where no
other node uses their weights. The weights are concatenated by a recipe, so the pass runs where a run carries weights. It
pays where calls cost more than products: small batches, small widths.
"""

from __future__ import annotations

from typing import Any

from ..ir.graph import Graph, Node, Weight, Where
from .pipeline import NoOptions
from .recipes import DERIVED, Recipe
from .report import Report
from .rewrite import Rewriter, branch_of, common_scope, dead_code
from .users import through_forks, weight_uses

RULE = "linears_of_one_input_are_one_wide_linear"
ALONE = "no other linear reads its input on the same backend, in the same branch, with the same kind of weights"


def merge_projections(graph: Graph, options: NoOptions, report: Report) -> Graph:
    """Linears of one input become one wide linear and a split (changes weights)."""
    if graph.ops["linear"] < 2:
        return graph
    graph = dead_code(graph)
    groups = _groups(graph, report)
    if not groups:
        return graph
    recipes = report.need_recipes("merge-projections")
    leader = {group[0]: group for group in groups}
    member = {node for group in groups for node in group}
    rewriter = Rewriter(graph, report=report)
    for node in graph.nodes:
        if node in leader:
            _emit(leader[node], rewriter, recipes)
        elif node not in member:
            rewriter.keep(node)
    return rewriter.finish()


def _groups(graph: Graph, report: Report) -> list[list[Node]]:
    """The sets of two linears or more that merge, in the order of their first members."""
    uses = weight_uses(graph)
    found: dict[Any, list[Node]] = {}
    for node in graph.nodes:
        if node.op != "linear":
            continue
        if any(uses[name] > 1 for _, name in node.weights):
            report.refuse(RULE, node, "another call uses its weights")
            continue
        frozen = tuple((role, graph.weights[name].frozen) for role, name in node.weights)
        key = (through_forks(node.inputs[0]), frozen, branch_of(node.where), node.where.backend)
        found.setdefault(key, []).append(node)
    for group in found.values():
        if len(group) == 1:
            report.refuse(RULE, group[0], ALONE)
    return [group for group in found.values() if len(group) > 1]


def _emit(group: list[Node], rewriter: Rewriter, recipes: list[Recipe]) -> None:
    first = group[0]
    where, beside = _places(group, rewriter)
    sizes = tuple(int(node.attrs["out"]) for node in group)
    weights = tuple((role, _joined(role, group, where, rewriter, recipes)) for role, _ in first.weights)
    attrs = {**first.attrs, "out": sum(sizes)}
    (wide,) = rewriter.emit("linear", (rewriter.final(first.inputs[0]),), attrs, weights, where)
    parts = rewriter.emit("split", (wide,), {"parts": sizes, "axis": -1}, (), beside)
    for node, part in zip(group, parts):
        rewriter.replace(node.outputs, (part,))
    rewriter.report.fired[RULE] += 1


def _joined(role: str, group: list[Node], where: Where, rewriter: Rewriter, recipes: list[Recipe]) -> str:
    sources = tuple(dict(node.weights)[role] for node in group)
    parts = [rewriter.weights[name] for name in sources]
    shape = (sum(w.shape[0] for w in parts), *parts[0].shape[1:])
    name = rewriter.weight(f"{where.path}.{role}", Weight(shape, DERIVED, parts[0].frozen))
    recipes.append(Recipe(name, "concatenated", tuple((f"part_{i}", source) for i, source in enumerate(sources))))
    return name


def _places(group: list[Node], rewriter: Rewriter) -> tuple[Where, Where]:
    """Where the wide linear and its split stand: in the common scope, under the names of the linears that they replace."""
    where = group[0].where
    scope = tuple(where.path.split(".")[:-1])
    for node in group[1:]:
        scope = common_scope(".".join((*scope, "")), node.where.path)
    names = "_".join(node.where.path.rsplit(".", 1)[-1] for node in group)
    names = names if len(names) <= 48 else "projections"
    base = Where(".".join(scope), where.frames[: len(scope)], where.span, where.backend)
    return rewriter.below(base, names), rewriter.below(base, f"{names}_split")
