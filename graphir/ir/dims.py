"""Symbolic dimensions: integer polynomials over runtime names, floor quotients and opaque min/max.

A dim is a plain `int` or a `Poly`. Polys have one normal form, so equality of forms is equality; a difference that is a
non-zero constant is inequality; anything else is unknown. `Facts` hold what `require` has established: `T % 4 == 0` is
recorded by writing T as 4 * (T // 4), so that every later comparison sees it. (After JAX's shape polynomials, with three
answers instead of two.)

Dims are bounded: one that would grow past the limits below raises OverflowError before it is built, so that a short
program cannot make a long dim, and recursion over a dim stays shallow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, reduce
from math import gcd
from typing import TypeAlias, Union

MAX_COEFFICIENT = 2**256
MAX_ATOMS = 1024  # in one dim, those inside quotients and extrema counted
MAX_DEGREE = 32  # factors in one product
MAX_RIVALS = 64  # dims in one min or max
MAX_DEPTH = 32  # quotients and extrema inside each other


@dataclass(frozen=True, slots=True)
class Quotient:
    """floor(poly / divisor); the poly is in normal form and the divisor is above 1."""

    poly: Poly
    divisor: int

    def __str__(self) -> str:
        inner = str(self.poly)
        return f"{inner}//{self.divisor}" if inner.isidentifier() else f"({inner})//{self.divisor}"


@dataclass(frozen=True, slots=True)
class Extremum:
    """min or max of dims, opaque to arithmetic."""

    op: str
    of: tuple[Dim, ...]

    def __str__(self) -> str:
        return f"{self.op}({', '.join(map(str, self.of))})"


Atom: TypeAlias = Union[str, Quotient, Extremum]
Monomial: TypeAlias = tuple[Atom, ...]


@dataclass(frozen=True, eq=False)
class Poly:
    """A sum of coefficient * product of atoms, sorted; `()` is the constant's monomial. Never constant: that is an int."""

    terms: tuple[tuple[Monomial, int], ...]

    @cached_property
    def _hash(self) -> int:
        return hash(self.terms)

    @cached_property
    def extent(self) -> tuple[int, int]:
        """How many atoms the dim is written with, and how deep they nest."""
        size = depth = 0
        for monomial, _ in self.terms:
            size += 1
            for atom in monomial:
                inside, below = _extent(atom)
                size += inside
                depth = max(depth, below)
        return size, depth

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Poly) and self.terms == other.terms)

    def __add__(self, other: Dim) -> Dim:
        return _sum(self, other, 1)

    __radd__ = __add__

    def __sub__(self, other: Dim) -> Dim:
        return _sum(self, other, -1)

    def __rsub__(self, other: Dim) -> Dim:
        return _sum(other, self, -1)

    def __neg__(self) -> Dim:
        return self * -1

    def __mul__(self, other: Dim) -> Dim:
        if not isinstance(other, Poly):
            if abs(other) > MAX_COEFFICIENT:
                raise OverflowError("a dim has too large a factor")
            return _make({monomial: c * other for monomial, c in self.terms})
        if self.extent[0] * other.extent[0] > MAX_ATOMS:
            raise OverflowError("a product of dims has too many terms")
        out: dict[Monomial, int] = {}
        for left, a in self.terms:
            for right, b in other.terms:
                if len(left) + len(right) > MAX_DEGREE:
                    raise OverflowError("a product of dims has too many factors")
                monomial = tuple(sorted(left + right, key=str))
                out[monomial] = out.get(monomial, 0) + a * b
        return _make(out)

    __rmul__ = __mul__

    def __floordiv__(self, divisor: int) -> Dim:
        return floordiv(self, divisor)

    def __mod__(self, divisor: int) -> Dim:
        return self - divisor * floordiv(self, divisor)

    @cached_property
    def _text(self) -> str:
        parts: list[str] = []
        for monomial, coefficient in sorted(self.terms, key=lambda t: (-len(t[0]), _order(t))):
            size = abs(coefficient)
            alone = len(monomial) == 1 and size == 1 and (parts or coefficient > 0)
            product = "*".join([f"({a})" if isinstance(a, Quotient) and not alone else str(a) for a in monomial])
            body = product if product and size == 1 else f"{size}*{product}" if product else str(size)
            sign = "-" if coefficient < 0 else "+"
            parts.append(f"{sign} {body}" if parts else (f"-{body}" if coefficient < 0 else body))
        return " ".join(parts)

    def __str__(self) -> str:
        return self._text

    __repr__ = __str__


