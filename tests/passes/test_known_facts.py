"""What a pass tells a new graph about itself is what the graph would find out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import graphir
from graphir.api import optimise

EXAMPLES = [p for p in sorted((Path(__file__).parents[2] / "examples").glob("*.arch")) if "choose(" not in p.read_text("utf-8")]
CHAIN = """
block Block(x: [*S, d]) -> [*S, d] { return x + (x -> layernorm -> linear(4 * d) -> gelu -> linear(d)) }
model Net(x: float[B, T, 8]) -> float[B, T, 8] { return x -> ([Block] * 4) }
"""
SHARED_STATISTIC = """
model Net(x: float[B, T, 8]) -> float[B, T, 8] {
  return x -> fork { a: rmsnorm -> linear(8)  b: rmsnorm -> linear(8)  c: id } -> add
}
"""


def told(graph):
    """Whether live nodes and named weights are those of a copy that was told nothing."""
    fresh = replace(graph)
    assert graph.live == fresh.live
    assert graph.named == fresh.named
    assert graph.key == fresh.key


@pytest.mark.parametrize("text", [CHAIN, SHARED_STATISTIC])
def test_after_norm_fusion(text):
    graph = optimise(graphir.load(text))
    assert {"add_layernorm", "rmsnorm_with"} & set(graph.ops)
    told(graph)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_after_the_default_passes(path):
    told(optimise(graphir.load(path)))
