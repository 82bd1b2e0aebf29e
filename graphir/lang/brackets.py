"""Pairs of brackets, and how deep an expression may go: checked word by word, before any parser runs."""

from __future__ import annotations

import re

from .diagnostic import Diagnostic, GraphirError, Label
from .limits import Limits
from .words import CLOSER, ITEMS, Word


class Brackets:
    """Pairs brackets as words pass by."""

    def __init__(self, found: list[Diagnostic], limits: Limits):
        self.found, self.limits = found, limits
        self.open: list[Word] = []
        self.told = False
        self.chain = [0]  # operators since the last boundary, for each open bracket

    @property
    def in_body(self) -> bool:
        return not self.open or self.open[-1] == "{"

    def take(self, word: Word) -> None:
        if word in CLOSER:
            if len(self.open) >= self.limits.nesting:
                raise GraphirError(self._too_deep(word))
            self._count(word)
            self.open.append(word)
            self.chain.append(0)
        elif word in (")", "]", "}"):
            self._close(word)
            del self.chain[len(self.open) + 1 :]
        elif word in _BOUNDARY:
            self.chain[-1] = 0
        else:
            self._count(word)

    def word(self, word: Word) -> None:
        """A reserved word; one such as `block` at the start of a line begins an item, whatever is still open."""
        if word in ITEMS and _ITEM_START.match(word.source.text, word.start) and word.first_on_line:
            if self.open:
                self._never_closed(Label(word.span, "and the next item begins here"))
            self.told = False
            self.chain = [0]
        elif word in _BOUNDARY:
            self.chain[-1] = 0
        else:
            self._count(word)

    def _count(self, word: Word) -> None:
        self.chain[-1] += 1
        if self.chain[-1] > 3 * self.limits.nesting:
            message = f"more than {3 * self.limits.nesting} operators in one expression"
            raise GraphirError(Diagnostic("E0603", message, word.span, "one operator too many", help=("bind parts of it to names",)))

    def finish(self, end: int) -> None:
        if self.open:
            self._never_closed(None)

    def _close(self, word: Word) -> None:
        if not self.open:
            help = "delete it, or open the bracket that it should close"
            self._tell(f"`{word}` closes nothing", word, "no bracket is open here", (), help)
            return
        opener = self.open.pop()
        if CLOSER[opener] == word:
            return
        outer = [o for o in self.open if CLOSER[o] == word]
        if not outer:
            right = CLOSER[opener]
            opened = (Label(opener.span, "opened here"),)
            self._tell(f"`{opener}` is closed by `{word}`", word, f"`{right}` is meant here", opened, f"write `{right}`")
            return
        closes = (Label(word.span, f"`{word}` closes the `{outer[-1]}` before it"),)
        self._tell(f"`{opener}` is never closed", opener, "opened here", closes, f"write the missing `{CLOSER[opener]}`")
        while self.open.pop() is not outer[-1]:
            pass

    def _never_closed(self, where: Label | None) -> None:
        opener = self.open[-1]
        help = f"write the missing `{CLOSER[opener]}`"
        label = "opened here" if where else "opened here, and the file ends"
        self._tell(f"`{opener}` is never closed", opener, label, (where,) if where else (), help)
        self.open.clear()

    def _tell(self, message: str, word: Word, label: str, labels: tuple[Label, ...], help: str) -> None:
        """One finding for each item: what follows it is mostly its echo."""
        if self.told:
            return
        self.told = True
        self.found.append(Diagnostic("E0107", message, word.span, label, labels, help=(help,)))
        if len(self.found) >= 20:
            raise GraphirError(self.found)

    def _too_deep(self, word: Word) -> Diagnostic:
        return Diagnostic(
            "E0603",
            f"brackets nested more than {self.limits.nesting} deep",
            word.span,
            "one bracket too many",
            (Label(self.open[0].span, "the outermost is opened here"),),
            help=("bind inner parts to names",),
        )


_ITEM_START = re.compile(r'(?:import[ \t]*"|(?:param|let|block|model)[ \t]+[A-Za-z_])')
# Where the operators of one expression end; a pipe is flat, however long.
_BOUNDARY = frozenset(["=", ",", ":", "->", "~>", "return", "require", "shared", *ITEMS])
