"""What to say where the grammar cannot go on."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

from .diagnostic import Diagnostic, Label, nearest
from .source import Source, Span
from .words import CLOSER, ITEMS, RESERVED, Word

ARITHMETIC = ("+", "-", "*", "/", "//", "%", "**")
COMPARISON = ("==", "!=", "<=", ">=", "<", ">", "in", "and", "or", "not")
ARROWS = ("->", "~>")
_WAITING = (*ARROWS, *ARITHMETIC, *COMPARISON, "=", ",", ":", ".", "if", "else", "return", "require", "shared", "on", "as")
_NAMING = (".", "as", "on", "shared", "param", "let", "block", "model", "for")


def misspelt_item(words: list[Word]) -> Diagnostic:
    """At the top of a file stands something that is no item."""
    word = words[0]
    help = nearest(word, ITEMS) if word.kind == "name" else ()
    more = ("at the top of a file stand `import`, `param`, `let`, `block` and `model`",)
    return Diagnostic("E0101", f"{_shown(word)} begins no item", word.span, "at the top of the file", help=help or more)


def corrected_item(words: list[Word]) -> list[Word]:
    """The words of an item whose first word is misspelt, put right, so that the rest can be read; none where it cannot be guessed."""
    close = get_close_matches(words[0], ("block", "model", "param", "import"), n=1)
    if not close or words[0].kind != "name":
        return []
    word = Word(close[0])
    word.source, word.start, word.end, word.kind, word.type = words[0].source, words[0].start, words[0].end, "mark", ""
    return [word, *words[1:]]


def explain(error: Any, words: list[Word], source: Source, rule: str) -> Diagnostic:
    """The diagnostic for Lark's UnexpectedToken among these words."""
    token = error.token
    index = next((i for i, w in enumerate(words) if w is token), len(words))
    stack = [v for v in error.interactive_parser.parser_state.value_stack if type(v) is Word]
    accepts = set(error.interactive_parser.accepts())
    return (
        _mixed(words, index, stack)
        or _reserved(words, index, accepts)
        or _misspelt_statement(words, index)
        or _lone_name(words, index, accepts)
        or _unfinished(words, index)
        or _unexpected(words, index, accepts, source, rule)
    )


def _shown(word: Word) -> str:
    return "a string" if word.kind == "string" else f"`{word[:40]}`"


def _ends_operand(word: Word) -> bool:
    return word.kind != "mark" or word in (")", "]", "}", "true", "false", "none")


def _mixed(words: list[Word], index: int, stack: list[Word]) -> Diagnostic | None:
    """An arrow beside arithmetic or `if`, in either order."""
    if index >= len(words) or index == 0 or not _ends_operand(words[index - 1]):
        return None
    word, pending = words[index], _pending(stack)
    others = (*ARITHMETIC, *COMPARISON, "if", "else", "graft")
    if word not in (*ARROWS, *others):
        return None
    against = others if word in ARROWS else ARROWS
    other = next((w for w in reversed(pending) if w in against), None)
    if other is None:
        return None
    whole = _quote(words, _expression_start(words, index), index - 1)
    near = _quote(words, _operand_start(words, index), _operand_end(words, index + 1))
    near = f"{near} else ..." if near and word == "if" else near
    first = f"write `({whole}) {word} ...`" if whole else f"put parentheses around what stands before `{word}`"
    second = f"or `({near})`" if near else f"or around what stands on both sides of `{word}`"
    arrow, partner = (word, other) if word in ARROWS else (other, word)
    choice = partner in ("if", "else")
    kind = "`if`" if choice else "arithmetic" if partner in ARITHMETIC else f"`{partner}`"
    return Diagnostic(
        "E0103" if choice else "E0102",
        f"`{arrow}` and {kind} are mixed without parentheses",
        word.span,
        "",
        (Label(other.span, "mixed with this"),),
        ("there is no precedence between them to remember: parentheses say what is meant",),
        (f"{first}, {second}",),
    )


def _expression_start(words: list[Word], index: int) -> int:
    """The index at which the expression that reaches to `index` begins."""
    at = index - 1
    while at >= 0:
        if words[at] in (")", "]", "}"):
            at = _opening(words, at)
        elif words[at] in CLOSER or words[at] in ("=", ",", ":", "return", "require", "for"):
            return at + 1
        at -= 1
    return 0


