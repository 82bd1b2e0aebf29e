"""`graphir check FILE...`: every problem of every file."""

from __future__ import annotations

from typing import Any

import click

from .common import complete_files, print_diagnostics, set_option


@click.command("check")
@click.argument("files", nargs=-1, required=True, shell_complete=complete_files)
@set_option
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
@click.option("--quiet", "-q", is_flag=True, help="Say nothing when all is well.")
def command(files: tuple[str, ...], params: dict[str, Any], as_json: bool, quiet: bool) -> int:
    """Say what is wrong with programs: names, types, widths, every model with its defaults."""
    from ..api import check
    from .common import _arch, _reserved

    found = [d for file in files for d in check(_arch(file), **_reserved(params))]
    if found or as_json:
        print_diagnostics(found, as_json)
    elif not quiet:
        click.echo(f"{len(files)} file{'s' * (len(files) != 1)} checked: nothing wrong", err=True)
    return 1 if any(d.severity == "error" for d in found) else 0
