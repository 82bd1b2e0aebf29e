"""torch.export of lowered networks: `.pt2` bytes with the runtime dims that the model's types declare left open."""

from __future__ import annotations

import io
from typing import Any

import torch

from graphir.ir.graph import Graph
from graphir.ir.types import Type
from graphir.lang.diagnostic import Diagnostic, GraphirError

from .base import gives
from .fx import Network

SMALLEST = 2  # torch.export takes a length of 0 or 1 for a constant


def export(network: Network) -> Any:
    """The `torch.export.ExportedProgram` of a network. Raises GraphirError E0808 where torch cannot export it as declared."""
    graph = network.graphir
    away = next((node for node in graph.nodes if node.where.backend in ("mlx", "interpreter")), None)
    if away is not None:
        message = f"torch.export cannot export `{graph.name}`: `{away.where.path}` is on {away.where.backend}"
        raise GraphirError(Diagnostic("E0808", message, away.where.span, help=("put it on fx: `--passes place{override=true}`",)))
    sizes = example_sizes(graph)
    device = next((t.device for t in network.state_dict().values()), torch.device("cpu"))
    floats = next((t.dtype for t in network.state_dict().values()), torch.float32)
    kinds = {"float": floats, "int": torch.int64, "bool": torch.bool}
    inputs = tuple(torch.zeros(v.type.sizes(sizes), dtype=kinds[v.type.dtype], device=device) for _, v in graph.inputs)
    dims = _dims(graph)
    shapes = {argument: _axes(value.type, dims) for argument, (_, value) in zip(network.input_names.values(), graph.inputs)}
    try:
        return torch.export.export(network, inputs, dynamic_shapes=shapes)
    except Exception as e:
        reason = (str(e).strip() or type(e).__name__).splitlines()[0]
        raise GraphirError(Diagnostic("E0808", f"torch.export cannot export `{graph.name}`: {reason}")) from e


def to_bytes(network: Network) -> bytes:
    """What `torch.export.save` writes for the network."""
    buffer = io.BytesIO()
    torch.export.save(export(network), buffer)
    return buffer.getvalue()


def example_sizes(graph: Graph) -> dict[str, int]:
    """A size for each runtime name of the inputs: different ones, which the model's divisibility conditions allow."""
    names = dict.fromkeys(known[0] for _, v in graph.inputs for d in v.type.shape if (known := gives(d)))
    moduli = graph.facts.moduli
    return {name: (SMALLEST + place) * moduli.get(name, 1) for place, name in enumerate(names)}


def _dims(graph: Graph) -> dict[str, Any]:
    """For each runtime name an open dim, a multiple of one where the model requires that."""
    moduli = graph.facts.moduli
    dims = {}
    for name in example_sizes(graph):
        modulus = moduli.get(name, 1)
        dims[name] = torch.export.Dim(name) if modulus == 1 else modulus * torch.export.Dim(f"{name}_{modulus}")
    return dims


def _axes(type: Type, dims: dict[str, Any]) -> dict[int, Any]:
    axes = {}
    for axis, dim in enumerate(type.shape):
        if isinstance(dim, int):
            continue
        known = gives(dim)
        if known is None or (known[1:] != (1, 0) and known[0] not in dims):
            axes[axis] = torch.export.Dim.AUTO
            continue
        name, factor, constant = known
        scaled = dims[name] if factor == 1 else factor * dims[name]
        axes[axis] = scaled if not constant else scaled + constant
    return axes
