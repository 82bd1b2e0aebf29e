"""Text to words, in one linear pass that knows every bound: what is too long, too deep or no text at all never meets the grammar."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

from .brackets import Brackets
from .diagnostic import Diagnostic, GraphirError
from .limits import DEFAULT, Limits
from .source import Source, Span
from .words import RESERVED, Word

_WORD = re.compile(
    r"""(?P<space>[ \t\r\n]+)
      | (?P<name>[A-Za-z_][A-Za-z0-9_]*)
      | (?P<mark>->|~>|\*\*|//|==|!=|<=|>=|\.\.|[-+*/%<>=()\[\]{},:.])
      | (?P<float>[0-9]+\.[0-9]+(?:[eE][+-]?[0-9]+)?|[0-9]+[eE][+-]?[0-9]+)
      | (?P<int>[0-9]+)
      | (?P<string>"[^"\n]*"?)
      | (?P<comment>\#[^\n]*)
      | (?P<stray>[^\x00-\x7f]+|.)""",
    re.VERBOSE | re.DOTALL,
)
# Characters that no honest text holds, or that make text show other than it reads.
_HIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]|\r(?!\n)")
_GLUED = re.compile(r"[A-Za-z0-9_]+")


@dataclass
class Scan:
    """The words and comments of a text, and what is wrong with it so far: in `lexical` characters, in `brackets` pairs."""

    words: list[Word] = field(default_factory=list)
    comments: list[Word] = field(default_factory=list)
    lexical: list[Diagnostic] = field(default_factory=list)
    brackets: list[Diagnostic] = field(default_factory=list)


def scan(source: Source, limits: Limits = DEFAULT, start: int = 0, end: int | None = None) -> Scan:
    """Words of `source.text[start:end]`. Raises GraphirError at once where a bound is passed (E06xx); collects the rest."""
    text = source.text
    stop = len(text) if end is None else end
    _check_size(source, limits)
    found = Scan()
    _hidden(source, found, start, stop)
    brackets = Brackets(found.brackets, limits)
    statements = 0
    for match in _WORD.finditer(text, start, stop):
        kind = match.lastgroup
        if kind == "space":
            continue
        word = Word(match[0])
        word.source, word.start, word.end = source, match.start(), match.end()
        word.kind = word.type = kind or ""
        if kind == "comment":
            found.comments.append(word)
            continue
        if kind == "name":
            if word in RESERVED:
                word.kind = "mark"
                brackets.word(word)
            elif len(word) > limits.identifier:
                raise GraphirError(_long_name(word, limits))
        elif kind == "mark":
            brackets.take(word)
        elif kind == "stray":
            _stray(word, found)
            continue
        elif kind == "string":
            _string(word, found, limits)
        elif not _number(word, found, limits):
            continue
        found.words.append(word)
        if (word == "=" and brackets.in_body) or word in ("return", "require", "import"):
            statements += 1
            if statements > limits.statements:
                raise GraphirError(_too_many(word, limits))
    brackets.finish(stop)
    return found


def _check_size(source: Source, limits: Limits) -> None:
    text = source.text
    if len(text) <= limits.file_bytes and (text.isascii() or len(text.encode("utf-8", "surrogatepass")) <= limits.file_bytes):
        return
    at = min(limits.file_bytes, len(text) - 1)
    raise GraphirError(
        Diagnostic(
            "E0601",
            f"the file is larger than {limits.file_bytes} bytes",
            Span(source, at, at + 1),
            "the limit is passed here" if len(text) > limits.file_bytes else "",
            help=("split it into files that import each other",),
        )
    )


def _hidden(source: Source, found: Scan, start: int, end: int) -> None:
    for match in _HIDDEN.finditer(source.text, start, end):
        code = ord(match[0])
        what = {0: "a NUL character", 13: "a carriage return without a line feed", 0xFEFF: "a byte order mark"}.get(
            code, "a control character" if code < 0xA0 else "an invisible character"
        )
        help = "save the file as UTF-8 without a byte order mark" if code == 0xFEFF else "delete it, or type the line anew"
        found.lexical.append(
            Diagnostic(
                "E0106", f"{what} (U+{code:04X}) does not belong in a program", Span(source, match.start(), match.end()), help=(help,)
            )
        )
        if len(found.lexical) >= 20:
            raise GraphirError(found.lexical)


def _long_name(word: Word, limits: Limits) -> Diagnostic:
    return Diagnostic(
        "E0604",
        f"a name of {len(word)} characters",
        word.span,
        f"at most {limits.identifier} characters",
        help=("choose a shorter name",),
    )


def _too_many(word: Word, limits: Limits) -> Diagnostic:
    return Diagnostic(
        "E0602",
        f"more than {limits.statements} statements in one file",
        word.span,
        "the first one too many",
        help=("lists and comprehensions repeat bricks without repeating text",),
    )


_LOOKALIKE = {
    "'": "strings are written with double quotes",
    "\u201c": 'strings are written with plain double quotes: "',
    "\u201d": 'strings are written with plain double quotes: "',
    "\u2192": "the arrow is typed `->`",
    "\u2013": "minus is typed `-`",
    "\u2212": "minus is typed `-`",
    "\u00d7": "times is typed `*`",
    ";": "statements need nothing between them: a new line is enough",
    "!": "negation is `not`, and `!=` is unequal",
    "&": "the logical operator is `and`",
    "|": "the logical operator is `or`; tensors flow through `->`",
    "^": "power is `**`",
    "\\": "a statement may go on over several lines as it is",
    "~": "the stitching arrow is `~>`",
    "$": "names are letters, digits and `_`",
    "@": "a graft names its places with `at`",
    "\u00a0": "this looks like a space, but is none: type it anew",
}


def _stray(word: Word, found: Scan) -> None:
    if _HIDDEN.match(word):
        return
    character = word[0]
    shown = f"`{word[:12]}`" if word.isprintable() else f"U+{ord(character):04X}"
    fallback = "names are plain letters, digits and `_`; other letters may stand in comments and strings"
    found.lexical.append(
        Diagnostic("E0106", f"{shown} does not belong here", word.span, help=(_LOOKALIKE.get(character, fallback),))
    )
    if len(found.lexical) >= 20:
        raise GraphirError(found.lexical)


def _string(word: Word, found: Scan, limits: Limits) -> None:
    if len(word) < 2 or not word.endswith('"'):
        span = Span(word.source, word.start, word.start + len(word.rstrip()))
        found.lexical.append(
            Diagnostic("E0105", "this string is not closed", span, 'no `"` follows on this line', help=("a string stands on one line",))
        )
    elif len(word) - 2 > limits.string:
        raise GraphirError(
            Diagnostic(
                "E0605",
                f"a string of {len(word) - 2} characters",
                Span(word.source, word.start, word.start + 1),
                f"at most {limits.string} characters",
                help=("shorten it",),
            )
        )


def _number(word: Word, found: Scan, limits: Limits) -> bool:
    """Check a number; False where it is refused (and told)."""
    text = word.source.text
    if word.kind == "int" and len(word) > limits.digits:
        raise GraphirError(_long_number(word, f"a number of {len(word)} digits", f"at most {limits.digits} digits"))
    if word.kind == "float":
        if len(word) > 3 * limits.digits:
            raise GraphirError(_long_number(word, f"a number of {len(word)} characters", f"at most {3 * limits.digits} characters"))
        if not math.isfinite(float(word)):
            raise GraphirError(_long_number(word, f"`{word}` is too large", "the largest is about 1.8e308"))
    glued = _GLUED.match(text, word.end)
    if glued:
        whole = Span(word.source, word.start, glued.end())
        name = text[word.start : glued.end()]
        base = name[1:2] in "xXbBoO" and word == "0"
        help = "numbers are written in decimal" if base else "a name starts with a letter or `_`; between factors stands `*`"
        if "_" in name and name.replace("_", "").isdigit():
            help = f"digits are written without `_`: {name.replace('_', '')}"
        found.lexical.append(Diagnostic("E0109", f"`{name[:40]}` is no number and no name", whole, help=(help,)))
        return False
    if text[word.end : word.end + 1] == "." and text[word.end + 1 : word.end + 2] != ".":
        whole = Span(word.source, word.start, word.end + 1)
        found.lexical.append(Diagnostic("E0109", f"`{word}.` is no number", whole, help=(f"write `{word}.0` or `{word}`",)))
        return False
    before = text[word.start - 1 : word.start] if word.start else ""
    if before == "." and text[word.start - 2 : word.start - 1] != ".":
        owner = found.words[-2] if len(found.words) > 1 else None
        listed = owner is not None and owner.end == word.start - 1 and (owner.kind == "name" or owner in (")", "]"))
        help = f"a place in a list is written `{owner}[{word}]`" if listed and owner and owner.kind == "name" else f"write `0.{word}`"
        found.lexical.append(Diagnostic("E0109", f"`.{word}` is no number", Span(word.source, word.start - 1, word.end), help=(help,)))
        return False
    return True


def _long_number(word: Word, message: str, label: str) -> Diagnostic:
    span = Span(word.source, word.start, min(word.end, word.start + 40))
    return Diagnostic("E0605", message, span, label, help=("widths and counts in real models are far smaller",))
