"""Diagnostics for a terminal and as JSON. Text from files is shown, never interpreted: control characters come out as `\ufffd`."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from .diagnostic import Diagnostic
from .source import Place, Source, Span

SCHEMA = 1
TAB = 4
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
_STYLES = {"error": "1;31", "warning": "1;33", "note": "1;32", "help": "1;36", "place": "1;34", "bold": "1"}


@dataclass(frozen=True)
class _Mark:
    """An underline on one line, in character offsets within that line."""

    start: int
    end: int
    text: str
    primary: bool


class _Paint:
    def __init__(self, color: bool):
        self.color = color

    def __call__(self, text: str, style: str) -> str:
        return f"\x1b[{_STYLES.get(style, '1;31')}m{text}\x1b[0m" if self.color and text.strip() else text


def render(diagnostics: Iterable[Diagnostic], color: bool = False, width: int = 120) -> str:
    """The text for a terminal, source lines cut to `width` columns around the cause; ends with a count and a newline."""
    listed = list(diagnostics)
    if not listed:
        return ""
    paint = _Paint(color)
    shown = [_one(d, paint, max(width, 40)) for d in listed]
    return "\n\n".join([*shown, paint(_count(listed), "bold")]) + "\n"


def to_dict(diagnostic: Diagnostic) -> dict[str, Any]:
    """Plain data: lines and columns count characters from 1, `start` and `end` from 0; `span` is None where no text is at fault."""
    return {
        "code": diagnostic.code,
        "severity": diagnostic.severity,
        "message": diagnostic.message,
        "span": _span_dict(diagnostic.span),
        "label": diagnostic.label,
        "labels": [{"span": _span_dict(label.span), "text": label.text} for label in diagnostic.labels],
        "notes": list(diagnostic.notes),
        "help": list(diagnostic.help),
    }


def to_json(diagnostics: Iterable[Diagnostic]) -> str:
    """One JSON document: `{"schema": 1, "diagnostics": [...]}`."""
    return json.dumps({"schema": SCHEMA, "diagnostics": [to_dict(d) for d in diagnostics]}, indent=2) + "\n"


def _span_dict(span: Span | Place | None) -> dict[str, Any] | None:
    if span is None:
        return None
    if isinstance(span, Place):
        return {"file": span.name, "line": span.line, "column": span.column}
    line, column = span.source.position(span.start)
    end_line, end_column = span.source.position(span.end)
    return {
        "file": span.source.name,
        "line": line,
        "column": column,
        "end_line": end_line,
        "end_column": end_column,
        "start": span.start,
        "end": span.end,
    }


def _count(diagnostics: Sequence[Diagnostic]) -> str:
    kinds = dict.fromkeys(d.severity for d in diagnostics)
    counts = [(sum(d.severity == kind for d in diagnostics), kind) for kind in kinds]
    return ", ".join(f"{n} {kind}{'s' * (n != 1)}" for n, kind in counts)


def _safe(text: str) -> str:
    return _UNSAFE.sub("\ufffd", text)


def _one(diagnostic: Diagnostic, paint: _Paint, width: int) -> str:
    severity = diagnostic.severity
    lines = [f"{paint(f'{severity}[{diagnostic.code}]', severity)}{paint(f': {_safe(diagnostic.message)}', 'bold')}"]
    sections = _sections(diagnostic)
    gutter = max((len(str(line)) for _, marks in sections for line in marks), default=1)
    blank = " " * gutter
    if isinstance(diagnostic.span, Place):
        lines.append(f"{blank} {paint('-->', 'place')} {_safe(str(diagnostic.span))}")
    for number, (source, marks) in enumerate(sections):
        lines += _section(source, marks, diagnostic, number == 0, gutter, paint, width)
    for kind, texts in (("note", diagnostic.notes), ("help", diagnostic.help)):
        for text in texts:
            head = f"{blank} {paint('=', 'place')} {paint(f'{kind}:', kind)} "
            lines.append(head + _safe(text).replace("\n", "\n" + " " * (gutter + 5 + len(kind))))
    return "\n".join(lines)


def _sections(diagnostic: Diagnostic) -> list[tuple[Source, dict[int, list[_Mark]]]]:
    """The marks of each line of each source, the source at fault first."""
    spans = [(label.span, label.text, False) for label in diagnostic.labels]
    if isinstance(diagnostic.span, Span):
        spans.insert(0, (diagnostic.span, diagnostic.label, True))
    sections: dict[int, tuple[Source, dict[int, list[_Mark]]]] = {}
    for span, text, primary in spans:
        source = span.source
        line, column = source.position(span.start)
        start = column - 1
        end = min(start + span.end - span.start, len(source.line(line).rstrip("\r")))
        _, marks = sections.setdefault(id(source), (source, {}))
        marks.setdefault(line, []).append(_Mark(start, max(end, start + 1), text, primary))
    return list(sections.values())


def _section(
    source: Source, marks: dict[int, list[_Mark]], diagnostic: Diagnostic, first: bool, gutter: int, paint: _Paint, width: int
) -> list[str]:
    blank, bar = " " * gutter, paint("|", "place")
    line, mark = next(((n, m) for n, ms in marks.items() for m in ms if m.primary), None) or next((n, ms[0]) for n, ms in marks.items())
    arrow = "-->" if first else ":::"
    out = [f"{blank} {paint(arrow, 'place')} {_safe(source.name)}:{line}:{mark.start + 1}", f"{blank} {bar}"]
    previous = None
    for number in sorted(marks):
        if previous is not None and number > previous + 1:
            out.append(paint("...", "place"))
        previous = number
        text, placed = _window(source.line(number).rstrip("\r"), marks[number], width - gutter - 3)
        out.append(f"{paint(str(number).rjust(gutter), 'place')} {bar} {text}".rstrip())
        out += [f"{blank} {bar} {under}" for under in _underlines(placed, diagnostic.severity, paint)]
    return out


def _window(line: str, marks: list[_Mark], room: int) -> tuple[str, list[_Mark]]:
    """The line as shown (tabs expanded, cut around its first mark) and the marks in columns of what is shown."""
    columns, shown = [0], []
    for character in line:
        cell = " " * (TAB - columns[-1] % TAB) if character == "\t" else _safe(character)
        shown.append(cell)
        columns.append(columns[-1] + (len(cell) if character == "\t" else _cells(cell)))
    column = lambda offset: columns[min(offset, len(line))] + max(0, offset - len(line))  # noqa: E731
    low, high, lead, tail = 0, len(shown), "", ""
    if columns[-1] > room:
        anchor = min((m for m in marks if m.primary), key=lambda m: m.start, default=marks[0])
        low = next((i for i in range(len(shown)) if columns[i] >= columns[min(anchor.start, len(line))] - room // 3), 0)
        lead = "..." if low else ""
        high = next((i for i in range(low, len(shown)) if columns[i + 1] - columns[low] > room - 6), len(shown))
        tail = "..." if high < len(shown) else ""
    left, right = columns[low] - len(lead), columns[high] + 1
    placed = []
    for mark in marks:
        start, end = column(mark.start), max(column(mark.end), column(mark.start) + 1)
        start, end = min(max(start, columns[low]), right), min(max(end, columns[low] + 1), right + 1)
        placed.append(_Mark(start - left, max(end, start + 1) - left, mark.text, mark.primary))
    return lead + "".join(shown[low:high]) + tail, placed


def _cells(character: str) -> int:
    if unicodedata.combining(character) or unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in ("W", "F") else 1


def _underlines(marks: list[_Mark], severity: str, paint: _Paint) -> list[str]:
    """Carets under the cause, dashes under other places; the rightmost label beside its mark, the others below theirs."""
    ordered = sorted(marks, key=lambda m: (m.start, m.primary))
    end = max(m.end for m in ordered)
    cells, styles = [" "] * end, [""] * end
    for mark in sorted(ordered, key=lambda m: m.primary):
        for at in range(mark.start, mark.end):
            cells[at], styles[at] = ("^", severity) if mark.primary else ("-", "place")
    row = "".join(paint(cell, style) for cell, style in _runs(cells, styles))
    last = max(ordered, key=lambda m: (m.end, m.start))
    style = lambda mark: severity if mark.primary else "place"  # noqa: E731
    beside = bool(last.text) and "\n" not in last.text
    lines = [f"{row} {paint(_safe(last.text), style(last))}" if beside else row]
    for mark in reversed(ordered):
        if mark.text and not (mark is last and beside):
            lines += [" " * mark.start + paint(_safe(part), style(mark)) for part in mark.text.split("\n")]
    return lines


def _runs(cells: list[str], styles: list[str]) -> list[tuple[str, str]]:
    runs: list[tuple[str, str]] = []
    for cell, style in zip(cells, styles):
        if runs and runs[-1][1] == style:
            runs[-1] = (runs[-1][0] + cell, style)
        else:
            runs.append((cell, style))
    return runs
