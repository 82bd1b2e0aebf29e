"""Grafts: new bricks at the places of a host that stays as it is; hosts that are programs, and hosts that are torch modules."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from models import initial, model, random_weights, run, tokens
from torch import nn

import graphir
from graphir.backends.hosts import forget_host
from graphir.backends.interpreter import Interpreter
from graphir.lang.diagnostic import GraphirError

X = tokens()
HOST = "model Host(x: float[B, T, 8]) -> float[B, T, 8] { return x -> ([Layer(linear(8), MLP(16))] * 4) -> linear(8) as head }"
ADAPTER = """
block Adapter(start = "zeros")(x: [*S, d]) -> [*S, d] { return x -> rmsnorm -> linear(3) as down -> silu -> linear(d, init = start) as up }
"""


def grafted(*edits, host="Host", rest=""):
    lines = "\n".join(f"at {e}" for e in edits)
    return model(f"grown = graft {host} {{\n{lines}\n}}\nreturn x -> grown", rest=f"{HOST}\n{ADAPTER}\n{rest}")


def problems(*edits, **options):
    with pytest.raises(GraphirError) as failed:
        grafted(*edits, **options)
    return failed.value.diagnostics


def host_weights(graph, seed=0):
    """Random weights, equal by name to those of the host alone."""
    host = graphir.load(HOST)
    return random_weights(host, seed), host


def with_host(graph, weights):
    return {**initial(graph), **weights}


# hosts that are programs


def test_a_zero_initialised_additive_graft_leaves_the_host_to_the_bit():
    graph = grafted(
        "layers[1..3].mlp: fork { base: frozen(site)  new: Adapter } -> add",
        "layers[0].mixer: fork { base: site  new: Adapter } -> add(alpha = 0.5)",
    )
    weights, host = host_weights(graph)
    assert set(host.weights) <= set(graph.weights), "the host's weights have the paths of the host"
    assert len([n for n in graph.weights if n not in host.weights]) == 3 * 5
    alone = Interpreter(host, weights, torch.float64).run({"x": X})["output"]
    assert torch.equal(run(graph, with_host(graph, weights), X), alone)
    lowered = graphir.compile(graph, weights=with_host(graph, weights)).eval()
    assert torch.equal(lowered(X), graphir.compile(host, weights=weights).eval()(X))


def test_frozen_sites_do_not_train_and_grafts_do():
    graph = grafted("layers[2].mlp: fork { base: frozen(site)  new: Adapter } -> add")
    frozen = {n for n, w in graph.weights.items() if w.frozen}
    assert frozen == {n for n in graph.weights if n.startswith("layers.2.mlp.") and "fork" not in n and "new" not in n}
    with pytest.raises(GraphirError) as failed:
        graphir.parameter_groups(graphir.compile(graph), [{"match": "layers.**"}])
    assert failed.value.diagnostics[0].code == "E0705"


def site(w, x, layer=2):
    at = f"layers.{layer}.mlp"
    return F.linear(F.gelu(F.linear(x, w[f"{at}.up.weight"], w[f"{at}.up.bias"])), w[f"{at}.down.weight"], w[f"{at}.down.bias"])


@pytest.mark.parametrize(
    ("edit", "joined"),
    [
        ("fork { base: site  new: linear(8) as new } -> add(alpha = 0.5)", lambda h, n: h + 0.5 * n),
        ("fork { base: site  new: linear(8) as new } -> gate", lambda h, n: h * torch.sigmoid(n)),
        ("linear(8) as new", lambda h, n: n),
        ("fork { base: site  new: linear(8) as new } -> concat -> linear(8) as merged", lambda h, n: torch.cat([h, n], -1)),
    ],
)
def test_ways_to_inject(edit, joined):
    graph = grafted(f"layers[2].mlp: {edit}")
    w = random_weights(graph)
    seen = {}
    for i in range(4):
        x = X if i == 0 else seen[i - 1]
        h = x + F.linear(rms(w, f"layers.{i}.mixer_norm", x), w[f"layers.{i}.mixer.weight"], w[f"layers.{i}.mixer.bias"])
        inside = rms(w, f"layers.{i}.mlp_norm", h)
        out = site(w, inside, i) if f"layers.{i}.mlp.up.weight" in w else None
        if i == 2:
            new = next(n.removesuffix(".weight") for n in w if n.endswith("new.weight"))
            out = joined(out, F.linear(inside, w[f"{new}.weight"], w[f"{new}.bias"]))
            merged = next((n.removesuffix(".weight") for n in w if n.endswith("merged.weight")), None)
            out = F.linear(out, w[f"{merged}.weight"], w[f"{merged}.bias"]) if merged else out
        seen[i] = h + out
    torch.testing.assert_close(run(graph, w, X), F.linear(seen[3], w["head.weight"], w["head.bias"]), rtol=1e-9, atol=1e-9)


def rms(w, name, x):
    return F.rms_norm(x, (8,), w[f"{name}.weight"], 1e-6)


@pytest.mark.parametrize("options", ["", "pre = false", "post = true", "pre = false, post = true"])
def test_norms_at_the_boundary(options):
    graph = model(f"x -> NormalizedGraft(linear(8), {options}) as g")
    w = random_weights(graph)

    def norm(name, x):
        return F.layer_norm(x, (8,), w[f"g.{name}.weight"], w[f"g.{name}.bias"]) if f"g.{name}.weight" in w else x

    wanted = norm("post_norm", F.linear(norm("pre_norm", X), w["g.f.weight"], w["g.f.bias"]))
    torch.testing.assert_close(run(graph, w, X), wanted)
    assert ("g.pre_norm.weight" in w) == ("pre = false" not in options)
    assert ("g.post_norm.weight" in w) == ("post = true" in options)


@pytest.mark.parametrize(("start", "same"), [("zeros", True), ("small", False)])
def test_how_a_graft_starts_says_how_far_it_moves_the_host(start, same):
    graph = grafted(f'layers[1].mlp: fork {{ base: site  new: Adapter(start = "{start}") }} -> add')
    weights, host = host_weights(graph)
    alone = Interpreter(host, weights, torch.float64).run({"x": X})["output"]
    moved = (run(graph, with_host(graph, weights), X) - alone).abs().max()
    assert (moved == 0) == same
    assert moved < 0.5


def test_an_identity_graft_passes_its_input_on():
    graph = grafted('layers[1].mlp: linear(8, init = "identity")')
    w = initial(graph)
    name = next(n for n in w if n not in graphir.load(HOST).weights and n.endswith("weight"))
    assert torch.equal(w[name], torch.eye(8).double())


def test_a_path_that_matches_nothing_tells_near_ones():
    (found,) = problems("layers[1].mpl: Adapter")
    assert found.code == "E0701"
    assert "layers.1.mlp" in " ".join(found.help)
    assert found.span.text == "layers[1].mpl"
    assert [d.code for d in problems("layers[9].mlp: Adapter")] == ["E0701"]
    assert [d.code for d in problems("layers.mlp: Adapter")] == ["E0701"]


def test_every_place_of_a_list():
    graph = grafted("layers[*].mlp: fork { base: site  new: Adapter } -> add")
    assert sum(n.endswith("up.weight") and "Adapter" not in n and n not in graphir.load(HOST).weights for n in graph.weights) == 4


def test_taps_read_what_the_host_computed_before():
    graph = grafted("layers[3].mlp: fork { base: site  new: (concat(with = tap(layers[0])) -> linear(8) as late) } -> add")
    w = random_weights(graph)
    late = next(n.removesuffix(".weight") for n in w if n.endswith("late.weight"))
    assert w[f"{late}.weight"].shape == (8, 16)
    first = next(n for n in reversed(graph.nodes) if n.where.path.startswith("grown.layers.0."))
    joined = next(n for n in graph.nodes if n.op == "concat")
    assert joined.inputs[1] is first.outputs[0]
    run(graph, w, X)


def test_taps_of_places_not_computed_yet():
    (found,) = problems("layers[1].mlp: concat(with = tap(layers[2])) -> linear(8)")
    assert found.code == "E0703"
    (found,) = problems("layers[1].mlp: concat(with = tap(layer[0])) -> linear(8)")
    assert found.code == "E0703"
    assert "layers.0" in " ".join(found.help)
    assert problems("layers[1].mlp: concat(with = tap(layers[*])) -> linear(8)")[0].code == "E0701"
    assert problems("layers[1].mlp: concat(with = tap()) -> linear(8)")[0].code == "E0304"


def test_a_tap_is_no_name_outside_of_a_graft():
    with pytest.raises(GraphirError) as failed:
        model("x -> concat(with = tap(layers[0]))")
    assert {d.code for d in failed.value.diagnostics} == {"E0301"}


# hosts that are torch modules


class Half(nn.Module):
    def __init__(self):
        super().__init__()
        self.mixer, self.mlp, self.norm = nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)), nn.LayerNorm(8)

    def forward(self, x, scale=1.0):
        h = x + self.mixer(self.norm(x)) * scale
        return h + self.mlp(h), h


class Old(nn.Module):
    """A module of the host program: layers that return tuples, a tied weight, a buffer."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([Half() for _ in range(3)])
        self.head = nn.Linear(8, 8)
        self.layers[2].mixer.weight = self.layers[0].mixer.weight
        self.batch = nn.BatchNorm1d(8)
        self.register_buffer("places", torch.arange(8))

    def forward(self, x):
        for layer in self.layers:
            x, _ = layer(x, scale=0.5)
        return self.batch(self.head(x).mT).mT[..., self.places]


