"""The einops notation: patterns such as `b t (h k) -> b h t k`, their shapes, and the torch views that carry them out.

A pattern becomes a plan once: split grouped axes, drop ones, reduce, permute, insert new axes, group again. Places before an
ellipsis are counted from the front and places after it from the back, so that a plan never needs to know the rank, and its
steps are views of torch that take symbolic sizes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ..ir.dims import Dim, Facts
from ..ir.scalar import kind as what
from ..lang.diagnostic import nearest
from .shapes import a_size, divided, expect_same, product, show_shape
from .signature import Misfit

if TYPE_CHECKING:
    import torch

REST = "..."
Group = tuple[str, ...]
Sizes = Sequence[tuple[str, Any]]
_WORD = re.compile(r"\s*(\.\.\.|[A-Za-z_]\w*|\d+|[()])")
BAD = "E0404"


def groups(text: str, pattern: str) -> tuple[Group, ...]:
    """One side of a pattern: an entry per axis, several names where the axis is a group. Raises Misfit."""
    out: list[Group] = []
    inside: list[str] | None = None
    at = 0
    text = text.strip()
    while at < len(text):
        found = _WORD.match(text, at)
        if found is None:
            raise Misfit(BAD, f"`{text[at:].strip()[:1]}` cannot stand in the pattern \"{pattern}\"")
        word, at = found[1], found.end()
        if word == "(":
            if inside is not None:
                raise Misfit(BAD, f"groups do not nest in the pattern \"{pattern}\"")
            inside = []
        elif word == ")":
            if inside is None:
                raise Misfit(BAD, f"`)` without `(` in the pattern \"{pattern}\"")
            out.append((REST, "1") if inside == [REST] else tuple(inside) or ("1",))
            inside = None
        elif word.isdigit() and word != "1":
            help = ("name the axis and give its size",)
            raise Misfit(BAD, f"the pattern \"{pattern}\" holds the number {word}; only 1 may stand for itself", help=help)
        elif inside is not None:
            inside.append(word)
        else:
            out.append((word,))
    if inside is not None:
        raise Misfit(BAD, f"`(` without `)` in the pattern \"{pattern}\"")
    names = [n for g in out for n in g if n != "1"]
    twice = next((n for n in names if names.count(n) > 1), None)
    if twice:
        raise Misfit(BAD, f"`{twice}` stands twice on one side of the pattern \"{pattern}\"")
    return tuple(out)


def check_pattern(pattern: Any, kind: str) -> None:
    """Raises Misfit where a pattern is no word."""
    if not isinstance(pattern, str):
        help = ('write it in quotes: `"b t d -> b d t"`',)
        raise Misfit(BAD, f"the pattern of `{kind}` is a word, not {what(pattern)}", help=help)


def sides(pattern: str, arrow: str = "->") -> tuple[str, str]:
    left, found, right = pattern.partition(arrow)
    if not found or arrow in right:
        raise Misfit(BAD, f"the pattern \"{pattern}\" needs one `->`")
    return left, right


@dataclass(frozen=True)
class Plan:
    """The steps of a pattern. An axis is a place from the front, or a negative one from the back."""

    left: tuple[Group, ...]
    right: tuple[Group, ...]
    unflatten: tuple[tuple[int, Group], ...]
    squeeze: tuple[int, ...]
    reduce: tuple[int, ...]
    permute: tuple[int, ...]
    move: tuple[tuple[int, ...], tuple[int, ...]]
    unsqueeze: tuple[int, ...]
    expand: tuple[tuple[int, str], ...]
    flatten: tuple[tuple[int, int], ...]
    ranked: int | None


def _places(items: Sequence[Any], rest: int | None) -> list[int]:
    """The place of each item, counted from the back where it stands after the ellipsis."""
    return [i if rest is None or i < rest else i - len(items) for i in range(len(items))]


def _index(items: Sequence[Any], item: Any) -> int | None:
    return items.index(item) if item in items else None


def _outwards(places: list[int]) -> list[int]:
    """Order in which axes may be split or dropped without moving the places that follow: front ones last first, back ones first first."""
    front = [i for i in range(len(places)) if places[i] >= 0]
    back = [i for i in range(len(places)) if places[i] < 0]
    return front[::-1] + back


@lru_cache(maxsize=4096)
def plan(pattern: str, kind: str = "rearrange") -> Plan:
    """The steps of a pattern; `kind` is rearrange, repeat or reduce. Raises Misfit."""
    before, after = sides(pattern)
    left, right = groups(before, pattern), groups(after, pattern)
    names, wanted = [n for g in left for n in g], [n for g in right for n in g]
    _check_names(pattern, kind, left, names, wanted)

    places = _places(left, _index(left, (REST,)))
    unflatten = tuple((places[i], left[i]) for i in _outwards(places) if len(left[i]) > 1)
    places = _places(names, _index(names, REST))
    squeeze = tuple(places[i] for i in _outwards(places) if names[i] == "1")

    kept = [n for n in names if n != "1"]
    places = _places(kept, _index(kept, REST))
    reduce = tuple(p for p, n in zip(places, kept) if n not in wanted)
    kept = [n for n in kept if n in wanted]
    order = [n for n in wanted if n in kept]
    permute: tuple[int, ...] = ()
    move: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    if order != kept and REST not in kept:
        permute = tuple(kept.index(n) for n in order)
    elif order != kept:
        sources, targets = _places(kept, kept.index(REST)), _places(order, order.index(REST))
        moved = [n for n in kept if n != REST]
        move = (tuple(sources[kept.index(n)] for n in moved), tuple(targets[order.index(n)] for n in moved))

    rest = _index(wanted, REST)
    places = _places(wanted, rest)
    new = [i for i, n in enumerate(wanted) if n == "1" or n not in kept]
    unsqueeze = tuple(places[i] for i in new if places[i] >= 0) + tuple(places[i] for i in reversed(new) if places[i] < 0)
    expand = tuple((places[i], wanted[i]) for i in new if wanted[i] != "1")
    return Plan(
        left, right, unflatten, squeeze, reduce, permute, move, unsqueeze, expand, _regroup(right, wanted, places),
        None if rest is not None else len(wanted),
    )


def _check_names(pattern: str, kind: str, left: tuple[Group, ...], names: list[str], wanted: list[str]) -> None:
    if any(REST in g and len(g) > 1 for g in left):
        raise Misfit(BAD, f"an ellipsis cannot be taken apart in the pattern \"{pattern}\"")
    if (REST in wanted) != (REST in names):
        raise Misfit(BAD, f"`...` must stand on both sides of the pattern \"{pattern}\"")
    lost = [n for n in names if n != "1" and n not in wanted]
    new = [n for n in wanted if n != "1" and n not in names]
    if lost and kind != "reduce":
        raise Misfit(BAD, f"`{lost[0]}` is lost in the pattern \"{pattern}\"", help=("`reduce` removes axes",))
    if new and kind != "repeat":
        raise Misfit(BAD, f"`{new[0]}` comes from nowhere in the pattern \"{pattern}\"", help=("`repeat` makes new axes",))


def _regroup(right: tuple[Group, ...], wanted: list[str], places: list[int]) -> tuple[tuple[int, int], ...]:
    """Ranges to flatten: first the one around the ellipsis, then those behind it from left, then those before it from the right."""
    around, behind, front = [], [], []
    at = 0
    for group in right:
        first, last = at, at + len(group) - 1
        at = last + 1
        if len(group) < 2:
            continue
        span = (places[first], places[last])
        if REST in group:
            around.append((first, last - len(wanted)))
        elif span[0] < 0:
            behind.append(span)
        else:
            front.append(span)
    return tuple(around + behind + front[::-1])


def apply(x: torch.Tensor, steps: Plan, sizes: Mapping[str, Any], op: str = "") -> torch.Tensor:
    """Carry a plan out: views, at most one permutation, one reduction and one copy."""
    for axis, group in steps.unflatten:
        x = x.unflatten(axis, tuple([1 if n == "1" else sizes.get(n, -1) for n in group]))
    for axis in steps.squeeze:
        x = x.squeeze(axis)
    if steps.reduce:
        x = REDUCTIONS[op](x, steps.reduce)
    if steps.permute:
        x = x.permute(steps.permute)
    elif steps.move[0]:
        x = x.movedim(*steps.move)
    for axis in steps.unsqueeze:
        x = x.unsqueeze(axis)
    if steps.expand and steps.ranked is not None:
        new = dict(steps.expand)
        x = x.expand([sizes[new[i]] if i in new else -1 for i in range(steps.ranked)])
    elif steps.expand:
        for axis, name in steps.expand:
            x = x.repeat_interleave(sizes[name], axis)
    for first, last in steps.flatten:
        x = x.flatten(first, last)
    return x


REDUCTIONS = {
    "mean": lambda x, axes: x.mean(axes),
    "sum": lambda x, axes: x.sum(axes),
    "max": lambda x, axes: x.amax(axes),
    "min": lambda x, axes: x.amin(axes),
}


def shape_of(pattern: str, kind: str, shape: tuple[Dim, ...], given: Sizes | None, facts: Facts) -> tuple[Dim, ...]:
    """The shape that a pattern makes of another. Raises Misfit."""
    check_pattern(pattern, kind)
    if not isinstance(given, tuple | list | None) or not all(isinstance(g, tuple) and len(g) == 2 for g in given or ()):
        raise Misfit(BAD, "`sizes` of a pattern are named one by one", help=("write `k = 4`",))
    steps = plan(pattern, kind)
    names = [n for side in (steps.left, steps.right) for g in side for n in g]
    sizes: dict[str, Dim] = {}
    for name, size in given or ():
        if name not in names:
            close = nearest(name, [n for n in names if n.isidentifier()])
            raise Misfit("E0302", f"the pattern \"{pattern}\" has no axis `{name}`", help=close)
        sizes[name] = a_size(size, f"`{name}`")
    rest = _bind(pattern, steps.left, shape, sizes, facts)
    out: list[Dim] = []
    for group in steps.right:
        if group == (REST,):
            out.extend(rest)
            continue
        missing = next((n for n in group if n not in sizes and n not in ("1", REST)), None)
        if missing:
            raise Misfit(BAD, f"the pattern \"{pattern}\" does not tell how long `{missing}` is", help=(f"add `{missing} = ...`",))
        out.append(product([product(rest) if n == REST else 1 if n == "1" else sizes[n] for n in group]))
    return tuple(out)


def _bind(pattern: str, left: tuple[Group, ...], shape: tuple[Dim, ...], sizes: dict[str, Dim], facts: Facts) -> tuple[Dim, ...]:
    """Learn the size of every name on the left; what the ellipsis stands for."""
    at = _index(left, (REST,))
    fixed = len(left) - (at is not None)
    if len(shape) < fixed or (at is None and len(shape) != fixed):
        least = "" if at is None else "at least "
        raise Misfit("E0202", f"the pattern \"{pattern}\" takes {least}{fixed} axes, not {show_shape(shape)}", 0)
    rest: tuple[Dim, ...] = ()
    dims = list(shape)
    if at is not None:
        end = len(shape) - (fixed - at)
        rest, dims = shape[at:end], list(shape[:at] + shape[end:])
    for group, dim in zip([g for g in left if g != (REST,)], dims):
        _bind_group(pattern, group, dim, sizes, facts)
    return rest


def _bind_group(pattern: str, group: Group, dim: Dim, sizes: dict[str, Dim], facts: Facts) -> None:
    unknown = [n for n in group if n != "1" and n not in sizes]
    known = product([sizes[n] for n in group if n in sizes])
    shown = group[0] if len(group) == 1 else f"({' '.join(group)})"
    if len(unknown) > 1:
        help = (f"add `{unknown[-1]} = ...`",)
        raise Misfit(BAD, f"the pattern \"{pattern}\" does not tell how {dim} is divided in {shown}", 0, help)
    if not unknown:
        expect_same(facts, known, dim, f"`{shown}` of the pattern \"{pattern}\" is {known}, but the axis is {dim}", 0)
        return
    sizes[unknown[0]] = divided(dim, known, facts, f"`{shown}` of the pattern \"{pattern}\"")


# einsum


@lru_cache(maxsize=4096)
def equation(pattern: str) -> tuple[str, tuple[tuple[str, ...], ...], tuple[str, ...]]:
    """Torch's letters for a pattern of names, the names of each operand and those of the result. Raises Misfit."""
    before, after = sides(pattern)
    operands = tuple(_names(text, pattern) for text in before.split(","))
    result = _names(after, pattern)
    letters: dict[str, str] = {REST: REST}
    alphabet = iter("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
    for name in [n for names in operands for n in names]:
        if name not in letters:
            letters[name] = next(alphabet, "")
    if "" in letters.values():
        raise Misfit(BAD, "a pattern of `einsum` has at most 52 axes")
    strange = next((n for n in result if n not in letters or (n == REST and not any(REST in o for o in operands))), None)
    if strange or len(set(result)) < len(result):
        why = f"`{strange}` comes from nowhere" if strange else "an axis stands twice on the right"
        raise Misfit(BAD, f"{why} in the pattern \"{pattern}\"")
    spelt = ["".join(letters[n] for n in names) for names in operands]
    return f"{','.join(spelt)}->{''.join(letters[n] for n in result)}", operands, result


def _names(text: str, pattern: str) -> tuple[str, ...]:
    words = text.split()
    for word in words:
        if word != REST and not re.fullmatch(r"[A-Za-z_]\w*", word):
            raise Misfit(BAD, f"`{word}` cannot stand in the pattern \"{pattern}\" of `einsum`")
    if words.count(REST) > 1:
        raise Misfit(BAD, f"`...` stands twice in one operand of the pattern \"{pattern}\"")
    return tuple(words)


def einsum_sizes(pattern: str, shapes: Sequence[tuple[Dim, ...]], facts: Facts) -> dict[str, Any]:
    """The size of every name; under `...` the dims it stands for. Raises Misfit."""
    check_pattern(pattern, "einsum")
    _, operands, _ = equation(pattern)
    if len(operands) != len(shapes):
        raise Misfit("E0305", f"the pattern \"{pattern}\" takes {len(operands)} tensor{'s' * (len(operands) != 1)}, not {len(shapes)}")
    sizes: dict[str, Any] = {}
    for port, (names, shape) in enumerate(zip(operands, shapes)):
        rest = len(shape) - len(names) + 1 if REST in names else 0
        if rest < 0 or (REST not in names and len(names) != len(shape)):
            raise Misfit("E0202", f"`{' '.join(names)}` of the pattern \"{pattern}\" does not fit {show_shape(shape)}", port)
        at = 0
        for name in names:
            value: Any = shape[at : at + rest] if name == REST else shape[at]
            at += rest if name == REST else 1
            _same_size(pattern, name, sizes.setdefault(name, value), value, facts, port)
    return sizes


def _same_size(pattern: str, name: str, old: Any, new: Any, facts: Facts, port: int) -> None:
    pairs = list(zip(old, new)) if name == REST else [(old, new)]
    shown = (show_shape(old), show_shape(new)) if name == REST else (old, new)
    message = f"`{name}` of the pattern \"{pattern}\" is {shown[0]} in one input and {shown[1]} in another"
    if name == REST and len(old) != len(new):
        raise Misfit("E0205", message, port)
    for a, b in pairs:
        expect_same(facts, a, b, message, port)


def einsum_flops(pattern: str, sizes: Mapping[str, Any]) -> Dim:
    """Twice the size of each pairwise contraction, from left to right; products without a sum count nothing, as torch counts."""
    _, operands, result = equation(pattern)
    total: Dim = 0
    left = set(operands[0])
    for index, right in enumerate(operands[1:], 1):
        later = set(result).union(*operands[index + 1 :])
        mine = {n for n in left if n in later or n in right}
        other = {n for n in right if n in later or n in left}
        summed = (mine | other) - later
        if summed:
            total = total + 2 * product([product(sizes[n]) if n == REST else sizes[n] for n in sorted(mine | other)])
        left = (mine | other) & later
    return total
