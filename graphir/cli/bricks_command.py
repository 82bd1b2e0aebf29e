"""`graphir bricks [NAME]`: the reference manual, out of the declarations."""

from __future__ import annotations

import click


@click.command("bricks")
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
@click.option("--markdown", is_flag=True, help="The whole manual as Markdown.")
def command(name: str | None, as_json: bool, markdown: bool) -> None:
    """List every brick, or show one: header, meaning, weights, cost, source."""
    from ..view.manual import as_markdown, entries, find, page

    if as_json:
        import json

        click.echo(json.dumps([e.to_dict() for e in (entries() if name is None else [find(name)])], indent=2))
    elif markdown:
        click.echo(as_markdown())
    elif name is not None:
        click.echo(page(find(name)))
    else:
        family = ""
        for entry in entries():
            if entry.family != family:
                family = entry.family
                click.echo(f"\n{family}")
            click.echo(f"  {entry.name:<24} {entry.short}")
