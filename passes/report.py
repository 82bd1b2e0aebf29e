"""What a pass says beside its result: rules that fired, rules that did not and why, figures, and recipes for weights."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..lang.diagnostic import Diagnostic, GraphirError

if TYPE_CHECKING:
    from ..ir.graph import Node
    from .recipes import Recipe


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a rule did not fire at a node."""

    rule: str
    node: Node
    reason: str

    def __str__(self) -> str:
        place = f" ({self.node.where.span})" if self.node.where.span else ""
        return f"{self.rule} not at {self.node.where.path or self.node.op}{place}: {self.reason}"


@dataclass
class Report:
    """Filled by one run of one pass.

    `explain` names the rules whose refusals are wanted (`*`: all); without it nothing is collected. `recipes` is the list
    that weight changes are added to; None where the run carries no weights, and then a pass that changes them refuses.
    """

    explain: frozenset[str] = frozenset()
    recipes: list[Recipe] | None = None
    fired: Counter[str] = field(default_factory=Counter)
    refusals: list[Refusal] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    def refuse(self, rule: str, node: Node, reason: str) -> None:
        """Note why `rule` does not apply, if somebody asked."""
        if self.explain and (rule in self.explain or "*" in self.explain):
            self.refusals.append(Refusal(rule, node, reason))

    def need_recipes(self, name: str) -> list[Recipe]:
        """The list for weight changes. Raises E0904 where the run carries no weights."""
        if self.recipes is None:
            raise GraphirError(
                Diagnostic(
                    "E0904", f"pass `{name}` changes weights, and this run carries none",
                    help=("`graphir compile` carries them", "from Python, give `run_pipeline` a list and apply its recipes to the tensors"),
                )
            )
        return self.recipes
