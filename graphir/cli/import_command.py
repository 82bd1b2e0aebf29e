"""`graphir import CONFIG -o FILE`: a config that lists layers, as a program."""

from __future__ import annotations

from pathlib import Path

import click

from .common import complete_files, write


@click.command("import")
@click.argument("config", shell_complete=complete_files)
@click.option("--output", "-o", default="-", show_default=True, metavar="FILE", help="The program to write; `-` is standard output.")
@click.option("--name", metavar="NAME", help="The model's name (default: the config's file name).")
def command(config: str, output: str, name: str | None) -> None:
    """Turn a config (JSON, or YAML by its ending) that lists layers into an `.arch` program.

    It reads plain lists of names, lists of {type, backend, params}, bricks with blocks and combiners, layer patterns, index sets and periods.
    """
    from ..mad.importer import program, read

    stem = Path(config).stem
    write(output, program(read(config), name or (stem if config != "-" else "Imported")))
