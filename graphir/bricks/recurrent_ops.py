"""torch's fused LSTM and GRU, wrapped so that compilers see one opaque call whose length stays symbolic.

Eagerly they are called as they are. Under torch.compile and torch.export the same kernels stand behind a custom operator,
since tracing into them would fix the number of tokens.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from .torch_lazy import Tensor, torch


def fused(
    kind: str, x: Tensor, state: tuple[Tensor, ...], weights: tuple[Tensor | None, ...]
) -> tuple[Tensor, ...]:
    """(y [B, T, hidden], final state...) of "lstm" or "gru" over x [B, T, d]; state [B, hidden] each.

    `weights` are ih, hh and two biases or Nones.
    """
    if x.shape[1] == 0:
        return (x.new_zeros(x.shape[0], 0, state[0].shape[1]), *state)
    present = [w for w in weights if w is not None]
    if torch.compiler.is_compiling():
        return tuple(torch.ops.graphir.recurrent(kind, x, list(state), present))
    return tuple(run(kind, x, list(state), present, torch.is_grad_enabled()))


def run(kind: str, x: Tensor, state: list[Tensor], weights: list[Tensor], train: bool) -> list[Tensor]:
    """The kernel itself; `train` where its gradient may be asked for."""
    biased = len(weights) == 4
    start: Any = [s.unsqueeze(0).contiguous() for s in state]
    if kind == "gru":
        y, *last = torch.gru(x, start[0], weights, biased, 1, 0.0, train, False, True)
    else:
        y, *last = torch.lstm(x, start, weights, biased, 1, 0.0, train, False, True)
    return [y, *(s.squeeze(0) for s in last)]


@cache
def register() -> None:
    """Add `graphir::recurrent` to torch's operators, with its shape rule and its gradient (by running the kernel again)."""
    custom: Any = torch.library.custom_op

    @custom("graphir::recurrent", mutates_args=(), schema="(str kind, Tensor x, Tensor[] state, Tensor[] weights) -> Tensor[]")
    def forward(kind, x, state, weights):
        return [t.clone() for t in run(kind, x, state, weights, False)]

    @custom(
        "graphir::recurrent_backward",
        mutates_args=(),
        schema="(str kind, Tensor[] grads, Tensor x, Tensor[] state, Tensor[] weights) -> Tensor[]",
    )
    def backward(kind, grads, x, state, weights):
        again = lambda x, state, weights: run(kind, x, state, weights, True)  # noqa: E731
        pull: Any = torch.func.vjp(again, x, list(state), list(weights))[1]
        of_x, of_state, of_weights = pull(list(grads))
        return [g.clone() for g in (of_x, *of_state, *of_weights)]

    @forward.register_fake
    def _(kind, x, state, weights):
        return [x.new_empty(x.shape[0], x.shape[1], state[0].shape[1]), *(torch.empty_like(s) for s in state)]

    @backward.register_fake
    def _(kind, grads, x, state, weights):
        return [torch.empty_like(t) for t in (x, *state, *weights)]

    def remember(ctx, inputs, output):
        kind, x, state, weights = inputs
        ctx.kind, ctx.count = kind, len(state)
        ctx.save_for_backward(x, *state, *weights)

    def differentiate(ctx, grads):
        x, *rest = ctx.saved_tensors
        state, weights = rest[: ctx.count], rest[ctx.count :]
        found = torch.ops.graphir.recurrent_backward(ctx.kind, list(grads), x, state, weights)
        return None, found[0], found[1 : 1 + ctx.count], found[1 + ctx.count :]

    forward.register_autograd(differentiate, setup_context=remember)
