"""A small MAD grid on a CPU: six mixers, two tasks at a reduced size, three seeds (docs/mad.md holds the table).

    python examples/mad/grid.py [--results examples/mad/grid.jsonl] [--plot grid.png]

Stop it at any time: finished runs are in the results file and are not made again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import graphir
from graphir.mad import runs, tasks, train

HERE = Path(__file__).parent
MIXERS = ("attention", "mlstm", "linear-attention", "mamba", "conv", "nothing")
SETTINGS = (
    tasks.setting("in-context-recall", vocab=8, length=32, train=6400, test=640),
    tasks.setting("selective-copying", vocab=8, length=24, copies=4, train=6400, test=640),
)
SEEDS = (0, 1, 2)


def grid(only: str | None = None) -> list[runs.Run]:
    """All runs, or those of one task, or the `wide` ones: attention on recall at twice the width and twice the batch."""
    small = [
        runs.Run(
            mixer,
            graphir.load(HERE / "grid.arch", mixer=mixer, vocab=setting.vocab),
            setting,
            train.CORRECTED,
            steps=1400,
            batch=32,
            rate=4e-3,
            seed=seed,
        )
        for seed in SEEDS
        for setting in SETTINGS
        for mixer in MIXERS
    ]
    attention = graphir.load(HERE / "grid.arch", mixer="attention", d=64)
    wide = [
        runs.Run("attention, wide", attention, SETTINGS[0], train.CORRECTED, steps=1400, batch=64, rate=2e-3, seed=seed) for seed in SEEDS
    ]
    if only == "wide":
        return wide
    return [run for run in small if only in (None, run.setting.task)] + (wide if only is None else [])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--results", default=str(HERE / "grid.jsonl"), metavar="FILE")
    parser.add_argument("--plot", metavar="FILE")
    parser.add_argument("--only", metavar="TASK", help="one of the two tasks, or `wide`")
    options = parser.parse_args()
    torch.set_num_threads(1)
    wanted = grid(options.only)

    def watch(run: runs.Run, place: int) -> None:
        print(f"{place + 1}/{len(wanted)} {run.name} {run.setting.task} seed {run.seed}", flush=True)

    records = runs.execute(wanted, options.results, watch=watch)
    print(runs.table(records))
    if options.plot:
        runs.plot(records, options.plot)


if __name__ == "__main__":
    main()
