"""Moving what a norm multiplies and adds into the product beside it; for inference only, since it changes weights.

`rmsnorm(scale) -> linear(weight)` is `rmsnorm without scale -> linear(weight * scale)`, if linears are all that read the
norm. Batch norm with fixed statistics moves into the convolution before it. New weights follow from the old ones by recipes
(`recipes.py`); the old ones go when nothing names them any more. A weight that several calls share is folded only where
all of its calls fold the same way, so that sharing survives.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ..ir.graph import Attrs, Graph, Node, Value, Weight
from .recipes import DERIVED, Recipe, apply
from .report import Report
from .rewrite import Rewriter, dead_code
from .users import readers, through_forks

if TYPE_CHECKING:
    import torch

INTO_LINEARS = "scale_of_a_norm_moves_into_the_linears_after_it"
INTO_CONVOLUTION = "batch_norm_moves_into_the_convolution_before_it"
NORMS = ("rmsnorm", "layernorm")
CONVOLUTIONS = ("conv1d", "conv2d", "depthwise_conv2d")


@dataclass(frozen=True, slots=True)
class Fold:
    """`norms`: scales and shifts into the next linears. `batchnorm`: into the convolution before. `mode=train` refuses all."""

    norms: bool = True
    batchnorm: bool = True
    mode: Literal["infer", "train"] = "infer"


def fold(graph: Graph, options: Fold, report: Report) -> Graph:
    """Scales of norms move into the linears after them, batch norms into convolutions (inference only; changes weights)."""
    training = options.mode == "train"
    if options.norms:
        graph = fold_norms(graph, report, "fold", training)
    if options.batchnorm:
        graph = fold_batchnorm(graph, report, "fold", training)
    return graph


def fold_weights(graph: Graph, tensors: Mapping[str, torch.Tensor]) -> tuple[Graph, dict[str, torch.Tensor]]:
    """The folded graph and the tensors that it names: `fold` and its recipes in one step."""
    recipes: list[Recipe] = []
    after = fold(graph, Fold(), Report(recipes=recipes))
    return after, apply(recipes, tensors, after)


# norms into linears


@dataclass(eq=False)
class _Site:
    """A norm that may fold: its linears, and what its readers would have to agree on."""

    norm: Node
    linears: list[Node]

    @property
    def factor(self) -> tuple[Any, ...]:
        """What the linears take over; calls that share a weight must agree on it."""
        return (self.norm.op, self.norm.weights, self.norm.attrs.get("offset", 0.0))


def fold_norms(graph: Graph, report: Report, name: str, training: bool = False) -> Graph:
    """The graph with scales and shifts of norms in the linears that follow."""
    if not any(op in graph.ops for op in NORMS):
        return graph
    graph = dead_code(graph)
    sites = _sites(graph, report, training)
    if not sites:
        return graph
    recipes = report.need_recipes(name)
    by_norm = {site.norm: site for site in sites}
    by_linear = {linear: site for site in sites for linear in site.linears}
    rewriter = Rewriter(graph, report=report)
    for node in graph.nodes:
        carried = rewriter.carried(node)
        if node in by_norm:
            report.fired[INTO_LINEARS] += 1
            new = rewriter.emit(node.op, carried.inputs, _plain(node), (), node.where)
        elif node in by_linear:
            weights = _folded(node, by_linear[node], rewriter, recipes)
            attrs = {**node.attrs, "bias": len(weights) > 1}
            new = rewriter.emit("linear", carried.inputs, attrs, weights, node.where)
        else:
            new = rewriter.offer(carried)
        rewriter.replace(node.outputs, new)
    return rewriter.finish()


def _plain(norm: Node) -> Attrs:
    """The attributes of the norm without its weights."""
    off = {"scale": False, "bias": False, "offset": 0.0}
    return Attrs({k: off.get(k, v) for k, v in norm.attrs.items()})


def _sites(graph: Graph, report: Report, training: bool) -> list[_Site]:
    """The norms that fold, after every refusal and what follows from it."""
    read_by, results = readers(graph), {v for _, v in graph.results}
    open_sites: dict[Node, _Site] = {}
    for node in graph.nodes:
        if node.op not in NORMS or not node.weights:
            continue
        linears, reason = _linears(node.outputs[0], read_by, results)
        if training:
            reason = "the model trains, and folding would change what is trained"
        if reason is not None:
            report.refuse(INTO_LINEARS, node, reason)
            continue
        open_sites[node] = _Site(node, linears)
    return _agreeing(graph, open_sites, report)


def _linears(value: Value, read_by: Mapping[Value, list[Node]], results: set[Value]) -> tuple[list[Node], str | None]:
    """The linears that read a value, seen through forks; or why something else does."""
    found: dict[Node, None] = {}
    todo = [value]
    while todo:
        at = todo.pop()
        if at in results:
            return [], "the normed value is a result of the model"
        for reader in read_by.get(at, ()):
            if reader.op == "fork":
                todo.extend(reader.outputs)
            elif reader.op != "linear":
                return [], f"the normed value is read by `{reader.op}` at {reader.where.path}, not by linears alone"
            else:
                found[reader] = None
    return (list(found), None) if found else ([], "nothing reads the normed value")


def _agreeing(graph: Graph, sites: dict[Node, _Site], report: Report) -> list[_Site]:
    """Drop the sites whose linears share weights with calls that do not fold alike.

    A weight is bad if one of its calls is no linear of a site, or two of its sites differ. A bad weight drops its sites, and a
    dropped site makes the other weights of its linears bad; each weight turns bad once.
    """
    owner = {linear: site for site in sites.values() for linear in site.linears}
    calls: dict[str, list[Node]] = {name: [] for linear in owner for _, name in linear.weights}
    for node in graph.nodes:
        for _, name in node.weights:
            if name in calls:
                calls[name].append(node)
    bad = [name for name, nodes in calls.items() if _differs(nodes, owner)]
    seen = set(bad)
    while bad:
        name = bad.pop()
        for site in dict.fromkeys(owner[node] for node in calls[name] if node in owner):
            if sites.pop(site.norm, None) is None:
                continue
            report.refuse(INTO_LINEARS, site.norm, f"weight {name} is shared with a call that does not fold alike")
            more = [n for linear in site.linears for _, n in linear.weights if n not in seen]
            seen.update(more)
            bad.extend(dict.fromkeys(more))
    return list(sites.values())


def _differs(calls: list[Node], owner: Mapping[Node, _Site]) -> bool:
    return any(node not in owner for node in calls) or len({owner[node].factor for node in calls}) > 1


def _folded(linear: Node, site: _Site, rewriter: Rewriter, recipes: list[Recipe]) -> tuple[tuple[str, str], ...]:
    """The linear's new weights, their recipes noted once per shared weight."""
    old, norm = dict(linear.weights), dict(site.norm.weights)
    scale, shift = norm.get("weight"), norm.get("bias")
    frozen = rewriter.graph.weights[old["weight"]].frozen
    rows = rewriter.graph.weights[old["weight"]].shape[0]
    new = [("weight", old["weight"])]
    if scale is not None:
        settings = {"offset": site.norm.attrs["offset"]} if site.norm.attrs.get("offset") else {}
        recipe = Recipe(f"{old['weight']}_folded", "scaled_columns", (("weight", old["weight"]), ("scale", scale)), settings)
        new = [("weight", _note(recipe, Weight(rewriter.graph.weights[old["weight"]].shape, DERIVED, frozen), rewriter, recipes))]
    if shift is not None:
        sources = (("weight", old["weight"]), ("shift", shift), *((role, name) for role, name in linear.weights if role == "bias"))
        target = f"{old.get('bias') or old['weight'].rsplit('.', 1)[0] + '.bias'}_folded"
        new.append(("bias", _note(Recipe(target, "shifted_bias", sources), Weight((rows,), DERIVED, frozen), rewriter, recipes)))
    elif "bias" in old:
        new.append(("bias", old["bias"]))
    return tuple(new)


