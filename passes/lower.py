"""Forks, joins, stitches and filters as primitives, for backends that know nothing of them.

Forks vanish: their branches read the forked value. Joins become additions and products of two, a filter becomes the dense
sum over branches of weight times branch, a stitch the linears that it stands for, with the very same weights. What comes out
computes the same numbers; what authors meant by it is gone, so no other pass should follow that wants to see it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..bricks.declare import REGISTRY
from ..ir.graph import Graph, Node, Value, Where
from .pipeline import NoOptions
from .report import Report
from .rewrite import Rewriter, Rule, rewrite

Replacement = Sequence[Value] | None


def lower(graph: Graph, options: NoOptions, report: Report) -> Graph:
    """Forks, joins, stitches and filters become linears, sums and products."""
    return rewrite(graph, RULES, report=report)


class _Parts:
    """The nodes that take the place of one: all under its path, on its backend."""

    def __init__(self, node: Node, rewriter: Rewriter):
        self.node = node
        self.rewriter = rewriter

    def emit(self, op: str, /, *inputs: Value, weights: tuple[tuple[str, str], ...] = (), **attrs: object) -> Value:
        """One call with one result, defaults filled in."""
        return self.several(op, *inputs, weights=weights, **attrs)[0]

    def several(self, op: str, /, *inputs: Value, weights: tuple[tuple[str, str], ...] = (), **attrs: object) -> tuple[Value, ...]:
        """One call with all of its results."""
        return self.rewriter.emit(op, inputs, filled(op, inputs, attrs, self.rewriter.graph), weights, self.where(op))

    def where(self, op: str) -> Where:
        return self.rewriter.below(self.node.where, op)

    def chain(self, op: str, values: Sequence[Value]) -> Value:
        """values joined two by two, from the left."""
        total = values[0]
        for value in values[1:]:
            total = self.emit(op, total, value)
        return total

    def scaled(self, value: Value, factor: float) -> Value:
        if value.type.dtype == "int":
            factor = int(factor)
        return value if factor == 1 else self.emit("scale", value, factor=factor)


def filled(op: str, inputs: Sequence[Value], attrs: Mapping[str, object], graph: Graph) -> dict[str, object]:
    """Attributes with the brick's defaults, as elaboration leaves them."""
    declaration = REGISTRY[op]
    names = declaration.names(tuple(v.type for v in inputs), attrs, graph.facts)
    kept = {n: _frozen(names[n]) for n in declaration.formals if n in names and n != "init"}
    return kept | ({"given": attrs["given"]} if "given" in attrs else {})


def _frozen(value: object) -> object:
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


def fork_branches_read_the_forked_value(node: Node, rewriter: Rewriter) -> Replacement:
    return node.inputs * len(node.outputs)


def add_of_many_is_a_chain(node: Node, rewriter: Rewriter) -> Replacement:
    alpha = node.attrs.get("alpha", 1)
    if len(node.inputs) == 2 and alpha == 1:
        return None
    parts = _Parts(node, rewriter)
    first, *others = node.inputs
    if not others:
        return (first,)
    return (parts.chain("add", [first, parts.scaled(parts.chain("add", others), alpha)]),)


def mean_is_a_scaled_sum(node: Node, rewriter: Rewriter) -> Replacement:
    parts = _Parts(node, rewriter)
    return (parts.scaled(parts.chain("add", node.inputs), 1 / len(node.inputs)),)


def _pairwise(op: str) -> Rule:
    def rule(node: Node, rewriter: Rewriter) -> Replacement:
        if len(node.inputs) == 2:
            return None
        return (_Parts(node, rewriter).chain(op, node.inputs),)

    rule.__name__ = f"{op}_of_many_is_a_chain"
    return rule


def gate_is_content_times_sigmoid_of_control(node: Node, rewriter: Rewriter) -> Replacement:
    content, control = node.inputs
    parts = _Parts(node, rewriter)
    return (parts.emit("mul", content, parts.emit("sigmoid", control)),)


def blend_is_a_weighted_sum(node: Node, rewriter: Rewriter) -> Replacement:
    parts = _Parts(node, rewriter)
    given = node.attrs.get("weights")
    if not node.weights:
        factors = given or [1 / len(node.inputs)] * len(node.inputs)
        return (parts.chain("add", [parts.scaled(v, f) for v, f in zip(node.inputs, factors)]),)
    ((_, name),) = node.weights
    logits = parts.emit("weight", weights=(("weight", name),), shape=(len(node.inputs),))
    shares = parts.several("split", parts.emit("softmax", logits), parts=len(node.inputs))
    return (_weighted(parts, shares, node.inputs),)


def filter_is_the_sum_of_weight_times_branch(node: Node, rewriter: Rewriter) -> Replacement:
    weights, *branches = node.inputs
    parts = _Parts(node, rewriter)
    columns = parts.several("split", weights, parts=len(branches))
    return (_weighted(parts, columns, branches),)


def _weighted(parts: _Parts, shares: Sequence[Value], values: Sequence[Value]) -> Value:
    return parts.chain("add", [parts.emit("mul", share, value) for share, value in zip(shares, values)])


def attend_is_a_softmax_over_branches(node: Node, rewriter: Rewriter) -> Replacement:
    query, *branches = node.inputs
    parts, weights = _Parts(node, rewriter), dict(node.weights)
    heads, hidden = node.attrs["heads"], node.attrs["hidden"]
    split = {"pattern": "... (h k) -> ... h k", "sizes": (("h", heads),)}
    asked = parts.emit("rearrange", _linear(parts, query, weights["query_weight"]), **split)
    scores = []
    for branch in branches:
        key = parts.emit("rearrange", _linear(parts, branch, weights["key_weight"]), **split)
        scores.append(parts.emit("reduce", parts.emit("mul", asked, key), pattern="... h k -> ... h", op="sum"))
    logits = parts.scaled(parts.emit("stack", *scores, axis=-1), (hidden / heads) ** -0.5)
    shares = parts.several("split", parts.emit("softmax", logits), parts=len(branches))
    values = [parts.emit("rearrange", branch, **split) for branch in branches]
    return (parts.emit("rearrange", _weighted(parts, shares, values), pattern="... h k -> ... (h k)"),)


def stitch_is_its_linears(node: Node, rewriter: Rewriter) -> Replacement:
    parts, weights = _Parts(node, rewriter), dict(node.weights)
    x = node.inputs[0]
    if node.attrs["form"] != "linear":
        x = _linear(parts, x, weights["weight_in"], weights.get("bias_in"))
    if node.attrs["form"] == "mlp":
        x = parts.emit("gelu", x)
    return (_linear(parts, x, weights["weight"], weights["bias"]),)


def _linear(parts: _Parts, x: Value, weight: str, bias: str | None = None) -> Value:
    named = (("weight", weight), *([("bias", bias)] if bias else []))
    return parts.emit("linear", x, weights=named, out=parts.rewriter.weights[weight].shape[0], bias=bias is not None)


RULES: Mapping[str, Sequence[Rule]] = {
    "fork": (fork_branches_read_the_forked_value,),
    "add": (add_of_many_is_a_chain,),
    "mean": (mean_is_a_scaled_sum,),
    "mul": (_pairwise("mul"),),
    "max": (_pairwise("max"),),
    "gate": (gate_is_content_times_sigmoid_of_control,),
    "blend": (blend_is_a_weighted_sum,),
    "attend": (attend_is_a_softmax_over_branches,),
    "filter": (filter_is_the_sum_of_weight_times_branch,),
    "stitch": (stitch_is_its_linears,),
}
