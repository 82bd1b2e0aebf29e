"""The text of a lowered module: the code of each distinct block once, with the places where it stands."""

from __future__ import annotations

from torch import fx, nn


def listing(module: nn.Module) -> str:
    """Every generated class in the order of first use, under `class Name:`, the model last."""
    places: dict[type, list[str]] = {}
    first: dict[type, fx.GraphModule] = {}
    for path, part in module.named_modules():
        if isinstance(part, fx.GraphModule):
            places.setdefault(type(part), []).append(path)
            first.setdefault(type(part), part)
    blocks = [_block(part, places[kind]) for kind, part in first.items()]
    return "\n\n".join(reversed(blocks)) + "\n"


def _block(part: fx.GraphModule, places: list[str]) -> str:
    where = ", ".join(p for p in places if p) or "the model"
    body = "\n".join(f"    {line}".rstrip() for line in part.code.strip("\n").splitlines())
    return f"# {where}\nclass {type(part).__name__}:\n{body}"
