"""`graphir check FILE...`: every problem of every file."""

from __future__ import annotations

from typing import Any

import click

from ..lang.diagnostic import Diagnostic, GraphirError
from .common import complete_files, print_diagnostics, set_option


@click.command("check")
@click.argument("files", nargs=-1, required=True, shell_complete=complete_files)
@set_option
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
@click.option("--quiet", "-q", is_flag=True, help="Say nothing when all is well.")
def command(files: tuple[str, ...], params: dict[str, Any], as_json: bool, quiet: bool) -> int:
    """Say what is wrong with programs: names, types, widths, every model with its defaults."""
    found = _check(files, params)
    if found or as_json:
        print_diagnostics(found, as_json)
    elif not quiet:
        click.echo(f"{len(files)} file{'s' * (len(files) != 1)} checked: nothing wrong", err=True)
    return 1 if any(d.severity == "error" for d in found) else 0


def _check(files: tuple[str, ...], params: dict[str, Any]) -> list[Diagnostic]:
    """What is wrong with each file under the parameters that it has; one that no file has is wrong in all of them."""
    from ..api import module
    from ..elaborate.model import check, parameters
    from .common import _arch, _reserved

    _reserved(params)
    opened: list[Any] = []
    for file in files:
        try:
            opened.append(module(_arch(file)))
        except GraphirError as e:
            opened.append(e)
    known = {name for each in opened if not isinstance(each, GraphirError) for name in parameters(each)}
    found: list[Diagnostic] = []
    for each in opened:
        if isinstance(each, GraphirError):
            found += each.diagnostics
            continue
        mine = parameters(each)
        found += check(each, params={n: v for n, v in params.items() if n in mine or n not in known})
    return found
