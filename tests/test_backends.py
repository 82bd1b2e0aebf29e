"""Parts of a model on other backends: MLX computes what torch does, values and gradients, and is really the one that computes."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path

import pytest
import torch

import graphir
from graphir.backends.mlx_table import TABLE, accepts
from graphir.backends.samples import sample_inputs
from graphir.backends.settle import Replaced, settle
from graphir.bricks.build import Builder
from graphir.bricks.call import complete, read_example
from graphir.bricks.declare import REGISTRY, make_weight
from graphir.ir.dims import Facts
from graphir.ir.graph import Attrs, Graph, Value, Where
from graphir.lang.diagnostic import EnvironmentProblem, GraphirError
from graphir.passes import DEFAULT, run_pipeline

ROOT = Path(__file__).parent.parent
pytest.importorskip("mlx.core")


def one_brick(op: str, text: str) -> Graph:
    """A graph of the brick alone, on MLX, as an example of its declaration uses it."""
    declaration = REGISTRY[op]
    attrs, types = read_example(declaration, text)
    facts = Facts()
    attrs = complete(declaration, types, attrs, facts)
    inputs = tuple([(f"x{i}", Value(t)) for i, t in enumerate(types)])
    rules = declaration.weight_shapes(declaration.names(types, attrs, facts), facts)
    weights = {f"w.{r.path or r.role}": make_weight(r, shape, attrs, "normal(0.5)", False) for r, shape in rules}
    named = tuple([(r.role, f"w.{r.path or r.role}") for r, _ in rules])
    builder = Builder(facts, weights=weights)
    node = builder.emit(op, [v for _, v in inputs], Attrs(attrs), named, Where("w", (op,), None, "mlx"))
    outputs = tuple([(f"y{i}", v) for i, v in enumerate(node.outputs)])
    return Graph(op, inputs, tuple(builder.nodes), outputs, weights)


def on_fx(graph: Graph) -> Graph:
    return run_pipeline(graph, "place{override=true}")


POSITIVE = ("log", "sqrt", "rsqrt")
CASES = [(op, text) for op in TABLE for text in REGISTRY[op].examples if text != "arange(T)"]


@pytest.mark.parametrize(("op", "text"), CASES, ids=[f"{op}-{i}" for i, (op, _) in enumerate(CASES)])
def test_a_brick_in_mlx_is_the_brick_in_torch(op, text):
    graph = one_brick(op, text)
    if op == "fork":
        return
    assert accepts(graph.nodes[0]), text
    module, plain = graphir.compile(graph, passes="", mode="infer"), graphir.compile(on_fx(graph), passes="", mode="infer")
    assert any(type(m).__name__ == "MLXPart" for m in module.modules())
    inputs = sample_inputs(graph, {}, 0)
    if op in POSITIVE:
        inputs = {name: t.abs() + 0.1 for name, t in inputs.items()}
    got, wanted = ([t for t in (out if isinstance(out, tuple) else (out,))] for out in (run(module, inputs), run(plain, inputs)))
    for a, b in zip(got, wanted, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-5)
    compare_gradients(module, plain, inputs)


def run(module, inputs):
    return module(**inputs)


def compare_gradients(module, plain, inputs):
    """Of a fixed weighted sum of the float results, by inputs and weights."""
    found = []
    for net in (module, plain):
        given = {n: t.clone().requires_grad_(t.is_floating_point()) for n, t in inputs.items()}
        out = net(**given)
        floats = [t for t in (out if isinstance(out, tuple) else (out,)) if t.is_floating_point() and t.requires_grad]
        leaves = [*[t for t in given.values() if t.requires_grad], *net.parameters()]
        if not floats or not leaves:
            return
        total = sum((torch.where(t.isfinite(), t, 0.0) * torch.linspace(0.5, 1.5, t.numel()).view(t.shape)).sum() for t in floats)
        found.append(torch.autograd.grad(total, leaves, allow_unused=True))
    for a, b in zip(*found, strict=True):
        a, b = (torch.zeros(()) if t is None else t for t in (a, b))
        torch.testing.assert_close(*torch.broadcast_tensors(a, b), rtol=1e-4, atol=1e-4)


# whole models


MIXED = (ROOT / "examples/backends.arch").read_text("utf-8").replace(" on inductor", "")
SMALL = {"d": 32, "vocab": 32}


def twins(text: str, **params):
    """The same model with its parts where the text puts them, and all on fx."""
    graph = graphir.load(text, **params)
    return graphir.compile(graph), graphir.compile(graph, passes=f"{DEFAULT},place{{override=true}}")


def close(got: torch.Tensor, wanted: torch.Tensor, tolerance: float) -> None:
    assert (got - wanted).abs().max() <= tolerance * wanted.abs().max()


@pytest.fixture
def runs(monkeypatch):
    """How often MLX ran a part, forward or backward."""
    from graphir.backends.mlx import Program

    count = Counter()
    call = Program.__call__

    def counted(self, *rest):
        count["runs"] += 1
        return call(self, *rest)

    monkeypatch.setattr(Program, "__call__", counted)
    return count


def test_the_example_runs_by_mlx_as_it_does_by_torch(runs):
    net, plain = twins(MIXED, **SMALL)
    assert net.state_dict().keys() == plain.state_dict().keys()
    tokens = torch.randint(32, (2, 9), generator=torch.Generator().manual_seed(1))
    got, wanted = net(tokens), plain(tokens)
    assert runs["runs"] == 4
    close(got, wanted, 1e-5)
    got.square().mean().backward()
    wanted.square().mean().backward()
    assert runs["runs"] == 8
    for name, parameter in plain.named_parameters():
        close(net.get_parameter(name).grad, parameter.grad, 1e-4)


def test_equal_parts_are_one_program():
    net, _ = twins(MIXED, **SMALL)
    programs = [m.program for m in net.modules() if type(m).__name__ == "MLXPart"]
    assert len(programs) == 4
    # the first reads the embedding alone; the others also fuse the sum before them with their norm, where nothing lies between
    assert len({id(p) for p in programs}) <= 2


def test_training_through_the_border_is_training():
    net, plain = twins(MIXED, **SMALL)
    generator = torch.Generator().manual_seed(2)
    losses = {}
    for name, module in (("mlx", net), ("fx", plain)):
        generator.manual_seed(2)
        optimiser = torch.optim.SGD(module.parameters(), 0.05, momentum=0.9)
        losses[name] = []
        for _ in range(15):
            tokens = torch.randint(8, (4, 10), generator=generator)
            loss = torch.nn.functional.cross_entropy(module(tokens).flatten(0, 1), tokens.flatten())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses[name].append(loss.item())
    assert losses["mlx"][-1] < 0.7 * losses["mlx"][0]
    assert losses["fx"][-1] < 0.7 * losses["fx"][0]
    # rounding grows from step to step, in either alike
    assert losses["mlx"][:4] == pytest.approx(losses["fx"][:4], rel=1e-3)


def test_weights_changed_by_any_hand_are_seen():
    net, _ = twins("model M(x: [B, 4]) -> [B, 4] { return x -> linear(4) on mlx }")
    x = torch.randn(2, 4)
    net(x)
    net.linear.weight.data.zero_()
    torch.testing.assert_close(net(x), net.linear.bias.expand(2, 4))


def test_copies_and_pickles_keep_their_parts(runs):
    net, _ = twins(MIXED, **SMALL)
    tokens = torch.arange(6).view(1, 6)
    wanted = net(tokens)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        runs.clear()
        assert torch.equal(other(tokens), wanted)
        assert runs["runs"] == 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_precision_is_kept(dtype):
    net, plain = (m.to(dtype) for m in twins("model M(x: [B, T, 8]) -> [B, T, 8] { return x -> Layer(Attention(2), SwiGLU) on mlx }"))
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    got, wanted = net(x), plain(x)
    assert got.dtype == dtype
    close(got.double(), wanted.double(), 0.03)


def test_double_precision_is_refused_not_rounded():
    net, _ = twins("model M(x: [B, 8]) -> [B, 8] { return x -> SwiGLU on mlx }")
    with pytest.raises(GraphirError, match=r"E0830.*float64"):
        net.double()(torch.randn(2, 8).double())


MIXERS = {
    "Attention": "Attention(4, kv = 2)", "ShortConv": "ShortConv(kernel = 4)", "Mamba": "Mamba(state = 4)",
    "Mamba2": "Mamba2(heads = 4, state = 4)", "mLSTM": "mLSTM(4)", "sLSTM": "sLSTM(4)", "lstm": "lstm(32)", "RetNet": "RetNet(4)",
    "GLA": "GLA(4)", "LinearAttention": "LinearAttention(4)", "Griffin": "Griffin(4)",
}


@pytest.mark.parametrize("mixer", MIXERS)
def test_a_layer_of_each_mixer(mixer, runs):
    with warnings.catch_warnings():
        warnings.simplefilter("error", Replaced)
        net, plain = twins(f"model M(x: [B, T, 32]) -> [B, T, 32] {{ return x -> Layer({MIXERS[mixer]}, SwiGLU) on mlx }}")
    x, y = (torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(0)).requires_grad_() for _ in range(2))
    got, wanted = net(x), plain(y)
    assert runs["runs"] == 1
    close(got, wanted, 1e-5)
    got.square().mean().backward()
    wanted.square().mean().backward()
    close(x.grad, y.grad, 1e-4)
    for name, parameter in plain.named_parameters():
        close(net.get_parameter(name).grad, parameter.grad, 1e-4)


def test_a_filter_runs_dense_on_mlx(runs):
    text = """model M(x: [B, T, 8]) -> [B, T, 8] {
      return x -> filter(linear(3) -> softmax, keep = 2) { a: SwiGLU  b: linear(8)  c: id } on mlx
    }"""
    net, plain = twins(text)
    x = torch.randn(2, 5, 8)
    close(net(x), plain(x), 1e-5)
    assert runs["runs"] == 1


def test_dropout_draws_the_same_mask_forward_and_backward():
    net, _ = twins("model M(x: [B, 64]) -> [B, 64] { return x -> dropout(0.5) on mlx }")
    x = torch.ones(4, 64, requires_grad=True)
    torch.manual_seed(3)
    y = net(x)
    y.sum().backward()
    assert torch.equal(y.detach(), x.grad)
    assert 0.3 < (y == 0).float().mean() < 0.7
    torch.manual_seed(3)
    assert torch.equal(net(x), y)
    assert torch.equal(net.eval()(x), x)


def test_results_do_not_share_memory():
    text = """model M(x: [B, 6]) -> (a: [B, 6], b: [2, B, 3]) {
      y = x -> silu on mlx
      z = y -> rearrange("b (n k) -> n b k", n = 2) on mlx
      return y, z
    }"""
    net, _ = twins(text)
    a, b = net(torch.randn(2, 6))
    before = b.clone()
    a.zero_()
    assert torch.equal(b, before)


# what cannot run where it is put


LACKS = "model M(x: [B, T, 4]) -> [B, T, 4] { return x -> linear(4) -> softmax -> sparsemax -> linear(4) }"
LACKS_ON_MLX = LACKS.replace("linear(4) -> softmax -> sparsemax -> linear(4)", "[linear(4), softmax, sparsemax, linear(4)] on mlx")


def test_what_mlx_lacks_goes_to_fx_and_says_so(runs):
    with pytest.warns(Replaced, match=r"note\[E0830\]: `sparsemax` has no implementation in MLX: `layers.2` will run on fx"):
        net = graphir.compile(LACKS_ON_MLX)
    net(torch.randn(2, 3, 4))
    assert runs["runs"] == 2


def test_strict_refuses():
    with pytest.raises(GraphirError, match=r"error\[E0830\].*sparsemax.*cannot run there"):
        graphir.compile(LACKS_ON_MLX, strict=True)


def test_joins_and_stitches_that_mlx_lacks_are_taken_apart(runs):
    text = """model M(x: [B, T, 4]) -> [B, T, 4] {
      y = x -> fork { a: linear(4)  b: linear(6) ~> linear(4) } -> attend(query = x, heads = 2) on mlx
      return y -> stitch(4, form = "mlp") on mlx
    }"""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Replaced)
        net, plain = twins(text)
    x = torch.randn(2, 3, 4)
    close(net(x), plain(x), 1e-5)
    assert runs["runs"] >= 1


def test_export_of_an_mlx_part_says_what_to_do():
    from graphir.backends.pt2 import export

    net, plain = twins("model M(x: [B, 8]) -> [B, 8] { return x -> SwiGLU on mlx }")
    with pytest.raises(GraphirError, match=r"E0808.*is on mlx"):
        export(net)
    assert export(plain) is not None


def test_nothing_to_settle_is_the_same_graph():
    graph = graphir.load(LACKS)
    assert settle(graph) == (graph, [])


def test_without_mlx_the_line_to_type(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlx.core", None)
    with pytest.raises(EnvironmentProblem, match=r"pip install 'graphir\[mlx\]'"):
        graphir.compile(MIXED, **SMALL)


def test_the_command_line_exits_with_3_without_mlx(tmp_path):
    program = tmp_path / "m.arch"
    program.write_text(LACKS_ON_MLX)
    code = (
        "import sys; sys.modules['mlx.core'] = None; from graphir.cli.main import main; sys.argv = ['graphir', 'run', sys.argv[1]]; main()"
    )
    done = subprocess.run([sys.executable, "-c", code, str(program)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 3
    assert "pip install 'graphir[mlx]'" in done.stderr
    done = subprocess.run([sys.executable, "-m", "graphir.cli.main", "run", str(program)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "E0830" in done.stderr
    assert "Replaced" not in done.stderr


# other backends


def test_interpreter_parts_are_run_by_the_interpreter(monkeypatch):
    from graphir.backends import parts

    made = []
    monkeypatch.setattr(parts, "Interpreter", lambda *a, kind=parts.Interpreter, **k: made.append(a[0]) or kind(*a, **k))
    net, plain = twins("model M(x: [B, T, 8]) -> [B, T, 8] { return x -> Layer(Attention(2), SwiGLU) on interpreter -> linear(8) }")
    x, y = (torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0)).requires_grad_() for _ in range(2))
    got, wanted = net(x), plain(y)
    assert len(made) == 1
    torch.testing.assert_close(got, wanted)
    got.sum().backward()
    wanted.sum().backward()
    torch.testing.assert_close(x.grad, y.grad)


def test_fx_is_where_everything_runs_anyway():
    graph = graphir.load("model M(x: [B, 8]) -> [B, 8] { return x -> SwiGLU on fx }")
    net = graphir.compile(graph)
    assert type(net.get_submodule("")).__name__ != "MLXPart"
    assert all(type(m).__name__ != "MLXPart" for m in net.modules())


@pytest.mark.slow
def test_inductor_parts_are_compiled_and_alike_ones_once():
    from torch._dynamo.utils import counters

    counters.clear()
    text = "model M(x: [B, T, 8]) -> [B, T, 8] { return x -> ([Layer(ShortConv, SwiGLU) on inductor, SwiGLU on mlx] * 3) }"
    net, plain = twins(text)
    x = torch.randn(2, 5, 8)
    close(net(x), plain(x), 1e-5)
    assert counters["stats"]["unique_graphs"] <= 2
    close(copy.deepcopy(net)(x), plain(x), 1e-5)


def test_decoding_moves_parts_to_fx_and_says_so():
    with pytest.warns(Replaced, match="`mlx` parts do not decode step by step"):
        net = graphir.compile(MIXED, mode="decode", **SMALL)
    plain = graphir.compile(MIXED, mode="infer", **SMALL, passes=f"{DEFAULT},place{{override=true}}")
    tokens = torch.arange(6).view(1, 6)
    first, state = net(tokens[:, :4])
    second, _ = net(tokens[:, 4:], state)
    torch.testing.assert_close(torch.cat([first, second], 1), plain(tokens), rtol=1e-4, atol=1e-4)
