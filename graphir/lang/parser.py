"""Text to syntax tree. All syntax errors of a file are told: each item is parsed on its own, and so is what follows a bad statement."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

from . import syntax as s
from .diagnostic import Diagnostic, GraphirError
from .limits import DEFAULT, Limits
from .scan import scan
from .source import Source, Span
from .syntax_errors import corrected_item, explain, misspelt_item
from .syntax_tools import children
from .tables import Unexpected, run
from .tree import grammar
from .words import ITEMS, RESERVED, Word

MAX_ERRORS = 50


def parse(source: Source, limits: Limits = DEFAULT) -> s.Program:
    """The tree of a whole file. Raises GraphirError with every syntax error (E01xx) or the bound that is passed (E06xx)."""
    found = scan(source, limits)
    errors: list[Diagnostic] = [*found.lexical]
    imports: list[s.Import] = []
    items: list[s.Param | s.Let | s.Block] = []
    for chunk in _chunks(found.words):
        if _inside(found.lexical, chunk) or (found.lexical and chunk[0] not in ITEMS):
            continue
        broken = _inside(found.brackets, chunk)
        if broken:
            errors += broken
            continue
        item = _item(chunk, limits, errors)
        if isinstance(item, s.Import):
            imports.append(item)
            if items:
                errors.append(_late_import(item))
        elif item is not None:
            items.append(_documented(item, found.comments))
        if len(errors) >= MAX_ERRORS:
            break
    if not errors and not any(isinstance(i, s.Block | s.Let) for i in items):
        errors.append(_empty(source, bool(found.words)))
    if errors:
        raise GraphirError(sorted(errors, key=lambda e: e.span.start if isinstance(e.span, Span) else 0))
    return s.Program(Span(source, 0, len(source.text)), tuple(imports), tuple(items))


def parse_header(source: Source) -> s.Header:
    """A primitive's header: `linear(out, bias = true)(x: [*S, i]) -> [*S, out]`; the first list may be left out."""
    return _whole(source, "header")


def parse_expression(source: Source, limits: Limits = DEFAULT) -> s.Expr:
    """One expression that fills the text."""
    return _whole(source, "expression", limits)


_ITEM = re.compile(r"^(?:block|let)[ \t]+([A-Za-z_][A-Za-z0-9_]*)", re.MULTILINE)
_ANY_ITEM = re.compile(r"^(?:block|let|model|param|import)\b", re.MULTILINE)


def index_items(source: Source) -> dict[str, tuple[int, int]]:
    """Where each block and config function of a well-formed library file stands (items start in column one). Nothing is parsed."""
    starts = [m.start() for m in _ANY_ITEM.finditer(source.text)] + [len(source.text)]
    ends = dict(pairwise(starts))
    return {m[1]: (m.start(), ends[m.start()]) for m in _ITEM.finditer(source.text)}


def parse_item(source: Source, start: int, end: int, limits: Limits = DEFAULT) -> s.Block | s.Let:
    """One item of a library file, at a place that `index_items` gave; spans are places in the whole file."""
    found = scan(source, limits, start, end)
    errors = found.lexical + found.brackets
    item = None if errors else _item(found.words, limits, errors)
    if errors:
        raise GraphirError(errors)
    assert isinstance(item, s.Block | s.Let)
    return _documented(item, scan(source, limits, _comments_above(source, start), start).comments)


def _whole(source: Source, rule: str, limits: Limits = DEFAULT) -> Any:
    found = scan(source, limits)
    errors = found.lexical + found.brackets
    tree = None if errors else _parse(found.words, rule, errors, source)
    if errors:
        raise GraphirError(errors)
    _check_depth([tree], limits, errors)
    if errors:
        raise GraphirError(errors)
    return tree


def _parse(words: list[Word], rule: str, errors: list[Diagnostic], source: Source) -> Any:
    """The tree of these words, or None with the first error told."""
    try:
        return run(words, rule)
    except Unexpected:
        errors.append(_unexpected(words, rule, source))
        return None


def _unexpected(words: list[Word], rule: str, source: Source) -> Diagnostic:
    """What Lark has to say of words that are no `rule`."""
    from lark.exceptions import UnexpectedToken

    parser, terminals = grammar()
    for word in words:
        word.type = terminals[word if word.kind == "mark" else word.kind]
    try:
        parser.parse(words, start=rule)
    except UnexpectedToken as e:
        return explain(e, words, source, rule)
    raise AssertionError("tables.json is not what Lark makes of grammar.lark: run `python -m graphir.lang.tables`")


def _item(words: list[Word], limits: Limits, errors: list[Diagnostic]) -> Any:
    """One item; after an error in a body, its further statements are read for theirs."""
    source = words[0].source
    if words[0] not in ITEMS:
        errors.append(misspelt_item(words))
        words = corrected_item(words)
        if not words:
            return None
    before = len(errors)
    tree = _parse(words, "item", errors, source)
    body = _body(words)
    at = body
    while len(errors) > before and body and len(errors) < MAX_ERRORS:
        span = errors[-1].span
        failed = span.start if isinstance(span, Span) else 0
        at = _next_statement(words, max(at + 1, _index_at(words, failed)), body)
        if at is None:
            return None
        known = len(errors)
        _parse([*words[:body], *words[at:]], "item", errors, source)
        if len(errors) == known:
            return None
    if tree is not None:
        _check_depth([tree] if not isinstance(tree, s.Block) else list(tree.body), limits, errors)
    return tree


