"""Runs and their results: one JSON line each in a file that can be interrupted at any time and taken up again, as a table, as a plot."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from ..ir.graph import Graph
from ..lang.diagnostic import Diagnostic, EnvironmentProblem, GraphirError
from . import tasks, train

Record = Mapping[str, Any]
REMEMBERED = 4


@dataclass(frozen=True, slots=True)
class Run:
    """A model under a name, a task at a difficulty, and how it is trained."""

    name: str
    graph: Graph
    setting: tasks.Setting
    protocol: train.Protocol = train.CORRECTED
    steps: int | None = None
    batch: int = 128
    rate: float = 5e-4
    decay: float = 0.0
    seed: int = 0

    @property
    def description(self) -> dict[str, Any]:
        """All that the result depends on; the model by its canonical key."""
        return {
            "model": self.name,
            "key": self.graph.key,
            "task": asdict(self.setting),
            "protocol": self.protocol.name,
            "steps": self.steps,
            "batch": self.batch,
            "rate": self.rate,
            "decay": self.decay,
            "seed": self.seed,
        }

    @property
    def id(self) -> str:
        """Runs with the same description have the same id."""
        return hashlib.sha256(json.dumps(self.description, sort_keys=True).encode()).hexdigest()[:16]


def read(path: str | os.PathLike[str]) -> dict[str, Record]:
    """The results in a file by id; none if there is no file. A last line that was cut off while it was written does not count."""
    if not Path(path).exists():
        return {}
    text = Path(path).read_text("utf-8")
    found = {}
    for number, line in enumerate(text.split("\n")[:-1], 1):
        try:
            record = json.loads(line)
            found[record["id"]] = record
        except (ValueError, TypeError, KeyError):
            raise GraphirError(
                Diagnostic("E0910", f"line {number} of {os.fspath(path)} is no result of `graphir mad`", help=("name another file",))
            ) from None
    return found


def append(path: str | os.PathLike[str], record: Record) -> None:
    """Add a result; what a stop in the middle of a line left behind goes first."""
    with open(path, "a+b") as file:
        file.seek(0)
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)
        file.write(json.dumps(record, sort_keys=True).encode() + b"\n")


def execute(runs: Sequence[Run], path: str | os.PathLike[str] | None = None, target: str = "cpu", watch: Any = None) -> list[Record]:
    """The results of all runs, those in the file read and the others made and added to it.

    `watch(run, place)` gives the progress of a run that is about to be made, or None (see `train.fit`).
    """
    known = read(path) if path is not None else {}
    data: dict[tasks.Setting, tasks.Data] = {}
    results = []
    for place, run in enumerate(runs):
        if run.id not in known:
            if run.setting not in data:
                if len(data) == REMEMBERED:
                    data.clear()
                data[run.setting] = tasks.make(run.setting)
            progress = watch(run, place) if watch is not None else None
            score = train.fit(
                run.graph,
                data[run.setting],
                run.protocol,
                steps=run.steps,
                batch=run.batch,
                rate=run.rate,
                decay=run.decay,
                seed=run.seed,
                target=target,
                progress=progress,
            )
            known[run.id] = {"id": run.id, **run.description, "score": asdict(score)}
            if path is not None:
                append(path, known[run.id])
        results.append(known[run.id])
    return results


def groups(records: Iterable[Record]) -> dict[tuple[str, str], list[float]]:
    """Accuracies by model and task, in the order in which they came."""
    found: dict[tuple[str, str], list[float]] = {}
    for record in records:
        found.setdefault((record["model"], record["task"]["task"]), []).append(record["score"]["accuracy"])
    return found


def table(records: Iterable[Record]) -> str:
    """A Markdown table: models down, tasks across; the mean accuracy in percent over runs, and the lowest and highest of several."""
    found = groups(records)
    models, columns = list(dict.fromkeys(m for m, _ in found)), list(dict.fromkeys(t for _, t in found))
    rows = [["model", *columns], *([m, *(_cell(found.get((m, t), [])) for t in columns)] for m in models)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def _cell(values: list[float]) -> str:
    if not values:
        return "-"
    spread = f" ({100 * min(values):.1f} to {100 * max(values):.1f})" if len(values) > 1 else ""
    return f"{100 * mean(values):.1f}{spread}"


def plot(records: Iterable[Record], path: str | os.PathLike[str]) -> None:
    """Bars of the mean accuracy, a group for each task, with a dot for each run; the format follows the file's ending."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise EnvironmentProblem("plots need matplotlib", "pip install 'graphir[plot]'") from None
    found = groups(records)
    models, columns = list(dict.fromkeys(m for m, _ in found)), list(dict.fromkeys(t for _, t in found))
    figure = Figure(figsize=(2 + 0.5 * len(models) * len(columns), 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    width = 0.8 / len(models)
    for i, model in enumerate(models):
        values = [found.get((model, task), []) for task in columns]
        places = [j + (i - (len(models) - 1) / 2) * width for j in range(len(columns))]
        axes.bar(places, [mean(v) if v else 0 for v in values], width, label=model)
        axes.plot([p for p, v in zip(places, values) for _ in v], [x for v in values for x in v], "k.", markersize=4)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_ylim(0, 1.02)
    axes.set_ylabel("accuracy")
    axes.legend(fontsize="small")
    if Path(path).suffix.lstrip(".").lower() not in figure.canvas.get_supported_filetypes():
        raise GraphirError(Diagnostic("E0910", f"{os.fspath(path)}: a plot ends in .png, .svg or .pdf"))
    figure.savefig(path)
