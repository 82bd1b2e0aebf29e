"""`graphir run FILE --generate N`: tokens that a model gives after a prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..lang.diagnostic import Diagnostic, GraphirError
from .common import settled


def generation(graph: Any, dims: dict[str, int], target: str, options: dict[str, Any]) -> None:
    """Print the tokens of each row of the batch on a line of its own."""
    import torch

    from ..api import optimise, tensors
    from ..backends.base import compile_module
    from ..backends.generate import generate, language_model
    from ..backends.samples import sample_inputs

    if target == "interpreter" or options["trace"] or options["double"]:
        raise click.UsageError("--generate runs on cpu and cuda, without --trace and --double")
    recipes: list[Any] = []
    final = optimise(graph, options["passes"], "decode", recipes=recipes)
    final = settled(final, options["strict"], decode=True)
    weights = tensors(graph, final, recipes, options["weights"], options["seed"])
    net = compile_module(final, target, "decode", weights, options["seed"])
    name, _, _ = language_model(final, net.steps)
    given = {n: t.to(target) for n, t in sample_inputs(final, dims, options["seed"]).items()}
    prompt = given.pop(name) if options["prompt"] == "random" else read_prompt(options["prompt"]).to(target)
    if options["prompt"] == "random":
        click.echo(f"random prompt (seed {options['seed']}): int64{list(prompt.shape)}", err=True)
    else:
        given.pop(name)
        given = {n: t[:1] for n, t in given.items()}
    made = generate(
        net, prompt, options["generate"], temperature=options["temperature"], top_k=options["top_k"], seed=options["seed"], others=given
    )
    new = torch.stack(list(made), 1)
    for row in new.tolist():
        click.echo(" ".join(map(str, row)))
    if options["output"]:
        from ..backends.weights import save

        save(options["output"], {"tokens": torch.cat([prompt.cpu(), new], 1)}, {})


def read_prompt(path: str) -> Any:
    """int[1, T]: the whole numbers of a text file, apart by spaces, commas or lines. Raises GraphirError E0815."""
    import torch

    try:
        words = Path(path).read_text(encoding="utf-8").replace(",", " ").split()
    except (OSError, UnicodeDecodeError) as e:
        reason = (e.strerror or str(e)).lower() if isinstance(e, OSError) else "it is no text"
        raise GraphirError(Diagnostic("E0815", f"cannot read the prompt `{path}`: {reason}")) from None
    wrong = next((w for w in words if not (w.isascii() and w.isdecimal()) or len(w) > 9), None)
    if wrong is not None:
        raise GraphirError(Diagnostic("E0815", f"a prompt is made of whole numbers, not `{wrong[:40]}`"))
    return torch.tensor([[int(w) for w in words]], dtype=torch.int64).reshape(1, -1)
