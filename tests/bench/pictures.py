"""How long it takes to draw: a thousand boxes, the same network folded, and a model of 70 billion parameters from its text.

    OMP_NUM_THREADS=1 python tests/bench/pictures.py [--quick]

Times are processor time of this process and of the layout engine's, which is a process of its own.
"""

from __future__ import annotations

import os
import statistics
import sys

from harness import EXAMPLES, arguments, line, process

import graphir

CHAIN = """
model Chain(n = 250, d = 16)(x: float[B, d]) -> float[B, d] {
  return x -> ([residual(linear(d) -> relu -> linear(d))] * n)
}
"""

LARGE = """
import sys
import graphir
path, sizes = sys.argv[1], dict(d=8192, depth=80, heads=64, kv=8, hidden=28672, vocab=128256)
wrong = graphir.check(path, **sizes)
graph = graphir.load(path, **sizes)
table = str(graph.summary(B=1, T=4096))
drawing = graph.svg()
assert not wrong and "svg" in drawing and "torch" not in sys.modules and len(table) > 1000
print(graph.parameters)
"""


def spent() -> float:
    return sum(os.times()[:4])


def drawing(graph: graphir.Graph, rounds: int, **options: object) -> float:
    graph.svg(**options)
    taken = []
    for _ in range(rounds):
        before = spent()
        graph.svg(**options)
        taken.append(spent() - before)
    return statistics.median(taken)


def main() -> None:
    options = arguments(__doc__)
    rounds = 1 if options.quick else 5
    graph = graphir.load(CHAIN, n=50 if options.quick else 250)
    print(f"\npictures ({rounds} rounds)")
    whole = drawing(graph, rounds, depth="all", fold=False)
    folded = drawing(graph, rounds)
    line(f"{len(graph.nodes):,} nodes, all drawn", f"{whole:.2f} s", "about 1 s", whole < 1.25)
    line("the same, folded", f"{folded:.2f} s, {folded / whole:.2f} of it", "0.2 s", folded <= 0.2)
    wall, cpu, peak, done = process([sys.executable, "-c", LARGE, str(EXAMPLES / "models" / "llama.arch")])
    assert done.returncode == 0, done.stderr
    billions = int(done.stdout) / 1e9
    reached = cpu < 2 and peak < 500 * 1024
    found = f"{wall:.2f} s, cpu {cpu:.2f} s, {peak / 1024:.0f} MB"
    line(f"{billions:.1f} billion parameters: check, summary, picture", found, "2 s, 500 MB", reached)


if __name__ == "__main__":
    main()
