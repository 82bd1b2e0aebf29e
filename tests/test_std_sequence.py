"""The recurrent, convolutional and linear-attention blocks of the standard library."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import softplus

import graphir
from graphir.backends.interpreter import Interpreter
from graphir.backends.weights import initialise
from graphir.lang.diagnostic import GraphirError

import sequence_references as formulas

BLOCKS = {
    "mLSTM(heads = 4)": 5832,
    "mLSTM(heads = 2, proj = 1.0, multiple = 16, kernel = 0)": 16 * 32 + 3 * 64 + 2 * (48 * 2 + 2) + 16 + 16 + 256,
    "mLSTM7B(heads = 2)": 2 * 128 + 3 * 256 + 2 * (2 * 16 + 2) + 16,
    "mLSTM7B(heads = 2, key_dim = 12, value_dim = 20, chunk = 4)": 2 * 192 + 2 * 320 + 2 * (2 * 16 + 2) + 20 + 320,
    "sLSTM(heads = 4)": 16 * 5 + 4 * 64 + 4 * 64 + 64 + 16,
    "RGLRU(heads = 2)": 2 * (2 * 64 + 16) + 16,
    "Griffin(heads = 2, width = 24)": 2 * (16 * 24 + 24) + 24 * 5 + 2 * (2 * 144 + 24) + 24 + 24 * 16 + 16,
    "Mamba": 16 * 64 + 32 * 5 + 33 * 32 + 2 * 32 + 32 * 17 + 32 * 16,
    "Mamba(heads = 2, state = 4, dt_rank = 3, inner_norm = rmsnorm)": 16 * 64 + 32 * 5 + 2 * 11 * 16 + 11 + 2 * 48 + 32 + 32 * 5 + 32 * 16,
    "Mamba2": 16 * (64 + 256 + 1) + 288 * 5 + 3 + 32 + 32 * 16,
    "Mamba2(state = 8, head_dim = 8, groups = 2, chunk = 4)": 16 * (64 + 32 + 4) + 64 * 5 + 12 + 32 + 32 * 16,
    "LinearAttention(heads = 2)": 4 * 256,
    "GLA(heads = 2)": 2 * 128 + 256 + 256 + 16 * 8 + 8 + 8 + 256 + 256,
    "RetNet(heads = 2)": 2 * 256 + 3 * 512,
    "DeltaNet(heads = 2)": 4 * 256 + 3 * 64 + 32 + 8,
    "GatedDeltaNet(heads = 2)": 2 * 256 + 3 * 512 + 2 * 64 + 128 + 32 + 34 + 2 + 16,
    "RWKV4": 4 * 256 + 3 * 16 + 32,
    "RWKV5(heads = 2)": 5 * 256 + 4 * 16 + 32 + 32,
    "RWKV6(heads = 2, mix_rank = 4, decay_rank = 4)": 5 * 256 + 6 * 16 + 2 * 320 + 2 * 64 + 16 + 16 + 32,
    "RWKVChannel": 2 * 16 * 64 + 256 + 32,
    "Hyena(length = 16)": 16 * 48 + 48 + 48 * 4 + 16 + 3 * 16 + 16 + 2 * (256 + 16) + 256 + 16 + 256 + 16,
    "Hyena(order = 3, bands = 2, length = 16, expand = 2)": 17 * 128 + 128 * 4 + 16 + 6 * 16 + 2 * 17 * 16 + 2 * (16 * 32 + 32) + 33 * 16,
    "SlidingAttention(heads = 2, window = 3)": 4 * 256,
    "SinusoidalPositions": 0,
    "LearnedPositions(size = 16)": 256,
    "TokenMix": 16,
}
FORMULAS = {
    "LinearAttention(heads = 2)": formulas.linear_attention,
    "GLA(heads = 2)": formulas.gla,
    "RetNet(heads = 2)": formulas.retnet,
    "DeltaNet(heads = 2)": formulas.delta_net,
    "GatedDeltaNet(heads = 2)": formulas.gated_delta_net,
    "RWKV4": formulas.rwkv4,
    "RWKV5(heads = 2)": formulas.rwkv5,
    "RWKV6(heads = 2, mix_rank = 4, decay_rank = 4)": formulas.rwkv6,
    "RWKVChannel": formulas.rwkv_channel,
    "Hyena(order = 3, bands = 2, length = 16, expand = 2)": formulas.hyena,
}
LENGTH = 9
each = pytest.mark.parametrize("call", BLOCKS)


def model(call, **params):
    return graphir.load(f"model M(d = 16)(x: float[B, T, d]) -> (y: float[B, T, d]) {{ return x -> {call} as f }}", **params)


def noisy(graph, seed=0):
    """Initial weights with noise on top, in float64: none is zero or one by accident."""
    generator = torch.Generator().manual_seed(seed)
    made = initialise(graph, seed)
    return {name: t.double() + 0.1 * torch.randn(t.shape, generator=generator, dtype=torch.float64) for name, t in made.items()}


def signal(seed=1, batch=2, length=LENGTH, d=16):
    return torch.randn(batch, length, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def stepped(net, name, x, sizes):
    """Outputs of a run in pieces of these sizes, and the last state."""
    parts, state = [], None
    for piece in x.split(sizes, 1):
        outputs, state = net.run_step({name: piece}, state)
        parts.append(next(iter(outputs.values())))
    return torch.cat(parts, 1), state


@each
def test_block_has_the_parameters_of_its_formula(call):
    assert model(call).parameters == BLOCKS[call]


@each
def test_gradients_reach_every_fresh_weight(call):
    graph = model(call)
    weights = {name: t.double().requires_grad_() for name, t in initialise(graph).items()}
    x = signal().requires_grad_()
    y = Interpreter(graph, weights, dtype=torch.float64).run({"x": x})["y"]
    assert y.shape == x.shape
    y.square().sum().backward()
    for name, tensor in {**weights, "x": x}.items():
        assert tensor.grad.isfinite().all(), name
        assert tensor.grad.abs().max() > 0, name


@each
@pytest.mark.parametrize("sizes", [(4, 1, 1, 1, 1, 1), (1,) * LENGTH, (2, 3, 4)], ids=["prefill", "steps", "pieces"])
def test_pieces_give_the_whole(call, sizes):
    graph = model(call)
    net = Interpreter(graph, noisy(graph), dtype=torch.float64)
    x = signal()
    torch.testing.assert_close(stepped(net, "x", x, sizes)[0], net.run({"x": x})["y"], rtol=1e-9, atol=1e-9)


@each
def test_no_token_sees_a_later_one_nor_another_row(call):
    graph = model(call)
    net = Interpreter(graph, noisy(graph), dtype=torch.float64)
    x = signal()
    other = x.clone()
    other[0, 5:] += 1.0
    before, after = net.run({"x": x})["y"], net.run({"x": other})["y"]
    torch.testing.assert_close(after[0, :5], before[0, :5], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(after[1], before[1], rtol=0, atol=0)
    assert (after[0, 5:] - before[0, 5:]).abs().max() > 1e-3


@each
def test_fx_gives_what_the_interpreter_gives(call):
    graph = model(call)
    weights = {name: t.float() for name, t in noisy(graph).items()}
    net = graphir.compile(graph, weights=weights)
    x = signal().float()
    with torch.no_grad():
        torch.testing.assert_close(net(x=x), Interpreter(graph, weights).run({"x": x})["y"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("call", FORMULAS)
def test_block_computes_the_formula_of_its_paper(call):
    graph = model(call)
    weights = noisy(graph)
    wanted = FORMULAS[call](signal(), {name.removeprefix("f."): t for name, t in weights.items()})
    given = Interpreter(graph, weights, dtype=torch.float64).run({"x": signal()})["y"]
    torch.testing.assert_close(given, wanted, rtol=1e-8, atol=1e-8)


CHUNKED = [
    "mLSTM(heads = 4", "mLSTM7B(heads = 2", "Mamba2(state = 8, head_dim = 8", "LinearAttention(heads = 2", "GLA(heads = 2",
    "RetNet(heads = 2", "DeltaNet(heads = 2", "GatedDeltaNet(heads = 2", "RWKV5(heads = 2", "RWKV6(heads = 2",
]  # fmt: skip


@pytest.mark.parametrize("call", CHUNKED)
@pytest.mark.parametrize("chunk", [1, 4, LENGTH])
def test_chunk_changes_nothing(call, chunk):
    whole, cut = model(f"{call})"), model(f"{call}, chunk = {chunk})")
    weights = noisy(whole)
    wanted = Interpreter(whole, weights, dtype=torch.float64).run({"x": signal()})["y"]
    torch.testing.assert_close(Interpreter(cut, weights, dtype=torch.float64).run({"x": signal()})["y"], wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("form", ["parallel", "recurrent"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-5), (torch.float64, 1e-6)])
def test_forms_of_the_mlstm_agree(form, dtype, tolerance):
    chunked, other = model("mLSTM(heads = 4, chunk = 32)"), model(f'mLSTM(heads = 4, form = "{form}")')
    weights, x = noisy(chunked), signal(length=100)
    wanted, given = (Interpreter(g, weights, dtype=dtype).run({"x": x})["y"] for g in (chunked, other))
    assert (given - wanted).abs().max() <= tolerance * max(1.0, float(wanted.abs().max()))


STACK = """model Stack(d = 128, depth = 8, slstm = [1])(x: float[B, T, d]) -> (y: float[B, T, d]) {
  norm = layernorm(bias = false)
  m = residual(norm -> mLSTM(4))
  s = Layer(sLSTM(4), GeGLU(ceil(1.3 * d / 64) * 64), norm)
  return x -> [s if i in slstm else m for i in 0..depth] -> norm
}"""


def test_xlstm_7_1_has_the_published_number_of_parameters():
    assert graphir.load(STACK).parameters == 874_296
    assert graphir.load(STACK, depth=1, slstm=[]).parameters - 128 == 109_448
    assert graphir.load(STACK, depth=1, slstm=[0]).parameters - 128 == 108_032


@pytest.mark.parametrize(
    ("program", "parameters"),
    [
        ("models/xlstm_hf", 6_865_424_896), ("lfm2", 1_170_340_608), ("models/mamba", 129_135_360), ("models/mamba2", 7_285_403_648),
        ("models/jamba", 51_570_323_328), ("models/recurrent_gemma", 2_682_862_080), ("models/xlstm_mlstm", 163_806_144),
        ("models/xlstm_7_1", 163_690_928), ("models/zamba", 7_232_490_496),
    ],
)  # fmt: skip
def test_full_size_is_counted_without_making_it(program, parameters, examples):
    assert graphir.load(examples / f"{program}.arch").parameters == parameters


@pytest.fixture
def examples(request):
    return request.config.rootpath / "examples"


@pytest.mark.parametrize(
    ("program", "params"),
    [
        ("xlstm_7_1", {"vocab": 50, "d": 32, "groups": 1}), ("zamba", {"vocab": 50, "d": 32, "heads": 4, "n": 1}),
        ("backends", {"vocab": 50, "d": 32}), ("fork_join", {}),
    ],
)  # fmt: skip
def test_examples_decode(program, params, examples):
    graph = graphir.load(examples / f"{program}.arch", **params)
    net = Interpreter(graph, initialise(graph), dtype=torch.float64)
    name, value = graph.inputs[0]
    x = signal(d=64) if value.type.dtype == "float" else torch.arange(18).view(2, 9)
    torch.testing.assert_close(stepped(net, name, x, (4, 1, 1, 3))[0], net.run({name: x})["output"], rtol=1e-9, atol=1e-9)


def test_window_bounds_the_memory():
    graph = model("SlidingAttention(heads = 2, window = 3)")
    net = Interpreter(graph, initialise(graph))
    state = stepped(net, "x", signal(length=30).float(), [10] + [1] * 20)[1]
    assert state["f.k_cache"]["past"].shape == state["f.v_cache"]["past"].shape == (2, 2, 2, 8)


def test_weights_start_as_published():
    w = initialise(model("mLSTM(heads = 4, layers = 5)", d=64))
    assert not w["f.i.weight"].any()
    assert not w["f.f.weight"].any()
    torch.testing.assert_close(w["f.f.bias"], torch.linspace(3, 6, 4))
    assert 0 < w["f.i.bias"].abs().max() < 0.6
    assert w["f.up.weight"].std().item() == pytest.approx(math.sqrt(2 / (5 * 64)), rel=0.05)
    assert w["f.q.weight"].std().item() == pytest.approx(math.sqrt(2 / (5 * 64)), rel=0.15)
    assert w["f.down.weight"].std().item() == pytest.approx(2 / 5 / math.sqrt(64), rel=0.05)

    w = initialise(model("mLSTM7B(heads = 2)"))
    torch.testing.assert_close(w["f.i.bias"], torch.full((2,), -10.0))

    w = initialise(model("sLSTM(heads = 4, place = 1.0)", d=32))
    i, f, z, o = w["f.cell.bias"].view(4, 4, 8)
    assert not torch.stack([i, z, o]).any()
    assert not w["f.cell.recurrent"].any()
    torch.testing.assert_close(f, (5 - 12 * (torch.arange(8) / 7) ** 1.6).expand(4, 8))

    w = initialise(model("Mamba"))
    torch.testing.assert_close(w["f.scan.A_log"], torch.arange(1.0, 17).log().expand(32, 16))
    steps = softplus(w["f.dt_proj.bias"])
    assert steps.min() >= 1e-3 * 0.999
    assert steps.max() <= 1e-1 * 1.001
    assert w["f.dt_proj.weight"].abs().max() <= 1.0

    w = initialise(model("Mamba2"))
    assert w["f.ssd.A_log"].min() >= 0
    assert w["f.ssd.A_log"].max() <= math.log(16)


def codes(call):
    with pytest.raises(GraphirError) as caught:
        model(call, d=6)
    return [d.code for d in caught.value.diagnostics]


def test_what_does_not_fit_is_said():
    assert codes("sLSTM(4)") == ["E0210"]
    assert codes("Hyena(order = 1)") == ["E0210"]
    assert codes("Mamba2(head_dim = 5)") == ["E0401"]
    assert codes("mLSTM") == ["E0303"]
    assert codes('linear(6, bias_init = "zeroes")') == ["E0404"]
    assert codes('linear(6, init = ["normal", 1.0, 2.0])') == ["E0404"]
    assert codes('rmsnorm(bias_init = "ones")') == ["E0302"]
