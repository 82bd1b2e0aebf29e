"""Text out of a language model, a token at a time: int[B, T] -> float[B, T, vocab], decoded with its state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from graphir.ir.graph import Graph
from graphir.lang.diagnostic import Diagnostic, GraphirError

from .decode import Decoder


def language_model(graph: Graph, steps: tuple[str, ...]) -> tuple[str, str, int]:
    """The names of a model's token input and logits output, and the size of its vocabulary. Raises GraphirError E0815."""
    types = {name: value.type for name, value in graph.inputs if name in steps}
    tokens = [name for name, type in types.items() if type.dtype == "int" and len(type.shape) == 2]
    if len(types) == 1 and tokens:
        wanted = types[tokens[0]].shape
        for name, value in graph.outputs:
            shape = value.type.shape
            if value.type.dtype == "float" and len(shape) == 3 and shape[:2] == wanted and isinstance(shape[2], int):
                return tokens[0], name, shape[2]
    inputs = ", ".join(f"{name}: {type}" for name, type in types.items())
    outputs = ", ".join(f"{name}: {value.type}" for name, value in graph.outputs)
    message = f"`{graph.name}` is no language model: it takes {inputs} step by step and gives {outputs}"
    raise GraphirError(Diagnostic("E0815", message, help=("generation takes tokens: int[B, T] and gives logits: float[B, T, vocab]",)))


def generate(
    net: Decoder, prompt: torch.Tensor, count: int, *, temperature: float = 0.0, top_k: int | None = None, seed: int = 0,
    others: Mapping[str, torch.Tensor] | None = None,
) -> Iterator[torch.Tensor]:
    """`count` new tokens after the prompt int[B, T], each int[B], as they are made.

    The most likely one at `temperature` 0, else drawn from softmax(logits / temperature), among the `top_k` most likely where that
    is given. `others`: inputs that the model sees whole. Raises GraphirError E0815 for a model that is no language model.
    """
    name, output, vocabulary = language_model(net.graphir, net.steps)
    if prompt.numel() == 0 or int(prompt.min()) < 0 or int(prompt.max()) >= vocabulary:
        wrong = next((t for t in prompt.flatten().tolist() if not 0 <= t < vocabulary), None)
        message = f"the prompt takes one token or more from 0 to {vocabulary - 1}"
        raise GraphirError(Diagnostic("E0815", message if wrong is None else f"{message}, not {wrong}"))
    generator = torch.Generator().manual_seed(seed)
    given = {net.input_names[n]: t for n, t in (others or {}).items()}
    state, tokens = None, prompt
    for _ in range(count):
        with torch.no_grad():
            made, state = net(**{net.input_names[name]: tokens}, **given, state=state)
        given = {}
        logits = made[net.output_names.index(output)] if isinstance(made, tuple) else made
        chosen = choose(logits[:, -1].float().cpu(), temperature, top_k, generator)
        tokens = chosen.unsqueeze(1).to(prompt.device)
        yield chosen


def choose(logits: torch.Tensor, temperature: float, top_k: int | None, generator: torch.Generator) -> torch.Tensor:
    """int[B]: one token for each row of logits [B, vocab]."""
    if temperature == 0:
        return logits.argmax(-1)
    if top_k is not None and top_k < logits.shape[-1]:
        least = logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(logits < least, float("-inf"))
    return torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator).squeeze(1)
