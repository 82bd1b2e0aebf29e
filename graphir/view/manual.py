"""The reference manual of bricks: primitives out of their declarations, standard blocks out of their headers and comments."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..bricks import catalogue  # noqa: F401
from ..bricks.declare import REGISTRY
from ..elaborate.expressions import FILTER_OPTIONS
from ..elaborate.project import library
from ..lang import syntax as s
from ..lang.diagnostic import Diagnostic, GraphirError, nearest


@dataclass(frozen=True)
class Entry:
    """One brick of the manual."""

    name: str
    family: str
    header: str
    doc: str
    weights: str = ""
    flops: str = ""
    require: tuple[str, ...] = ()
    stateful: bool = False
    source: str = ""
    examples: tuple[str, ...] = ()

    @property
    def short(self) -> str:
        first = self.doc.split("\n", 1)[0].strip()
        return first if len(first) <= 100 else first[:99] + "…"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


FORMS = tuple(
    Entry(name, "forms of the language", header, doc)
    for name, header, doc in (
        (
            "fork",
            "x -> fork { a: f  b: g }",
            "Runs its branches on the same value and gives their results in order: a join follows, or names: `u, v = x -> fork { ... }`.",
        ),
        (
            "filter",
            "x -> filter(router, keep = k, ...) { a: f  b: g }  or  filter(router, branches = [...])",
            "y = sum over branches of weight * branch(x), per token. The router gives one score per branch and ends in a normaliser.\n"
            f"Options: {', '.join(FILTER_OPTIONS)}. Named outputs: `<path>.weights` and the losses asked for.",
        ),
        ("frozen", "frozen(f)", "f with weights that training leaves alone."),
        (
            "stitch",
            "stitch(f, width = w)  or  x -> stitch(w)",
            "A projection to w in front of f and one back behind it; or the projection itself (`form`: linear, mlp, low-rank).",
        ),
        (
            "graft",
            "graft host { at layers[2..4].mlp: brick  ... }",
            "The host with other bricks at some places; `site` is what stood there, with its weights where the host has them.",
        ),
        (
            "pattern",
            'pattern("M-M*-", M = m, mlp = f, attention = a)',
            "A list with a brick for each sign of a word: `*` is `attention`, `-` is `mlp`, letters are themselves; spaces and `|` only group.\n"
            'Lists join and repeat: `pattern("M-", M = m, mlp = f) * 4`.',
        ),
        ("choose", "choose(a, b, ...)", "A choice of a search space. This edition parses and formats it, and samples none."),
    )
)


def entries() -> list[Entry]:
    """Every brick that a program may name, standard blocks first, by family and name."""
    blocks = [_block(name) for name in library().names()]
    primitives = [
        Entry(
            d.name,
            f"primitives: {d.file.rsplit('.', 1)[-1]}",
            d.header_text,
            d.doc,
            d.weights_text,
            "" if d.flops_text == "0" else d.flops_text,
            d.require,
            d.state is not None,
            d.source,
            d.examples,
        )
        for d in REGISTRY
        if d.name not in {form.name for form in FORMS}
    ]
    order = lambda e: (e.family, e.name)  # noqa: E731
    return [*FORMS, *sorted(blocks, key=order), *sorted(primitives, key=order)]


def _block(name: str) -> Entry:
    std = library()
    source, start, end = std.index[name]
    item = std.find(name)
    text = source.text[start:end]
    doc = item.doc if isinstance(item, s.Block) else _comment_above(source.text, start)
    header = item.header.span.text if isinstance(item, s.Block) else text.strip()
    family = source.name.removeprefix("std/").removesuffix(".arch")
    return Entry(name, f"standard library: {family}", header, doc)


def _comment_above(text: str, start: int) -> str:
    lines = text[:start].rstrip("\n").split("\n")
    kept: list[str] = []
    while lines and lines[-1].startswith("#"):
        kept.insert(0, lines.pop().lstrip("# "))
    return "\n".join(kept)


def find(name: str) -> Entry:
    """The entry of a name. Raises GraphirError E0301 with near names."""
    found = {e.name: e for e in entries()}
    if name not in found:
        raise GraphirError(
            Diagnostic("E0301", f"there is no brick `{name}`", help=nearest(name, found) or ("`graphir bricks` lists them",))
        )
    return found[name]


def page(entry: Entry) -> str:
    """One brick as text."""
    lines = [entry.header, "", *(f"  {line.strip()}" for line in entry.doc.splitlines())]
    facts = [
        ("weights", entry.weights),
        ("FLOPs", entry.flops),
        ("requires", "; ".join(entry.require)),
        ("state", "kept when decoding" if entry.stateful else ""),
        ("source", entry.source),
        ("examples", "; ".join(entry.examples)),
    ]
    shown = [f"  {label + ':':<10}{' '.join(text.split())}" for label, text in facts if text]
    return "\n".join(lines + (["", *shown] if shown else []))


def as_markdown() -> str:
    """The whole manual as one Markdown page."""
    out = ["# Bricks", "", "Written by `graphir bricks --markdown` from the declarations.", ""]
    family = ""
    for entry in entries():
        if entry.family != family:
            family = entry.family
            out += [f"## {family.capitalize()}", ""]
        out += [f"### {entry.name}", "", "```", page(entry), "```", ""]
    return "\n".join(out)
