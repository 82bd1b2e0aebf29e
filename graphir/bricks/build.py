"""The maker of nodes: types every node by its declaration and, when asked to merge, returns the old node for an equal call.

Equal means: same op, same inputs, same attributes, same weights, same backend; where a node stands in the text never counts.
Used by passes; elaboration makes its nodes itself, since it matches headers anyway.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..ir.dims import Facts
from ..ir.graph import NO_ATTRS, Attrs, Node, Value, Weight, Where
from ..ir.types import Type
from .declare import REGISTRY, Registry, make_weight


class Builder:
    """Collects nodes in topological order. `weights` is the inventory that new weights are added to."""

    def __init__(
        self, facts: Facts | None = None, registry: Registry = REGISTRY, merge: bool = False, weights: Mapping[str, Weight] | None = None
    ):
        self.facts = facts or Facts()
        self.registry = registry
        self.merge = merge
        self.nodes: list[Node] = []
        self.weights: dict[str, Weight] = dict(weights or {})
        self._seen: dict[Any, Node] = {}
        self._types: dict[Any, tuple[Type, ...]] = {}

    def infer(self, op: str, types: tuple[Type, ...], attrs: Attrs) -> tuple[Type, ...]:
        """Result types, remembered. Raises Misfit."""
        key = (op, types, attrs)
        found = self._types.get(key)
        if found is None:
            found = self._types[key] = self.registry[op].infer(types, attrs, self.facts)
        return found

    def emit(
        self,
        op: str,
        inputs: Iterable[Value],
        attrs: Mapping[str, Any] = NO_ATTRS,
        weights: tuple[tuple[str, str], ...] = (),
        where: Where = Where(""),
    ) -> Node:
        """The node for this call: a new one, or with `merge` the equal one that is there already."""
        inputs = tuple(inputs)
        attrs = attrs if isinstance(attrs, Attrs) else Attrs(attrs)
        types = self.infer(op, tuple([v.type for v in inputs]), attrs)
        return self.add(Node(op, inputs, attrs, weights, where, types))

    def add(self, node: Node) -> Node:
        """Take a finished, typed node (or give back its equal)."""
        if self.merge and not self.registry[node.op].random:
            key = (node.op, node.inputs, node.attrs, node.weights, node.where.backend)
            old = self._seen.get(key)
            if old is not None:
                return old
            self._seen[key] = node
        self.nodes.append(node)
        return node

    def new(self, op: str, inputs: Iterable[Value], attrs: Mapping[str, Any] = NO_ATTRS, where: Where = Where("")) -> Node:
        """A node with fresh weights, named `where.path` + `.role`, added to the inventory."""
        inputs = tuple(inputs)
        declaration = self.registry[op]
        names = declaration.names(tuple(v.type for v in inputs), attrs, self.facts)
        pairs = []
        for rule, shape in declaration.weight_shapes(names, self.facts):
            name = f"{where.path}.{rule.path or rule.role}"
            self.weights[name] = make_weight(rule, shape, names, attrs.get("init"), False)
            pairs.append((rule.role, name))
        kept = {k: v for k, v in attrs.items() if k != "init" or "init" in declaration.formals}
        return self.emit(op, inputs, kept, tuple(pairs), where)