@pytest.fixture
def old():
    torch.manual_seed(0)
    return Old().eval()


def adapter(start="zeros", out=8):
    return graphir.load(
        f'model A(x: float[B, T, 8]) -> float[B, T, {out}] {{ return x -> rmsnorm -> linear(3) -> linear({out}, init = "{start}") as up }}'
    )


def test_zero_grafts_leave_a_module_to_the_bit(old):
    x = X.float()
    grown = graphir.graft_module(old, {"layers.*.mlp": adapter(), "layers.1": graphir.Graft(adapter(), alpha=0.5)})
    assert torch.equal(grown(x), old(x))
    assert len(list(grown.parameters())) == len(list(old.parameters())) + 4 * 5
    assert not hasattr(old, "grafts")
    assert not old.layers[0].mlp._forward_hooks, "the host is not changed"


def test_weights_of_a_module_keep_their_paths_and_ties(old):
    grown = graphir.graft_module(old, {"layers.0.mlp": adapter()})
    names = dict(grown.named_parameters())
    assert {n.removeprefix("host.") for n in names if n.startswith("host.")} == set(dict(old.named_parameters()))
    assert "grafts.layers.0.mlp.new.up.weight" in names
    assert grown.host.layers[2].mixer.weight is grown.host.layers[0].mixer.weight
    assert names["host.head.weight"] is old.head.weight, "the numbers are the host's own"


