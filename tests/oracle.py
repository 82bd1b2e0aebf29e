"""Does a rewriting keep the meaning? Both graphs run on the interpreter in float64, with tensors made from names and a seed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import torch

from graphir.backends.interpreter import Interpreter
from graphir.ir.dims import evaluate, free_names
from graphir.ir.graph import Graph
from graphir.passes import Recipe, apply

SIZES = {"B": 2, "T": 5}
TOLERANCE = 1e-10


def tensor(name: str, shape: Sequence[int], seed: int, dtype: str = "float", buffer: bool = False, high: int = 2) -> torch.Tensor:
    """A tensor that depends on its name, its shape and the seed alone: float64 around 0 (buffers above 0.5), integers below `high`."""
    digest = hashlib.sha256(f"{name}:{tuple(shape)}:{seed}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    if dtype == "bool":
        return torch.rand(tuple(shape), generator=generator) < 0.5
    if dtype == "int":
        return torch.randint(0, high, tuple(shape), generator=generator)
    values = torch.randn(tuple(shape), generator=generator, dtype=torch.float64)
    return values.abs() + 0.5 if buffer else 0.5 * values


def weights(graph: Graph, seed: int = 0) -> dict[str, torch.Tensor]:
    """A tensor for each weight, from its name: equal names and shapes in two graphs get equal tensors."""
    return {name: tensor(name, w.shape, seed, buffer=w.buffer) for name, w in graph.weights.items()}


def inputs(graph: Graph, seed: int = 0, sizes: Mapping[str, int] | None = None) -> dict[str, torch.Tensor]:
    """Inputs that fit the graph. Names of runtime dims that `sizes` does not give take 4."""
    names = {n for _, v in graph.inputs for d in v.type.shape for n in free_names(d)}
    known = {**dict.fromkeys(names, 4), **SIZES, **(sizes or {})}
    return {name: tensor(name, [evaluate(d, known) for d in v.type.shape], seed, v.type.dtype) for name, v in graph.inputs}


def outputs(
    graph: Graph,
    seed: int = 0,
    tensors: Mapping[str, torch.Tensor] | None = None,
    training: bool = False,
    sizes: Mapping[str, int] | None = None,
) -> dict[str, torch.Tensor]:
    """All results of the graph, auxiliary ones too (`aux.name`)."""
    torch.manual_seed(seed)
    runner = Interpreter(graph, weights(graph, seed) if tensors is None else tensors, dtype=torch.float64, training=training)
    results, aux = runner.run(inputs(graph, seed, sizes), aux=True)
    return {**results, **{f"aux.{n}": v for n, v in aux.items()}}


def assert_same(before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor], tolerance: float = TOLERANCE) -> None:
    """Equal names, shapes and dtypes, and values within `tolerance` of the largest."""
    assert before.keys() == after.keys()
    for name, wanted in before.items():
        given = after[name]
        assert given.shape == wanted.shape, name
        assert given.dtype == wanted.dtype, name
        if not wanted.is_floating_point():
            assert torch.equal(given, wanted), name
            continue
        scale = max(1e-3, float(wanted.abs().nan_to_num(0, 0, 0).max())) if wanted.numel() else 1.0
        torch.testing.assert_close(given, wanted, rtol=0, atol=tolerance * scale, equal_nan=True, msg=lambda m, name=name: f"{name}: {m}")


def assert_keeps_meaning(before: Graph, after: Graph, recipes: Sequence[Recipe] = (), seed: int = 0, training: bool = False) -> None:
    """The graphs agree on outputs; weights of `after` come from those of `before` by name, and by recipes."""
    tensors = weights(before, seed)
    new = apply(recipes, tensors, after)
    assert_same(outputs(before, seed, tensors, training), outputs(after, seed, new, training))
