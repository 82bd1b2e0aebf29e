"""Ratios between ways to do one thing: rounds that alternate in one process, on the thread's own processor time, medians of ratios.

A machine that others use gives no times that one could compare with yesterday's; ratios of neighbours in time hold to about a tenth.
"""

from __future__ import annotations

import argparse
import gc
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"


def arguments(description: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="fewer rounds and smaller sizes: does it run, not how fast")
    return parser.parse_args()


def seconds(work: Callable[[], object], least: float) -> float:
    """Seconds of processor time per call: the median of calls that take `least` together. The collector rests, as under `timeit`."""
    taken: list[float] = []
    gc.collect()
    gc.disable()
    try:
        while sum(taken) < least:
            start = time.thread_time()
            work()
            taken.append(time.thread_time() - start)
    finally:
        gc.enable()
    return statistics.median(taken)


def compare(title: str, ways: Mapping[str, Callable[[], object]], rounds: int = 7, least: float = 0.05, show: bool = True) -> dict[str, float]:
    """How many times faster than the first way each is: the median over rounds of the ratio within a round. Prints a table."""
    names = list(ways)
    for work in ways.values():
        work()
    taken: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        for name in names if turn % 2 == 0 else reversed(names):
            taken[name].append(seconds(ways[name], least))
    base, out = taken[names[0]], {}
    if show:
        print(f"\n{title}  ({rounds} rounds)")
    for name in names:
        ratios = sorted([a / b for a, b in zip(base, taken[name])])
        out[name] = statistics.median(ratios)
        if show:
            spread = f"[{ratios[0]:.2f} .. {ratios[-1]:.2f}]"
            print(f"  {name:44s} {statistics.median(taken[name]) * 1e3:10.3f} ms   {out[name]:8.2f} x  {spread}", flush=True)
    return out


def process(command: list[str], cwd: str | None = None) -> tuple[float, float, int, subprocess.CompletedProcess[str]]:
    """Run a command: wall-clock seconds, processor seconds, peak KiB of memory (of the largest process under it), and what it said."""
    watched = [sys.executable, "-S", "-c", _WATCH, *command]
    started = time.perf_counter()
    done = subprocess.run(watched, capture_output=True, text=True, check=False, cwd=cwd)
    wall = time.perf_counter() - started
    *said, figures = done.stderr.rstrip("\n").split("\n")
    cpu, peak = figures.split()
    done.stderr = "\n".join(said)
    return wall, float(cpu), int(peak), done


_WATCH = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
used = resource.getrusage(resource.RUSAGE_CHILDREN)
sys.stderr.write(f"\\n{used.ru_utime + used.ru_stime} {used.ru_maxrss}")
sys.exit(code)
"""


def peak_megabytes() -> float:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def line(what: str, found: str, goal: str, ok: bool) -> None:
    print(f"  {what:52s} {found:>24s}   goal {goal:18s} {'reached' if ok else 'MISSED'}", flush=True)
