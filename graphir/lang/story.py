"""The form of an entry of `graphir explain`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Code:
    title: str
    text: str
    bad: str = ""
    good: str = ""


def model(*lines: str) -> str:
    """A model from float[B, T, 8] to float[B, T, 8] with these statements."""
    body = "\n".join(f"  {line}" for line in lines)
    return f"model M(x: float[B, T, 8]) -> float[B, T, 8] {{\n{body}\n}}\n"
