"""The odds and filter experiments in a reduced form; examples/odds/README.md holds the full one."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

import graphir

SCRIPT = Path(__file__).parent.parent / "examples" / "odds" / "experiment.py"


@pytest.fixture(scope="module")
def odds():
    spec = importlib.util.spec_from_file_location("odds_experiment", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["odds_experiment"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("index", [0, 1])
def test_a_trained_gate_finds_the_right_expert_and_an_untrained_one_does_not(odds, index):
    rows = odds.experiment(odds.SETTINGS[index], list(range(8)), steps=1200, epochs=4, samples=1000, held_out=500)
    assert rows["trained gate: accuracy"]["mean"] >= 0.99
    assert rows["trained gate: right weight"]["mean"] >= 0.75
    assert rows["untrained gate: accuracy"]["mean"] <= 0.8


def test_four_experts_of_unequal_width_run_and_train(odds):
    graph = graphir.load(odds.PROGRAM, "Four")
    net = graphir.compile(graph)
    net(torch.rand(5, 16)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())
    assert graph.summary().stitches == 4
