"""Primitive bricks: what a declaration is, and the registry that programs name them from. `catalogue` holds the built-in ones."""

from .declare import REGISTRY, brick

__all__ = ["REGISTRY", "brick"]
