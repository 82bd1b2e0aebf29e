"""graphir: a language and compiler for heterogeneous neural architectures.

    graph = graphir.load("odds.arch", width=8)      # typed graph; torch is not imported
    net = graphir.compile(graph, target="cpu")      # a torch.fx GraphModule that trains

The names below are the stable interface; everything else may move.
"""

from __future__ import annotations

from importlib import import_module
from os import path as _path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# In a checkout `passes` and `backends` lie beside this folder; installed, they lie in it. Python started in the root of a checkout
# finds this folder first, whatever is installed, and has to find them too.
_CHECKOUT = _path.dirname(_path.dirname(_path.abspath(__file__)))
if _path.isfile(_path.join(_CHECKOUT, "passes", "catalogue.py")) and _path.isfile(_path.join(_CHECKOUT, "pyproject.toml")):
    __path__.append(_CHECKOUT)

if TYPE_CHECKING:
    from .api import check, compile, interpret, load, open, total_loss
    from .backends.groups import parameter_groups
    from .backends.hosts import Graft, graft_module, register_host
    from .backends.stitch_fit import fit_stitches
    from .bricks.declare import brick
    from .ir.graph import Graph
    from .lang.diagnostic import Diagnostic, EnvironmentProblem, GraphirError
    from .lang.limits import Limits

_HOMES = {
    "load": "api",
    "check": "api",
    "compile": "api",
    "interpret": "api",
    "open": "api",
    "total_loss": "api",
    "fit_stitches": "backends.stitch_fit",
    "parameter_groups": "backends.groups",
    "Graft": "backends.hosts",
    "graft_module": "backends.hosts",
    "register_host": "backends.hosts",
    "brick": "bricks.declare",
    "Graph": "ir.graph",
    "Diagnostic": "lang.diagnostic",
    "EnvironmentProblem": "lang.diagnostic",
    "GraphirError": "lang.diagnostic",
    "Limits": "lang.limits",
}
__all__ = [
    "Diagnostic",
    "EnvironmentProblem",
    "Graft",
    "Graph",
    "GraphirError",
    "Limits",
    "brick",
    "check",
    "compile",
    "fit_stitches",
    "graft_module",
    "interpret",
    "load",
    "open",
    "parameter_groups",
    "register_host",
    "total_loss",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'graphir' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"graphir.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