Dim: TypeAlias = Union[int, Poly]


@lru_cache(maxsize=4096)
def symbol(name: str) -> Poly:
    """The dim that is a runtime name."""
    return Poly((((name,), 1),))


def _atom(atom: Atom) -> Poly:
    return _bounded(Poly((((atom,), 1),)))


def _bounded(poly: Poly) -> Poly:
    size, depth = poly.extent
    if size > MAX_ATOMS or depth > MAX_DEPTH:
        raise OverflowError("a dim is too long or nested too deep")
    return poly


def _extent(atom: Atom) -> tuple[int, int]:
    if isinstance(atom, str):
        return 1, 0
    parts = (atom.poly,) if isinstance(atom, Quotient) else atom.of
    extents = [part.extent for part in parts if isinstance(part, Poly)]
    return 1 + sum([size for size, _ in extents]), 1 + max([depth for _, depth in extents], default=0)


def _terms(dim: Dim) -> tuple[tuple[Monomial, int], ...]:
    return dim.terms if isinstance(dim, Poly) else (((), dim),) if dim else ()


def _order(term: tuple[Monomial, int]) -> list[str]:
    return [str(atom) for atom in term[0]]


def _make(terms: dict[Monomial, int]) -> Dim:
    kept = [(monomial, c) for monomial, c in terms.items() if c]
    if not kept:
        return 0
    for _, c in kept:
        if not -MAX_COEFFICIENT < c < MAX_COEFFICIENT:
            raise OverflowError("a dim has too large a factor")
    if len(kept) == 1:
        return _bounded(Poly((kept[0],))) if kept[0][0] else kept[0][1]
    return _bounded(Poly(tuple(sorted(kept, key=_order))))


def _sum(left: Dim, right: Dim, sign: int) -> Dim:
    out = dict(_terms(left))
    for monomial, c in _terms(right):
        out[monomial] = out.get(monomial, 0) + sign * c
    return _make(out)


