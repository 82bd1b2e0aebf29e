"""Small models for tests: elaborated, run in float64 on the interpreter, run on fx."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import graphir
from graphir.backends.interpreter import Interpreter
from graphir.backends.weights import initialise
from graphir.ir.graph import Graph
from graphir.lang.diagnostic import Diagnostic, GraphirError


def model(body: str, ports: str = "x: float[B, T, 8]", result: str = "float[B, T, 8]", rest: str = "", **params: Any) -> Graph:
    """The graph of `model M(ports) -> result { body }`; a body without `return` is what it returns. `rest`: blocks beside it."""
    text = body if "return" in body else f"return {body}"
    return graphir.load(f"{rest}\nmodel M({ports}) -> {result} {{\n{text}\n}}", **params)


def problem(body: str, **options: Any) -> Diagnostic:
    """The one diagnostic of a model that is wrong."""
    with pytest.raises(GraphirError) as failed:
        model(body, **options)
    found = failed.value.diagnostics
    assert len(found) == 1, [str(d) for d in found]
    return found[0]


def random_weights(graph: Graph, seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights of which none is special: each is drawn from a normal, so that zeros and ones hide nothing."""
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(w.shape, generator=generator, dtype=torch.float64) * 0.5 for n, w in graph.weights.items()}


def initial(graph: Graph, seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights as they start, in float64."""
    return initialise(graph, seed, torch.float64)


def run(graph: Graph, weights: dict[str, torch.Tensor], *inputs: torch.Tensor, training: bool = False) -> torch.Tensor:
    """The one output on the interpreter in float64; fx agrees to rounding."""
    named = dict(zip([n for n, _ in graph.inputs], inputs))
    (out,) = Interpreter(graph, weights, torch.float64, training).run(named).values()
    if not training:
        lowered = graphir.compile(graph, weights=weights).eval()
        torch.testing.assert_close(lowered(*inputs), out, rtol=1e-9, atol=1e-9)
    return out


def tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape or (3, 5, 8), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
