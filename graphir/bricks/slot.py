"""The slot: an interface in a model that may stay empty, and whose module the host program changes at run time."""

from __future__ import annotations

from .declare import brick
from .torch_lazy import torch


@brick(
    "slot(width)(x: [*S, d]) -> [*S, width]",
    require=("width >= 1",),
    random=True,
    examples=("slot(4) : float[B, T, 6]",),
    source="modular neural composition (slots)",
)
def slot(x: torch.Tensor, width: int) -> torch.Tensor:
    """Zeros [*S, width] while empty, else what its module makes of x: [*S, d]; `net.set_slot(path, module)` fills it.

    Slots are never merged: equal ones may be given different modules.
    """
    return x.new_zeros(*x.shape[:-1], width)
