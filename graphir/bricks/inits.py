"""How weights start: the words that `init = ...` knows, with how many numbers each takes. The tensors are made in `backends/weights.py`.

A spec is a word, numbers where it takes some, and factors: `he`, `normal(0.02)`, `normal(0.02) * 0.5`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from ..ir.scalar import is_number, kind, show
from ..lang.diagnostic import nearest
from .signature import Misfit

TAKES: Mapping[str, tuple[int, int]] = {
    "zeros": (0, 0), "ones": (0, 0), "constant": (1, 1), "normal": (0, 1), "uniform": (0, 1), "trunc_normal": (0, 1), "he": (0, 0),
    "he_last": (0, 0), "lecun": (0, 0), "xavier": (0, 0), "xavier_uniform": (0, 0), "torch_linear": (0, 0), "kaiming_uniform": (0, 0),
    "small": (0, 0), "small_init": (0, 0), "wang": (1, 1), "eye": (0, 0), "identity": (0, 0), "orthogonal": (0, 1), "linspace": (2, 2),
    "log_range": (0, 0), "log_uniform": (0, 2), "step_bias": (0, 3), "forget_power": (2, 2),
}
HOST = re.compile(r"host\(\w+,[\w.]+\)\Z")
"""What a weight of a host program's module starts as: that module's tensor."""
_SPEC = re.compile(r"(\w+)(?:\(([^()]*)\))?((?: \* [^*()]+)*)\Z")


class Init(NamedTuple):
    """A spec that was read: what to draw, with which numbers, times which factor."""

    word: str
    numbers: tuple[float, ...] = ()
    factor: float = 1.0


def read_init(spec: str) -> Init:
    """Read a spec. Raises Misfit E0404 for a word that is not known, or numbers that it does not take."""
    if HOST.match(spec):
        return Init("host")
    found = _SPEC.match(spec)
    if not found:
        raise Misfit("E0404", f"`{spec[:60]}` is no initialisation", help=_words())
    word, inside, factors = found.groups()
    if word not in TAKES:
        raise Misfit("E0404", f"there is no initialisation `{word}`", help=nearest(word, TAKES) or _words())
    numbers = _numbers(inside.split(",") if inside and inside.strip() else [])
    least, most = TAKES[word]
    if numbers is None or not least <= len(numbers) <= most:
        count = str(least) if least == most else f"{least} to {most}"
        raise Misfit("E0404", f"`{word}` takes {count} number{'s' * (most != 1)}, not `{inside or ''}`")
    times = _numbers(factors.split(" * ")[1:])
    if times is None:
        raise Misfit("E0404", f"`{spec[:60]}` is multiplied by something that is no number")
    return Init(word, numbers, math.prod(times))


def _numbers(texts: list[str]) -> tuple[float, ...] | None:
    try:
        numbers = tuple(float(t) for t in texts)
    except ValueError:
        return None
    return numbers if all(map(math.isfinite, numbers)) else None


def _words() -> tuple[str, ...]:
    return (f"known are {', '.join(TAKES)}",)


def init_spec(given: Any) -> str:
    """An author's init as a spec: 0.5 is `constant(0.5)`, `["normal", 0.02]` is `normal(0.02)`, words are themselves."""
    if is_number(given):
        return f"constant({float(given)!r})"
    if isinstance(given, list | tuple) and given and isinstance(given[0], str) and all(is_number(n) for n in given[1:]):
        return f"{given[0]}({', '.join(repr(float(n)) for n in given[1:])})"
    return given if isinstance(given, str) else show(given)


def check_init(value: Any) -> None:
    """Check what an author gave as `init`: a number, a spec, a list of a word and its numbers, or none. Raises Misfit E0404."""
    if isinstance(value, str | list | tuple):
        read_init(init_spec(value))
    elif value is not None and not is_number(value):
        raise Misfit("E0404", f"`init` takes a word such as \"zeros\" or a number, not {kind(value)}")


def multiplied(spec: str, factor: float) -> str:
    """The spec times a factor."""
    known = read_init(spec)
    if factor == 1.0 or known.word == "host":
        return spec
    numbers = f"({', '.join(f'{n!r}' for n in known.numbers)})" if known.numbers else ""
    return f"{known.word}{numbers} * {known.factor * factor!r}"
