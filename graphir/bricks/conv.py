"""Convolutions over time and images. Channels stand second for pictures and signals ([B, c, L]), last for tokens ([B, T, d])."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..ir.types import Type
from .declare import StateRule, brick
from .state import StateShapes
from .torch_lazy import F, Tensor, torch

DIVISIBLE = ("i % groups == 0", "out % groups == 0")


@brick(
    "conv1d(out, kernel, stride = 1, padding = 0, dilation = 1, groups = 1, bias = true)(x: [B, i, L])"
    " -> [B, out, (L + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1]",
    weights="weight: [out, i // groups, kernel] = he; bias: [out] = zeros if bias",
    flops="2 * B * out * ((L + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1) * (i // groups) * kernel",
    require=DIVISIBLE,
    causal=False,
    examples=("conv1d(6, kernel = 3, padding = 1) : float[2, 4, 8]", "conv1d(6, kernel = 2, stride = 2, groups = 2) : float[2, 4, 9]"),
)
def conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 1, padding: int = 0, dilation: int = 1, groups: int = 1
) -> Tensor:
    """y [B, out, L'] = weight * x + bias along the last axis, zeros outside."""
    return F.conv1d(x, weight, bias, stride, padding, dilation, groups)


@brick(
    "conv2d(out, kernel, stride = 1, padding = 0, dilation = 1, groups = 1, bias = true, kernel_width = kernel, padding_width = padding)"
    "(x: [B, i, H, W])"
    " -> [B, out, (H + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1,"
    " (W + 2 * padding_width - dilation * (kernel_width - 1) - 1) // stride + 1]",
    weights="weight: [out, i // groups, kernel, kernel_width] = he; bias: [out] = zeros if bias",
    flops="2 * B * out * ((H + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1)"
    " * ((W + 2 * padding_width - dilation * (kernel_width - 1) - 1) // stride + 1) * (i // groups) * kernel * kernel_width",
    require=DIVISIBLE,
    causal=False,
    examples=(
        "conv2d(6, kernel = 3, padding = 1) : float[2, 4, 8, 7]",
        "conv2d(6, kernel = 1, kernel_width = 5, stride = 2) : float[2, 4, 8, 9]",
    ),
)
def conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 1, padding: int = 0, dilation: int = 1, groups: int = 1,
    padding_width: int | None = None,
) -> Tensor:
    """y [B, out, H', W'] = weight * x + bias over the last two axes, zeros outside.

    `kernel_width`, `padding_width`: where they differ from those of the height.
    """
    return F.conv2d(x, weight, bias, stride, (padding, padding if padding_width is None else padding_width), dilation, groups)


@brick(
    "depthwise_conv2d(kernel, stride = 1, padding = 0, dilation = 1, bias = true)(x: [B, c, H, W])"
    " -> [B, c, (H + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1,"
    " (W + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1]",
    weights="weight: [c, 1, kernel, kernel] = he; bias: [c] = zeros if bias",
    flops="2 * B * c * ((H + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1)"
    " * ((W + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1) * kernel * kernel",
    causal=False,
    examples=("depthwise_conv2d(7, padding = 3) : float[2, 4, 8, 7]",),
)
def depthwise_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 1, padding: int = 0, dilation: int = 1
) -> Tensor:
    """y [B, c, H', W']: each channel convolved with its own kernel."""
    return F.conv2d(x, weight, bias, stride, padding, dilation, x.shape[1])


@brick(
    "conv_transpose1d(out, kernel, stride = 1, padding = 0, dilation = 1, groups = 1, bias = true, output_padding = 0)(x: [B, i, L])"
    " -> [B, out, (L - 1) * stride - 2 * padding + dilation * (kernel - 1) + output_padding + 1]",
    weights="weight: [i, out // groups, kernel] = he; bias: [out] = zeros if bias",
    flops="2 * B * i * L * (out // groups) * kernel",
    require=(*DIVISIBLE, "output_padding < max(stride, dilation)"),
    causal=False,
    examples=("conv_transpose1d(6, kernel = 2, stride = 2) : float[2, 4, 5]",),
)
def conv_transpose1d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 1, padding: int = 0, dilation: int = 1, groups: int = 1,
    output_padding: int = 0,
) -> Tensor:
    """y [B, out, L']: the transpose (adjoint) of `conv1d`, which undoes its change of length."""
    return F.conv_transpose1d(x, weight, bias, stride, padding, output_padding, groups, dilation)


@brick(
    "conv_transpose2d(out, kernel, stride = 1, padding = 0, dilation = 1, groups = 1, bias = true, output_padding = 0)(x: [B, i, H, W])"
    " -> [B, out, (H - 1) * stride - 2 * padding + dilation * (kernel - 1) + output_padding + 1,"
    " (W - 1) * stride - 2 * padding + dilation * (kernel - 1) + output_padding + 1]",
    weights="weight: [i, out // groups, kernel, kernel] = he; bias: [out] = zeros if bias",
    flops="2 * B * i * H * W * (out // groups) * kernel * kernel",
    require=(*DIVISIBLE, "output_padding < max(stride, dilation)"),
    causal=False,
    examples=("conv_transpose2d(6, kernel = 2, stride = 2) : float[2, 4, 5, 3]",),
)
def conv_transpose2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 1, padding: int = 0, dilation: int = 1, groups: int = 1,
    output_padding: int = 0,
) -> Tensor:
    """y [B, out, H', W']: the transpose (adjoint) of `conv2d`, which undoes its change of size."""
    return F.conv_transpose2d(x, weight, bias, stride, padding, output_padding, groups, dilation)


