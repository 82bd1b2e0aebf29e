"""Stitches fitted by least squares on a calibration batch, and adapters where lengths or ranks differ."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from models import initial, model, problem, random_weights, run, tokens

import graphir
from graphir.backends.stitch_fit import activations, load_without_stitches
from graphir.backends.weights import load, save
from graphir.cli.main import run as command
from graphir.lang.diagnostic import GraphirError

X = tokens(6, 7, 8)
FIRST = "model First(x: float[B, T, 8]) -> float[B, T, 6] { return x -> linear(6) as early -> tanh }"
SECOND = "model Second(x: float[B, T, 8]) -> float[B, T, 4] { return x -> linear(5) as early -> gelu as act -> linear(4) as late }"
JOINED = """
model Joined(x: float[B, T, 8]) -> float[B, T, 4] { return x -> linear(6) as early -> tanh -> stitch(5) as middle -> linear(4) as late }
"""


def rms(t):
    return float(t.square().mean().sqrt())


@pytest.mark.parametrize("form", ["", ', form = "mlp"', ', form = "low-rank", rank = 2'])
def test_the_fit_is_the_best_of_its_form_and_no_worse_than_the_start(form):
    graph = graphir.load(JOINED.replace("stitch(5)", f"stitch(5{form})"))
    weights = random_weights(graph)
    target = tokens(6, 7, 5, seed=1)
    fitted, (fit,) = graphir.fit_stitches(graph, weights, {"x": X}, {"middle": target})
    got = activations(graph, fitted, {"x": X}, ["middle"])["middle"]
    assert rms(got - target) == pytest.approx(fit.after)
    assert rms(activations(graph, weights, {"x": X}, ["middle"])["middle"] - target) == pytest.approx(fit.before)
    assert fit.after <= fit.before
    assert fit.after < rms(target - target.mean((0, 1))) + 1e-12, "no worse than the best constant"
    assert all(torch.equal(fitted[n], weights[n]) for n in weights if not n.startswith("middle.")), "nothing else moves"
    for seed in range(5):
        other = {
            n: t + 0.05 * torch.randn(t.shape, generator=torch.Generator().manual_seed(seed), dtype=t.dtype)
            if n in ("middle.weight", "middle.bias")
            else t
            for n, t in fitted.items()
        }
        assert rms(activations(graph, other, {"x": X}, ["middle"])["middle"] - target) > fit.after


def test_a_linear_fit_is_the_pseudo_inverse():
    graph = graphir.load(JOINED)
    weights = random_weights(graph)
    target = tokens(6, 7, 5, seed=1)
    fitted, _ = graphir.fit_stitches(graph, weights, {"x": X}, {"middle": target})
    source = torch.tanh(F.linear(X, weights["early.weight"], weights["early.bias"])).flatten(0, 1)
    solved = torch.linalg.pinv(torch.cat([source, torch.ones(len(source), 1, dtype=torch.float64)], 1)) @ target.flatten(0, 1)
    torch.testing.assert_close(fitted["middle.weight"], solved[:-1].T)
    torch.testing.assert_close(fitted["middle.bias"], solved[-1])


def test_a_low_rank_fit_of_full_rank_is_the_linear_one():
    target, linear = tokens(6, 7, 5, seed=1), graphir.load(JOINED)
    thin = graphir.load(JOINED.replace("stitch(5)", 'stitch(5, form = "low-rank", rank = 5)'))
    early = {n: w for n, w in random_weights(linear).items() if n.startswith("early.")}
    a, b = (
        activations(g, graphir.fit_stitches(g, {**random_weights(g), **early}, {"x": X}, {"middle": target})[0], {"x": X}, ["middle"])[
            "middle"
        ]
        for g in (linear, thin)
    )
    torch.testing.assert_close(a, b)


def test_fewer_rows_than_widths_are_met_exactly():
    graph = graphir.load(JOINED)
    few, target = tokens(1, 3, 8), tokens(1, 3, 5, seed=1)
    _, (fit,) = graphir.fit_stitches(graph, random_weights(graph), {"x": few}, {"middle": target})
    assert fit.after < 1e-10
    assert fit.rows == 3


def test_two_trained_halves_are_joined_better_than_at_random():
    first, second, joined = (graphir.load(t) for t in (FIRST, SECOND, JOINED))
    a, b = random_weights(first, 1), random_weights(second, 2)
    weights = {
        **initial(joined),
        **{"early.weight": a["early.weight"], "early.bias": a["early.bias"], "late.weight": b["late.weight"], "late.bias": b["late.bias"]},
    }
    target = activations(second, b, {"x": X}, ["act"])["act"]
    fitted, _ = graphir.fit_stitches(joined, weights, {"x": X}, {"middle": target})
    wanted = run(second, b, X)
    assert rms(run(joined, fitted, X) - wanted) < 0.5 * rms(run(joined, weights, X) - wanted)


def test_later_stitches_see_fitted_earlier_ones():
    graph = model("x -> stitch(6) as a -> tanh -> stitch(8) as b")
    weights, u, v = random_weights(graph), tokens(6, 7, 6, seed=1), tokens(6, 7, 8, seed=2)
    both, _ = graphir.fit_stitches(graph, weights, {"x": X}, {"b": v, "a": u})
    one, _ = graphir.fit_stitches(graph, weights, {"x": X}, {"a": u})
    two, _ = graphir.fit_stitches(graph, one, {"x": X}, {"b": v})
    assert all(torch.equal(both[n], two[n]) for n in weights)


def test_a_shared_stitch_is_fitted_to_all_its_calls():
    graph = model("shared s = stitch(8)\nreturn (x -> s as a) + (x -> tanh -> s as b)")
    u, v = tokens(6, 7, 8, seed=1), tokens(6, 7, 8, seed=2)
    fitted, fits = graphir.fit_stitches(graph, random_weights(graph), {"x": X}, {"a": u, "b": v})
    assert [f.rows for f in fits] == [2 * 6 * 7]
    rows = torch.cat([torch.cat([t.flatten(0, 1), torch.ones(42, 1, dtype=torch.float64)], 1) for t in (X, torch.tanh(X))])
    torch.testing.assert_close(fitted["s.weight"], (torch.linalg.pinv(rows) @ torch.cat([u.flatten(0, 1), v.flatten(0, 1)]))[:-1].T)


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        ({"middel": tokens(6, 7, 5)}, "middel"),
        ({"early": tokens(6, 7, 6)}, "no stitch"),
        ({"middle": tokens(6, 7, 4)}, "[6, 7, 4]"),
        ({"middle": tokens(6, 5, 7)}, "[6, 5, 7]"),
    ],
)
def test_targets_that_do_not_fit(targets, said):
    graph = graphir.load(JOINED)
    with pytest.raises(GraphirError) as failed:
        graphir.fit_stitches(graph, random_weights(graph), {"x": X}, targets)
    assert failed.value.diagnostics[0].code == "E0708"
    assert said in failed.value.diagnostics[0].message


# the command


@pytest.fixture
def files(tmp_path):
    for name, text in (("first", FIRST), ("second", SECOND), ("joined", JOINED)):
        (tmp_path / f"{name}.arch").write_text(text)
    second, joined = graphir.load(SECOND), graphir.load(JOINED)
    b = {n: t.float() for n, t in random_weights(second, 2).items()}
    halves = {n: t.float() for n, t in random_weights(joined, 3).items() if not n.startswith("middle.")}
    save(tmp_path / "second.safetensors", b)
    save(tmp_path / "host.safetensors", halves)
    save(tmp_path / "batch.safetensors", {"x": X.float()})
    save(tmp_path / "targets.safetensors", {"middle": activations(second, b, {"x": X.float()}, ["act"])["act"].float()})
    return tmp_path


def test_the_command_with_targets_and_with_a_reference(files, capsys):
    def fit(out, *options):
        return command(
            [
                "stitch-fit",
                str(files / "joined.arch"),
                "--weights",
                str(files / "host.safetensors"),
                "--input",
                str(files / "batch.safetensors"),
                "-o",
                str(files / out),
                *options,
            ]
        )

    assert fit("a.safetensors", "--targets", str(files / "targets.safetensors")) == 0
    assert "middle: residual" in capsys.readouterr().out
    assert (
        fit(
            "b.safetensors",
            "--reference",
            str(files / "second.arch"),
            "--reference-weights",
            str(files / "second.safetensors"),
            "--match",
            "middle=act",
        )
        == 0
    )
    graph = graphir.load(JOINED)
    a, b = (load(files / f"{n}.safetensors", graph) for n in "ab")
    for name in graph.weights:
        torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-5)
    start = load_without_stitches(files / "host.safetensors", graph)
    assert not torch.equal(a["middle.weight"], start["middle.weight"])
    assert torch.equal(a["early.weight"], start["early.weight"])
    assert graphir.compile(graph, weights=files / "a.safetensors")(X.float()).shape == (6, 7, 4)
    assert fit("c.safetensors") == 2
    assert fit("c.safetensors", "--reference", str(files / "second.arch")) == 2
    assert (
        fit(
            "c.safetensors",
            "--reference",
            str(files / "second.arch"),
            "--reference-weights",
            str(files / "second.safetensors"),
            "--match",
            "middle=akt",
        )
        == 1
    )
    assert not (files / "c.safetensors").exists()


def test_only_stitches_may_be_missing(files):
    save(files / "less.safetensors", {"early.weight": torch.zeros(6, 8), "late.weight": torch.zeros(4, 4), "other": torch.zeros(1)})
    with pytest.raises(GraphirError) as failed:
        load_without_stitches(files / "less.safetensors", graphir.load(JOINED))
    assert [d.code for d in failed.value.diagnostics] == ["E0801"] * 4


# stitches by the compiler, and adapters by name


@pytest.mark.parametrize(
    ("width", "out", "form", "parameters"),
    [
        (3, 4, "", 16),
        (5, 4, "", 24),
        (7, 10, "", 80),
        (6, 10, ', form = "mlp"', 6 * 8 + 8 + 8 * 10 + 10),
        (6, 10, ', form = "low-rank", rank = 2', 6 * 2 + 2 * 10 + 10),
    ],
)
def test_parameter_counts(width, out, form, parameters):
    assert model(f"x -> stitch({out}{form})", f"x: float[B, {width}]", f"float[B, {out}]").parameters == parameters


def test_equal_widths_need_no_stitch():
    assert graphir.api.optimise(model("x ~> linear(8)")).ops["stitch"] == 0


@pytest.mark.parametrize(
    ("init", "check"),
    [
        ("zeros", lambda y: not y.any()),
        ("identity", lambda y: torch.equal(y[..., :8], X) and not y[..., 8:].any()),
        ("orthogonal", lambda y: torch.allclose(y.norm(dim=-1), X.norm(dim=-1))),
    ],
)
def test_how_a_stitch_starts(init, check):
    graph = model(f'x -> stitch(12, init = "{init}")', result="float[B, T, 12]")
    assert check(run(graph, initial(graph), X))


IMAGE = "image: float[B, 3, 8, 12]"


@pytest.mark.parametrize(
    ("adapter", "ports", "result", "wanted"),
    [
        ("x -> pool", "x: float[B, T, 8]", "float[B, 8]", lambda x: x.mean(1)),
        ('x -> pool("max")', "x: float[B, T, 8]", "float[B, 8]", lambda x: x.amax(1)),
        (
            "x -> interpolate(5)",
            "x: float[B, T, 8]",
            "float[B, 5, 8]",
            lambda x: F.interpolate(x.mT, 5, mode="linear", align_corners=False).mT,
        ),
        ("x -> pool_windows(2)", "x: float[B, 6, 8]", "float[B, 3, 8]", lambda x: x.unflatten(1, (3, 2)).mean(2)),
        ("image -> to_nhwc", IMAGE, "float[B, 8, 12, 3]", lambda x: x.permute(0, 2, 3, 1)),
        ("image -> to_nhwc -> to_nchw", IMAGE, "float[B, 3, 8, 12]", lambda x: x),
        ("image -> patchify(4)", IMAGE, "float[B, 6, 48]", lambda x: F.unfold(x, 4, stride=4).mT),
        ("image -> flatten", IMAGE, "float[B, 288]", lambda x: x.flatten(1)),
    ],
)
def test_adapters_where_lengths_or_ranks_differ(adapter, ports, result, wanted):
    from graphir.backends.samples import sample_inputs

    graph = model(adapter, ports, result)
    (x,) = (t.double() for t in sample_inputs(graph, {}).values())
    torch.testing.assert_close(run(graph, initial(graph), x), wanted(x))


@pytest.mark.parametrize(
    ("body", "ports", "code"),
    [
        ("(x, y) -> add(width = 8)", "x: float[B, 6, 8], y: float[B, 5, 8]", "E0207"),
        ("x ~> linear(8) -> conv2d(8, 3)", "x: float[B, 6, 8]", "E0202"),
    ],
)
def test_other_differences_are_never_stitched(body, ports, code):
    assert problem(body, ports=ports).code == code
