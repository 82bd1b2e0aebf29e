"""What runs on an NVIDIA GPU, against the CPU (`pytest -m cuda`). Most tests have a twin on the CPU, so that their code is run everywhere."""

from __future__ import annotations

import pytest
import torch
import torch.nn.attention.flex_attention as flex_module
from safetensors.torch import load_file

import graphir
from graphir.backends.decode import lower_decoder
from graphir.backends.interpreter import Interpreter
from graphir.backends.samples import sample_inputs
from graphir.backends.weights import initialise
from graphir.bricks import attention, flex
from graphir.bricks.attention import sdpa
from graphir.cli.main import run

from small import EXAMPLES, SIZES, SMALL

NAMES = sorted(p.stem for p in EXAMPLES.glob("*.arch") if p.stem not in ("space", "backends"))  # that one is about MLX

WITHOUT_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
CUDA = pytest.param("cuda", marks=[pytest.mark.cuda, WITHOUT_GPU])
DEVICES = pytest.mark.parametrize("device", ["cpu", CUDA])
SLOW_ON_CPU = pytest.mark.parametrize("device", [pytest.param("cpu", marks=pytest.mark.slow), CUDA])


@pytest.fixture(autouse=True)
def _whole_single_precision(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def example(name):
    """A small example: graph, inputs, weights, outputs in float64."""
    graph = graphir.load(EXAMPLES / f"{name}.arch", **SMALL.get(name, {}))
    inputs, weights = sample_inputs(graph, SIZES.get(name, {}), 0), initialise(graph, 0)
    return graph, inputs, weights, Interpreter(graph, weights, dtype=torch.float64).run(inputs)


def outputs_of(net, graph, inputs, device):
    """The outputs by name, brought to the CPU; they come from the device asked for."""
    out = net(**{n: t.to(device) for n, t in inputs.items()})
    values = out if isinstance(out, tuple) else (out,)
    assert {v.device.type for v in values} == {device}
    return {n: v.cpu() for (n, _), v in zip(graph.outputs, values)}


def close(found, wanted, relative):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        scale = value.abs().max().clamp_min(1e-30)
        assert ((found[name].double() - value).abs() / scale).max() <= relative, name


@pytest.mark.parametrize(
    ("name", "device"),
    [("odds", "cpu"), ("lfm2", "cpu"), ("two_towers", "cpu"), *(pytest.param(n, *CUDA.values, marks=CUDA.marks) for n in NAMES)],
)
def test_examples_give_what_the_interpreter_gives(name, device):
    graph, inputs, weights, wanted = example(name)
    net = graphir.compile(graph, target=device, weights=weights).eval()
    assert {t.device.type for t in net.state_dict().values()} == {device}
    with torch.no_grad():
        close(outputs_of(net, graph, inputs, device), wanted, 1e-3)


@DEVICES
@pytest.mark.parametrize("name", ["lfm2", "hetero_moe"])
def test_gradients_are_those_of_the_cpu(name, device):
    graph, inputs, weights, _ = example(name)
    norms = []
    for target in ("cpu", device):
        net = graphir.compile(graph, target=target, weights=weights)
        sum(v.square().mean() for v in outputs_of(net, graph, inputs, target).values()).backward()
        norms.append({n: p.grad.norm().item() for n, p in net.named_parameters() if p.grad is not None})
    assert norms[1] == pytest.approx(norms[0], rel=1e-2, abs=1e-5)


@SLOW_ON_CPU
@pytest.mark.parametrize("mode", ["train", "infer"])
def test_inductor(device, mode):
    graph, inputs, weights, wanted = example("lfm2")
    net = graphir.compile(graph, target=device, mode=mode, weights=weights, inductor=True).eval()
    with torch.no_grad():
        close(outputs_of(net, graph, inputs, device), wanted, 1e-3)


@DEVICES
def test_half_precision_by_autocast(device):
    graph, inputs, weights, wanted = example("lfm2")
    net = graphir.compile(graph, target=device, weights=weights)
    with torch.autocast(device, torch.bfloat16):
        found = outputs_of(net, graph, inputs, device)
    close(found, wanted, 0.1)
    sum(v.float().square().mean() for v in found.values()).backward()
    assert all(p.dtype == torch.float32 and torch.isfinite(p.grad).all() for p in net.parameters())


@pytest.fixture
def flexible(monkeypatch):
    """On the CPU, which has no kernel for it, attention in its FlexAttention form by the formula; on CUDA as it is."""

    def prepare(device):
        if device == "cpu":
            monkeypatch.setattr(attention, "suits", lambda *tensors: True)
            monkeypatch.setattr(flex, "kernel", lambda *traits: flex.attend)
            monkeypatch.setattr(flex_module, "_validate_device", lambda *tensors: None)
        else:
            flex.kernel.cache_clear()
        torch._dynamo.reset()

    yield prepare
    torch._dynamo.reset()


FORMS = [
    {"causal": True, "softcap": 5.0},
    {"causal": True, "window": 40, "sinks": True},
    {"chunk": 100, "alibi": True, "mask": True},
    {"causal": True, "window": 150, "chunk": 200, "softcap": 3.0, "alibi": True, "sinks": True, "mask": True, "bias": True},
]


@DEVICES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("queries", "keys"), [(200, 200), (130, 300)])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_flex_attention_is_attention_by_hand(flexible, form, queries, keys, dtype, device):
    generator = torch.Generator().manual_seed(0)
    make = lambda *shape: torch.randn(shape, generator=generator).to(dtype)  # noqa: E731
    leaves = [make(2, 4, queries, 32), make(2, 2, keys, 32), make(2, 2, keys, 16)]
    given = {"mask": torch.rand(2, keys, generator=generator) > 0.3} if form.get("mask") else {}
    given |= {"bias": make(1, 4, queries, keys)} if form.get("bias") else {}
    leaves += [make(4)] if form.get("sinks") else []
    options = {n: v for n, v in form.items() if n not in ("mask", "bias", "sinks")}
    exact = {n: t.double() if t.is_floating_point() else t for n, t in given.items()}
    wanted = both(leaves, exact, options, torch.float64, "cpu")
    flexible(device)
    found = both(leaves, given, options, dtype, device)
    limit = 1e-4 if dtype == torch.float32 else 0.05
    for one, other in zip(found, wanted):
        assert ((one.double().cpu() - other).abs() / other.abs().max()).max() <= limit
    if device == "cuda":
        assert flex.kernel.cache_info().currsize == 1


