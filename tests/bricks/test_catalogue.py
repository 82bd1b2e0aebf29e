"""Every declared brick, by its own examples: its body gives what its header says, in every precision, and its gradient is right."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from brick_cases import DTYPES, EXAMPLES, FACTS, SIZES, Case, case
from torch.utils.flop_counter import FlopCounterMode

from graphir.bricks.call import arguments, concrete
from graphir.bricks.declare import REGISTRY
from graphir.ir.dims import Poly, evaluate

FAMILIES = "activation basic index join losses norm pointwise pooling route simplex stitch tensor".split()
CASES = [case(name, text) for name, text in EXAMPLES if REGISTRY[name].file.rsplit(".", 1)[1] in FAMILIES]


def over(cases: list[Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("it", cases, ids=[c.text for c in cases])


def expected_dtypes(it: Case, kind: str, dtype: torch.dtype) -> set[torch.dtype]:
    """Statistics of halves are float32."""
    if kind in DTYPES:
        return {DTYPES[kind]}
    return {torch.float32} if it.declaration.name in ("rms_statistic", "moments") and dtype == torch.bfloat16 else {dtype}


@pytest.mark.parametrize("name", [d.name for d in REGISTRY])
def test_header_doc_and_examples_are_there(name):
    declaration = REGISTRY[name]
    assert declaration.header.name == name
    assert declaration.doc
    assert declaration.examples, "the manual and these tests need an example"


@over(CASES)
def test_the_first_line_tells_the_shapes(it):
    assert "[" in it.declaration.doc.split("\n")[0]


@over(CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_body_gives_what_the_header_says(it, dtype):
    inputs = it.inputs(dtype)
    before = [x.clone() for x in inputs]
    out = it.run(inputs, it.weights(dtype), dtype=dtype)
    for result, type in zip(out, it.results, strict=True):
        assert tuple(result.shape) == type.sizes(SIZES)
        assert result.dtype in expected_dtypes(it, type.dtype, dtype)
    assert all(torch.equal(a, b) for a, b in zip(inputs, before)), "an input was changed"


@over([c for c in CASES if any("B" in map(str, t.shape) for t in c.types)])
def test_batch_of_zero(it):
    sizes = {**SIZES, "B": 0}
    out = it.run(it.inputs(torch.float32, sizes), it.weights(torch.float32), sizes, dtype=torch.float32)
    for result, type in zip(out, it.results, strict=True):
        assert tuple(result.shape) == type.sizes(sizes)
        assert not result.isnan().any()


def batched(it: Case) -> bool:
    return bool(it.types) and str(it.types[0].shape[:1]) == "(B,)"


@over([c for c in CASES if (c.declaration.elementwise or c.declaration.per_token) and batched(c)])
def test_each_token_for_itself(it):
    inputs, weights = it.inputs(), it.weights()
    rows = [x[1:] if t.shape[:1] == it.types[0].shape[:1] else x for x, t in zip(inputs, it.types)]
    for whole, part in zip(it.run(inputs, weights), it.run(rows, weights), strict=True):
        torch.testing.assert_close(whole[1:], part, rtol=1e-12, atol=1e-12)


# hardmax, gumbel: a stated gradient that is not that of the values; keep_logits: infinite values; detach: none; see test_routing.py
OTHERWISE = {"hardmax", "gumbel", "keep_logits", "detach", "load", "drop_rate"}
FLOATS = [
    c for c in CASES
    if c.declaration.name not in OTHERWISE and any(t.dtype == "float" for t in c.results)
    and (any(t.dtype == "float" for t in c.types) or c.declaration.weights)
]


@over(FLOATS)
def test_gradient(it):
    inputs, weights = it.inputs(), it.weights()
    buffers = {r.role for r in it.declaration.weights if r.buffer}
    trained = [role for role in weights if role not in buffers]
    leaves = [x.requires_grad_() for x in (*inputs, *[weights[r] for r in trained]) if x.is_floating_point()]

    def run(*values):
        given = iter(values)
        args = [next(given) if x.is_floating_point() else x for x in inputs]
        out = it.run(args, {**weights, **{role: next(given) for role in trained}}, dtype=torch.float64)
        return tuple(r for r in out if r.is_floating_point())

    assert torch.autograd.gradcheck(run, leaves, atol=1e-6, rtol=1e-4)


@over([c for c in CASES if c.declaration.inline])
def test_inline_bodies_trace(it):
    """The body of an inline brick runs on fx proxies and means the same."""
    inputs, weights = it.inputs(), it.weights()
    graph = torch.fx.Graph()
    tracer = torch.fx.proxy.GraphAppendingTracer(graph)
    ports = [torch.fx.Proxy(graph.placeholder(f"input_{i}"), tracer) for i in range(len(inputs))]
    named = {role: torch.fx.Proxy(graph.placeholder(f"weight_{role}"), tracer) for role in weights}
    out = it.run(ports, named)
    graph.output(tuple(r.node for r in out) if len(it.results) == len(out) else out[0].node)
    traced = torch.fx.GraphModule({}, graph)(*inputs, *weights.values())
    for a, b in zip(traced, it.run(inputs, weights), strict=True):
        assert torch.equal(a, b)


@over(CASES)
def test_flops_are_what_torch_counts(it):
    inputs, weights = it.inputs(torch.float32), it.weights(torch.float32)
    with FlopCounterMode(display=False) as counter:
        it.run(inputs, weights, dtype=torch.float32, training=it.declaration.random)
    assert evaluate(it.declaration.flops(it.types, it.attrs, FACTS), SIZES) == counter.get_total_flops()


def test_importing_the_catalogue_loads_no_torch():
    code = "import sys, graphir.bricks.catalogue; assert 'torch' not in sys.modules and 'lark' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
@over([c for c in CASES if not c.declaration.random and c.types])
def test_bodies_compile_whole(it):
    inputs, weights = it.inputs(torch.float32), it.weights(torch.float32)
    attrs = {k: concrete(v, SIZES) for k, v in it.attrs.items()}
    expected = it.run([x.clone() for x in inputs], {k: w.clone() for k, w in weights.items()}, dtype=torch.float32)
    positional, keyword = arguments(it.declaration, inputs, weights, attrs, dtype=torch.float32)
    torch.compiler.reset()
    compiled = torch.compile(lambda *a, **k: it.declaration.body(*a, **k), backend="eager", fullgraph=True)
    out = compiled(*positional, **keyword)
    for a, b in zip(out if isinstance(out, (tuple, list)) else (out,), expected, strict=True):
        torch.testing.assert_close(a, b)


def test_examples_use_runtime_dims():
    assert sum(any(isinstance(d, Poly) for t in c.types for d in t.shape) for c in CASES) > 100
