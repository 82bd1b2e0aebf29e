"""Shape errors as diagnostics: across an arrow both sides are cited, with where their numbers came from."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from ..bricks.signature import Misfit, show_type
from ..ir.types import Type
from ..lang import syntax as s
from ..lang.diagnostic import GraphirError, Label
from .run import Run

if TYPE_CHECKING:
    from .apply import At


def misfit(run: Run, e: Misfit, ports: tuple[s.Port, ...], types: tuple[Type, ...], names: Any, at: At) -> GraphirError:
    """The diagnostic of a shape error: across an arrow it cites both sides."""
    notes = [*e.notes, *_where_from(run, e)]
    if e.code == "E0207" and len(types) == 2:
        notes.insert(0, f"the left side is {types[0]}, the right side {types[1]}")
    if e.code != "E0205" or at.before is None or e.port < 0 or e.port >= len(ports):
        labels = (Label(at.before, f"gives {_types(types)}"),) if at.before is not None and types and at.before != at.span else ()
        return run.fail(e.code, str(e), at.span, scope=at.scope, labels=labels, notes=notes, help=e.help)
    port, type = ports[e.port], types[e.port]
    wanted = show_type(port.type, {k: v for k, v in names.items()})
    help = ("write `~>` to let the compiler insert a stitch",) if _last_axis_only(port, type) else e.help
    return run.fail(
        "E0203",
        f"shapes differ across `{at.arrow}`",
        at.before,
        f"gives {_types(types)}",
        scope=at.scope,
        labels=(Label(at.span, f"takes {wanted}"),),
        notes=(str(e), *notes),
        help=help,
    )


def _types(types: tuple[Type, ...]) -> str:
    return str(types[0]) if len(types) == 1 else f"({', '.join(map(str, types))})"


def _last_axis_only(port: s.Port, type: Type) -> bool:
    return bool(port.type.dims) and bool(type.shape) and isinstance(type.shape[-1], int)


def _where_from(run: Run, e: Misfit) -> list[str]:
    """Where the numbers of a message got their value, if a parameter of the model gave it."""
    numbers = dict.fromkeys(int(n) for n in re.findall(r"(?<![\w.])\d+(?![\w.])", str(e)))
    return [f"{text} at {span}" for n in numbers if n in run.given for text, span in [run.given[n]]][:2]
