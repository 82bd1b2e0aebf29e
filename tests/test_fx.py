"""Lowering to fx: equal to the interpreter, one class per distinct block, weights held once, nothing of a name ever run."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from graphir.backends.base import demand
from graphir.backends.fx import Block, lower
from graphir.backends.inductor import compile_blocks, regions
from graphir.backends.interpreter import Interpreter
from graphir.backends.modules import argument, attribute
from graphir.backends.pt2 import export
from graphir.backends.weights import initialise
from graphir.ir.dims import extremum
from graphir.ir.graph import Graph, Precondition, Value, Weight
from graphir.ir.types import Type
from graphir.lang.diagnostic import GraphirError

from private_bricks import BRICKS, B, Made, T, language_model


def double(inputs):
    return {n: t.double() if t.is_floating_point() else t for n, t in inputs.items()}


def agree(graph, inputs):
    """Outputs and gradients of fx and interpreter are the same numbers in float64; gives the network."""
    weights = {n: t.double().requires_grad_(not graph.weights[n].frozen) for n, t in initialise(graph).items()}
    network = lower(graph, weights, dtype=torch.float64, registry=BRICKS, mode="infer")
    first, second = ({n: t.clone().requires_grad_(t.is_floating_point()) for n, t in double(inputs).items()} for _ in range(2))
    wanted = tuple(Interpreter(graph, weights, dtype=torch.float64, registry=BRICKS).run(first).values())
    found = network(*second.values())
    found = found if isinstance(found, tuple) else (found,)
    assert len(found) == len(wanted)
    assert all(torch.allclose(a, b, rtol=1e-12, atol=1e-12) for a, b in zip(found, wanted))
    for outputs in (found, wanted):
        total = sum((o.double().sin().sum() for o in outputs if o.is_floating_point()), torch.zeros((), dtype=torch.float64))
        if total.requires_grad:
            total.backward()
    for name, parameter in network.named_parameters():
        same(parameter.grad, weights[name].grad)
    for a, b in zip(first.values(), second.values()):
        same(a.grad, b.grad)
    return network


def same(a, b):
    assert (a is None) == (b is None)
    assert a is None or torch.allclose(a, b, rtol=1e-10, atol=1e-12)


def tokens(b=2, t=5):
    return {"tokens": torch.randint(0, 11, (b, t))}


def test_language_model():
    g = language_model(3)
    network = agree(g, tokens())
    assert list(network.state_dict()) == list(g.weights)
    assert isinstance(network, torch.fx.GraphModule)
    assert network.graphir is g
    layers = [network.get_submodule(f"layers.{i}") for i in range(3)]
    assert len({type(m) for m in layers}) == 1
    assert len({type(m.ffn) for m in layers}) == 1
    assert {type(m).__name__ for m in network.modules() if isinstance(m, Block)} == {"Tied", "Layer", "Gated"}
    assert "self.ffn(rmsnorm)" in layers[0].code
    assert "torch._C._nn.linear(x, gate_weight, gate_bias)" in layers[0].ffn.code
    network.load_state_dict({n: torch.zeros_like(t) for n, t in network.state_dict().items()}, strict=True)
    assert not network(**tokens()).any()


def test_code_does_not_depend_on_the_run():
    first, second = (lower(language_model(2), registry=BRICKS) for _ in range(2))
    assert [m.code for m in first.modules() if isinstance(m, Block)] == [m.code for m in second.modules() if isinstance(m, Block)]


CODE = """
import sys
sys.path.insert(0, {tests!r})
import private_bricks as p
from graphir.backends.fx import lower
from graphir.backends.python_source import emit
print([m.code for m in lower(p.language_model(3), registry=p.BRICKS).modules() if hasattr(m, "code")], emit(p.language_model(3), p.BRICKS))
"""


def test_code_does_not_depend_on_hash_seeds():
    script = CODE.format(tests=str(Path(__file__).parent))
    seen = set()
    for seed in ("0", "1", "12345"):
        env = {**os.environ, "PYTHONHASHSEED": seed}
        seen.add(subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True, timeout=120).stdout)
    assert len(seen) == 1
    assert "class Layer" in seen.pop()


def test_unequal_blocks_have_classes_of_their_own():
    made = Made(x=Type("float", (B, 4)))
    x = made["x"]
    for i, width in enumerate((4, 4, 6)):
        x = made.put("linear", x, path=f"layers.{i}.up", frames=("[]", "Layer", "linear"), out=width)
        x = made.put("linear", x, path=f"layers.{i}.down", frames=("[]", "Layer", "linear"), out=4)
    network = agree(made.graph(y=x), {"x": torch.randn(3, 4)})
    kinds = [type(network.get_submodule(f"layers.{i}")) for i in range(3)]
    assert kinds[0] is kinds[1]
    assert kinds[0] is not kinds[2]
    assert kinds[2].__name__ == "Layer_2"


def test_shared_weights_are_held_once_and_passed_down():
    made = Made(x=Type("float", (B, 4)))
    x = made["x"]
    for i in range(3):
        frames = ("[]", "Layer", "Mixer", "linear")
        x = made.put("linear", x, path=f"layers.{i}.mix.base", frames=frames, shared="base", out=4)
        x = made.put("linear", x, path=f"layers.{i}.own", frames=("[]", "Layer", "linear"), out=4)
    g = made.graph(y=x)
    network = agree(g, {"x": torch.randn(2, 4)})
    names = list(network.state_dict())
    assert len(names) == 8
    assert sorted(names) == sorted(g.weights)
    assert sum(p.numel() for p in network.parameters()) == g.parameters
    assert "forward(self, x, base_weight, base_bias)" in network.layers._modules["1"].mix.code
    assert len({type(network.get_submodule(f"layers.{i}")) for i in range(3)}) == 1


def test_a_weight_owned_by_one_block_is_passed_to_another():
    made = Made(x=Type("float", (B, 4)))
    x = made.put("linear", made["x"], path="host.inner.l", frames=("Host", "Inner", "linear"), out=4)
    x = made.put("linear", x, path="guest.l", frames=("Guest", "linear"), shared="host.inner.l", out=4)
    network = agree(made.graph(y=x), {"x": torch.randn(2, 4)})
    assert list(network.state_dict()) == ["host.inner.l.weight", "host.inner.l.bias"]
    assert "self.guest(host, host_inner_l_weight, host_inner_l_bias)" in network.code


def test_each_weight_of_a_node_finds_its_own_owner():
    made = Made(x=Type("float", (B, 4)))
    x = made.put("linear", made["x"], path="host.l", frames=("Host", "linear"), out=4)
    x = made.put("linear", x, path="guest.l", frames=("Guest", "linear"), out=4)
    node = made.nodes[-1]
    node.weights = (("weight", "host.l.weight"), ("bias", "guest.l.bias"))
    del made.weights["guest.l.weight"]
    network = agree(made.graph(y=x), {"x": torch.randn(2, 4)})
    assert list(network.state_dict()) == ["host.l.weight", "host.l.bias", "guest.l.bias"]
    assert "self.guest(host, host_l_weight)" in network.code


def test_scopes_that_cannot_run_whole_are_dissolved():
    made = Made(x=Type("float", (B, 4)))
    a1 = made.put("linear", made["x"], path="a.first", frames=("A", "linear"), out=4)
    b1 = made.put("linear", a1, path="b.first", frames=("B", "linear"), out=4)
    a2 = made.put("linear", b1, path="a.second", frames=("A", "linear"), out=4)
    b2 = made.put("linear", a2, path="b.second", frames=("B", "linear"), out=4)
    inner = made.put("linear", b2, path="a.whole.l", frames=("A", "Whole", "linear"), out=4)
    g = made.graph(y=made.put("add", inner, a1, path="sum"))
    network = agree(g, {"x": torch.randn(2, 4)})
    assert sorted(network.state_dict()) == sorted(g.weights)
    assert [type(m).__name__ for m in network.modules() if isinstance(m, Block)] == ["Model", "Whole"]


def test_scattered_scopes_are_gathered():
    made = Made(x=Type("float", (B, 4)))
    up = [made.put("linear", made["x"], path=f"part.{i}.up", frames=("[]", "Part", "linear"), out=4) for i in range(2)]
    down = [made.put("linear", h, path=f"part.{i}.down", frames=("[]", "Part", "linear"), out=4) for i, h in enumerate(up)]
    network = agree(made.graph(y=made.put("add", *down, path="sum")), {"x": torch.randn(2, 4)})
    assert [type(m).__name__ for m in network.modules() if isinstance(m, Block)] == ["Model", "Part", "Part"]


def test_several_results_forks_optional_ports_and_aux():
    made = Made(x=Type("float", (B, 6)), by=Type("float", (B, 6)))
    frames = ("Block", "op")
    up, down = made.all("pairs", made["x"], path="block.pairs", frames=frames)
    left, right = made.all("fork", up, branches=("a", "b"), path="block.fork", frames=frames)
    scaled = made.put("scale", left, made["by"], given=("by",), factor=3.0, path="block.scale", frames=frames)
    one = made.all("split", right, parts=1, path="split")
    g = made.graph(aux=(("layers.0.load", down),), scaled=scaled, one=one[0])
    inputs = {"x": torch.randn(2, 6), "by": torch.randn(2, 6)}
    network = agree(g, inputs)
    outputs, extra = network(**double(inputs), aux=True)
    assert torch.equal(outputs[1], inputs["x"].double() + 1)
    assert torch.equal(extra["layers.0.load"], inputs["x"].double() - 1)
    assert network.output_names == ("scaled", "one")


def test_runtime_sizes_reach_the_blocks_that_need_them():
    made = Made(x=Type("float", (B, 2 * T, 3)), y=Type("float", (B, T)))
    a = made.put("head", made["x"], n=T // 2 + 1, path="own.head", frames=("Own", "head"))
    b = made.put("ramp", n=3 * T - 1, path="deep.inner.ramp", frames=("Deep", "Inner", "ramp"))
    c = made.put("ramp", n=extremum("min", (T, 2 * B)), path="least")
    d = made.put("float", c, path="to.float", frames=("To", "float"))
    g = made.graph(a=a, b=b, c=c, d=d)
    network = agree(g, {"x": torch.randn(2, 10, 3), "y": torch.randn(2, 5)})
    assert torch.equal(network(torch.zeros(1, 8, 3), torch.zeros(1, 4))[1], torch.arange(11))
    assert network(torch.zeros(1, 8, 3), torch.zeros(1, 4))[3].dtype == torch.float64
    assert network.float()(torch.zeros(1, 8, 3), torch.zeros(1, 4))[3].dtype == torch.float32
    assert "_like" not in str(network.state_dict().keys())


def test_preconditions_are_checked_on_real_inputs():
    made = Made(x=Type("float", (B, T)))
    g = made.graph(requires=(Precondition(T, "==", 0, 4), Precondition(T, ">=", B)), y=made.put("silu", made["x"]))
    network = lower(g, registry=BRICKS)
    network(torch.zeros(2, 8))
    with pytest.raises(GraphirError, match=r"requires `T % 4 == 0`"):
        network(torch.zeros(2, 6))
    with pytest.raises(GraphirError, match=r"requires `T >= B`, but its left side is 4"):
        network(torch.zeros(5, 4))
    assert any(n.target is demand for n in network.graph.nodes)


def test_training_and_modes():
    made = Made(x=Type("float", (B, 100)))
    g = made.graph(y=made.put("dropout", made["x"], path="block.drop", frames=("Block", "dropout")))
    network, x = lower(g, registry=BRICKS), torch.ones(1, 100)
    assert not torch.equal(network(x), x)
    assert torch.equal(network.eval()(x), x)
    assert torch.equal(lower(g, registry=BRICKS, mode="infer")(x), x)


def test_frozen_weights_and_buffers():
    made = Made(x=Type("float", (B, 4)))
    y = made.put("linear", made["x"], path="l", out=4)
    made.weights["l.weight"] = Weight((4, 4), "he", frozen=True)
    made.weights["l.bias"] = Weight((4,), "zeros", frozen=True, buffer=True)
    network = agree(made.graph(y=y), {"x": torch.randn(1, 4)})
    assert [(n, p.requires_grad) for n, p in network.named_parameters()] == [("l.weight", False)]
    assert [n for n, _ in network.named_buffers()] == ["l.bias"]


def test_copies_pickles_and_moves():
    network = lower(language_model(3), registry=BRICKS)
    x = tokens()
    twin = copy.deepcopy(network)
    assert torch.equal(twin(**x), network(**x))
    assert twin.graphir is network.graphir
    assert not {p.data_ptr() for p in twin.parameters()} & {p.data_ptr() for p in network.parameters()}
    kinds = [type(m) for m in twin.modules() if isinstance(m, Block)]
    assert len(set(kinds)) == 3
    assert not set(kinds) & {type(m) for m in network.modules()}
    first = twin.get_submodule("layers.0")
    first.graph.output_node().args = (next(iter(first.graph.nodes)),)
    first.recompile()
    assert not torch.equal(twin(**x), network(**x))
    assert network.double()(**x).dtype == torch.float64


def test_pickling_goes_through_the_text_of_the_graph():
    import graphir
    from graphir.backends.fx import lower as plain

    g = graphir.load("model M(d = 4)(x: float[B, d]) -> float[B, 3] { return x -> linear(d) -> silu -> linear(3) }")
    network = plain(g)
    next(network.parameters()).requires_grad_(False)
    again = pickle.loads(pickle.dumps(network.eval()))
    x = torch.randn(2, 4)
    assert torch.equal(again(x), network(x))
    assert not again.training
    assert [p.requires_grad for p in again.parameters()] == [p.requires_grad for p in network.parameters()]


# names


def named(inputs=("x",), path="l", outputs=("y",)):
    values = [(n, Value(Type("float", (B, 4)))) for n in inputs]
    made = Made()
    made.inputs = tuple(values)
    y = made.put("linear", values[0][1], path=path, out=4)
    return Graph("M", made.inputs, tuple(made.nodes), tuple((o, y) for o in outputs), made.weights)


INPUTS = ["lambda", "class", "self", "aux", "torch", "getattr", "None", "input", "x_1", "lambda_", "_", "graphir_x"]


@pytest.mark.parametrize("name", INPUTS)
def test_inputs_may_be_called_anything(name):
    other = argument(name)
    g = named((name, "other") if name != "other" else (name,))
    network = lower(g, registry=BRICKS)
    x, z = torch.randn(2, 4), torch.zeros(2, 4)
    assert torch.equal(network(x, z), network(**{other: x, "other": z}))
    assert network.input_names[name] == other


SEGMENTS = ["forward", "training", "parameters", "T_destination", "_graph", "graph", "lambda", "class", "0", "meta", "__class__"]


@pytest.mark.parametrize("segment", [*SEGMENTS, "_modules", "forward_", "_like", "code", "aux", "x", "__init__", "graphir"])
def test_parts_may_be_called_anything(segment):
    for path in (segment, f"{segment}.inner", f"outer.{segment}.{segment}"):
        g = named(path=path)
        network = lower(g, registry=BRICKS)
        assert list(network.state_dict()) == list(g.weights) == [f"{path}.weight", f"{path}.bias"]
        x = torch.randn(2, 4)
        wanted = x @ network.state_dict()[f"{path}.weight"].T
        assert torch.allclose(network(x), wanted, atol=1e-6)
        again = copy.deepcopy(network)
        again.load_state_dict({n: torch.zeros_like(t) for n, t in network.state_dict().items()})
        assert not again(x).any()
        assert network(x).any()


def test_renaming_never_makes_two_names_one():
    names = [s + "_" * n for s in [*SEGMENTS, "input", "self", "aux", "torch", "x"] for n in range(4)]
    assert len({attribute(n) for n in names}) == len(set(names))
    assert len({argument(n) for n in names}) == len(set(names))


HOSTILE = [
    'x=print("PWNED")', 'a");PWNED.append(1);("', "a\nPWNED.append(1)", "a b", "a-b", "", "a'", 'a"', "ａ", "é", "x" * 65, "a\0",
    "a:int", "a,b", "*a", "alpha=PWNED,beta", "__import__('os')", "a..b", ".", "a.", ".a", "\u202ea",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_refused_and_never_run(name, capsys):
    import builtins

    builtins.PWNED = canary = []
    try:
        positions = [named((name,)), named(outputs=(name or " ",))]
        positions += [named(path=name), named(path=f"a.{name}.b")] if name else []
        for graph in positions:
            with pytest.raises(GraphirError) as error:
                lower(graph, registry=BRICKS)
            assert {d.code for d in error.value.diagnostics} == {"E0805"}
    finally:
        del builtins.PWNED
    assert not canary
    assert "PWNED" not in capsys.readouterr().out


def test_hostile_words_in_config_are_only_text():
    made = Made(x=Type("float", (B, 4)))
    made.put("linear", made["x"], path="l", frames=(), out=4)
    words = "'\"); print('PWNED'); (\""
    g = made.graph(requires=(Precondition(B, ">=", 0, None, words),), y=made.nodes[-1].outputs[0])
    node = g.nodes[0]
    node.where = node.where._replace(path="b.l", frames=(words, "linear"))
    assert lower(g, registry=BRICKS)(torch.zeros(1, 4)).shape == (1, 4)


@pytest.mark.parametrize("name", ["forward", "training", "class", "_parameters"])
def test_weights_that_torch_cannot_hold_are_refused(name):
    g = named()
    renamed = dict(zip((f"l.{name}", "l.bias"), g.weights.values()))
    node = g.nodes[0]
    node.weights = (("weight", f"l.{name}"), ("bias", "l.bias"))
    with pytest.raises(GraphirError) as error:
        lower(Graph("M", g.inputs, g.nodes, g.outputs, renamed), registry=BRICKS)
    assert [d.code for d in error.value.diagnostics] == ["E0805"]


def test_weights_are_checked():
    g = named()
    with pytest.raises(GraphirError) as error:
        lower(g, {"l.weight": torch.zeros(3, 4)}, registry=BRICKS)
    assert [str(d) for d in error.value.diagnostics] == [
        "error[E0801]: weight `l.weight` is [3, 4], not [4, 4]", "error[E0801]: weight `l.bias` [4] is missing",
    ]


# exports and torch.compile


def test_equal_blocks_are_compiled_once():
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    network = lower(language_model(6), registry=BRICKS)
    wanted = network(**tokens())
    counter = CompileCounterWithBackend("eager")
    assert [type(r).__name__ for r in regions(network)] == ["Layer"] * 6
    assert compile_blocks(network, backend=counter, fullgraph=True) is network
    torch.manual_seed(0)
    network(**tokens())
    assert counter.frame_count == 1
    assert wanted.shape == (2, 5, 11)


def test_networks_without_repeats_are_compiled_whole():
    network = lower(language_model(1), registry=BRICKS)
    assert list(regions(network)) == [network]


@pytest.mark.slow
def test_inductor_agrees():
    torch._dynamo.reset()
    network = lower(language_model(3), registry=BRICKS)
    x = tokens()
    wanted = network(**x)
    wanted.sum().backward()
    gradients = {n: p.grad.clone() for n, p in network.named_parameters()}
    network.zero_grad()
    found = compile_blocks(network)(**x)
    found.sum().backward()
    assert torch.allclose(found, wanted, atol=1e-5)
    assert all(torch.allclose(p.grad, gradients[n], atol=1e-4) for n, p in network.named_parameters())


def test_export_leaves_declared_sizes_open():
    made = Made(x=Type("float", (B, 2 * T, 4)))
    half = made.put("head", made["x"], n=T, path="block.head", frames=("Block", "head"))
    y = made.put("linear", half, path="block.l", frames=("Block", "linear"), out=3)
    network = lower(made.graph(requires=(Precondition(T, "==", 0, 3),), y=y), registry=BRICKS, mode="infer")
    program = export(network)
    for b, t in ((1, 3), (4, 9)):
        x = torch.randn(b, 2 * t, 4)
        assert torch.allclose(program.module()(x), network(x), atol=1e-6)
    assert sorted(program.state_dict) == sorted(network.state_dict())
