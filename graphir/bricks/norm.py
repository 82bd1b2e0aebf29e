"""Norms. Statistics are taken in float32 where the input is in half precision; the output has the input's dtype.

The fused and the shared forms (`add_rmsnorm`, `rms_statistic` with `rmsnorm_with`, ...) are what norm fusion rewrites to.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..ir.dims import Facts
from ..ir.types import Type
from .declare import brick
from .shapes import axis_at
from .torch_lazy import F, torch

RMS = 'eps = 1e-6, scale = true, offset = 0.0, cast = "llama"'
RMS_WEIGHT = "weight: [d] = ones if scale and offset == 0.0; weight: [d] = zeros if scale and offset != 0.0"
CASTS = 'cast in ["llama", "gemma"]'
AFFINE = "weight: [d] = ones if scale; bias: [d] = zeros if bias"


def working(x: torch.Tensor) -> torch.Tensor:
    """The tensor in a precision fit for statistics."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _scaled(x: torch.Tensor, dtype: torch.dtype, weight: torch.Tensor | None, offset: float, cast: str) -> torch.Tensor:
    """The normalised x times (offset + weight): after the cast down as in Llama, or before it as in Gemma."""
    if weight is None:
        return x.to(dtype)
    if cast == "gemma":
        return (x * (working(weight) + offset if offset else working(weight))).to(dtype)
    return x.to(dtype) * (weight + offset if offset else weight)


@brick(
    f"rmsnorm({RMS})(x: [*S, d]) -> [*S, d]",
    weights=RMS_WEIGHT,
    require=(CASTS,),
    per_token=True,
    examples=("rmsnorm : float[B, T, 4]", 'rmsnorm(offset = 1.0, cast = "gemma") : float[B, 4]', "rmsnorm(scale = false) : float[B, 4]"),
    source="Zhang & Sennrich 2019; offset = 1.0: Gemma",
)
def rmsnorm(
    x: torch.Tensor, weight: torch.Tensor | None = None, eps: float = 1e-6, offset: float = 0.0, cast: str = "llama"
) -> torch.Tensor:
    """y = (offset + w) * x / sqrt(mean(x^2) + eps), [*S, d] over the last axis.

    In half precision the statistics are float32; `cast`: multiply after (llama) or before (gemma) the cast down.
    """
    half = x.dtype in (torch.float16, torch.bfloat16)
    if not half and (weight is None or weight.dtype == x.dtype):
        return F.rms_norm(x, x.shape[-1:], weight if weight is None or not offset else weight + offset, eps)
    if cast == "gemma" and half:
        return _scaled(F.rms_norm(x.float(), x.shape[-1:], None, eps), x.dtype, weight, offset, cast)
    return _scaled(F.rms_norm(x, x.shape[-1:], None, eps), x.dtype, weight, offset, "llama")


@brick(
    "layernorm(eps = 1e-5, scale = true, bias = true)(x: [*S, d]) -> [*S, d]",
    weights=AFFINE,
    inline=True,
    per_token=True,
    examples=(
        "layernorm : float[B, T, 4]",
        "layernorm(bias = false) : float[B, 4]",
        "layernorm(scale = false, bias = false) : float[B, 4]",
    ),
    source="Ba et al. 2016",
)
def layernorm(x: torch.Tensor, weight: torch.Tensor | None = None, bias: torch.Tensor | None = None, eps: float = 1e-5) -> torch.Tensor:
    """y = w * (x - mean) / sqrt(var + eps) + b, [*S, d] over the last axis; var is the mean square deviation."""
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


@brick(
    "groupnorm(groups, eps = 1e-5, scale = true, bias = true)(x: [B, c, *S]) -> [B, c, *S]",
    weights="weight: [c] = ones if scale; bias: [c] = zeros if bias",
    require=("groups >= 1", "c % groups == 0"),
    inline=True,
    causal=False,
    examples=("groupnorm(2) : float[B, 4, 3, 3]", "groupnorm(2, bias = false) : float[B, 4, 5]"),
    source="Wu & He 2018",
)
def groupnorm(
    x: torch.Tensor, groups: int, weight: torch.Tensor | None = None, bias: torch.Tensor | None = None, eps: float = 1e-5
) -> torch.Tensor:
    """x: [B, c, *S] -> the same; layer norm over each of `groups` groups of channels and all of *S, then scale and offset per channel."""
    return F.group_norm(x, groups, weight, bias, eps)


