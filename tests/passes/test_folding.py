"""Folding norms into linears and batch norms into convolutions: same outputs, fewer weights, and reasons where it refuses."""

from __future__ import annotations

import pytest
from hand import Hand, ops, run

from graphir.lang.diagnostic import GraphirError
from graphir.passes import run_pipeline, starting_weights
from graphir.passes.folding import fold_weights

from oracle import assert_keeps_meaning, assert_same, outputs, weights

NORMS = [("rmsnorm", {}), ("rmsnorm", {"offset": 1.0}), ("layernorm", {}), ("layernorm", {"bias": False}), ("layernorm", {"scale": False})]


def fold(graph, text="fold", explain=False):
    recipes = []
    after, report = run(graph, text, explain, recipes)
    return after, report, recipes


@pytest.mark.parametrize("text", ["fold", "norm-fusion{affine=true}"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("op", "attrs"), NORMS)
def test_scales_and_shifts_move_into_all_linears(op, attrs, bias, text):
    h = Hand()
    y = h.call(op, h.x, **attrs)
    graph = h.graph(h.call("linear", y, out=6, bias=bias), h.call("linear", y, out=4, bias=bias))
    after, _, recipes = fold(graph, text)
    assert ops(after) == [op, "linear", "linear"]
    assert after.nodes[0].weights == ()
    assert not any(name.startswith(op) for name in after.weights)
    assert_keeps_meaning(graph, after, recipes)
    again, _, more = fold(after, text)
    assert again is after
    assert more == []


def test_shared_linears_after_one_shared_norm_stay_shared():
    h = Hand()
    norm = h.node("rmsnorm", h.x, at="norm")
    linear = h.node("linear", norm.outputs[0], out=8, at="linear")
    again = h.node("rmsnorm", linear.outputs[0], like=norm)
    graph = h.graph(h.call("linear", again.outputs[0], out=8, like=linear))
    after, _, recipes = fold(graph)
    assert set(after.weights) == {"linear.weight_folded", "linear.bias"}
    assert [str(r) for r in recipes] == ["linear.weight_folded = scaled_columns(weight=linear.weight, scale=norm.weight)"]
    assert_keeps_meaning(graph, after, recipes)


def test_a_norm_is_seen_through_forks():
    h = Hand()
    norm = h.call("layernorm", h.x)
    left, right = h.node("fork", norm, branches=("a", "b"), at="fork.fork").outputs
    graph = h.graph(h.call("add", h.call("linear", left, out=8, at="fork.a"), h.call("linear", right, out=8, at="fork.b")))
    after, report, recipes = fold(graph)
    assert report.fired["scale_of_a_norm_moves_into_the_linears_after_it"] == 1
    assert_keeps_meaning(graph, after, recipes)


def _used_elsewhere(h):
    y = h.call("rmsnorm", h.x)
    return [h.call("linear", y, out=8), h.call("gelu", y, at="ff.gelu")]


def _a_result(h):
    y = h.call("rmsnorm", h.x)
    return [h.call("linear", y, out=8), y]


def _shared_linear(h):
    linear = h.node("linear", h.call("rmsnorm", h.x), out=8, at="linear")
    return [linear.outputs[0], h.call("linear", h.x, out=8, like=linear)]


def _other_scale(h):
    linear = h.node("linear", h.call("rmsnorm", h.x), out=8, at="linear")
    return [linear.outputs[0], h.call("linear", h.call("rmsnorm", h.x), out=8, like=linear)]


def _tied(h):
    ids = h.input("ids", 3, dtype="int")
    linear = h.node("linear", h.call("rmsnorm", h.x), out=5, bias=False, at="linear")
    return [linear.outputs[0], h.call("embedding", ids, size=5, out=8, like=linear)]


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (_used_elsewhere, "the normed value is read by `gelu` at ff.gelu, not by linears alone"),
        (_a_result, "the normed value is a result of the model"),
        (_shared_linear, "weight linear.bias is shared with a call that does not fold alike"),
        (_other_scale, "weight linear.bias is shared with a call that does not fold alike"),
        (_tied, "weight linear.weight is shared with a call that does not fold alike"),
    ],
)
def test_it_says_why_it_does_not_fire(make, reason):
    h = Hand()
    graph = h.graph(*make(h))
    after, report, recipes = fold(graph, explain=True)
    assert after is graph
    assert recipes == []
    assert {r.reason for r in report.refusals} == {reason}


def test_a_dropped_site_drops_what_shares_its_linears():
    h = Hand()
    norm = h.node("rmsnorm", h.x, at="norm")
    linear = h.node("linear", norm.outputs[0], out=8, bias=False, at="linear")
    again = h.node("rmsnorm", linear.outputs[0], like=norm)
    both = h.call("linear", again.outputs[0], out=8, bias=False, like=linear)
    graph = h.graph(both, again.outputs[0])  # the second norm is a result, so the first may not fold either
    after, report, _ = fold(graph, explain=True)
    assert after is graph
    assert len(report.refusals) == 2


