"""What the tests of stateful bricks share: random inputs and weights from an example, and decoding by pieces."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from graphir.bricks.call import arguments, call, read_example
from graphir.bricks.declare import REGISTRY, Declaration
from graphir.ir.dims import Facts
from graphir.ir.graph import Attrs
from graphir.ir.types import Type

SIZES = {"B": 2, "T": 7, "S": 9}


class Case:
    """One brick with random inputs and weights; `change` maps an input's name to what makes it valid (decays below zero, say)."""

    def __init__(
        self, text: str, change: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] | None = None, dtype: torch.dtype = torch.float64
    ):
        name = text.partition(" : ")[0].partition("(")[0]
        self.declaration: Declaration = REGISTRY[name]
        self.attrs, types = read_example(self.declaration, text)
        self.types = tuple(Type(t.dtype, t.sizes(SIZES)) for t in types)
        self.generator = torch.Generator().manual_seed(0)
        self.ports = [p.name for p in self.declaration.given_ports(self.attrs)]
        self.names = self.declaration.names(self.types, self.attrs, Facts())
        self.inputs = [self._random(t, dtype) for t in self.types]
        for port, function in (change or {}).items():
            at = self.ports.index(port)
            self.inputs[at] = function(self.inputs[at])
        shapes = self.declaration.weight_shapes(self.names, Facts())
        self.weights = {rule.role: torch.randn(shape, generator=self.generator, dtype=dtype) * 0.5 for rule, shape in shapes}
        self.dtype = dtype

    def _random(self, type: Type, dtype: torch.dtype) -> torch.Tensor:
        sizes = type.sizes(SIZES)
        if type.dtype == "float":
            return torch.randn(sizes, generator=self.generator, dtype=dtype)
        whole = torch.randint(0, 2 if type.dtype == "bool" else 5, sizes, generator=self.generator)
        return whole.bool() if type.dtype == "bool" else whole

    def whole(self, inputs: Sequence[torch.Tensor] | None = None, **attrs: Any) -> torch.Tensor:
        (y,) = call(self.declaration, inputs or self.inputs, self.weights, Attrs(self.attrs | attrs))
        return y

    def start(self) -> dict[str, torch.Tensor]:
        rule = self.declaration.state
        assert rule is not None
        state = {}
        for name, (shape, dtype) in rule.init(self.types, self.names).items():
            assert all(isinstance(d, int) for d in shape)
            exact = {"float": self.dtype, "int": torch.long, "bool": torch.bool}[dtype]
            state[name] = torch.full(shape, rule.fill.get(name, 0), dtype=exact)
        return state

    def step(self, state: dict[str, torch.Tensor], inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        positional, keyword = arguments(self.declaration, inputs, self.weights, self.attrs)
        assert self.declaration.state is not None
        before = {k: v.clone() for k, v in state.items()}
        y, after = self.declaration.state.step(state, *positional, **keyword)
        assert set(after) == set(before), "a step keeps the names of its state"
        assert all(torch.equal(state[k], before[k]) for k in before), "a step never writes into the state it was given"
        return y, after

    def pieces(self, lengths: Sequence[int], axes: dict[str, int], state: dict[str, torch.Tensor] | None = None) -> list[torch.Tensor]:
        """The outputs of consecutive steps over the inputs cut along `axes[port]`; a port that is not named is given whole each time."""
        state = self.start() if state is None else state
        outputs, at = [], 0
        for length in lengths:
            part = [x.narrow(axes[p], at, length) if p in axes else x for p, x in zip(self.ports, self.inputs)]
            y, state = self.step(state, part)
            outputs.append(y)
            at += length
        self.state = state
        return outputs
