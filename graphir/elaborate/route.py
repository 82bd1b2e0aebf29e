"""Filters: the router's scores, the choice of branches, the branches, and their weighted sum, as separate nodes.

    x -> jitter -> router up to its normaliser -> noise -> sample_mean -> normaliser -> choice -> scale -> capacity -> filter

Each step is there only if an option asks for it. Losses and reports are auxiliary outputs of the model, `<path of the filter>.<name>`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ..bricks.declare import REGISTRY
from ..ir.graph import Attrs, Value
from ..ir.scalar import is_dim, is_number
from ..lang.source import Span
from .apply import At, apply, branch, stitch
from .run import Run
from .scope import Scope, join
from .values import Filter, Named, Pipeline, Primitive, Stage, describe

NORMALISERS = (
    "softmax",
    "sparsemax",
    "entmax",
    "gumbel",
    "hardmax",
    "sigmoid",
    "softmax_masked",
    "grid_softmax",
    "hierarchical_softmax",
    "mixture_softmax",
    "softmax_mad",
)


def apply_filter(run: Run, brick: Filter, x: Value, scope: Scope) -> Value:
    """y = sum over branches of weight * branch(x), the weights as wide as there are branches."""
    names = tuple(name for name, _ in brick.branches)
    _check_options(run, brick, len(names), scope)
    steps = _Routing(run, brick, scope)
    routed = steps.route(x, len(names))
    steps.tell(routed)
    outs = _branches(run, brick, x, names, brick.options.get("width"), scope)
    attrs = {"branches": names}
    return _node(run, "filter", attrs, (routed.weights, *outs), scope, brick.span)


def _node(
    run: Run, op: str, args: dict[str, Any], inputs: tuple[Value, ...], scope: Scope, span: Span, segment: str | None = None
) -> Value:
    return apply(run, Primitive(REGISTRY[op], args, called=True), inputs, At(scope, segment or op, span))


LOSSES = ("balance", "importance", "z_loss")
"""The auxiliary outputs of a filter that are to be minimised, times their coefficients already."""

# options

Check = tuple[Callable[[Any], bool], str]
_WHETHER: Check = (lambda v: isinstance(v, bool), "true or false")
_AMOUNT: Check = (lambda v: is_number(v) and v >= 0, "a number from 0 up")
_COUNT: Check = (lambda v: isinstance(v, int) and not isinstance(v, bool) and v >= 1, "a whole number from 1 up")
_ROOM: Check = (lambda v: is_dim(v) and not (isinstance(v, int) and v < 0), "a whole number from 0 up")
FORMS = ("switch", "document")

OPTIONS: dict[str, Check] = {
    "renormalise": _WHETHER,
    "keep_first": _WHETHER,
    "per_sample": _WHETHER,
    "learned_noise": _WHETHER,
    "cache": _WHETHER,
    "report": _WHETHER,
    "noise": _AMOUNT,
    "jitter": _AMOUNT,
    "balance": _AMOUNT,
    "importance": _AMOUNT,
    "z_loss": _AMOUNT,
    "bias_update": _AMOUNT,
    "scale": (is_number, "a number"),
    "groups": _COUNT,
    "keep_groups": _COUNT,
    "capacity": _ROOM,
    "balance_form": (lambda v: v in FORMS, f"one of {', '.join(FORMS)}"),
}
NEEDS = (
    ("renormalise", "keep"),
    ("keep_first", "keep"),
    ("bias_update", "keep"),
    ("groups", "keep"),
    ("keep_groups", "groups"),
    ("cache", "per_sample"),
    ("balance_form", "balance"),
)
EXCLUDES = (("keep_first", "renormalise"), ("keep_first", "groups"), ("keep_first", "bias_update"), ("noise", "learned_noise"))
BIASED = ("bias_update", "groups")


def _check_options(run: Run, brick: Filter, branches: int, scope: Scope) -> None:
    options = brick.options

    def refuse(code: str, message: str, *help: str) -> Exception:
        return run.fail(code, message, brick.span, scope=scope, help=help)

    for name, (fits, wanted) in OPTIONS.items():
        value = options.get(name)
        if value is not None and not fits(value):
            raise refuse("E0404", f"`{name}` of a filter is {wanted}, not {describe(value) if not is_number(value) else value}")
    keep = options.get("keep")
    if keep is not None and not (_COUNT[0](keep) and keep <= branches):
        shown = keep if isinstance(keep, int) else describe(keep)
        raise refuse("E0410", f"`keep` is {shown}, but the filter has {branches} branches", f"keep between 1 and {branches}")
    for name, other in NEEDS:
        if options.get(name) not in (None, False) and options.get(other) in (None, False):
            raise refuse("E0410", f"`{name}` says nothing without `{other}`")
    for name, other in EXCLUDES:
        if options.get(name) and options.get(other) is not None and options.get(other) is not False:
            raise refuse("E0410", f"`{name}` and `{other}` exclude each other")
    groups = options.get("groups") or 1
    kept = options.get("keep_groups") or groups
    if branches % groups or kept > groups:
        message = f"{branches} branches in {groups} groups, of which {kept} are kept, do not work out"
        raise refuse("E0410", message, "groups are equally large")
    if keep is not None and keep > branches // groups * kept:
        raise refuse("E0410", f"`keep` is {keep}, but {kept} groups hold {branches // groups * kept} branches")


# routing


@dataclass(frozen=True)
class _Routed:
    """What a router says: logits (None where nobody asked), scores of all branches, weights of the chosen, and those left by capacity."""

    logits: Value | None
    scores: Value
    chosen: Value
    weights: Value


class _Routing:
    """The steps from a filter's input to its weights, as nodes in its scope."""

    def __init__(self, run: Run, brick: Filter, scope: Scope):
        self.run, self.brick, self.scope, self.options = run, brick, scope, brick.options

    def node(self, op: str, inputs: tuple[Value, ...], segment: str | None = None, **args: Any) -> Value:
        return _node(self.run, op, args, inputs, self.scope, self.brick.span, segment)

    def route(self, x: Value, branches: int) -> _Routed:
        options, keep = self.options, self.options.get("keep")
        seen = self.node("jitter", (x,), amount=options["jitter"]) if options.get("jitter") else x
        head, tail = self._split()
        told = self._router(head, seen, branches if tail is None else None)
        logits = scores = told
        if tail is not None:
            noisy = self._pooled(self._noisy(told, seen))
            if options.get("keep_first"):
                return self._kept_first(told, noisy, tail, branches)
            scores = self._ended(tail, noisy, branches)
        chosen = self._choice(scores, keep)
        return _Routed(logits if tail is not None else None, scores, chosen, self._limited(chosen))

    def _kept_first(self, logits: Value, noisy: Value, tail: Stage, branches: int) -> _Routed:
        """Keep, then normalise. Scores of all branches are there only for what asks for them: balance losses and reports."""
        self._expect(noisy, branches)
        kept = self.node("keep_logits", (noisy,), k=self.options["keep"])
        weights = self._ended(tail, kept, branches)
        asked = self.options.get("balance") or self.options.get("report")
        scores = self._ended(replace(tail, segment="scores"), noisy, branches) if asked else weights
        if self.options.get("scale") is not None:
            weights = self.node("scale", (weights,), factor=float(self.options["scale"]))
        return _Routed(logits, scores, weights, self._limited(weights))

    def _split(self) -> tuple[Stage, Stage | None]:
        """The router up to its normaliser, and the rest, where an option acts between them; else the router alone."""
        router = self.brick.router
        wanted = [o for o in ("keep_first", "noise", "learned_noise", "per_sample", "z_loss") if self.options.get(o)]
        if not wanted:
            return router, None
        value = router.value.brick if isinstance(router.value, Named) else router.value
        stages = list(value.stages) if isinstance(value, Pipeline) else []
        ends = [i for i, s in enumerate(stages) if i and isinstance(s.value, Primitive) and s.value.name in NORMALISERS]
        if not ends:
            message = f"`{wanted[0]}` needs a router that ends in a normaliser"
            raise self.run.fail("E0410", message, router.span, scope=self.scope, help=("write `linear(n) -> softmax`",))
        head, tail = Pipeline(tuple(stages[: ends[-1]])), stages[ends[-1] :]
        last = tail[0] if len(tail) == 1 else Stage(Pipeline(tuple(tail)), tail[0].segment, tail[0].span)
        return replace(router, value=head), last

    def _router(self, router: Stage, x: Value, branches: int | None) -> Value:
        scores = apply(self.run, router.value, (x,), At(self.scope, router.segment, router.span, before=router.span))
        if not isinstance(scores, Value) or not scores.type.shape:
            raise self._misfit(describe(scores), branches or len(self.brick.branches))
        if branches is not None:
            self._expect(scores, branches)
        return scores

    def _ended(self, tail: Stage, logits: Value, branches: int) -> Value:
        scores = apply(self.run, tail.value, (logits,), At(self.scope, tail.segment, tail.span, before=tail.span))
        self._expect(scores, branches)
        return scores

    def _expect(self, scores: Any, branches: int) -> None:
        if not isinstance(scores, Value) or scores.type.shape[-1:] != (branches,):
            raise self._misfit(str(scores.type) if isinstance(scores, Value) else describe(scores), branches)

    def _misfit(self, got: str, branches: int) -> Exception:
        router = self.brick.router
        return self.run.fail(
            "E0410",
            f"the router gives {got}: one score for each of {branches} branches is needed",
            router.span,
            scope=self.scope,
            help=(f"end it in a brick that gives {branches} scores, such as `linear({branches})`, and a normaliser",),
        )

    def _noisy(self, logits: Value, x: Value) -> Value:
        if self.options.get("noise"):
            return self.node("noise", (logits,), std=self.options["noise"])
        return self.node("learned_noise", (logits, x)) if self.options.get("learned_noise") else logits

    def _pooled(self, logits: Value) -> Value:
        if not self.options.get("per_sample"):
            return logits
        return self.node("sample_mean", (logits,), cache=bool(self.options.get("cache")))

    def _choice(self, scores: Value, keep: int | None) -> Value:
        options = self.options
        scale, renormalise = options.get("scale"), options.get("renormalise", True)
        if any(options.get(o) for o in BIASED):
            groups = options.get("groups") or 1
            return self.node(
                "keep_biased",
                (scores,),
                "choice",
                k=keep,
                groups=groups,
                keep_groups=options.get("keep_groups") or groups,
                scale=1.0 if scale is None else scale,
                renormalise=renormalise,
                rate=options.get("bias_update") or 0.0,
            )
        chosen = scores if keep is None else self.node("keep_top", (scores,), k=keep, renormalise=renormalise)
        return chosen if scale is None else self.node("scale", (chosen,), factor=float(scale))

    def _limited(self, chosen: Value) -> Value:
        limit = self.options.get("capacity")
        return chosen if limit is None else self.node("capacity", (chosen,), limit=limit)

    # auxiliary outputs

    def tell(self, routed: _Routed) -> None:
        """The weights, the losses times their coefficients, and the report, as auxiliary outputs."""
        self._out("weights", routed.weights)
        coefficient = self.options.get("balance")
        if coefficient and self.options.get("balance_form", "switch") == "switch":
            self._loss("balance", coefficient, "switch_balance", routed.scores, routed.chosen)
        elif coefficient:
            self._loss("balance", coefficient, "balance_document", routed.scores)
        self._loss("importance", self.options.get("importance"), "importance", routed.chosen)
        if self.options.get("z_loss"):
            assert routed.logits is not None
            self._loss("z_loss", self.options["z_loss"], "z_loss", routed.logits)
        if self.options.get("report"):
            self._out("load", self.node("load", (routed.weights,)))
            self._out("entropy", self.node("entropy", (routed.scores,)))
            self._out("drop_rate", self.node("drop_rate", (routed.chosen, routed.weights)))

    def _out(self, name: str, value: Value) -> None:
        self.run.aux.append((join(self.scope.path, name), value))

    def _loss(self, name: str, coefficient: float | None, op: str, *inputs: Value) -> None:
        if coefficient:
            self._out(name, self.node("scale", (self.node(op, inputs),), factor=float(coefficient)))


