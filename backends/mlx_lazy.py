"""`mx`: mlx.core, loaded at first use, so that the table of bricks can be read where MLX is not installed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graphir.lang.diagnostic import EnvironmentProblem

if TYPE_CHECKING:
    Array = Any


class _Lazy:
    def __getattr__(self, name: str) -> Any:
        import mlx.core

        value = getattr(mlx.core, name)
        self.__dict__[name] = value
        return value


mx: Any = _Lazy()


def need_mlx() -> None:
    """Raise EnvironmentProblem where MLX cannot be imported."""
    try:
        import mlx.core  # noqa: F401
    except ImportError as e:
        raise EnvironmentProblem("a part of the model is `on mlx`, and MLX is not installed", "pip install 'graphir[mlx]'") from e


def half(x: Array) -> bool:
    return x.dtype in (mx.float16, mx.bfloat16)


def wide(x: Array) -> Array:
    """The array in a precision fit for sums: float32 where it is in half precision."""
    return x.astype(mx.float32) if half(x) else x


def lower(length: int, diagonal: int = 0) -> Array:
    """bool [T, T]: key j is seen by query i, j <= i + diagonal."""
    at = mx.arange(length)
    return at[None, :] <= at[:, None] + diagonal


