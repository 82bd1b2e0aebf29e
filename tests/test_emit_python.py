"""`--emit python`: one file that imports torch alone and gives the same outputs from the same safetensors."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import graphir
from graphir.backends.base import bind_inputs
from graphir.backends.fx import lower
from graphir.backends.python_source import emit
from graphir.backends.quote import Quotation
from graphir.backends.weights import initialise, save
from graphir.bricks.declare import REGISTRY
from graphir.ir.graph import Precondition, Weight
from graphir.ir.types import Type
from graphir.lang.diagnostic import GraphirError

from private_bricks import BRICKS, B, Made, T, language_model

ALONE = """
import sys, torch
sys.path.insert(0, {folder!r})
assert not any(name.split(".")[0] in ("graphir", "safetensors") for name in sys.modules)
import emitted
model = emitted.load(emitted.Model(), "weights.safetensors").eval()
assert not any(name.split(".")[0] in ("graphir", "safetensors") for name in sys.modules)
torch.save((model(**torch.load("inputs.pt")), list(model.state_dict())), "found.pt")
"""


def imported(graph, folder: Path, registry=BRICKS):
    """The emitted module, in this process."""
    path = folder / "emitted.py"
    path.write_text(emit(graph, registry))
    spec = importlib.util.spec_from_file_location("emitted", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["emitted"] = module
    spec.loader.exec_module(module)
    return module


def agree(graph, inputs, folder, registry=BRICKS):
    module = imported(graph, folder, registry)
    weights = initialise(graph)
    save(folder / "weights.safetensors", weights)
    network = lower(graph, weights, registry=registry, mode="infer")
    model = module.load(module.Model(), folder / "weights.safetensors").eval()
    assert list(model.state_dict()) == list(network.state_dict())
    assert [(n, p.requires_grad) for n, p in model.named_parameters()] == [(n, p.requires_grad) for n, p in network.named_parameters()]
    found, wanted = model(*inputs.values()), network(*inputs.values())
    pairs = zip(found, wanted) if isinstance(wanted, tuple) else [(found, wanted)]
    assert all(torch.equal(a, b) for a, b in pairs)
    return module, model


def test_alone_in_a_process(tmp_path):
    g = language_model(3)
    weights, inputs = initialise(g), {"tokens": torch.randint(0, 11, (2, 5))}
    (tmp_path / "emitted.py").write_text(emit(g, BRICKS))
    save(tmp_path / "weights.safetensors", weights)
    torch.save(inputs, tmp_path / "inputs.pt")
    script = ALONE.format(folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-I", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert not done.returncode, done.stderr
    found, names = torch.load(tmp_path / "found.pt")
    network = lower(g, weights, registry=BRICKS)
    assert torch.equal(found, network(**inputs))
    assert names == list(network.state_dict())


def test_it_reads_like_a_person_wrote_it():
    text = emit(language_model(3), BRICKS)
    imports = [n for n in ast.parse(text).body if isinstance(n, ast.Import | ast.ImportFrom)]
    origins = {n.module if isinstance(n, ast.ImportFrom) else n.names[0].name for n in imports}
    assert origins <= {"__future__", "json", "math", "torch", "torch.nn"}
    assert "class Layer(Part):" in text
    assert text.count("class Gated") == 1
    assert "self.layers = Part({i: Layer() for i in range(3)})" in text
    assert "        ffn = self.ffn(norm)" in text
    assert "eps=1e-06" not in text, "defaults are left to the functions"
    assert max(map(len, text.splitlines())) <= 140
    assert text == emit(language_model(3), BRICKS)


def test_names_sizes_branches_and_extras(tmp_path):
    made = Made(**{"lambda": Type("float", (B, 2 * T, 4)), "silu": Type("float", (B, 4))})
    frames = ("Class", "op")
    x = made.put("head", made["lambda"], n=T // 2 + 1, path="class.0", frames=frames)
    x = made.put("linear", x, path="class.forward", frames=frames, out=4)
    x = made.put("silu", x, path="class.silu", frames=frames)
    up, down = made.all("pairs", made["silu"], path="training.pairs", frames=("Training", "pairs"))
    one = made.all("split", down, parts=1, path="norm")
    x = made.put("rmsnorm", x, path="00", frames=("rmsnorm",))
    shared = made.put("linear", x, path="training.again", frames=("Training", "linear"), shared="class.forward", out=4)
    count = made.put("float", made.put("ramp", n=T + 1, path="ramp"), path="to.float", frames=("To", "float"))
    dropped = made.put("dropout", one[0], path="dropout")
    made.weights["00.weight"] = Weight((4,), "ones", frozen=True)
    g = made.graph(aux=(("layers.0.load", count),), requires=(Precondition(T, ">=", 2),), y=shared, up=up, dropped=dropped)
    inputs = {"lambda": torch.randn(2, 6, 4), "silu": torch.randn(2, 4)}
    bind_inputs(g, inputs)
    module, model = agree(g, inputs, tmp_path)
    outputs, extra = model(*inputs.values(), aux=True)
    assert len(outputs) == 3
    assert torch.equal(extra["layers.0.load"], torch.arange(4.0))
    assert model.double()(*(t.double() for t in inputs.values()), aux=True)[1]["layers.0.load"].dtype == torch.float64
    assert model.train().training
    with pytest.raises(ValueError, match="the model requires T >= 2"):
        module.Model()(torch.randn(2, 2, 4), torch.randn(2, 4))


def test_every_brick_can_be_quoted():
    quotation = Quotation()
    names = {d.name: quotation.function(d.body) for d in REGISTRY}
    assert len(set(names.values())) == len(names)
    text = "\n".join(["from __future__ import annotations", *quotation.imports, *quotation.texts.values()])
    defined = {n.name for n in ast.parse(text).body if isinstance(n, ast.FunctionDef)}
    assert set(names.values()) <= defined
    assert not [i for i in quotation.imports if "graphir" in i]
    assert "@brick" not in text


def test_programs(tmp_path):
    text = """
    block Gated(hidden)(x: [*S, d]) -> [*S, d] { return ((x -> linear(hidden) -> silu) * (x -> linear(hidden))) -> linear(d) }
    model M(d = 8)(tokens: int[B, T], mask: bool[B, T]) -> float[B, T, 11] {
      shared emb = embedding(11, d)
      layer = residual(rmsnorm -> Attention(2, mask = mask)) -> residual(rmsnorm -> Gated(12))
      return tokens -> emb -> ([layer] * 2) -> filter(linear(2) -> softmax) { a: linear(d)  b: id } -> emb.T
    }
    """
    g = graphir.load(text)
    tokens = torch.randint(0, 11, (2, 5))
    agree(g, {"tokens": tokens, "mask": torch.ones(2, 5, dtype=torch.bool)}, tmp_path, REGISTRY)


def test_what_stands_in_other_packages_is_not_quoted(tmp_path, monkeypatch):
    (tmp_path / "host_bricks.py").write_text("import click\n\n\ndef body(x):\n    return click.style(x)\n")
    monkeypatch.syspath_prepend(tmp_path)
    host = importlib.import_module("host_bricks")
    with pytest.raises(GraphirError) as error:
        Quotation().function(host.body)
    assert [d.code for d in error.value.diagnostics] == ["E0809"]
