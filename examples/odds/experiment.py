"""The odds and filter experiments, with a gate that is really trained (examples/odds/README.md says what is compared).

    python examples/odds/experiment.py [--seeds 40] [--steps 2000]

Experts are pre-trained one sample at a time and frozen; then the gate alone follows the gradient of (1 - y0)^2 / 2. All seeds run at
once: the compiled module is an ordinary `torch.nn.Module`, so `torch.func` stacks its weights and maps over them.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.func import functional_call, grad, vmap

import graphir

PROGRAM = Path(__file__).with_name("odds.arch")


@dataclass(frozen=True)
class Setting:
    """One experiment: hidden widths of the two experts (None: no stitch), and how inputs are drawn (low, high bounds)."""

    name: str
    width: int
    hidden: tuple[int | None, int | None]
    pretrain_high: tuple[float, float]
    pretrain_low: tuple[float, float]
    gate_high: tuple[float, float]
    gate_low: tuple[float, float]
    others: tuple[float, float]
    published: str


SETTINGS = (
    Setting(
        "odds",
        4,
        (3, 5),
        (0.8, 1.0),
        (0.0, 0.2),
        (0.9, 0.9),
        (0.1, 0.1),
        (0.0, 1.0),
        ".878 / .919 (outputs of the head, gate never updated)",
    ),
    Setting(
        "filter",
        8,
        (None, None),
        (0.7, 1.0),
        (0.0, 0.3),
        (0.7, 1.0),
        (0.0, 0.3),
        (0.0, 0.5),
        ".881 / .902 (outputs of the head, gate never updated)",
    ),
)


def uniform(shape: tuple[int, ...], bounds: tuple[float, float], generator: torch.Generator) -> torch.Tensor:
    return bounds[0] + (bounds[1] - bounds[0]) * torch.rand(shape, generator=generator)


def draw(
    seed: int, count: int, others: tuple[float, float], high: tuple[float, float], low: tuple[float, float], alternate: bool, salt: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """x: [count, 8] and whether its first input is high: [count]."""
    generator = torch.Generator().manual_seed(1_000_003 * salt + seed)
    x = uniform((count, 8), others, generator)
    is_high = torch.arange(count) % 2 == 0 if alternate else torch.rand(count, generator=generator) < 0.5
    x[:, 0] = torch.where(is_high, uniform((count,), high, generator), uniform((count,), low, generator))
    return x, is_high


def stacked(graph: graphir.Graph, seeds: list[int]) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """A module, and the initial weights of every seed stacked: name -> [seeds, ...]."""
    nets = [graphir.compile(graph, seed=seed) for seed in seeds]
    names = list(nets[0].state_dict())
    return nets[0], {name: torch.stack([n.state_dict()[name] for n in nets]) for name in names}


def descend(
    module: torch.nn.Module, weights: dict[str, torch.Tensor], trained: list[str], x: torch.Tensor, target: torch.Tensor, rate: float
) -> dict[str, torch.Tensor]:
    """SGD with one sample a step on (target - y0)^2 / 2. x: [seeds, steps, 8], target: [seeds, steps]."""
    frozen = {n: w for n, w in weights.items() if n not in trained}
    moving = {n: weights[n].clone() for n in trained}

    def loss(moving: dict[str, torch.Tensor], frozen: dict[str, torch.Tensor], x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        y = functional_call(module, {**moving, **frozen}, (x[None],))
        return (target - y[0, 0]) ** 2 / 2

    gradient = vmap(grad(loss))
    for step in range(x.shape[1]):
        slope = gradient(moving, frozen, x[:, step], target[:, step])
        for name in moving:
            moving[name] -= rate * slope[name]
    return {**weights, **moving}


def pretrain(setting: Setting, expert: int, seeds: list[int], epochs: int, samples: int) -> dict[str, torch.Tensor]:
    """One expert of every seed, trained by itself: output 0 is 1 on its kind of input and 0 on the other."""
    module, weights = stacked(
        graphir.load(PROGRAM, "Alone", width=setting.width, hidden=setting.hidden[expert]), [2 * s + expert for s in seeds]
    )
    drawn = [draw(s, samples, (0.0, 1.0), setting.pretrain_high, setting.pretrain_low, False, 1) for s in seeds]
    x = torch.stack([d[0] for d in drawn]).repeat(1, epochs, 1)
    high = torch.stack([d[1] for d in drawn]).repeat(1, epochs)
    return descend(module, weights, list(weights), x, (high if expert == 0 else ~high).float(), 0.1)


def score(
    module: torch.nn.Module, weights: dict[str, torch.Tensor], x: torch.Tensor, high: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Routing accuracy and mean weight on the right expert, per seed."""

    def routing(weights: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return functional_call(module, weights, (x,), {"aux": True})[1]["filter.weights"]

    shares = vmap(routing)(weights, x)
    right = torch.where(high, shares[..., 0], shares[..., 1])
    return (right > 0.5).float().mean(1), right.mean(1)


def experiment(
    setting: Setting, seeds: list[int], steps: int, epochs: int = 10, samples: int = 2000, held_out: int = 2000
) -> dict[str, dict[str, float]]:
    """Accuracy and right-expert weight of the untrained and the trained gate: mean, deviation and worst seed."""
    graph = graphir.load(PROGRAM, "Odds", width=setting.width, high=setting.hidden[0], low=setting.hidden[1])
    module, weights = stacked(graph, seeds)
    for index, branch in enumerate(("high", "low")):
        for name, tensor in pretrain(setting, index, seeds, epochs, samples).items():
            weights[name.replace("expert.", f"filter.{branch}.", 1)] = tensor
    drawn = [draw(s, steps, setting.others, setting.gate_high, setting.gate_low, True, 2) for s in seeds]
    test = [draw(s, held_out, setting.others, (0.7, 1.0), (0.0, 0.3), False, 3) for s in seeds]
    x, high = torch.stack([t[0] for t in test]), torch.stack([t[1] for t in test])
    gate = [n for n in weights if ".router." in n]
    trained = descend(module, weights, gate, torch.stack([d[0] for d in drawn]), torch.ones(len(seeds), steps), 0.05)
    assert all(torch.equal(trained[n], weights[n]) for n in weights if n not in gate)
    rows = {}
    for label, current in (("untrained gate", weights), ("trained gate", trained)):
        for figure, values in zip(("accuracy", "right weight"), score(module, current, x, high)):
            rows[f"{label}: {figure}"] = {
                "mean": values.mean().item(),
                "deviation": values.std(correction=0).item(),
                "worst": values.min().item(),
            }
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=40)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--json", metavar="FILE", help="write the figures as JSON too")
    options = parser.parse_args()
    results = {}
    for setting in SETTINGS:
        results[setting.name] = experiment(setting, list(range(options.seeds)), options.steps)
        print(f"\n{setting.name}: {options.seeds} seeds, {options.steps} gate steps; published {setting.published}")
        for label, row in results[setting.name].items():
            print(f"  {label:<30} {row['mean']:.4f} +- {row['deviation']:.4f}   worst seed {row['worst']:.4f}")
    four = graphir.compile(graphir.load(PROGRAM, "Four"), seed=0)
    print("\nfour experts [4, 12, 6, 20] stitched to 8, untrained:", *(f"{v:.4f}" for v in four(torch.rand(3, 16)).flatten().tolist()))
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