# branches


def _branches(run: Run, brick: Filter, x: Value, names: tuple[str, ...], width: Any, scope: Scope) -> tuple[Value, ...]:
    if width is not None and (not isinstance(width, int) or isinstance(width, bool) or width < 1):
        raise run.fail("E0404", f"`width` is a positive whole number, not {describe(width)}", brick.span, scope=scope)
    path = join(scope.path, scope.segment("fork"))
    fork = run.emit("fork", (x,), Attrs(branches=names), (), path, scope, brick.span, (x.type,) * len(names))
    inner = scope.inside(scope.segment("branches"), "[]") if brick.listed else scope
    outs = [branch(run, stage, value, inner) for (_, stage), value in zip(brick.branches, fork.outputs)]
    lasts = [o.type.shape[-1] if o.type.shape else None for o in outs]
    if width is None and len(set(lasts)) > 1:
        if not run.stitch_all:
            shown = ", ".join(f"{n} {w}" for n, w in zip(names, lasts))
            raise run.fail(
                "E0206",
                f"the branches have unequal widths: {shown}",
                brick.span,
                scope=scope,
                help=("write `width = ...` in the filter to stitch them to one width",),
            )
        width = lasts[0]
    if width is None:
        return tuple(outs)
    return tuple(
        o if last == width else stitch(run, o, width, inner, f"{name}_stitch" if not brick.listed else f"stitch_{name}", stage.span)
        for o, last, name, (_, stage) in zip(outs, lasts, names, brick.branches)
    )
