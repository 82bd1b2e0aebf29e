"""Slots of compiled networks: places whose module the host program sets, swaps or takes away while the rest stays as it is."""

from __future__ import annotations

import torch
from torch import nn

from graphir.ir.graph import Graph
from graphir.lang.diagnostic import Diagnostic, GraphirError, nearest

from .modules import attribute


class Slot(nn.Module):
    """x: [*S, d] -> [*S, width]: what its module makes of x, zeros while it has none. The module's weights are `<path>.module...`.

    Raises GraphirError E0812 where the module gives another shape.
    """

    def __init__(self, path: str, width: int):
        super().__init__()
        self.path, self.width = path, width
        self.module: nn.Module | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shape = (*x.shape[:-1], self.width)
        if self.module is None:
            return x.new_zeros(shape)
        y = self.module(x)
        if tuple(y.shape) != shape:
            raise GraphirError(Diagnostic("E0812", f"the module in the slot `{self.path}` gives {list(y.shape)}, not {list(shape)}"))
        return y


def slots(network: nn.Module, graph: Graph) -> dict[str, Slot]:
    """The slots of a network by path."""
    found = {}
    for node in graph.nodes:
        if node.op == "slot":
            slot = network.get_submodule(".".join(map(attribute, node.where.path.split("."))))
            assert isinstance(slot, Slot)
            found[node.where.path] = slot
    return found


def fill(network: nn.Module, graph: Graph, path: str, module: nn.Module | None) -> None:
    """Put a module into the slot at a path; None empties it. Raises GraphirError E0812 where there is no such slot."""
    known = slots(network, graph)
    if path not in known:
        help = nearest(path, known) or ((f"there are {', '.join(known)}",) if known else ("it has none: write `slot(width)`",))
        raise GraphirError(Diagnostic("E0812", f"`{graph.name}` has no slot `{path}`", help=help))
    known[path].module = module