def _pending(stack: list[Word]) -> list[Word]:
    """The operators of the innermost brackets that still wait for what follows them."""
    pending: list[Word] = []
    for word in reversed(stack):
        if word in CLOSER or word in ("=", ":", ",", "return", "require"):
            break
        pending.append(word)
    return pending[::-1]


def _operand_start(words: list[Word], index: int) -> int:
    """The index at which the operand that ends before `index` begins: an atom with its dots, brackets and words."""
    at = index - 1
    while at >= 0:
        if words[at] in (")", "]", "}"):
            at = _opening(words, at)
            if at > 0 and _ends_operand(words[at - 1]):
                at -= 1
                continue
        if at >= 2 and words[at - 1] in (".", "on", "as"):
            at -= 2
            continue
        return max(at, 0)
    return 0


def _operand_end(words: list[Word], index: int) -> int:
    at = index
    while at < len(words) and words[at] in ("-", "not"):
        at += 1
    if at < len(words) and words[at] in CLOSER:
        at = _closing(words, at)
    while at + 1 < len(words):
        following = words[at + 1]
        if following in CLOSER:
            at = _closing(words, at + 1)
        elif following in (".", "on", "as"):
            at += 2
        else:
            break
    return min(at, len(words) - 1)


def _opening(words: list[Word], index: int) -> int:
    depth = 0
    for at in range(index, -1, -1):
        depth += (words[at] in (")", "]", "}")) - (words[at] in CLOSER)
        if depth == 0:
            return at
    return 0


def _closing(words: list[Word], index: int) -> int:
    depth = 0
    for at in range(index, len(words)):
        depth += (words[at] in CLOSER) - (words[at] in (")", "]", "}"))
        if depth == 0:
            return at
    return len(words) - 1


def _quote(words: list[Word], first: int, last: int) -> str:
    text = words[0].source.text[words[first].start : words[last].end]
    return text if len(text) <= 60 and "\n" not in text and last >= first else ""


def _reserved(words: list[Word], index: int, accepts: set[str]) -> Diagnostic | None:
    """A reserved word where a name is meant: `for = 3`, `model(block)`, `x.in`."""
    for at in (index, index - 1):
        if not 0 <= at < len(words) or words[at] not in RESERVED or words[at] in ("true", "false", "none"):
            continue
        word = words[at]
        following = words[at + 1] if at + 1 < len(words) else ""
        before = words[at - 1] if at else ""
        as_name = following in ("=", ":", ",", ")", "]", *ARROWS, ".") or before in _NAMING
        if not as_name or (at == index and "NAME" not in accepts) or (at != index and words[index] not in ("=", ":")):
            continue
        return Diagnostic(
            "E0104",
            f"`{word}` is a reserved word",
            word.span,
            "a name is meant here",
            help=(f"choose another name, such as `{word}_`",),
        )
    return None


def _misspelt_statement(words: list[Word], index: int) -> Diagnostic | None:
    """`retrun x`: a name where a statement begins, and then something that no `=` follows."""
    if index == 0 or index >= len(words) or words[index] in ("=", ":", ","):
        return None
    word = words[index - 1]
    help = nearest(word, ("return", "shared", "require"))
    begins = _ends_operand(words[index - 2]) or words[index - 2] == "{"
    if word.kind != "name" or not help or not begins:
        return None
    return Diagnostic("E0101", f"`{word[:40]}` begins no statement", word.span, help=help)


def _lone_name(words: list[Word], index: int, accepts: set[str]) -> Diagnostic | None:
    """`return x y`: a second operand, which the grammar takes for the beginning of a statement."""
    if index == 0 or "EQUAL" not in accepts or "COMMA" not in accepts or words[index - 1].kind != "name":
        return None
    word = words[index - 1]
    if index < 2 or not _ends_operand(words[index - 2]):
        return None
    help = "statements begin with `return`, `require`, `shared` or a name and `=`; bricks are joined with `->`"
    return Diagnostic("E0101", f"`{word[:40]}` cannot stand here", word.span, "neither `=` nor an operator joins it", help=(help,))


def _unfinished(words: list[Word], index: int) -> Diagnostic | None:
    """`a = x ->` and then the next statement: the fault is at the end of the line before."""
    if index < 2:
        return None
    first = index - 1 if index < len(words) and words[index] in ("=", ":") else index
    last = words[first - 1]
    if first < len(words) and not words[first].first_on_line:
        return None
    if last.kind != "mark" or last not in _WAITING:
        return None
    if first == index and first < len(words) and words[first] not in ("}", ")", "]", "return", "shared", "require"):
        return None
    what = "a name" if last in (".", "on", "as", "shared") else "an expression"
    help = f"write {what} here, or delete `{last}`"
    return Diagnostic("E0101", f"{what} is missing after `{last}`", last.span, "nothing follows", help=(help,))


