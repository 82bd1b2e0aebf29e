"""torch.compile of lowered networks by region: each distinct block is compiled once, however often it is repeated.

Whole-network compilation costs time in proportion to depth and runs no faster; instances of one block share a class, so
Dynamo finds the code of the first when it meets the others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from torch import nn

from .fx import Block, Network


def compile_blocks(network: Network, **options: Any) -> Network:
    """Have torch.compile compile the network in place at its first run; it stays the fx GraphModule that it was.

    Compiled are the outermost repeated blocks, and blocks (or the whole network) within which nothing repeats. `options` go to
    torch.compile (`dynamic`, `mode`, `backend`); the backend is inductor unless said otherwise.
    """
    for region in regions(network):
        region.compile(**options)
    return network


def regions(network: Network) -> Iterator[Block]:
    """The blocks that are compiled, each as one graph."""
    classes = Counter(type(m) for m in network.modules() if isinstance(m, Block))
    yield from _regions(network, {c for c, times in classes.items() if times > 1})


def _regions(module: nn.Module, repeated: set[type]) -> Iterator[Block]:
    inside = any(type(m) in repeated for m in module.modules() if m is not module)
    if isinstance(module, Block) and (type(module) in repeated or not inside):
        yield module
        return
    for child in module.children():
        yield from _regions(child, repeated)
