"""`graphir fmt FILE...`: the canonical form."""

from __future__ import annotations

import click

from .common import complete_files, print_diagnostics, write


@click.command("fmt")
@click.argument("files", nargs=-1, required=True, shell_complete=complete_files)
@click.option("--check", is_flag=True, help="Change nothing; exit 1 if a file is not in canonical form.")
@click.option("--diff", is_flag=True, help="Change nothing; show what would change.")
def command(files: tuple[str, ...], check: bool, diff: bool) -> int:
    """Bring programs to the one canonical form, comments kept. `-` reads standard input and writes standard output."""
    from ..lang.diagnostic import GraphirError
    from ..lang.files import read_source
    from ..lang.formatter import format_text

    status = 0
    for file in files:
        try:
            source = read_source(file)
            new = format_text(source)
        except GraphirError as e:
            print_diagnostics(e.diagnostics)
            status = 1
            continue
        changed = new != source.text
        if diff and changed:
            import difflib

            click.echo(
                "".join(difflib.unified_diff(source.text.splitlines(True), new.splitlines(True), file, f"{file} (formatted)")), nl=False
            )
        if check or diff:
            status |= changed and check
            if check and changed:
                click.echo(f"{file} would change", err=True)
        elif changed or file == "-":
            write(file, new)
    return int(status)
