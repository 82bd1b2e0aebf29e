"""Layer patterns: the form `pattern`, and configs of other programs that become programs."""

from __future__ import annotations

import json

import pytest

import graphir
from graphir.cli.main import run
from graphir.lang.diagnostic import GraphirError
from graphir.lang.formatter import format_text
from graphir.lang.source import Source
from graphir.mad.importer import program

PATTERN = """
model P(d = 16)(x: float[B, T, d]) -> float[B, T, d] {{
  m = residual(Mamba(state = 2))
  a = residual(Attention(2))
  f = residual(SwiGLU)
  return x -> {}
}}
"""


def ops(graph):
    """The mixers and feed-forwards of the layers, in order."""
    wanted = {"selective_scan": "M", "sdpa": "*", "silu": "-", "mlstm": "m", "slstm_cell": "s"}
    found = {}
    for node in graph.nodes:
        place = next((part for part in node.where.path.split(".") if part.isdigit()), "")
        if node.op in wanted and (place not in found or node.op != "silu"):
            found[place] = wanted[node.op]
    return "".join(found.values())


def test_a_pattern_is_a_list_with_a_brick_for_each_sign():
    graph = graphir.load(PATTERN.format('pattern("M-M* | -", M = m, mlp = f, attention = a)'))
    assert ops(graph) == "M-M*-"
    assert ops(graphir.load(PATTERN.format('(pattern("M*", M = m, attention = a) * 2 + [f])'))) == "M*M*-"
    assert graph.key == graphir.load(PATTERN.format("[m, f, m, a, f]")).key


def test_each_place_of_a_pattern_has_weights_of_its_own():
    one, two = (graphir.load(PATTERN.format(f'pattern("{text}", mlp = f)')).parameters for text in ("-", "--"))
    assert two == 2 * one


@pytest.mark.parametrize(
    ("call", "code", "help"),
    [
        ('pattern("MX", M = m)', "E0404", "X = ..."),
        ('pattern("M*", M = m)', "E0404", "attention = ..."),
        ("pattern(3, M = m)", "E0404", "M-M*-"),
        ('pattern("M", mamba = m)', "E0302", "letters"),
        ('pattern("M", M = 3)', "E0306", ""),
        ('pattern("M/M", M = m)', "E0404", "by themselves"),
    ],
)
def test_patterns_that_mean_nothing_are_diagnostics(call, code, help):
    with pytest.raises(GraphirError) as e:
        graphir.load(PATTERN.format(call))
    assert e.value.diagnostics[0].code == code
    assert help in "".join(e.value.diagnostics[0].help)


# configs

HYBRID = [
    {"type": "mlstm", "backend": "mlx", "params": {"num_heads": 4, "head_dim": 8}},
    {"type": "chunkwise-mlstm", "backend": "pytorch", "params": {"chunk_size": 16}},
    {"type": "swiglu", "backend": "torch.compile"},
] * 4
BRICKS = {
    "architecture": {
        "d_model": 64,
        "bricks": {
            "mlstm_1": {"type": "mlstm", "params": {"num_heads": 4}},
            "mlstm_2": {"type": "mlstm", "params": {"num_heads": 4}},
            "swiglu": {"type": "swiglu"},
            "conv": {"type": "conv", "backend": "pytorch"},
        },
        "blocks": [
            {"type": "sequential", "bricks": ["mlstm_1", "swiglu"]},
            {"type": "parallel", "bricks": ["mlstm_2", "conv"], "combiner": "add"},
            {"type": "sequential", "bricks": ["swiglu"]},
        ],
    },
}


def test_a_plain_list_of_names():
    text = program(["mlstm", "swiglu", "chunkwise-mlstm", "swiglu"])
    assert ops(graphir.load(text)) == "m-m-"


def test_a_list_with_backends_and_parameters_folds_its_repeats():
    text = program(HYBRID)
    assert "* 4)" in text
    assert text.count("on mlx") == 1
    assert text.count("on inductor") == 1
    graph = graphir.load(text)
    placed = {node.where.backend for node in graph.nodes if node.where.path.startswith("layers.0.")}
    assert placed == {"mlx"}
    heads = [node for node in graph.nodes if node.op == "mlstm"]
    assert {tuple(node.inputs[0].type.shape[i] for i in (1, 3)) for node in heads} == {(4, 8), (4, 64)}


def test_every_program_is_in_canonical_form():
    for config in (["mamba"] * 3, HYBRID, BRICKS):
        text = program(config)
        assert format_text(Source("imported", text)) == text


def test_a_brick_named_twice_has_one_set_of_weights():
    graph = graphir.load(program(BRICKS))
    swiglu = [name for name in graph.weights if "swiglu" in name]
    assert len(swiglu) == 3
    assert len({name for name in graph.weights if "mlstm_1" in name}) == len({name for name in graph.weights if "mlstm_2" in name}) > 0
    separate = json.loads(json.dumps(BRICKS))
    separate["architecture"]["bricks"]["other"] = {"type": "swiglu"}
    separate["architecture"]["blocks"][2]["bricks"] = ["other"]
    assert graphir.load(program(separate)).parameters == graph.parameters + sum(graph.weights[n].numel for n in swiglu)


