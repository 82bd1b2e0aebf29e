"""An application that is replayed makes what elaborating it again would make: cases where it once did not, and a comparison on every program."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import graphir
from graphir.elaborate.run import Run
from graphir.ir.same import difference

from generator import random_program

ROOT = Path(__file__).parent.parent


def plainly(monkeypatch, load):
    with monkeypatch.context() as patch:
        patch.setattr(Run, "replayable", lambda *_, **__: None)
        return load()


def same_as_plain(monkeypatch, load):
    replayed, plain = load(), plainly(monkeypatch, load)
    spanless = [str(graph) for graph in (replayed, plain)]
    assert [line.rsplit(" ", 1)[0] for line in spanless[0].splitlines()] == [line.rsplit(" ", 1)[0] for line in spanless[1].splitlines()], (
        difference(replayed, plain)
    )
    return replayed


MODEL = "model M(x: float[B, {w}]) -> float[B, {o}] {{ {body} }}\n"


def test_which_inputs_are_one_value_counts():
    text = """
block Mix(q: [*S, d], k: [*S, d], v: [*S, d]) -> [*S, d] { return q - 2.0 * k + 3.0 * v }
model M(x: float[B, 1], y: float[B, 1]) -> (a: float[B, 1], b: float[B, 1]) {
  a = (x, x, y) -> Mix
  b = (x, y, y) -> Mix
  return a, b
}
"""
    out = graphir.interpret(graphir.load(text), {"x": torch.ones(1, 1), "y": torch.full((1, 1), 10.0)})
    assert (out["a"].item(), out["b"].item()) == (29.0, 11.0)


TRUNK = "block Trunk(x: [*S, 64]) -> [*S, 64] { return x -> linear(64) }\n"


def test_every_stitch_has_weights_of_its_own(monkeypatch):
    text = TRUNK + MODEL.format(w=48, o=64, body="a = x ~> Trunk  b = x ~> Trunk  return a + b")
    graph = same_as_plain(monkeypatch, lambda: graphir.load(text))
    assert graph.parameters == 2 * (48 * 64 + 64 + 64 * 64 + 64)


@pytest.mark.parametrize(
    "body",
    ["a = x ~> Trunk  b = x -> Trunk  return a + b", "return x ~> ([Narrow] * 3) -> linear(64)"],
)
def test_a_stitch_is_where_the_arrow_is_and_nowhere_else(body):
    text = TRUNK + "block Narrow(x: [*S, 64]) -> [*S, 48] { return x -> linear(48) }\n" + MODEL.format(w=48, o=64, body=body)
    assert [d.code for d in graphir.check(text)] == ["E0203"]


def test_a_join_that_was_stitched_once_is_not_stitched_for_good():
    ways = "fork { a: linear(3)  b: linear(5) }"
    body = f"u = x -> {ways} ~> (add -> relu) as p  v = x -> {ways} -> (add -> relu) as p  return u + v"
    assert [d.code for d in graphir.check(MODEL.format(w=8, o=3, body=body))] == ["E0206"]


def test_a_shared_brick_keeps_the_tensor_it_holds(monkeypatch):
    body = "shared c = concat(with = x) -> linear(8)  return x -> [residual(c), residual(c)]"
    graph = same_as_plain(monkeypatch, lambda: graphir.load(MODEL.format(w=8, o=8, body=body)))
    joined = [node for node in graph.nodes if node.op == "concat"]
    assert len(joined) == 2
    assert all(node.inputs[1] is graph.inputs[0][1] for node in joined)


def test_what_is_frozen_or_started_later_stays_out_of_what_was_made_before():
    body = "shared a = SwiGLU  y = x -> a  z = y -> frozen(a)  shared b = SwiGLU  return z -> b"
    graph = graphir.load(MODEL.format(w=8, o=8, body=body))
    assert {n.split(".")[0] for n, w in graph.weights.items() if w.frozen} == {"a"}
    body = 'shared a = SwiGLU  y = x -> a  z = y -> with_init(a, "zeros", weights = "last")  shared b = SwiGLU  return z -> b'
    graph = graphir.load(MODEL.format(w=8, o=8, body=body))
    assert graph.weights["b.down.weight"].init != "zeros"


def test_a_graft_is_never_replayed():
    text = (
        "block Host(x: [*S, d]) -> [*S, d] { return x -> linear(d) as a -> linear(d) as b }\nblock Ad(x: [*S, d]) -> [*S, d] { return x -> linear(d) }\n"
        + MODEL.format(w=8, o=8, body="g = graft Host { at a: Ad }  return x -> ([residual(g)] * 2)")
    )
    assert "E0308" in [d.code for d in graphir.check(text)]


@pytest.mark.parametrize(
    "body",
    [
        "shared layers = [linear(8)] * 2  y = x -> ([linear(8)] * 2)  return y -> layers",
        "shared f = linear(8)  y = x -> linear(8) as f  return y -> f",
    ],
)
def test_weights_are_never_tied_by_a_name_alone(body):
    assert [d.code for d in graphir.check(MODEL.format(w=8, o=8, body=body))] == ["E0308"]


FILES = [p for p in sorted((ROOT / "examples").rglob("*.arch")) if p.stem != "space"]


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_every_example_replays_as_it_elaborates(path, monkeypatch):
    same_as_plain(monkeypatch, lambda: graphir.load(path))


@pytest.mark.parametrize("seed", range(40))
def test_random_programs_replay_as_they_elaborate(seed, monkeypatch):
    same_as_plain(monkeypatch, lambda: graphir.load(random_program(seed)))
