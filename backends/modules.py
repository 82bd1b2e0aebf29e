"""Paths as module trees: names that Python and torch can live with, and putting things at their paths.

A module under the path `lambda` is reached as the attribute `lambda_` and keeps `lambda` in the state dict: the attribute is a
plain alias. A parameter whose own name would clash (never one of a registered brick) is refused.
"""

from __future__ import annotations

import builtins
import keyword

import torch
from torch import fx, nn
from torch.fx.graph import _custom_builtins

from graphir.ir.graph import Weight
from graphir.lang.diagnostic import Diagnostic, GraphirError

LIKE = "_like"
DECODING = "_decoding"
_OWN = {"graphir", "input_names", "output_names", "mode", "like", "start", LIKE, DECODING, "", *keyword.kwlist}
_TAKEN = frozenset(n.rstrip("_") for n in [*dir(fx.GraphModule), *vars(fx.GraphModule(nn.Module(), fx.Graph())), *_OWN])
# Generated code may call builtins; these it never calls, and they are good names for inputs.
_HARMLESS = {"input", "id", "filter", "map", "format", "object", "hash"}
_ARGUMENTS = frozenset(
    n.rstrip("_") for n in [*(set(dir(builtins)) - _HARMLESS), *_custom_builtins, *keyword.kwlist, "self", "aux", "operator", "math", ""]
)


def attribute(segment: str) -> str:
    """The Python attribute of a path segment: itself, or with `_` appended; no two segments share one."""
    return f"{segment}_" if segment.rstrip("_") in _TAKEN else segment


def argument(name: str) -> str:
    """The Python parameter of a model input: itself, or with `_` appended; no two inputs share one."""
    taken = name.rstrip("_") in _ARGUMENTS or name.startswith("graphir")
    return f"{name}_" if taken else name


class Named:
    """For modules whose parts may be called what torch sets on modules (`training`): such a value stands beside the part."""

    def __setattr__(self, name: str, value: object) -> None:
        if name in self.__dict__.get("_modules", ()) and not isinstance(value, nn.Module):
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)


class Scope(Named, nn.Module):
    """A plain place in the tree of names."""


def parameter(weight: Weight, tensor: torch.Tensor) -> nn.Parameter | torch.Tensor:
    return tensor if weight.buffer else nn.Parameter(tensor, requires_grad=not weight.frozen)


def attach(module: nn.Module, path: str, thing: nn.Module | nn.Parameter | torch.Tensor) -> None:
    """Put a module, parameter or buffer at a path, with plain modules in between; under its own name, whatever that is."""
    *scopes, last = path.split(".")
    for segment in scopes:
        below = module._modules.get(segment)
        if below is None:
            below = Scope()
            _attach_module(module, segment, below)
        module = below
    if isinstance(thing, nn.Module):
        _attach_module(module, last, thing)
    elif attribute(last) != last:
        raise GraphirError(Diagnostic("E0805", f"a weight cannot be called `{last}`: torch modules have something else of that name"))
    elif isinstance(thing, nn.Parameter):
        module._parameters[last] = thing
    else:
        module._buffers[last] = thing


def _attach_module(parent: nn.Module, segment: str, child: nn.Module) -> None:
    assert segment not in parent._modules, segment
    parent._modules[segment] = child
    alias = attribute(segment)
    if alias != segment:
        parent.__dict__[alias] = child
