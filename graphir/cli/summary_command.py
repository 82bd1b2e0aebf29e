"""`graphir summary FILE`: what a model costs."""

from __future__ import annotations

from typing import Any

import click

from .common import file_argument, load, model_option, set_option, sizes, stitch_option


@click.command("summary")
@file_argument
@model_option
@set_option
@click.option(
    "--set-dim", "dims", multiple=True, metavar="B=2,T=16", callback=sizes, help="Sizes of runtime dims; without them costs are formulas."
)
@stitch_option
@click.option("--depth", type=click.IntRange(1), default=3, show_default=True, help="How many levels of scopes to list.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
def command(file: str, model: str | None, params: dict[str, Any], dims: dict[str, int], stitch: bool, depth: int, as_json: bool) -> None:
    """Table of layers: path, output shape, parameters, FLOPs, state bytes."""
    summary = load(file, model, params, stitch).summary(**dims)
    if as_json:
        import json

        click.echo(json.dumps(summary.to_dict(depth), indent=2))
    else:
        click.echo(summary.render(depth))
