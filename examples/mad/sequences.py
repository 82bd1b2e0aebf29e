"""The four test sequences of the MAD composition document, each against itself without its mixers, on in-context recall over three seeds.

    python examples/mad/sequences.py [--results examples/mad/sequences.jsonl] [--steps 150]

Layers marked `on mlx` are run by MLX (pip install 'graphir[mlx]'), with gradients across the border. Depth and width are reduced.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import graphir
from graphir.mad import runs, tasks, train

HERE = Path(__file__).parent
SMALL = {"homogeneous": {"repeats": 2}, "alternating": {"repeats": 2}, "hybrid": {"repeats": 1, "chunk": 8}, "xlstm_7_1": {}}
SETTING = tasks.setting("in-context-recall", vocab=8, length=16, train=3200, test=320)
SEEDS = (0, 1, 2)


def sequences(steps: int, seeds: tuple[int, ...] = SEEDS) -> list[runs.Run]:
    return [
        runs.Run(
            f"{name}{'' if mixers else ' without mixers'}",
            graphir.load(HERE / "sequences" / f"{name}.arch", vocab=8, d=32, heads=2, mixers=mixers, **sizes),
            SETTING,
            train.CORRECTED,
            steps=steps,
            batch=16,
            rate=5e-3,
            seed=seed,
        )
        for name, sizes in SMALL.items()
        for mixers in (True, False)
        for seed in seeds
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--results", default=str(HERE / "sequences.jsonl"), metavar="FILE")
    parser.add_argument("--steps", type=int, default=150)
    options = parser.parse_args()
    torch.set_num_threads(1)

    def watch(run: runs.Run, place: int) -> None:
        print(f"{place + 1} {run.name} seed {run.seed}", flush=True)

    print(runs.table(runs.execute(sequences(options.steps), options.results, watch=watch)))


if __name__ == "__main__":
    main()
