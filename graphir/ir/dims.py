"""Symbolic dimensions: integer polynomials over runtime names, floor quotients and opaque min/max.

A dim is a plain `int` or a `Poly`. Polys have one normal form, so equality of forms is equality; a difference that is a
non-zero constant is inequality; anything else is unknown. `Facts` hold what `require` has established: `T % 4 == 0` is
recorded by writing T as 4 * (T // 4), so that every later comparison sees it. (After JAX's shape polynomials, with three
answers instead of two.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, reduce
from math import gcd
from typing import TypeAlias, Union


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
        out: dict[Monomial, int] = {}
        for left, a in self.terms:
            for right, b in _terms(other):
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
        parts = []
        for monomial, coefficient in sorted(self.terms, key=lambda t: (-len(t[0]), str(t[0]))):
            product = "*".join(map(str, monomial))
            size = abs(coefficient)
            body = product if product and size == 1 else f"{size}*{product}" if product else str(size)
            sign = "-" if coefficient < 0 else "+"
            parts.append(f"{sign} {body}" if parts else (f"-{body}" if coefficient < 0 else body))
        return " ".join(parts)

    def __str__(self) -> str:
        return self._text

    __repr__ = __str__


Dim: TypeAlias = Union[int, Poly]


def symbol(name: str) -> Poly:
    """The dim that is a runtime name."""
    return Poly((((name,), 1),))


def _atom(atom: Atom) -> Poly:
    return Poly((((atom,), 1),))


def _terms(dim: Dim) -> tuple[tuple[Monomial, int], ...]:
    return dim.terms if isinstance(dim, Poly) else (((), dim),) if dim else ()


def _make(terms: dict[Monomial, int]) -> Dim:
    kept = [(monomial, c) for monomial, c in terms.items() if c]
    if not kept:
        return 0
    if len(kept) == 1 and kept[0][0] == ():
        return kept[0][1]
    return Poly(tuple(sorted(kept, key=lambda t: str(t[0]))))


def _sum(left: Dim, right: Dim, sign: int) -> Dim:
    out = dict(_terms(left))
    for monomial, c in _terms(right):
        out[monomial] = out.get(monomial, 0) + sign * c
    return _make(out)


def floordiv(dim: Dim, divisor: int) -> Dim:
    """floor(dim / divisor), in normal form: whole multiples leave the floor, common factors cancel, floors of floors merge."""
    if divisor <= 0:
        raise ZeroDivisionError("a dim is divided by a positive integer only")
    if isinstance(dim, int):
        return dim // divisor
    if divisor == 1:
        return dim
    whole: dict[Monomial, int] = {}
    rest: dict[Monomial, int] = {}
    for monomial, c in dim.terms:
        quotient, remainder = divmod(c, divisor)
        if monomial and remainder:
            rest[monomial] = c
        else:
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
    # floor((floor(p / a) + c) / b) = floor((p + a c) / (a b))
    if isinstance(inner, Poly):
        atoms = [(monomial, c) for monomial, c in inner.terms if monomial]
        if len(atoms) == 1 and atoms[0][1] == 1 and len(atoms[0][0]) == 1 and isinstance(atoms[0][0][0], Quotient):
            under = atoms[0][0][0]
            constant = inner - _atom(under)
            return _make(whole) + floordiv(under.poly + under.divisor * constant, under.divisor * divisor)
    assert isinstance(inner, Poly)
    return _make(whole) + _atom(Quotient(inner, divisor))


def extremum(op: str, dims: tuple[Dim, ...]) -> Dim:
    """min or max of dims: a number when all are, one of them when they are the same, opaque otherwise."""
    if all(isinstance(d, int) for d in dims):
        return min(dims) if op == "min" else max(dims)  # type: ignore[type-var]
    unique = tuple(sorted(set(dims), key=str))
    return unique[0] if len(unique) == 1 else _atom(Extremum(op, unique))


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
    out = substitute(dim, sizes.get)
    if isinstance(out, Poly):
        missing = sorted(free_names(out))
        raise KeyError(missing[0])
    return out


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
    """What is known of the runtime names of one graph. Adding a fact never removes one."""

    moduli: dict[str, int] = field(default_factory=dict)
    equal: dict[str, Dim] = field(default_factory=dict)
    divisible: set[tuple[Dim, int]] = field(default_factory=set)

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
        return difference == 0 if isinstance(difference, int) else None

    def is_divisible(self, dim: Dim, divisor: int) -> bool | None:
        """Whether divisor divides dim: True, False or None (unknown)."""
        dim = self.normal(dim)
        remainder = dim % divisor
        if isinstance(remainder, int):
            return remainder == 0
        return True if (dim, divisor) in self.divisible else None

    def add_divisible(self, dim: Dim, divisor: int) -> None:
        """Record dim % divisor == 0."""
        dim = self.normal(dim)
        self.divisible.add((dim, divisor))
        if not isinstance(dim, Poly) or len(dim.terms) != 1 or len(dim.terms[0][0]) != 1:
            return
        (atom,), coefficient = dim.terms[0]
        needed = divisor // gcd(coefficient, divisor)
        if isinstance(atom, str):
            name, needed = atom, needed
        elif isinstance(atom, Quotient) and self.moduli.get(str(atom.poly)) == atom.divisor:
            name, needed = str(atom.poly), needed * atom.divisor
        else:
            return
        old = self.moduli.get(name, 1)
        self.moduli[name] = old * needed // gcd(old, needed)

    def add_equal(self, left: Dim, right: Dim) -> None:
        """Record left == right, where one side is a name of its own."""
        for one, other in ((left, right), (right, left)):
            if isinstance(one, Poly) and len(one.terms) == 1 and one.terms[0][1] == 1 and len(one.terms[0][0]) == 1:
                atom = one.terms[0][0][0]
                if isinstance(atom, str) and atom not in free_names(other) and atom not in self.equal:
                    self.equal[atom] = other
                    return
