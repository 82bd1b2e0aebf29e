"""How new weights follow from old ones.

A pass rewrites a graph without touching a tensor; where it needs new weights it adds a recipe for each. Applying the list
to a mapping of tensors, in order, gives the tensors that the rewritten graph names. Recipes are data: they print, and their
functions are the ones below.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..ir.graph import Graph, Weight

if TYPE_CHECKING:
    import torch

DERIVED = "derived"  # the init of a weight that has no start of its own: it comes out of a recipe


@dataclass(frozen=True, slots=True)
class Recipe:
    """`target = how(**sources, **settings)`; sources are (argument, weight name) pairs."""

    target: str
    how: str
    sources: tuple[tuple[str, str], ...]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        arguments = [f"{k}={v}" for k, v in (*self.sources, *self.settings.items())]
        return f"{self.target} = {self.how}({', '.join(arguments)})"


def apply(recipes: Iterable[Recipe], tensors: Mapping[str, torch.Tensor], graph: Graph) -> dict[str, torch.Tensor]:
    """The tensors that `graph` names, made from `tensors` by the recipes. KeyError where one is missing."""
    known = dict(tensors)
    for recipe in recipes:
        sources = {argument: known[name] for argument, name in recipe.sources}
        known[recipe.target] = HOW[recipe.how](**sources, **recipe.settings)
    return {name: known[name] for name in graph.weights}


def starting_weights(before: Graph, after: Graph) -> dict[str, Weight]:
    """The weights to initialise before recipes are applied: those of the graph as loaded, as the passes have left or made them."""
    return {**before.weights, **{name: w for name, w in after.weights.items() if w.init != DERIVED}}


def concatenated(**parts: torch.Tensor) -> torch.Tensor:
    """[o1, ...], [o2, ...] -> [o1 + o2, ...], in the order given."""
    import torch

    return torch.cat(list(parts.values()))


def scaled_columns(weight: torch.Tensor, scale: torch.Tensor, offset: float = 0.0) -> torch.Tensor:
    """weight: [o, i], scale: [i] -> [o, i]; what multiplies the input moves into the columns."""
    return weight * (scale + offset)


def shifted_bias(weight: torch.Tensor, shift: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """weight: [o, i], shift: [i], bias: [o] -> [o]; what is added to the input moves into the bias."""
    moved = weight @ shift
    return moved if bias is None else moved + bias


def normalised_rows(weight: torch.Tensor, variance: torch.Tensor, scale: torch.Tensor | None = None, eps: float = 1e-5) -> torch.Tensor:
    """weight: [o, ...], variance, scale: [o] -> [o, ...]; a batch norm's factor moves into the filters before it."""
    return weight * _factor(variance, scale, eps).reshape(-1, *[1] * (weight.dim() - 1))


def normalised_bias(
    mean: torch.Tensor,
    variance: torch.Tensor,
    scale: torch.Tensor | None = None,
    shift: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
) -> torch.Tensor:
    """All [o] -> [o]; (bias - mean) * scale / sqrt(variance + eps) + shift."""
    moved = (-mean if bias is None else bias - mean) * _factor(variance, scale, eps)
    return moved if shift is None else moved + shift


def _factor(variance: torch.Tensor, scale: torch.Tensor | None, eps: float) -> torch.Tensor:
    factor = (variance + eps).rsqrt()
    return factor if scale is None else factor * scale


HOW: Mapping[str, Callable[..., Any]] = {
    f.__name__: f for f in (concatenated, scaled_columns, shifted_bias, normalised_rows, normalised_bias)
}