_WORDS = {"NAME": "a name", "STRING": "a string", "INT": "a number", "FLOAT": "a number", "$END": "the end"}


def _unexpected(words: list[Word], index: int, accepts: set[str], source: Source, rule: str) -> Diagnostic:
    place = _place(words, index, rule)
    could = _could(accepts)
    if index < len(words):
        word, span = words[index], words[index].span
        what = f"{_shown(word)} cannot stand here"
        close = nearest(word, [t for t in RESERVED if _terminal(t) in accepts]) if word.kind == "name" else ()
    else:
        end = words[-1].end if words else len(source.text)
        span, what, close = Span(source, end, end), "the text ends too early", ()
    help = close or ((f"here could follow {could}",) if could else ())
    label = f"expected {could}" if could and len(could) < 60 else ""
    return Diagnostic("E0101", f"{what}, in {place}", span, label, help=() if label and not close else help)


def _terminal(text: str) -> str:
    from .tree import grammar

    return grammar()[1].get(text, "")


def _could(accepts: set[str]) -> str:
    """What could follow, in words."""
    from .tree import grammar

    texts = {name: text for text, name in grammar()[1].items()}
    rest = set(accepts)
    said: list[str] = []
    if {"NAME", "INT", "LPAR", "LSQB"} <= rest:
        said.append("an expression")
        rest -= {"NAME", "INT", "FLOAT", "STRING", "LPAR", "LSQB", "MINUS", "NOT", "GRAFT", "TRUE", "FALSE", "NONE"}
    elif {"SHARED", "RETURN", "REQUIRE"} <= rest:
        said.append("a statement")
        rest -= {"SHARED", "RETURN", "REQUIRE", "NAME"}
    if {"PLUS", "STAR", "LPAR"} <= rest or {"DOT", "LPAR", "LSQB"} <= rest:
        said.append("an operator")
        operators = {_terminal(t) for t in (*ARITHMETIC, *COMPARISON, *ARROWS, "(", "[", "{", ".", "on", "as", "if")}
        rest -= operators
    for name in sorted(rest):
        text = texts.get(name, name)
        said.append(_WORDS.get(name, f"`{text}`"))
    said = list(dict.fromkeys(said))[:6]
    return said[0] if len(said) == 1 else f"{', '.join(said[:-1])} or {said[-1]}" if said else ""


def _place(words: list[Word], index: int, rule: str) -> str:
    """What was being read, in words."""
    stack: list[int] = []
    for at in range(min(index, len(words))):
        if words[at] in CLOSER:
            stack.append(at)
        elif words[at] in (")", "]", "}") and stack:
            stack.pop()
    kind = words[0] if words else ""
    named = f"{kind} `{words[1]}`" if kind in ITEMS and len(words) > 1 and words[1].kind == "name" else str(kind)
    body = next((i for i, w in enumerate(words) if w == "{"), len(words)) if kind in ("block", "model") else -1
    in_header = rule == "header" or (kind in ("block", "model") and index <= body)
    if not stack:
        if in_header:
            return f"the header of {named}" if rule != "header" else "the header"
        after = f"what follows {named}" if body >= 0 else "the expression"
        return {"param": f"the parameter {named[6:]}", "let": named, "import": "an import"}.get(kind, after)
    at = stack[-1]
    opener, before = words[at], words[at - 1] if at else None
    if opener == "{":
        branches = "a graft" if words[at + 1 : at + 2] == ["at"] else f"the branches of `{_callee(words, at)}`"
        return f"the body of {named}" if at == body else branches
    if in_header:
        if opener == "[":
            return "a type"
        return "the list of config" if at == 2 - (rule == "header") and _two_lists(words, at) else "the list of tensors"
    if opener == "[":
        return "an index" if before is not None and (before.kind == "name" or before in (")", "]")) else "a list"
    if before is not None and (before.kind == "name" or before in (")", "]")):
        return f"the arguments of `{_callee(words, at)}`"
    return "parentheses"


def _two_lists(words: list[Word], at: int) -> bool:
    close = _closing(words, at)
    return close + 1 < len(words) and words[close + 1] == "("


def _callee(words: list[Word], at: int) -> str:
    start = _operand_start(words, at)
    return next((w for w in words[start:at] if w.kind == "name"), words[at])[:40]
