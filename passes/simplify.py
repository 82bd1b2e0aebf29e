"""Calls that do nothing go, and chains that one call can do become one.

Each rule looks up from the node that it is named after, and says what holds. None changes a weight or a random draw, and
each is exact in the arithmetic of real numbers: merged factors may round differently in the last bit. Equal calls merge as the
walk goes: what a removal leaves equal may in turn be what the next rule looks for, and so one walk is enough.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ..ir.graph import Graph, Node, Value
from .report import Report
from .rewrite import Rewriter, Rule, rewrite

Replacement = Sequence[Value] | None


@dataclass(frozen=True, slots=True)
class Simplify:
    """`mode=infer` also removes what acts in training alone (dropout)."""

    mode: Literal["train", "infer"] = "train"


def simplify(graph: Graph, options: Simplify, report: Report) -> Graph:
    """Calls that do nothing go, and chains of scales, shifts and rearrangements become one call."""
    rules = INFERENCE_RULES if options.mode == "infer" else RULES
    if not any(op in graph.ops for op in rules):
        return graph
    return rewrite(graph, rules, merge=True, report=report)


def id_is_its_input(node: Node, rewriter: Rewriter) -> Replacement:
    return node.inputs


def scale_by_one_is_nothing(node: Node, rewriter: Rewriter) -> Replacement:
    if node.attrs["factor"] != 1:
        return rewriter.no(f"the factor is {node.attrs['factor']}", node)
    return node.inputs


def shift_by_zero_is_nothing(node: Node, rewriter: Rewriter) -> Replacement:
    if node.attrs["by"] != 0:
        return rewriter.no(f"it adds {node.attrs['by']}", node)
    return node.inputs


def scale_of_a_scale_is_one_scale(node: Node, rewriter: Rewriter) -> Replacement:
    inner = _same_before(node, rewriter)
    if inner is None:
        return None
    factor = node.attrs["factor"] * inner.attrs["factor"]
    return rewriter.emit("scale", inner.inputs, {**node.attrs, "factor": factor}, (), node.where)


def shift_of_a_shift_is_one_shift(node: Node, rewriter: Rewriter) -> Replacement:
    inner = _same_before(node, rewriter)
    if inner is None:
        return None
    return rewriter.emit("shift", inner.inputs, {**node.attrs, "by": node.attrs["by"] + inner.attrs["by"]}, (), node.where)


def join_of_one_is_its_input(node: Node, rewriter: Rewriter) -> Replacement:
    if len(node.inputs) != 1:
        return rewriter.no(f"it joins {len(node.inputs)} values", node)
    if node.outputs[0].type != node.inputs[0].type:
        return rewriter.no("it changes the type", node)
    return node.inputs


def fork_of_one_branch_is_its_input(node: Node, rewriter: Rewriter) -> Replacement:
    if len(node.outputs) != 1:
        return rewriter.no(f"it has {len(node.outputs)} branches", node)
    return node.inputs


def split_in_one_is_its_input(node: Node, rewriter: Rewriter) -> Replacement:
    if len(node.outputs) != 1:
        return rewriter.no(f"it has {len(node.outputs)} parts", node)
    return node.inputs


def concat_of_all_parts_is_what_was_split(node: Node, rewriter: Rewriter) -> Replacement:
    split = node.inputs[0].node
    if split is None or split.op != "split" or tuple(node.inputs) != split.outputs:
        return rewriter.no("its inputs are not all parts of one split, in order", node)
    if _axis(node) != _axis(split):
        return rewriter.no("the split was along another axis", node)
    return split.inputs


def split_of_a_concat_is_its_inputs(node: Node, rewriter: Rewriter) -> Replacement:
    concat = node.inputs[0].node
    if concat is None or concat.op != "concat" or len(concat.inputs) != len(node.outputs):
        return rewriter.no("it does not split a concatenation of as many parts", node)
    if _axis(node) != _axis(concat) or any(a.type != b.type for a, b in zip(concat.inputs, node.outputs)):
        return rewriter.no("the parts are not those that were concatenated", node)
    return concat.inputs


def rearrange_back_is_nothing(node: Node, rewriter: Rewriter) -> Replacement:
    inner = node.inputs[0].node
    if inner is None or inner.op != "rearrange":
        return rewriter.no("its input is not rearranged", node)
    there, back = (tuple(part.split() for part in n.attrs["pattern"].split("->")) for n in (inner, node))
    if (there[1], there[0]) != (back[0], back[1]) or inner.inputs[0].type != node.outputs[0].type:
        return rewriter.no("the patterns are not each other's inverse", node)
    # a group in between is taken apart by the second call's sizes: (a b) of 2 * 3 is not that of 3 * 2
    if any("(" in word for word in there[1]) and inner.attrs.get("sizes") != node.attrs.get("sizes"):
        return rewriter.no("the group in between is taken apart by other sizes", node)
    return inner.inputs


def dropout_is_nothing_in_inference(node: Node, rewriter: Rewriter) -> Replacement:
    return node.inputs[:1]


def dropout_of_nothing_is_nothing(node: Node, rewriter: Rewriter) -> Replacement:
    if node.attrs["p"] != 0:
        return rewriter.no(f"it drops {node.attrs['p']} of its input", node)
    return node.inputs


def cast_to_its_own_type_is_nothing(node: Node, rewriter: Rewriter) -> Replacement:
    if node.inputs[0].type != node.outputs[0].type:
        return rewriter.no("it changes the type", node)
    return node.inputs


def _same_before(node: Node, rewriter: Rewriter) -> Node | None:
    inner = node.inputs[0].node
    if inner is None or inner.op != node.op:
        return rewriter.no(f"its input is no {node.op}", node)
    if inner.where.backend != node.where.backend:
        return rewriter.no("the inner one is on another backend", node)
    return inner


def _axis(node: Node) -> int:
    """The axis counted from the front."""
    axis = node.attrs["axis"]
    return axis if axis >= 0 else axis + len(node.inputs[0].type.shape)


JOINS_THAT_KEEP_ONE = ("add", "mul", "mean", "max", "concat")

RULES: Mapping[str, Sequence[Rule]] = {
    "id": (id_is_its_input,),
    "scale": (scale_by_one_is_nothing, scale_of_a_scale_is_one_scale),
    "shift": (shift_by_zero_is_nothing, shift_of_a_shift_is_one_shift),
    "fork": (fork_of_one_branch_is_its_input,),
    "split": (split_in_one_is_its_input, split_of_a_concat_is_its_inputs),
    "rearrange": (rearrange_back_is_nothing,),
    "dropout": (dropout_of_nothing_is_nothing,),
    "float": (cast_to_its_own_type_is_nothing,),
    "int": (cast_to_its_own_type_is_nothing,),
    **{op: (join_of_one_is_its_input,) for op in JOINS_THAT_KEEP_ONE},
    "concat": (join_of_one_is_its_input, concat_of_all_parts_is_what_was_split),
}
INFERENCE_RULES: Mapping[str, Sequence[Rule]] = {**RULES, "dropout": (dropout_is_nothing_in_inference,)}
