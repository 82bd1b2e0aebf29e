"""Least-squares initialisation of stitches from a calibration batch, after SN-Net: [W | b] = pinv([X 1]) Y.

X is what reaches the stitch when the model runs on the batch, Y the activation that its consumer was trained on. A stitch of
two thin maps takes the best map of its rank; of a small network the last map is fitted, behind the hidden layer as it starts.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch.nn import functional as F

from graphir.ir.graph import Graph, Node
from graphir.lang.diagnostic import Diagnostic, GraphirError, nearest

from .interpreter import Interpreter
from .weights import initialise, read_tensors

Tensors = Mapping[str, torch.Tensor]


class Fit(NamedTuple):
    """One fitted stitch: its path, how many rows of the batch it saw, the root mean square residual before and after."""

    path: str
    rows: int
    before: float
    after: float

    def __str__(self) -> str:
        return f"{self.path}: residual {self.before:.4g} -> {self.after:.4g} on {self.rows} rows"


def fit_stitches(graph: Graph, weights: Tensors, inputs: Tensors, targets: Tensors) -> tuple[dict[str, torch.Tensor], list[Fit]]:
    """The weights with the stitches that `targets` names fitted on a batch of inputs, in the order of the model, and what that gained.

    `targets`: for the path of each stitch, the tensor [*S, out] that it should give for these inputs. Later stitches see what
    fitted earlier ones give. A stitch shared by several calls is fitted to all of them at once. Raises GraphirError E0708 for a
    path that is no stitch and for a target of the wrong shape.
    """
    stitches = {n.where.path: n for n in graph.nodes if n.op == "stitch"}
    all_of_them = (f"it has {', '.join(stitches) or 'none'}",)
    unknown = [
        Diagnostic("E0708", f"`{path}` is no stitch of `{graph.name}`", help=nearest(path, stitches) or all_of_them)
        for path in targets if path not in stitches
    ]
    if unknown:
        raise GraphirError(unknown)
    fitted = {n: t.detach().clone() for n, t in weights.items()}
    groups: dict[tuple[tuple[str, str], ...], list[Node]] = {}
    for path, node in stitches.items():
        if path in targets:
            groups.setdefault(node.weights, []).append(node)
    fits = [_fit(graph, nodes, fitted, inputs, targets) for nodes in groups.values()]
    return fitted, fits


def _fit(graph: Graph, nodes: Sequence[Node], weights: dict[str, torch.Tensor], inputs: Tensors, targets: Tensors) -> Fit:
    """Fit one set of weights, in place."""
    form, sources = nodes[0].attrs["form"], _values(graph, nodes, weights, inputs)
    x, y = [], []
    for node, source in zip(nodes, sources):
        target = targets[node.where.path]
        wanted = (*source.shape[:-1], node.attrs["out"])
        if tuple(target.shape) != wanted:
            message = f"the target of `{node.where.path}` is {list(target.shape)}, not {list(wanted)}"
            raise GraphirError(Diagnostic("E0708", message, node.where.span))
        x.append(source.flatten(0, -2))
        y.append(target.double().flatten(0, -2))
    rows, wanted_rows = torch.cat(x), torch.cat(y)
    roles = {role: weights[name].double() for role, name in nodes[0].weights}
    before = _residual(roles, form, rows, wanted_rows)
    new = _FORMS[form](roles, rows, wanted_rows)
    for role, name in nodes[0].weights:
        weights[name] = new[role].to(weights[name].dtype)
    return Fit(nodes[0].where.path, len(rows), before, _residual(new, form, rows, wanted_rows))


def _values(graph: Graph, nodes: Sequence[Node], weights: Tensors, inputs: Tensors) -> list[torch.Tensor]:
    """What reaches these nodes, in float64."""
    last = max(graph.nodes.index(n) for n in nodes)
    wanted = {str(i): n.inputs[0] for i, n in enumerate(nodes)}
    part = graph.with_(nodes=graph.nodes[:last], outputs=tuple(wanted.items()), aux=())
    with torch.no_grad():
        return list(Interpreter(part, weights, torch.float64).run(inputs).values())


def _affine(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The W [out, i] and b [out] of least squares, of the smallest norm where the rows leave them open."""
    ones = torch.ones(len(x), 1, dtype=x.dtype)
    solved = torch.linalg.lstsq(torch.cat([x, ones], 1), y, driver="gelsd").solution
    return solved[:-1].T, solved[-1]