def _index_at(words: list[Word], offset: int) -> int:
    for index, word in enumerate(words):
        if word.end > offset:
            return index
    return len(words)


def _body(words: list[Word]) -> int:
    """The index of the first word of a block's body; 0 where there is none."""
    if words[0] not in ("block", "model"):
        return 0
    return next((i + 1 for i, word in enumerate(words) if word == "{"), 0)


def _next_statement(words: list[Word], start: int, body: int) -> int | None:
    """The first index from `start` at which a statement of the body seems to begin."""
    depth = 0
    for index in range(body, len(words)):
        word = words[index]
        if word in ("(", "[", "{"):
            depth += 1
        elif word in (")", "]", "}"):
            depth -= 1
        elif depth == 0 and index >= start and _begins_statement(words, index):
            return index
    return None


def _begins_statement(words: list[Word], index: int) -> bool:
    word = words[index]
    if word in ("return", "shared", "require"):
        return True
    if word in RESERVED and word.first_on_line and index + 1 < len(words) and words[index + 1] == "=":
        return True
    if word.kind != "name" or words[index - 1] in (",", "shared") or index + 1 >= len(words):
        return False
    while index + 2 < len(words) and words[index + 1] == "," and words[index + 2].kind == "name":
        index += 2
    return words[index + 1] in ("=", ":")


def _chunks(words: list[Word]) -> Iterator[list[Word]]:
    """The words of each top-level item; what follows the last brace of a block is a chunk of its own."""
    chunk: list[Word] = []
    depth, ended = 0, False
    for index, word in enumerate(words):
        starts = word in ITEMS and (depth == 0 or _reopens(words, index))
        if chunk and (ended or starts):
            yield chunk
            chunk = []
        if starts:
            depth = 0
        ended = False
        chunk.append(word)
        if word in ("(", "[", "{"):
            depth += 1
        elif word in (")", "]", "}"):
            depth = max(0, depth - 1)
            ended = depth == 0 and word == "}" and chunk[0] not in ("import", "param", "let")
    if chunk:
        yield chunk


def _reopens(words: list[Word], index: int) -> bool:
    following = words[index + 1] if index + 1 < len(words) else None
    return words[index].first_on_line and following is not None and following.kind in ("name", "string")


def _inside(diagnostics: list[Diagnostic], chunk: list[Word]) -> list[Diagnostic]:
    start, end = chunk[0].start, chunk[-1].end
    return [d for d in diagnostics if isinstance(d.span, Span) and start <= d.span.start < end]


_COMMENT_LINES = re.compile(r"(?:^[ \t]*#[^\n]*\n)+\Z", re.MULTILINE)


def _comments_above(source: Source, start: int) -> int:
    """Where the comment lines that end directly above `start` begin."""
    line = source.position(start)[0]
    while line > 1 and source.line(line - 1).lstrip().startswith("#"):
        line -= 1
    return min(start, source.starts[line - 1])


def _documented(item: Any, comments: list[Word]) -> Any:
    """A block with its doc: the comment lines directly above it."""
    if not isinstance(item, s.Block):
        return item
    source, start = item.span.source, item.span.start
    first = _comments_above(source, start)
    lines = [c.strip().removeprefix("#").removeprefix(" ") for c in comments if first <= c.start < start]
    return replace(item, doc="\n".join(lines)) if lines else item


def _check_depth(trees: list[Any], limits: Limits, errors: list[Diagnostic]) -> None:
    """Refuse trees that are deep without brackets (`a + a + ...`), which would exhaust whoever walks them."""
    bound = 3 * limits.nesting
    for tree in trees:
        if tree.span.end - tree.span.start <= bound:
            continue
        level = [tree]
        for _ in range(bound):
            level = [below for t in level for below in children(t)]
            if not level:
                break
        else:
            errors.append(
                Diagnostic(
                    "E0603",
                    f"an expression nested more than {bound} deep",
                    level[0].span,
                    "here it becomes too deep",
                    help=("bind parts of it to names",),
                )
            )


def _late_import(item: s.Import) -> Diagnostic:
    help = "move this line above the first `param`, `let`, `block` or `model`"
    return Diagnostic("E0101", "imports come first in a file", item.span, help=(help,))


def _empty(source: Source, has_words: bool) -> Diagnostic:
    message = "the file holds no model and no block" if has_words else "the file is empty"
    help = "a model is written `model Name(x: float[B, 8]) -> float[B, 1] { return x -> linear(1) }`"
    return Diagnostic("E0108", message, Span(source, 0, 0), help=(help,))
