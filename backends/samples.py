"""Inputs for a model: read from safetensors, or drawn at random within what the graph can take."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch

from graphir.ir.dims import evaluate, free_names
from graphir.ir.graph import Graph, Value
from graphir.lang.diagnostic import Diagnostic, GraphirError, nearest

from .base import bind_inputs

DEFAULT_SIZE = {"B": 2}
OTHER_SIZE = 16


def choose_sizes(graph: Graph, given: Mapping[str, int]) -> dict[str, int]:
    """Sizes of all runtime names: given ones, else 2 for B and the least multiple from 16 up that the preconditions allow."""
    names = sorted({n for _, v in graph.inputs for d in v.type.shape for n in free_names(d)})
    for name in given:
        if name not in names:
            raise GraphirError(
                Diagnostic(
                    "E0803",
                    f"`{graph.name}` has no runtime dim `{name}`",
                    help=nearest(name, names) or ((f"it has {', '.join(names)}",) if names else ()),
                )
            )
    chosen = {}
    for name in names:
        least = given.get(name, DEFAULT_SIZE.get(name, OTHER_SIZE))
        step = graph.facts.moduli.get(name, 1)
        chosen[name] = given[name] if name in given else -(-least // step) * step
    for name, dim in graph.facts.equal.items():
        if name in chosen and name not in given:
            chosen[name] = evaluate(dim, chosen)
    return chosen


def sample_inputs(graph: Graph, sizes: Mapping[str, int], seed: int = 0) -> dict[str, torch.Tensor]:
    """Random inputs by name: normal floats, integers below the smallest table they index, masks that are mostly true."""
    generator = torch.Generator().manual_seed(seed)
    chosen = choose_sizes(graph, sizes)
    inputs: dict[str, torch.Tensor] = {}
    for name, value in graph.inputs:
        shape = value.type.sizes(chosen)
        if value.type.dtype == "float":
            inputs[name] = torch.randn(shape, generator=generator)
        elif value.type.dtype == "int":
            inputs[name] = torch.randint(0, bound(graph, value, chosen), shape, generator=generator)
        else:
            mask = torch.rand(shape, generator=generator) < 0.8
            inputs[name] = mask | (torch.arange(shape[-1]) == 0) if shape else mask
    bind_inputs(graph, inputs)
    return inputs


def bound(graph: Graph, value: Value, sizes: Mapping[str, int]) -> int:
    """The least length of any table or axis that an integer input indexes; 2 where it indexes none."""
    reached = {value}
    limits: list[int] = []
    for node in graph.nodes:
        if not reached.intersection(node.inputs):
            continue
        if node.op == "embedding":
            limits.append(node.attrs["size"])
        elif node.op == "one_hot":
            limits.append(evaluate(node.attrs["n"], sizes))
        elif node.op in ("gather", "scatter_add") and node.inputs[0] not in reached:
            limits.append(evaluate(node.inputs[0].type.shape[node.attrs["axis"]], sizes))
        reached.update(v for v in node.outputs if v.type.dtype == "int")
    return max(1, min(limits, default=2))


def read_inputs(path: str | os.PathLike[str], graph: Graph) -> dict[str, torch.Tensor]:
    """The model's inputs out of a safetensors file, checked. Raises GraphirError E0802, E0803, E0804."""
    from .weights import read_tensors

    found = read_tensors(path)
    inputs = {name: found[name] for name, _ in graph.inputs if name in found}
    inputs = {n: t.long() if t.dtype in (torch.int32, torch.int16, torch.uint8, torch.int8) else t for n, t in inputs.items()}
    bind_inputs(graph, inputs)
    return inputs
