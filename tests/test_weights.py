"""Initialisation by name, safetensors checked in full, atomic writing, and tables of foreign names."""

from __future__ import annotations

import json
import os
import struct

import pytest
import torch

from graphir.atomic import write_atomic
from graphir.backends.names import apply_names, read_names
from graphir.backends.weights import MAKERS, initialise, load, make, read_header, read_metadata, save
from graphir.ir.graph import Graph, Weight
from graphir.lang.diagnostic import GraphirError

from private_bricks import language_model


def weights_of(**shapes):
    """A graph that only has weights."""
    return Graph("Foreign", (), (), (), {n: w if isinstance(w, Weight) else Weight(w) for n, w in shapes.items()})


def codes(error):
    return [d.code for d in error.value.diagnostics]


# initialisation


def test_adding_a_layer_leaves_other_weights_alone():
    small, large = initialise(language_model(2)), initialise(language_model(3))
    assert len(large) > len(small)
    assert all(torch.equal(large[n], small[n]) for n in small)


def test_seed_and_name_decide():
    g = language_model(2)
    assert not torch.equal(initialise(g, 0)["emb.weight"], initialise(g, 1)["emb.weight"])
    assert torch.equal(initialise(g, 3)["emb.weight"], initialise(g, 3)["emb.weight"])
    first, second = (initialise(g)[f"layers.{i}.ffn.down.weight"] for i in range(2))
    assert not torch.equal(first, second)


def test_float64_weights_are_the_float32_ones():
    g = language_model(1)
    double = initialise(g, dtype=torch.float64)
    assert all(t.dtype == torch.float64 and torch.equal(t.float(), initialise(g)[n]) for n, t in double.items())


@pytest.mark.parametrize(
    ("spec", "shape", "deviation"),
    [
        ("he", (400, 200), (2 / 200) ** 0.5),
        ("he", (40, 20, 3, 3), (2 / 180) ** 0.5),
        ("he", (5000,), (2 / 5000) ** 0.5),
        ("lecun", (400, 200), 200**-0.5),
        ("xavier", (400, 200), (2 / 600) ** 0.5),
        ("torch_linear", (400, 200), (1 / 200) ** 0.5 / 3**0.5),
        ("normal(0.02)", (400, 200), 0.02),
        ("uniform(0.3)", (400, 200), 0.3 / 3**0.5),
        ("trunc_normal(0.02)", (400, 200), 0.02 * 0.8796),
        ("small", (400, 200), 0.01),
        ("small_init", (400, 200), (2 / 1000) ** 0.5),
        ("wang(12)", (400, 200), 2 / 12 / 200**0.5),
    ],
)
def test_random_specs_have_their_deviation(spec, shape, deviation):
    x = make("w", Weight(shape, spec))
    assert x.shape == shape
    assert abs(float(x.std()) / deviation - 1) < 0.03
    assert abs(float(x.mean())) < deviation * 4 / x.numel() ** 0.5


def test_truncated_normal_stops_at_two_deviations():
    assert float(make("w", Weight((100, 100), "trunc_normal(0.5)")).abs().max()) <= 1.0


def test_exact_specs():
    assert torch.equal(make("w", Weight((2, 3), "eye")), torch.eye(2, 3))
    assert torch.equal(make("w", Weight((2,), "constant(-1.5)")), torch.full((2,), -1.5))
    assert torch.equal(make("w", Weight((2, 3), "linspace(0, 2)")), torch.tensor([[0.0, 1.0, 2.0]] * 2))
    assert torch.allclose(make("w", Weight((2, 3), "log_range")).exp(), torch.tensor([[1.0, 2.0, 3.0]] * 2))
    q = make("w", Weight((6, 4), "orthogonal"))
    assert torch.allclose(q.T @ q, torch.eye(4), atol=1e-6)
    steps = torch.nn.functional.softplus(make("w", Weight((1000,), "step_bias")))
    assert 0.99e-3 < float(steps.min()) < 1.2e-3
    assert 0.08 < float(steps.max()) < 0.101


@pytest.mark.parametrize("word", sorted(MAKERS))
def test_every_spec_takes_every_shape(word):
    inside = {"constant": "(2)", "wang": "(4)", "linspace": "(0, 1)", "forget_power": "(0, 2)"}.get(word, "")
    for shape in ((), (3,), (2, 3), (2, 3, 4), (0, 3)):
        assert make("w", Weight(shape, word + inside)).shape == shape


@pytest.mark.parametrize("spec", ["hee", "normal(0.1, 2)", "constant", "normal(inf)", "__import__('os')", "he()x"])
def test_unknown_specs_are_told(spec):
    with pytest.raises(GraphirError) as error:
        initialise(weights_of(a=Weight((2,), spec), b=Weight((2,), spec)))
    assert codes(error) == ["E0404", "E0404"]


