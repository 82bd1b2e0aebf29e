"""Every stateful brick: the whole sequence equals prefill and steps; plus what each cache keeps."""

from __future__ import annotations

import pytest
import torch
from mixing import Case
from torch.nn.functional import logsigmoid, normalize

import graphir.bricks.catalogue  # noqa: F401
from graphir.bricks.declare import REGISTRY
from graphir.ir.dims import Facts

BELOW_ZERO = {"g": logsigmoid}
UNIT = {"beta": torch.sigmoid, "k": lambda k: normalize(k, dim=-1)}
QKV = "float[2, 3, 7, 4], float[2, 3, 7, 4], float[2, 3, 7, 6]"
GATE = "float[2, 3, 7]"
HEADS = {"q": 2, "k": 2, "v": 2, "r": 2, "i": 2, "f": 2, "g": 2, "w": 2, "beta": 2}
TOKENS = {p: 1 for p in ("x", "i", "f", "z", "o", "a", "dt", "b", "c", "k", "v", "input_gate", "recurrent_gate")}

# use, what makes its inputs valid, axis of time of each port
X = "float[2, 7, 6]"
ONE = "float[2, 7, 1, 6]"
RECURRENT = [
    ("lstm(5) : float[2, 7, 4]", {}, TOKENS),
    ("lstm(5, bias = false) : float[2, 7, 4]", {}, TOKENS),
    ("gru(5) : float[2, 7, 4]", {}, TOKENS),
    ("gru(5, bias = false) : float[2, 7, 4]", {}, TOKENS),
    ("slstm_cell(2) : float[2, 7, 4], float[2, 7, 4], float[2, 7, 4], float[2, 7, 4]", {}, TOKENS),
    ("linear_recurrence : float[2, 7, 4], float[2, 7, 4]", {"a": torch.sigmoid}, TOKENS),
    ("rg_lru : float[2, 7, 4], float[2, 7, 4], float[2, 7, 4]", {}, TOKENS),
    ("causal_conv1d(6, kernel = 3, dilation = 2, groups = 2) : float[2, 7, 4]", {}, TOKENS),
    ("causal_conv1d(6, kernel = 1) : float[2, 7, 4]", {}, TOKENS),
    ("depthwise_conv1d(4) : float[2, 7, 5]", {}, TOKENS),
    ("depthwise_conv1d(3, bias = false, dilation = 3) : float[2, 7, 5]", {}, TOKENS),
    ("fft_conv : float[2, 7, 4], float[9, 4]", {}, TOKENS),
    ("fft_conv : float[2, 7, 4], float[3, 4]", {}, TOKENS),
    (f"selective_scan : {X}, {X}, float[2, 7, 3], float[2, 7, 3]", {}, TOKENS),
    (f"selective_scan(skip = false, softplus = false) : {X}, {X}, float[2, 7, 3], float[2, 7, 3]", {"dt": torch.exp}, TOKENS),
    ("ssd(chunk = 3) : float[2, 7, 4, 3], float[2, 7, 4], float[2, 7, 2, 6], float[2, 7, 2, 6]", {}, TOKENS),
    (f"ssd(dt_max = 0.5, skip = false, dt_bias = false) : float[2, 7, 4, 3], float[2, 7, 4], {ONE}, {ONE}", {}, TOKENS),
    (f"mlstm : {QKV}, {GATE}, {GATE}", {}, HEADS),
    (f"mlstm(chunk = 3) : {QKV}, {GATE}, {GATE}", {"i": lambda x: 6 * x, "f": lambda x: 6 * x}, HEADS),
    (f'mlstm(form = "recurrent") : {QKV}, {GATE}, {GATE}', {}, HEADS),
    (f'mlstm(form = "parallel") : {QKV}, {GATE}, {GATE}', {}, HEADS),
    (f"linear_attention(chunk = 3) : {QKV}", {}, HEADS),
    (f'linear_attention(feature = "identity", normalise = false, scale = 0.5) : {QKV}', {}, HEADS),
    (f"retention(chunk = 3) : {QKV}", {}, HEADS),
    (f"decayed_attention(chunk = 3) : {QKV}, {GATE}", BELOW_ZERO, HEADS),
    (f"gla(chunk = 3) : {QKV}, float[2, 3, 7, 4]", BELOW_ZERO, HEADS),
    (f"delta_rule(chunk = 3) : {QKV}, {GATE}", UNIT, HEADS),
    (f"gated_delta_rule(chunk = 3) : {QKV}, {GATE}, {GATE}", BELOW_ZERO | UNIT, HEADS),
    ("rwkv4_wkv(chunk = 3) : float[2, 7, 4], float[2, 7, 4]", {"k": lambda k: 5 * k}, TOKENS),
    (f"rwkv5_wkv(chunk = 3) : {QKV}", {}, HEADS),
    (f"rwkv6_wkv(chunk = 3) : {QKV}, float[2, 3, 7, 4]", {"w": logsigmoid}, HEADS),
]
POSITIONS = [
    ("rope : float[2, 3, 7, 8]", {"x": 2}, -2),
    ('rope(theta = 500.0, layout = "interleaved", dims = 4, scaling = 2.0, axis = 1) : float[2, 7, 3, 8]', {"x": 1}, 1),
    ("rope : float[2, 3, 7, 8], position = int[7]", {"x": 2, "position": 0}, -2),
    ("sinusoidal_positions : float[2, 7, 8]", {"x": 1}, 0),
    ('sinusoidal_positions(layout = "half") : float[2, 7, 8]', {"x": 1}, 0),
    ("learned_positions(9, offset = 2) : float[2, 7, 8]", {"x": 1}, 0),
    ("position : float[2, 7, 3]", {"x": 1}, 0),
    ("position(axis = -1) : float[2, 7]", {"x": -1}, 0),
]
CUTS = [(7,), (4, 1, 1, 1), (1, 1, 1, 1, 1, 1, 1), (2, 5)]


