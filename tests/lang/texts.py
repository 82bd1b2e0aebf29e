"""Program texts for the tests of this folder: the examples, and random ones made from a grammar of text."""

from __future__ import annotations

import random
from pathlib import Path

EXAMPLES = {p.name: p.read_text(encoding="utf-8") for p in sorted((Path(__file__).parents[2] / "examples").glob("*.arch"))}


def random_program(seed: int) -> str:
    """A program that parses, whatever it may mean, with odd spacing and comments anywhere between words."""
    return _Writer(random.Random(seed)).program()


class _Writer:
    def __init__(self, choose: random.Random):
        self.choose = choose

    def program(self) -> str:
        items = [self.item() for _ in range(self.choose.randint(1, 3))] + ["model M(x: float[B, d]) -> float[B, d] { return x }"]
        return self.spaced("\n".join(items))

    def spaced(self, text: str) -> str:
        """Blanks become other blanks, and some become comments."""
        out: list[str] = []
        quoted = False
        for character in text:
            quoted ^= character == '"'
            if character == " " and not quoted:
                comment = f"  # {self.choose.randint(0, 99)} it's\n"
                out.append(self.choose.choices([" ", "  ", "\n", "\n\n\n", comment], [80, 6, 6, 2, 6])[0])
            elif character == "\n":
                out.append(self.choose.choices(["\n", "\n\n", " # here\n", "\n# alone\n\n"], [70, 10, 10, 10])[0])
            else:
                out.append(character)
        return "".join(out)

    def name(self) -> str:
        return self.choose.choice(["x", "d", "emb", "layers", "norm", "linear", "Attention", "hidden_width_of_the_network"])

    def item(self) -> str:
        kind = self.choose.randint(0, 4)
        if kind == 0:
            return f"param {self.name()} = {self.value(2)}"
        if kind == 1:
            return f"let {self.name()} ( a , b = 2 ) = {self.value(2)}"
        body = "\n".join(self.statement() for _ in range(self.choose.randint(1, 4)))
        formals = self.choose.choice(["", "( f , k = 3 )", "( a , b = 1 + 2 , cc = linear ( 4 * d ) , dddddddddddddddddddd = [ 1 , 2 ] )"])
        return f"block Part{formals} ( x : [ *S , 2 * d ] , y : float[ B , T ] ) -> [ *S , d // 2 ] {{ {body} }}"

    def statement(self) -> str:
        kind = self.choose.randint(0, 5)
        if kind == 0:
            return f"shared {self.name()} = {self.value(2)}"
        if kind == 1:
            return f"return {self.value(2)} , {self.value(2)}"
        if kind == 2:
            return f'require {self.sum(2)} == {self.sum(1)} "because"'
        names = self.choose.choice(["a", "a , b", "a : float[ B , T ]"])
        return f"{names} = {self.value(3)}"

    def value(self, depth: int) -> str:
        kind = self.choose.randint(0, 9)
        if kind < 4:
            stages = [self.postfix(depth) for _ in range(self.choose.randint(2, 6))]
            return f" {self.choose.choice(['->', '~>'])} ".join(stages)
        if kind == 4:
            return f"{self.sum(depth)} if {self.sum(depth)} < {self.atom()} and not {self.atom()} else {self.sum(depth)}"
        if kind == 5 and depth > 1:
            return f"graft {self.name()} {{ at layers[ 1..3 ] . mlp : {self.value(depth - 1)} at head[ * ] : id }}"
        return self.sum(depth)

    def sum(self, depth: int) -> str:
        count = self.choose.randint(1, 3)
        operators = ["+", "-", "*", "/", "//", "%", "**"]
        text = self.postfix(depth)
        for _ in range(count - 1):
            text += f" {self.choose.choice(operators)} {self.choose.choice(['', '', '- '])}{self.postfix(depth)}"
        return text

    def postfix(self, depth: int) -> str:
        if depth <= 0:
            return self.atom()
        inner = depth - 1
        makers = [
            lambda: self.atom(),
            lambda: f"{self.name()} . {self.name()}",
            lambda: f"{self.name()}( {self.value(inner)} , k = {self.value(inner)} )",
            lambda: f"{self.name()}()",
            lambda: f"( {self.value(inner)} )",
            lambda: f"( {self.value(inner)} , {self.value(inner)} )",
            lambda: f"[ {self.value(inner)} , {self.value(inner)} , {self.atom()} , ]",
            lambda: "[]",
            lambda: f"[ {self.value(inner)} for a , b in {self.sum(inner)} if {self.sum(inner)} ]",
            lambda: f"[ {self.value(inner)} for i in 0 .. {self.atom()} ]",
            lambda: f"fork {{ a : {self.value(inner)} b : {self.value(inner)} }}",
            lambda: f"{self.postfix(inner)} as part",
            lambda: f'{self.postfix(inner)} as "a part" on mlx',
            lambda: f"{self.name()}[ {self.value(inner)} ]",
        ]
        return self.choose.choice(makers)()

    def atom(self) -> str:
        return self.choose.choice([self.name(), "3", "0.5", "1e-5", '"b t d -> b d"', "true", "none", "x"])
