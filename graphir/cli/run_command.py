"""`graphir run FILE`: outputs for given or random inputs, and a trace of every node."""

from __future__ import annotations

from typing import Any

import click

from .common import SEEDS, file_argument, load, model_option, set_option, settled, sizes, stitch_option, strict_option
from .generation import generation


@click.command("run")
@file_argument
@click.option(
    "--input", "inputs", metavar="FILE", help="Inputs as safetensors (default: random; whole numbers stay below the vocabulary they index)."
)
@click.option("--set-dim", "dims", multiple=True, metavar="B=2,T=16", callback=sizes, help="Sizes of runtime dims for random inputs.")
@model_option
@set_option
@stitch_option
@click.option("--target", type=click.Choice(["cpu", "cuda", "interpreter"]), default="cpu", show_default=True)
@click.option("--mode", type=click.Choice(["train", "infer"]), default="infer", show_default=True)
@strict_option
@click.option("--passes", metavar="PIPELINE", help="Passes to run instead of the mode's own.")
@click.option("--weights", metavar="FILE", help="Weights as safetensors (default: initialised from the seed).")
@click.option("--seed", type=SEEDS, default=0, show_default=True, help="Seed of random weights and inputs.")
@click.option("--trace", is_flag=True, help="Shape, statistics and time of every node (on the interpreter).")
@click.option("--double", is_flag=True, help="Compute in float64 (on the interpreter).")
@click.option("--output", "-o", metavar="FILE", help="Write the outputs as safetensors.")
@click.option("--aux", is_flag=True, help="Auxiliary outputs too: routing weights, losses.")
@click.option("--generate", type=click.IntRange(1), metavar="N", help="Generate N tokens with a language model, step by step.")
@click.option(
    "--prompt",
    metavar="FILE|random",
    default="random",
    show_default=True,
    help="Tokens to begin with: numbers in a text file, or random ones.",
)
@click.option(
    "--temperature", type=click.FloatRange(0), default=0.0, show_default=True, help="0 takes the most likely token; more draws at random."
)
@click.option("--top-k", type=click.IntRange(1), help="Draw among so many tokens only.")
def command(
    file: str,
    inputs: str | None,
    dims: dict[str, int],
    model: str | None,
    params: dict[str, Any],
    stitch: bool,
    target: str,
    **options: Any,
) -> None:
    """Run a model and say what came out."""
    from ..api import optimise, tensors
    from ..backends.base import need_device

    if (options["trace"] or options["double"]) and target == "cuda":
        raise click.UsageError("--trace and --double run on the interpreter")
    graph = load(file, model, params, stitch)
    need_device(target)
    if options["generate"]:
        generation(graph, dims, target, options)
        return
    from ..backends.samples import read_inputs, sample_inputs

    given = read_inputs(inputs, graph) if inputs else sample_inputs(graph, dims, options["seed"])
    recipes: list[Any] = []
    final = optimise(graph, options["passes"], options["mode"], recipes=recipes)
    weights = tensors(graph, final, recipes, options["weights"], options["seed"])
    if not inputs:
        shown = ", ".join(f"{name}: {_type(t)}" for name, t in given.items())
        click.echo(f"random inputs (seed {options['seed']}): {shown}", err=True)
    if target == "interpreter" or options["trace"] or options["double"]:
        outputs, aux = _interpret(final, weights, given, options)
    else:
        final = settled(final, options["strict"])
        outputs, aux = _module(final, weights, given, target, options)
    results = {**outputs, **(aux if options["aux"] else {})}
    for name, value in results.items():
        click.echo(f"{name}: {_type(value)}  {_statistics(value)}")
    if options["output"]:
        from ..backends.weights import save

        save(options["output"], {n: v.detach().cpu().contiguous() for n, v in results.items()}, {})


def _interpret(graph: Any, weights: Any, inputs: Any, options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    import torch

    from ..backends.interpreter import Interpreter

    interpreter = Interpreter(graph, weights, dtype=torch.float64 if options["double"] else None)
    with torch.no_grad():
        return interpreter.run(inputs, aux=True, trace=_line if options["trace"] else None, check_finite=options["trace"])


def _line(record: Any) -> None:
    shape = "x".join(map(str, record.shape)) or "scalar"
    figures = (
        ""
        if record.mean is None
        else f"  mean {record.mean: .3e}  std {record.deviation or 0:.3e}  min {record.minimum: .3e}  max {record.maximum: .3e}"
    )
    bad = f"  {record.not_finite} not finite" if record.not_finite else ""
    click.echo(f"{record.seconds * 1e6:9.1f} us  {record.path}  {record.op}  {shape}{figures}{bad}")


def _module(graph: Any, weights: Any, inputs: Any, target: str, options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    import torch

    from ..backends.base import compile_module

    module = compile_module(graph, target, options["mode"], weights, options["seed"]).eval()
    with torch.no_grad():
        out, aux = module(**{module.input_names[name]: t.to(target) for name, t in inputs.items()}, aux=True)
    values = out if isinstance(out, tuple) else (out,)
    return dict(zip([n for n, _ in graph.outputs], values)), aux


def _type(tensor: Any) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}[{', '.join(map(str, tensor.shape))}]"


def _statistics(tensor: Any) -> str:
    if tensor.numel() == 0:
        return "empty"
    numbers = tensor.detach().double()
    first = ", ".join(f"{v:.4g}" for v in numbers.flatten()[:4].tolist())
    return f"mean {numbers.mean().item():.4g}  min {numbers.min().item():.4g}  max {numbers.max().item():.4g}  [{first}{', ...' if tensor.numel() > 4 else ''}]"
