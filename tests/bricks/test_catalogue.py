"""Every declared brick, by its own examples: its body gives what its header says, in every precision, and its gradient is right."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from support import DTYPES, EXAMPLES, FACTS, SIZES, case

from graphir.bricks.declare import REGISTRY
from graphir.ir.dims import Poly

OWN = {
    "graphir.bricks." + m
    for m in "activation basic index join losses norm pointwise pooling route simplex stitch tensor".split()
}
MINE = [(name, text) for name, text in EXAMPLES if REGISTRY[name].file in OWN]
# bricks whose gradient is not that of their values: tests of their own say what it is
STRAIGHT = {"hardmax", "gumbel", "detach"}


def expected_dtype(kind: str, dtype: torch.dtype) -> set[torch.dtype]:
    return {DTYPES[kind]} if kind in DTYPES else {dtype}


@pytest.mark.parametrize("name", [d.name for d in REGISTRY])
def test_header_and_examples_are_there(name):
    declaration = REGISTRY[name]
    assert declaration.header.name == name
    assert declaration.doc
    assert declaration.examples, "the manual and these tests need an example"
    assert declaration.port_names == tuple(p.name for p in declaration.ports)


@pytest.mark.parametrize(("name", "text"), MINE)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_body_gives_what_the_header_says(name, text, dtype):
    it = case(name, text)
    inputs = it.inputs(dtype)
    before = [x.clone() for x in inputs]
    out = it.run(inputs, it.weights(dtype), dtype=dtype)
    wide = {"rms_statistic", "moments"}
    for result, type in zip(out, it.results, strict=True):
        assert tuple(result.shape) == type.sizes(SIZES)
        allowed = expected_dtype(type.dtype, dtype) | ({torch.float32} if name in wide and dtype == torch.bfloat16 else set())
        assert result.dtype in allowed
    assert all(torch.equal(a, b) for a, b in zip(inputs, before)), "an input was changed"


@pytest.mark.parametrize(("name", "text"), [(n, t) for n, t in MINE if "B" in t.partition(" : ")[2]])
def test_batch_of_zero(name, text):
    it = case(name, text)
    sizes = {**SIZES, "B": 0}
    out = it.run(it.inputs(torch.float32, sizes), it.weights(torch.float32), sizes, dtype=torch.float32)
    for result, type in zip(out, it.results, strict=True):
        assert tuple(result.shape) == type.sizes(sizes)
        assert not result.isnan().any() if not type.shape else True


@pytest.mark.parametrize(("name", "text"), [(n, t) for n, t in MINE if REGISTRY[n].elementwise or REGISTRY[n].per_token])
def test_each_token_for_itself(name, text):
    it = case(name, text)
    axes = [t.shape[:1] for t in it.types]
    if any(a != axes[0] or not isinstance(a[0], Poly) for a in axes if a):
        return
    inputs, weights = it.inputs(), it.weights()
    rows = [x[1:] if t.shape[:1] == axes[0] else x for x, t in zip(inputs, it.types)]
    for whole, part in zip(it.run(inputs, weights), it.run(rows, weights)):
        torch.testing.assert_close(whole[1:], part, rtol=1e-12, atol=1e-12)


def differentiable() -> list[tuple[str, str]]:
    floats = [(n, t) for n, t in MINE if n not in STRAIGHT]
    return [(n, t) for n, t in floats if "float[" in t or REGISTRY[n].weights]


@pytest.mark.parametrize(("name", "text"), differentiable())
def test_gradient(name, text):
    it = case(name, text)
    inputs, weights = it.inputs(), it.weights()
    if not any(t.dtype == "float" for t in it.results):
        return
    buffers = {r.role for r in it.declaration.weights if r.buffer}
    trained = {role: w for role, w in weights.items() if role not in buffers}
    if name == "rearrange" and "int" in text:
        return
    leaves = [x.requires_grad_() for x in (*inputs, *trained.values()) if x.is_floating_point()]
    if not leaves:
        return

    def run(*values):
        given = iter(values)
        args = [next(given) if x.is_floating_point() else x for x in inputs]
        named = {role: next(given) for role in trained}
        out = it.run(args, {**weights, **named}, dtype=torch.float64)
        return tuple(r for r in out if r.is_floating_point() and r.requires_grad)

    if run(*leaves):
        assert torch.autograd.gradcheck(run, leaves, atol=1e-6, rtol=1e-4, fast_mode=False)
    else:
        assert name in {"load", "drop_rate", "where", "float", "one_hot"} or it.results[0].dtype != "float", "no gradient at all"


@pytest.mark.parametrize(("name", "text"), [(n, t) for n, t in MINE if REGISTRY[n].inline])
def test_inline_bodies_trace(name, text):
    """The body of an inline brick runs on fx proxies and means the same."""
    it = case(name, text)
    inputs, weights = it.inputs(), it.weights()
    graph = torch.fx.Graph()
    tracer = torch.fx.proxy.GraphAppendingTracer(graph)
    proxy = lambda label: torch.fx.Proxy(graph.placeholder(label), tracer)  # noqa: E731
    ports = [proxy(f"input_{i}") for i in range(len(inputs))]
    named = {role: proxy(f"weight_{role}") for role in weights}
    out = it.run(ports, named)
    graph.output(tuple(r.node if isinstance(r, torch.fx.Proxy) else r for r in out))
    module = torch.fx.GraphModule({}, graph)
    expected = it.run([x.clone() for x in inputs], {k: w.clone() for k, w in weights.items()})
    if REGISTRY[name].random:
        torch.manual_seed(0)
    for a, b in zip(module(*inputs, *weights.values()), expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("name", "text"), [(n, t) for n, t in MINE if n not in {"avg_pool2d", "max_pool2d"}])
def test_flops_are_what_torch_counts(name, text):
    from torch.utils.flop_counter import FlopCounterMode

    it = case(name, text)
    inputs, weights = it.inputs(torch.float32), it.weights(torch.float32)
    with FlopCounterMode(display=False) as counter:
        it.run(inputs, weights, dtype=torch.float32, training=REGISTRY[name].random)
    from graphir.ir.dims import evaluate

    assert evaluate(it.declaration.flops(it.types, it.attrs, FACTS), SIZES) == counter.get_total_flops()


def test_importing_the_catalogue_loads_no_torch():
    code = "import sys, graphir.bricks.catalogue; assert 'torch' not in sys.modules and 'lark' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize(("name", "text"), [(n, t) for n, t in MINE if not REGISTRY[n].random])
def test_bodies_compile_whole(name, text):
    it = case(name, text)
    inputs, weights = it.inputs(torch.float32), it.weights(torch.float32)
    torch.compiler.reset()
    expected = it.run([x.clone() for x in inputs], {k: w.clone() for k, w in weights.items()}, dtype=torch.float32)
    static = {k: v for k, v in it.declaration.static_arguments(it.attrs).items()}
    if any(isinstance(v, Poly) for v in static.values()):
        static = {k: SIZES["T"] if isinstance(v, Poly) else v for k, v in static.items()}
    optional = [p.name for p in it.declaration.given_ports(it.attrs) if p.name in it.declaration.optional]
    named = dict(zip(optional, inputs[len(inputs) - len(optional) :])) if optional and not it.declaration.variadic else {}
    positional = inputs[: len(inputs) - len(named)]
    if name == "full":
        static["shape"] = tuple(SIZES["T"] if isinstance(d, Poly) else d for d in static["shape"])
    compiled = torch.compile(it.declaration.body, backend="eager", fullgraph=True)
    out = compiled(*positional, **named, **static, **weights, **({"dtype": torch.float32} if "dtype" in it.declaration.accepts else {}))
    for a, b in zip(out if isinstance(out, (tuple, list)) else (out,), expected, strict=True):
        torch.testing.assert_close(a, b)
