"""graphir: a language and compiler for heterogeneous neural architectures.

    graph = graphir.load("odds.arch", width=8)      # typed graph; torch is not imported
    net = graphir.compile(graph, target="cpu")      # a torch.fx GraphModule that trains

The names below are the stable interface; everything else may move.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .api import check, compile, interpret, load, open
    from .bricks.declare import brick
    from .ir.graph import Graph
    from .lang.diagnostic import Diagnostic, EnvironmentProblem, GraphirError
    from .lang.limits import Limits

_HOMES = {
    "load": "api", "check": "api", "compile": "api", "interpret": "api", "open": "api", "brick": "bricks.declare", "Graph": "ir.graph",
    "Diagnostic": "lang.diagnostic", "EnvironmentProblem": "lang.diagnostic", "GraphirError": "lang.diagnostic", "Limits": "lang.limits",
}
__all__ = ["Diagnostic", "EnvironmentProblem", "Graph", "GraphirError", "Limits", "brick", "check", "compile", "interpret", "load", "open"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'graphir' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"graphir.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
