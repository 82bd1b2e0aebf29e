"""Name tables: how the weights of a model are found in somebody else's state dict. Data, not code: a TOML file.

    ignore = ["*.rotary_emb.inv_freq"]                       # foreign tensors that are not wanted; `*` is any text

    [tied]                                                   # foreign names that stand for another, present or not
    "lm_head.weight" = "model.embed_tokens.weight"

    [names]                                                  # ours = an expression of theirs
    "emb.weight" = "model.embed_tokens.weight"
    "layers.{i}.attn.q.weight" = "gpt_neox.layers.{i}.attention.qkv.weight | reshape(heads, 3, -1, d)[:, 0] | reshape(-1, d)"
    "layers.{i}.mlp.{e}.gate.weight" = "model.layers.{i}.mlp.experts.gate_up_proj[{e}, :hidden]"
    "cls" = "vit.embeddings.cls_token[0, 0]"

In names, `{i}` (one letter) is a whole number and `{part}` (longer) one segment; on the right `{i + 1}` computes. After a name
come steps: `[...]` indexes and slices, `| reshape(...)`, `| permute(...)`, `| flatten`, `| T`, `| squeeze`, `| neg`, `| exp`,
`| log`, `| add(x)`, `| mul(x)`; `cat(a, b, axis)` and `stack(a, b, axis)` join expressions. Numbers are arithmetic over
wildcards and the model's parameters that are numbers or lists (`{places[0]}`). The first pattern that matches one of our names is
its source. Both sides are accounted for: every weight must be found, and every foreign tensor used, in full, or ignored.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from graphir.ir.graph import Graph
from graphir.ir.scalar import ScalarError, evaluate
from graphir.lang.diagnostic import Diagnostic, GraphirError, nearest
from graphir.lang.parser import parse_expression
from graphir.lang.source import Source

_HOLE = re.compile(r"\{([^{}]*)\}")
_NAME = re.compile(r"(?:[A-Za-z0-9_.\-]|\{[^{}]*\})+")
JOINS = {"cat": torch.cat, "stack": torch.stack}


@dataclass(frozen=True)
class Rule:
    """`pattern = expression`, with the pattern compiled."""

    pattern: str
    match: re.Pattern[str]
    expression: str


@dataclass(frozen=True)
class NameTable:
    """A table as read; `name` is what errors call it."""

    name: str
    rules: tuple[Rule, ...]
    ignore: tuple[re.Pattern[str], ...]
    tied: Mapping[str, str]


class _Wrong(Exception):
    """An expression that does not apply."""


def read_names(text: str, name: str = "names.toml") -> NameTable:
    """Parse a table. Raises GraphirError E0820 for what is no table of names."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        raise GraphirError(Diagnostic("E0820", f"`{name}` is not TOML: {e}")) from None
    known = {"names": dict, "tied": dict, "ignore": list}
    problems = [Diagnostic("E0820", f"`{name}` has an unknown entry `{k}`", help=nearest(k, known)) for k in data if k not in known]
    misplaced = [k for k, t in known.items() if not isinstance(data.get(k, t()), t)]
    problems += [Diagnostic("E0820", f"`{k}` of `{name}` is no {'list' if k == 'ignore' else 'table'}") for k in misplaced]
    if not problems:
        words = [*data.get("ignore", []), *data.get("tied", {}).values(), *data.get("names", {}).values()]
        problems += [Diagnostic("E0820", f"`{name}` holds {w!r} where a name belongs") for w in words if not isinstance(w, str)]
    if problems:
        raise GraphirError(problems)
    rules = tuple(Rule(pattern, _compiled(pattern, name), text) for pattern, text in data.get("names", {}).items())
    ignore = tuple(re.compile(re.escape(p).replace(r"\*", ".*")) for p in data.get("ignore", []))
    return NameTable(name, rules, ignore, dict(data.get("tied", {})))


def _compiled(pattern: str, table: str) -> re.Pattern[str]:
    parts, at, seen = [], 0, set()
    for hole in _HOLE.finditer(pattern):
        word = hole[1].strip()
        if not word.isidentifier():
            message = f"`{pattern}` in `{table}`: `{hole[0]}` is no wildcard"
            raise GraphirError(Diagnostic("E0820", message, help=("on the left it is a plain word, such as `{i}`",)))
        parts.append(re.escape(pattern[at : hole.start()]))
        kind = r"\d+" if len(word) == 1 else r"[^.]+"
        parts.append(f"(?P={word})" if word in seen else f"(?P<{word}>{kind})")
        seen.add(word)
        at = hole.end()
    return re.compile("".join(parts) + re.escape(pattern[at:]))


