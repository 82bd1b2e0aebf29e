"""Models that nobody here wrote, reproduced by programs and name tables alone: outputs, hidden states, gradients, decoding."""

from __future__ import annotations

import pytest
import torch
from reference import NAMES, reference

import graphir
from graphir.api import optimise, tensors
from graphir.backends.base import compile_module
from graphir.backends.interpreter import Interpreter
from graphir.lang.diagnostic import GraphirError

DECODED = [n for n in NAMES if "steps" in reference(n).case]
each = pytest.mark.parametrize("name", NAMES)


def worst(pairs):
    """The largest difference, and whose it is."""
    return max((float((ours - theirs).abs().max()), key) for key, ours, theirs in pairs)


def named(net, made):
    return dict(zip(net.output_names, made if isinstance(made, tuple) else (made,)))


@each
def test_the_program_has_the_recorded_number_of_parameters(name):
    ref = reference(name)
    assert ref.graph.parameters == ref.meta["n_params"]


@each
def test_interpreter_gives_the_recorded_outputs(name):
    ref = reference(name)
    pairs = ref.outputs(Interpreter(ref.graph, ref.weights()).run(ref.inputs()))
    assert all(ours.shape == theirs.shape for _, ours, theirs in pairs)
    assert worst(pairs)[0] <= ref.atol


@each
@pytest.mark.parametrize("mode", ["train", "infer"])
def test_fx_gives_the_recorded_outputs(name, mode):
    ref = reference(name)
    net = graphir.compile(ref.graph, mode=mode, weights=ref.weights())
    with torch.no_grad():
        assert worst(ref.outputs(named(net, net(**ref.inputs()))))[0] <= ref.atol


@each
def test_hidden_states_are_the_recorded_ones(name):
    ref = reference(name)
    graph, taps = ref.tapped()
    assert taps
    made = Interpreter(graph, ref.weights()).run(ref.inputs())
    for theirs, tap in taps.items():
        wanted = ref.recorded[f"hidden.{theirs}"]
        largest = max(1.0, float(wanted.abs().max()) / ref.meta["out_abs_max"])
        assert made[tap].numel() == wanted.numel(), theirs
        assert float((made[tap].reshape(wanted.shape) - wanted).abs().max()) <= ref.atol * largest, theirs


def gradients_of_theirs(ref, run):
    """L2 norms of the gradient at each tensor of theirs, through the name table. `run` makes outputs of our weights."""
    foreign = {n: t.clone().requires_grad_(t.is_floating_point()) for n, t in ref.foreign.items()}
    ref.loss(run(ref.weights(foreign=foreign))).backward()
    return {n: float(t.grad.double().norm()) for n, t in foreign.items() if t.grad is not None}


def assert_gradients(ref, found):
    recorded = ref.meta["grad_l2"]
    largest = max(recorded.values())
    assert found.keys() >= recorded.keys() - set(ref.meta["dead_params"])
    for key, wanted in recorded.items():
        # A key's bias has no gradient but rounding: softmax does not see it.
        assert found.get(key, 0.0) == pytest.approx(wanted, rel=1e-3, abs=1e-6 * largest), key


@each
def test_interpreter_gives_the_recorded_gradients(name):
    ref = reference(name)
    assert_gradients(ref, gradients_of_theirs(ref, lambda weights: Interpreter(ref.graph, weights).run(ref.inputs())))


@each
def test_fx_gives_the_recorded_gradients(name):
    ref = reference(name)
    recipes = []
    final = optimise(ref.graph, mode="train", recipes=recipes)

    def run(weights):
        given = tensors(ref.graph, final, recipes, weights)
        net = compile_module(final, weights=given)
        return named(net, torch.func.functional_call(net, {n: given[n] for n in net.state_dict()}, kwargs=ref.inputs()))

    assert_gradients(ref, gradients_of_theirs(ref, run))


@pytest.mark.parametrize("name", DECODED)
@pytest.mark.parametrize("prefill", [1, 5])
def test_decoding_gives_the_recorded_logits(name, prefill):
    ref = reference(name)
    net = Interpreter(ref.graph, ref.weights())
    made, state = [], None
    whole = [name for name, _ in ref.graph.inputs if name not in ref.case["steps"]]
    for inputs in ref.steps(prefill):
        outputs, state = net.run_step(inputs, state, whole)
        made.append(outputs["logits"])
    assert float((torch.cat(made, 1) - ref.recorded["decode.logits"]).abs().max()) <= ref.atol


@pytest.mark.parametrize("name", DECODED)
@pytest.mark.parametrize("prefill", [1, 5])
@pytest.mark.parametrize("fixed", [False, True], ids=["growing", "fixed"])
def test_fx_decodes_the_recorded_logits(name, prefill, fixed):
    ref = reference(name)
    net = graphir.compile(ref.graph, mode="decode", weights=ref.weights())
    tokens = ref.inputs()[ref.case["steps"][0]]
    if fixed and any(n.op == "relative_bias" for n in ref.graph.nodes):
        with pytest.raises(GraphirError, match=r"E0814"):
            net.init_state(tokens.shape[0], length=tokens.shape[1])
        return
    state = net.init_state(tokens.shape[0], length=tokens.shape[1]) if fixed else None
    made, given = [], None
    for inputs in ref.steps(prefill):
        given = inputs if given is None else {n: t for n, t in inputs.items() if n in net.steps}
        with torch.no_grad():
            outputs, state = net(**given, state=state)
        made.append(named(net, outputs)["logits"])
    assert float((torch.cat(made, 1) - ref.recorded["decode.logits"]).abs().max()) <= ref.atol


def test_an_encoder_cannot_be_fed_token_by_token():
    ref = reference("t5")
    with pytest.raises(GraphirError, match=r"E0810") as refused:
        Interpreter(ref.graph, ref.weights()).run_step(ref.inputs())
    assert "decoder.0.mixer" not in str(refused.value)


@each
def test_every_parameter_matters(name):
    """Had the program this value built in, as its default, the outputs would be visibly wrong."""
    ref = reference(name)
    wrong = {}
    for missing in [p for p in ref.params if p not in ref.case.get("same", ())]:
        params = {k: v for k, v in ref.params.items() if k != missing}
        try:
            graph = graphir.load(ref.program, ref.case.get("model"), **params)
            made = Interpreter(graph, ref.weights(graph)).run(ref.inputs())
        except GraphirError:
            continue
        wrong[missing] = worst(ref.outputs(made))[0]
    assert all(error > 10 * ref.atol for error in wrong.values()), wrong


INDUCTOR = ["llama", "gpt_neox", "bert", "albert"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in [*INDUCTOR, "lfm2"] if n in NAMES])
def test_inductor_gives_the_recorded_outputs(name):
    ref = reference(name)
    net = graphir.compile(ref.graph, weights=ref.weights(), inductor=True)
    with torch.no_grad():
        assert worst(ref.outputs(named(net, net(**ref.inputs()))))[0] <= 1e-4
