"""A reference model: its recorded tensors, and the program, name table and case file that reproduce it. Data, no code per model.

`case.toml` beside the recorded files says

    steps = ["tokens"]                        # inputs that decoding gives token by token; the others whole, at each step
    same = ["chunk"]                          # parameters that change how, not what, is computed
    nowhere = ["*.rotary_emb"]                # hidden states of theirs that we have no value for
    [params]                                  # our parameters for the reference's configuration
    [inputs]                                  # theirs = ours
    [zeros]                                   # inputs of ours that they fill with zeros = an input of that shape
    [outputs]
    [hidden]                                  # theirs = a node path of ours, or a scope, which stands for its last node
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

import graphir
from graphir.backends.names import NameTable, apply_names, read_names
from graphir.ir.graph import Graph, Value
from graphir.ir.scalar import evaluate
from graphir.lang.parser import parse_expression
from graphir.lang.source import Source

HERE = Path(__file__).parent
MODELS = HERE.parents[1] / "examples" / "models"
NAMES = sorted(p.parent.name for p in HERE.glob("*/case.toml"))
HOLE = re.compile(r"\{([^{}]*)\}")


class Reference:
    """One recorded model. Attributes are read only."""

    def __init__(self, name: str):
        folder = HERE / name
        self.name = name
        self.meta = json.loads((folder / "meta.json").read_text())
        self.case = tomllib.loads((folder / "case.toml").read_text())
        self.foreign = load_file(folder / "weights.safetensors")
        self.recorded = load_file(folder / "io.safetensors")
        self.program = MODELS / f"{name}.arch"
        self.params: dict[str, Any] = self.case["params"]
        self.atol: float = self.meta["suggested_atol"]

    @cached_property
    def graph(self) -> Graph:
        return graphir.load(self.program, self.case.get("model"), **self.params)

    @cached_property
    def table(self) -> NameTable:
        return read_names((MODELS / f"{self.name}.names.toml").read_text(), f"{self.name}.names.toml")

    def weights(self, graph: Graph | None = None, foreign: Mapping[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
        """Our weights out of theirs; differentiable where theirs are."""
        return apply_names(self.table, self.foreign if foreign is None else foreign, graph or self.graph)

    def inputs(self) -> dict[str, torch.Tensor]:
        """The recorded inputs under our names; masks as truth values."""
        types = {name: value.type.dtype for name, value in self.graph.inputs}
        ours = {self.case["inputs"][k.removeprefix("in.")]: v for k, v in self.recorded.items() if k.startswith("in.")}
        ours |= {name: torch.zeros_like(ours[like]) for name, like in self.case.get("zeros", {}).items()}
        return {name: tensor.bool() if types[name] == "bool" else tensor for name, tensor in ours.items()}

    def outputs(self, made: Mapping[str, torch.Tensor]) -> list[tuple[str, torch.Tensor, torch.Tensor]]:
        """(their name, what we made, what they recorded), in the order of their names."""
        renamed = self.case.get("outputs", {})
        wanted = sorted(k for k in self.recorded if k.startswith("out."))
        return [(k, made[renamed.get(k[4:], k[4:])], self.recorded[k]) for k in wanted]

    def loss(self, made: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The seeded scalar of `grad_loss_recipe`: outputs in the order of their names, against normal numbers drawn in that order."""
        seed = int(re.search(r"manual_seed\((\d+)\)", self.meta["grad_loss_recipe"])[1])
        generator = torch.Generator("cpu").manual_seed(seed)
        terms = [(ours * torch.randn(theirs.shape, generator=generator)).sum() for _, ours, theirs in self.outputs(made)]
        return torch.stack(terms).sum()

    def hidden(self) -> dict[str, str]:
        """For each recorded hidden state its place in our graph. KeyError for one that the case says nothing of."""
        rules = [(re.compile(HOLE.sub(lambda h: rf"(?P<{h[1]}>\d+)", re.escape(k).replace(r"\{", "{").replace(r"\}", "}"))), v)
                 for k, v in self.case.get("hidden", {}).items()]  # fmt: skip
        nowhere = [re.compile(re.escape(p).replace(r"\*", ".*")) for p in self.case.get("nowhere", [])]
        found = {}
        for key in self.recorded:
            theirs = key.removeprefix("hidden.")
            if theirs == key or any(p.fullmatch(theirs) for p in nowhere):
                continue
            match, ours = next(((m, v) for p, v in rules if (m := p.fullmatch(theirs))), (None, None))
            if match is None:
                raise KeyError(theirs)
            found[theirs] = HOLE.sub(lambda h, m=match: str(_number(h[1], m.groupdict())), ours)
        return found

    def tapped(self) -> tuple[Graph, dict[str, str]]:
        """Our graph with the recorded hidden states as outputs `tap_0`, `tap_1`, ..., and which is whose."""
        places = self.hidden()
        taps = {theirs: f"tap_{number}" for number, theirs in enumerate(places)}
        extra = tuple((taps[theirs], last_value(self.graph, path)) for theirs, path in places.items())
        return self.graph.with_(outputs=self.graph.outputs + extra), taps

    def steps(self, prefill: int) -> Iterator[dict[str, torch.Tensor]]:
        """The inputs of each step of decoding: `prefill` tokens, then one at a time."""
        inputs, growing = self.inputs(), self.case["steps"]
        bounds = [0, *range(prefill, inputs[growing[0]].shape[1] + 1)]
        for start, stop in pairwise(bounds):
            yield {name: t[:, start:stop] if name in growing else t for name, t in inputs.items()}


@cache
def reference(name: str) -> Reference:
    return Reference(name)


def last_value(graph: Graph, path: str) -> Value:
    """What the node of this path gives, or the last node of this scope."""
    inside = [n for n in graph.nodes if n.where.path == path] or [n for n in graph.nodes if n.where.path.startswith(f"{path}.")]
    if not inside:
        raise KeyError(path)
    return inside[-1].outputs[0]


def _number(text: str, names: Mapping[str, str]) -> Any:
    return evaluate(parse_expression(Source("case", text)), {k: int(v) for k, v in names.items()})
