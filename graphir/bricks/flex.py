"""Attention as one FlexAttention kernel on CUDA: what changes scores or hides keys is compiled into it, hidden blocks are skipped."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

from .scan import working
from .torch_lazy import Tensor, torch

BLOCK = 128  # queries and keys per block of FlexAttention's table


def suits(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> bool:
    """Whether the kernel takes these tensors and is worth it; who asks computes by hand otherwise.

    On CUDA, half or single precision, head widths of 16 or more, and a block of queries or more: with fewer (a decoding step) the scores
    are small. Not for a bias that learns, whose gradient the kernel would scatter atom by atom; under torch.func, which cannot enter a
    compiled function; or in torch.export, whose lengths stay open and whose files go to other machines.
    """
    if not q.is_cuda or torch.compiler.is_exporting() or (bias is not None and bias.requires_grad):
        return False
    functorch: Any = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]
    if not torch.compiler.is_compiling() and any(functorch.is_functorch_wrapped_tensor(t) for t in (q, k, v)):
        return False
    known = all(t.dtype in (torch.float16, torch.bfloat16, torch.float32) for t in (q, k, v))
    return known and q.shape[2] >= BLOCK and min(q.shape[3], v.shape[3]) >= 16 and q.shape[0] > 0 and k.shape[2] > 0


def flex(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, bias: Tensor | None, sinks: Tensor | None, slopes: Tensor | None,
    causal: bool, scale: float, window: int | None, chunk: int | None, softcap: float | None,
) -> Tensor:
    """y [B, h, T, v] of `sdpa`, `mask` of four axes. The first call on tensors of a kind compiles (seconds, needs Triton).

    Gradients of q, k, v and sinks; they have no gradients of their own. Source: Dong et al. 2024 (arXiv 2412.05496).
    """
    if torch.is_autocast_enabled(q.device.type):
        q, k, v = (t.to(torch.get_autocast_dtype(q.device.type)) for t in (q, k, v))
    tables = (mask, bias, sinks, slopes)
    numbers = tuple(_number(n, q) for n in (k.shape[2] - q.shape[2], scale, softcap, window, chunk))
    arguments: tuple[Any, ...] = (q, k, v, *tables, *numbers, causal)
    if torch.compiler.is_compiling():
        return attend(*arguments)
    ones = tuple(None if t is None else tuple(n == 1 for n in t.shape) for t in (q, k, *tables, *numbers))
    learns = tuple(torch.is_grad_enabled() and t is not None and t.requires_grad for t in (q, k, v, sinks))
    kinds = tuple(None if t is None else t.dtype for t in (q, k, v, *tables))
    return kernel(q.shape[1], k.shape[1], q.shape[3], v.shape[3], q.device, causal, ones, learns, kinds)(*arguments)


def _number(n: float | None, like: Tensor) -> Tensor | None:
    """A number as a tensor on the device: another window or scale is no other kernel."""
    return None if n is None else torch.full((), n, dtype=working(like) if isinstance(n, float) else torch.int32, device=like.device)


@functools.cache
def kernel(*traits: Any) -> Callable[..., Tensor]:
    """`attend` compiled for tensors of these traits: a function for each, since Dynamo leaves a function of many forms unfused."""
    name = f"attend {' '.join(map(str, traits))}"
    return torch.compile(types.FunctionType(attend.__code__.replace(co_name=name), attend.__globals__, name))


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, bias: Tensor | None, sinks: Tensor | None, slopes: Tensor | None,
    shift: Tensor, scale: Tensor, softcap: Tensor | None, window: Tensor | None, chunk: Tensor | None, causal: bool,
) -> Tensor:
    """What is compiled; query i stands at place i + shift.

    A sink s has the share exp(s) / (exp(lse) + exp(s)) of each query's weight, which leaves sigmoid(lse - s) to the keys.
    """
    from torch.nn.attention.flex_attention import AuxRequest, flex_attention

    def score(s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        s = s * scale
        if softcap is not None:
            s = softcap * torch.tanh(s / softcap)
        if slopes is not None:
            s = s - slopes[h] * (i + shift - j).abs()
        return s if bias is None else s + _entry(bias, b, h, i, j)

    def seen(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        near = _near(i + shift, j, causal, window, chunk)
        return near if mask is None else near & _entry(mask, b, h, i, j)

    hides = causal or mask is not None or window is not None or chunk is not None
    table = block_table(q, k, seen, mask is None, causal, window, chunk) if hides else None
    grouped = q.shape[1] != k.shape[1]
    if sinks is None:
        return flex_attention(q, k, v, score, table, scale=1.0, enable_gqa=grouped)
    y, more = flex_attention(q, k, v, score, table, scale=1.0, enable_gqa=grouped, return_aux=AuxRequest(lse=True))
    assert more.lse is not None
    return (y * torch.sigmoid(more.lse - sinks.view(1, -1, 1)).unsqueeze(-1)).to(y.dtype)


def _entry(table: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """table[b, h, i, j], where an axis of length 1 stands for any."""
    b, h, i, j = (place if size != 1 else 0 * place for place, size in zip((b, h, i, j), table.shape))
    return table[b, h, i, j]


def _near(i: Tensor, j: Tensor, causal: bool, window: Tensor | None, chunk: Tensor | None) -> Tensor:
    """Whether the query at place i may see the key at place j."""
    near = j <= i if causal else j >= 0
    if window is not None:
        near = near & ((i - j).abs() < window)
    return near if chunk is None else near & (i // chunk == j // chunk)


def block_table(
    q: Tensor, k: Tensor, seen: Callable[..., Tensor], by_place: bool, causal: bool, window: Tensor | None, chunk: Tensor | None
) -> Any:
    """The BlockMask: which blocks of keys a block of queries visits, from places alone, so that no [T, S] mask is ever made.

    Blocks in which all is seen are listed apart where that is known (`by_place`: no mask): there `seen` is not asked.
    """
    from torch.nn.attention.flex_attention import BlockMask

    queries, keys = q.shape[2], k.shape[2]
    i0 = (torch.arange((queries + BLOCK - 1) // BLOCK, device=q.device) * BLOCK + (keys - queries)).unsqueeze(1)
    j0 = torch.arange((keys + BLOCK - 1) // BLOCK, device=q.device) * BLOCK
    i1, j1 = i0 + (BLOCK - 1), j0 + (BLOCK - 1)
    some, every = (i0 - i0 + j0) >= 0, (i1 < keys) & (j1 < keys)
    if causal:
        some, every = some & (j0 <= i1), every & (j1 <= i0)
    if window is not None:
        some, every = some & (i0 - j1 < window) & (j0 - i1 < window), every & (i1 - j0 < window) & (j1 - i0 < window)
    if chunk is not None:
        i0, i1, j0, j1 = (place // chunk for place in (i0, i1, j0, j1))
        some, every = some & (i0 <= j1) & (j0 <= i1), every & (i0 == j1) & (j0 == i1)
    lengths = (queries, keys)
    if not by_place:
        return BlockMask.from_kv_blocks(*_listed(some), BLOCK_SIZE=BLOCK, mask_mod=seen, seq_lengths=lengths)
    return BlockMask.from_kv_blocks(*_listed(some & ~every), *_listed(every), BLOCK_SIZE=BLOCK, mask_mod=seen, seq_lengths=lengths)


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """int [1, 1, rows]: how many blocks each row has; int [1, 1, rows, columns]: which ones, in order, before the others."""
    order = torch.argsort(blocks.int(), dim=-1, descending=True, stable=True)
    return blocks.sum(-1).int()[None, None], order.int()[None, None]