def floordiv(dim: Dim, divisor: int) -> Dim:
    """floor(dim / divisor), in normal form: whole multiples leave the floor, so that what stays has coefficients from 1 to
    divisor - 1; common factors cancel; floors of floors merge."""
    if divisor <= 0:
        raise ZeroDivisionError("a dim is divided by a positive integer only")
    if isinstance(dim, int):
        return dim // divisor
    if divisor == 1:
        return dim
    if divisor > MAX_COEFFICIENT:
        raise OverflowError("a dim has too large a divisor")
    whole: dict[Monomial, int] = {}
    rest: dict[Monomial, int] = {}
    for monomial, c in dim.terms:
        quotient, remainder = divmod(c, divisor)
        whole[monomial] = quotient
        if remainder:
            rest[monomial] = remainder
    symbolic = [c for monomial, c in rest.items() if monomial]
    if not symbolic:
        return _make(whole)
    factor = reduce(gcd, symbolic, divisor)
    inner = _make({monomial: c // factor for monomial, c in rest.items()})
    divisor //= factor
    if divisor == 1:
        return _make(whole) + inner
    assert isinstance(inner, Poly)
    # floor((floor(p / a) + r) / b) = floor((p + a r) / (a b)) for every whole r
    under = next((m[0] for m, c in inner.terms if c == 1 and len(m) == 1 and isinstance(m[0], Quotient)), None)
    if isinstance(under, Quotient):
        rest_of_it = inner - _atom(under)
        return _make(whole) + floordiv(under.poly + under.divisor * rest_of_it, under.divisor * divisor)
    return _make(whole) + _atom(Quotient(inner, divisor))


def extremum(op: str, dims: tuple[Dim, ...]) -> Dim:
    """min or max of dims: one of them where differences are known, opaque otherwise. Extrema of the same kind flatten."""
    flat: list[Dim] = []
    for dim in _unrivalled(op, dims):
        inner = _lone_atom(dim)
        flat.extend(inner.of if isinstance(inner, Extremum) and inner.op == op else (dim,))
    kept = _unrivalled(op, flat)
    return kept[0] if len(kept) == 1 else _atom(Extremum(op, tuple(sorted(kept, key=str))))


def _unrivalled(op: str, dims: Iterable[Dim]) -> list[Dim]:
    """Of dims a known number apart, the one that wins."""
    kept: list[Dim] = []
    for dim in dims:
        rival = next((i for i, other in enumerate(kept) if isinstance(other - dim, int)), None)
        if rival is None and len(kept) == MAX_RIVALS:
            raise OverflowError(f"`{op}` of too many dims")
        if rival is None:
            kept.append(dim)
        elif (kept[rival] - dim > 0) == (op == "min"):  # type: ignore[operator]
            kept[rival] = dim
    return kept


def _lone_atom(dim: Dim) -> Atom | None:
    """The atom that a dim is, if it is only that."""
    if isinstance(dim, Poly) and len(dim.terms) == 1:
        monomial, coefficient = dim.terms[0]
        if coefficient == 1 and len(monomial) == 1:
            return monomial[0]
    return None


def substitute(dim: Dim, names: Callable[[str], Dim | None]) -> Dim:
    """The dim with names replaced where `names` gives a replacement."""
    if isinstance(dim, int):
        return dim
    total: Dim = 0
    for monomial, c in dim.terms:
        product: Dim = c
        for atom in monomial:
            product = product * _substitute_atom(atom, names)
        total = total + product
    return total


def _substitute_atom(atom: Atom, names: Callable[[str], Dim | None]) -> Dim:
    if isinstance(atom, str):
        new = names(atom)
        return symbol(atom) if new is None else new
    if isinstance(atom, Quotient):
        return floordiv(substitute(atom.poly, names), atom.divisor)
    return extremum(atom.op, tuple(substitute(d, names) for d in atom.of))


def evaluate(dim: Dim, sizes: Mapping[str, int]) -> int:
    """The integer a dim has under the given sizes; KeyError where a name has none."""
    if isinstance(dim, int):
        return dim
    total = 0
    for monomial, c in dim.terms:
        for atom in monomial:
            c *= sizes[atom] if isinstance(atom, str) else _evaluate_atom(atom, sizes)
        total += c
    return total


def _evaluate_atom(atom: Quotient | Extremum, sizes: Mapping[str, int]) -> int:
    if isinstance(atom, Quotient):
        return evaluate(atom.poly, sizes) // atom.divisor
    values = [evaluate(d, sizes) for d in atom.of]
    return min(values) if atom.op == "min" else max(values)


def free_names(dim: Dim) -> set[str]:
    """The runtime names a dim mentions."""
    found: set[str] = set()
    stack = [dim]
    while stack:
        d = stack.pop()
        if isinstance(d, int):
            continue
        for monomial, _ in d.terms:
            for atom in monomial:
                if isinstance(atom, str):
                    found.add(atom)
                elif isinstance(atom, Quotient):
                    stack.append(atom.poly)
                else:
                    stack.extend(atom.of)
    return found


@dataclass
class Facts:
    """What is known of the runtime names of one graph. Adding a fact never removes one.

    `equal` and `moduli` rewrite names; what they cannot say is kept as polynomials that are zero, and as known divisors.
    """

    moduli: dict[str, int] = field(default_factory=dict)
    equal: dict[str, Dim] = field(default_factory=dict)
    divisible: set[tuple[Dim, int]] = field(default_factory=set)
    zeros: set[Poly] = field(default_factory=set)

    def normal(self, dim: Dim) -> Dim:
        """The dim rewritten with all that is known."""
        if isinstance(dim, int) or not (self.moduli or self.equal):
            return dim
        return substitute(dim, self._known)

    def _known(self, name: str) -> Dim | None:
        if name in self.equal:
            return self.normal(self.equal[name])
        if name in self.moduli:
            modulus = self.moduli[name]
            return modulus * _atom(Quotient(symbol(name), modulus))
        return None

    def same(self, left: Dim, right: Dim) -> bool | None:
        """True (equal), False (different) or None (unknown)."""
        if isinstance(left, int) and isinstance(right, int):
            return left == right
        if left == right:
            return True
        difference = self.normal(left - right)
        if isinstance(difference, int):
            return difference == 0
        return True if self.zeros and _primitive(difference) in self.zeros else None

    def is_divisible(self, dim: Dim, divisor: int) -> bool | None:
        """Whether divisor divides dim: True, False or None (unknown)."""
        dim = self.normal(dim)
        remainder = dim % divisor
        if isinstance(remainder, int):
            return remainder == 0
        known = any(known == dim and by % divisor == 0 for known, by in self.divisible)
        return True if known or _primitive(remainder) in self.zeros else None

    def add_divisible(self, dim: Dim, divisor: int) -> None:
        """Record dim % divisor == 0."""
        dim = self.normal(dim)
        if isinstance(dim, int):
            return
        (monomial, coefficient), needed = dim.terms[0], divisor
        needed //= gcd(coefficient, divisor)
        if len(dim.terms) == len(monomial) == 1:
            atom = monomial[0]
            if isinstance(atom, Quotient) and self.moduli.get(str(atom.poly)) == atom.divisor:
                atom, needed = str(atom.poly), needed * atom.divisor
            if isinstance(atom, str):
                old = self.moduli.get(atom, 1)
                self.moduli[atom] = old * needed // gcd(old, needed)
                self._settle()
                return
        self.divisible.add((dim, divisor))
        self._add_zero(dim % divisor)

    def add_equal(self, left: Dim, right: Dim) -> None:
        """Record left == right. A name of its own is written as the other side from now on."""
        difference = self.normal(left - right)
        if isinstance(difference, int):
            return
        for one, other in ((left, right), (right, left)):
            name = _lone_atom(one)
            if not isinstance(name, str) or name in self.equal:
                continue
            other = self.normal(other)
            if name in free_names(other):
                continue
            modulus = self.moduli.pop(name, 1)
            self.equal[name] = other
            if modulus > 1:
                self.add_divisible(other, modulus)
            self._settle()
            return
        self._add_zero(difference)

    def _add_zero(self, dim: Dim) -> None:
        if isinstance(dim, Poly):
            self.zeros.add(_primitive(dim))

    def _settle(self) -> None:
        """Bring what was recorded earlier into the new normal form."""
        self.equal = {name: self.normal(dim) for name, dim in self.equal.items()}
        self.divisible = {(self.normal(dim), divisor) for dim, divisor in self.divisible}
        self.zeros = {_primitive(dim) for dim in map(self.normal, self.zeros) if isinstance(dim, Poly)}


def _primitive(dim: Poly) -> Poly:
    """The dim without its coefficients' common factor, its first coefficient positive: zero exactly where the dim is."""
    factor = reduce(gcd, [c for _, c in dim.terms], 0)
    if dim.terms[0][1] < 0:
        factor = -factor
    return dim if factor == 1 else Poly(tuple([(monomial, c // factor) for monomial, c in dim.terms]))
