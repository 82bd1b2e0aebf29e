"""E03xx: names, arguments and what they stand for; E04xx: numbers and parameters."""

from __future__ import annotations

from .story import Code, model

CODES = {
    "E0301": Code(
        "a name is not known",
        "Nothing of this name is in sight: no statement above, no parameter, no block of the file, no brick. `graphir bricks` lists the"
        " bricks. Names count their case.",
        model("return x -> liner(8)"),
        model("return x -> linear(8)"),
    ),
    "E0302": Code(
        "an argument is not known",
        "The brick has no argument of this name. `graphir bricks NAME` shows those that it has. (`graphir explain` says the same of a"
        " code that does not exist.)",
        model("return x -> linear(8, biass = false)"),
        model("return x -> linear(8, bias = false)"),
    ),
    "E0303": Code(
        "an argument is missing",
        "An argument without a default must be given.",
        model("return x -> linear"),
        model("return x -> linear(8)"),
    ),
    "E0304": Code(
        "too many arguments",
        "More arguments are given than the first list of the header has names. Tensors come through `->`, not in parentheses.",
        model("return x -> relu(8)"),
        model("return x -> linear(8) -> relu"),
    ),
    "E0305": Code(
        "the wrong number of tensors",
        "A brick takes as many tensors as its header lists. A tuple feeds several: `(x, memory) -> CrossAttention(4)`; an input may also"
        " be bound by name: `x -> CrossAttention(4, memory = memory)`.",
        model("return (x, x) -> linear(8)"),
        model("return (x, x) -> add -> linear(8)"),
    ),
    "E0306": Code(
        "this is no brick",
        "`->` leads to a brick, or to a list of bricks; this is a number, a tensor, or something else that cannot be applied.",
        model("width = 8", "return x -> width"),
        model("width = 8", "return x -> linear(width)"),
    ),
    "E0307": Code(
        "a tensor where config is meant, or the reverse",
        "The first list of a header holds config (numbers, words, bricks), which is known before any tensor exists; the second holds"
        " tensors. One cannot take the place of the other.",
        model("return x -> linear(x)"),
        model("return x -> linear(8)"),
    ),
    "E0308": Code(
        "a name is bound twice",
        "Within a block a name is bound once; so are the blocks, parameters and imports of a file, and the branches of a fork.",
        model("h = x -> linear(8)", "h = h -> gelu", "return h"),
        model("h = x -> linear(8)", "g = h -> gelu", "return g"),
    ),
    "E0309": Code(
        "nothing is returned",
        "The body of a block or a model ends with one `return`, and nothing stands behind it.",
        model("h = x -> linear(8)"),
        model("h = x -> linear(8)", "return h"),
    ),
    "E0310": Code(
        "an attribute is not known",
        "A dot reaches into an import (`host.vocab`), names the transposed weights of a shared embedding or linear brick (`emb.T`), or"
        " a part in the path of a graft.",
        model("shared f = linear(8)", "return x -> f -> f.weights"),
        model("shared f = linear(8)", "return x -> f -> f.T"),
    ),
    "E0311": Code(
        "names and values differ in number",
        "`a, b = ...` binds as many names as there are values.",
        model("a, b, c = x -> split(2)", "return (a, b) -> concat"),
        model("a, b = x -> split(2)", "return (a, b) -> concat"),
    ),
    "E0312": Code(
        "a definition leads back to itself",
        "Evaluation always ends, so neither blocks nor config functions may use themselves, directly or through others. Repetition is a"
        " list: `[layer] * n`. A block may take another as its parameter, and so nest to any fixed depth.",
        "block A(x: [*S]) -> [*S] { return x -> A }\n\n" + model("return x -> A"),
        "block A(x: [*S]) -> [*S] { return x -> gelu }\n\n" + model("return x -> ([A] * 4)"),
    ),
    "E0313": Code(
        "a template has no weights of its own",
        "A name bound with `=` is a template: each use has fresh weights, so there are none that `.T` could mean. `shared` makes one"
        " instance.",
        "model M(tokens: int[B, T]) -> float[B, T, 256] {\n  emb = embedding(256, 8)\n  return tokens -> emb -> emb.T\n}\n",
        "model M(tokens: int[B, T]) -> float[B, T, 256] {\n  shared emb = embedding(256, 8)\n  return tokens -> emb -> emb.T\n}\n",
    ),
    "E0314": Code(
        "a brick is not part of this edition",
        "The language knows this brick, but this installation has no declaration of it: it belongs to a later edition, or to a host that"
        " registers it. `graphir bricks` lists what is here.",
    ),
    "E0401": Code(
        "a division is not exact",
        "`/` on integers is exact or an error, since widths are whole. `//` rounds down, if that is what is meant.",
        model("return x -> linear(9 / 2) -> linear(8)"),
        model("return x -> linear(9 // 2) -> linear(8)"),
    ),
    "E0402": Code(
        "a division by zero",
        "The right side of `/`, `//` or `%` is zero.",
        model("n = 0", "return x -> linear(8 // n) -> linear(8)"),
        model("n = 2", "return x -> linear(8 // n) -> linear(8)"),
    ),
    "E0403": Code(
        "an index is out of range",
        "Lists count from 0; negative places count from the end.",
        model("widths = [4, 8]", "return x -> linear(widths[2])"),
        model("widths = [4, 8]", "return x -> linear(widths[1])"),
    ),
    "E0404": Code(
        "a value of the wrong kind",
        "Config values are whole numbers, fractions, truth values, words, lists and bricks, and none is turned into another in silence.",
        model('return x -> linear(8, bias = "no")'),
        model("return x -> linear(8, bias = false)"),
    ),
    "E0405": Code(
        "a number is out of range",
        "The number is negative where it must not be, lies outside of an axis, or became too large in a computation.",
        model("return x -> linear(10 ** 1000) -> linear(8)"),
        model("return x -> linear(10 ** 2) -> linear(8)"),
    ),
    "E0406": Code(
        "a parameter has no value",
        "A `param` or a model's parameter without a default needs a value from outside: `graphir check file.arch --set d=256`, or"
        " `graphir.load(path, d=256)`.",
        "model M(d)(x: float[B, d]) -> float[B, d] { return x -> linear(d) }\n",
        "model M(d = 256)(x: float[B, d]) -> float[B, d] { return x -> linear(d) }\n",
    ),
    "E0407": Code(
        "`choose` makes a search space",
        "`choose(a, b, ...)` is read and formatted, but this edition does not sample search spaces. Put a parameter in its place and vary"
        " that from outside.",
        "model M(d = choose(8, 16))(x: float[B, 8]) -> float[B, 8] { return x -> linear(d) -> linear(8) }\n",
        "model M(d = 16)(x: float[B, 8]) -> float[B, 8] { return x -> linear(d) -> linear(8) }\n",
    ),
    "E0408": Code(
        "the model has no such parameter",
        "`--set name=value` sets a `param` of the file or a parameter of the model, by its name:\n\n"
        "    graphir check lm.arch --set depth=4",
    ),
    "E0409": Code(
        "the file has no such model",
        "`--model` chooses among the models of a file; without it the last one is meant:\n\n    graphir summary lm.arch --model Small",
    ),
    "E0410": Code(
        "a filter that does not work out",
        "A filter has at least one branch, its router gives one score for each, and `keep` lies between 1 and their number. Options that"
        " act between scores and normaliser (`keep_first`, `noise`, `z_loss`, `per_sample`) need a router that ends in one, such as"
        " `linear(2) -> softmax`. Some options need another (`groups` needs `keep`), some exclude each other.",
        model("return x -> filter(linear(2) -> softmax, keep = 3) { a: linear(8)  b: gelu }"),
        model("return x -> filter(linear(2) -> softmax, keep = 1) { a: linear(8)  b: gelu }"),
    ),
}
