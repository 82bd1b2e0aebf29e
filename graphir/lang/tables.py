"""The parse tables of grammar.lark as data, and the loop that runs them.

Lark makes the tables (0.1 s, and its import) when the grammar changes: `python -m graphir.lang.tables` writes `tables.json`, and a
test compares the file with what Lark makes. Reading them takes a millisecond, and running them a fifth of Lark's time.
Whoever meets a word that the tables do not expect asks Lark itself for the story (`tree.grammar`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from .tree import Builder, grammar
from .words import Word

STARTS = ("item", "header", "expression")
END = "end"
_KINDS = {"NAME": "name", "INT": "int", "FLOAT": "float", "STRING": "string", "$END": END}


@dataclass(frozen=True, slots=True, eq=False)
class Rule:
    """What a reduction does: `size` values become one under the name `origin`; those at `inline` are lists that dissolve in the rest.

    `make` builds the tree (None: the list itself); with `single`, one lone value stays as it is. One that `climbs` always does.
    """

    origin: str
    size: int
    make: Callable[[list[Any]], Any] | None
    single: bool
    inline: tuple[int, ...]
    climbs: bool


@dataclass(frozen=True, slots=True, eq=False)
class Tables:
    """Per state, what each word does (a state to go to, or ~rule to reduce by) and where each rule's name leads."""

    rules: tuple[Rule, ...]
    actions: tuple[dict[str, int], ...]
    gotos: tuple[dict[str, int], ...]
    starts: dict[str, int]
    ends: dict[str, int]
    climbs: dict[tuple[int, int, str], int]


class Unexpected(Exception):
    """A word that no rule takes here."""


@cache
def tables() -> Tables:
    data = json.loads(files("graphir.lang").joinpath("tables.json").read_text("utf-8"))
    builder = Builder()
    rules = []
    for origin, size, name, single, inline in data["rules"]:
        climbs = single and size == 1 and not inline
        rules.append(Rule(origin, size, getattr(builder, name) if name else None, single, tuple(inline), climbs))
    return Tables(tuple(rules), tuple(data["actions"]), tuple(data["gotos"]), data["starts"], data["ends"], {})


def run(words: Sequence[Word], start: str) -> Any:
    """The tree of these words. Raises Unexpected."""
    found = tables()
    rules, actions, gotos, climbs, end = found.rules, found.actions, found.gotos, found.climbs, found.ends[start]
    states: list[int] = [found.starts[start]]
    values: list[Any] = []
    for word in (*words, None):
        kind = END if word is None else word if word.kind == "mark" else word.kind
        while True:
            action = actions[states[-1]].get(kind)
            if action is None:
                raise Unexpected
            if action >= 0:
                states.append(action)
                values.append(word)
                break
            rule = rules[~action]
            if rule.climbs:
                place = (states[-2], states[-1], kind)
                states[-1] = climbs[place] if place in climbs else _climb(found, place)
                if word is None and states[-1] == end:
                    return values[-1]
                continue
            value: Any = []
            if rule.size:
                value = values[-rule.size :]
                del values[-rule.size :], states[-rule.size :]
            if rule.inline:
                value = _dissolved(value, rule.inline)
            if rule.make is not None and not (rule.single and len(value) == 1):
                value = rule.make(value)
            elif rule.make is not None or rule.single:
                value = value[0]
            state = gotos[states[-1]][rule.origin]
            if word is None and state == end:
                return value
            states.append(state)
            values.append(value)
    raise AssertionError("the end is no word that is shifted")


def _climb(found: Tables, place: tuple[int, int, str]) -> int:
    """Where a lone value ends up: most of a ladder of precedence (`or_`, `and_`, `not_` ...) only passes it on, so this is remembered."""
    below, state, kind = place
    while True:
        action = found.actions[state].get(kind, 0)
        if action >= 0 or not found.rules[~action].climbs:
            break
        state = found.gotos[below][found.rules[~action].origin]
    found.climbs[below, place[1], str(kind)] = state  # a word would keep its source
    return state


def _dissolved(values: list[Any], inline: tuple[int, ...]) -> list[Any]:
    out: list[Any] = []
    for i, value in enumerate(values):
        if i in inline:
            out += value
        else:
            out.append(value)
    return out


def made() -> dict[str, Any]:
    """The tables as Lark makes them, in an order that depends on the grammar alone."""
    parser, _ = grammar()
    table = parser.parser.parser._parse_table
    terminals = _KINDS | {t.name: t.pattern.value for t in parser.terminals if t.pattern.type == "str"}
    reduced = {arg for row in table.states.values() for _, arg in row.values() if not isinstance(arg, int)}
    rules = {repr(rule): rule for rule in reduced}
    order = {rules[text]: at for at, text in enumerate(sorted(rules))}
    numbers = {table.start_states[start]: at for at, start in enumerate(STARTS)}
    todo = list(numbers)
    for state in todo:
        for _, (_, arg) in sorted(table.states[state].items()):
            if isinstance(arg, int) and arg not in numbers:
                numbers[arg] = len(numbers)
                todo.append(arg)
    actions: list[dict[str, int]] = []
    gotos: list[dict[str, int]] = []
    for state in todo:
        row = [(name, numbers[arg] if isinstance(arg, int) else ~order[arg]) for name, (_, arg) in sorted(table.states[state].items())]
        actions.append({terminals[name]: to for name, to in row if name in terminals})
        gotos.append({str(name): to for name, to in row if name not in terminals})
    return {
        "rules": [_described(rule) for rule in order],
        "actions": actions,
        "gotos": gotos,
        "starts": {start: numbers[table.start_states[start]] for start in STARTS},
        "ends": {start: numbers[table.end_states[start]] for start in STARTS},
    }


def _described(rule: Any) -> list[Any]:
    name = str(rule.origin.name)
    listed = name.startswith("_")
    make = None if listed else rule.alias or rule.options.template_source or name
    inline = [at for at, symbol in enumerate(rule.expansion) if not symbol.is_term and symbol.name.startswith("_")]
    single = bool(rule.options.expand1 and not rule.alias)
    if make is not None and not hasattr(Builder, make):
        assert single, f"{name} has no method in Builder"
        assert len(rule.expansion) == 1, f"{name} has no method in Builder"
        assert not inline, f"{name} has no method in Builder"
        make = None
    return [name, len(rule.expansion), make, single, inline]


def main() -> None:
    lines = [f"{json.dumps(key)}: {_written(value)}" for key, value in made().items()]
    with open(str(files("graphir.lang").joinpath("tables.json")), "w", encoding="utf-8") as out:
        out.write("{\n" + ",\n".join(lines) + "\n}\n")


def _written(value: Any) -> str:
    if isinstance(value, dict):
        return json.dumps(value)
    return "[\n" + ",\n".join([json.dumps(row) for row in value]) + "\n]"


if __name__ == "__main__":
    main()
