"""`graphir mad FILE --task NAME`: train models on the synthetic tasks of mechanistic architecture design."""

from __future__ import annotations

import sys
from typing import Any

import click

from .common import SEEDS, complete_files, load, model_option, pairs, set_option

TASKS = ("in-context-recall", "noisy-in-context-recall", "fuzzy-in-context-recall", "memorization", "compression", "selective-copying")


@click.command("mad")
@click.argument("files", nargs=-1, required=True, shell_complete=complete_files)
@click.option("--task", "names", multiple=True, required=True, type=click.Choice([*TASKS, "all"]), help="A task; repeat for several.")
@model_option
@set_option
@click.option(
    "--size",
    "sizes",
    multiple=True,
    metavar="K=V",
    callback=pairs("--size"),
    help="What differs from the task's baseline: vocab, length, train, copies, noise, ...",
)
@click.option("--steps", type=click.IntRange(1), help="Batches to learn from (default: 200 epochs).")
@click.option("--batch", type=click.IntRange(1), default=128, show_default=True)
@click.option("--rate", type=click.FloatRange(0, min_open=True), default=5e-4, show_default=True, help="Learning rate of AdamW.")
@click.option("--decay", type=click.FloatRange(0), default=0.0, show_default=True, help="Weight decay.")
@click.option(
    "--seed",
    "seeds",
    type=SEEDS,
    multiple=True,
    default=(0,),
    show_default=True,
    help="Seed of weights and order; repeat for several.",
)
@click.option(
    "--protocol",
    type=click.Choice(["corrected", "as_code"]),
    default="corrected",
    show_default=True,
    help="Cosine decay and token accuracy, or neither, as published code has it.",
)
@click.option("--target", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--results", metavar="FILE", help="JSON lines: finished runs are read from it, new ones added. Stop and go on at will.")
@click.option("--plot", metavar="FILE", help="Write a plot of all results (needs the extra `plot`).")
def command(
    files: tuple[str, ...], names: tuple[str, ...], model: str | None, params: dict[str, str], sizes: dict[str, str], **options: Any
) -> None:
    """Train models, ids int[B, T] -> logits float[B, T, vocab], on MAD tasks and score them on held-out examples.

    A model's parameter `vocab` is set to the task's, unless you set it.
    """
    from ..backends.base import need_device
    from ..mad import runs, tasks, train

    need_device(options["target"])
    changes = {name: _number(text) for name, text in sizes.items()}
    settings = [tasks.setting(name, **changes) for name in (TASKS if "all" in names else names)]
    graphs = {(file, s.vocab): load(file, model, _with_vocab(file, model, params, s.vocab)) for file in files for s in settings}
    wanted = [
        runs.Run(
            graphs[file, s.vocab].name if len(files) == 1 else file,
            graphs[file, s.vocab],
            s,
            train.PROTOCOLS[options["protocol"]],
            options["steps"],
            options["batch"],
            options["rate"],
            options["decay"],
            seed,
        )
        for file in files
        for s in settings
        for seed in options["seeds"]
    ]
    records = runs.execute(wanted, options["results"], options["target"], _bar)
    click.echo(runs.table(records))
    if options["plot"]:
        runs.plot(records, options["plot"])


def _number(text: str) -> Any:
    if text in ("true", "false"):
        return text == "true"
    try:
        return float(text) if "." in text else int(text)
    except ValueError:
        raise click.BadParameter(f"'{text}' is not a number", param_hint="--size") from None


def _with_vocab(file: str, model: str | None, params: dict[str, str], vocab: int) -> dict[str, Any]:
    """The parameters with `vocab`, where the model has one that nobody set."""
    if file.endswith(".gir") or "vocab" in params:
        return dict(params)
    from pathlib import Path

    from ..api import module
    from ..elaborate.model import choose_model

    block = choose_model(module(file if file == "-" else Path(file)), model)
    return {**params, "vocab": vocab} if any(f.name == "vocab" for f in block.header.formals) else dict(params)


def _bar(run: Any, place: int) -> Any:
    """A line on stderr that follows the loss on a terminal; elsewhere one line for each run."""
    title = f"{run.name} on {run.setting.task}, seed {run.seed}"
    if not sys.stderr.isatty():
        click.echo(title, err=True)
        return None

    def progress(step: int, steps: int, loss: float) -> None:
        if step % 10 == 0 or step == steps:
            filled = 30 * step // steps
            click.echo(f"\r{title} [{'#' * filled}{'.' * (30 - filled)}] {step}/{steps} loss {loss:.4f} ", err=True, nl=step == steps)

    return progress