def test_training_refuses():
    h = Hand()
    graph = h.graph(h.call("linear", h.call("rmsnorm", h.x), out=8))
    after, report, _ = fold(graph, "fold{mode=train}", explain=True)
    assert after is graph
    assert [r.reason for r in report.refusals] == ["the model trains, and folding would change what is trained"]


def test_a_run_that_carries_no_weights_refuses():
    h = Hand()
    graph = h.graph(h.call("linear", h.call("rmsnorm", h.x), out=8))
    with pytest.raises(GraphirError) as caught:
        run_pipeline(graph, "fold")
    assert [d.code for d in caught.value.diagnostics] == ["E0904"]


def _images(h):
    return h.input("images", 2, 3, 7, 5)


@pytest.mark.parametrize("attrs", [{}, {"scale": False}, {"bias": False}, {"scale": False, "bias": False}])
@pytest.mark.parametrize("bias", [True, False])
def test_batch_norm_moves_into_the_convolution_before(bias, attrs):
    h = Hand()
    y = h.call("conv2d", _images(h), out=4, kernel=3, bias=bias)
    graph = h.graph(h.call("relu", h.call("batchnorm", y, **attrs)))
    after, _, recipes = fold(graph)
    assert ops(after) == ["conv2d", "relu"]
    assert set(after.weights) == {"conv2d_0.weight_folded", "conv2d_0.bias_folded"}
    assert_keeps_meaning(graph, after, recipes)
    assert fold(after)[0] is after


@pytest.mark.parametrize("name", ["conv1d", "depthwise_conv2d"])
def test_other_convolutions_too(name):
    h = Hand()
    x = _images(h) if name.endswith("2d") else h.input("signal", 2, 3, 9)
    attrs = {"kernel": 3} if name.startswith("depthwise") else {"kernel": 3, "out": 6, "groups": 3}
    graph = h.graph(h.call("batchnorm", h.call(name, x, **attrs)))
    after, _, recipes = fold(graph)
    assert ops(after) == [name]
    assert_keeps_meaning(graph, after, recipes)


def _no_convolution(h):
    y = h.call("batchnorm", _images(h))
    return [h.call("conv2d", y, out=3, kernel=1)]


def _read_twice(h):
    y = h.call("conv2d", _images(h), out=3, kernel=1)
    return [h.call("batchnorm", y), h.call("relu", y)]


def _shared_convolution(h):
    x = _images(h)
    one = h.node("conv2d", x, out=3, kernel=1)
    return [h.call("batchnorm", one.outputs[0]), h.call("conv2d", h.call("relu", x), out=3, kernel=1, like=one)]


def _other_backend(h):
    return [h.call("batchnorm", h.call("conv2d", _images(h), out=3, kernel=1), on="mlx")]


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (_no_convolution, "it reads an input, not a convolution"),
        (_read_twice, "the convolution's value is used elsewhere"),
        (_shared_convolution, "the convolution shares its weights with another call"),
        (_other_backend, "the convolution is on another backend"),
    ],
)
def test_batch_norm_says_why_it_stays(make, reason):
    h = Hand()
    graph = h.graph(*make(h))
    after, report, _ = fold(graph, explain=True)
    assert after is graph
    assert [r.reason for r in report.refusals] == [reason]


def test_folding_with_tensors_at_hand():
    h = Hand()
    graph = h.graph(h.call("linear", h.call("layernorm", h.x), out=4))
    tensors = weights(graph)
    after, folded = fold_weights(graph, tensors)
    assert folded.keys() == after.weights.keys()
    assert_same(outputs(graph, tensors=tensors), outputs(after, tensors=folded))


def test_what_to_initialise_is_what_was_loaded_as_the_passes_left_it():
    h = Hand()
    y = h.call("stitch", h.call("linear", h.call("rmsnorm", h.x, at="norm"), out=6, at="linear"), out=4, open=True, at="stitch")
    graph = h.graph(y)
    recipes = []
    after = run_pipeline(graph, "stitch{form=low-rank,rank=2,init=zero},fold", recipes=recipes)
    start = starting_weights(graph, after)
    assert {n: (w.shape, w.init) for n, w in start.items()} == {
        "norm.weight": ((8,), "ones"), "linear.weight": ((6, 8), "he"), "linear.bias": ((6,), "zeros"),
        "stitch.weight": ((4, 2), "zeros"), "stitch.bias": ((4,), "zeros"), "stitch.weight_in": ((2, 6), "he"),
    }
    assert after.weights["linear.weight_folded"].init == "derived"
