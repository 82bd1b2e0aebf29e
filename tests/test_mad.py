"""MAD: generators number for number, the protocol's two forms, the zoo, resumable results, the command line."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import graphir
from graphir.cli.main import run
from graphir.lang.diagnostic import GraphirError
from graphir.mad import runs, tasks, train, zoo

# sha256[:16] of little-endian int64 train inputs, train targets, test inputs, test targets: 64 examples each, from the published generators (numpy 2.4).
GOLDEN = {
    "in-context-recall": ("199f431a51cec247", "f925a1545d85e8d7", "0143ebcbcd6c0991", "a7d60992e57bd582"),
    "fuzzy-in-context-recall": ("465875cca2304f86", "9f60032ffdeb26bc", "117345371801441b", "2334dd07ac456ee5"),
    "compression": ("666df50ebe37fa8b", "666df50ebe37fa8b", "ccc535cc7ed24078", "ccc535cc7ed24078"),
    "noisy-in-context-recall": ("9676b6dcf2c315f5", "1e8bb1cd086cd4fd", "9b88815cff6712db", "3d5ea06a3162c7bf"),
    "memorization": ("8488c67de546c279", "ff15e49e3567fdcf", "5b98401719fbc9d1", "d5f079299f32cd60"),
    "selective-copying": ("2ce80d03b58916e2", "77dcfe7f3cf19615", "6c2fdba82d71fbc3", "0883055d14d585c6"),
}
SMALL = """
model Small(vocab = 8, d = 32)(tokens: int[B, T]) -> (logits: float[B, T, vocab]) {
  return tokens -> embedding(vocab, d) -> Layer(mLSTM(2, multiple = 8), SwiGLU) -> rmsnorm -> linear(vocab)
}
"""


@pytest.mark.parametrize("task", tasks.TASKS)
def test_generators_draw_what_the_published_code_draws(task):
    data = tasks.make(tasks.setting(task, train=64, test=64))
    arrays = (data.train_inputs, data.train_targets, data.test_inputs, data.test_targets)
    assert tuple(hashlib.sha256(a.astype("<i8").tobytes()).hexdigest()[:16] for a in arrays) == GOLDEN[task]


def test_the_first_test_sequence_of_recall():
    assert tasks.make(tasks.setting("in-context-recall", train=64, test=1)).test_inputs[0, :10].tolist() == [
        3,
        14,
        3,
        14,
        5,
        13,
        2,
        9,
        3,
        14,
    ]


@pytest.mark.parametrize(
    ("task", "scored"),
    [
        ("in-context-recall", 56.0),
        ("noisy-in-context-recall", 43.2),
        ("fuzzy-in-context-recall", 4.34),
        ("memorization", 16),
        ("compression", 32),
        ("selective-copying", 16),
    ],
)
def test_tokens_scored_in_a_test_sequence(task, scored):
    targets = tasks.make(tasks.setting(task, train=64, test=640)).test_targets
    assert (targets != tasks.IGNORE).sum(1).mean() == pytest.approx(scored, rel=0.02)


def test_drawing_leaves_the_global_generator_alone():
    np.random.seed(1)
    before = np.random.get_state()[1].copy()
    tasks.make(tasks.setting("selective-copying", train=4, test=4))
    assert (np.random.get_state()[1] == before).all()


def test_difficulties_are_those_of_the_benchmark():
    assert [len(tasks.difficulties(t)) for t in tasks.TASKS] == [11, 14, 11, 6, 11, 13]
    assert 6 * sum(len(tasks.difficulties(t)) for t in tasks.TASKS) == 396


@pytest.mark.parametrize(
    ("task", "changes"),
    [
        ("recall", {}),
        ("in-context-recall", {"vokab": 8}),
        ("in-context-recall", {"vocab": 1}),
        ("in-context-recall", {"length": 31}),
        ("noisy-in-context-recall", {"noise": 1.0}),
        ("selective-copying", {"length": 32}),
        ("fuzzy-in-context-recall", {"length": 12}),
        ("compression", {"train": 0}),
    ],
)
def test_settings_that_fit_no_example_are_diagnostics(task, changes):
    with pytest.raises(GraphirError, match="E0910"):
        tasks.setting(task, **changes)


def test_class_accuracy_is_the_mean_over_classes_wanted_or_told():
    guess, truth = torch.tensor([0, 0, 1, 3]), torch.tensor([0, 0, 0, 1])
    assert train.class_accuracy(guess, truth, 5) == pytest.approx(
        (2 / 3 + 0 + 0) / 3
    )  # classes 0 and 1 wanted, 3 told and never wanted, 2 and 4 neither


def small_data(**changes):
    return tasks.make(tasks.setting("in-context-recall", **{"vocab": 8, "length": 16, "train": 640, "test": 160, **changes}))


def test_training_learns_and_is_reproducible():
    data = small_data()
    graph = graphir.load(SMALL)
    first, again = (train.fit(graph, data, steps=120, batch=32, rate=5e-3) for _ in range(2))
    assert first.loss < 0.7 * first.first_loss
    assert first.token_accuracy > 0.35  # chance is 0.25
    assert (first.loss, first.accuracy) == (again.loss, again.accuracy)


def test_the_two_protocols_differ_in_rate_and_accuracy(monkeypatch):
    data, graph = small_data(train=64, test=32), graphir.load(SMALL)
    rates = []
    monkeypatch.setattr(train, "_set_rate", lambda optimiser, rate: rates.append(rate))
    as_code = train.fit(graph, data, train.AS_CODE, steps=4, batch=16, rate=1e-3)
    assert rates == []
    assert as_code.accuracy == as_code.macro_accuracy
    corrected = train.fit(graph, data, train.CORRECTED, steps=4, batch=16, rate=1e-3)
    assert corrected.accuracy == corrected.token_accuracy
    assert rates == pytest.approx([1e-6 + (1e-3 - 1e-6) * (1 + math.cos(math.pi * i / 4)) / 2 for i in range(4)])


def test_models_that_do_not_fit_a_task_are_diagnostics():
    data = small_data(train=4, test=4)
    for program in (
        SMALL.replace("vocab = 8", "vocab = 9"),
        "model M(x: float[B, 8]) -> float[B, 4] { return x -> linear(4) }",
        "model M(tokens: int[B, T]) -> float[B, 8] { return tokens -> embedding(8, 8) -> last }",
    ):
        with pytest.raises(GraphirError, match="cannot be trained on in-context-recall"):
            train.fit(graphir.load(program), data, steps=1)


# the zoo


@pytest.mark.parametrize("key", [*zoo.LAYERS, *zoo.OTHERS])
def test_every_layer_of_the_zoo_makes_a_model_that_runs(key):
    graph = graphir.load(zoo.model([key], d=64 if key != "full-attention" else 128), root=None)
    out = graphir.compile(graph)(torch.zeros(1, 4, dtype=torch.long))
    assert out.shape == (1, 4, 16)
    assert out.isfinite().all()


def test_there_are_nineteen_keys():
    assert len(zoo.LAYERS) == 19


@pytest.mark.parametrize(
    ("keys", "state"),
    [
        (["hyena", "swiglu"] * 2, 4096),
        (["mh-hyena", "swiglu"] * 2, 4096),
        (["hyena-experts", "swiglu"] * 2, 4096),
        (["mh-gated-linear-attention", "swiglu"] * 2, 4096),
        (["rwkv5-time-mixer", "rwkv5-channel-mixer"] * 2, 4096),
        (["rwkv6-time-mixer", "rwkv6-channel-mixer"] * 2, 4096),
        (["mamba"] * 4, 4096),
        (["linear-attention"], 16384),
        (["mh-linear-attention"], 1024),
        (["attention"], None),
    ],
)
def test_state_is_counted_as_mad_counts_it(keys, state):
    assert zoo.state(keys) == state
    if state is not None and "hyena" not in keys[0]:
        assert zoo.memory(graphir.load(zoo.model(keys))) == state


def test_the_autoencoder_tells_all_tokens_from_the_last_place():
    graph = graphir.load(zoo.model(["mh-attention", "swiglu"], d=32, backbone="autoencoder"))
    net = graphir.compile(graph).eval()
    tokens = torch.arange(8)[None]
    changed = tokens.clone()
    changed[0, 0] = 9
    with torch.no_grad():
        assert (net(tokens) - net(changed)).abs().amax((0, 2)).min() > 0  # each place hears of the first token: through the last one


def test_multi_head_hyena_is_the_sum_of_products_under_a_causal_filter():
    graph = graphir.load(
        "model M(d = 8)(x: float[B, T, d]) -> float[B, T, d] { return x -> MultiHeadHyena(2, filter_order = 4, length = 16) }"
    )
    net = graphir.compile(graph, seed=3).double().eval()
    x = torch.randn(2, 6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    w = {name.rpartition("MultiHeadHyena.")[2]: t for name, t in net.state_dict().items()}
    mixed = x @ w["in_proj.weight"].T + w["in_proj.bias"]
    padded = torch.cat([torch.zeros(2, 2, 24, dtype=torch.float64), mixed], 1)
    short = sum(padded[:, j : j + 6] * w["short_conv.weight"].reshape(24, 3)[:, j] for j in range(3)) + w["short_conv.bias"]
    q, k, v = (part.reshape(2, 6, 2, 4) for part in short.chunk(3, -1))

    time = torch.arange(6, dtype=torch.float64)[:, None]
    features = torch.cat([time / 15, torch.cos(2 * math.pi / 16 * time * 1e-4), -torch.sin(2 * math.pi / 16 * time * 1e-4)], 1)
    pulse = next(t for name, t in w.items() if "pulse" in name)
    hidden = features
    for place in range(3):
        layer = [w[name] for name in w if f"net.{place}." in name and "linear" in name]
        weight, bias = sorted(layer, key=lambda t: -t.dim())
        hidden = torch.sin(pulse * (hidden @ weight.T + bias))
    rates = torch.linspace(-math.log(0.01) / 1.5, -math.log(0.01) / 0.3, 2, dtype=torch.float64)
    filters = hidden @ w["filter.out.weight"].T * torch.exp(-time / 15 * rates)

    products = torch.einsum("bthk,bthv->bthkv", k, v)
    memory = torch.stack([sum(filters[t - j][:, None, None] * products[:, j] for j in range(t + 1)) for t in range(6)], 1)
    memory = memory + w["skip.weight"][:, None, None] * products
    y = torch.einsum("bthk,bthkv->bthv", q, memory).reshape(2, 6, 8) @ w["out_proj.weight"].T + w["out_proj.bias"]
    torch.testing.assert_close(net(x), y, rtol=1e-9, atol=1e-9)


# results


def a_run(seed=0):
    return runs.Run(
        "small",
        graphir.load(SMALL),
        tasks.setting("in-context-recall", vocab=8, length=16, train=64, test=32),
        steps=3,
        batch=16,
        seed=seed,
    )


def test_finished_runs_are_not_made_again(tmp_path):
    path = tmp_path / "results.jsonl"
    made = []
    first = runs.execute([a_run(0)], path, watch=lambda run, place: made.append(run.seed))
    path.write_bytes(path.read_bytes() + b'{"id": "cut o')  # a stop in the middle of a line
    both = runs.execute([a_run(0), a_run(1)], path, watch=lambda run, place: made.append(run.seed))
    assert made == [0, 1]
    assert both[0] == first[0]
    assert len(path.read_text().splitlines()) == 2
    assert set(runs.read(path)) == {a_run(0).id, a_run(1).id}


def test_a_file_that_holds_no_results_is_a_diagnostic(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text("[]\n")
    with pytest.raises(GraphirError, match="line 1"):
        runs.read(path)


def test_tables_and_plots_show_each_model_and_task(tmp_path):
    records = [
        {"model": m, "task": {"task": t}, "score": {"accuracy": a}} for m, t, a in (("a", "x", 0.5), ("a", "x", 0.7), ("b", "y", 1.0))
    ]
    lines = runs.table(records).splitlines()
    assert lines[0].split() == ["|", "model", "|", "x", "|", "y", "|"]
    assert "60.0 (50.0 to 70.0)" in lines[2]
    assert "100.0" in lines[3]
    runs.plot(records, tmp_path / "plot.svg")
    assert "</svg>" in (tmp_path / "plot.svg").read_text()
    with pytest.raises(GraphirError, match="ends in"):
        runs.plot(records, tmp_path / "plot.docx")


def test_the_command_trains_resumes_and_prints_a_table(tmp_path, capsys):
    model, results = tmp_path / "small.arch", tmp_path / "results.jsonl"
    model.write_text(SMALL)
    line = [
        "mad",
        str(model),
        "--task",
        "memorization",
        "--size",
        "vocab=32,length=8,train=32,test=16",
        "--steps",
        "2",
        "--batch",
        "16",
        "--seed",
        "0",
        "--seed",
        "1",
        "--results",
        str(results),
    ]
    assert run(line) == 0
    table = capsys.readouterr().out
    assert "memorization" in table
    assert "Small" in table
    saved = results.read_text()
    assert [json.loads(r)["task"]["vocab"] for r in saved.splitlines()] == [32, 32]
    assert run(line) == 0
    assert capsys.readouterr().out == table
    assert results.read_text() == saved
    assert run([*line[:4], "--size", "vokab=3", "--steps", "1"]) == 1
    assert run(["mad", str(model), "--task", "recall"]) == 2


# the four test sequences of the composition document

SEQUENCES = {"homogeneous": {"repeats": 1}, "alternating": {"repeats": 1}, "hybrid": {"repeats": 1, "chunk": 4}, "xlstm_7_1": {}}
FOLDER = Path(__file__).parent.parent / "examples" / "mad" / "sequences"


def sequence(name, mixers=True):
    """A small form of a sequence, and its text without MLX."""
    text = (FOLDER / f"{name}.arch").read_text()
    sizes = {"vocab": 8, "d": 16, "heads": 2, "mixers": mixers, **SEQUENCES[name]}
    return graphir.load(text, **sizes), graphir.load(text.replace(" on mlx", ""), **sizes)


@pytest.mark.parametrize("name", SEQUENCES)
def test_a_sequence_learns_more_with_its_mixers_than_without(name):
    data = small_data(train=640, test=160)
    with_mixers, without = (train.fit(sequence(name, mixers)[1], data, steps=150, batch=16, rate=1e-2) for mixers in (True, False))
    assert with_mixers.loss < without.loss - 0.05
    assert with_mixers.accuracy > without.accuracy + 0.05


@pytest.mark.parametrize("name", SEQUENCES)
def test_layers_on_mlx_train_as_those_of_fx_do(name):
    mlx = pytest.importorskip("mlx.core")
    assert mlx is not None
    data = small_data(train=64, test=32)
    there, here = sequence(name)
    assert "mlx" in {node.where.backend for node in there.nodes}
    assert "mlx" not in {node.where.backend for node in here.nodes}
    scores = [train.fit(graph, data, steps=3, batch=16, rate=1e-3) for graph in (there, here)]
    assert scores[0].loss == pytest.approx(scores[1].loss, rel=1e-4)
    assert scores[0].train_loss == pytest.approx(scores[1].train_loss, rel=1e-4)