def test_a_frozen_host_does_not_train_and_the_original_still_does(old):
    x = X.float()
    grown = graphir.graft_module(old, {"layers.1.mlp": adapter("small")}, freeze=True).train()
    running = old.batch.running_mean.clone()
    groups = graphir.parameter_groups(grown, [{"match": "grafts.**"}], lr=0.1)
    assert len(groups) == 1, "nothing else trains"
    optimiser = torch.optim.SGD(groups, lr=0.1)
    before = {n: p.clone() for n, p in old.named_parameters()}
    grown(x).square().sum().backward()
    optimiser.step()
    assert all(torch.equal(p, before[n]) for n, p in old.named_parameters())
    assert torch.equal(old.batch.running_mean, running)
    assert all(p.requires_grad for p in old.parameters())
    assert grown.grafts.layers.get_submodule("1").mlp.new.up.weight.grad.any()
    with pytest.raises(GraphirError) as failed:
        graphir.parameter_groups(grown, [{"match": "host.**"}])
    assert failed.value.diagnostics[0].code == "E0705"


@pytest.mark.parametrize(
    ("how", "joined"),
    [
        ("add", lambda h, n: h + 0.5 * n),
        ("gate", lambda h, n: h * torch.sigmoid(n)),
        ("replace", lambda h, n: n),
    ],
)
def test_ways_to_inject_into_a_module(old, how, joined):
    new = nn.Linear(8, 8)
    grown = graphir.graft_module(old, {"layers.1.mlp": graphir.Graft(new, how, 0.5)})
    wanted = copy.deepcopy(old)
    inner = wanted.layers[1].mlp
    wanted.layers[1].mlp = nn.Module()
    wanted.layers[1].mlp.forward = lambda x: joined(inner(x), new(x))
    x = X.float()
    torch.testing.assert_close(grown(x), wanted(x))


