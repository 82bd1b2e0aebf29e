"""Programs that would expand, nest or count without measure, and other things that are no programs. name -> (files, expected code)."""

from __future__ import annotations

MODEL = "model M(x: float[B, 8]) -> float[B, 8] { return x -> %s }\n"


def _doubling_blocks() -> str:
    blocks = ["block B0(x: [*S, d]) -> [*S, d] { return x -> linear(d) }\n"]
    blocks += [f"block B{i}(x: [*S, d]) -> [*S, d] {{ return x -> B{i - 1} -> B{i - 1} }}\n" for i in range(1, 41)]
    return "".join(blocks) + MODEL % "B40"


def _twice() -> str:
    inner = "linear(8)"
    for _ in range(40):
        inner = f"T({inner})"
    return "block T(f)(x: [*S, d]) -> [*S, d] { return x -> f -> f }\n" + MODEL % inner


def _lists(step: str) -> str:
    lines = ["  a0 = [linear(8), linear(8)]"] + [f"  a{i} = {step.format(a=f'a{i - 1}')}" for i in range(1, 41)]
    return "model M(x: float[B, 8]) -> float[B, 8] {\n" + "\n".join(lines) + "\n  return x -> a40\n}\n"


def _lets() -> str:
    return "let f0(n) = n\n" + "".join(f"let f{i}(n) = f{i - 1}(n) + f{i - 1}(n)\n" for i in range(1, 41)) + MODEL % "linear(f40(1))"


def _deep() -> str:
    blocks = ["block D0(x: [*S, d]) -> [*S, d] { return x -> id }\n"]
    blocks += [f"block D{i}(x: [*S, d]) -> [*S, d] {{ return x -> D{i - 1} }}\n" for i in range(1, 400)]
    return "".join(blocks) + MODEL % "D399"


def _chain() -> dict[str, str]:
    return {f"c{i}.arch": (f'import "c{i + 1}.arch" as n\n' if i < 40 else "") + MODEL % "id" for i in range(41)}


Files = dict[str, "str | bytes"]
BOMBS: dict[str, tuple[Files, str]] = {
    "a list of a billion": ({"main.arch": MODEL % "([linear(8)] * 1000000000)"}, "E0606"),
    "blocks that double 40 times": ({"main.arch": _doubling_blocks()}, "E0606"),
    "a parameter that doubles 40 times": ({"main.arch": _twice()}, "E0606"),
    "lists of lists that double": ({"main.arch": _lists("[{a}, {a}]")}, "E0606"),
    "lists that double by addition": ({"main.arch": _lists("{a} + {a}")}, "E0606"),
    "config functions that double": ({"main.arch": _lets()}, "E0606"),
    "a range of a billion": ({"main.arch": MODEL % "[linear(8) for i in 0..1000000000]"}, "E0606"),
    "a comprehension of a million": ({"main.arch": MODEL % "[linear(8) for j in [i for i in 0..1000000]]"}, "E0606"),
    "400 blocks deep": ({"main.arch": _deep()}, "E0606"),
    "10,000 nested brackets": ({"main.arch": MODEL % ("(" * 10000 + "id" + ")" * 10000)}, "E0603"),
    "10,000 nested lists": ({"main.arch": MODEL % ("[" * 10000 + "id" + "]" * 10000)}, "E0603"),
    "10,000 minus signs": ({"main.arch": MODEL % ("linear(" + "-" * 10000 + "8)")}, "E0603"),
    "an integer of 5,000 digits": ({"main.arch": MODEL % f"linear({'9' * 5000})"}, "E0605"),
    "1e400": ({"main.arch": "model M(x: float[B, 8]) -> float[B, 8] { return 1e400 * x }\n"}, "E0605"),
    "a tower of powers": ({"main.arch": "model M(n = 10 ** 10 ** 10)(x: float[B, 8]) -> float[B, 8] { return x -> id }\n"}, "E0405"),
    "an identifier of 1,000 letters": ({"main.arch": MODEL % ("a" * 1000)}, "E0604"),
    "a string of 2,000 letters": ({"main.arch": MODEL % f'rearrange("{"a" * 2000}")'}, "E0605"),
    "an axis of 10^12": ({"main.arch": MODEL % "linear(1000000000000) -> linear(8)"}, "E0608"),
    "10^18 parameters": ({"main.arch": MODEL % "linear(1000000000) -> linear(1000000000) -> linear(8)"}, "E0610"),
    "bytes that are not UTF-8": ({"main.arch": b"model M(x: float[B, 8]) -> float[B, 8] { return x } # \xff\xfe\n"}, "E0505"),
    "a NUL": ({"main.arch": b"model M(x: float[B, 8]) -> float[B, 8] { return \0x }\n"}, "E0505"),
    "an empty file": ({"main.arch": ""}, "E0108"),
    "a megabyte of blanks": ({"main.arch": " " * 2**20}, "E0601"),
    "30,000 statements": ({"main.arch": "model M(x: float[B, 8]) -> float[B, 8] {" + "a=1\n" * 30000 + "}"}, "E0602"),
    "imports in a circle": (
        {"main.arch": 'import "b.arch"\n' + MODEL % "id", "b.arch": 'import "main.arch"\nblock F(x: [*S]) -> [*S] { return x -> id }\n'},
        "E0503",
    ),
    "an import of itself": ({"main.arch": 'import "main.arch" as me\n' + MODEL % "id"}, "E0503"),
    "a chain of 40 imports": ({**_chain(), "main.arch": 'import "c0.arch"\n' + MODEL % "id"}, "E0607"),
    "an import from above": ({"main.arch": 'import "../up.arch"\n' + MODEL % "id"}, "E0502"),
    "an import from the root": ({"main.arch": 'import "/etc/passwd.arch"\n' + MODEL % "id"}, "E0502"),
    "an import from home": ({"main.arch": 'import "~/x.arch"\n' + MODEL % "id"}, "E0502"),
    "an import with a backslash": ({"main.arch": 'import "a\\\\b.arch"\n' + MODEL % "id"}, "E0502"),
    "a block that contains itself": ({"main.arch": "block F(x: [*S]) -> [*S] { return x -> F }\n" + MODEL % "F"}, "E0312"),
    "two blocks that contain each other": (
        {"main.arch": "block F(x: [*S]) -> [*S] { return x -> G }\nblock G(x: [*S]) -> [*S] { return x -> F }\n" + MODEL % "F"},
        "E0312",
    ),
    "a config function that calls itself": ({"main.arch": "let f(n) = f(n - 1)\n" + MODEL % "linear(f(8))"}, "E0312"),
}
