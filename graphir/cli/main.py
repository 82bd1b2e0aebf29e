"""The command `graphir`: a table of commands, each in a module of its own that is imported when it is called."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

import click

from .. import __version__

COMMANDS = {
    "compile": "Compile a model: to a folder, a picture, Python source, ...",
    "check": "Say what is wrong with programs.",
    "show": "Draw a model as SVG or HTML.",
    "run": "Run a model on given or random inputs.",
    "summary": "Table of layers, parameters, FLOPs and state.",
    "fmt": "Bring programs to the canonical form.",
    "explain": "The long story of an error code.",
    "bricks": "The reference manual of bricks.",
    "stitch-fit": "Initialise stitches by least squares on a calibration batch.",
    "replay": "Run a pipeline again on the graph of a crash report.",
    "mad": "Train models on the MAD tasks.",
    "import": "Turn a config that lists layers into a program.",
    "completion": "Print the completion script of a shell.",
}


class Commands(click.Group):
    """A group that knows its commands' names and one-line helps without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        return import_module(f"graphir.cli.{cmd_name.replace('-', '_')}_command").command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        name = args[0] if args else ""
        if name and not name.startswith("-") and name not in COMMANDS:
            from ..lang.diagnostic import nearest

            help = nearest(name, COMMANDS)
            raise click.UsageError(f"there is no command '{name}'" + (f"; {help[0].replace('`', chr(39))}" if help else ""), ctx)
        return super().resolve_command(ctx, args)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="graphir")
def cli() -> None:
    """graphir: write down, check, draw, cost, rewrite and run neural architectures."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line. Exit codes: 0 fine, 1 diagnostics, 2 usage, 3 environment, 130 interrupted."""
    sys.exit(run(arguments))


def run(arguments: list[str] | None = None) -> int:
    from ..lang.diagnostic import EnvironmentProblem, GraphirError

    try:
        code = cli.main(arguments, prog_name="graphir", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except GraphirError as e:
        from .common import print_diagnostics

        print_diagnostics(e.diagnostics)
        return 1
    except EnvironmentProblem as e:
        click.echo(f"graphir: {e.message}" + (f"\n  help: {e.help}" if e.help else ""), err=True)
        return 3
    except click.Abort:
        return 130
    except click.ClickException as e:
        e.show()
        return e.exit_code
    except click.exceptions.Exit as e:
        return e.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        import os

        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    main()
