"""Passes, their options, and pipelines as text: `stitch{form=mlp,init=zero},share,simplify`.

A pass is a plain function `run(graph, options, report) -> graph` under a name; its options are a frozen dataclass of
booleans, numbers and words with defaults. A pipeline is a tuple of passes with options. It parses from text and prints as
text, options at their defaults left out, so that `parse(str(p)) == p`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ..ir.graph import Graph
from ..lang.diagnostic import Diagnostic, GraphirError, nearest
from ..lang.source import Source, Span
from .report import Report


@dataclass(frozen=True, slots=True)
class NoOptions:
    """A pass without options."""


@dataclass(frozen=True)
class Pass:
    """A named rewriting of graphs. `run` keeps the meaning and returns the same object where there is nothing to do."""

    name: str
    run: Callable[[Graph, Any, Report], Graph]
    options: type = NoOptions

    @property
    def doc(self) -> str:
        """The first line of what the function says of itself."""
        return (self.run.__doc__ or "").strip().split("\n")[0]

    @cached_property
    def kinds(self) -> Mapping[str, Any]:
        """The annotation of each option."""
        return get_type_hints(self.options)


@dataclass(frozen=True)
class Step:
    """A pass with its options."""

    of: Pass
    options: Any

    def __call__(self, graph: Graph, report: Report | None = None) -> Graph:
        return self.of.run(graph, self.options, report or Report())

    def __str__(self) -> str:
        changed = [f for f in fields(self.options) if getattr(self.options, f.name) != f.default]
        inside = ",".join(f"{f.name.replace('_', '-')}={_show(getattr(self.options, f.name))}" for f in changed)
        return f"{self.of.name}{{{inside}}}" if inside else self.of.name


@dataclass(frozen=True)
class Pipeline:
    """Passes in the order in which they run."""

    steps: tuple[Step, ...]

    def __str__(self) -> str:
        return ",".join(map(str, self.steps))


_TOKEN = re.compile(r"\s*([A-Za-z][\w-]*|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?|[{},=])")


class _Reader:
    """One left-to-right reading of a pipeline's text."""

    def __init__(self, text: str, passes: Mapping[str, Pass], name: str):
        self.source = Source(name, text)
        self.passes = passes
        self.tokens = self._tokens(text)
        self.at = 0

    def _tokens(self, text: str) -> list[tuple[str, Span]]:
        tokens, at = [], 0
        while text[at:].strip():
            found = _TOKEN.match(text, at)
            if found is None:
                at += len(text[at:]) - len(text[at:].lstrip())
                raise self._error(f"unexpected `{text[at]}` in a pipeline", Span(self.source, at, at + 1), HELP)
            tokens.append((found[1], Span(self.source, found.start(1), found.end(1))))
            at = found.end()
        tokens.append(("", Span(self.source, len(text), len(text))))
        return tokens

    def _error(self, message: str, span: Span, help: tuple[str, ...] = ()) -> GraphirError:
        return GraphirError(Diagnostic("E0902", message, span, help=help))

    def peek(self) -> str:
        return self.tokens[self.at][0]

    def take(self) -> tuple[str, Span]:
        self.at += 1
        return self.tokens[self.at - 1]

    def want(self, wanted: str) -> None:
        text, span = self.take()
        if text != wanted:
            raise self._error(f"expected `{wanted}`, not {f'`{text}`' if text else 'the end'}", span, HELP)

    def pipeline(self) -> Pipeline:
        steps = [self.step()] if self.peek() else []
        while self.peek():
            self.want(",")
            steps.append(self.step())
        return Pipeline(tuple(steps))

    def step(self) -> Step:
        name, span = self.take()
        found = self.passes.get(name)
        if found is None:
            known = f"the passes are {', '.join(self.passes)}"
            raise self._error(f"there is no pass `{name}`" if name else "a pass is missing", span, (*nearest(name, self.passes), known))
        options: dict[str, Any] = {}
        if self.peek() == "{":
            self.take()
            while self.peek() != "}":
                self.option(found, options)
                if self.peek() != "}":
                    self.want(",")
            self.take()
        return Step(found, found.options(**options))

    def option(self, of: Pass, options: dict[str, Any]) -> None:
        text, span = self.take()
        name = text.replace("-", "_")
        shown = [k.replace("_", "-") for k in of.kinds]
        if name not in of.kinds:
            known = f"its options are {', '.join(shown)}" if shown else f"`{of.name}` takes no options"
            raise self._error(f"pass `{of.name}` has no option `{text}`", span, (*nearest(text, shown), known))
        if name in options:
            raise self._error(f"option `{text}` is given twice", span)
        self.want("=")
        value, at = self.take()
        options[name] = self.value(of.kinds[name], value, at, text)

    def value(self, kind: Any, text: str, span: Span, name: str) -> Any:
        if get_origin(kind) is Literal:
            choices = get_args(kind)
            if text in choices:
                return text
            raise self._error(f"`{name}` is one of {', '.join(choices)}, not `{text}`", span, nearest(text, choices))
        if kind is bool and text in ("true", "false"):
            return text == "true"
        if kind in (int, float) and re.fullmatch(r"-?\d+" if kind is int else r"-?\d.*", text):
            return kind(text)
        wanted = {bool: "true or false", int: "an integer", float: "a number"}.get(kind, "a word")
        raise self._error(f"`{name}` takes {wanted}, not `{text}`", span)


HELP = ("a pipeline reads `stitch{form=mlp},share,simplify`",)


def parse(text: str, passes: Mapping[str, Pass] | None = None, name: str = "<passes>") -> Pipeline:
    """The pipeline that a text names. Raises GraphirError E0902 for what it does not know, with a span in the text."""
    if passes is None:
        from .catalogue import PASSES as passes
    return _Reader(text, passes, name).pipeline()


def _show(value: Any) -> str:
    return ("true" if value else "false") if isinstance(value, bool) else str(value)
