"""Dense filters beside sparse ones and beside a loop over experts with masks, in one process, in turn.

    OMP_NUM_THREADS=1 python tests/bench/dispatch.py [--rounds 15] [--backward]

Prints, per setting, the time of the dense form and how many times as fast the others are (median of rounds, thread CPU time), and
what `auto` takes. The constants of the cost model in `backends/dispatch.py` come from here.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

import graphir

# tokens, width, hidden, experts, kept
SETTINGS = [
    (1, 256, 512, 8, 2), (32, 256, 512, 8, 2), (512, 256, 512, 8, 2), (4096, 64, 128, 8, 2), (4096, 64, 128, 32, 2), (1024, 128, 256, 8, 1),
    (64, 8, 8, 4, 2), (4096, 8, 8, 4, 1), (4096, 8, 8, 4, 2), (512, 64, 128, 4, 3), (4096, 64, 64, 2, 1),
]

SOURCE = """
model M(d = 8, hidden = 8, experts = 4, keep = 2)(x: float[B, T, d]) -> float[B, T, d] {
  return x -> SparseMoE(MLP(hidden), experts, keep)
}
"""


def masked_loop(net: torch.nn.Module, experts: int, keep: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """The loop that is written everywhere: for each expert, the tokens whose mask is set."""
    weights = dict(net.named_parameters())

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return torch.nn.functional.linear(x, weights[f"SparseMoE.moe.{name}.weight"], weights.get(f"SparseMoE.moe.{name}.bias"))

    def run(x: torch.Tensor) -> torch.Tensor:
        flat = x.flatten(0, 1)
        shares, chosen = torch.softmax(linear(flat, "router.linear"), -1).topk(keep)
        shares = shares / shares.sum(-1, keepdim=True)
        out = torch.zeros_like(flat)
        for expert in range(experts):
            mask = chosen == expert
            rows = mask.any(-1)
            if rows.any():
                y = linear(torch.nn.functional.gelu(linear(flat[rows], f"branches.{expert}.up")), f"branches.{expert}.down")
                out[rows] += y * (shares * mask).sum(-1)[rows].unsqueeze(-1)
        return out.view_as(x)

    return run


def timed(call: Callable[[], object], repeats: int) -> float:
    started = time.thread_time()
    for _ in range(repeats):
        call()
    return (time.thread_time() - started) / repeats


def measure(setting: tuple[int, ...], rounds: int, backward: bool) -> list[str]:
    tokens, d, hidden, experts, keep = setting
    graph = graphir.load(SOURCE, d=d, hidden=hidden, experts=experts, keep=keep)
    nets = {form: graphir.compile(graph, dispatch=form) for form in ("dense", "sorted", "auto")}
    x = torch.randn(1, tokens, d, requires_grad=backward)
    forms: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"dense": nets["dense"], "sorted": nets["sorted"]}
    forms["masks"] = masked_loop(nets["dense"], experts, keep)
    torch.testing.assert_close(forms["sorted"](x), forms["dense"](x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(forms["masks"](x), forms["dense"](x), rtol=1e-4, atol=1e-4)

    def step(form: Callable[[torch.Tensor], torch.Tensor]) -> None:
        y = form(x)
        if backward:
            y.sum().backward()

    times: dict[str, list[float]] = {name: [] for name in forms}
    with torch.set_grad_enabled(backward):
        repeats = max(1, int(2e-2 / max(timed(lambda: step(forms["dense"]), 2), 1e-5)))
        for _ in range(rounds):
            for name, form in forms.items():
                times[name].append(timed(lambda form=form: step(form), repeats))  # type: ignore[misc]
    middle = {name: statistics.median(t) for name, t in times.items()}
    taken = "sorted" if nets["auto"].graphir.ops["collect"] else "dense"
    ratios = [f"{middle['dense'] / middle[name]:6.2f}" for name in ("sorted", "masks")]
    return [f"{tokens:5d} {d:4d} {hidden:4d} {experts:3d} {keep:2d}", f"{middle['dense'] * 1e6:9.0f}", *ratios, f"{taken:>6s}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--backward", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("tokens  d hidden n k  dense us  sorted  masks   auto")
    for setting in SETTINGS:
        print("  ".join(measure(setting, options.rounds, options.backward)))


if __name__ == "__main__":
    main()