def apply_names(table: NameTable, tensors: Mapping[str, torch.Tensor], graph: Graph) -> dict[str, torch.Tensor]:
    """The graph's weights out of a foreign state dict. Raises GraphirError E0821 with everything that does not fit."""
    problems: list[Diagnostic] = []
    used: dict[str, int] = {}
    found: dict[str, torch.Tensor] = {}
    for name, weight in graph.weights.items():
        try:
            tensor = _find(name, table, tensors, graph, used)
        except _Wrong as e:
            problems.append(Diagnostic("E0821", f"weight `{name}`: {e}"))
            continue
        if tuple(tensor.shape) != weight.shape:
            message = f"weight `{name}` is {list(weight.shape)}, but what `{table.name}` finds is {list(tensor.shape)}"
            problems.append(Diagnostic("E0821", message))
        found[name] = tensor.contiguous()
    problems += _left_over(table, tensors, used)
    if problems:
        raise GraphirError(problems)
    return found


def _find(name: str, table: NameTable, tensors: Mapping[str, torch.Tensor], graph: Graph, used: dict[str, int]) -> torch.Tensor:
    for rule in table.rules:
        match = rule.match.fullmatch(name)
        if match is None:
            continue
        holes: dict[str, Any] = {k: int(v) if len(k) == 1 else v for k, v in match.groupdict().items()}
        numbers = {k: v for k, v in graph.params.items() if isinstance(v, int | float | list | tuple) and not isinstance(v, bool)}
        return _Reader(rule.expression, table, tensors, {**numbers, **holes}, used).whole()
    raise _Wrong(f"no pattern of `{table.name}` matches it")


def _left_over(table: NameTable, tensors: Mapping[str, torch.Tensor], used: Mapping[str, int]) -> Iterator[Diagnostic]:
    for name, tensor in tensors.items():
        kept = table.tied.get(name)
        if kept in tensors:
            if not torch.equal(tensor, tensors[kept]):
                yield Diagnostic("E0821", f"`{name}` is tied to `{kept}`, but holds other numbers")
            continue
        if any(p.fullmatch(name) for p in table.ignore):
            continue
        if name not in used:
            yield Diagnostic("E0821", f"`{name}` {list(tensor.shape)} is not used", help=("name it, or list it under `ignore`",))
        elif used[name] < tensor.numel():
            yield Diagnostic("E0821", f"`{name}` {list(tensor.shape)} is used in part: {used[name]} of {tensor.numel()} numbers")