def _tail(types: Sequence[Type], names: Mapping[str, Any]) -> StateShapes:
    batch, _, width = types[0].shape
    return {"tail": ((batch, names.get("dilation", 1) * (names["kernel"] - 1), width), "float")}


def _slide(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int, groups: int) -> Tensor:
    return F.conv1d(x.transpose(1, 2), weight, bias, 1, 0, dilation, groups).transpose(1, 2)


def _past(x: Tensor, reach: int) -> Tensor:
    return x.new_zeros(x.shape[0], reach, x.shape[2])


def _remember(tail: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens to slide over, and the tail to keep for the next call."""
    whole = torch.cat([tail.to(x.dtype), x], 1)
    return whole, whole[:, whole.shape[1] - tail.shape[1] :]


def _causal_step(
    state: Mapping[str, Any], x: Tensor, weight: Tensor, bias: Tensor | None = None, dilation: int = 1, groups: int = 1
) -> tuple[Tensor, dict[str, Any]]:
    whole, tail = _remember(state["tail"], x)
    return _slide(whole, weight, bias, dilation, groups), {"tail": tail}


@brick(
    "causal_conv1d(out, kernel, dilation = 1, groups = 1, bias = true)(x: [B, T, i]) -> [B, T, out]",
    weights="weight: [out, i // groups, kernel] = he; bias: [out] = zeros if bias",
    flops="2 * B * T * out * (i // groups) * kernel",
    require=(*DIVISIBLE, "kernel >= 1"),
    state=StateRule(_tail, _causal_step),
    examples=("causal_conv1d(6, kernel = 3) : float[2, 5, 4]", "causal_conv1d(6, kernel = 3, dilation = 2, groups = 2) : float[2, 5, 4]"),
)
def causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, dilation: int = 1, groups: int = 1
) -> Tensor:
    """y_t [B, T, out] = bias + sum_j weight[..., kernel - 1 - j] x_{t - j dilation}, over tokens.

    The weight is as in torch's conv1d. State: the last dilation (kernel - 1) tokens of x.
    """
    return _causal_step({"tail": _past(x, dilation * (weight.shape[-1] - 1))}, x, weight, bias, dilation, groups)[0]


def _depthwise_step(
    state: Mapping[str, Any], x: Tensor, weight: Tensor, bias: Tensor | None = None, dilation: int = 1
) -> tuple[Tensor, dict[str, Any]]:
    return _causal_step(state, x, weight, bias, dilation, x.shape[2])


@brick(
    "depthwise_conv1d(kernel, dilation = 1, bias = true)(x: [B, T, d]) -> [B, T, d]",
    weights="weight: [d, 1, kernel] = he; bias: [d] = zeros if bias",
    flops="2 * B * T * d * kernel",
    require=("kernel >= 1",),
    state=StateRule(_tail, _depthwise_step),
    examples=("depthwise_conv1d(4) : float[2, 5, 6]", "depthwise_conv1d(3, bias = false) : float[2, 5, 6]"),
    source="the short convolution of Mamba, xLSTM, LFM2",
)
def depthwise_conv1d(x: Tensor, weight: Tensor, bias: Tensor | None = None, dilation: int = 1) -> Tensor:
    """y_t [B, T, d]: `causal_conv1d` of each channel by itself. State: the last dilation (kernel - 1) tokens of x."""
    return _depthwise_step({"tail": _past(x, dilation * (weight.shape[-1] - 1))}, x, weight, bias, dilation)[0]


def _inputs(types: Sequence[Type], names: Mapping[str, Any]) -> StateShapes:
    batch, _, width = types[0].shape
    return {"past": ((batch, 0, width), "float")}


def _fft_step(state: Mapping[str, Any], x: Tensor, filter: Tensor) -> tuple[Tensor, dict[str, Any]]:
    whole = torch.cat([state["past"].to(x.dtype), x], 1)
    return _long(whole, filter)[:, whole.shape[1] - x.shape[1] :], {"past": whole}


def _crop_inputs(state: Mapping[str, Any], length: int, attrs: Mapping[str, Any]) -> dict[str, Any]:
    return {"past": state["past"][:, :length]}


@brick(
    "fft_conv(x: [B, T, d], filter: [S, d]) -> [B, T, d]",
    state=StateRule(_inputs, _fft_step, crop=_crop_inputs),
    examples=("fft_conv : float[2, 5, 4], float[5, 4]",),
    source="Poli et al. 2023 (Hyena), arXiv 2302.10866",
)
def fft_conv(x: Tensor, filter: Tensor) -> Tensor:
    """y_t [B, T, d] = sum_{j <= t} filter_j x_{t-j}, causal, in T log T by FFT; a filter shorter than x ends there, a longer one is cut.

    State: all inputs so far, so when decoding `filter` must be given for all positions so far, not for the new tokens alone.
    """
    return _long(x, filter)


def _long(x: Tensor, filter: Tensor) -> Tensor:
    if x.numel() == 0:
        return x
    length = x.shape[1]
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    spectrum = torch.fft.rfft(x.to(dtype), n=2 * length, dim=1) * torch.fft.rfft(filter[:length].to(dtype), n=2 * length, dim=0)
    return torch.fft.irfft(spectrum, n=2 * length, dim=1)[:, :length].to(x.dtype)
