"""`torch`, imported at the first attribute that anybody asks for: declaring bricks must not load it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    import torch.nn.functional as F
else:

    class _Lazy:
        def __init__(self, name: str):
            self._name = name

        def __getattr__(self, attribute: str) -> Any:
            import importlib

            value = getattr(importlib.import_module(self._name), attribute)
            setattr(self, attribute, value)
            return value

    torch = _Lazy("torch")
    F = _Lazy("torch.nn.functional")

__all__ = ["F", "torch"]
