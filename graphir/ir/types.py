"""The type of a value: what its elements are and how long each axis is. Precision is chosen at run time, not here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .dims import Dim, evaluate

DTYPES = ("float", "int", "bool")


@dataclass(frozen=True, slots=True)
class Type:
    """`float[B, T, 512]`: an element type and a shape whose dims are integers or runtime names."""

    dtype: str
    shape: tuple[Dim, ...]

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"

    def sizes(self, names: Mapping[str, int]) -> tuple[int, ...]:
        """The shape in integers under the given sizes of runtime names."""
        return tuple(evaluate(d, names) for d in self.shape)