# files


def test_save_and_load(tmp_path):
    g = language_model(2)
    tensors = initialise(g)
    save(tmp_path / "w.safetensors", tensors, {"b": 1, "a": [2]})
    save(tmp_path / "again.safetensors", dict(reversed(tensors.items())), {"a": [2], "b": 1})
    assert (tmp_path / "w.safetensors").read_bytes() == (tmp_path / "again.safetensors").read_bytes()
    found = load(tmp_path / "w.safetensors", g)
    assert list(found) == list(g.weights)
    assert all(torch.equal(found[n], tensors[n]) for n in tensors)
    assert read_metadata(tmp_path / "w.safetensors") == {"a": [2], "b": 1}


def test_all_that_does_not_fit_is_listed(tmp_path):
    save(tmp_path / "w", {"a": torch.zeros(2), "b": torch.zeros(3, 1), "c": torch.zeros(2, dtype=torch.int64), "extra": torch.zeros(1)})
    with pytest.raises(GraphirError) as error:
        load(tmp_path / "w", weights_of(a=(2,), b=(3,), c=(2,), d=(4,)))
    text = str(error.value)
    assert codes(error) == ["E0801"] * 4
    assert all(word in text for word in ("`b` is [3, 1]", "`c` has I64", "`d` [4] is not in", "holds `extra`"))


def hostile(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


A = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x02}q\x00.",
        hostile({"a": A}, bytes(4)),
        hostile({"a": A}, bytes(9)),
        hostile({"a": A}, bytes(8), length=2**62),
        hostile({"a": {**A, "shape": [2**40, 2**40]}}, bytes(8)),
        hostile({"a": {**A, "shape": [-2]}}, bytes(8)),
        hostile({"a": {**A, "dtype": "F33"}}, bytes(8)),
        hostile({"a": {**A, "dtype": ["F32"]}}, bytes(8)),
        hostile({"a": A, "b": A}, bytes(8)),
        hostile({"a": A, "b": {**A, "data_offsets": [16, 24]}}, bytes(24)),
        hostile({"a": {**A, "more": 1}}, bytes(8)),
        hostile(b'{"a": %s, "a": %s}' % ((json.dumps(A).encode(),) * 2), bytes(8)),
        hostile(b"[" * 100_000),
        hostile(b"\xff\xfe"),
        hostile([A], bytes(8)),
        hostile({"__metadata__": {"x": 1}, "a": A}, bytes(8)),
    ],
)
def test_broken_files_are_refused(tmp_path, content):
    (tmp_path / "w").write_bytes(content)
    with pytest.raises(GraphirError) as error:
        load(tmp_path / "w", weights_of(a=(2,)))
    assert codes(error) == ["E0802"]


def test_every_truncation_is_refused(tmp_path):
    save(tmp_path / "w", {"a": torch.ones(2)})
    whole = (tmp_path / "w").read_bytes()
    assert read_header(tmp_path / "w")["a"]["shape"] == [2]
    for end in range(len(whole)):
        (tmp_path / "cut").write_bytes(whole[:end])
        with pytest.raises(GraphirError):
            load(tmp_path / "cut", weights_of(a=(2,)))


def test_missing_file_is_a_diagnostic(tmp_path):
    with pytest.raises(GraphirError) as error:
        load(tmp_path / "none", weights_of(a=(2,)))
    assert codes(error) == ["E0802"]


def test_writing_is_all_or_nothing(tmp_path, monkeypatch):
    target = tmp_path / "f"
    write_atomic(target, "old")
    os.chmod(target, 0o640)
    write_atomic(target, "new")
    assert target.read_text() == "new"
    assert target.stat().st_mode & 0o777 == 0o640
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(GraphirError) as error:
        write_atomic(target, "lost")
    assert codes(error) == ["E0506"]
    assert "No space" in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["f"]
    assert target.read_text() == "new"


def test_links_devices_and_folders_are_not_written(tmp_path):
    (tmp_path / "real").write_text("kept")
    (tmp_path / "link").symlink_to("real")
    for target in (tmp_path / "link", tmp_path, "/dev/null", tmp_path / "none" / "f", tmp_path / "real" / "f"):
        with pytest.raises(GraphirError) as error:
            write_atomic(target, b"x")
        assert codes(error) == ["E0506"]
    assert (tmp_path / "real").read_text() == "kept"


# tables of names


