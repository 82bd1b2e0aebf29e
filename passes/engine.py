"""Running a pipeline: each pass in turn, watchers told after each, and a reproducer written when a pass breaks.

A pass whose result is the same object did nothing. A fault of the program is a GraphirError and goes through untouched;
any other exception is a fault of ours, becomes an `InternalError`, and leaves a file from which it replays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from ..ir.collector import collector_paused
from ..ir.graph import Graph
from ..lang.diagnostic import EnvironmentProblem, GraphirError
from .pipeline import Pipeline, Step, parse
from .report import Report

if TYPE_CHECKING:
    from .recipes import Recipe


@dataclass(frozen=True)
class Event:
    """What a watcher is told after a pass: the step, its place, the graphs, wall-clock seconds, and the pass's report."""

    index: int
    step: Step
    before: Graph
    after: Graph
    seconds: float
    report: Report

    @property
    def changed(self) -> bool:
        return self.after is not self.before


Watcher = Callable[[Event], None]


def run_pipeline(
    graph: Graph,
    pipeline: Pipeline | str,
    watchers: Sequence[Watcher] = (),
    *,
    recipes: list[Recipe] | None = None,
    explain: Iterable[str] = (),
    crash_folder: Path | None = Path(),
) -> Graph:
    """The graph after the passes; the same object where none had anything to do.

    `recipes`: the list that weight changes are added to, in order, for `recipes.apply`; without it passes that change weights
    raise E0904. `explain`: rules whose refusals the reports collect (`*`: all). `crash_folder`: where a reproducer goes, None for nowhere.
    Raises GraphirError for what is the program's fault, InternalError for what is ours.
    """
    pipeline = _parsed(pipeline) if isinstance(pipeline, str) else pipeline
    with collector_paused():
        return _run(graph, pipeline, watchers, recipes, frozenset(explain), crash_folder)


_parsed = lru_cache(maxsize=64)(parse)


def _run(
    graph: Graph,
    pipeline: Pipeline,
    watchers: Sequence[Watcher],
    recipes: list[Recipe] | None,
    explain: frozenset[str],
    crash_folder: Path | None,
) -> Graph:
    for index, step in enumerate(pipeline.steps):
        report = Report(explain, recipes)
        started = perf_counter()
        try:
            after = step(graph, report)
            event = Event(index, step, graph, after, perf_counter() - started, report)
            for watch in watchers:
                watch(event)
        except (GraphirError, EnvironmentProblem, OSError):
            raise
        except Exception as error:
            from .crash import internal_error

            raise internal_error(error, graph, Pipeline(pipeline.steps[index:]), step.of.name, crash_folder) from error
        graph = after
    return graph
