"""Where norms stand in a layer, with the published constants; feed-forward forms and hidden sizes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from models import initial, model, random_weights, run, tokens

from graphir.backends.interpreter import Interpreter

X = tokens()


def linear(w, name, x):
    return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))


def rms(w, name, x, eps=1e-6):
    return F.rms_norm(x, x.shape[-1:], w[f"{name}.weight"], eps)


def layer_norm(w, name, x):
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])


def check(body, wanted, result="float[B, T, 8]"):
    graph = model(body, result=result)
    w = random_weights(graph)
    torch.testing.assert_close(run(graph, w, X), wanted(w, X), rtol=1e-10, atol=1e-10)
    return graph


def number(expression: str) -> float:
    """What a config expression of the language is, read off a `scale` node."""
    graph = model(f"({expression}) * x")
    return next(n for n in graph.nodes if n.op == "scale").attrs["factor"]


# patterns


def test_pre_norm():
    def wanted(w, x):
        h = x + linear(w, "Layer.mixer", rms(w, "Layer.mixer_norm", x))
        return h + linear(w, "Layer.mlp", rms(w, "Layer.mlp_norm", h))

    check("mixer = linear(8)\nmlp = linear(8)\nreturn x -> Layer(mixer, mlp)", wanted)


def test_post_norm():
    def wanted(w, x):
        h = layer_norm(w, "PostNormLayer.mixer_norm", x + linear(w, "PostNormLayer.mixer", x))
        return layer_norm(w, "PostNormLayer.mlp_norm", h + linear(w, "PostNormLayer.mlp", h))

    check("x -> PostNormLayer(linear(8), linear(8))", wanted)


def test_sandwich():
    def wanted(w, x):
        at = "SandwichLayer."
        h = x + rms(w, at + "mixer_out_norm", linear(w, at + "mixer", rms(w, at + "mixer_norm", x)))
        return h + rms(w, at + "mlp_out_norm", linear(w, at + "mlp", rms(w, at + "mlp_norm", h)))

    check("x -> SandwichLayer(linear(8), linear(8))", wanted)


def test_post_norm_inside_the_residual():
    def wanted(w, x):
        at = "ReorderedLayer."
        h = x + rms(w, at + "mixer_norm", linear(w, at + "mixer", x))
        return h + rms(w, at + "mlp_norm", linear(w, at + "mlp", h))

    check("x -> ReorderedLayer(linear(8), linear(8))", wanted)


# DeepNorm


@pytest.mark.parametrize(
    ("n", "alpha", "beta"), [(12, 2.2134, 0.3195), (24, 2.6321, 0.2686), (100, 3.7606, 0.1880), (1000, 6.6874, 0.1057)]
)
def test_deepnorm_constants(n, alpha, beta):
    assert number(f"deepnorm_alpha({n})") == pytest.approx(alpha, abs=5e-5)
    assert number(f"deepnorm_beta({n})") == pytest.approx(beta, abs=5e-5)


def test_deepnorm_constants_of_a_pair():
    assert number("deepnorm_encoder_alpha(6, 6)") == pytest.approx(0.81 * (6**5) ** (1 / 16))
    assert number("deepnorm_encoder_beta(6, 6)") == pytest.approx(0.87 * (6**5) ** (-1 / 16))
    assert number("deepnorm_decoder_alpha(6)") == pytest.approx(18**0.25)
    assert number("deepnorm_decoder_beta(6)") == pytest.approx(72**-0.25)


def test_deepnorm_scales_the_residual():
    def wanted(w, x):
        at, a = "DeepNormLayer.", 24**0.25
        h = layer_norm(w, at + "mixer_norm", a * x + linear(w, at + "mixer", x))
        return layer_norm(w, at + "mlp_norm", a * h + linear(w, at + "mlp", h))

    check("x -> DeepNormLayer(linear(8), linear(8), 12)", wanted)
    check(
        "x -> DeepNormLayer(linear(8), linear(8), 12, alpha = 1.0)",
        lambda w, x: (lambda h: layer_norm(w, "DeepNormLayer.mlp_norm", h + linear(w, "DeepNormLayer.mlp", h)))(
            layer_norm(w, "DeepNormLayer.mixer_norm", x + linear(w, "DeepNormLayer.mixer", x))
        ),
    )


def test_deepnorm_starts_values_outputs_and_feed_forwards_smaller():
    deep = model("x -> DeepNormLayer(Attention(2), MLP, 12) as layer")
    plain = model("x -> PostNormLayer(Attention(2), MLP) as layer")
    a, b = initial(deep), initial(plain)
    factor = {"mixer.v": 96**-0.25, "mixer.o": 96**-0.25, "mlp.up": 96**-0.25, "mlp.down": 96**-0.25, "mixer.q": 1.0, "mixer.k": 1.0}
    for part, wanted in factor.items():
        torch.testing.assert_close(a[f"layer.{part}.weight"], b[f"layer.{part}.weight"] * wanted, rtol=1e-6, atol=1e-8)
    assert torch.equal(a["layer.mixer_norm.weight"], torch.ones(8, dtype=torch.float64)), "norms start as ever"


# HybridNorm, three things of that name


def qkv(w, at, x, heads=2):
    """Attention that normalises queries, keys and values per head, then turns queries and keys."""
    q, k, v = (linear(w, f"{at}.{n}", x).unflatten(-1, (heads, -1)).transpose(1, 2) for n in "qkv")
    q, k, v = (rms(w, f"{at}.{n}_norm", t) for n, t in zip("qkv", (q, k, v)))
    length, half = x.shape[1], q.shape[-1] // 2
    angle = torch.outer(torch.arange(length, dtype=torch.float64), 10000.0 ** (-torch.arange(half, dtype=torch.float64) / half))
    cos, sin = (f(torch.cat([angle, angle], -1)) for f in (torch.cos, torch.sin))

    def turn(t):
        return t * cos + torch.cat([-t[..., half:], t[..., :half]], -1) * sin

    out = F.scaled_dot_product_attention(turn(q), turn(k), v, is_causal=True)
    return linear(w, f"{at}.o", out.transpose(1, 2).flatten(-2))


def swiglu(w, at, x):
    return linear(w, f"{at}.down", F.silu(linear(w, f"{at}.gate", x)) * linear(w, f"{at}.up", x))


def paper(w, at, x):
    n = rms(w, f"{at}.mlp_norm", x + qkv(w, f"{at}.mixer.Attention", x))
    return n + swiglu(w, f"{at}.mlp", n)


def test_hybrid_norm_of_the_paper():
    check("x -> HybridNormPaper(QKVNormAttention(2), SwiGLU) as layer", lambda w, x: paper(w, "layer", x))


def test_hybrid_norm_star_has_a_pre_norm_first_layer():
    def wanted(w, x):
        at = "stack.layers.0"
        h = x + qkv(w, f"{at}.mixer.Attention", rms(w, f"{at}.mixer_norm", x))
        h = h + swiglu(w, f"{at}.mlp", rms(w, f"{at}.mlp_norm", h))
        return paper(w, "stack.layers.2", paper(w, "stack.layers.1", h))

    check("x -> HybridNormPaperStar(QKVNormAttention(2), SwiGLU, 3) as stack", wanted)


def test_hybrid_norm_of_the_document_is_another():
    def wanted(w, x):
        y = x + linear(w, "layer.mixer", layer_norm(w, "layer.mixer_norm", x))
        return layer_norm(w, "layer.mlp_norm", y + linear(w, "layer.mlp", y))

    check("x -> HybridNormDocument(linear(8), linear(8)) as layer", wanted)


# dynamic tanh


@pytest.mark.parametrize(("width", "mixer", "mlp"), [(4096, 0.8, 0.2), (5120, 0.6, 0.15), (8192, 0.2, 0.05)])
def test_dynamic_tanh_has_the_published_alphas(width, mixer, mlp):
    graph = model(f"x -> linear({width}) -> DynamicTanhLayer(linear({width}), linear({width})) as layer", result=f"float[B, T, {width}]")
    assert graph.weights["layer.mixer_norm.alpha"].init == f"constant({mixer!r})"
    assert graph.weights["layer.mlp_norm.alpha"].init == f"constant({mlp!r})"


def test_dynamic_tanh():
    def wanted(w, x):
        def dyt(name, t):
            return torch.tanh(w[f"layer.{name}.alpha"] * t) * w[f"layer.{name}.weight"] + w[f"layer.{name}.bias"]

        h = x + linear(w, "layer.mixer", dyt("mixer_norm", x))
        return h + linear(w, "layer.mlp", dyt("mlp_norm", h))

    graph = check("x -> DynamicTanhLayer(linear(8), linear(8)) as layer", wanted)
    assert initial(model("x -> dyt"))["dyt.alpha"].item() == 0.5
    assert graph.weights["layer.mixer_norm.alpha"].shape == ()


# norms of heads, and order of the cast


def test_norms_of_heads():
    def per_head(x, kind):
        parts = x.unflatten(-1, (2, 4))
        return (F.rms_norm(parts, (4,), None, 1e-6) if kind == "rms" else F.layer_norm(parts, (4,), None, None, 1e-6)).flatten(-2)

    check("x -> headnorm(2)", lambda w, x: per_head(x, "rms") * w["headnorm.weight"])
    check('x -> headnorm(2, kind = "layer")', lambda w, x: per_head(x, "layer") * w["headnorm.weight"])


def test_qk_norm_is_per_head_and_before_positions():
    graph = model("x -> Attention(2, qk_norm = true)")
    order = [n.where.path for n in graph.nodes]
    assert order.index("Attention.q_norm") < order.index("Attention.q_rope")
    assert graph.weights["Attention.q_norm.weight"].shape == (4,)
    assert "Attention.v_norm.weight" not in graph.weights


def test_rms_norm_with_an_offset_starts_as_the_identity_of_its_scale():
    graph = model('x -> rmsnorm(offset = 1.0, cast = "gemma")')
    w = random_weights(graph)
    torch.testing.assert_close(run(graph, w, X), F.rms_norm(X, (8,), None, 1e-6) * (1 + w["rmsnorm.weight"]))
    assert not initial(graph)["rmsnorm.weight"].any()


# feed-forwards


@pytest.mark.parametrize(
    ("name", "act"),
    [
        ("SwiGLU", F.silu),
        ("GeGLU", F.gelu),
        ("ReGLU", F.relu),
        ("GLU", torch.sigmoid),
        ("Bilinear", lambda t: t),
        ('GeGLU(approximate = "tanh")', lambda t: F.gelu(t, approximate="tanh")),
    ],
)
def test_gated_feed_forwards(name, act):
    at = name.split("(")[0]
    graph = check(f"x -> {name}", lambda w, x: linear(w, f"{at}.down", act(linear(w, f"{at}.gate", x)) * linear(w, f"{at}.up", x)))
    assert not any(n.endswith("bias") for n in graph.weights)
    assert graph.weights[f"{at}.up.weight"].shape == (32, 8)


@pytest.mark.parametrize(
    ("name", "act"),
    [
        ("gelu", F.gelu),
        ('gelu("tanh")', lambda t: F.gelu(t, approximate="tanh")),
        ("relu2", lambda t: F.relu(t) ** 2),
        ("scaled_relu", lambda t: F.relu(1.1 * t)),
        ("leaky_relu", lambda t: F.leaky_relu(t, 0.1)),
        ("softplus", F.softplus),
    ],
)
def test_activations(name, act):
    check(f"x -> {name}", lambda w, x: act(x))


@pytest.mark.parametrize(
    ("rule", "width"),
    [
        ("llama_hidden(4096)", 11008),
        ("llama_hidden(5120)", 13824),
        ("llama_hidden(512)", 1536),
        ("mad_hidden(128)", 352),
        ("mad_hidden(64)", 176),
        ("lfm2_hidden(12288)", 8192),
        ("round_up(1, 64)", 64),
        ("round_up(64, 64)", 64),
    ],
)
def test_hidden_sizes(rule, width):
    assert model(f"x -> linear({rule})", result=f"float[B, T, {width}]").weights["linear.weight"].shape == (width, 8)


BLOCKS = [
    "Layer(linear(8), linear(8))",
    "PostNormLayer(linear(8), linear(8))",
    "SandwichLayer(linear(8), linear(8))",
    "ReorderedLayer(linear(8), linear(8))",
    "DeepNormLayer(linear(8), linear(8), 12)",
    "HybridNormPaper(QKVNormAttention(2), linear(8))",
    "HybridNormDocument(linear(8), linear(8))",
    "DynamicTanhLayer(linear(8), linear(8))",
    "ParallelLayer(linear(8), linear(8), two_norms = true)",
]


@pytest.mark.parametrize("block", BLOCKS)
def test_gradients(block):
    graph = model(f"x -> {block}")
    w = random_weights(graph)
    names = list(w)

    def f(x, *values):
        return Interpreter(graph, dict(zip(names, values)), torch.float64).run({"x": x})["output"]

    assert torch.autograd.gradcheck(f, [tokens(1, 3, 8).requires_grad_(), *(t.requires_grad_() for t in w.values())], fast_mode=True)