@pytest.mark.parametrize(("text", "change", "axes"), RECURRENT, ids=[c[0].partition(" :")[0] for c in RECURRENT])
def test_prefill_and_steps_are_the_whole_sequence(text, change, axes):
    case = Case(text, change)
    time = case.ports.index("x" if "x" in case.ports else "v" if "v" in case.ports else "i")
    y = case.whole()
    for lengths in CUTS:
        pieces = case.pieces(lengths, axes)
        torch.testing.assert_close(torch.cat(pieces, axes[case.ports[time]]), y, rtol=1e-10, atol=1e-11)
    rows = case.whole([x[:1] if x.shape[0] == 2 else x for x in case.inputs])
    torch.testing.assert_close(rows, y[:1], rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize(("text", "change", "axes"), RECURRENT, ids=[c[0].partition(" :")[0] for c in RECURRENT])
def test_gradients_precision_and_empty_inputs(text, change, axes):
    case = Case(text, change)
    leaves = [*case.inputs, *case.weights.values()]
    for leaf in leaves:
        leaf.requires_grad_()
    count = len(case.inputs)

    def run(*tensors):
        case.weights = dict(zip(case.weights, tensors[count:]))
        return case.whole(tensors[:count])

    assert torch.autograd.gradcheck(run, leaves, fast_mode=True)
    with torch.no_grad():
        exact = case.whole()
        case.weights = {k: w.bfloat16() for k, w in case.weights.items()}
        half = case.whole([x.bfloat16() for x in case.inputs])
        assert half.dtype == torch.bfloat16
        torch.testing.assert_close(half.double(), exact, rtol=0.1, atol=0.1 * exact.abs().max().item())
        batched = [x[:0] if x.shape[0] == 2 else x for x in case.inputs]
        assert case.whole([x.bfloat16() for x in batched]).shape[0] == 0


@pytest.mark.parametrize(("text", "axes", "axis"), POSITIONS, ids=[c[0] for c in POSITIONS])
def test_positions_count_on_when_decoding(text, axes, axis):
    case = Case(text)
    for lengths in CUTS:
        torch.testing.assert_close(torch.cat(case.pieces(lengths, axes), axis), case.whole())
    rule = case.declaration.state
    cropped = rule.crop(case.state, 4, case.attrs)
    assert cropped["offset"] == 4


BIASES = ["relative_bias(4, bidirectional = false)", "relative_bias(4)", "alibi(3)"]


@pytest.mark.parametrize("use", BIASES)
def test_biases_when_decoding_are_rows_of_the_whole(use):
    case = Case(f"{use} : float[2, 7, 8]")
    whole, at = case.whole(), 0
    for piece in case.pieces((4, 1, 2), {"x": 1}):
        n, keys = piece.shape[2:]
        torch.testing.assert_close(piece, whole[:, :, at : at + n, :keys])
        assert keys == at + n
        at += n


def test_cache_gives_everything_so_far_and_crops():
    case = Case("cache(axis = 2) : float[2, 3, 7, 4]")
    x = case.inputs[0]
    assert case.whole() is x
    outputs = case.pieces((4, 2, 1), {"x": 2})
    assert [o.shape[2] for o in outputs] == [4, 6, 7]
    assert torch.equal(outputs[-1], x)
    back = case.declaration.state.crop(case.state, 5, case.attrs)
    y, _ = case.step(back, [x[:, :, 5:6]])
    assert torch.equal(y, x[:, :, :6])


def test_window_cache_holds_less_than_its_window():
    case = Case("window_cache(3) : float[2, 7, 4]")
    outputs = case.pieces((1, 4, 1, 1), {"x": 1})
    assert [o.shape[1] for o in outputs] == [1, 5, 3, 3]
    assert torch.equal(outputs[-1], case.inputs[0][:, 4:])
    assert case.state["past"].shape[1] == 2
    assert case.declaration.state.crop(case.state, 6, case.attrs) is None


def test_window_cache_crops_while_it_has_lost_nothing():
    case = Case("window_cache(4) : float[2, 7, 4]")
    case.pieces((2,), {"x": 1})
    back = case.declaration.state.crop(case.state, 1, case.attrs)
    y, _ = case.step(back, [case.inputs[0][:, 1:3]])
    assert torch.equal(y, case.inputs[0][:, :3])


@pytest.mark.parametrize("window", [1, 3, 20])
def test_attention_over_caches_decodes_as_the_whole_sequence(window):
    attend = Case(f"sdpa(causal = true, window = {window}) : float[2, 4, 7, 8], float[2, 2, 7, 8], float[2, 2, 7, 6]")
    keep = Case(f"window_cache({window}, axis = 2) : float[2, 2, 7, 8]").declaration.state.step
    q, k, v = attend.inputs
    states = [{"past": t[:, :, :0]} for t in (k, v)]
    pieces, at = [], 0
    for n in (3, 1, 1, 2):
        ks, states[0] = keep(states[0], k[:, :, at : at + n], window, 2)
        vs, states[1] = keep(states[1], v[:, :, at : at + n], window, 2)
        pieces.append(attend.whole([q[:, :, at : at + n], ks, vs]))
        at += n
    torch.testing.assert_close(torch.cat(pieces, 2), attend.whole())


def test_every_example_of_every_stateful_brick_agrees_with_its_types():
    checked = 0
    for declaration in REGISTRY:
        if declaration.state is None:
            continue
        assert declaration.examples, declaration.name
        for example in declaration.examples:
            case = Case(example)
            (type,) = declaration.infer(case.types, case.attrs, Facts())
            assert tuple(case.whole().shape) == type.shape, example
            checked += 1
    assert checked > 30