class _Reader:
    """Reads an expression and computes it."""

    def __init__(self, text: str, table: NameTable, tensors: Mapping[str, torch.Tensor], names: Mapping[str, Any], used: dict[str, int]):
        self.text, self.at = text, 0
        self.table, self.tensors, self.names, self.used = table, tensors, names, used

    def whole(self) -> torch.Tensor:
        out, sources = self._expression()
        if self._peek():
            raise _Wrong(f"`{self.text}` is not understood from `{self.text[self.at :]}` on")
        for name, count in sources.items():
            self.used[name] = self.used.get(name, 0) + count
        return out

    def _expression(self) -> tuple[torch.Tensor, dict[str, int]]:
        self._peek()
        found = _NAME.match(self.text, self.at)
        if not found:
            raise _Wrong(f"`{self.text}` lacks a name at `{self.text[self.at :]}`")
        self.at = found.end()
        word = found[0]
        if word in JOINS and self._peek() == "(":
            return self._joined(word)
        name = _HOLE.sub(lambda h: str(self._number(h[1])), word)
        kept = self.table.tied.get(name, name)
        name = name if name in self.tensors else kept
        if name not in self.tensors:
            near = nearest(name, self.tensors)
            raise _Wrong(f"the state dict has no `{name}`{f' ({near[0]})' if near else ''}")
        tensor = self._steps(self.tensors[name])
        return tensor, {name: tensor.numel()}

    def _joined(self, word: str) -> tuple[torch.Tensor, dict[str, int]]:
        parts, sources, axis = [], {}, 0
        self._take("(")
        while self._peek() != ")":
            if re.match(r"-?\d+\s*\)", self.text[self.at :]):
                axis = int(self._until(")"))
                break
            tensor, more = self._expression()
            parts.append(tensor)
            for name, count in more.items():
                sources[name] = sources.get(name, 0) + count
            if self._peek() == ",":
                self.at += 1
        self._take(")")
        try:
            return self._steps(JOINS[word](parts, axis)), sources
        except (RuntimeError, IndexError) as e:
            raise _Wrong(f"`{word}` in `{self.text}`: {str(e).splitlines()[0]}") from None

    def _steps(self, tensor: torch.Tensor) -> torch.Tensor:
        while self._peek() in ("[", "|"):
            start = self.at
            try:
                tensor = self._indexed(tensor) if self.text[self.at] == "[" else self._method(tensor)
            except (RuntimeError, IndexError, TypeError, ValueError) as e:
                reason = str(e).splitlines()[0]
                raise _Wrong(f"`{self.text[start : self.at]}` does not apply to {list(tensor.shape)}: {reason}") from None
        return tensor

    def _indexed(self, tensor: torch.Tensor) -> torch.Tensor:
        self._take("[")
        places = [self._place(part) for part in self._until("]").split(",")]
        self._take("]")
        return tensor[tuple(places)]

    def _place(self, text: str) -> Any:
        parts = text.split(":")
        if len(parts) > 3:
            raise _Wrong(f"`{text}` is no place")
        numbers = [self._number(p) if p.strip() else None for p in parts]
        if len(parts) == 1 and numbers[0] is None:
            raise _Wrong(f"a place is empty in `{self.text}`")
        return numbers[0] if len(parts) == 1 else slice(*numbers)

    def _method(self, tensor: torch.Tensor) -> torch.Tensor:
        self._take("|")
        self._peek()
        found = re.compile(r"[A-Za-z]\w*").match(self.text, self.at)
        word = found[0] if found else ""
        self.at += len(word)
        if word not in STEPS:
            raise _Wrong(f"there is no step `{word}`; known are {', '.join(STEPS)}")
        arguments: list[Any] = []
        if self._peek() == "(":
            self.at += 1
            inside = self._until(")")
            self._take(")")
            arguments = [self._number(p) for p in inside.split(",")] if inside.strip() else []
        return STEPS[word](tensor, arguments)

    def _number(self, text: str) -> Any:
        text = _HOLE.sub(lambda h: f"({h[1]})", text).strip()
        if re.fullmatch(r"-?\d{1,18}", text):
            return int(text)
        if isinstance(self.names.get(text), str):
            return self.names[text]
        try:
            value = evaluate(parse_expression(Source(self.table.name, text)), self.names)
        except GraphirError as e:
            raise _Wrong(f"`{text}`: {e.diagnostics[0].message}") from None
        except ScalarError as e:
            raise _Wrong(f"`{text}`: {e}") from None
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise _Wrong(f"`{text}` is no number")
        return value

    def _peek(self) -> str:
        while self.at < len(self.text) and self.text[self.at].isspace():
            self.at += 1
        return self.text[self.at : self.at + 1]

    def _take(self, wanted: str) -> None:
        if self._peek() != wanted:
            raise _Wrong(f"`{self.text}` lacks `{wanted}` at `{self.text[self.at :]}`")
        self.at += 1

    def _until(self, closing: str) -> str:
        """The text up to the bracket that closes; `at` is left on it."""
        depth, start = 0, self.at
        while self.at < len(self.text):
            c = self.text[self.at]
            if c == closing and not depth:
                return self.text[start : self.at]
            depth += (c in "([") - (c in ")]")
            self.at += 1
        raise _Wrong(f"`{self.text}` lacks `{closing}`")


def _one(x: torch.Tensor, a: Sequence[Any]) -> Any:
    (value,) = a
    return value


STEPS = {
    "reshape": lambda x, a: x.reshape(*a),
    "permute": lambda x, a: x.permute(*a),
    "transpose": lambda x, a: x.transpose(*a),
    "flatten": lambda x, a: x.flatten(*a),
    "squeeze": lambda x, a: x.squeeze(*a),
    "unsqueeze": lambda x, a: x.unsqueeze(*a),
    "flip": lambda x, a: x.flip(*a),
    "T": lambda x, a: x.transpose(-1, -2),
    "neg": lambda x, a: -x,
    "exp": lambda x, a: x.exp(),
    "log": lambda x, a: x.log(),
    "add": lambda x, a: x + _one(x, a),
    "mul": lambda x, a: x * _one(x, a),
}
