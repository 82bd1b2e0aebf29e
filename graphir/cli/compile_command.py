"""`graphir compile FILE`: check, optimise, lower, write."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from .common import SEEDS, file_argument, load, model_option, set_option, settled, stitch_option, strict_option, write

EMITS = ("graph", "dot", "svg", "fx", "python", "pt2")


@click.command("compile")
@file_argument
@click.option(
    "-o", "--output", metavar="PATH", help="A folder for the compiled model; with --emit, the file to write (- for standard output)."
)
@model_option
@set_option
@stitch_option
@click.option("--target", type=click.Choice(["cpu", "cuda", "interpreter"]), default="cpu", show_default=True)
@click.option("--mode", type=click.Choice(["train", "infer", "decode"]), default="train", show_default=True)
@strict_option
@click.option("--emit", type=click.Choice(EMITS), help="Write one form of the model instead of a folder.")
@click.option("--passes", metavar="PIPELINE", help="Passes to run instead of the mode's own, such as 'stitch{form=mlp},share'.")
@click.option("--weights", metavar="FILE", help="Weights as safetensors (default: initialised from the seed).")
@click.option("--seed", type=SEEDS, default=0, show_default=True, help="Seed of the initial weights.")
@click.option("--show-stitches", is_flag=True, help="List the stitches that were inserted.")
@click.option("--time-passes", is_flag=True, help="Print the time of each pass.")
@click.option("--print-after", metavar="PASS|all", multiple=True, help="Print the graph after a pass.")
@click.option("--verify-each", is_flag=True, help="Check the graph after each pass.")
@click.option("--diff", is_flag=True, help="Print what each pass changed.")
@click.option("--explain-rule", "explain", metavar="RULE", multiple=True, help="Say why a rewrite rule did not fire.")
def command(
    file: str,
    output: str | None,
    model: str | None,
    params: dict[str, Any],
    stitch: bool,
    target: str,
    mode: str,
    emit: str | None,
    **options: Any,
) -> None:
    """Compile a model: to a folder that `graphir.open` loads, or to one form with --emit; without -o, check and summarise only."""
    from ..api import optimise

    _check_names(options)
    graph = load(file, model, params, stitch)
    if target == "cuda":
        from ..backends.base import need_device

        need_device(target)
    watchers, after = _watchers(options)
    recipes: list[Any] = []
    final = optimise(graph, options["passes"], mode, watchers, recipes, options["explain"])
    for watcher in after:
        click.echo(str(watcher), err=True)
        for refusal in getattr(watcher, "refusals", ()):
            click.echo(refusal, err=True)
    if options["show_stitches"]:
        _show_stitches(final)
    if target != "interpreter" and emit in (None, "fx", "pt2"):
        placed = settled(final, options["strict"])
        final = placed if emit else final
    if emit:
        _emit(emit, output or "-", graph, final, recipes, target, mode, options)
        return
    summary = final.summary().render(3)
    click.echo(summary)
    if output:
        _write(file, output, graph, final, recipes, target, mode, summary, options)


def _check_names(options: dict[str, Any]) -> None:
    """Raises GraphirError E0902 for a pass or a rule to watch that does not exist."""
    from ..lang.diagnostic import Diagnostic, GraphirError, nearest

    if not options["print_after"] and not options["explain"]:
        return
    from .. import passes as p

    options["explain"] = tuple(name.replace(" ", "_") for name in options["explain"])
    problems = []
    for what, given, known in (("pass", options["print_after"], ["all", *p.PASSES]), ("rule", options["explain"], ["*", *p.RULES])):
        for name in given:
            if name not in known:
                help = nearest(name, known) or (f"there are {', '.join(known)}",)
                problems.append(Diagnostic("E0902", f"there is no {what} `{name}`", help=help))
    if problems:
        raise GraphirError(problems)


def _watchers(options: dict[str, Any]) -> tuple[list[Any], list[Any]]:
    """Watchers to pass to the pipeline, and those to print when it is through."""
    from .. import passes as p

    watchers: list[Any] = []
    after: list[Any] = []
    if options["verify_each"]:
        watchers.append(p.Verify())
    if options["print_after"]:
        names = options["print_after"]
        watchers.append(p.PrintAfter(None if "all" in names else names))
    if options["diff"]:
        watchers.append(p.Diff())
    if options["time_passes"]:
        after.append(p.Timing())
    if options["explain"]:
        after.append(p.Statistics())
    return watchers + after, after


def _show_stitches(graph: Any) -> None:
    from .. import passes as p

    rows = p.show_stitches(graph)
    for row in rows:
        click.echo(str(row))
    if not rows:
        click.echo("no stitches")


def _emit(emit: str, output: str, graph: Any, final: Any, recipes: list[Any], target: str, mode: str, options: dict[str, Any]) -> None:
    if emit == "graph":
        write(output, str(final) + "\n")
    elif emit == "svg":
        write(output, final.svg())
    elif emit == "dot":
        from ..view.dot import dot

        write(output, dot(final))
    elif emit == "python":
        from ..backends.python_source import emit as emit_python

        write(output, emit_python(final))
    elif emit == "fx":
        from ..backends.listing import listing

        write(output, listing(_module(graph, final, recipes, target, mode, options)))
    else:
        from ..backends.pt2 import to_bytes

        write(output, to_bytes(_module(graph, final, recipes, target, mode, options)))


def _module(graph: Any, final: Any, recipes: list[Any], target: str, mode: str, options: dict[str, Any]) -> Any:
    from ..api import build

    return build(graph, final, recipes, target, mode, options["weights"], options["seed"])


def _write(
    file: str, output: str, graph: Any, final: Any, recipes: list[Any], target: str, mode: str, summary: str, options: dict[str, Any]
) -> None:
    from ..api import tensors
    from ..folder import write_folder

    with _progress("weights"):
        weights = tensors(graph, final, recipes, options["weights"], options["seed"])
    with _progress("picture"):
        picture = final.svg()
    config = {
        "target": target,
        "mode": mode,
        "passes": options["passes"],
        "seed": options["seed"],
        "source": Path(file).name if file != "-" else "program.arch",
    }
    write_folder(output, final, weights, config, _program(file), {"summary.txt": summary + "\n", "graph.svg": picture})
    click.echo(f"wrote {output}: load it with graphir.open({output!r})", err=True)


def _program(file: str) -> dict[str, str]:
    """The program's files by their path below its folder."""
    if file == "-" or file.endswith(".gir"):
        return {}
    from ..elaborate.project import Project

    root = Path(file).resolve().parent
    project = Project(root)
    project.load_file(Path(file))
    return {str(path.relative_to(root)): module.source.text for path, module in project.modules.items()}


def _progress(what: str) -> Any:
    """A spinner on a terminal, nothing elsewhere."""
    from contextlib import nullcontext

    if not sys.stderr.isatty():
        return nullcontext()
    from rich.console import Console

    return Console(stderr=True).status(f"{what} ...")
