"""`graphir completion SHELL`: what to put into a shell's start file."""

from __future__ import annotations

import click


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print the completion script of a shell: `graphir completion bash >> ~/.bashrc`."""
    from click.shell_completion import get_completion_class

    from .main import cli

    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(cli, {}, "graphir", "_GRAPHIR_COMPLETE").source())