def test_concat_widens_and_a_site_with_a_tuple_is_joined_at_its_first(old):
    layer = graphir.graft_module(nn.Sequential(nn.Linear(8, 8)), {"0": graphir.Graft(adapter(out=3), "concat")})
    assert layer(X.float()).shape == (3, 5, 11)
    grown = graphir.graft_module(old, {"layers.1": graphir.Graft(nn.Linear(8, 8), "gate")})
    assert grown(X.float()).shape == (3, 5, 8)


def test_taps_of_a_module(old):
    new = nn.Linear(8, 8)
    grown = graphir.graft_module(old, {"layers.2.mlp": graphir.Graft(new, tap="layers.0.mixer")})
    seen = []
    old.layers[0].mixer.register_forward_hook(lambda m, i, o: seen.append(o))
    x = X.float()
    old.layers[2].mlp.register_forward_hook(lambda m, i, o: o + new(seen[0]))
    torch.testing.assert_close(grown(x), old(x))
    assert not grown.tapped
    with pytest.raises(GraphirError) as failed:
        graphir.graft_module(old, {"layers.0.mlp": graphir.Graft(new, tap="layers.2.mixer")})(x)
    assert failed.value.diagnostics[0].code == "E0703"


def test_copies_of_a_grafted_module_have_grafts_of_their_own(old):
    grown = graphir.graft_module(old, {"layers.1.mlp": adapter("small")})
    other = copy.deepcopy(grown)
    with torch.no_grad():
        other.get_parameter("grafts.layers.1.mlp.new.up.weight").add_(1.0)
    x = X.float()
    assert not torch.equal(other(x), grown(x))
    assert torch.equal(copy.deepcopy(grown)(x), grown(x))


def test_graphir_modules_are_hosts_too():
    host = graphir.compile(HOST).eval()
    x = X.float()
    grown = graphir.graft_module(host, {"layers.*.mlp": adapter()})
    assert torch.equal(grown(x), host(x))
    moved = graphir.graft_module(host, {"layers.2.mlp": adapter("small")})
    assert not torch.equal(moved(x), host(x))


@pytest.mark.parametrize(
    ("grafts", "code"),
    [
        ({"layers.7.mlp": nn.Identity()}, "E0701"),
        ({"layers.1.mpl": nn.Identity()}, "E0701"),
        ({"head": graphir.Graft(nn.Identity(), "plus")}, "E0706"),
        ({"head": graphir.Graft(nn.Identity(), tap="heed")}, "E0703"),
        ({"head": graphir.load("model A(x: float[B], y: float[B]) -> float[B] { return x + y }")}, "E0706"),
    ],
)
def test_grafts_that_do_not_fit(old, grafts, code):
    with pytest.raises(GraphirError) as failed:
        graphir.graft_module(old, grafts)
    assert failed.value.diagnostics[0].code == code
    assert failed.value.diagnostics[0].help or code == "E0706"


def test_unequal_shapes_are_told_when_they_meet(old):
    grown = graphir.graft_module(old, {"layers.1.mlp": nn.Linear(8, 1)})
    with pytest.raises(GraphirError) as failed:
        grown(X.float())
    assert failed.value.diagnostics[0].code == "E0706"
    assert "layers.1.mlp" in failed.value.diagnostics[0].message


# modules as bricks


@pytest.fixture
def old_host(old):
    old.head.weight.requires_grad_(False)
    graphir.register_host("old_host", old, "(x: float[B, T, 8]) -> float[B, T, 8]")
    yield old
    forget_host("old_host")