@brick(
    "batchnorm(momentum = 0.1, eps = 1e-5, scale = true, bias = true)(x: [B, c, *S]) -> [B, c, *S]",
    weights="weight: [c] = ones if scale; bias: [c] = zeros if bias; buffer running_mean: [c] = zeros; buffer running_var: [c] = ones",
    inline=True,
    causal=False,
    examples=("batchnorm : float[B, 4, 3, 3]", "batchnorm(scale = false, bias = false) : float[B, 4]"),
    source="Ioffe & Szegedy 2015",
)
def batchnorm(
    x: torch.Tensor,
    running_mean: torch.Tensor,
    running_var: torch.Tensor,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    momentum: float = 0.1,
    eps: float = 1e-5,
    training: bool = False,
) -> torch.Tensor:
    """x: [B, c, *S] -> the same; y = w * (x - mean_c) / sqrt(var_c + eps) + b: of the batch in training, of the running buffers else."""
    return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)


def _per_head(x: torch.Tensor, heads: int, kind: str, eps: float) -> torch.Tensor:
    parts = x.unflatten(-1, (heads, -1))
    if kind == "layer":
        return F.layer_norm(parts, parts.shape[-1:], None, None, eps).flatten(-2)
    return F.rms_norm(parts, parts.shape[-1:], None, eps).flatten(-2)


@brick(
    'headnorm(heads, kind = "rms", eps = 1e-6, scale = true, bias = false)(x: [*S, d]) -> [*S, d]',
    weights=AFFINE,
    require=("heads >= 1", "d % heads == 0", 'kind in ["rms", "layer"]'),
    inline=True,
    per_token=True,
    examples=("headnorm(2) : float[B, T, 6]", 'headnorm(2, kind = "layer", bias = true) : float[B, 6]'),
    source="xLSTM (MultiHeadLayerNorm)",
)
def headnorm(
    x: torch.Tensor, heads: int, weight: torch.Tensor | None = None, bias: torch.Tensor | None = None, kind: str = "rms", eps: float = 1e-6
) -> torch.Tensor:
    """y = w * norm(x of each head) + b, [*S, d]; RMS or layer norm over each head's slice, a weight for each of the d channels."""
    y = _per_head(x, heads, kind, eps)
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


@brick(
    "group_rmsnorm(groups, eps = 1e-5, scale = true)(x: [*S, d]) -> [*S, d]",
    weights="weight: [d] = ones if scale",
    require=("groups >= 1", "d % groups == 0"),
    inline=True,
    per_token=True,
    examples=("group_rmsnorm(2) : float[B, T, 6]",),
    source="Mamba-2",
)
def group_rmsnorm(x: torch.Tensor, groups: int, weight: torch.Tensor | None = None, eps: float = 1e-5) -> torch.Tensor:
    """y = w * x / sqrt(mean over the group of x^2 + eps), [*S, d]; `groups` slices of the last axis."""
    y = _per_head(x, groups, "rms", eps)
    return y if weight is None else y * weight


