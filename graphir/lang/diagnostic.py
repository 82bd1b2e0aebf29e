"""What a user is told: one value for terminals, JSON, editors and Python. Rendering lives in `render.py`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches

from .source import Place, Span


@dataclass(frozen=True, slots=True)
class Label:
    """Another place that matters, with what to know about it."""

    span: Span
    text: str


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One finding. `code` is stable (`E0203`); `span` is the cause, `None` where no text is at fault (a weight file, say)."""

    code: str
    message: str
    span: Span | Place | None = None
    label: str = ""
    labels: tuple[Label, ...] = ()
    notes: tuple[str, ...] = ()
    help: tuple[str, ...] = ()
    severity: str = "error"

    def __str__(self) -> str:
        place = f"{self.span}: " if self.span else ""
        return f"{place}{self.severity}[{self.code}]: {self.message}"


class GraphirError(Exception):
    """A user's mistake: one or more diagnostics. Everything that graphir raises for bad input is one of these."""

    def __init__(self, diagnostics: Diagnostic | Iterable[Diagnostic]):
        self.diagnostics = (diagnostics,) if isinstance(diagnostics, Diagnostic) else tuple(diagnostics)
        super().__init__("\n".join(map(str, self.diagnostics)))


class EnvironmentProblem(Exception):
    """Something the machine lacks (a GPU, an extra): exit code 3. `help` is the line to type."""

    def __init__(self, message: str, help: str = ""):
        self.message, self.help = message, help
        super().__init__(f"{message} ({help})" if help else message)


def nearest(name: str, known: Iterable[str]) -> tuple[str, ...]:
    """Help lines that suggest what a misspelt name may have meant."""
    known = list(dict.fromkeys(known))
    close = get_close_matches(name, known, n=3, cutoff=0.6)
    if not close:
        folded = {k.lower().replace("_", ""): k for k in known}
        hit = folded.get(name.lower().replace("_", ""))
        close = [hit] if hit else []
    return (f"did you mean {' or '.join(f'`{c}`' for c in close)}?",) if close else ()
