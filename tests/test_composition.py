"""Composition beyond joins, filters and grafts: contracts, lists of layers, states of shared parts, gates of several steps."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from models import initial, model, problem, random_weights, run, tokens

from graphir.backends.interpreter import Interpreter

X = tokens()


def linear(w, name, x):
    return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))


def rms(w, name, x):
    return F.rms_norm(x, x.shape[-1:], w[f"{name}.weight"], 1e-6)


def check(body, wanted, **options):
    """The model gives what the function of its weights and input gives, with weights of which none is special."""
    graph = model(body, **options)
    w = random_weights(graph)
    torch.testing.assert_close(run(graph, w, X), wanted(w, X), rtol=1e-9, atol=1e-9)
    return graph


# contracts


def test_a_block_is_a_contract():
    block = "block Eight(x: [*S, 8]) -> [*S, 4] { return x -> linear(4) }"
    check("x -> Eight", lambda w, x: linear(w, "Eight", x) if "Eight.weight" in w else linear(w, "Eight.linear", x), rest=block, result="float[B, T, 4]")
    found = problem("x -> linear(7) -> Eight", rest=block)
    assert found.code == "E0203"
    assert found.span.text == "Eight"
    lying = problem("x -> Eight", rest="block Eight(x: [*S, 8]) -> [*S, 4] { return x -> linear(5) }")
    assert lying.code in ("E0204", "E0203", "E0202")


def test_a_list_runs_in_order_and_its_widths_must_meet():
    check("a = linear(12)\nb = linear(8)\nreturn x -> [a, gelu, b]", lambda w, x: linear(w, "layers.2.b", F.gelu(linear(w, "layers.0.a", x))))
    found = problem("x -> [linear(12), rmsnorm, linear_transposed(8), residual(linear(9))]")
    assert found.code.startswith("E02")


def test_a_brick_between_two_stitches():
    graph = check(
        "x -> stitch(gelu, width = 3)",
        lambda w, x: linear(w, out, F.gelu(linear(w, into, x))),
    ) if (names := stitches("x -> stitch(gelu, width = 3)")) and (into := names[0]) and (out := names[1]) else None
    assert graph is not None
