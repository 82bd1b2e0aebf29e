"""Activations: each element by itself. The gated ones (GLU and kin) are in `join.py` and in the standard library."""

from __future__ import annotations

from .declare import brick
from .torch_lazy import F, torch


@brick("relu(x: [*S]) -> [*S]", inline=True, elementwise=True, examples=("relu : float[B, 4]",))
def relu(x: torch.Tensor) -> torch.Tensor:
    """y = max(0, x), [*S]."""
    return F.relu(x)


@brick(
    'gelu(approximate = "none")(x: [*S]) -> [*S]',
    require=('approximate in ["none", "tanh"]',),
    inline=True,
    elementwise=True,
    examples=("gelu : float[B, 4]", 'gelu(approximate = "tanh") : float[B, 4]'),
    source="Hendrycks & Gimpel 2016",
)
def gelu(x: torch.Tensor, approximate: str = "none") -> torch.Tensor:
    """y = x Φ(x), [*S]; exact, or 0.5 x (1 + tanh(sqrt(2/π) (x + 0.044715 x^3))) with `approximate = "tanh"`."""
    return F.gelu(x, approximate=approximate)


@brick("silu(x: [*S]) -> [*S]", inline=True, elementwise=True, examples=("silu : float[B, 4]",))
def silu(x: torch.Tensor) -> torch.Tensor:
    """y = x sigmoid(x), [*S]."""
    return F.silu(x)


@brick("sigmoid(x: [*S]) -> [*S]", inline=True, elementwise=True, examples=("sigmoid : float[B, 4]",))
def sigmoid(x: torch.Tensor) -> torch.Tensor:
    """y = 1 / (1 + e^-x), [*S]."""
    return torch.sigmoid(x)


@brick("log_sigmoid(x: [*S]) -> [*S]", inline=True, elementwise=True, examples=("log_sigmoid : float[B, 4]",))
def log_sigmoid(x: torch.Tensor) -> torch.Tensor:
    """y = ln sigmoid(x), [*S]."""
    return F.logsigmoid(x)


@brick("tanh(x: [*S]) -> [*S]", inline=True, elementwise=True, examples=("tanh : float[B, 4]",))
def tanh(x: torch.Tensor) -> torch.Tensor:
    """y = tanh x, [*S]."""
    return torch.tanh(x)


@brick("softplus(x: [*S]) -> [*S]", inline=True, elementwise=True, examples=("softplus : float[B, 4]",))
def softplus(x: torch.Tensor) -> torch.Tensor:
    """y = ln(1 + e^x), [*S]."""
    return F.softplus(x)


@brick("relu2(x: [*S]) -> [*S]", inline=True, elementwise=True, examples=("relu2 : float[B, 4]",), source="Primer")
def relu2(x: torch.Tensor) -> torch.Tensor:
    """y = max(0, x)^2, [*S]."""
    return torch.square(F.relu(x))


@brick("scaled_relu(slope = 1.1)(x: [*S]) -> [*S]", inline=True, elementwise=True, examples=("scaled_relu : float[B, 4]",), source="Loom")
def scaled_relu(x: torch.Tensor, slope: float = 1.1) -> torch.Tensor:
    """y = max(0, slope * x), [*S]."""
    return F.relu(x * slope)


@brick("leaky_relu(slope = 0.1)(x: [*S]) -> [*S]", inline=True, elementwise=True, examples=("leaky_relu : float[B, 4]",))
def leaky_relu(x: torch.Tensor, slope: float = 0.1) -> torch.Tensor:
    """y = x where x > 0, else slope * x; [*S]."""
    return F.leaky_relu(x, slope)


@brick("elu(alpha = 1.0)(x: [*S]) -> [*S]", inline=True, elementwise=True, examples=("elu : float[B, 4]",))
def elu(x: torch.Tensor, alpha: float = 1.0) -> torch.Tensor:
    """y = x where x > 0, else alpha (e^x - 1); [*S]."""
    return F.elu(x, alpha)


@brick("mish(x: [*S]) -> [*S]", inline=True, elementwise=True, examples=("mish : float[B, 4]",))
def mish(x: torch.Tensor) -> torch.Tensor:
    """y = x tanh(softplus(x)), [*S]."""
    return F.mish(x)


@brick(
    "softcap(cap)(x: [*S]) -> [*S]",
    require=("cap > 0",),
    inline=True,
    elementwise=True,
    examples=("softcap(2.0) : float[B, 4]",),
    source="Gemma 2",
)
def softcap(x: torch.Tensor, cap: float) -> torch.Tensor:
    """y = cap * tanh(x / cap), [*S]."""
    return torch.tanh(x / cap) * cap
