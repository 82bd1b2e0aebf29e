"""The things that a picture is made of, with their texts and sizes. Text is measured with the widths of Helvetica."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from . import format as f
from .shared import Mark

TITLE, NOTE, LABEL = 11.0, 9.0, 8.0
PADDING = 9.0
_WIDTHS = {
    222: "ijl", 278: " !,./:;I[]\\ft·", 333: "()-`r", 389: "*", 500: "Jckvsxyz", 556: "abdeghnopquL0123456789#$?_", 667: "&ABEKPSVXY",
    722: "CDHNRUw", 778: "GOQ", 833: "Mm", 889: "%", 944: "W",
}
_WIDTH = {letter: width for width, letters in _WIDTHS.items() for letter in letters}


def measure(text: str, size: float, bold: bool = False) -> float:
    """Points that a text takes in Helvetica; letters outside its table are taken as wide."""
    units = sum(_WIDTH.get(c, 584 if c < "\u2e80" else 1000) for c in text)
    return units * size * (1.08 if bold else 1.0) / 1000


@dataclass(eq=False)
class Frame:
    """What boxes and clusters have in common: an id, words, and where it stands."""

    key: str
    ident: str
    cluster: Cluster | None
    kind: str
    title: str
    name: str = ""
    note: str = ""
    count: int = 1
    backend: str = ""
    marks: tuple[Mark, ...] = ()
    tooltip: str = ""

    def words(self) -> Iterator[tuple[str, str, float]]:
        """The pieces of the first line: class, text, width."""
        yield "t", self.title, measure(self.title, TITLE, True)
        if self.name and not any(re.fullmatch(rf"{re.escape(mark.name)}(_\d+)?", self.name) for mark in self.marks):
            yield "m", self.name, measure(self.name, TITLE)
        for mark in self.marks[:3]:
            yield "mark", mark.name, 10 + measure(f.clip(mark.name, 20), NOTE)
        if self.backend:
            yield "tag", self.backend, 8 + measure(self.backend, LABEL)
        if self.count > 1:
            yield "count", f"×{self.count}", measure(f"×{self.count}", TITLE, True)

    def line(self) -> float:
        """The width of the first line."""
        widths = [width for _, _, width in self.words()]
        return sum(widths) + 5 * (len(widths) - 1)


@dataclass(eq=False)
class Cluster(Frame):
    """An open scope, or a repeated stretch of siblings."""


@dataclass(eq=False)
class Box(Frame):
    """A node or a closed scope. `shape` is one of rect, pill, circle, point, hexagon, stitch."""

    shape: str = "rect"
    width: float = 0.0
    height: float = 0.0

    def fit(self) -> Box:
        """The box, as large as its words."""
        if self.shape == "point":
            self.width = self.height = 7
        elif self.shape == "circle":
            self.width = self.height = max(18.0, 8 + measure(self.title, TITLE))
        else:
            extra = {"hexagon": 14, "stitch": 8, "pill": 6}.get(self.shape, 0)
            self.width = max(self.line(), measure(self.note, NOTE)) * 1.04 + 2 * PADDING + extra
            self.height = 32.0 if self.note else 21.0
        return self


@dataclass(frozen=True, eq=False, slots=True)
class Edge:
    key: str
    ident: str
    source: Box
    target: Box
    label: str
    kind: str
    tooltip: str
    weight: int


@dataclass
class Picture:
    """All that is drawn."""

    title: str
    subtitle: str
    boxes: list[Box] = field(default_factory=list)
    clusters: list[Cluster] = field(default_factory=list)
    edges: list[Edge] = field(default_factory=list)
    marks: list[str] = field(default_factory=list)
