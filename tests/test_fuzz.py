"""Mutated programs: whatever is broken in them, the answer is a graph or diagnostics with a code and a place, soon."""

from __future__ import annotations

import random
import re
import time
from pathlib import Path

import pytest

import graphir
from graphir import GraphirError
from graphir.lang.codes import CODES
from graphir.lang.source import Span

ROOT = Path(__file__).parent.parent
TEXTS = [p.read_text("utf-8") for p in sorted((ROOT / "examples").rglob("*.arch")) if "import " not in p.read_text("utf-8")]
TOKEN = re.compile(r"\s+|#[^\n]*|\w+|->|~>|\*\*|//|[^\w\s]")
STRANGE = [
    "0",
    "1",
    "-1",
    "7",
    "1000000",
    "0.5",
    "none",
    "true",
    '"b t -> t b"',
    "x",
    "T",
    "linear",
    "add",
    "fork",
    "filter",
    "shared",
    "[",
    "]",
    "(",
    ")",
    "{",
    "}",
    "->",
    "~>",
    "*",
    "/",
    "**",
    "=",
    ",",
    ".T",
    "softmax",
    "id",
    "if",
    "else",
    "for",
    "in",
    "site",
    "weight",
    "split(3)",
    "concat",
    "[0]",
    "..",
    "as q",
    "on mlx",
    "frozen(",
    "\u2028",
    "\x00",
    "é",
]


def mutate(text: str, rng: random.Random) -> str:
    tokens = TOKEN.findall(text)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = rng.randrange(len(tokens))
        match rng.randrange(5):
            case 0:
                tokens.pop(at)
            case 1:
                tokens.insert(at, rng.choice(STRANGE))
            case 2:
                tokens[at] = rng.choice(STRANGE)
            case 3:
                other = rng.randrange(len(tokens))
                tokens[at], tokens[other] = tokens[other], tokens[at]
            case 4:
                tokens[at] = rng.choice(tokens)
        if not tokens:
            return ""
    return "".join(tokens)


def mutant(seed: int) -> str:
    rng = random.Random(seed)
    return mutate(rng.choice(TEXTS), rng)


def examine(seed: int) -> str:
    text = mutant(seed)
    started = time.process_time()
    try:
        graph = graphir.load(text + "\n")
        str(graph), graph.key
        outcome = "graph"
    except GraphirError as e:
        outcome = "diagnostics"
        assert e.diagnostics
        for d in e.diagnostics:
            assert d.code in CODES, d
            if isinstance(d.span, Span):
                assert 0 <= d.span.start <= d.span.end <= len(d.span.source.text)
    assert time.process_time() - started < 5, "this took long"
    return outcome


def spread(seeds: range) -> set[str]:
    outcomes = set()
    for seed in seeds:
        try:
            outcomes.add(examine(seed))
        except Exception as e:
            raise AssertionError(f"seed {seed}:\n{mutant(seed)}") from e
    return outcomes


def test_300_mutants():
    assert spread(range(300)) == {"graph", "diagnostics"}


@pytest.mark.slow
def test_5000_mutants():
    assert spread(range(1000, 6000)) == {"graph", "diagnostics"}