def test_a_module_is_a_brick_with_its_weights_at_its_paths(old_host):
    graph = model("x -> old_host -> linear(8)")
    assert {n.removeprefix("old_host.") for n in graph.weights if n.startswith("old_host.")} == {
        *dict(old_host.named_parameters()),
        "batch.running_mean",
        "batch.running_var",
    }
    assert graph.weights["old_host.head.weight"].frozen
    assert graph.weights["old_host.batch.running_mean"].buffer
    alone = model("x -> old_host")
    w = initial(alone)
    torch.testing.assert_close(run(alone, w, X), copy.deepcopy(old_host).double()(X))
    assert torch.equal(graphir.compile(alone).eval()(X.float()), old_host(X.float()))


def test_templates_of_a_module_are_apart_and_shared_ones_are_one(old_host):
    assert len(model("x -> old_host -> old_host").weights) == 2 * len(model("x -> old_host").weights)
    shared = model("shared f = old_host\nreturn x -> f -> f")
    assert len(shared.weights) == len(model("x -> old_host").weights)
    torch.testing.assert_close(run(shared, initial(shared), X), (lambda m: m(m(X)))(copy.deepcopy(old_host).double()))


def test_a_module_trains_inside_a_program_and_stays_as_it_was_outside(old_host):
    net = graphir.compile(model("x -> frozen(linear(8)) -> old_host"))
    before = {n: t.clone() for n, t in old_host.state_dict().items()}
    optimiser = torch.optim.SGD(graphir.parameter_groups(net, []), lr=0.1)
    net.train()(X.float()).square().sum().backward()
    optimiser.step()
    start = dict(net.named_parameters())["old_host.layers.0.mlp.0.weight"]
    assert not torch.equal(start, before["layers.0.mlp.0.weight"])
    assert torch.equal(dict(net.named_parameters())["old_host.head.weight"], before["head.weight"])
    assert not torch.equal(net.state_dict()["old_host.batch.running_mean"], before["batch.running_mean"])
    assert all(torch.equal(t, before[n]) for n, t in old_host.state_dict().items())
    assert not old_host.training


def test_a_host_cannot_take_a_name_or_bad_ports(old):
    for name, ports, code in [
        ("linear", "(x: [*S]) -> [*S]", "E0308"),
        ("SwiGLU", "(x: [*S]) -> [*S]", "E0308"),
        ("a b", "(x: [*S]) -> [*S]", "E0308"),
    ]:
        with pytest.raises(GraphirError) as failed:
            graphir.register_host(name, old, ports)
        assert failed.value.diagnostics[0].code == code
    with pytest.raises(GraphirError):
        graphir.register_host("other_host", old, "(x: float[B, 8] -> float[B, 8]")
    graphir.register_host("other_host", old, "(x: float[B, T, 8]) -> float[B, T, 8]")
    graph = model("x -> other_host")
    forget_host("other_host")
    with pytest.raises(GraphirError):
        graphir.compile(graph)


def test_results_that_are_no_tensors_are_taken_apart(old):
    graphir.register_host("half_host", old.layers[0], "(x: float[*S, 8]) -> float[*S, 8]", output=lambda pair: pair[0])
    try:
        graph = model("x -> half_host")
        torch.testing.assert_close(run(graph, initial(graph), X), copy.deepcopy(old.layers[0]).double()(X)[0])
    finally:
        forget_host("half_host")


def test_what_a_registered_host_is_refused(old_host):
    graph = model("x -> old_host")
    with pytest.raises(GraphirError) as failed:
        Interpreter(graph, initial(graph), torch.float64).run_step({"x": X})
    assert failed.value.diagnostics[0].code == "E0810"
    from graphir.backends.python_source import emit

    with pytest.raises(GraphirError):
        emit(graph)


def test_a_grafted_module_can_be_registered(old):
    grown = graphir.graft_module(old, {"layers.1.mlp": adapter("small")})
    graphir.register_host("grown_host", grown, "(x: float[B, T, 8]) -> float[B, T, 8]")
    try:
        graph = model("x -> grown_host")
        assert "grown_host.grafts.layers.1.mlp.new.up.weight" in graph.weights
        torch.testing.assert_close(run(graph, initial(graph), X), copy.deepcopy(grown).double()(X))
    finally:
        forget_host("grown_host")
