"""The words of a program, as they pass from the scanner to the grammar."""

from __future__ import annotations

from .source import Source, Span

ITEMS = ("import", "param", "let", "block", "model")
RESERVED = frozenset(
    "import as param let block model shared return require if else for in and or not graft at on true false none".split()
)
CLOSER = {"(": ")", "[": "]", "{": "}"}


class Word(str):
    """A word of the text: `kind` is name, int, float, string or mark (an operator, a bracket, a reserved word); `type` is Lark's."""

    __slots__ = ("end", "kind", "source", "start", "type")
    kind: str
    type: str
    source: Source
    start: int
    end: int
    # Lark copies these to the token that it makes for the end.
    start_pos = end_pos = line = column = end_line = end_column = None

    @property
    def span(self) -> Span:
        return Span(self.source, self.start, self.end)

    @property
    def first_on_line(self) -> bool:
        line = self.source.text.rfind("\n", 0, self.start) + 1
        return not self.source.text[line : self.start].strip(" \t")
