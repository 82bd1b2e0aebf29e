"""`graphir replay CRASH.gir`: run a pipeline again on the graph at which it broke."""

from __future__ import annotations

import click


@click.command("replay")
@click.argument("file")
def command(file: str) -> int:
    """Replay a crash report: exit 0 where the pipeline now runs through."""
    from ..bricks import catalogue  # noqa: F401
    from ..passes.crash import main

    return main([file])
