"""The interpreter: meaning, liveness, checks of inputs, traces, decoding."""

from __future__ import annotations

import gc

import pytest
import torch

from graphir.backends.base import bind_inputs, compile_module
from graphir.backends.fx import lower
from graphir.backends.interpreter import InterpretedNetwork, Interpreter
from graphir.backends.weights import initialise
from graphir.ir.graph import Precondition
from graphir.ir.types import Type
from graphir.lang.diagnostic import EnvironmentProblem, GraphirError
from graphir.lang.source import Place

from private_bricks import BRICKS, B, Made, T, language_model


def run(graph, inputs, **options):
    return Interpreter(graph, initialise(graph), registry=BRICKS, **options).run(inputs)


def codes(error):
    return [d.code for d in error.value.diagnostics]


def test_it_computes_what_the_graph_says():
    g = language_model(2)
    w = {n: t.double() for n, t in initialise(g).items()}
    tokens = torch.randint(0, 11, (2, 5))

    def norm(x, weight):
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight

    x = w["emb.weight"][tokens]
    for i in range(2):
        h, at = norm(x, w[f"layers.{i}.norm.weight"]), f"layers.{i}.ffn"
        gate = h @ w[f"{at}.gate.weight"].T + w[f"{at}.gate.bias"]
        h = gate * gate.sigmoid() + h @ w[f"{at}.up.weight"].T + w[f"{at}.up.bias"]
        x = x + h @ w[f"{at}.down.weight"].T
    wanted = norm(x, w["norm.weight"]) @ w["emb.weight"].T
    found = run(g, {"tokens": tokens}, dtype=torch.float64)["logits"]
    assert found.dtype == torch.float64
    assert torch.allclose(found, wanted, rtol=1e-12, atol=0)


def test_gradients_reach_weights_and_inputs():
    made = Made(x=Type("float", (B, 4)))
    g = made.graph(y=made.put("linear", made["x"], path="l", out=3))
    w = {n: t.double().requires_grad_() for n, t in initialise(g).items()}
    x = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)

    def whole(x, weight, bias):
        return Interpreter(g, {"l.weight": weight, "l.bias": bias}, registry=BRICKS).run({"x": x})["y"]

    assert torch.autograd.gradcheck(whole, (x, *w.values()))


def test_several_results_forks_optional_ports_and_aux():
    made = Made(x=Type("float", (B, 6)), by=Type("float", (B, 6)))
    up, down = made.all("pairs", made["x"])
    left, right = made.all("fork", made["x"], branches=("a", "b"))
    scaled = made.put("scale", left, made["by"], given=("by",), factor=3.0)
    plain = made.put("scale", right, given=(), factor=2.0)
    thirds = made.all("split", up, parts=3)
    whole = made.all("split", down, parts=1)
    g = made.graph(aux=(("load", plain),), scaled=scaled, last=thirds[2], whole=whole[0])
    x, by = torch.randn(2, 2, 6)
    outputs, extra = Interpreter(g, {}, registry=BRICKS).run({"x": x, "by": by}, aux=True)
    assert torch.equal(outputs["scaled"], x * 3 * by)
    assert torch.equal(outputs["last"], (x + 1)[:, 4:])
    assert torch.equal(outputs["whole"], x - 1)
    assert torch.equal(extra["load"], x * 2)


