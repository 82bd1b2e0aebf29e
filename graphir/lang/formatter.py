"""One canonical form: two spaces of indent, one statement a line, at most 120 columns where the text allows, every comment kept.

Two choices stay the author's: a single blank line between statements, and whether braces that would fit stand on one line.
A comment goes where its line ends or before what it stands above; one inside an expression that is not broken moves above it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from . import syntax as s
from .flat import ATOM, CONDITION, EXPRESSION, POSTFIX, SUM, Flat, binary_level, level
from .parser import parse
from .scan import scan
from .slots import laid, slots
from .source import Source
from .words import Word

WIDTH = 120
STEP = 2
Lay: TypeAlias = Callable[[Any], "list[Line]"]
Apart: TypeAlias = Callable[[Any, Any], bool]


@dataclass(slots=True)
class Line:
    text: str
    comment: str = ""


def format_text(source: Source) -> str:
    """The program in canonical form. Raises GraphirError where it does not parse."""
    program = parse(source)
    found = scan(source)
    lines = _Layout(source, found.comments, found.words, program).program(program)
    return "\n".join(_joined(lines)) + "\n"


def _joined(lines: list[Line]) -> list[str]:
    """Trailing comments of neighbouring lines start in one column."""
    out: list[str] = []
    at = 0
    while at < len(lines):
        end = at
        while end < len(lines) and lines[end].comment:
            end += 1
        column = max((len(line.text) for line in lines[at:end]), default=0) + 2
        out += [line.text.ljust(column) + line.comment for line in lines[at:end]]
        if end == at:
            out.append(lines[at].text)
            end += 1
        at = end
    return out


class _Layout:
    def __init__(self, source: Source, comments: Sequence[Word], words: Sequence[Word], program: s.Program):
        self.text = source.text
        self.comments = comments
        self.starts = [c.start for c in comments]
        self.placed: set[int] = set()
        self.flat = Flat(words)
        self.slotted: set[int] = set()
        if comments:
            self._find_slots(program)

    # comments

    def _find_slots(self, program: s.Program) -> None:
        """Mark the comments inside expressions that have a place of their own when their expression is broken; others move up."""
        todo: list[Any] = list(program.items)
        while todo:
            tree = todo.pop()
            if self._between(tree.span.start, tree.span.end):
                start, end, parts = slots(tree)
                taken = {i for part in parts for i in self._between(part.span.start, part.span.end)}
                self.slotted.update(i for i in self._between(start, end) if i not in taken)
                todo += laid(tree)

    def _between(self, start: int, end: int) -> range:
        return range(bisect_left(self.starts, start), bisect_left(self.starts, end))

    def _own(self, indices: Sequence[int], indent: int) -> list[Line]:
        self.placed.update(indices)
        return [Line(" " * indent + self.comments[i].rstrip()) for i in indices]

    def _free(self, start: int, end: int) -> list[int]:
        return [i for i in self._between(start, end) if i not in self.placed]

    def _stiff(self, tree: s.Tree) -> bool:
        """Whether something inside must stand on several lines."""
        inside = self._between(tree.span.start, tree.span.end)
        return any(i in self.slotted for i in inside) or self.flat.holds(tree, self._broken_braces)

    def _broken_braces(self, tree: s.Tree) -> bool:
        if isinstance(tree, s.Graft):
            return True
        return isinstance(tree, s.Branches) and "\n" in self.text[tree.callee.span.end : tree.branches[0].span.start]

    # sequences: items, statements, branches, list items, each on lines of its own

    def _sequence(
        self, elements: Sequence[Any], start: int, end: int, indent: int, lay: Lay, apart: Apart | None = None, inline: bool = False
    ) -> list[Line]:
        """Elements with the comments around them. With `apart`, single empty lines are kept, and put where it says so."""
        lines: list[Line] = []
        before, previous = start, None
        for element in elements:
            stop = element.span.start
            before = self._trailing(lines, before, stop)
            laid = lay(element)
            # Nothing can stand above the first stage of a pipe: its comments move further up.
            hoisted = [] if inline and previous is None else self._free(stop, element.span.end)
            wanted = apart is not None and previous is not None and apart(previous, element)
            before = self._leading(lines, before, stop, indent, wanted, apart is not None)
            lines += self._own(hoisted, indent) + laid
            before, previous = element.span.end, element
        before = self._trailing(lines, before, end)
        self._leading(lines, before, end, indent, False, apart is not None, last=True)
        return lines

    def _trailing(self, lines: list[Line], before: int, stop: int) -> int:
        """Put a comment at the end of the last line where it stands there in the text; where to go on from."""
        around = self._free(before, stop)
        if not around or not lines or lines[-1].comment or "\n" in self.text[before : self.starts[around[0]]]:
            return before
        lines[-1].comment = self.comments[around[0]].rstrip()
        self.placed.add(around[0])
        return self.comments[around[0]].end

    def _leading(self, lines: list[Line], before: int, stop: int, indent: int, wanted: bool, keep: bool, last: bool = False) -> int:
        """Put the comments up to `stop` on lines of their own, with empty lines between as in the text, and one first if wanted."""
        for place in [*self._free(before, stop), None]:
            at = stop if place is None else self.starts[place]
            gap = keep and self.text.count("\n", before, at) > 1 and not (last and place is None)
            if lines and (wanted or gap):
                lines.append(Line(""))
            wanted = False
            if place is not None:
                lines += self._own([place], indent)
                before = self.comments[place].end
        return before

    # files

    def program(self, program: s.Program) -> list[Line]:
        elements = [*program.imports, *program.items]
        elements.sort(key=lambda e: e.span.start)
        tall: dict[int, bool] = {}

        def lay(item: Any) -> list[Line]:
            lines = self._item(item)
            tall[id(item)] = len(lines) > 1
            return lines

        apart = lambda a, b: tall[id(a)] or tall[id(b)]  # noqa: E731
        return self._sequence(elements, 0, len(self.text), 0, lay, apart)

    def _item(self, item: Any) -> list[Line]:
        flat = self.flat
        if isinstance(item, s.Import):
            return [Line(f'import "{item.path}"' + (f" as {item.alias}" if item.alias else ""))]
        if isinstance(item, s.Param):
            return self._valued(f"param {item.name}", item.default, 0)
        if isinstance(item, s.Let):
            formals = "" if item.formals is None else f"({', '.join(map(flat.formal, item.formals))})"
            return self._valued(f"let {item.name}{formals}", item.value, 0)
        header = self._header(item)
        opening = self.text.index("{", item.header.span.end)
        inside = self.text[opening : item.span.end]
        if not item.body and not self._between(item.header.span.end, item.span.end):
            return [*header[:-1], Line(header[-1].text + " {}")]
        if len(item.body) == 1 and len(header) == 1 and "\n" not in inside and not self._stiff(item.body[0]):
            one = f"{header[0].text} {{ {flat.statement(item.body[0])} }}"
            if len(one) <= WIDTH:
                return [Line(one)]
        head = self._own(self._free(item.span.start, opening), 0)
        body = self._sequence(item.body, opening + 1, item.span.end - 1, STEP, self._statement, _kept)
        return [*head, *header[:-1], Line(header[-1].text + " {"), *body, Line("}")]

    def _header(self, block: s.Block) -> list[Line]:
        header, flat = block.header, self.flat
        results = flat.results(header.results)
        formals, ports = [flat.formal(f) for f in header.formals], [flat.port(p) for p in header.ports]
        first = f"{block.kind} {header.name}"
        listed = f"({', '.join(formals)})" if formals else ""
        whole = f"{first}{listed}({', '.join(ports)}) -> {results}"
        if len(whole) + 2 <= WIDTH:
            return [Line(whole)]
        lines = [first + listed]
        if formals and (not ports or len(lines[0]) + 1 > WIDTH):
            lines = [f"{first}(", *(f"{' ' * STEP}{f}," for f in formals), ")"]
        closing = f"({', '.join(ports)}) -> {results}"
        if len(lines[-1]) + len(closing) + 2 <= WIDTH or not ports:
            lines[-1] += closing
        else:
            lines[-1] += "("
            lines += [*(f"{' ' * STEP}{p}," for p in ports), f") -> {results}"]
        return [Line(line) for line in lines]

    # statements

    def _statement(self, statement: Any) -> list[Line]:
        pad = " " * STEP
        if isinstance(statement, s.Bind):
            typed = f": {self.flat.type(statement.type)}" if statement.type else ""
            return self._valued(f"{pad}{', '.join(statement.names)}{typed}", statement.value, STEP)
        if isinstance(statement, s.Shared):
            return self._valued(f"{pad}shared {statement.name}", statement.value, STEP)
        if isinstance(statement, s.Require):
            message = f' "{statement.message}"' if statement.message is not None else ""
            lines = self._prefixed(f"{pad}require ", statement.condition, CONDITION, STEP, len(message))
            lines[-1].text += message
            return lines
        one = pad + self.flat.statement(statement)
        if len(statement.values) == 1 or (len(one) <= WIDTH and not self._stiff(statement)):
            return self._prefixed(f"{pad}return ", statement.values[0], EXPRESSION, STEP) if len(statement.values) == 1 else [Line(one)]
        lines: list[Line] = []
        for number, value in enumerate(statement.values):
            more = number + 1 < len(statement.values)
            lines += self._prefixed(f"{pad}return " if not number else pad * 2, value, EXPRESSION, STEP * 2 if number else STEP, more)
            lines[-1].text += "," * more
        return lines

    def _valued(self, name: str, value: Any, indent: int) -> list[Line]:
        return self._prefixed(f"{name} = ", value, EXPRESSION, indent) if value is not None else [Line(name)]

    def _prefixed(self, prefix: str, value: Any, wanted: int, indent: int, tail: int = 0) -> list[Line]:
        lines = self.lay(value, wanted, indent, len(prefix), tail)
        lines[0].text = prefix + lines[0].text
        return lines

    # expressions

    def lay(self, tree: Any, wanted: int, indent: int, column: int, tail: int = 0) -> list[Line]:
        """Lines of an expression: the first without its indent (it begins at `column`), `tail` more characters after the last."""
        text = self.flat(tree, wanted)
        if column + len(text) + tail <= WIDTH and not self._stiff(tree):
            return [Line(text)]
        if level(tree) < wanted:
            inner = self._prefixed(" " * (indent + STEP), tree, EXPRESSION, indent + STEP)
            return [Line("("), *inner, Line(" " * indent + ")")]
        lay = getattr(self, f"_{type(tree).__name__.lower()}", None)
        return lay(tree, indent, column, tail) if lay else [Line(text)]

    def _listed(self, opening: str, elements: Sequence[Any], closing: str, start: int, end: int, indent: int) -> list[Line]:
        """`opening`, each element on a line with a comma, `closing`."""
        inside = indent + STEP
        items = self._sequence(elements, start, end, inside, lambda e: self._element(e, inside))
        return [Line(opening), *items, Line(" " * indent + closing)]

    def _element(self, element: Any, indent: int) -> list[Line]:
        name = f"{element.name} = " if isinstance(element, s.Argument) and element.name else ""
        value = element.value if isinstance(element, s.Argument) else element
        lines = self._prefixed(" " * indent + name, value, EXPRESSION, indent, 1)
        lines[-1].text += ","
        return lines

    def _listof(self, tree: s.ListOf, indent: int, column: int, tail: int) -> list[Line]:
        return self._listed("[", tree.items, "]", tree.span.start, tree.span.end, indent)

    def _tupleof(self, tree: s.TupleOf, indent: int, column: int, tail: int) -> list[Line]:
        return self._listed("(", tree.items, ")", tree.span.start, tree.span.end, indent)

    def _call(self, tree: s.Call, indent: int, column: int, tail: int) -> list[Line]:
        head = self.lay(tree.callee, POSTFIX, indent, column, 1)
        if not tree.arguments:
            head[-1].text += "()"
            return head
        body = self._listed("(", tree.arguments, ")", tree.callee.span.end, tree.span.end, indent)
        return self._glued(head, body)

    def _glued(self, head: list[Line], body: list[Line]) -> list[Line]:
        head[-1].text += body[0].text
        return head + body[1:]

    def _comprehension(self, tree: s.Comprehension, indent: int, column: int, tail: int) -> list[Line]:
        pad = " " * (indent + STEP)
        lines = [Line("["), *self._prefixed(pad, tree.item, EXPRESSION, indent + STEP)]
        lines += self._prefixed(f"{pad}for {', '.join(tree.names)} in ", tree.source, SUM, indent + STEP)
        if tree.condition is not None:
            lines += self._prefixed(f"{pad}if ", tree.condition, CONDITION + 1, indent + STEP)
        return [*lines, Line(" " * indent + "]")]

    def _pipe(self, tree: s.Pipe, indent: int, column: int, tail: int) -> list[Line]:
        hugged = self._hugged(tree, indent, column)
        if hugged:
            return hugged
        inside = indent + STEP
        arrows = iter(("", *tree.arrows))

        def stage(element: Any) -> list[Line]:
            arrow = next(arrows)
            if not arrow:
                return self.lay(element, POSTFIX, indent, column)
            return self._prefixed(f"{' ' * inside}{arrow} ", element, POSTFIX, inside)

        return self._sequence(tree.stages, tree.stages[0].span.start, tree.stages[-1].span.end, inside, stage, inline=True)

    def _hugged(self, tree: s.Pipe, indent: int, column: int) -> list[Line] | None:
        """The pipe on one line but for the braces of one stage, where that suffices."""
        stiff = [i for i, stage in enumerate(tree.stages) if self._stiff(stage)]
        braces = [i for i, stage in enumerate(tree.stages) if isinstance(stage, s.Branches)]
        if len(stiff) > 1 or not set(stiff) <= set(braces):
            return None
        tries = (self._hugged_at(tree, place, indent, column) for place in stiff or reversed(braces))
        return next((lines for lines in tries if lines), None)

    def _hugged_at(self, tree: s.Pipe, place: int, indent: int, column: int) -> list[Line] | None:
        stage = tree.stages[place]
        assert isinstance(stage, s.Branches)
        slotted = [self.starts[i] for i in self._between(tree.span.start, tree.span.end) if i in self.slotted]
        if any(not stage.span.start <= at < stage.span.end for at in slotted) or self._stiff(stage.callee):
            return None
        texts = [self.flat(t, POSTFIX) for t in tree.stages]
        before = "".join(f"{t} {a} " for t, a in zip(texts[:place], tree.arrows))
        after = "".join(f" {a} {t}" for t, a in zip(texts[place + 1 :], tree.arrows[place:]))
        if column + len(before) + len(self.flat(stage.callee, POSTFIX)) + 2 > WIDTH or indent + 1 + len(after) > WIDTH:
            return None
        lines = self._branches(stage, indent, column + len(before), 0)
        lines[0].text = before + lines[0].text
        lines[-1].text += after
        return lines

    def _branches(self, tree: s.Branches, indent: int, column: int, tail: int) -> list[Line]:
        head = self.lay(tree.callee, POSTFIX, indent, column, 2)
        inside = indent + STEP
        lay = lambda b: self._prefixed(f"{' ' * inside}{b.name}: ", b.value, EXPRESSION, inside)  # noqa: E731
        body = self._sequence(tree.branches, tree.callee.span.end, tree.span.end, inside, lay)
        return self._glued(head, [Line(" {"), *body, Line(" " * indent + "}")])

    def _graft(self, tree: s.Graft, indent: int, column: int, tail: int) -> list[Line]:
        head = self.lay(tree.host, POSTFIX, indent, column + 6, 2)
        head[0].text = f"graft {head[0].text}"
        inside = indent + STEP
        lay = lambda e: self._prefixed(f"{' ' * inside}at {self.flat(e.path, POSTFIX)}: ", e.value, EXPRESSION, inside)  # noqa: E731
        body = self._sequence(tree.edits, tree.host.span.end, tree.span.end, inside, lay)
        return self._glued(head, [Line(" {"), *body, Line(" " * indent + "}")])

    def _binary(self, tree: s.Binary, indent: int, column: int, tail: int) -> list[Line]:
        own, left, right = binary_level(tree.op)
        parts: list[tuple[str, Any]] = [(tree.op, tree.right)]
        first = tree.left
        while left == own and isinstance(first, s.Binary) and binary_level(first.op)[0] == own:
            parts.append((first.op, first.right))
            first = first.left
        lines = self.lay(first, left, indent, column)
        for op, operand in reversed(parts):
            lines += self._prefixed(f"{' ' * (indent + STEP)}{op} ", operand, right, indent + STEP)
        return lines

    def _unary(self, tree: s.Unary, indent: int, column: int, tail: int) -> list[Line]:
        op = "not " if tree.op == "not" else tree.op
        return self._prefixed_from(op, tree.operand, level(tree), indent, column)

    def _prefixed_from(self, prefix: str, value: Any, wanted: int, indent: int, column: int) -> list[Line]:
        lines = self.lay(value, wanted, indent, column + len(prefix))
        lines[0].text = prefix + lines[0].text
        return lines

    def _ifelse(self, tree: s.IfElse, indent: int, column: int, tail: int) -> list[Line]:
        pad = " " * (indent + STEP)
        lines = self.lay(tree.then, CONDITION + 1, indent, column)
        lines += self._prefixed(f"{pad}if ", tree.condition, CONDITION + 1, indent + STEP)
        return lines + self._prefixed(f"{pad}else ", tree.other, CONDITION, indent + STEP)

    def _index(self, tree: s.Index, indent: int, column: int, tail: int) -> list[Line]:
        return self._suffixed(tree.value, f"[{self.flat(tree.index, EXPRESSION)}]", indent, column)

    def _attribute(self, tree: s.Attribute, indent: int, column: int, tail: int) -> list[Line]:
        return self._suffixed(tree.value, f".{tree.name}", indent, column)

    def _on(self, tree: s.On, indent: int, column: int, tail: int) -> list[Line]:
        return self._suffixed(tree.value, f" on {tree.backend}", indent, column)

    def _as(self, tree: s.As, indent: int, column: int, tail: int) -> list[Line]:
        return self._suffixed(tree.value, self.flat(tree, ATOM)[len(self.flat(tree.value, POSTFIX)) :], indent, column)

    def _suffixed(self, value: Any, suffix: str, indent: int, column: int) -> list[Line]:
        lines = self.lay(value, POSTFIX, indent, column, len(suffix))
        lines[-1].text += suffix
        return lines


def _kept(a: Any, b: Any) -> bool:
    """Empty lines stay where the text has them, and none is added."""
    return False
