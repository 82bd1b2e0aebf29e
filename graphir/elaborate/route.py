"""Filters: the router's scores, the choice of branches, the branches, and their weighted sum, as separate nodes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..bricks.declare import REGISTRY
from ..ir.graph import Attrs, Value
from ..lang.source import Span
from .apply import At, apply, branch, stitch
from .run import Run
from .scope import Scope, join
from .values import Filter, Named, Pipeline, Primitive, Stage, describe

NORMALISERS = ("softmax", "sparsemax", "entmax", "gumbel", "hardmax", "sigmoid", "softmax_masked", "grid_softmax", "hierarchical_softmax", "mixture_softmax")


def apply_filter(run: Run, brick: Filter, x: Value, scope: Scope) -> Value:
    """y = sum over branches of weight * branch(x), the weights as wide as there are branches."""
    names = tuple(name for name, _ in brick.branches)
    options = dict(brick.options)
    keep = _keep(run, brick, len(names), scope)
    scores, weights = _weights(run, brick, x, keep, len(names), scope)
    run.aux.append((join(scope.path, "weights"), weights))
    _losses(run, brick, scores, weights, scope)
    outs = _branches(run, brick, x, names, options.get("width"), scope)
    attrs = {"branches": names}
    return _node(run, "filter", attrs, (weights, *outs), scope, brick.span)


def _node(run: Run, op: str, args: dict[str, Any], inputs: tuple[Value, ...], scope: Scope, span: Span) -> Value:
    return apply(run, Primitive(REGISTRY[op], args, called=True), inputs, At(scope, op, span))


def _keep(run: Run, brick: Filter, branches: int, scope: Scope) -> int | None:
    keep = brick.options.get("keep")
    if keep is None:
        return None
    if not isinstance(keep, int) or isinstance(keep, bool) or not 1 <= keep <= branches:
        raise run.fail("E0410", f"`keep` is {describe(keep) if not isinstance(keep, int) else keep}, but the filter has {branches} branches", brick.span, scope=scope,
                       help=(f"keep between 1 and {branches}",))
    return keep


def _weights(run: Run, brick: Filter, x: Value, keep: int | None, branches: int, scope: Scope) -> tuple[Value, Value]:
    """The normalised scores of all branches, and the weights after the choice."""
    router, last = brick.router, None
    if keep is not None and brick.options.get("keep_first"):
        router, last = _split_router(run, router, scope)
    scores = apply(run, router.value, (x,), At(scope, router.segment, router.span, before=router.span))
    width = scores.type.shape[-1] if isinstance(scores, Value) and scores.type.shape else None
    if not isinstance(scores, Value) or scores.type.shape[:-1] != x.type.shape[:-1] or width != branches:
        got = str(scores.type) if isinstance(scores, Value) else describe(scores)
        raise run.fail("E0410", f"the router gives {got}: one score for each of {branches} branches is needed", router.span, scope=scope,
                       help=(f"end it in a brick that gives {branches} scores, such as `linear({branches})`, and a normaliser",))
    if last is not None:
        kept = _node(run, "keep_logits", {"k": keep}, (scores,), scope, brick.span)
        weights = apply(run, last.value, (kept,), At(scope, last.segment, last.span))
        return weights, weights
    if keep is None:
        return scores, scores
    args = {"k": keep, "renormalise": brick.options.get("renormalise", True)}
    return scores, _node(run, "keep_top", args, (scores,), scope, brick.span)


def _split_router(run: Run, router: Stage, scope: Scope) -> tuple[Stage, Stage]:
    """The router without its normaliser, and the normaliser: with `keep_first` the choice stands between them."""
    value = router.value.brick if isinstance(router.value, Named) else router.value
    last = value.stages[-1] if isinstance(value, Pipeline) and len(value.stages) > 1 else None
    if last is None or not isinstance(last.value, Primitive) or last.value.name not in NORMALISERS:
        raise run.fail("E0410", "`keep_first` needs a router that ends in a normaliser", router.span, scope=scope, help=("write `linear(n) -> softmax`",))
    assert isinstance(value, Pipeline)
    return replace(router, value=Pipeline(value.stages[:-1])), last


LOSSES = (("balance", "switch_balance"), ("importance", "importance"))


def _losses(run: Run, brick: Filter, scores: Value, weights: Value, scope: Scope) -> None:
    """Auxiliary losses, each times its coefficient, as named outputs `<path>.<name>`."""
    for option, op in LOSSES:
        coefficient = brick.options.get(option)
        if coefficient:
            inputs = (scores, weights) if op == "switch_balance" else (weights,)
            loss = _node(run, op, {}, inputs, scope, brick.span)
            run.aux.append((join(scope.path, option), _node(run, "scale", {"factor": float(coefficient)}, (loss,), scope, brick.span)))


def _branches(run: Run, brick: Filter, x: Value, names: tuple[str, ...], width: Any, scope: Scope) -> tuple[Value, ...]:
    if width is not None and (not isinstance(width, int) or isinstance(width, bool) or width < 1):
        raise run.fail("E0404", f"`width` is a positive whole number, not {describe(width)}", brick.span, scope=scope)
    fork = run.emit("fork", (x,), Attrs(branches=names), (), join(scope.path, scope.segment("fork")), scope, brick.span, (x.type,) * len(names))
    inner = scope.inside(scope.segment("branches"), "[]") if brick.listed else scope
    outs = [branch(run, stage, value, inner) for (_, stage), value in zip(brick.branches, fork.outputs)]
    lasts = [o.type.shape[-1] if o.type.shape else None for o in outs]
    if width is None and len(set(lasts)) > 1:
        if not run.stitch_all:
            raise run.fail("E0206", f"the branches have unequal widths: {', '.join(f'{n} {w}' for n, w in zip(names, lasts))}", brick.span, scope=scope,
                           help=("write `width = ...` in the filter to stitch them to one width",))
        width = lasts[0]
    if width is None:
        return tuple(outs)
    return tuple(
        o if last == width else stitch(run, o, width, inner, f"{name}_stitch" if not brick.listed else f"stitch_{name}", stage.span)
        for o, last, name, (_, stage) in zip(outs, lasts, names, brick.branches)
    )