def _linear(roles: Tensors, x: torch.Tensor, y: torch.Tensor) -> Tensors:
    weight, bias = _affine(x, y)
    return {"weight": weight, "bias": bias}


def _mlp(roles: Tensors, x: torch.Tensor, y: torch.Tensor) -> Tensors:
    weight, bias = _affine(F.gelu(F.linear(x, roles["weight_in"], roles["bias_in"])), y)
    return {**roles, "weight": weight, "bias": bias}


def _low_rank(roles: Tensors, x: torch.Tensor, y: torch.Tensor) -> Tensors:
    """The best map of the stitch's rank: the full one, projected onto the leading directions of what it gives."""
    full, _ = _affine(x, y)
    centred = x - x.mean(0)
    directions = torch.linalg.svd(F.linear(centred, full), full_matrices=False).Vh[: len(roles["weight_in"])]
    thin = directions @ full
    missing = len(roles["weight_in"]) - len(thin)
    if missing:  # fewer rows or outputs than the rank: the other inner channels give nothing
        directions, thin = F.pad(directions, (0, 0, 0, missing)), F.pad(thin, (0, 0, 0, missing))
    return {**roles, "weight": directions.T, "bias": y.mean(0) - directions.T @ (thin @ x.mean(0)), "weight_in": thin}


_FORMS = {"linear": _linear, "mlp": _mlp, "low-rank": _low_rank}


def _residual(roles: Tensors, form: str, x: torch.Tensor, y: torch.Tensor) -> float:
    if form != "linear":
        x = F.linear(x, roles["weight_in"], roles.get("bias_in"))
        x = F.gelu(x) if form == "mlp" else x
    return float((F.linear(x, roles["weight"], roles["bias"]) - y).square().mean().sqrt())


def activations(graph: Graph, weights: Tensors, inputs: Tensors, paths: Sequence[str]) -> dict[str, torch.Tensor]:
    """What a model computes at some paths, in float64: the result of the last node at or below each. Raises GraphirError E0701."""
    found = {}
    for path in paths:
        below = [n for n in graph.nodes if n.where.path == path or n.where.path.startswith(path + ".")]
        if not below:
            known = [n.where.path for n in graph.nodes]
            help = nearest(path, known) or ("`graphir summary` lists them",)
            raise GraphirError(Diagnostic("E0701", f"`{path}` is no place of `{graph.name}`", help=help))
        found[path] = below[-1].outputs[0]
    with torch.no_grad():
        return dict(Interpreter(graph.with_(outputs=tuple(found.items()), aux=()), weights, torch.float64).run(inputs))


def load_without_stitches(path: str | os.PathLike[str], graph: Graph, seed: int = 0) -> dict[str, torch.Tensor]:
    """A model's weights from a safetensors file that may lack those of its stitches, which start from the seed.

    Raises GraphirError E0801 with everything that does not fit, E0802 for what is no safetensors file.
    """
    found, where = read_tensors(path), os.fspath(path)
    stitches = {name for n in graph.nodes if n.op == "stitch" for _, name in n.weights}
    problems = []
    for name, weight in graph.weights.items():
        if name not in found and name not in stitches:
            problems.append(Diagnostic("E0801", f"weight `{name}` {list(weight.shape)} is not in `{where}`", help=nearest(name, found)))
        elif name in found and tuple(found[name].shape) != weight.shape:
            problems.append(Diagnostic("E0801", f"weight `{name}` is {list(found[name].shape)} in `{where}`, not {list(weight.shape)}"))
    for name in found:
        if name not in graph.weights:
            message = f"`{where}` holds `{name}`, which is no weight of `{graph.name}`"
            problems.append(Diagnostic("E0801", message, help=nearest(name, graph.weights)))
    if problems:
        raise GraphirError(problems)
    fresh = initialise(graph.with_(weights={n: w for n, w in graph.weights.items() if n not in found}), seed)
    return {n: found[n] if n in found else fresh[n] for n in graph.weights}
