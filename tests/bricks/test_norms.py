"""Norms against torch and against formulas written by hand; half precision; fused and shared forms; running statistics."""

import pytest
import torch
import torch.nn.functional as F
from brick_cases import case, use

X = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
W = torch.randn(8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
C = torch.randn(8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def rms(x, eps=1e-6):
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt()


def test_rmsnorm():
    torch.testing.assert_close(use("rmsnorm", X, weight=W), rms(X) * W)
    torch.testing.assert_close(use("rmsnorm(eps = 0.5, scale = false)", X), rms(X, 0.5))
    torch.testing.assert_close(use("rmsnorm(offset = 1.0)", X, weight=W), rms(X) * (1 + W))
    torch.testing.assert_close(use('rmsnorm(offset = 1.0, cast = "gemma")', X, weight=W), rms(X) * (1 + W))


def test_rmsnorm_in_half_precision_keeps_the_order_of_the_cast():
    x, w = (X * 100).bfloat16(), W.bfloat16()
    wide = rms(x.float())
    assert torch.equal(use("rmsnorm", x, weight=w), wide.bfloat16() * w)
    assert torch.equal(use('rmsnorm(cast = "gemma", offset = 1.0)', x, weight=w), (wide * (1.0 + w.float())).bfloat16())
    large = torch.full((1, 8), 300.0, dtype=torch.float16)
    assert use("rmsnorm(scale = false)", large).tolist() == [[1.0] * 8], "the square does not fit float16"


def test_offset_weights_start_at_zero():
    it = case("rmsnorm", "rmsnorm(offset = 1.0) : float[2, 4]")
    rules = it.declaration.weight_shapes(it.declaration.names(it.types, it.attrs, None), None)
    assert [r.init for r, _ in rules] == ["zeros"]
    plain = case("rmsnorm", "rmsnorm : float[2, 4]")
    assert [r.init for r, _ in plain.declaration.weight_shapes(plain.declaration.names(plain.types, plain.attrs, None), None)] == ["ones"]


def test_layernorm():
    torch.testing.assert_close(use("layernorm", X, weight=W, bias=C), F.layer_norm(X, (8,), W, C))
    torch.testing.assert_close(use("layernorm(bias = false)", X, weight=W), F.layer_norm(X, (8,), W))
    torch.testing.assert_close(use("layernorm(scale = false, bias = false, eps = 0.1)", X), F.layer_norm(X, (8,), eps=0.1))


def test_groupnorm_and_headnorm():
    image = torch.randn(2, 8, 3, 3, dtype=torch.float64)
    torch.testing.assert_close(use("groupnorm(4)", image, weight=W, bias=C), F.group_norm(image, 4, W, C))
    heads = X.reshape(3, 5, 2, 4)
    torch.testing.assert_close(use("headnorm(2)", X, weight=W), rms(heads).reshape(3, 5, 8) * W)
    torch.testing.assert_close(
        use('headnorm(2, kind = "layer", eps = 1e-5, bias = true)', X, weight=W, bias=C), F.layer_norm(heads, (4,)).reshape(3, 5, 8) * W + C
    )
    torch.testing.assert_close(use("group_rmsnorm(4)", X, weight=W), rms(X.reshape(3, 5, 4, 2), 1e-5).reshape(3, 5, 8) * W)


def test_batchnorm_has_running_statistics():
    image = torch.randn(6, 8, 3, 3, dtype=torch.float64) * 3 + 1
    mine = {"running_mean": torch.zeros(8, dtype=torch.float64), "running_var": torch.ones(8, dtype=torch.float64)}
    other = torch.nn.BatchNorm2d(8, momentum=0.2).double()
    it = case("batchnorm", "batchnorm(momentum = 0.2) : float[6, 8, 3, 3]")
    affine = {"weight": torch.ones(8, dtype=torch.float64), "bias": torch.zeros(8, dtype=torch.float64)}
    torch.testing.assert_close(it.run([image], {**mine, **affine}, training=True)[0], other(image))
    torch.testing.assert_close(mine["running_mean"], other.running_mean)
    torch.testing.assert_close(mine["running_var"], other.running_var)
    other.eval()
    torch.testing.assert_close(it.run([image], {**mine, **affine})[0], other(image))
    assert [r.role for r in it.declaration.weights if r.buffer] == ["running_mean", "running_var"]


def test_dyt_and_l2norm():
    a = torch.tensor(0.3, dtype=torch.float64)
    torch.testing.assert_close(use("dyt", X, alpha=a, weight=W, bias=C), torch.tanh(0.3 * X) * W + C)
    torch.testing.assert_close(use("l2norm", X).norm(dim=-1), torch.ones(3, 5, dtype=torch.float64))
    assert use("l2norm", torch.zeros(2, 3)).abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_fused_and_shared_forms_are_the_plain_ones(dtype):
    x, r, w, c = X.to(dtype), X.flip(0).to(dtype), W.to(dtype), C.to(dtype)
    for fused, plain, weights in [
        ('add_rmsnorm(offset = 1.0, cast = "gemma")', 'rmsnorm(offset = 1.0, cast = "gemma")', {"weight": w}),
        ("add_rmsnorm", "rmsnorm", {"weight": w}),
        ("add_layernorm", "layernorm", {"weight": w, "bias": c}),
    ]:
        total, normed = use(fused, x, r, **weights)
        assert torch.equal(total, x + r)
        assert torch.equal(normed, use(plain, x + r, **weights))
    near = {"rtol": 1e-12, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-2, "atol": 1e-2}
    statistic = use("rms_statistic(eps = 0.01)", x)
    torch.testing.assert_close(use("rmsnorm_with", x, statistic, weight=w), use("rmsnorm(eps = 0.01)", x, weight=w), **near)
    mean, inverse = use("moments(eps = 0.01)", x)
    torch.testing.assert_close(
        use("layernorm_with", x, mean, inverse, weight=w, bias=c), use("layernorm(eps = 0.01)", x, weight=w, bias=c), **near
    )
