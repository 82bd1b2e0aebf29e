"""A picture as DOT, built with the `graphviz` package: sizes are fixed here, so every engine lays out the same boxes."""

from __future__ import annotations

from collections.abc import Iterable

import graphviz

from ..ir.graph import Graph
from .boxes import LABEL, NOTE, TITLE, Box, Cluster, Picture, measure
from .format import clean
from .picture import picture

FONT = "Helvetica"
HEAD = 13.0
_SHAPES = {"rect": "box", "pill": "box", "stitch": "box", "circle": "circle", "point": "circle", "hexagon": "hexagon"}
MANY = 300


def dot(graph: Graph, depth: int | str | None = None, fold: bool = True, title: str | None = None) -> str:
    """DOT source of a graph's picture; see `graphir.view.svg.svg` for the options."""
    return source(picture(graph, depth, fold, title))


def source(drawn: Picture) -> str:
    """DOT source of a picture."""
    labelled = any(edge.label for edge in drawn.edges)  # a label takes a rank of its own
    out = graphviz.Digraph(
        graph_attr={
            "bgcolor": "transparent", "rankdir": "TB", "nodesep": "0.22", "ranksep": "0.14" if labelled else "0.24", "pad": "0.1",
            "label": _text(f"{drawn.title}   {drawn.subtitle}"), "labelloc": "t", "labeljust": "l", "fontname": FONT, "fontsize": str(HEAD),
            "margin": "0",
            **_effort(drawn),
        },
        node_attr={"fixedsize": "true", "fontname": FONT, "fontsize": str(NOTE), "margin": "0"},
        edge_attr={"fontname": FONT, "fontsize": str(LABEL), "arrowsize": "0.5", "color": "#8a8f98", "fontcolor": "#6b7280"},
    )
    inside: dict[Cluster | None, tuple[list[Cluster], list[Box]]] = {None: ([], [])}
    for cluster in drawn.clusters:
        inside[cluster] = ([], [])
        inside[cluster.cluster][0].append(cluster)
    for box in drawn.boxes:
        inside[box.cluster][1].append(box)
    _fill(out, None, inside)
    for edge in drawn.edges:
        style = {"style": "dashed"} if "router" in edge.kind else {}
        label = {"label": _text(f" {edge.label} ")} if edge.label else {}
        out.edge(
            edge.source.key, edge.target.key, id=edge.key, weight=str(edge.weight), tooltip=_text(edge.tooltip), **label, **style,
            _attributes={"class": edge.kind},
        )
    return out.source


def _effort(drawn: Picture) -> dict[str, str]:
    """Bounds on network simplex and on crossing reduction, where a picture is large."""
    return {"nslimit": "1", "nslimit1": "1", "mclimit": "0.5"} if len(drawn.boxes) > MANY else {}


def _fill(out: graphviz.Digraph, cluster: Cluster | None, inside: dict[Cluster | None, tuple[list[Cluster], list[Box]]]) -> None:
    for box in inside[cluster][1]:
        _node(out, box)
    for inner in inside[cluster][0]:
        part = out.subgraph(name=inner.key)
        assert part is not None
        with part as sub:
            sub.attr(
                label=_text(_blank(inner)), labeljust="l", style="rounded", color="#c3c8d0", margin="11", fontsize=str(TITLE), id=inner.key,
                tooltip=_text(inner.tooltip),
            )
            _fill(sub, inner, inside)


def _node(out: graphviz.Digraph, box: Box) -> None:
    words = " ".join([text for kind, text, _ in box.words() if kind != "mark"] + [f"◆ {mark.name}" for mark in box.marks])
    style = "rounded" if box.shape in ("rect", "pill") else "filled" if box.shape == "point" else ""
    if any(not mark.first for mark in box.marks):
        style = f"{style},dashed".strip(",")
    out.node(
        box.key, _text(f"{words}\n{box.note}" if box.note else words), shape=_SHAPES[box.shape], width=f"{box.width / 72:.3f}",
        height=f"{box.height / 72:.3f}", id=box.key, tooltip=_text(box.tooltip), **({"style": style} if style else {}),
        _attributes={"class": box.kind},
    )


def _blank(cluster: Cluster) -> str:
    """The words of a cluster, padded to the width that they take when set in several sizes."""
    words = _words(cluster.words()) + (f"  {cluster.note}" if cluster.note else "")
    wanted = cluster.line() + measure(cluster.note, NOTE) + 26
    spaces = (wanted - measure(words, TITLE)) / measure(" ", TITLE)
    return words + " " * max(0, round(spaces))


def _words(words: Iterable[tuple[str, str, float]]) -> str:
    return "  ".join(f"◆ {text}" if kind == "mark" else text for kind, text, _ in words)


def _text(text: str) -> str:
    """A label that DOT takes as it stands: no escapes, no HTML."""
    return graphviz.nohtml("\\n".join(graphviz.escape(line) for line in clean(text).split("\n")))
