"""E02xx: element types, axes and widths."""

from __future__ import annotations

from .story import Code, model

SPLIT = """block Split(parts)(x: [*S, d]) -> [*S, d] {
  require d % parts == 0
  return x -> linear(d)
}

"""

CODES = {
    "E0201": Code(
        "element types differ",
        "Tensors hold `float`, `int` or `bool` elements, and nothing is cast in silence. Integers become floats through an `embedding`.",
        "model M(tokens: int[B, T]) -> float[B, T, 8] { return tokens -> linear(8) }\n",
        "model M(tokens: int[B, T]) -> float[B, T, 8] { return tokens -> embedding(256, 8) -> linear(8) }\n",
    ),
    "E0202": Code(
        "the number of axes differs",
        "A brick takes tensors of a certain number of axes: `[B, T, d]` has three, `[*S, d]` one or more. `rearrange` adds and removes"
        " axes, `pool` sums one up.",
        "model M(x: float[B, 8]) -> float[B, 8] { return x -> Attention(2) }\n",
        "model M(x: float[B, T, 8]) -> float[B, T, 8] { return x -> Attention(2) }\n",
    ),
    "E0203": Code(
        "shapes differ across `->`",
        "What comes out of one brick does not fit into the next. Write `~>` to let the compiler insert a stitch (a small learned map that"
        " changes the last axis), give the brick another width, or put an adapter between (`pool`, `interpolate`, `rearrange`).",
        "block Narrow(x: [*S, 4]) -> [*S, 4] { return x -> gelu }\n\n" + model("return x -> Narrow -> linear(8)"),
        "block Narrow(x: [*S, 4]) -> [*S, 4] { return x -> gelu }\n\n" + model("return x ~> Narrow -> linear(8)"),
    ),
    "E0204": Code(
        "a width is not known",
        "Lower-case widths are numbers once a model is built; capitalized ones (`B`, `T`) are known only when it runs. Here a number is"
        " needed, or two sizes must be shown to be equal. A `require` states what is true of the sizes; weights cannot depend on them.",
        "model M(x: float[B, T]) -> float[B, 8] { return x -> linear(8) }\n",
        "model M(x: float[B, 16]) -> float[B, 8] { return x -> linear(8) }\n",
    ),
    "E0205": Code(
        "one name stands for two widths",
        "A name in a header, or in an einops pattern, stands for one size throughout a call. Here two inputs give it different ones."
        " (Where one input meets one brick across an arrow, the same is told as E0203.)",
        model("y = x -> linear(4)", 'return (x, y) -> einsum("b t d, b t d -> b t") -> rearrange("b t -> b t 1") -> linear(8)'),
        model("y = x -> linear(8)", 'return (x, y) -> einsum("b t d, b t d -> b t") -> rearrange("b t -> b t 1") -> linear(8)'),
    ),
    "E0206": Code(
        "branches have unequal widths",
        "The branches of a join or a filter meet in one width. With `width = n` the compiler stitches each branch that differs.",
        model("return x -> fork { a: linear(4)  b: linear(6) } -> add -> linear(8)"),
        model("return x -> fork { a: linear(4)  b: linear(6) } -> add(width = 8) -> linear(8)"),
    ),
    "E0207": Code(
        "shapes do not align in `+`, `-` or `*`",
        "Elementwise operations align at the last axis. Missing leading axes and axes of width 1 extend; nothing else does.",
        model("return (x + (x -> linear(4))) -> linear(8)"),
        model("return (x + (x -> linear(8))) -> linear(8)"),
    ),
    "E0208": Code(
        "the result is not what the header promises",
        "The header of a block or a model says what comes out, and the body gives something else. Mend whichever is wrong. A capitalized"
        " name that first appears in the result names whatever comes out.",
        "model M(x: float[B, 8]) -> float[B, 4] { return x -> linear(8) }\n",
        "model M(x: float[B, 8]) -> float[B, 4] { return x -> linear(4) }\n",
    ),
    "E0209": Code(
        "a brick's shape rule is not met",
        "Some bricks have rules of shape that no header can state. The message says which; `graphir bricks NAME` shows the brick. The"
        " primitives of this edition report theirs under more exact codes (E0201 to E0207), so this one is left to bricks of a host.",
    ),
    "E0210": Code(
        "a requirement is not met",
        "A `require` of the block, or a condition of the primitive, is false for these values. What cannot be decided before the model"
        " runs becomes a precondition of the model instead.",
        SPLIT + model("return x -> Split(3)"),
        SPLIT + model("return x -> Split(4)"),
    ),
    "E0211": Code(
        "a shared brick is used at two widths",
        "A brick bound with `shared` has one set of weights, whose shapes follow from its first use. It cannot serve inputs of another"
        " width. Bound with `=`, it has fresh weights at each use.",
        model("shared f = linear(8)", "return x -> f -> linear(4) -> f"),
        model("f = linear(8)", "return x -> f -> linear(4) -> f"),
    ),
}
