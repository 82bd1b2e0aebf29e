"""All bricks that MLX runs, by name. Reading it needs neither MLX nor torch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from graphir.ir.graph import Node

from . import mlx_mixers  # noqa: F401  (enters its bricks)
from .base import declaration_of, telling_attrs
from .mlx_bricks import BRICKS

TABLE: Mapping[str, Callable[..., Any]] = BRICKS


def accepts(node: Node) -> bool:
    """Whether MLX has an implementation that takes what this node gives it."""
    function = TABLE.get(node.op)
    if function is None:
        return False
    declaration = declaration_of(node)
    if any(rule.buffer for rule in declaration.weights):
        return False
    known = inspect.signature(function).parameters
    named = {*telling_attrs(declaration, node.attrs), *[role for role, _ in node.weights], *node.attrs.get("given", ())} - {"given"}
    return named <= known.keys()
