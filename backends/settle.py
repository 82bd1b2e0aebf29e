"""Where parts really run: what a backend cannot run is taken apart into bricks that it can, or goes to fx, and a note says so."""

from __future__ import annotations

from collections.abc import Callable

from graphir.ir.graph import Graph, Node
from graphir.lang.diagnostic import Diagnostic, GraphirError
from graphir.passes.lower import RULES
from graphir.passes.place import moved
from graphir.passes.report import Report
from graphir.passes.rewrite import Rule, rewrite

from .mlx_lazy import need_mlx
from .mlx_table import accepts

HOME = "fx"


class Replaced(UserWarning):
    """A brick runs on another backend than the program says."""


def settle(graph: Graph, strict: bool = False, decode: bool = False) -> tuple[Graph, list[Diagnostic]]:
    """The graph with every node on a backend that can run it, and a note for each kind of brick that had to move to fx.

    `decode`: parts keep their state in fx alone. `strict` refuses instead of moving: GraphirError E0830.
    Raises EnvironmentProblem where the program asks for MLX and it is not installed.
    """
    used = {node.where.backend for node in graph.nodes} - {None, HOME}
    if not used:
        return graph, []
    if "mlx" in used and not decode:
        need_mlx()
    graph = graph if decode else _taken_apart(graph)
    reasons = {node: reason for node in graph.nodes if (reason := _why_not(node, decode))}
    notes = _notes(reasons, strict)
    if notes and strict:
        raise GraphirError(notes)
    return moved(graph, dict.fromkeys(reasons, HOME)), notes


def _why_not(node: Node, decode: bool) -> str | None:
    """Why a node cannot run where the program puts it; None where it can."""
    backend = node.where.backend
    if backend in (None, HOME) or node.op == "fork":
        return None
    if decode:
        return f"`{backend}` parts do not decode step by step"
    if node.op == "slot":
        return "slots are filled in fx modules"
    if backend != "mlx":
        return None
    return None if accepts(node) else f"`{node.op}` has no implementation in MLX"


def _notes(reasons: dict[Node, str], strict: bool) -> list[Diagnostic]:
    """One finding for each reason, at the first node that has it."""
    nodes: dict[str, list[Node]] = {}
    for node, reason in reasons.items():
        nodes.setdefault(reason, []).append(node)
    found = []
    for reason, those in nodes.items():
        more = f" and {len(those) - 1} more" if len(those) > 1 else ""
        message = f"{reason}: `{those[0].where.path}`{more} {'cannot run there' if strict else 'will run on fx'}"
        found.append(Diagnostic("E0830", message, those[0].where.span, severity="error" if strict else "note"))
    return found


def _taken_apart(graph: Graph) -> Graph:
    """Joins, filters and stitches that MLX lacks as the primitives that they stand for."""
    wanted = {node.op for node in graph.nodes if node.where.backend == "mlx" and not accepts(node)} & (RULES.keys() - {"fork"})
    if not wanted:
        return graph

    def only_there(rule: Rule) -> Rule:
        def on_mlx(node: Node, rewriter: object) -> object:
            return rule(node, rewriter) if node.where.backend == "mlx" and not accepts(node) else None  # type: ignore[arg-type]

        on_mlx.__name__ = rule.__name__
        return on_mlx  # type: ignore[return-value]

    rules: dict[str, list[Callable[..., object]]] = {op: [only_there(rule) for rule in RULES[op]] for op in wanted}
    return rewrite(graph, rules, report=Report())  # type: ignore[arg-type]
