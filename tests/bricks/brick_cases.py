"""Running a declared brick on random tensors of its examples' types."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from graphir.bricks import catalogue  # noqa: F401
from graphir.bricks.call import call, complete, concrete, read_example
from graphir.bricks.declare import REGISTRY, Declaration
from graphir.ir.dims import Facts
from graphir.ir.graph import Attrs
from graphir.ir.types import Type

FACTS = Facts()
SIZES = {"B": 2, "T": 5, "S": 3, "C": 3, "H": 4, "W": 6}
DTYPES = {"int": torch.int64, "bool": torch.bool}
POSITIVE = {"log", "sqrt", "rsqrt", "power"}


@dataclass
class Case:
    declaration: Declaration
    text: str
    attrs: Attrs
    types: tuple[Type, ...]

    @property
    def results(self) -> tuple[Type, ...]:
        return self.declaration.infer(self.types, self.attrs, FACTS)

    def inputs(self, dtype: torch.dtype = torch.float64, sizes: dict[str, int] = SIZES, seed: int = 0) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return [random_of(t, sizes, dtype, generator, self.declaration.name in POSITIVE) for t in self.types]

    def weights(self, dtype: torch.dtype = torch.float64, seed: int = 1) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        names = self.declaration.names(self.types, self.attrs, FACTS)
        shapes = self.declaration.weight_shapes(names, FACTS)
        made = {r.role: torch.randn(s, generator=generator, dtype=torch.float64) * 0.5 for r, s in shapes}
        return {role: (w.abs() + 0.1 if role == "running_var" else w).to(dtype) for role, w in made.items()}

    def run(self, inputs: list[torch.Tensor], weights: dict[str, torch.Tensor], sizes: dict[str, int] = SIZES, **context: Any):
        return call(self.declaration, inputs, weights, {k: concrete(v, sizes) for k, v in self.attrs.items()}, **context)


def random_of(type: Type, sizes: dict[str, int], dtype: torch.dtype, generator: torch.Generator, positive: bool) -> torch.Tensor:
    shape = type.sizes(sizes)
    if type.dtype == "int":
        return torch.randint(0, 2, shape, generator=generator)
    if type.dtype == "bool":
        return torch.rand(shape, generator=generator) > 0.4
    drawn = torch.rand(shape, generator=generator, dtype=torch.float64) + 0.2 if positive else None
    return (torch.randn(shape, generator=generator, dtype=torch.float64) if drawn is None else drawn).to(dtype)


def case(name: str, text: str) -> Case:
    declaration = REGISTRY[name]
    attrs, types = read_example(declaration, text)
    return Case(declaration, text, complete(declaration, types, attrs, FACTS), types)


def use(text: str, *inputs: torch.Tensor, training: bool = False, **weights: torch.Tensor) -> Any:
    """Apply a brick written as in a program, `softmax(temperature = 0.5)`, to tensors; its one result, or the tuple of several."""
    kinds = {torch.int64: "int", torch.bool: "bool"}
    shown = ", ".join(f"{kinds.get(x.dtype, 'float')}[{', '.join(map(str, x.shape))}]" for x in inputs)
    it = case(text.split("(")[0], f"{text} : {shown}" if shown else text)
    results = it.results
    out = it.run(list(inputs), weights, training=training)
    assert [tuple(r.shape) for r in out] == [t.sizes({}) for t in results]
    return out[0] if len(out) == 1 else out


EXAMPLES = [(d.name, text) for d in REGISTRY for text in d.examples]
