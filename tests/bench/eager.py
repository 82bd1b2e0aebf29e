"""Networks that graphir made beside the same networks written by hand, in eager mode; and the interpreter's plan on tiny tensors.

    OMP_NUM_THREADS=1 python tests/bench/eager.py [--quick]

Outputs are compared before anything is timed.
"""

from __future__ import annotations

import gc
import weakref

import handwritten as h
import torch
from harness import EXAMPLES, arguments, compare, line
from torch.utils._python_dispatch import TorchDispatchMode

import graphir
from graphir.backends.interpreter import Interpreter

JOINS = """
model Joins(d = 64)(x: float[B, T, d]) -> float[B, T, d] {
  both = x -> fork { time: ShortConv(kernel = 4)  space: SwiGLU } -> add
  gated = x -> fork { content: linear(d)  control: linear(d) } -> gate
  mixed = x -> fork { a: SwiGLU  b: GeGLU  c: ReGLU } -> blend(learnable = true)
  return both + gated + mixed
}
"""
MIXTURE = """
model Mixture(d = 64, hidden = 128)(x: float[B, T, d]) -> float[B, T, d] {
  return x -> SparseMoE(SwiGLU(hidden), experts = 8, keep = 2)
}
"""
TINY = """
block Step(x: [*S, d]) -> [*S, d] { return x + (x -> linear(d) -> tanh) }
model Tiny(n = 200)(x: float[B, 8]) -> float[B, 8] { return x -> ([Step] * n) }
"""
LFM2 = (EXAMPLES / "lfm2.arch").read_text("utf-8").replace("hidden = 8192", "hidden = 2 * d")
LLAMA = EXAMPLES / "models" / "llama.arch"
CONVOLUTIONS = tuple(i for i in range(16) if i not in (2, 5, 8, 10, 12, 14))


def tokens(vocab, b, t):
    return torch.randint(0, vocab, (b, t))


def cases(quick):
    """Name -> (module by graphir, module by hand, input)."""
    small = dict(vocab=256, d=64, depth=4, heads=4, kv=2, hidden=128)
    wide = dict(vocab=256, d=256, depth=4, heads=8, kv=4, hidden=512)
    lfm2 = dict(vocab=256, d=64, heads=4, kv=2)
    by_hand = dict(depth=16, hidden=128, theta=1e4, eps=1e-6, convolutions=CONVOLUTIONS, qk_norm=True, tied=True)
    yield "odds", graphir.compile(EXAMPLES / "odds.arch"), h.Odds(), torch.randn(16, 8)
    yield "llama, d 64", graphir.compile(LLAMA, **small), h.Decoder(**small, theta=5e5), tokens(256, 1, 16)
    yield "llama, d 256", graphir.compile(LLAMA, **wide), h.Decoder(**wide, theta=5e5), tokens(256, 4, 64)
    yield "lfm2, d 64", graphir.compile(LFM2, **lfm2), h.Decoder(**lfm2, **by_hand), tokens(256, 1, 16)
    yield "fork and join, d 64", graphir.compile(JOINS), h.Joins(64), torch.randn(2, 16, 64)
    yield "unet, c 8", graphir.compile(EXAMPLES / "unet.arch", c=8), h.UNet(8, 10), torch.randn(1, 3, 32, 32)
    yield "mixture of 8, 2 tokens", graphir.compile(MIXTURE), h.Mixture(64, 128, 8, 2), torch.randn(1, 2, 64)
    yield "mixture of 8, 256 tokens", graphir.compile(MIXTURE), h.Mixture(64, 128, 8, 2), torch.randn(2, 128, 64)


def copied(made, written):
    """The module by hand with the weights of the other: as many, in the same order, of the same shapes."""
    given, wanted = list(made.state_dict().values()), list(written.state_dict().values())
    assert [t.shape for t in given] == [t.shape for t in wanted], [(tuple(a.shape), tuple(b.shape)) for a, b in zip(given, wanted)]
    with torch.no_grad():
        for a, b in zip(given, wanted):
            b.copy_(a)
    return written


def modules(options):
    rounds = 3 if options.quick else 11
    for name, made, written, x in cases(options.quick):
        copied(made, written)
        with torch.no_grad():
            error = (made(x) - written(x)).abs().max().item()
            assert error < 1e-4, (name, error)
            ways = {"by hand": lambda written=written, x=x: written(x), "graphir (fx)": lambda made=made, x=x: made(x)}
            found = compare(f"{name}: outputs differ by {error:.0e}", ways, rounds, 0.05 if options.quick else 0.15)
        line("fx beside the module by hand", f"{found['graphir (fx)']:.2f}", "at least 0.97", found["graphir (fx)"] >= 0.97)


class Alive(TorchDispatchMode):
    """The most tensors that were alive at once, of those that operations made."""

    def __init__(self):
        super().__init__()
        self.alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
        self.most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.alive.add(out)
            self.most = max(self.most, len(self.alive))
        return out


def most_alive(call) -> int:
    gc.collect()
    with torch.no_grad(), Alive() as counted:
        call()
    return counted.most


def plan(options):
    lowered = graphir.compile(TINY)
    written = copied(lowered, h.Tiny(200, 8))
    interpreter = Interpreter(lowered.graphir, lowered.state_dict())
    x = torch.randn(1, 8)
    with torch.no_grad():
        (found,) = interpreter.run({"x": x}).values()
        assert torch.equal(found, written(x))
        ways = {"by hand": lambda: written(x), "graphir (interpreter)": lambda: interpreter.run({"x": x}), "graphir (fx)": lambda: lowered(x)}
        found = compare("600 nodes on tensors of 8 numbers", ways, 3 if options.quick else 11, 0.05 if options.quick else 0.15)
    line("interpreter beside the module by hand", f"{found['graphir (interpreter)']:.2f}", "at least 1.2", found["graphir (interpreter)"] >= 1.2)
    ours, theirs = most_alive(ways["graphir (interpreter)"]), most_alive(lambda: written(x))
    line("tensors alive at once, interpreter and by hand", f"{ours} and {theirs}", "no more", ours <= theirs)


def main() -> None:
    options = arguments(__doc__)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    modules(options)
    plan(options)


if __name__ == "__main__":
    main()
