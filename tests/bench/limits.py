"""How long commands take, process start included: help, checking, and refusing what would expand without measure.

    python tests/bench/limits.py [--quick]
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from harness import arguments, line, process

from bombs import BOMBS

GRAPHIR = [sys.executable, "-m", "graphir.cli.main"]

BLOCK = """
# Mixer {i}: a gated unit beside a plain one.
block Part{i}(hidden = 2 * d, rate = 0.{i:02d})(x: [B, T, d]) -> [B, T, d] {{
  a = x -> linear(hidden, bias = false) as up -> silu
  b = x -> linear(hidden, bias = false) as gate
  h = (a * b) -> linear(d) as down
  g = x -> fork {{ near: rmsnorm -> linear(d)  far: linear(d) -> gelu }} -> add
  return rate * h + g
}}
"""


def program(parts: int) -> str:
    stack = ", ".join(f"residual(Part{i})" for i in range(parts))
    return "".join(BLOCK.format(i=i) for i in range(parts)) + (
        f"model Long(d = 64)(x: float[B, T, d]) -> float[B, T, d] {{\n  return x -> [{stack}]\n}}\n"
    )


def median(command: list[str], rounds: int) -> tuple[float, float, float, subprocess.CompletedProcess[str]]:
    """Medians of wall-clock and processor seconds, peak memory in megabytes, and the last run."""
    runs = [process(command) for _ in range(rounds)]
    wall, cpu = (statistics.median([run[i] for run in runs]) for i in (0, 1))
    return wall, cpu, max(run[2] for run in runs) / 1024, runs[-1][3]


def main() -> None:
    options = arguments(__doc__)
    rounds = 1 if options.quick else 7
    with tempfile.TemporaryDirectory() as place:
        commands(Path(place), rounds)
        refusals(Path(place), 1 if options.quick else 3, options.quick)


def commands(folder: Path, rounds: int) -> None:
    path = folder / "long.arch"
    path.write_text(program(34), "utf-8")
    lines = len(path.read_text("utf-8").splitlines())
    empty = median([sys.executable, "-c", "pass"], rounds)
    print(f"\nprocess starts ({rounds} rounds; wall-clock and processor time; beside `python -c pass`: {empty[0]:.3f} s, {empty[1]:.3f} s)")
    for what, command, goal in (
        ("graphir --help", ["--help"], 0.15), (f"graphir check, {lines} lines", ["check", str(path)], 0.5),
    ):
        wall, cpu, peak, done = median([*GRAPHIR, *command], rounds)
        assert done.returncode == 0, done.stderr
        line(what, f"{wall:.3f} s, cpu {cpu:.3f} s, {peak:.0f} MB", f"under {goal} s", cpu < goal)
    code = "import sys; from graphir.cli.main import run; run(['--help']); sys.exit('torch' in sys.modules)"
    alone = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
    line("graphir --help imports torch", "no" if alone else "yes", "no", alone)


def refusals(folder: Path, rounds: int, quick: bool) -> None:
    print(f"\nrefusals ({rounds} rounds): wall-clock and processor time with the start of the process, peak memory")
    slow = []
    for at, (name, (files, code)) in enumerate(list(BOMBS.items())[: 4 if quick else None]):
        place = folder / str(at)
        place.mkdir()
        for file, content in files.items():
            (place / file).write_bytes(content if isinstance(content, bytes) else content.encode())
        wall, cpu, peak, done = median([*GRAPHIR, "check", str(place / "main.arch")], rounds)
        assert done.returncode == 1, (name, done.stderr)
        assert code in done.stderr, (name, done.stderr)
        good = cpu < 0.5 and peak < 150
        slow += [] if good else [name]
        line(name, f"{wall:.2f} s, cpu {cpu:.2f} s, {peak:.0f} MB", "0.5 s, 150 MB", good)
    print(f"  {len(slow)} over the goal" + (f": {', '.join(slow)}" if slow else ""))


if __name__ == "__main__":
    main()
