"""Convolutions: the shapes, costs and weights that declarations promise are those that torch gives."""

from __future__ import annotations

import itertools

import pytest
import torch
from mixing import Case
from torch.utils.flop_counter import FlopCounterMode

from graphir.bricks.declare import REGISTRY, Misfit
from graphir.ir.dims import Facts, symbol
from graphir.ir.graph import Attrs
from graphir.ir.types import Type

CONFIGS = list(itertools.product((1, 2, 3), (1, 2), (0, 1), (1, 2)))
NAMES = [("conv1d", "9"), ("conv2d", "9, 8"), ("depthwise_conv2d", "9, 8"), ("conv_transpose1d", "5"), ("conv_transpose2d", "5, 4")]


@pytest.mark.parametrize(("kernel", "stride", "padding", "dilation"), CONFIGS)
@pytest.mark.parametrize(("name", "sizes"), NAMES)
def test_shapes_and_costs_are_torch_s(name, sizes, kernel, stride, padding, dilation):
    out = "" if name.startswith("depthwise") else "6, "
    extra = "" if name.startswith("depthwise") else ", groups = 2"
    config = f"kernel = {kernel}, stride = {stride}, padding = {padding}, dilation = {dilation}"
    case = Case(f"{name}({out}{config}{extra}) : float[2, 4, {sizes}]")
    (type,) = case.declaration.infer(case.types, case.attrs, Facts())
    with FlopCounterMode(display=False) as counter:
        y = case.whole()
    assert tuple(y.shape) == type.shape
    assert counter.get_total_flops() == case.declaration.flops(case.types, case.attrs, Facts())


def test_kernels_need_not_be_square():
    case = Case("conv2d(6, kernel = 1, kernel_width = 5, padding_width = 2) : float[2, 4, 8, 9]")
    assert case.weights["weight"].shape == (6, 4, 1, 5)
    assert case.whole().shape == (2, 6, 8, 9)
    plain = Case("conv2d(6, kernel = 3, padding = 1) : float[2, 4, 8, 9]")
    assert plain.whole().shape == (2, 6, 8, 9)


def test_lengths_stay_symbolic():
    length = symbol("L")
    infer = lambda name, **attrs: str(REGISTRY[name].infer((Type("float", (2, 4, length)),), Attrs(attrs), Facts())[0])  # noqa: E731
    assert infer("conv1d", out=6, kernel=3, padding=1) == "float[2, 6, L]"
    assert infer("conv1d", out=6, kernel=3, padding=1, stride=2) == "float[2, 6, (L + 1)//2]"
    assert infer("conv_transpose1d", out=6, kernel=2, stride=2) == "float[2, 6, 2*L]"


def test_groups_must_divide():
    with pytest.raises(Misfit, match="i % groups == 0"):
        REGISTRY["conv1d"].infer((Type("float", (2, 4, 9)),), Attrs(out=6, kernel=3, groups=3), Facts())


def test_bricks_over_space_are_not_causal_and_those_over_tokens_are():
    for name in ("conv1d", "conv2d", "depthwise_conv2d", "conv_transpose1d", "conv_transpose2d"):
        assert not REGISTRY[name].is_causal(Attrs())
    for name in ("causal_conv1d", "depthwise_conv1d", "fft_conv"):
        assert REGISTRY[name].is_causal(Attrs())
    x = torch.randn(1, 5, 4)
    y = Case("depthwise_conv1d(3) : float[1, 5, 4]", dtype=torch.float32)
    later = x.clone()
    later[:, 3:] += 1
    assert torch.equal(y.whole([x])[:, :3], y.whole([later])[:, :3])
