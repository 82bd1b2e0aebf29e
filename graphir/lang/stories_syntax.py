"""E01xx: text that is no program; E06xx: text and expansion without measure."""

from __future__ import annotations

from .story import Code, model

CODES = {
    "E0101": Code(
        "something stands where it cannot stand",
        "The text cannot be read on from here. The message says what was being read and what could follow. Often the fault is just"
        " before: an arrow that leads nowhere, a missing comma, a misspelt word. Imports come before everything else in a file.",
        model("h = x -> linear(8", "        bias = false)", "return h"),
        model("h = x -> linear(8, bias = false)", "return h"),
    ),
    "E0102": Code(
        "`->` is mixed with arithmetic",
        "A pipe and arithmetic never stand side by side without parentheses, so that there is no precedence to remember: `x + y -> f`"
        " could mean two things. Comparisons and `and`, `or`, `not` are treated alike.",
        model("return x + x -> linear(8)"),
        model("return x + (x -> linear(8))"),
    ),
    "E0103": Code(
        "`->` is mixed with `if`",
        "Like arithmetic, `a if condition else b` and a pipe need parentheses to stand together.",
        model("deep = true", "return x -> gelu if deep else x"),
        model("deep = true", "return (x -> gelu) if deep else x"),
    ),
    "E0104": Code(
        "a reserved word is used as a name",
        "These words are reserved everywhere, as parameters, branches and paths too: import as param let block model shared return"
        " require if else for in and or not graft at on true false none.",
        model("model = linear(8)", "return x -> model"),
        model("head = linear(8)", "return x -> head"),
    ),
    "E0105": Code(
        "a string is not closed",
        'A string begins and ends with `"` on one line. It has no escapes: what stands between is taken as it is.',
        model('return x -> rearrange("b t d -> b t d)'),
        model('return x -> rearrange("b t d -> b t d")'),
    ),
    "E0106": Code(
        "a character does not belong here",
        "Programs are written in plain ASCII; any other letter may stand in comments and strings. Control characters, and characters"
        " that make a text show other than it reads, may stand nowhere.",
        model("return x → linear(8)"),
        model("return x -> linear(8)"),
    ),
    "E0107": Code(
        "brackets do not match",
        "A bracket is never closed, is closed by one of another kind, or closes nothing. Both places are shown. One such error is told for"
        " each block; the rest of the block is read when it is mended.",
        model("return (x -> linear(8) -> gelu"),
        model("return (x -> linear(8)) -> gelu"),
    ),
    "E0108": Code(
        "the file holds no model",
        "A program needs a `model`, a `block` or a `let`; this file has none, or is empty.",
        "param width = 8\n",
        "param width = 8\n\nmodel M(x: float[B, width]) -> float[B, width] { return x -> linear(width) }\n",
    ),
    "E0109": Code(
        "a number is malformed",
        "Integers are written in decimal without separators; a fraction has digits on both sides of its point: `0.5`, `1e-5`, `2.0e3`.",
        model("return .5 * x"),
        model("return 0.5 * x"),
    ),
    "E0601": Code(
        "the file is too large",
        "A program may have 262,144 bytes. Repetition belongs in lists and comprehensions (`[layer] * 96`), long programs into several"
        " files. A host that trusts its input may raise the bound: `graphir.check(text, limits = Limits(file_bytes = ...))`.",
    ),
    "E0602": Code(
        "too many statements",
        "A file may hold 20,000 statements. Lists and comprehensions repeat bricks without repeating text.",
    ),
    "E0603": Code(
        "nested too deep",
        "Brackets may nest 64 deep, and an expression may have three times as many operators in a row. Bind inner parts to names.",
        model("return " + "(" * 70 + "x" + ")" * 70),
        model("return (x)"),
    ),
    "E0604": Code(
        "a name is too long",
        "Names have at most 64 characters; they end up in the paths of weights.",
        model(f"{'long_' * 14} = linear(8)", f"return x -> {'long_' * 14}"),
        model("head = linear(8)", "return x -> head"),
    ),
    "E0605": Code(
        "a literal is too long",
        "Integers have at most 18 digits, strings at most 1,024 characters, and a fraction must fit a double (up to about 1.8e308).",
        model("return 1e400 * x"),
        model("return 1e30 * x"),
    ),
    "E0606": Code(
        "the program expands without measure",
        "Lists, comprehensions and blocks that use blocks are written out when a model is built. The whole may hold a million nodes."
        " It is counted before it is made, so that a file of three lines cannot fill the memory.",
        model("return x -> ([linear(8)] * 1000000000)"),
        model("return x -> ([linear(8)] * 10)"),
    ),
    "E0607": Code(
        "too many imports",
        "A program may import 64 files, in chains of at most 16.",
    ),
    "E0608": Code(
        "a width is too large",
        "The width of an axis is at most 2147483647.",
        model("return x -> linear(3000000000) -> linear(8)"),
        model("return x -> linear(3000) -> linear(8)"),
    ),
    "E0609": Code(
        "a tensor has too many axes",
        "A tensor has at most 8 axes. `rearrange` merges axes that are not needed apart.",
        "model M(x: float[A, B, C, D, E, F, G, H, 8]) -> float[A, B, C, D, E, F, G, H, 8] { return x }\n",
        "model M(x: float[A, B, C, D, E, F, G, 8]) -> float[A, B, C, D, E, F, G, 8] { return x }\n",
    ),
    "E0610": Code(
        "too many parameters",
        "A model may have 10,000,000,000,000 parameters. They are counted from the text; none is allocated.",
        model("return x -> linear(2000000000) -> linear(2000000000) -> linear(8)"),
        model("return x -> linear(20000) -> linear(20000) -> linear(8)"),
    ),
}
