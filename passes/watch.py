"""Watchers of a pipeline: timing, printing, differences, verification and statistics. None of this lives in the passes."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from difflib import unified_diff
from typing import TextIO

from ..ir.graph import Graph
from ..lang.diagnostic import GraphirError
from .engine import Event


@dataclass
class Timing:
    """Seconds per pass, for `--time-passes`; `str()` is the table."""

    rows: list[tuple[str, float, int, int, bool]] = field(default_factory=list)

    def __call__(self, event: Event) -> None:
        self.rows.append((str(event.step), event.seconds, len(event.before.nodes), len(event.after.nodes), event.changed))

    def __str__(self) -> str:
        total = sum(row[1] for row in self.rows)
        width = max((len(row[0]) for row in self.rows), default=4)
        lines = [f"{'pass':<{width}}  {'ms':>9}  {'share':>5}  {'nodes':>15}"]
        for name, seconds, before, after, changed in self.rows:
            nodes = f"{before} -> {after}" if changed else f"{before} unchanged"
            lines.append(f"{name:<{width}}  {seconds * 1e3:9.3f}  {seconds / total if total else 0:5.0%}  {nodes:>15}")
        return "\n".join([*lines, f"{'total':<{width}}  {total * 1e3:9.3f}"])


@dataclass
class PrintAfter:
    """Dumps after each pass, or after the named ones only, or only where something changed."""

    names: Collection[str] | None = None
    changed_only: bool = False
    stream: TextIO | None = None

    def __call__(self, event: Event) -> None:
        if self.names is not None and event.step.of.name not in self.names:
            return
        if self.changed_only and not event.changed:
            return
        print(f"# after {event.step}\n{event.after}", file=self.stream or sys.stderr)


@dataclass
class Diff:
    """What each pass changed, as a unified difference of dumps."""

    names: Collection[str] | None = None
    context: int = 1
    stream: TextIO | None = None

    def __call__(self, event: Event) -> None:
        if self.names is not None and event.step.of.name not in self.names:
            return
        text = difference(event.before, event.after, str(event.step), self.context) if event.changed else ""
        print(text or f"# {event.step}: no change", file=self.stream or sys.stderr)


def difference(before: Graph, after: Graph, name: str = "pass", context: int = 1) -> str:
    """The unified difference of two graphs' dumps; empty where they print alike."""
    old, new = str(before).splitlines(), str(after).splitlines()
    return "\n".join(unified_diff(old, new, f"before {name}", f"after {name}", lineterm="", n=context))


class BrokenGraph(RuntimeError):
    """A pass made a graph that the verifier refuses: a fault of ours, whatever the program."""


class Verify:
    """Checks the graph after each pass that changed it, for `--verify-each`. Raises BrokenGraph."""

    def __call__(self, event: Event) -> None:
        from ..bricks import catalogue  # noqa: F401
        from ..bricks.declare import REGISTRY
        from ..ir.verify import verify

        if not event.changed:
            return
        try:
            verify(event.after, REGISTRY)
        except GraphirError as error:
            raise BrokenGraph(f"the graph after `{event.step}` is not valid\n{error}") from error


@dataclass
class Statistics:
    """How often each rule fired, the figures that passes report, and (where asked for) why rules did not fire."""

    fired: dict[str, Counter[str]] = field(default_factory=dict)
    figures: dict[str, dict[str, object]] = field(default_factory=dict)
    refusals: list[str] = field(default_factory=list)

    def __call__(self, event: Event) -> None:
        name = f"{event.index + 1}. {event.step}"
        self.fired[name] = +event.report.fired
        self.figures[name] = dict(event.report.figures)
        self.refusals.extend(map(str, event.report.refusals))

    def __str__(self) -> str:
        lines = []
        for name, fired in self.fired.items():
            lines.append(name)
            lines += [f"  {count:6} {rule.replace('_', ' ')}" for rule, count in sorted(fired.items(), key=lambda kv: (-kv[1], kv[0]))]
            lines += [f"  {key}: {value:,}" if isinstance(value, int) else f"  {key}: {value}" for key, value in self.figures[name].items()]
        return "\n".join(lines)
