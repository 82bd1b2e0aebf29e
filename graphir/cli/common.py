"""What commands share: arguments, output of diagnostics, parsing of `k=v`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from typing import Any

import click

from ..lang.diagnostic import Diagnostic, GraphirError


def wants_color(stream: Any) -> bool:
    """Whether to colour what goes to a stream: a terminal, and nobody said NO_COLOR."""
    return "NO_COLOR" not in os.environ and hasattr(stream, "isatty") and stream.isatty()


def print_diagnostics(diagnostics: Iterable[Diagnostic], json: bool = False) -> None:
    """Diagnostics for people on stderr, or as one JSON document on stdout."""
    from ..lang.render import render, to_json

    listed = list(diagnostics)
    if json:
        click.echo(to_json(listed))
    else:
        click.echo(render(listed, color=wants_color(sys.stderr)), err=True)


def pairs(option: str) -> Callable[[click.Context, click.Parameter, tuple[str, ...]], dict[str, str]]:
    """A callback that reads repeated `k=v` values (commas separate several) of an option."""

    def parse(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
        found: dict[str, str] = {}
        for value in values:
            for part in _parts(value):
                name, equals, text = part.partition("=")
                if not equals or not name.strip().isidentifier() or not text.strip():
                    raise click.BadParameter(f"'{part}' is not name=value", ctx, param)
                found[name.strip()] = text.strip()
        return found

    return parse


def _parts(value: str) -> list[str]:
    """Split at commas outside brackets and quotes."""
    parts, depth, quoted, start = [], 0, False, 0
    for i, c in enumerate(value):
        quoted ^= c == '"'
        if quoted:
            continue
        depth += (c in "([") - (c in ")]")
        if c == "," and depth == 0:
            parts.append(value[start:i])
            start = i + 1
    return [*parts, value[start:]]


def sizes(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, int]:
    """A callback for `--set-dim B=2,T=16`: whole numbers from 0 up."""
    found = {}
    for name, text in pairs("")(ctx, param, values).items():
        if not (text.isascii() and text.isdecimal()) or len(text) > 9:
            raise click.BadParameter(f"'{name}={text}': a size is a whole number", ctx, param)
        found[name] = int(text)
    return found


def complete_files(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type="file")]


file_argument = click.argument("file", shell_complete=complete_files)
model_option = click.option("--model", metavar="NAME", help="Which model of the file (default: the last).")
set_option = click.option(
    "--set", "params", multiple=True, metavar="K=V", callback=pairs("--set"), help="Set a parameter; repeat, or separate by commas."
)
stitch_option = click.option("--stitch", is_flag=True, help="Treat every `->` as `~>`.")


def load(file: str, model: str | None, params: dict[str, Any], stitch: bool = False) -> Any:
    """The graph of a file (an `.arch` program, or a dump that ends in `.gir`)."""
    if file.endswith(".gir"):
        from ..bricks import catalogue  # noqa: F401
        from ..bricks.declare import REGISTRY
        from ..ir.text import read
        from ..ir.verify import verify
        from ..lang.files import read_source
        from ..lang.limits import Limits

        graph = read(read_source(file, Limits(file_bytes=2**30)).text)
        verify(graph, REGISTRY)
        return graph
    from ..api import load as load_program

    return load_program(_arch(file), model, stitch=stitch, **_reserved(params))


def _arch(file: str) -> Any:
    from pathlib import Path

    return file if file == "-" else Path(file)


def _reserved(params: dict[str, Any]) -> dict[str, Any]:
    for name in ("limits", "root", "stitch", "path_or_text", "model"):
        if name in params:
            raise GraphirError(Diagnostic("E0408", f"`{name}` cannot be a parameter's name here"))
    return params


SEEDS = click.IntRange(0, 2**63 - 1)  # what torch takes
strict_option = click.option(
    "--strict", is_flag=True, help="Refuse what cannot run on the backend that it is put `on`, instead of moving it to fx."
)


def settled(graph: Any, strict: bool, decode: bool = False) -> Any:
    """The graph on backends that can run it; what had to move is said on stderr."""
    from ..backends.settle import settle

    graph, notes = settle(graph, strict, decode)
    if notes:
        print_diagnostics(notes)
    return graph


def write(path: str, content: str | bytes) -> None:
    """Write to a file whole or not at all; `-` is standard output."""
    if path == "-":
        if isinstance(content, bytes):
            sys.stdout.buffer.write(content)
        else:
            click.echo(content, nl=not content.endswith("\n"))
        return
    from ..atomic import write_atomic

    write_atomic(path, content)
