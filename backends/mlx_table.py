"""All bricks that MLX runs, by name. Reading it needs neither MLX nor torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from . import mlx_mixers  # noqa: F401  (enters its bricks)
from .mlx_bricks import BRICKS

TABLE: Mapping[str, Callable[..., Any]] = BRICKS