def test_runtime_sizes_in_attributes():
    made = Made(x=Type("float", (B, 2 * T, 3)))
    half = made.put("head", made["x"], n=T // 2 + 1)
    g = made.graph(half=half, steps=made.put("ramp", n=T * 3))
    found = run(g, {"x": torch.randn(2, 10, 3)})
    assert found["half"].shape == (2, 3, 3)
    assert torch.equal(found["steps"], torch.arange(15))


def test_training_is_told_to_bodies():
    made = Made(x=Type("float", (B, 100)))
    g = made.graph(y=made.put("dropout", made["x"]))
    x = torch.ones(1, 100)
    assert torch.equal(run(g, {"x": x})["y"], x)
    assert not torch.equal(run(g, {"x": x}, training=True)["y"], x)


def test_no_value_lives_longer_than_needed():
    made = Made(x=Type("float", (B, 4)))
    x = made["x"]
    for _ in range(200):
        x = made.put("add", made.put("silu", x), x)
    g = made.graph(y=x)
    live: list[int] = []
    gc.collect()
    before = {id(o) for o in gc.get_objects() if isinstance(o, torch.Tensor)}

    def count(record):
        live.append(sum(isinstance(o, torch.Tensor) and id(o) not in before for o in gc.get_objects()))

    gc.disable()
    with torch.no_grad():
        interpreter = Interpreter(g, {}, registry=BRICKS)
        interpreter.run({"x": torch.randn(2, 4)}, trace=count)
    gc.enable()
    assert len(live) == 400
    assert max(live) <= 5, max(live)
    assert interpreter._slots <= 5


@pytest.mark.parametrize(
    ("inputs", "code", "words"),
    [
        ({}, "E0803", "`x: float[B, 2*T, 3]` is missing"),
        ({"x": torch.zeros(1, 2, 3), "y": 1}, "E0803", "no input `y`"),
        ({"x": torch.zeros(1, 2, 3, dtype=torch.int64)}, "E0803", "takes float elements, not int64"),
        ({"x": torch.zeros(2, 3)}, "E0803", "takes float[B, 2*T, 3], not [2, 3]"),
        ({"x": [1.0]}, "E0803", "takes a tensor, not a list"),
        ({"x": torch.zeros(1, 4, 4)}, "E0804", "axis 2 of `x` has length 4, not 3"),
        ({"x": torch.zeros(1, 3, 3)}, "E0804", "no `2*T` of a whole `T`"),
        ({"x": torch.zeros(1, 6, 3)}, "E0804", "requires `T % 2 == 0`, but T = 3"),
    ],
)
def test_inputs_are_checked_first(inputs, code, words):
    made = Made(x=Type("float", (B, 2 * T, 3)))
    g = made.graph(requires=(Precondition(T, "==", 0, 2),), y=made.put("log", made["x"]))
    with pytest.raises(GraphirError) as error:
        run(g, inputs)
    assert codes(error) == [code]
    assert words in str(error.value)


def test_sizes_agree_across_inputs():
    made = Made(x=Type("float", (B, T)), y=Type("float", (T + 1, B)))
    g = made.graph(z=made.put("log", made["x"]))
    assert bind_inputs(g, {"x": torch.zeros(2, 3), "y": torch.zeros(4, 2)}) == {"B": 2, "T": 3}
    with pytest.raises(GraphirError) as error:
        bind_inputs(g, {"x": torch.zeros(2, 3), "y": torch.zeros(3, 5)})
    assert codes(error) == ["E0804", "E0804"]
    assert "axis 0 of `y` has length 3, not 4 (`T + 1`, with T = 3)" in str(error.value)


def test_trace_tells_of_every_node():
    g = language_model(1)
    records = []
    Interpreter(g, initialise(g), registry=BRICKS).run({"tokens": torch.zeros(1, 3, dtype=torch.int64)}, trace=records.append)
    assert [(r.path, r.op) for r in records] == [(n.where.path, n.op) for n in g.nodes]
    gate = next(r for r in records if r.path.endswith("gate"))
    assert gate.shape == (1, 3, 16)
    assert gate.minimum <= gate.mean <= gate.maximum
    assert gate.deviation > 0
    assert gate.seconds > 0


def test_the_first_nan_is_named_with_its_line():
    made = Made(x=Type("float", (B, 2)))
    bad = made.put("log", made["x"], path="layers.3.log")
    node = made.nodes[-1]
    made.nodes[-1].where = node.where._replace(span=Place("m.arch", 7, 3))
    g = made.graph(y=made.put("silu", bad, path="after"))
    x = torch.tensor([[1.0, -1.0], [-2.0, 0.0]])
    with pytest.raises(GraphirError) as error:
        Interpreter(g, {}, registry=BRICKS).run({"x": x}, check_finite=True)
    assert codes(error) == ["E0807"]
    assert "m.arch:7:3" in str(error.value)
    assert "`layers.3.log` (log) makes 3 of 4 numbers NaN" in str(error.value)
    records = []
    Interpreter(g, {}, registry=BRICKS).run({"x": x}, trace=records.append)
    assert [r.not_finite for r in records] == [3, 3]


def test_missing_weights_and_bricks_are_diagnostics():
    g = language_model(1)
    with pytest.raises(GraphirError) as error:
        Interpreter(g, {}, registry=BRICKS)
    assert codes(error) == ["E0801"] * len(g.weights)
    made = Made(x=Type("float", (B, 2)))
    made.put("log", made["x"])
    made.nodes[0].op = "logg"
    with pytest.raises(GraphirError) as error:
        Interpreter(made.graph(y=made.nodes[0].outputs[0]), {}, registry=BRICKS)
    assert error.value.diagnostics[0].help == ("did you mean `log`?",)
    made = Made()
    g = made.graph(y=made.put("ramp", n=T))
    for run_it in (lambda: Interpreter(g, {}, registry=BRICKS), lambda: lower(g, registry=BRICKS)):
        with pytest.raises(GraphirError, match="no tensor's shape tells the size of `T`, which `ramp` needs"):
            run_it()


def stepping():
    made = Made(x=Type("float", (B, T, 4)))
    x = made.put("linear", made["x"], path="in", out=4)
    for i in range(2):
        x = made.put("add", x, made.put("running_sum", x, path=f"layers.{i}.sum"), path=f"layers.{i}.add")
    return made.graph(y=x)


@pytest.mark.parametrize("cuts", [[1] * 7, [3, 4], [5, 1, 1], [7]])
def test_steps_equal_the_whole_sequence(cuts):
    g = stepping()
    interpreter = Interpreter(g, initialise(g), dtype=torch.float64, registry=BRICKS)
    x = torch.randn(2, 7, 4, dtype=torch.float64)
    parts, state = [], None
    for piece in x.split(cuts, 1):
        outputs, state = interpreter.run_step({"x": piece}, state)
        parts.append(outputs["y"])
    assert torch.allclose(torch.cat(parts, 1), interpreter.run({"x": x})["y"], rtol=1e-12)
    assert sorted(state) == ["layers.0.sum", "layers.1.sum"]
    assert state["layers.0.sum"]["total"].shape == (2, 4)


def test_what_cannot_be_stepped_is_refused():
    made = Made(x=Type("float", (B, T, 4)))
    g = made.graph(y=made.put("reversed", made["x"], path="layers.0.turn"))
    x = {"x": torch.zeros(1, 1, 4)}
    with pytest.raises(GraphirError) as error:
        Interpreter(g, {}, registry=BRICKS).run_step(x)
    assert codes(error) == ["E0810"]
    g = stepping()
    with pytest.raises(GraphirError) as error:
        Interpreter(g, initialise(g), registry=BRICKS).run_step(x, {"other.sum": {}})
    assert codes(error) == ["E0811"]


def test_as_a_module():
    g = language_model(2)
    network = InterpretedNetwork(g, initialise(g), registry=BRICKS)
    assert list(network.state_dict()) == list(g.weights)
    tokens = torch.zeros(1, 3, dtype=torch.int64)
    network(tokens=tokens).sum().backward()
    assert all(p.grad is not None for p in network.parameters())
    y = network(tokens)
    assert network.double()(tokens).dtype == torch.float64
    assert torch.allclose(network(tokens).float(), y, atol=1e-5)
    other = network.state_dict()
    other = {n: torch.zeros_like(t) for n, t in other.items()}
    network.load_state_dict(other, assign=True)
    assert not network(tokens, aux=True)[0].any()


def test_targets_are_refused_plainly():
    g = language_model(1)
    unknown = (({"target": "cpy"}, "E0806"), ({"mode": "inver"}, "E0806"), ({"target": "interpreter", "mode": "decode"}, "E0806"))
    for options, code in unknown:
        with pytest.raises(GraphirError) as error:
            compile_module(g, **options)
        assert codes(error) == [code]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_cuda_where_there_is_none_is_an_environment_problem():
    with pytest.raises(EnvironmentProblem, match="no CUDA device"):
        compile_module(language_model(1), "cuda")
