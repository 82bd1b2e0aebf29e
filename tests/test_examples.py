"""Every example: checked, verified, round-tripped, optimised, lowered, run and differentiated, at test sizes."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import pytest
import torch

import graphir
from graphir import passes
from graphir.api import optimise
from graphir.backends.interpreter import Interpreter
from graphir.backends.samples import sample_inputs
from graphir.backends.weights import initialise
from graphir.bricks.declare import REGISTRY
from graphir.ir.same import same
from graphir.ir.text import read
from graphir.ir.verify import verify

from small import EXAMPLES, SIZES, SMALL

NAMES = sorted(p.stem for p in EXAMPLES.glob("*.arch") if p.stem != "space")


@pytest.fixture(scope="module", params=NAMES)
def case(request):
    name = request.param
    graph = graphir.load(EXAMPLES / f"{name}.arch", **SMALL.get(name, {}))
    return name, graph, sample_inputs(graph, SIZES.get(name, {}), 0), initialise(graph, 0)


def run(graph, inputs, weights):
    outputs, aux = Interpreter(graph, weights, dtype=torch.float64).run(inputs, aux=True)
    return {**outputs, **aux}


def close(left, right, relative):
    assert left.keys() == right.keys()
    for name in left:
        scale = left[name].abs().max().clamp_min(1e-30) if left[name].numel() else 1
        assert ((left[name] - right[name]).abs() / scale).max() <= relative, name


def test_is_checked_verified_and_round_trips(case):
    name, graph, _, _ = case
    assert graphir.check(EXAMPLES / f"{name}.arch") == []
    verify(graph, REGISTRY)
    again = read(str(graph))
    assert same(again, graph)
    assert str(again) == str(graph)
    assert again.key == graph.key


@pytest.mark.parametrize("pipeline", ["stitch", "share", "simplify", "norm-fusion", "lower", passes.DEFAULT, passes.INFER])
def test_passes_keep_the_meaning(case, pipeline):
    _, graph, inputs, weights = case
    after = optimise(graph, pipeline)
    verify(after, REGISTRY)
    close(run(graph, inputs, weights), run(after, inputs, weights), 1e-10)
    assert optimise(after, pipeline) is after, "a second run changes nothing"


def test_fx_is_the_interpreter(case):
    _, graph, inputs, weights = case
    net = graphir.compile(graph, weights=weights).eval()
    single = any(node.where.backend == "mlx" for node in graph.nodes)  # MLX computes in single precision
    if not single:
        net = net.double()
        inputs = {n: t.double() if t.is_floating_point() else t for n, t in inputs.items()}
    with torch.no_grad():
        out, aux = net(**inputs, aux=True)
    values = out if isinstance(out, tuple) else (out,)
    close(run(graph, inputs, weights), {**dict(zip([n for n, _ in graph.outputs], values)), **aux}, 1e-4 if single else 1e-9)


def test_weights_are_held_once_under_their_paths_and_get_gradients(case):
    _, graph, inputs, weights = case
    net = graphir.compile(graph, weights=weights)
    state = net.state_dict()
    assert set(state) == set(graph.weights)
    assert sum(t.numel() for t in state.values()) == sum(w.numel for w in graph.weights.values())
    out = net(**inputs)
    sum(v.square().sum() for v in (out if isinstance(out, tuple) else (out,))).backward()
    for name, parameter in net.named_parameters():
        assert graph.weights[name].frozen != parameter.requires_grad
        assert graph.weights[name].frozen or parameter.grad is not None, name


def test_draws_and_sums_up(case):
    _, graph, _, _ = case
    assert graph.svg().startswith("<svg") or "<svg" in graph.svg()[:200]
    assert graph.summary(B=2, T=16, S=16, H=32, W=32).parameters == graph.parameters


def test_the_search_space_parses_formats_and_names_what_it_needs():
    codes = {d.code for d in graphir.check(EXAMPLES / "space.arch")}
    assert codes == {"E0407"}


DIGEST = """
import hashlib, sys, graphir
from pathlib import Path
from graphir.api import optimise
from graphir.backends.fx import lower
from graphir.backends.listing import listing
graph = graphir.load(Path(sys.argv[1]))
final = optimise(graph)
for text in (str(graph), str(final), final.key, final.svg(), listing(graphir.compile(graph))):
    print(hashlib.sha256(text.encode()).hexdigest())
"""


@pytest.mark.parametrize("name", ["odds", "fork_join", "graft"])
def test_equal_bytes_in_processes_with_different_hash_seeds(name, tmp_path):
    digests = set()
    for seed in ("0", "1", "12345"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "LC_ALL": "C" if seed == "1" else "C.UTF-8"}
        done = subprocess.run(
            [sys.executable, "-c", DIGEST, f"{name}.arch"], env=environment, cwd=EXAMPLES, capture_output=True, text=True, check=True
        )
        digests.add(done.stdout)
    assert len(digests) == 1
    assert len(hashlib.sha256(next(iter(digests)).encode()).hexdigest()) == 64


def test_saving_and_loading_keeps_sharing(tmp_path):
    from safetensors.torch import load_file, save_file

    graph = graphir.load(
        EXAMPLES / "zamba.arch",
        **SMALL["zamba"],
    )
    net = graphir.compile(graph, seed=1)
    shared = [n for n in net.state_dict() if n.startswith("glob.")]
    assert shared
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    again = graphir.compile(graph, weights=load_file(tmp_path / "w.safetensors"))
    tokens = torch.randint(0, 64, (2, 8))
    assert torch.equal(net(tokens), again(tokens))


def test_gradients_of_a_shared_weight_add_up():
    shared = "model M(d = 8)(x: float[B, d]) -> float[B, d] { shared f = linear(d)  return x -> f -> gelu -> f }"
    apart = "model M(d = 8)(x: float[B, d]) -> float[B, d] { return x -> linear(d) as a -> gelu -> linear(d) as b }"
    one, two = graphir.compile(shared).double(), graphir.compile(apart).double()
    assert set(one.state_dict()) == {"f.weight", "f.bias"}
    assert graphir.load(shared).parameters * 2 == graphir.load(apart).parameters
    two.load_state_dict({f"{part}.{role}": one.state_dict()[f"f.{role}"] for part in "ab" for role in ("weight", "bias")})
    x = torch.rand(4, 8, dtype=torch.float64)
    for net in (one, two):
        net(x).square().sum().backward()
    gradients = {n: p.grad for n, p in two.named_parameters()}
    for name, parameter in one.named_parameters():
        role = name.split(".")[1]
        assert torch.allclose(parameter.grad, gradients[f"a.{role}"] + gradients[f"b.{role}"], rtol=1e-12)
