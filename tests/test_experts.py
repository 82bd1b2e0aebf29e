"""Experts of four kinds behind one router, in a reduced form; examples/experts/README.md holds the full one."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

import graphir

SCRIPT = Path(__file__).parent.parent / "examples" / "experts" / "experiment.py"


@pytest.fixture(scope="module")
def experts():
    spec = importlib.util.spec_from_file_location("experts_experiment", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["experts_experiment"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def threads():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_answers_are_what_the_docstring_says(experts):
    x, kind, target = experts.draw(3, 20, torch.Generator().manual_seed(0))
    for row in range(3):
        last, known = 0.0, {}
        for t in range(20):
            token = x[row, t].tolist()
            bits, switch, key, value, asked = token[4:8], token[8], token[10:18].index(1), token[18], token[19:27].index(1)
            assert token[: 4].index(1) == kind[row, t]
            assert token[27] == 1
            last = switch or last
            assert known.setdefault(key, value) == value
            waves = x[row, max(0, t - 7) : t + 1, 9].flip(0)
            wave = sum(w * (-1) ** i for i, w in enumerate(waves.tolist()))
            answers = (bits[0] * bits[1] * bits[2] * bits[3], last, wave, known[asked])
            assert (answers[kind[row, t]] > 0) == bool(target[row, t])


def test_everything_is_compared_at_equal_parameters(experts):
    graphs = experts.graphs()
    mixture = graphs["neither"].parameters
    assert len(graphs) == 9
    assert all(mixture <= g.parameters <= 1.03 * mixture for g in graphs.values())
    frozen = {n for n, w in graphs["untrained router"].weights.items() if w.frozen}
    assert frozen == {"filter.router.scores.weight", "filter.router.scores.bias"}
    widths = {n.split(".")[1] for n in graphs["noise and balance loss"].weights if "stitch" in n}
    assert widths == {"dense_stitch", "conv_stitch", "attention_stitch"}, "each expert has its own width; the LSTM's is the common one"


@pytest.mark.usefixtures("threads")
def test_the_router_finds_the_kind_that_each_token_needs(experts):
    """One seed, 600 of 1,000 steps; the untrained router is as good as chance."""
    graph = experts.graphs()["noise and balance loss"]
    trained = experts.score(experts.train(graph, 0, 600, 32, 24), 0, 24, 200)
    untrained = experts.score(graphir.compile(graph, seed=0).eval(), 0, 24, 200)
    assert trained["accuracy"] > 0.8
    assert trained["load entropy"] > 1.3
    assert trained["answers"] > 0.9
    assert untrained["accuracy"] < 0.5


@pytest.mark.usefixtures("threads")
def test_without_the_balance_loss_few_experts_get_the_tokens(experts):
    found = experts.score(experts.train(experts.graphs()["noise alone"], 0, 600, 32, 24), 0, 24, 200)
    assert found["load entropy"] < 1.0
    assert found["accuracy"] < 0.6


def test_the_table_and_the_picture_are_made_from_results(experts, tmp_path):
    answers = {"answers": 0.75, "by kind": [0.5, 0.5, 1.0, 1.0]}
    routed = {**answers, "routing": [[0.25] * 4] * 4, "accuracy": 0.25, "load entropy": 1.0, "router entropy": 0.5}
    results = {label: [routed, {**routed, "accuracy": 0.35}] for label in experts.MIXTURES} | {"dense alone": [answers]}
    first, *_, last = experts.table(results).splitlines()[2:]
    tail = "0.750 ± 0.000 | 0.500 | 0.500 | 1.000 | 1.000 |"
    assert first == f"| noise and balance loss | 0.300 ± 0.050 | 0.250 | 1.000 ± 0.000 | 0.500 ± 0.000 | {tail}"
    assert last == f"| dense alone |  |  |  |  | {tail}"
    for path in (tmp_path / "a.svg", tmp_path / "b.svg"):
        experts.plot(results, path)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