def _note(recipe: Recipe, weight: Weight, rewriter: Rewriter, recipes: list[Recipe]) -> str:
    if recipe.target not in rewriter.weights:
        recipes.append(recipe)
    return rewriter.weight(recipe.target, weight)


# batch norms into convolutions


def fold_batchnorm(graph: Graph, report: Report, name: str, training: bool = False) -> Graph:
    """The graph with batch norms (running statistics) in the convolutions before them."""
    if not graph.ops["batchnorm"] or not any(op in graph.ops for op in CONVOLUTIONS):
        return graph
    graph = dead_code(graph)
    found = dict(_batchnorms(graph, report, training))
    if not found:
        return graph
    recipes = report.need_recipes(name)
    by_convolution = {convolution: norm for norm, convolution in found.items()}
    rewriter = Rewriter(graph, report=report)
    for node in graph.nodes:
        carried = rewriter.carried(node)
        if node in by_convolution:
            weights = _absorbed(node, by_convolution[node], rewriter, recipes)
            new = rewriter.emit(node.op, carried.inputs, {**node.attrs, "bias": True}, weights, node.where)
        elif node in found:
            report.fired[INTO_CONVOLUTION] += 1
            new = (carried.inputs[0],)
        else:
            new = rewriter.offer(carried)
        rewriter.replace(node.outputs, new)
    return rewriter.finish()


