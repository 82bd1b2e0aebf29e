"""The built-in primitives: importing this registers them all. An explicit table, so that what programs may name is seen in one place."""

from __future__ import annotations

from . import (
    activation,
    attention,
    basic,
    conv,
    index,
    join,
    linear_attention,
    losses,
    mlstm,
    norm,
    pointwise,
    pooling,
    positions,
    recurrent,
    route,
    rwkv,
    simplex,
    ssm,
    state,
    stitch,
    tensor,
)

FAMILIES = {
    "tensors": tensor,
    "places": index,
    "elements": pointwise,
    "pools": pooling,
    "basic": basic,
    "norms": norm,
    "activations": activation,
    "attention": attention,
    "positions": positions,
    "state": state,
    "convolutions": conv,
    "recurrences": recurrent,
    "mLSTM": mlstm,
    "linear attention": linear_attention,
    "state spaces": ssm,
    "RWKV": rwkv,
    "joins": join,
    "routing": route,
    "normalisers": simplex,
    "losses": losses,
    "stitches": stitch,
}
"""Heading of the manual -> module."""
