"""`torch`, imported at the first attribute that anybody asks for: declaring bricks must not load it.

Tracing compilers must find it loaded, since an import cannot be traced: who compiles calls `load` before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    import torch.nn.functional as F
    from torch import Tensor
else:

    class _Lazy:
        def __getattr__(self, attribute: str) -> Any:
            load()
            return self.__dict__[attribute]

    torch = _Lazy()
    F = _Lazy()
    Tensor = Any  # for annotations alone


def load() -> None:
    """Import torch, let both names hold all that it has, and register the operators that graphir adds to it."""
    import torch as module

    from .recurrent_ops import register

    for lazy, real in ((torch, module), (F, module.nn.functional)):
        lazy.__dict__.update({k: v for k, v in vars(real).items() if not k.startswith("__")})
    register()


__all__ = ["F", "Tensor", "load", "torch"]
