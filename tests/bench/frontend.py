"""Text to an optimised, keyed graph, against torch.fx on the same network written by hand.

    OMP_NUM_THREADS=1 python tests/bench/frontend.py [--quick]
"""

from __future__ import annotations

import statistics
import time

import torch
from harness import arguments, compare, line
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import symbolic_trace
from torch.fx.passes.fake_tensor_prop import FakeTensorProp
from torch.fx.passes.shape_prop import ShapeProp

import graphir
from graphir.api import optimise

TEXT = """
block Block(hidden = 4 * d)(x: [*S, d]) -> [*S, d] {
  return x + (x -> layernorm -> linear(hidden) -> gelu -> linear(d))
}
model Net(n = 128, d = 64)(x: float[B, T, d]) -> float[B, T, d] {
  return x -> ([Block] * n)
}
"""


class Block(torch.nn.Module):
    def __init__(self, d: int, hidden: int):
        super().__init__()
        self.norm = torch.nn.LayerNorm(d)
        self.up = torch.nn.Linear(d, hidden)
        self.act = torch.nn.GELU()
        self.down = torch.nn.Linear(hidden, d)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(self.act(self.up(self.norm(x))))


def net(blocks: int, d: int = 64) -> torch.nn.Module:
    return torch.nn.Sequential(*[Block(d, 4 * d) for _ in range(blocks)])


def front(blocks: int) -> str:
    return optimise(graphir.load(TEXT, n=blocks)).key


def fake(blocks: int):
    """A traced network whose parameters are fake, and the propagation of a fake input through it."""
    mode = FakeTensorMode()
    with mode:
        traced = symbolic_trace(net(blocks))
    x = mode.from_tensor(torch.empty(2, 3, 64))
    return lambda: FakeTensorProp(traced, mode).propagate_dont_convert_inputs(x)


def per_block(blocks: int, rounds: int) -> float:
    taken = []
    for _ in range(rounds):
        start = time.thread_time()
        front(blocks)
        taken.append((time.thread_time() - start) / blocks)
    return statistics.median(taken)


def main() -> None:
    options = arguments(__doc__)
    torch.set_num_threads(1)
    blocks = 32 if options.quick else 128
    module = net(blocks)
    traced = symbolic_trace(module)
    x = torch.empty(2, 3, 64)
    ways = {
        "graphir: text to optimised, keyed graph": lambda: front(blocks),
        "torch.fx.symbolic_trace": lambda: symbolic_trace(module),
        "ShapeProp in a FakeTensorMode": lambda: ShapeProp(traced, fake_mode=FakeTensorMode()).propagate(x),
        "FakeTensorProp, parameters fake before": fake(blocks),
    }
    found = compare(f"{blocks} blocks of norm, linear, gelu, linear", ways, rounds=3 if options.quick else 9, least=0.05 if options.quick else 0.2)
    trace, shapes, fakes = (1 / found[name] for name in list(ways)[1:])
    line("as fast as symbolic_trace, times", f"{trace:.1f}", "at least 8", trace >= 8)
    line("as fast as ShapeProp with fake tensors, times", f"{shapes:.0f}", "at least 100", shapes >= 100)
    line("as fast as FakeTensorProp on fake parameters, times", f"{fakes:.0f}", "(for comparison)", True)
    large = 1280 if options.quick else 12800
    ratios = sorted(per_block(large, 1) / per_block(blocks, 9) for _ in range(1 if options.quick else 3))
    growth = statistics.median(ratios)
    line(f"time per block, {large:,} against {blocks} blocks", f"{growth:.2f}", "at most 1.5", growth <= 1.5)


if __name__ == "__main__":
    main()
