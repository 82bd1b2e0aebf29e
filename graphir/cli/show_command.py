"""`graphir show FILE -o X.svg`: the picture."""

from __future__ import annotations

from typing import Any

import click

from .common import file_argument, load, model_option, set_option, stitch_option, write


def _depth(ctx: click.Context, param: click.Parameter, value: str | None) -> Any:
    if value is None or value == "all":
        return value
    if not (value.isascii() and value.isdecimal()) or len(value) > 9:
        raise click.BadParameter("a depth is a whole number or `all`", ctx, param)
    return int(value)


@click.command("show")
@file_argument
@click.option("-o", "--output", metavar="FILE", help="Where to write the SVG (default: beside the program; - for standard output).")
@model_option
@set_option
@stitch_option
@click.option("--passes", metavar="PIPELINE", help="Draw the graph after these passes.")
@click.option("--depth", metavar="N|all", callback=_depth, help="How many levels of boxes to open (default: as many as read well).")
@click.option("--no-fold", is_flag=True, help="Draw every repeat.")
@click.option("--timeout", default=20.0, show_default=True, help="Seconds for the layout.")
def command(
    file: str,
    output: str | None,
    model: str | None,
    params: dict[str, Any],
    stitch: bool,
    passes: str | None,
    depth: Any,
    no_fold: bool,
    timeout: float,
) -> None:
    """Draw a model."""
    graph = load(file, model, params, stitch)
    if passes is not None:
        from ..api import optimise

        graph = optimise(graph, passes)
    picture = graph.svg(depth=depth, fold=not no_fold, timeout=timeout)
    if output is None:
        output = "-" if file == "-" else file.rsplit(".", 1)[0] + ".svg"
    write(output, picture)
    if output != "-":
        click.echo(f"wrote {output}", err=True)
