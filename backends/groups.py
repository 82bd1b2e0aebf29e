"""Parameter groups for torch optimisers, chosen by patterns over the paths of weights."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from graphir.lang.diagnostic import Diagnostic, GraphirError, nearest


def parameter_groups(
    module: nn.Module, groups: Sequence[Mapping[str, Any]], *, frozen: str = "error", **default: Any
) -> list[dict[str, Any]]:
    """The `params` of a torch optimiser: one dict per group, then one for all other trained parameters.

    A group is `{"match": pattern, ...}` or `{"match": [patterns], ...}`; whatever else it holds (`lr`, `weight_decay`) goes to the
    optimiser, as `default` does for the rest. In a pattern `*` stands for text within one segment of a path, `**` for any number
    of segments: `layers.*.mixer.**`, `**.bias`. A parameter belongs to the first group that matches it.

    Raises GraphirError: E0704 for a pattern that no parameter matches, or none that an earlier group left over; E0705 for a frozen
    weight that a pattern matches, unless `frozen="skip"` leaves such weights out.
    """
    if frozen not in ("error", "skip"):
        raise GraphirError(Diagnostic("E0404", f"`frozen` is `error` or `skip`, not `{frozen}`"))
    left = dict(module.named_parameters())
    known, found, problems = dict(left), [], []
    for group in groups:
        options = dict(group)
        patterns = options.pop("match", None)
        patterns = [patterns] if isinstance(patterns, str) else patterns
        if not patterns or not all(isinstance(p, str) for p in patterns):
            raise GraphirError(Diagnostic("E0704", "a group needs `match`: a pattern, or a list of them"))
        names: list[str] = []
        for pattern in patterns:
            matched, wrong = _matches(pattern, left, known, frozen)
            names += [n for n in matched if n not in names]
            problems += wrong
        found.append({"params": [left.pop(n) for n in names], "param_names": names, **options})
    if problems:
        raise GraphirError(problems)
    rest = {n: p for n, p in left.items() if p.requires_grad}
    if rest:
        found.append({"params": list(rest.values()), "param_names": list(rest), **default})
    return found


def _matches(
    pattern: str, left: Mapping[str, nn.Parameter], known: Mapping[str, nn.Parameter], frozen: str
) -> tuple[list[str], list[Diagnostic]]:
    wanted = re.compile(_expression(pattern))
    matched = [n for n in known if wanted.fullmatch(n)]
    if not matched:
        help = nearest(pattern.replace("**", "").replace("*", ""), known) or ("`graphir summary` lists the paths",)
        return [], [Diagnostic("E0704", f"no parameter matches `{pattern}`", help=help)]
    free = [n for n in matched if n in left]
    if not free:
        return [], [Diagnostic("E0704", f"earlier groups hold all that `{pattern}` matches", help=("put the narrower pattern first",))]
    held = [n for n in free if not left[n].requires_grad]
    if held and frozen == "error":
        shown = ", ".join(f"`{n}`" for n in held[:4]) + (f" and {len(held) - 4} more" if len(held) > 4 else "")
        help = ("make the pattern narrower, or pass `frozen=\"skip\"`",)
        return free, [Diagnostic("E0705", f"`{pattern}` matches frozen weights, which no optimiser trains: {shown}", help=help)]
    return [n for n in free if left[n].requires_grad], []


def _expression(pattern: str) -> str:
    """A regular expression for a pattern of path segments."""
    parts = [r"(?:[^.]+\.)*" if part == "**" else "[^.]*".join(map(re.escape, part.split("*"))) + r"\." for part in pattern.split(".")]
    text = "".join(parts)
    return text + "[^.]+" if pattern.endswith("**") else text.removesuffix(r"\.")
