"""`graphir explain CODE`: the long story of an error."""

from __future__ import annotations

from typing import Any

import click


def _codes(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
    from ..lang.codes import CODES

    return [c for c in CODES if c.startswith(incomplete.upper())]


@click.command("explain")
@click.argument("code", required=False, shell_complete=_codes)
def command(code: str | None) -> None:
    """Explain an error code, with a wrong program and its mended form; without a code, list them all."""
    from ..lang.codes import CODES
    from ..lang.diagnostic import Diagnostic, GraphirError, nearest

    if code is None:
        for name, entry in CODES.items():
            click.echo(f"{name}  {entry.title}")
        return
    entry = CODES.get(code.upper())
    if entry is None:
        raise GraphirError(
            Diagnostic("E0302", f"there is no code `{code}`", help=nearest(code.upper(), CODES) or ("`graphir explain` lists them",))
        )
    click.echo(f"{code.upper()}: {entry.title}\n\n{entry.text.strip()}")
    for title, text in (("Wrong:", entry.bad), ("Mended:", entry.good)):
        if text:
            click.echo(f"\n{title}\n")
            click.echo("\n".join(f"    {line}".rstrip() for line in text.strip("\n").splitlines()))
