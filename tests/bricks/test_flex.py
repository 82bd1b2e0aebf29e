"""The FlexAttention form of attention against the form by hand, on the CPU: as torch computes it there, traced, and compiled."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.attention.flex_attention as flex_module
from torch._subclasses.fake_tensor import FakeTensorMode

from graphir.bricks import attention, flex
from graphir.bricks.attention import sdpa, visible
from graphir.bricks.torch_lazy import load

load()  # as every compiler does: what traces bodies must find torch there

OPTIONS = [
    {"softcap": 2.0},
    {"causal": True, "softcap": 2.0},
    {"causal": True, "window": 3, "softcap": 2.0, "scale": 0.3},
    {"window": 2},
    {"causal": True, "chunk": 3, "alibi": True},
    {"chunk": 2, "window": 2, "alibi": True, "softcap": 1.0},
]
EXTRAS = [(), ("mask",), ("heads mask",), ("bias",), ("sinks",), ("mask", "bias", "sinks")]
LENGTHS = [(5, 5), (2, 5), (5, 2)]


def tensors(queries, keys, extra=(), groups=2, dtype=torch.float64, width=6, seed=0):
    """q, k, v and what else is given, of 4 query heads; the first row of a padding mask shows nothing."""
    g = torch.Generator().manual_seed(seed)
    make = lambda *shape: torch.randn(shape, generator=g, dtype=dtype)  # noqa: E731
    q, k, v = make(2, 4, queries, width), make(2, groups, keys, width), make(2, groups, keys, width // 2)
    given = {}
    if "mask" in extra:
        given["mask"] = torch.rand(2, keys, generator=g) > 0.5
        given["mask"][0] = False
    if "heads mask" in extra:
        given["mask"] = torch.rand(2, 1, queries, keys, generator=g) > 0.5
    if "bias" in extra:
        given["bias"] = make(1, 4, queries, keys)
    if "sinks" in extra:
        given["sinks"] = make(4)
    return q, k, v, given


@pytest.fixture
def by_flex(monkeypatch):
    """`sdpa` as it is on CUDA, on CPU tensors: its FlexAttention form, run by what `by_flex.run` names."""

    def call(*args, **options):
        with monkeypatch.context() as patch:
            patch.setattr(attention, "suits", lambda *tensors: True)
            patch.setattr(flex, "kernel", lambda *traits: call.run)
            return sdpa(*args, **options)

    call.run = flex.attend
    return call


@pytest.fixture
def uncompiled(monkeypatch):
    """FlexAttention computed by its formula, forward only."""
    monkeypatch.setattr(flex_module, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)


@pytest.fixture
def learning(monkeypatch):
    """FlexAttention with gradients on the CPU, which torch refuses since its compiled kernel has none there; its formula does."""
    monkeypatch.setattr(flex_module, "_validate_device", lambda *tensors: None)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize(("queries", "keys"), LENGTHS)
@pytest.mark.parametrize("extra", EXTRAS, ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_it_gives_what_attention_by_hand_gives(by_flex, options, extra, queries, keys):
    for groups in (1, 4):
        q, k, v, given = tensors(queries, keys, extra, groups)
        y = by_flex(q, k, v, **given, **options)
        torch.testing.assert_close(y, sdpa(q, k, v, **given, **options), rtol=1e-10, atol=1e-12)
        if "mask" in extra:
            assert y[0].abs().max() == 0


@pytest.mark.usefixtures("uncompiled")
def test_half_precision_and_autocast(by_flex):
    q, k, v, given = tensors(6, 6, ("sinks", "bias"), dtype=torch.float32)
    exact = sdpa(q, k, v, **given, causal=True, softcap=2.0, alibi=True)
    half = by_flex(q.bfloat16(), k.bfloat16(), v.bfloat16(), **given, causal=True, softcap=2.0, alibi=True)
    with torch.autocast("cpu", torch.bfloat16):
        cast = by_flex(q, k.bfloat16(), v, **given, causal=True, softcap=2.0, alibi=True)
    assert half.dtype == cast.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), exact, rtol=0.05, atol=0.05)
    torch.testing.assert_close(half, cast)


GRADIENTS = [
    ({"causal": True, "softcap": 2.0, "alibi": True, "window": 3, "chunk": 4}, ("mask", "bias", "sinks"), (5, 5)),
    ({"causal": True, "softcap": 2.0}, ("mask", "sinks"), (5, 2)),
    ({"window": 2, "scale": 0.3}, (), (2, 5)),
]


@pytest.mark.usefixtures("learning")
@pytest.mark.parametrize(("options", "extra", "lengths"), GRADIENTS, ids=str)
def test_gradients_are_those_by_hand(by_flex, options, extra, lengths):
    q, k, v, given = tensors(*lengths, extra)
    leaves = [t.requires_grad_() for t in (q, k, v, *([given["sinks"]] if "sinks" in given else []))]
    wanted = sdpa(q, k, v, **given, **options)
    up = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = torch.autograd.grad(by_flex(q, k, v, **given, **options), leaves, up)
    for one, other in zip(found, torch.autograd.grad(wanted, leaves, up)):
        assert torch.isfinite(one).all()
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-7)


@pytest.mark.usefixtures("learning")
def test_it_is_traced_whole_and_not_again_for_other_lengths_and_numbers(by_flex):
    counter = torch._dynamo.testing.CompileCounter()
    by_flex.run = torch.compile(flex.attend, backend=counter, fullgraph=True)
    frames = []
    for queries, keys, window, softcap in [(130, 130, 7, 2.0), (140, 150, 30, 1.0), (150, 300, 200, 3.0), (300, 260, 9, 0.5)]:
        q, k, v, given = tensors(queries, keys, ("sinks", "mask"), dtype=torch.float32)
        options = {**given, "causal": True, "window": window, "softcap": softcap}
        torch.testing.assert_close(by_flex(q, k, v, **options), sdpa(q, k, v, **options), rtol=1e-4, atol=1e-5)
        frames.append(counter.frame_count)
    assert frames[-1] == frames[1] <= 2


@pytest.mark.parametrize(("queries", "keys"), [(130, 130), (256, 400), (400, 130), (300, 520)])
def test_the_table_lists_every_block_in_which_something_is_seen(queries, keys):
    size = flex.BLOCK
    rows, columns = -(-queries // size), -(-keys // size)
    q, k = torch.zeros(1, 1, queries, 1), torch.zeros(1, 1, keys, 1)
    for causal, window, chunk in itertools.product([False, True], [None, 1, 100, 300], [None, 64, 128, 200]):
        if not causal and window is None and chunk is None:
            continue
        seen = torch.zeros(rows * size, columns * size, dtype=torch.bool)
        seen[:queries, :keys] = visible(queries, keys, q, causal, window, chunk)
        cells = seen.view(rows, size, columns, size).transpose(1, 2).flatten(2)
        some, every = cells.any(-1), cells.all(-1)
        numbers = [None if n is None else torch.tensor(n) for n in (window, chunk)]
        table = flex.block_table(q, k, lambda b, h, i, j: j <= i, True, causal, *numbers)
        partial, full = (t[0, 0].bool() for t in listed(table))
        assert not (partial & full).any()
        assert torch.equal(full, every)
        assert not (some & ~(partial | full)).any()
        if sum([causal, window is not None, chunk is not None]) == 1:
            assert torch.equal(partial | full, some), "no block is visited for nothing"
        asked = flex.block_table(q, k, lambda b, h, i, j: j <= i, False, causal, *numbers)
        assert asked.full_kv_num_blocks is None
        assert torch.equal(listed(asked)[0][0, 0].bool(), partial | full)


def listed(table):
    """The blocks that a table lists, partial and, if apart, full, as matrices of zeros and ones."""
    lists = ((table.kv_num_blocks, table.kv_indices), (table.full_kv_num_blocks, table.full_kv_indices))
    return [
        torch.zeros_like(places).scatter(-1, places.long(), (torch.arange(places.shape[-1]) < counts.unsqueeze(-1)).int())
        for counts, places in lists
        if counts is not None
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "extra", "lengths"),
    [({"causal": True, "window": 90}, (), (300, 420)), ({"chunk": 100, "softcap": 2.0, "alibi": True}, ("heads mask", "bias"), (421, 301))],
    ids=str,
)
def test_the_compiled_kernel_skips_blocks_and_loses_nothing(by_flex, options, extra, lengths):
    torch._dynamo.reset()
    by_flex.run = flex.kernel(str(options))
    q, k, v, given = tensors(*lengths, extra, dtype=torch.float32, width=32)
    torch.testing.assert_close(by_flex(q, k, v, **given, **options), sdpa(q, k, v, **given, **options), rtol=1e-4, atol=1e-5)


def test_which_tensors_it_takes():
    def taken(device="cuda", dtype=torch.bfloat16, queries=128, width=64, values=64, batch=1, bias=None):
        make = lambda *shape: torch.empty(shape, device=device, dtype=dtype)  # noqa: E731
        return flex.suits(make(batch, 4, queries, width), make(batch, 2, 128, width), make(batch, 2, 128, values), bias)

    with FakeTensorMode():
        assert taken()
        assert taken(dtype=torch.float32, width=48, values=16, queries=1000)
        assert taken(bias=torch.empty(1, 4, 128, 128, device="cuda"))
        assert not taken(bias=torch.empty(1, 4, 128, 128, device="cuda", requires_grad=True))
        assert not taken(device="cpu")
        assert not taken(dtype=torch.float64)
        assert not taken(queries=127)
        assert not taken(width=8)
        assert not taken(values=15)
        assert not taken(batch=0)


@pytest.mark.usefixtures("uncompiled")
def test_one_kernel_for_tensors_of_a_kind(monkeypatch):
    monkeypatch.setitem(vars(flex.torch), "compile", lambda function: function)
    flex.kernel.cache_clear()
    q, k, v, given = tensors(5, 5, ("sinks",), dtype=torch.float32)
    run = lambda *qkv, **options: flex.flex(*qkv, None, None, given["sinks"], None, True, 0.5, options.get("window"), None, None)  # noqa: E731
    with torch.no_grad():
        run(q, k, v)
        run(q[:, :, :3], k, v)
        assert flex.kernel.cache_info().currsize == 1
        run(q, k, v, window=2)
        run(q, k, v, window=3)
        assert flex.kernel.cache_info().currsize == 2
        run(q.bfloat16(), k.bfloat16(), v.bfloat16())
        assert flex.kernel.cache_info().currsize == 3
    assert len({flex.kernel(n).__code__ for n in range(3)}) == 3
    flex.kernel.cache_clear()
