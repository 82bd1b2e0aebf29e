"""How large an input may be. Checked before work is done; a host may pass its own `Limits`, a file cannot."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on text, expansion and size; every one has its diagnostic (E06xx)."""

    file_bytes: int = 262_144
    statements: int = 20_000
    nesting: int = 64
    identifier: int = 64
    digits: int = 18
    string: int = 1_024
    imports: int = 64
    import_depth: int = 16
    nodes: int = 1_000_000
    dim: int = 2**31 - 1
    rank: int = 8
    parameters: int = 10**13


DEFAULT = Limits()