@brick(
    "dyt(alpha = 0.5)(x: [*S, d]) -> [*S, d]",
    weights="alpha: [] = $alpha; weight: [d] = ones; bias: [d] = zeros",
    inline=True,
    per_token=True,
    examples=("dyt : float[B, T, 4]",),
    source="Zhu et al. 2025 (Transformers without normalization)",
)
def dyt(x: torch.Tensor, alpha: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """y = w * tanh(a x) + b, [*S, d]; a is one learned number that starts at `alpha`."""
    return torch.tanh(alpha * x) * weight + bias


def _unit_shape(types: tuple[Type, ...], names: Mapping[str, Any], facts: Facts) -> tuple[Type, ...]:
    axis_at(names["axis"], len(types[0].shape), types[0].shape)
    return types


@brick(
    "l2norm(axis = -1, eps = 1e-12)(x: [*S]) -> [*S]",
    shape=_unit_shape,
    inline=True,
    causal=lambda attrs: attrs.get("axis", -1) != 1,
    examples=("l2norm : float[B, T, 4]", "l2norm(axis = 1) : float[B, 3, 4]"),
)
def l2norm(x: torch.Tensor, axis: int = -1, eps: float = 1e-12) -> torch.Tensor:
    """y = x / max(|x|, eps), [*S]; |x| the Euclidean length along one axis."""
    return F.normalize(x, 2.0, axis, eps)


# residual-add and norm in one


@brick(
    f"add_rmsnorm({RMS})(x: [*S, d], r: [*S, d]) -> (sum: [*S, d], normed: [*S, d])",
    weights=RMS_WEIGHT,
    require=(CASTS,),
    per_token=True,
    examples=("add_rmsnorm : float[B, T, 4], float[B, T, 4]",),
)
def add_rmsnorm(
    x: torch.Tensor, r: torch.Tensor, weight: torch.Tensor | None = None, eps: float = 1e-6, offset: float = 0.0, cast: str = "llama"
) -> tuple[torch.Tensor, torch.Tensor]:
    """s = x + r, y = rmsnorm(s); two [*S, d]."""
    total = x + r
    return total, rmsnorm(total, weight, eps, offset, cast)


@brick(
    "add_layernorm(eps = 1e-5, scale = true, bias = true)(x: [*S, d], r: [*S, d]) -> (sum: [*S, d], normed: [*S, d])",
    weights=AFFINE,
    per_token=True,
    examples=("add_layernorm : float[B, T, 4], float[B, T, 4]",),
)
def add_layernorm(
    x: torch.Tensor, r: torch.Tensor, weight: torch.Tensor | None = None, bias: torch.Tensor | None = None, eps: float = 1e-5
) -> tuple[torch.Tensor, torch.Tensor]:
    """s = x + r, y = layernorm(s); two [*S, d]."""
    total = x + r
    return total, F.layer_norm(total, total.shape[-1:], weight, bias, eps)


# one statistic for several norms of the same value


@brick("rms_statistic(eps = 1e-6)(x: [*S, d]) -> [*S, 1]", per_token=True, examples=("rms_statistic : float[B, T, 4]",))
def rms_statistic(x: torch.Tensor, eps: float = 1e-6) -> torch.Tensor:
    """s = 1 / sqrt(mean(x^2) + eps), [*S, d] -> [*S, 1]; float32 for halves."""
    wide = working(x)
    return torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)


@brick(
    'rmsnorm_with(scale = true, offset = 0.0, cast = "llama")(x: [*S, d], statistic: [*S, 1]) -> [*S, d]',
    weights=RMS_WEIGHT,
    require=(CASTS,),
    per_token=True,
    examples=("rmsnorm_with : float[B, T, 4], float[B, T, 1]",),
)
def rmsnorm_with(
    x: torch.Tensor, statistic: torch.Tensor, weight: torch.Tensor | None = None, offset: float = 0.0, cast: str = "llama"
) -> torch.Tensor:
    """y = (offset + w) * x * s, [*S, d]; s from `rms_statistic`."""
    return _scaled(working(x) * statistic, x.dtype, weight, offset, cast)


@brick(
    "moments(eps = 1e-5)(x: [*S, d]) -> (mean: [*S, 1], inverse: [*S, 1])", per_token=True, examples=("moments : float[B, T, 4]",)
)
def moments(x: torch.Tensor, eps: float = 1e-5) -> tuple[torch.Tensor, torch.Tensor]:
    """m = mean(x), s = 1 / sqrt(var(x) + eps), [*S, d] -> two [*S, 1]; float32 for halves."""
    wide = working(x)
    mean = wide.mean(-1, keepdim=True)
    return mean, torch.rsqrt((wide - mean).square().mean(-1, keepdim=True) + eps)


@brick(
    "layernorm_with(scale = true, bias = true)(x: [*S, d], mean: [*S, 1], inverse: [*S, 1]) -> [*S, d]",
    weights=AFFINE,
    per_token=True,
    examples=("layernorm_with : float[B, T, 4], float[B, T, 1], float[B, T, 1]",),
)
def layernorm_with(
    x: torch.Tensor, mean: torch.Tensor, inverse: torch.Tensor, weight: torch.Tensor | None = None, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """y = w * (x - m) * s + b, [*S, d]; m and s from `moments`."""
    y = (working(x) - mean) * inverse
    y = y if weight is None else y * weight
    return (y if bias is None else y + bias).to(x.dtype)