def _batchnorms(graph: Graph, report: Report, training: bool) -> Iterable[tuple[Node, Node]]:
    """Batch norms that fold, each with its convolution."""
    calls: dict[str, int] = {}
    for node in graph.nodes:
        for _, name in node.weights:
            calls[name] = calls.get(name, 0) + 1
    for node in graph.nodes:
        if node.op != "batchnorm":
            continue
        before = through_forks(node.inputs[0]).node
        if training:
            reason = "the model trains, and its statistics move"
        elif before is None or before.op not in CONVOLUTIONS:
            reason = f"it reads {'an input' if before is None else f'`{before.op}`'}, not a convolution"
        elif graph.uses[before.outputs[0]] > 1 or node.inputs[0] is not before.outputs[0]:
            reason = "the convolution's value is used elsewhere"
        elif any(calls[name] > 1 for _, name in before.weights):
            reason = "the convolution shares its weights with another call"
        elif before.where.backend != node.where.backend:
            reason = "the convolution is on another backend"
        else:
            yield node, before
            continue
        report.refuse(INTO_CONVOLUTION, node, reason)


def _absorbed(convolution: Node, norm: Node, rewriter: Rewriter, recipes: list[Recipe]) -> tuple[tuple[str, str], ...]:
    old, inventory, eps = dict(convolution.weights), rewriter.graph.weights, {"eps": norm.attrs["eps"]}
    known, prefix = inventory[old["weight"]], old["weight"].rsplit(".", 1)[0]
    roles = {"running_mean": "mean", "running_var": "variance", "weight": "scale", "bias": "shift"}
    statistics = {roles[role]: name for role, name in norm.weights}
    rows = (("weight", old["weight"]), *((r, n) for r, n in statistics.items() if r in ("variance", "scale")))
    weight = Recipe(f"{prefix}.weight_folded", "normalised_rows", rows, eps)
    offsets = (*statistics.items(), *((r, n) for r, n in convolution.weights if r == "bias"))
    bias = Recipe(f"{prefix}.bias_folded", "normalised_bias", offsets, eps)
    return (
        ("weight", _note(weight, Weight(known.shape, DERIVED, known.frozen), rewriter, recipes)),
        ("bias", _note(bias, Weight((known.shape[0],), DERIVED, known.frozen), rewriter, recipes)),
    )