def both(leaves, given, options, dtype, device):
    """Attention and its gradients for a fixed gradient from above."""
    leaves = [t.detach().to(device, dtype).requires_grad_() for t in leaves]
    sinks = leaves[3] if len(leaves) > 3 else None
    y = sdpa(*leaves[:3], sinks=sinks, **{n: t.to(device) for n, t in given.items()}, **options)
    up = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
    return y.detach(), *torch.autograd.grad(y, leaves, up)


@DEVICES
def test_a_model_of_local_attention_trains(flexible, device):
    graph = graphir.load("""
    model M(x: float[B, T, 64]) -> float[B, T, 64] {
      return x -> ([residual(rmsnorm -> Attention(4, kv = 2, window = 50, softcap = 8.0, sink = true))] * 2)
    }
    """)
    weights, inputs = initialise(graph, 0), sample_inputs(graph, {"B": 2, "T": 160}, 0)
    wanted = Interpreter(graph, weights, dtype=torch.float64).run(inputs)
    plain = graphir.compile(graph, weights=weights)
    plain(**inputs).square().mean().backward()
    flexible(device)
    net = graphir.compile(graph, target=device, weights=weights)
    found = outputs_of(net, graph, inputs, device)
    close({n: v.detach() for n, v in found.items()}, wanted, 1e-3)
    next(iter(found.values())).square().mean().backward()
    for (name, one), other in zip(net.named_parameters(), plain.parameters()):
        torch.testing.assert_close(one.grad.cpu(), other.grad, rtol=1e-2, atol=1e-5, msg=name)


def stepped(net, tokens, state, first, step):
    """Logits of all positions: a prefill of `first` tokens, then `step(token, state)` for each of the rest, writing into the state."""
    y, after = net(tokens[:, :first], state=state)
    parts, state = [y], {key: tensor.clone() for key, tensor in after.items()}
    with torch.no_grad():
        take = step(net, tokens[:, :1].clone(), state)
    for place in range(first, tokens.shape[1]):
        parts.append(take(tokens[:, place : place + 1]).clone())
    return torch.cat(parts, 1)


def eagerly(net, token, state):
    """Each step is run; what comes of the state is copied over the old."""

    def take(given):
        with torch.no_grad():
            token.copy_(given)
            y, after = net(token, state=state)
            for key, tensor in after.items():
                state[key].copy_(tensor)
        return y

    return take


def captured(net, token, state):
    """The same, recorded once as a CUDA graph; a replay reads the token, and reads and writes the state, where they lie."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        net(token, state=state)
    torch.cuda.current_stream().wait_stream(stream)
    recorded = torch.cuda.CUDAGraph()
    with torch.cuda.graph(recorded):
        y, after = net(token, state=state)
        for key, tensor in after.items():
            state[key].copy_(tensor)

    def take(given):
        token.copy_(given)
        recorded.replay()
        return y

    return take


@pytest.mark.parametrize(("device", "step"), [("cpu", eagerly), pytest.param("cuda", captured, marks=CUDA.marks)])
@pytest.mark.parametrize("name", ["lfm2", "zamba"])
def test_a_language_model_decodes_by_replaying_one_step(name, device, step):
    graph, inputs, weights, wanted = example(name)
    tokens = next(iter(inputs.values())).to(device)
    net = lower_decoder(graph, weights, dtype=torch.float32, device=device)
    with torch.no_grad():
        found = stepped(net, tokens, net.init_state(tokens.shape[0], length=tokens.shape[1]), 5, step)
    close({n: found.cpu() for n in wanted}, wanted, 1e-3)


@DEVICES
def test_the_command_line_runs_there(device, tmp_path, capsys):
    files = [str(tmp_path / f"{target}.safetensors") for target in ("interpreter", device)]
    for target, file in zip(("interpreter", device), files):
        assert run(["run", str(EXAMPLES / "odds.arch"), "--target", target, "-o", file]) == 0
    assert "output: float32[2, 1]" in capsys.readouterr().out
    close(load_file(files[1]), {n: t.double() for n, t in load_file(files[0]).items()}, 1e-4)