def table(body, **more):
    lines = "\n".join(f'"{k}" = "{v}"' for k, v in body.items())
    tied = "\n".join(f'"{k}" = "{v}"' for k, v in more.get("tied", {}).items())
    return read_names(f"ignore = {json.dumps(more.get('ignore', []))}\n[tied]\n{tied}\n[names]\n{lines}")


def test_wildcards_slices_and_arithmetic():
    fused = torch.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)
    foreign = {f"m.layers.{i + 1}.experts": fused[i] for i in range(2)}
    names = {
        "layers.{i}.experts.{e}.gate": "m.layers.{i + 1}.experts[{e}, :half]",
        "layers.{i}.experts.{e}.up": "m.layers.{i+1}.experts[{e}, half:2 * half] | T",
    }
    shapes = {f"layers.{i}.experts.{e}.gate": (2, 5) for i in range(2) for e in range(3)}
    shapes |= {f"layers.{i}.experts.{e}.up": (5, 2) for i in range(2) for e in range(3)}
    g = weights_of(**shapes)
    g = Graph("G", (), (), (), g.weights, params={"half": 2})
    found = apply_names(table(names), foreign, g)
    assert torch.equal(found["layers.1.experts.2.gate"], fused[1, 2, :2])
    assert torch.equal(found["layers.0.experts.1.up"], fused[0, 1, 2:].T)


def test_projections_fused_per_head():
    heads, k, d = 2, 3, 6
    q, key, v = torch.randn(3, heads * k, d)
    fused = torch.stack([t.reshape(heads, k, d) for t in (q, key, v)], 1).reshape(-1, d)
    names = {p: f"qkv | reshape(2, 3, -1, 6)[:, {i}] | reshape(-1, 6)" for i, p in enumerate("qkv")}
    found = apply_names(table(names), {"qkv": fused}, weights_of(q=(6, 6), k=(6, 6), v=(6, 6)))
    assert all(torch.equal(found[n], t) for n, t in zip("qkv", (q, key, v)))


def test_joins_and_segments():
    foreign = {"a.x": torch.ones(2, 3), "a.y": torch.zeros(2, 3), "cls": torch.ones(1, 1, 4)}
    names = {"one.{part}": "cat(a.x, a.y[:, :1], 1)", "two": "stack(a.x, a.y) | permute(1, 0, 2)", "cls": "cls[0, 0] | mul(2) | add(1)"}
    g = weights_of(**{"one.any": (2, 4), "two": (2, 2, 3), "cls": (4,)})
    found = apply_names(table(names), foreign, g)
    assert torch.equal(found["cls"], torch.full((4,), 3.0))
    assert found["two"].is_contiguous()


def test_ties_and_ignored_names():
    foreign = {"emb": torch.ones(2), "head": torch.ones(2), "layers.0.inv_freq": torch.ones(3)}
    names = table({"e": "emb", "h": "lm"}, tied={"head": "emb", "lm": "emb"}, ignore=["*.inv_freq"])
    assert torch.equal(apply_names(names, foreign, weights_of(e=(2,), h=(2,)))["h"], torch.ones(2))
    with pytest.raises(GraphirError, match="holds other numbers"):
        apply_names(names, {**foreign, "head": torch.zeros(2)}, weights_of(e=(2,), h=(2,)))


def test_both_sides_are_accounted_for():
    foreign = {"a": torch.ones(4), "b": torch.ones(2), "stray": torch.ones(1)}
    names = table({"x": "a[:2]", "y": "bb", "z": "b | reshape(3)", "w": "b"})
    with pytest.raises(GraphirError) as error:
        apply_names(names, foreign, weights_of(x=(2,), y=(2,), z=(2,), w=(3,), v=(1,)))
    text = str(error.value)
    assert set(codes(error)) == {"E0821"}
    assert "no `bb` (did you mean `b`?)" in text
    for words in ("does not apply to [2]", "`w` is [3]", "no pattern", "`stray` [1] is not used", "2 of 4 numbers"):
        assert words in text


@pytest.mark.parametrize("text", ["names = [", "[names]\na = 1", "names = 3", "nmes = 3", '[names]\n"{i + 1}" = "a"', "ignore = [1]"])
def test_tables_that_are_none(text):
    with pytest.raises(GraphirError) as error:
        read_names(text)
    assert set(codes(error)) == {"E0820"}


@pytest.mark.parametrize(
    "text", ["a[", "a[9]", "a[x]", "a | eval(1)", "a | T)", "cat(a", "", "a[1:2:3:4]", "a[0][0]", "a | reshape(q.w)", "cat(a, a, 7)"]
)
def test_expressions_that_do_not_apply(text):
    with pytest.raises(GraphirError) as error:
        apply_names(table({"x": text}), {"a": torch.ones(2)}, weights_of(x=(2,)))
    assert "E0821" in codes(error)
