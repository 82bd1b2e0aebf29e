"""Every pass on random valid graphs and programs: same outputs in float64, nothing to do the second time, valid graphs, unique places."""

from __future__ import annotations

import random

import pytest
import torch

import graphir
from graphir.ir.graph import Graph
from graphir.passes import DEFAULT, INFER, INFER_FOLDED, PASSES, Recipe, Verify, apply, run_pipeline

from generator import random_graph, random_program
from oracle import assert_same, outputs, weights

PIPELINES = [*PASSES, "simplify{mode=infer}", "norm-fusion{affine=true}", DEFAULT, INFER, INFER_FOLDED]
TRAINING = ("stitch", "share", "simplify", "norm-fusion", "lower")


def check_pipelines(graph: Graph, seed: int, pipelines: list[str], idempotent: bool = True) -> None:
    tensors = weights(graph, seed)
    wanted = outputs(graph, seed, tensors)
    for text in pipelines:
        recipes: list[Recipe] = []
        after = run_pipeline(graph, text, [Verify()], recipes=recipes, crash_folder=None)
        assert_same(wanted, outputs(after, seed, apply(recipes, tensors, after)))
        assert len({node.where.path for node in after.nodes}) == len(after.nodes), text
        if idempotent:
            assert run_pipeline(after, text, recipes=[], crash_folder=None) is after, text


@pytest.mark.parametrize("seed", range(40))
def test_random_graphs_keep_their_meaning(seed):
    check_pipelines(random_graph(seed), seed, PIPELINES)


@pytest.mark.parametrize("seed", range(20))
def test_random_programs_keep_their_meaning(seed):
    check_pipelines(graphir.load(random_program(seed)), seed, PIPELINES)


@pytest.mark.slow
@pytest.mark.parametrize("tens", range(25))
def test_five_hundred_random_graphs_and_programs(tens):
    for seed in range(1000 + 10 * tens, 1010 + 10 * tens):
        check_pipelines(random_graph(seed, 20), seed, PIPELINES)
        check_pipelines(graphir.load(random_program(seed)), seed, PIPELINES)


@pytest.mark.parametrize("seed", range(15))
def test_passes_in_any_order_keep_the_meaning(seed):
    names = list(PASSES)
    random.Random(seed).shuffle(names)
    check_pipelines(random_graph(100 + seed), seed, [",".join(names), ",".join(names[:4])], idempotent=False)


@pytest.mark.parametrize("seed", range(12))
def test_passes_that_run_in_training_keep_gradients(seed):
    graph = random_graph(200 + seed)
    wanted = gradients(graph, seed)
    for name in TRAINING:
        assert_same(wanted, gradients(run_pipeline(graph, name, crash_folder=None), seed), 1e-9)


def gradients(graph: Graph, seed: int) -> dict[str, torch.Tensor]:
    """The gradient of the sum of squares of all finite float outputs, for each weight that they depend on."""
    tensors = {n: t.requires_grad_(not graph.weights[n].buffer) for n, t in weights(graph, seed).items()}
    results = [v for v in outputs(graph, seed, tensors).values() if v.is_floating_point() and v.requires_grad]
    if not results:
        return {}
    torch.stack([v.square().sum() for v in results]).sum().backward()
    return {n: t.grad for n, t in tensors.items() if t.grad is not None}


@pytest.mark.parametrize("seed", range(5))
def test_the_generator_makes_the_same_thing_again(seed):
    assert str(random_graph(seed)) == str(random_graph(seed))
    assert random_program(seed) == random_program(seed)