@pytest.mark.parametrize(
    ("combiner", "op"), [("add", "add"), ("concat", "concat"), ("gate", "gate"), ("mean", "mean"), ("weighted", "blend")]
)
def test_combiners(combiner, op):
    config = json.loads(json.dumps(BRICKS))
    config["architecture"]["blocks"][1]["combiner"] = combiner
    graph = graphir.load(program(config))
    assert any(node.op == op and len(node.inputs) == 2 for node in graph.nodes)


def test_a_config_of_layer_types_with_feed_forwards_in_each_layer():
    text = program(
        {
            "hidden_size": 64,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 96,
            "vocab_size": 50,
            "layer_types": ["conv", "full_attention"] * 2,
            "tie_word_embeddings": True,
            "norm_eps": 1e-5,
            "torch_dtype": "bfloat16",
        }
    )
    assert text.startswith("# Not read from the config: torch_dtype.\n")
    graph = graphir.load(text)
    hand = graphir.load("""model M(vocab = 50, d = 64)(tokens: int[B, T]) -> float[B, T, vocab] {
      shared emb = embedding(vocab, d)
      norm = rmsnorm(eps = 1e-5)
      layers = [Layer(ShortConv, SwiGLU(hidden = 96), norm), Layer(Attention(4, 2), SwiGLU(hidden = 96), norm)] * 2
      return tokens -> emb -> layers -> norm -> emb.T
    }""")
    assert graph.key == hand.key


@pytest.mark.parametrize(
    ("config", "layers"),
    [
        ({"num_hidden_layers": 4, "full_attn_idxs": [1]}, "*"),
        ({"num_layers": 6, "attn_layer_period": 3, "attn_layer_offset": 1}, "M*MM*M"),
        ({"hybrid_override_pattern": "-*-"}, "*"),
    ],
)
def test_index_sets_periods_and_patterns(config, layers):
    assert ops(graphir.load(program(config))) == layers


@pytest.mark.parametrize(
    ("config", "message", "help"),
    [
        (["mlstm", "swigluu"], "no layer type `swigluu`", "`swiglu`"),
        ([{"type": "mlstm", "backend": "mlxx"}], "no backend `mlxx`", "`mlx`"),
        ([{"type": "mlstm", "params": {"nun_heads": 4}}], "no parameter `nun_heads`", "num_heads"),
        ([{"type": "mlstm", "param": {}}], "an entry `param`", "params"),
        ([{"type": "mlstm", "params": {"heads": "4) -> evil("}}], "a plain word", ""),
        ([3], "is a name", ""),
        ([], "is a list of layers", ""),
        ("mlstm", "a config is a list", ""),
        ({}, "lists no layers", ""),
        ({"num_layers": 3, "layer_types": ["mamba"]}, "`num_layers` is 3", ""),
        ({"layer_types": ["mamba"], "norm": "nrm"}, "no norm", ""),
        ({"dim": 30, "layer_types": [{"type": "attention", "params": {"n_heads": 4}}]}, "do not fit together", ""),
        ({"bricks": {"a": {"type": "mlp"}}, "blocks": [{"bricks": ["b"]}]}, "names a brick `b`", ""),
        (
            {"bricks": {"a": {"type": "mlp"}}, "blocks": [{"type": "parallel", "bricks": ["a"], "combiner": "ad"}]},
            "no combiner `ad`",
            "`add`",
        ),
        ({"bricks": {"a": {"type": "mlp"}}, "blocks": [{"type": "parallel", "bricks": ["a"], "combiner": "gate"}]}, "two bricks", ""),
        ({"bricks": {"a": {"type": "mlp"}}, "blocks": [{"type": "paralel", "bricks": ["a"]}]}, "no known type", "`parallel`"),
        ({"hybrid_override_pattern": "MZ"}, "`Z` stands for no layer", "M * - E"),
    ],
)
def test_configs_that_cannot_be_read_are_diagnostics(config, message, help):
    with pytest.raises(GraphirError) as e:
        program(config)
    assert {d.code for d in e.value.diagnostics} == {"E0911"}
    assert message in str(e.value)
    assert help in "".join(e.value.diagnostics[0].help)


def test_the_command_reads_yaml_and_json(tmp_path, capsys):
    listed = tmp_path / "plain.json"
    listed.write_text('["mamba", "mlp"]')
    out = tmp_path / "plain.arch"
    assert run(["import", str(listed), "-o", str(out)]) == 0
    assert run(["check", str(out)]) == 0
    assert out.read_text().startswith("model Plain(")
    spelled = tmp_path / "spelled.yml"
    spelled.write_text("architecture:\n  d_model: 32\n  layer_types:\n    - {type: mlstm, backend: mlx}\n    - swiglu\n")
    assert run(["import", str(spelled)]) == 0
    assert "on mlx" in capsys.readouterr().out
    spelled.write_text("architecture: !!python/object/apply:os.system [echo]\n")
    assert run(["import", str(spelled)]) == 1
    listed.write_text("[" * 100_000)
    assert run(["import", str(listed)]) == 1
    assert "error[E0911]" in capsys.readouterr().err
