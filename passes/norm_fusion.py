"""Norms meet what stands around them.

A norm that reads the sum of two values of its own shape becomes one node with the addition, which gives both the sum and
the normalised sum: `h = x + r; y = rmsnorm(h)` is `h, y = add_rmsnorm(x, r)`. Several norms of one value (seen through
forks) share one statistic. With `affine=true` a norm's scale and shift first move into the linears that follow, which
changes weights and is for inference only (`folding.py`).

The fused node stands where the norm stood, or where the addition stood if somebody reads the sum before the norm does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ..bricks.declare import REGISTRY
from ..ir.graph import Attrs, Graph, Node, Value, Where
from .folding import fold_norms
from .report import Report
from .rewrite import Rewriter, branch_of, common_scope, dead_code
from .users import through_forks

SUM_AND_NORM = "norm_of_a_sum_is_one_node_with_it"
ONE_STATISTIC = "norms_of_one_value_share_its_statistic"


@dataclass(frozen=True)
class Family:
    """The three forms of a norm beside its plain one."""

    fused: str
    statistic: str
    applied: str


FAMILIES: Mapping[str, Family] = {
    "rmsnorm": Family("add_rmsnorm", "rms_statistic", "rmsnorm_with"),
    "layernorm": Family("add_layernorm", "moments", "layernorm_with"),
}


@dataclass(frozen=True, slots=True)
class NormFusion:
    """`affine`: fold scales and shifts into the next linears first."""

    affine: bool = False


def norm_fusion(graph: Graph, options: NormFusion, report: Report) -> Graph:
    """Residual additions fuse with the norms that read them; norms of one value share its statistic."""
    if not any(op in graph.ops for op in FAMILIES):
        return graph
    if options.affine:
        graph = fold_norms(graph, report, "norm-fusion{affine=true}")
    graph = dead_code(graph)
    shared = _statistics(graph)
    fused = _sums(graph, shared, report)
    return _rebuild(graph, shared, fused, report) if shared or fused else graph


def _statistics(graph: Graph) -> dict[Node, tuple[Node, ...]]:
    """For each norm that shares a statistic, the norms that share it, itself among them, in order."""
    norms = [node for node in graph.nodes if node.op in FAMILIES]
    sources = [through_forks(node.inputs[0]) for node in norms]
    if len(set(sources)) == len(sources):
        return {}
    groups: dict[Any, list[Node]] = {}
    for node, source in zip(norms, sources):
        settings = _taken(FAMILIES[node.op].statistic, node.attrs)
        groups.setdefault((node.op, source, settings, node.where.backend), []).append(node)
    return {node: tuple(group) for group in groups.values() if len(group) > 1 for node in group}


def _sums(graph: Graph, shared: Mapping[Node, tuple[Node, ...]], report: Report) -> dict[Node, Node]:
    """Which norm fuses with the addition that it reads: norm -> addition."""
    fused: dict[Node, Node] = {}
    taken: set[Node] = set()
    for node in graph.nodes:
        if node.op not in FAMILIES:
            continue
        add = node.inputs[0].node
        reason = _why_not(node, shared)
        if reason is None and add in taken:
            reason = "the sum is fused with an earlier norm"
        if reason is not None:
            report.refuse(SUM_AND_NORM, node, reason)
            continue
        assert add is not None
        taken.add(add)
        fused[node] = add
    return fused


def _why_not(norm: Node, shared: Mapping[Node, tuple[Node, ...]]) -> str | None:
    """Why a norm does not fuse with the addition before it; None where it does."""
    total = norm.inputs[0]
    add = total.node
    if add is None or add.op != "add":
        return f"it reads {'an input of the model' if add is None else f'`{add.op}`'}, not a sum"
    if len(add.inputs) != 2:
        return f"the sum has {len(add.inputs)} terms, not two"
    if add.attrs.get("alpha", 1.0) != 1:
        return f"the sum weighs its second term by {add.attrs['alpha']}"
    if any([v.type is not total.type and v.type != total.type for v in add.inputs]):
        return "the sum extends one of its terms"
    if norm in shared:
        return "several norms read the sum, and share one statistic instead"
    if add.where.backend != norm.where.backend:
        return f"the sum is on {add.where.backend or 'the default backend'}, the norm on {norm.where.backend or 'the default backend'}"
    if branch_of(add.where) != branch_of(norm.where):
        return "the sum and the norm are not in the same branch"
    return None


def _rebuild(graph: Graph, shared: Mapping[Node, tuple[Node, ...]], fused: Mapping[Node, Node], report: Report) -> Graph:
    rewriter = Rewriter(graph, report=report)
    early, late = _order(graph, fused)
    touched = {*fused, *fused.values(), *shared}
    statistics: dict[Node, tuple[Value, ...]] = {}
    for node in graph.nodes:
        if node not in touched:
            rewriter.keep(node)
        elif node in early:
            _emit_fused(node, early[node], rewriter)
        elif node in late:
            _emit_fused(late[node], node, rewriter)
        elif node in shared:
            _emit_applied(node, shared[node], statistics, rewriter)
    return rewriter.finish(all_live=True)


def _order(graph: Graph, fused: Mapping[Node, Node]) -> tuple[dict[Node, Node], dict[Node, Node]]:
    """Additions at whose place the fused node stands (-> norm), and norms at whose place it stands (-> addition)."""
    by_sum = {add.outputs[0]: norm for norm, add in fused.items()}
    first: dict[Value, Node] = {}
    for node in graph.nodes:
        for value in node.inputs:
            if value in by_sum:
                first.setdefault(value, node)
    late = {norm: add for norm, add in fused.items() if first[add.outputs[0]] is norm}
    return {add: norm for norm, add in fused.items() if norm not in late}, late


def _emit_fused(add: Node, norm: Node, rewriter: Rewriter) -> None:
    op, moved = FAMILIES[norm.op].fused, rewriter.moved
    (total,), (normed,) = add.outputs, norm.outputs
    path, frames, span, backend = norm.where
    inputs = tuple([moved.get(v, v) for v in add.inputs])
    place = Where(path, (*frames[:-1], op), span, backend)
    node = Node(op, inputs, _taken(op, norm.attrs), norm.weights, place, (total.type, normed.type))
    moved[total], moved[normed] = rewriter.offer(node)
    rewriter.report.fired[SUM_AND_NORM] += 1


def _emit_applied(norm: Node, group: tuple[Node, ...], statistics: dict[Node, tuple[Value, ...]], rewriter: Rewriter) -> None:
    family = FAMILIES[norm.op]
    if group[0] not in statistics:
        source, op = rewriter.final(through_forks(norm.inputs[0])), family.statistic
        statistics[group[0]] = rewriter.emit(op, (source,), _taken(op, norm.attrs), (), _scope_of(group, rewriter, op))
        rewriter.report.fired[ONE_STATISTIC] += 1
    inputs = (rewriter.final(norm.inputs[0]), *statistics[group[0]])
    rewriter.replace(norm.outputs, rewriter.emit(family.applied, inputs, _taken(family.applied, norm.attrs), norm.weights, norm.where))


def _scope_of(group: tuple[Node, ...], rewriter: Rewriter, name: str) -> Where:
    where = group[0].where
    scope = tuple(where.path.split(".")[:-1])
    for node in group[1:]:
        scope = common_scope(".".join((*scope, "")), node.where.path)
    return rewriter.below(Where(".".join(scope), where.frames[: len(scope)], where.span, where.backend), name)


@lru_cache(maxsize=1024)
def _taken(op: str, attrs: Attrs) -> Attrs:
    """The attributes that the brick `op` has too."""
    formals = REGISTRY[op].formals
    return Attrs({k: v for k, v in attrs.items() if k in formals})
