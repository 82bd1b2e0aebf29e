"""Experts of four kinds behind one router: does each token find the kind that it needs? (README.md says what is compared.)

    python examples/experts/experiment.py [--seeds 10] [--steps 1000] [--plot routing.svg]
"""

from __future__ import annotations

import argparse
import bisect
import json
import math
import multiprocessing
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

import graphir

PROGRAM = Path(__file__).with_name("experts.arch")
KINDS = ("dense", "lstm", "conv", "attention")
NOISE, BALANCE = 2.0, 0.1

MIXTURES: dict[str, dict[str, Any]] = {
    "noise and balance loss": {"noise": NOISE, "balance": BALANCE},
    "noise alone": {"noise": NOISE},
    "balance loss alone": {"balance": BALANCE},
    "neither": {},
    "untrained router": {"train_router": False},
}
"""Parameters of `Mixture` by label. The untrained router stays as initialised while experts, stitches and head are trained."""


def draw(count: int, length: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x: [count, length, 28]; which kind each token is of: [count, length]; and the answer to it, 0 or 1: [count, length].

    Every token carries, in this order: its kind (4, one-hot); four bits; a switch (-1, 1 or mostly 0); a wave (normal); a key (8,
    one-hot) with its value (-1 or 1), the same wherever the key stands in a sequence; the key asked for (8); and 1. Answers:

    dense: the product of the four bits. lstm: the last switch that was not 0, however long ago (one in ten is; the first token's always).
    conv: the alternating sum of the last eight waves. attention: the value of the key asked for, which an earlier token holds, or this one.
    """
    shape = (count, length)
    signs = torch.randint(2, (count, length, 6), generator=generator) * 2.0 - 1
    kind = torch.randint(4, shape, generator=generator)
    place = torch.arange(length)

    bits = signs[..., :4]
    thrown = (torch.rand(shape, generator=generator) < 0.1) | (place == 0)
    switch = signs[..., 4] * thrown
    wave = torch.randn(shape, generator=generator)
    key = torch.randint(8, shape, generator=generator)
    value = signs[:, :8, 5].gather(1, key)
    asked = key.gather(1, (torch.rand(shape, generator=generator) * (place + 1)).long())

    latest = (place * thrown).cummax(1).values
    windows = F.pad(wave, (7, 0)).unfold(1, 8, 1)
    alternating = torch.tensor([-1.0, 1.0] * 4)
    answers = (bits.prod(-1), switch.gather(1, latest), windows @ alternating, signs[:, :8, 5].gather(1, asked))
    target = (torch.stack(answers, -1).gather(-1, kind[..., None])[..., 0] > 0).float()

    parts = (F.one_hot(kind, 4), bits, switch[..., None], wave[..., None], F.one_hot(key, 8), value[..., None], F.one_hot(asked, 8))
    return torch.cat([*parts, torch.ones(count, length, 1)], -1), kind, target


def train(graph: graphir.Graph, seed: int, steps: int, batch: int, length: int, rate: float = 5e-3) -> torch.nn.Module:
    """Adam with one rise and fall of the rate; binary cross-entropy, plus the auxiliary losses that the program asks for."""
    net = graphir.compile(graph, seed=seed)
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(2 * seed)
    optimiser = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        x, _, target = draw(batch, length, generator)
        y, aux = net(x, aux=True)
        loss = F.binary_cross_entropy_with_logits(y[..., 0], target) + graphir.total_loss(aux)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return net.eval()


@torch.no_grad()
def score(net: torch.nn.Module, seed: int, length: int, held_out: int = 1000) -> dict[str, Any]:
    """Share of right answers, by kind too; of a mixture also routing[kind][expert], its accuracy, entropies of load and router in nats."""
    x, kind, target = draw(held_out, length, torch.Generator().manual_seed(2 * seed + 1))
    y, aux = net(x, aux=True)
    right = ((y[..., 0] > 0) == (target > 0)).float()
    found = {"answers": right.mean().item(), "by kind": [right[kind == k].mean().item() for k in range(4)]}
    if "filter.weights" not in aux:
        return found
    chosen = aux["filter.weights"].argmax(-1)
    load = aux["filter.load"]
    return found | {
        "routing": [(torch.bincount(chosen[kind == k], minlength=4) / (kind == k).sum()).tolist() for k in range(4)],
        "accuracy": (chosen == kind).float().mean().item(),
        "load entropy": -torch.special.xlogy(load, load).sum().item(),
        "router entropy": aux["filter.entropy"].item(),
    }


@cache
def equal_width(kind: str, parameters: int) -> int:
    """The smallest hidden width at which one expert alone has that many parameters."""

    def alone(hidden: int) -> int:
        return graphir.load(PROGRAM, "Alone", kind=kind, hidden=hidden).parameters

    return bisect.bisect_left(range(512), parameters, lo=1, key=alone)


def graphs() -> dict[str, graphir.Graph]:
    """Everything that is compared, by label: the mixtures, and each expert alone at equal parameters."""
    mixtures = {label: graphir.load(PROGRAM, "Mixture", **params) for label, params in MIXTURES.items()}
    parameters = mixtures["neither"].parameters
    alone = {f"{kind} alone": graphir.load(PROGRAM, "Alone", kind=kind, hidden=equal_width(kind, parameters)) for kind in KINDS}
    return mixtures | alone


def one_seed(job: tuple[int, int, int, int]) -> dict[str, dict[str, Any]]:
    """All comparisons with one seed, which sets weights and data; job: seed, steps, batch, length."""
    torch.set_num_threads(1)
    seed, steps, batch, length = job
    return {label: score(train(graph, seed, steps, batch, length), seed, length) for label, graph in graphs().items()}


Results = dict[str, list[dict[str, Any]]]


def experiment(seeds: Iterable[int], steps: int = 1000, batch: int = 32, length: int = 24, processes: int = 2) -> Results:
    """What `score` says, for each label and seed."""
    jobs = [(seed, steps, batch, length) for seed in seeds]
    if processes == 1:
        rows = [one_seed(job) for job in jobs]
    else:
        with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
            rows = list(pool.map(one_seed, jobs))
    return {label: [row[label] for row in rows] for label in rows[0]}


def spread(values: list[float]) -> str:
    mean = sum(values) / len(values)
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / len(values))
    return f"{mean:.3f} ± {deviation:.3f}"


def mean_of(rows: list[dict[str, Any]], key: str, kind: int) -> float:
    return sum(row[key][kind] for row in rows) / len(rows)


def table(results: Results) -> str:
    """Markdown: mean and standard deviation over the seeds."""
    columns = ("", "routing accuracy", "worst seed", "load entropy", "router entropy", "right answers", *KINDS)
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for label, rows in results.items():
        cells = [label, "", "", "", ""]
        if "accuracy" in rows[0]:
            accuracy, load, router = ([r[key] for r in rows] for key in ("accuracy", "load entropy", "router entropy"))
            cells[1:] = [spread(accuracy), f"{min(accuracy):.3f}", spread(load), spread(router)]
        cells += [spread([r["answers"] for r in rows]), *(f"{mean_of(rows, 'by kind', k):.3f}" for k in range(4))]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(results: Results, path: Path) -> None:
    """Where each kind's tokens go in each mixture, and the right answers of all; SVG or PNG. Needs matplotlib (`graphir[plot]`)."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams |= {"svg.hashsalt": "experts", "svg.fonttype": "none", "font.size": 9}
    from matplotlib import pyplot

    figure, grid = pyplot.subplots(2, 3, figsize=(12, 8), layout="constrained")
    axes = grid.flatten()
    for axis, label in zip(axes, MIXTURES):
        shares = torch.tensor([r["routing"] for r in results[label]]).mean(0).numpy()
        axis.imshow(shares, vmin=0, vmax=1, cmap="Blues")
        for k in range(4):
            for e in range(4):
                axis.text(e, k, f"{shares[k, e]:.2f}", ha="center", va="center", color="white" if shares[k, e] > 0.6 else "black")
        axis.set_title(f"{label}\nrouting accuracy {spread([r['accuracy'] for r in results[label]])}")
        axis.set_xticks(range(4), KINDS, rotation=30)
        axis.set_yticks(range(4), KINDS)
        axis.set_xlabel("goes to expert")
    for axis in grid[:, 0]:
        axis.set_ylabel("token of kind")
    last = axes[5]
    for row, (_label, rows) in enumerate(results.items()):
        last.plot([r["answers"] for r in rows], [row] * len(rows), "o", alpha=0.4, color="tab:blue")
        last.plot([sum(r["answers"] for r in rows) / len(rows)], [row], "|", color="black", markersize=16)
    last.set_yticks(range(len(results)), list(results))
    last.invert_yaxis()
    last.axvline(0.5, color="gray", linewidth=0.8, linestyle=":")
    last.set_xlim(0.45, 1.02)
    last.set_xlabel("held out: a dot a seed, a line for the mean")
    last.set_title("right answers at equal parameters")
    metadata = {"Date": None} if path.suffix == ".svg" else None
    figure.savefig(path, metadata=metadata)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every seed's figures too")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw them, .svg or .png")
    options = parser.parse_args()
    print("parameters:", ", ".join(f"{label} {graph.parameters:,}" for label, graph in graphs().items()))
    results = experiment(range(options.seeds), options.steps, processes=options.processes)
    print(table(results))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    if options.plot:
        plot(results, options.plot)


if __name__ == "__main__":
    main()
