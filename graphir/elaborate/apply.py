"""Applying brick values to tensors: the step that makes nodes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

from ..bricks.declare import REGISTRY, Declaration, make_weight
from ..bricks.inits import multiplied
from ..bricks.signature import Misfit, match, result
from ..ir.graph import Attrs, Value, Weight
from ..ir.scalar import ScalarError, show
from ..ir.scalar import evaluate as evaluate_dim
from ..ir.types import Type
from ..lang import syntax as s
from ..lang.diagnostic import GraphirError, Label, nearest
from ..lang.source import Span
from .blocks import instantiate
from .errors import misfit
from .run import MAX_CALLS, Run
from .scope import Call, Grafting, Scope, Tap, join
from .values import (
    BlockBrick,
    Brick,
    Edit,
    Filter,
    Fork,
    Frozen,
    Grafted,
    Initialised,
    Named,
    Pipeline,
    Placed,
    Poison,
    Poisoned,
    Primitive,
    Shared,
    Site,
    Start,
    Stitched,
    Transposed,
    own_name,
)


@dataclass(eq=False, slots=True)  # never changed; one is made for each application, and frozen ones take three times as long
class At:
    """Where a brick is applied: scope, wanted segment (None splices a pipe in), text, the arrow and the text before it.

    `weights` overrides where its weights live (shared bricks, hosts of grafts).
    """

    scope: Scope
    segment: str | None
    span: Span
    arrow: str = "->"
    before: Span | None = None
    weights: str | None = None

    def open(self, frame: str, name: str, calls: tuple[Call, ...] | None = None) -> Scope:
        """A new scope under this place."""
        return self.scope.inside(self.scope.segment(self.segment or name), frame, calls, self.weights)


def free_ports(brick: Primitive | BlockBrick) -> tuple[s.Port, ...]:
    """The ports that still need a tensor."""
    if isinstance(brick, Primitive):
        ports = brick.declaration.ports
        optional = brick.declaration.optional
        return tuple(p for p in ports if p.name not in brick.bound and p.name not in optional)
    return tuple(p for p in brick.block.header.ports if p.name not in brick.bound)


def apply(run: Run, brick: Any, inputs: tuple[Value, ...], at: At) -> Any:
    """The tensor, or tuple of tensors, that a brick gives for these inputs."""
    if any(isinstance(v, Poison) for v in inputs):
        raise Poisoned
    if at.scope.grafting:
        run.apply_in_graft(at.span, at.scope)
    if not at.scope.grafting or at.segment is None or isinstance(brick, Named | Placed | Frozen | Initialised | Grafted):
        return _apply(run, brick, inputs, at)
    path = join(at.scope.path, at.scope.next(at.segment))
    edit = _edit_for(path, at.scope)
    out = _apply(run, brick, inputs, at) if edit is None else _apply_edit(run, *edit, brick, inputs, at)
    for grafting in at.scope.grafting:
        if (below := grafting.below(path)) is not None:
            grafting.results[below] = out
    return out


def _apply(run: Run, brick: Any, inputs: tuple[Value, ...], at: At) -> Any:
    match brick:
        case Primitive():
            return _single(_primitive(run, brick, inputs, at))
        case BlockBrick():
            inputs = _fit_block(run, brick, inputs, at)
            scope = at.open(brick.name, brick.name, calls=run.call(at.scope, brick.name, at.span))
            return _remembered(run, brick, inputs, scope, at, lambda: instantiate(run, brick, inputs, scope, at))
        case Pipeline():
            return _pipeline(run, brick, inputs, at)
        case list():
            return _sequence(run, brick, inputs, at)
        case Named(brick=inner, name=name):
            return apply(run, inner, inputs, replace(at, segment=name, weights=name if isinstance(inner, Grafted) else at.weights))
        case Placed(brick=inner, backend=backend):
            return apply(
                run, inner, inputs, replace(at, scope=at.scope.within(backend=backend), segment=at.segment or own_name(inner) or "part")
            )
        case Frozen(brick=inner):
            return apply(
                run, inner, inputs, replace(at, scope=at.scope.within(frozen=True), segment=at.segment or own_name(inner) or "frozen")
            )
        case Initialised():
            return _initialised(run, brick, inputs, at)
        case Shared():
            scope = at.scope.within(shared=True)
            return apply(run, brick.brick, inputs, replace(at, scope=scope, segment=at.segment or own_name(brick), weights=brick.path))
        case Transposed():
            return _transposed(run, brick, inputs, at)
        case Fork():
            return _fork(run, brick, inputs, at)
        case Filter():
            _one_input("filter", run, inputs, at)
            scope = at.open("filter", "filter")
            return _remembered(run, brick, inputs, scope, at, lambda: run.apply_filter(run, brick, inputs[0], scope))
        case Stitched():
            return _stitched(run, brick, inputs, at)
        case Grafted():
            return _grafted(run, brick, inputs, at)
        case Site():
            scope = at.scope.within(grafting=())
            return apply(run, brick.brick, inputs, replace(at, scope=scope, segment=at.segment or "site", weights=brick.weight_path))
    raise AssertionError(type(brick))


def _single(values: tuple[Value, ...]) -> Value | tuple[Value, ...]:
    return values[0] if len(values) == 1 else values


def _remembered(run: Run, brick: Any, inputs: tuple[Value, ...], scope: Scope, at: At, make: Any) -> Any:
    """Replay the application if an equal one was made, else make it and record it."""
    entry = None if isinstance(brick, BlockBrick) else (at.arrow, at.before is None)  # a block's inputs are fitted already
    key = run.replayable(brick, inputs, scope, entry)
    if key is not None and key in run.memo:
        recording = run.recorded(key)
        if recording is None:
            raise Poisoned
        return _single(run.replay(recording, scope, inputs, at.span))
    nodes, aux, before = len(run.nodes), len(run.aux), run.total
    try:
        outputs = make()
    except (GraphirError, Poisoned):
        if key is not None:
            run.memo[key] = None
        raise
    if key is not None:
        run.record(key, scope, inputs, outputs if isinstance(outputs, tuple) else (outputs,), nodes, aux, before)
    return outputs


# composites


def _pipeline(run: Run, brick: Pipeline, inputs: tuple[Value, ...], at: At) -> Any:
    if at.segment is None:
        return _stages(run, brick, inputs, at.scope, at)
    scope = at.open("pipe", "pipe")
    return _remembered(run, brick, inputs, scope, at, lambda: _stages(run, brick, inputs, scope, at))


def _stages(run: Run, brick: Pipeline, inputs: tuple[Value, ...], scope: Scope, at: At) -> Any:
    value: Any = inputs
    before = at.before
    for index, stage in enumerate(brick.stages):
        arrow = at.arrow if index == 0 else stage.arrow
        value = apply(
            run, stage.value, value if isinstance(value, tuple) else (value,), At(scope, stage.segment, stage.span, arrow, before)
        )
        before = stage.span
    return value


def _sequence(run: Run, items: list[Any], inputs: tuple[Value, ...], at: At) -> Any:
    scope = at.open("[]", "layers")
    return _remembered(run, items, inputs, scope, at, lambda: _places(run, items, inputs, scope, at))


def _places(run: Run, items: list[Any], inputs: tuple[Value, ...], scope: Scope, at: At) -> Any:
    value: Any = inputs
    left = Counter(map(id, items))
    last = recording = kind = None
    calls: tuple[Call, ...] = ()
    for index, item in enumerate(items):
        if item is last and isinstance(item, BlockBrick) and not scope.grafting:
            given = value if isinstance(value, tuple) else (value,)
            if recording is None or kind is None or len(given) != 1 or given[0].type is not kind:
                recording = run.recorded(run.replayable(item, given, scope))
                kind = given[0].type if len(given) == 1 and not run.token(item)[1] else None
                calls = run.call(scope, item.name, at.span)
            if recording is not None:
                value = _single(run.replay(recording, scope.inside(scope.segment(str(index)), item.name, calls), given, at.span))
                left[id(item)] -= 1
                continue
        last, recording = item, None
        if not isinstance(item, Brick | list):
            raise run.fail("E0306", f"a list in a pipe holds bricks, but place {index} is {show(item)}", at.span, scope=at.scope)
        before = run.total
        inner = item.brick if isinstance(item, Named) else item
        value = apply(
            run,
            inner,
            value if isinstance(value, tuple) else (value,),
            At(scope, str(index), at.span, at.arrow if index == 0 else "->", at.span),
        )
        left[id(item)] -= 1
        if run.total + (run.total - before) * left[id(item)] > run.limits.nodes:
            run.charge((run.total - before) * left[id(item)], at.span, at.scope)
    return _single(value) if isinstance(value, tuple) else value


def _one_input(what: str, run: Run, inputs: tuple[Value, ...], at: At) -> None:
    if len(inputs) != 1:
        raise run.fail("E0305", f"`{what}` takes one tensor, not {len(inputs)}", at.span, scope=at.scope)


def _fork(run: Run, brick: Fork, inputs: tuple[Value, ...], at: At) -> Any:
    _one_input("fork", run, inputs, at)
    scope = at.open("fork", "fork")
    return _remembered(run, brick, inputs, scope, at, lambda: _branches(run, brick, inputs[0], scope, at))


def _branches(run: Run, brick: Fork, x: Value, scope: Scope, at: At) -> tuple[Value, ...]:
    names = tuple(name for name, _ in brick.branches)
    node = run.emit(
        "fork", (x,), Attrs(branches=names), (), join(scope.path, scope.segment("fork")), scope, at.span, (x.type,) * len(names)
    )
    return tuple(branch(run, stage, value, scope) for (_, stage), value in zip(brick.branches, node.outputs))


def branch(run: Run, stage: Any, value: Value, scope: Scope) -> Value:
    """Apply one branch of a fork or filter; it gives one tensor."""
    out = apply(run, stage.value, (value,), At(scope, stage.segment, stage.span, before=stage.span))
    if isinstance(out, tuple):
        raise run.fail("E0305", f"branch `{stage.segment}` gives {len(out)} tensors, not one", stage.span, scope=scope)
    return out


def stitch(run: Run, value: Value, width: int, scope: Scope, segment: str, span: Span, options: Any = None) -> Value:
    """A stitch node that takes the last axis to `width`; `open` lets the stitch pass choose its form."""
    args: dict[str, Any] = {"out": width, "open": not options, **(options or {})}
    return _primitive(run, Primitive(REGISTRY["stitch"], args, called=True), (value,), At(scope, segment, span))[0]


def _stitched(run: Run, brick: Stitched, inputs: tuple[Value, ...], at: At) -> Any:
    _one_input("stitch", run, inputs, at)
    x = inputs[0]
    back = x.type.shape[-1] if x.type.shape else None
    if not isinstance(back, int):
        raise run.fail("E0204", f"a stitch needs a width that is a number, not `{back}`", at.span, scope=at.scope)
    scope = at.open("stitched", "stitched")
    inner = stitch(run, x, brick.width, scope, "stitch_in", at.span, brick.options)
    out = apply(run, brick.brick.value, (inner,), At(scope, brick.brick.segment, brick.brick.span))
    return stitch(run, out, back, scope, "stitch_out", at.span, brick.options)


# how weights start


def _initialised(run: Run, brick: Initialised, inputs: tuple[Value, ...], at: At) -> Any:
    last = brick.start.which == "last"
    start = replace(brick.start, outer=at.scope.start)
    if start.depth > MAX_CALLS:
        raise run.fail("E0606", f"`with_init` is nested more than {MAX_CALLS} deep", at.span, scope=at.scope)
    before = len(run.nodes)
    scope = at.scope.within(start=start)
    out = apply(run, brick.brick, inputs, replace(at, scope=scope, segment=at.segment or own_name(brick.brick) or "part"))
    if last:
        _start_last(run, before, start)
    return out


def _start_last(run: Run, before: int, start: Start) -> None:
    """Let the matrices of the last node that has any, made since `before`, start as wanted."""
    for index in range(len(run.nodes) - 1, before - 1, -1):
        node = run.nodes[index]
        names = [n for _, n in node.weights if len(run.weights[n].shape) > 1 and not run.weights[n].buffer]
        segment = node.where.path.rsplit(".", 1)[-1]
        if names and _is_named(segment, start):
            run.settle()
            for n in names:
                run.weights[n] = _chained(run, run.weights[n], segment, start, late=True)
            return


def _started(run: Run, weight: Weight, segment: str, start: Start) -> Weight:
    """A weight inside `with_init` whose brick says nothing of its own."""
    if weight.buffer or weight.init.startswith("host("):
        return weight
    return _chained(run, weight, segment, start, late=False)


def _chained(run: Run, weight: Weight, segment: str, start: Start, late: bool) -> Weight:
    """What a weight starts as by `start` and, unless an inner one has said it, by those around it.

    The innermost `init` that matches counts, with its own factor; factors without an `init` multiply it. `late`: `start` is that
    of a node found last, whose weight has had those around it: if `start` has an `init`, they are applied anew.
    """
    said = id(weight) in run.settled
    if late and (said or start.spec is None):
        return weight if start.spec is not None else _settle(run, replace(weight, init=multiplied(weight.init, start.factor)), said)
    spec, factor = (start.spec, start.factor) if late else (None, 1.0)
    link = start.outer if late else start
    while link is not None:
        fits = link.which == "all" or (link.which == "matrices" and len(weight.shape) > 1)
        if fits and _is_named(segment, link) and (spec is None or link.spec is None):
            spec, factor = spec or link.spec, factor * link.factor
            # an inner `last` may still say otherwise of what only an outer one has said
            said = said or (link.spec is not None and not _inside_last(start, link))
        link = link.outer
    if spec is None and factor == 1.0:
        return weight
    return _settle(run, replace(weight, init=multiplied(weight.init if spec is None else spec, factor)), late or said)


def _inside_last(start: Start, link: Start) -> bool:
    """Whether some `with_init(weights = "last")` stands between a weight and the `with_init` of `link`."""
    while start is not link and start.outer is not None:
        if start.which == "last":
            return True
        start = start.outer
    return False


def _settle(run: Run, weight: Weight, said: bool) -> Weight:
    """Remember that an inner `with_init` has said what the weight starts as; copies in replays are the same object."""
    if said:
        run.settled[id(weight)] = weight
    return weight


def _is_named(segment: str, start: Start) -> bool:
    return start.names is None or segment in start.names


def _transposed(run: Run, brick: Transposed, inputs: tuple[Value, ...], at: At) -> Any:
    shared, primitive = brick.shared, brick.primitive
    args = _attributes(run, primitive, at)
    embedding = primitive.name == "embedding"
    name = f"{shared.path}.weight"
    if name not in run.weights and embedding:
        rule = primitive.declaration.weights[0]
        weight = make_weight(rule, (args["size"], args["out"]), args, primitive.args.get("init"), at.scope.frozen)
        run.add_weight(name, weight, shared.span, at.scope.within(shared=True))
    if name not in run.weights:
        raise run.fail("E0211", f"`{own_name(shared)}.T` is used before `{own_name(shared)}` has weights", at.span, scope=at.scope)
    if embedding:
        op, config = "linear", {"out": args["size"], "bias": False}
    else:
        op, config = "linear_transposed", {"out": run.weights[name].shape[1]}
    at = replace(at, scope=at.scope.within(shared=True), segment=at.segment or own_name(shared), weights=shared.path)
    return _single(_primitive(run, Primitive(REGISTRY[op], config, called=True), inputs, at))


# grafts


def _edit_for(path: str, scope: Scope) -> tuple[Edit, Grafting] | None:
    for grafting in scope.grafting:
        below = grafting.below(path)
        if below is None:
            continue
        grafting.seen.append(below)
        parts = below.split(".")
        for index, edit in enumerate(grafting.edits):
            if len(edit.matchers) == len(parts) and all(_matches(m, p) for m, p in zip(edit.matchers, parts)):
                grafting.hit.add(index)
                return edit, grafting
    return None


def _matches(matcher: str | frozenset[int] | None, segment: str) -> bool:
    if isinstance(matcher, str):
        return matcher == segment
    return segment.isdigit() and (matcher is None or int(segment) in matcher)


def _apply_edit(run: Run, edit: Edit, grafting: Grafting, brick: Any, inputs: tuple[Value, ...], at: At) -> Any:
    site = Site(brick, at.weights if at.weights is not None else join(at.scope.weights, at.segment or ""))
    value = run.evaluate(run, edit.value, edit.env.child({"site": site, "tap": Tap(grafting)}))
    if not isinstance(value, Brick | list):
        raise run.fail("E0306", "a graft puts a brick at its place", edit.value.span, scope=at.scope)
    scope = at.scope.within(grafting=(), weights=at.scope.path, shared=False)
    return apply(run, value, inputs, replace(at, scope=scope, weights=None))


def _grafted(run: Run, brick: Grafted, inputs: tuple[Value, ...], at: At) -> Any:
    host, weights = brick.host, at.weights if at.weights is not None else ""
    if isinstance(host, Shared):
        host, weights = host.brick, host.path
    wanted = at.segment or own_name(brick) or "host"
    root = join(at.scope.path, at.scope.segment(wanted))
    at.scope.taken.discard(root.rsplit(".", 1)[-1])
    grafting = Grafting(root, brick.edits)
    scope = at.scope.within(grafting=(*at.scope.grafting, grafting))
    out = apply(run, host, inputs, replace(at, scope=scope, segment=wanted, weights=weights))
    for index, edit in enumerate(brick.edits):
        if index not in grafting.hit:
            text = edit.span.text
            near = nearest(text.replace("[", ".").replace("]", ""), dict.fromkeys(grafting.seen))
            raise run.fail(
                "E0701",
                f"`{text}` matches no place in the host",
                edit.span,
                scope=at.scope,
                help=near or ("`graphir show` the host to see its places",),
            )
    return out


# primitives


def _attributes(run: Run, brick: Primitive, at: At) -> dict[str, Any]:
    """Config of a primitive: what was given, checked, and defaults that are plain literals."""
    declaration = brick.declaration
    attrs: dict[str, Any] = {}
    sizes: list[tuple[str, Any]] = []
    for name, value in brick.args.items():
        if name in declaration.formals:
            default = declaration.formals[name].default
            real = isinstance(default, s.Literal) and isinstance(default.value, float) and isinstance(value, int)
            attrs[name] = float(value) if real and not isinstance(value, bool) else value
        elif name not in ("width", "init", "bias_init"):
            sizes.append((name, value))
    for name in attrs:
        try:
            declaration.check_config(name, attrs[name])
        except Misfit as e:
            raise run.fail(e.code, str(e), at.span, scope=at.scope, help=e.help) from None
    if sizes:
        attrs[declaration.extra] = tuple(sizes)
    for name, formal in declaration.formals.items():
        if name in attrs:
            continue
        if formal.default is None:
            raise run.fail(
                "E0303",
                f"`{declaration.name}` needs `{name}`",
                at.span,
                scope=at.scope,
                help=(f"its header is `{declaration.header_text}`",),
            )
        if isinstance(formal.default, s.Literal):
            attrs[name] = formal.default.value
    return attrs


def frozen(value: Any) -> Any:
    """A config value as an attribute: lists become tuples."""
    return tuple(frozen(v) for v in value) if isinstance(value, list | tuple) else value


def _ordered(
    declaration: Declaration, brick: Primitive, inputs: tuple[Value, ...], run: Run, at: At
) -> tuple[tuple[Value, ...], tuple[str, ...]]:
    """Inputs in port order, bound ones in their places; and the optional ports that are there."""
    if declaration.variadic:
        ordered: list[Value] = []
        rest = list(inputs)
        for port in declaration.ports:
            if port.name in brick.bound:
                ordered.append(brick.bound[port.name])
            else:
                ordered += rest
                rest = []
        if "with" in brick.bound:
            ordered.append(brick.bound["with"])
        return tuple(ordered + rest), ()
    needed = [p for p in declaration.ports if p.name not in brick.bound and p.name not in declaration.optional]
    open_optional = [p for p in declaration.ports if p.name not in brick.bound and p.name in declaration.optional]
    if not len(needed) <= len(inputs) <= len(needed) + len(open_optional):
        wanted = ", ".join(f"`{p.name}`" for p in needed)
        message = f"`{declaration.name}` takes {len(needed)} tensor{'s' * (len(needed) != 1)}{f' ({wanted})' if wanted else ''}, not {len(inputs)}"
        raise run.fail("E0305", message, at.span, scope=at.scope, help=_arity_help(len(needed), len(inputs)))
    filled = {p.name: v for p, v in zip([*needed, *open_optional], inputs)} | dict(brick.bound)
    order = [p for p in declaration.ports if p.name in filled]
    return tuple(filled[p.name] for p in order), tuple(p.name for p in order if p.name in declaration.optional)


def _arity_help(needed: int, given: int) -> tuple[str, ...]:
    if needed > given:
        return ("feed several tensors as a tuple: `(x, y) -> f`; or bind a port by name: `f(memory = y)`",)
    return ("several branches meet in a join: `-> add`, `-> concat`",) if given > 1 else ()


def _primitive(run: Run, brick: Primitive, inputs: tuple[Value, ...], at: At) -> tuple[Value, ...]:
    declaration = brick.declaration
    if declaration.kind == "join":
        inputs = _stitch_branches(run, brick, inputs, at)
    attrs = _attributes(run, brick, at)
    ordered, given = _ordered(declaration, brick, inputs, run, at)
    if given:
        attrs["given"] = given
    if (at.arrow == "~>" or run.stitch_all) and not declaration.variadic:
        ports = declaration.given_ports(attrs)
        ordered = fit_widths(run, ports, ordered, {k: v for k, v in attrs.items() if k != "given"}, at.scope, at)
    types = tuple([v.type for v in ordered])
    key = (declaration.name, Attrs({k: frozen(v) for k, v in attrs.items()}), types)
    known = run.inferred.get(key)
    if known is None:
        known = run.inferred[key] = _infer(run, declaration, attrs, types, at)
    final, names, results, shapes = known
    scope = at.scope
    segment = scope.segment(at.segment or declaration.name)
    prefix = at.weights if at.weights is not None else join(scope.weights, segment)
    weights = []
    for rule, shape in shapes:
        name = join(prefix, rule.path or rule.role)
        own = rule is shapes[0][0] or rule.init == "$init"
        init = brick.args.get("init") if own else brick.args.get("bias_init") if rule.role == "bias" else None
        weight = make_weight(rule, shape, names, init, scope.frozen)
        if scope.start is not None and init is None:
            weight = _started(run, weight, at.segment or declaration.name, scope.start)
        run.add_weight(name, weight, at.span, scope)
        weights.append((rule.role, name))
    node = run.emit(declaration.name, ordered, final, tuple(weights), join(scope.path, segment), scope, at.span, results)
    return node.outputs


def _infer(run: Run, declaration: Declaration, attrs: dict[str, Any], types: tuple[Type, ...], at: At) -> Any:
    """Final attributes, names, result types and weight shapes of a call; a Misfit becomes a diagnostic."""
    try:
        names = declaration.names(types, Attrs({k: frozen(v) for k, v in attrs.items()}), run.facts)
        if declaration.shape is not None:
            results = tuple(declaration.shape(types, names, run.facts))
        else:
            results = tuple(result(p.type, names, run.facts) for p in declaration.header.results)
        shapes = declaration.weight_shapes(names, run.facts)
    except Misfit as e:
        raise misfit(run, e, declaration.given_ports(attrs), types, attrs, at) from None
    kept = {name: frozen(names[name]) for name in declaration.formals if name != "init"}
    for extra in ("given", getattr(declaration, "extra", "")):
        if extra and extra in attrs:
            kept[extra] = frozen(attrs[extra])
    return Attrs(kept), names, results, shapes


# widths


JOINS_OF_EQUALS = ("add", "mean", "mul", "max", "gate", "blend", "attend", "multi_blend")


def _stitch_branches(run: Run, brick: Primitive, inputs: tuple[Value, ...], at: At) -> tuple[Value, ...]:
    """Bring the branches of a join to its `width`; without one they must agree."""
    width = brick.args.get("width")
    lasts = [v.type.shape[-1] if v.type.shape else 1 for v in inputs]
    if width is None:
        unequal = (
            brick.name in JOINS_OF_EQUALS
            and all(isinstance(w, int) for w in lasts)
            and len(set(lasts) - ({1} if at.before is None else set())) > 1
        )
        if not unequal:
            return inputs
        if not (run.stitch_all or at.arrow == "~>"):
            if at.before is None:
                return inputs
            raise run.fail(
                "E0206",
                f"`{brick.name}` joins branches of unequal width: {', '.join(map(str, lasts))}",
                at.span,
                scope=at.scope,
                labels=(Label(at.before, "the branches"),) if at.before != at.span else (),
                help=(f"write `{brick.name}(width = {lasts[0]})` to stitch them to one width",),
            )
        width = lasts[0]
    if not isinstance(width, int) or isinstance(width, bool) or width < 1:
        raise run.fail("E0404", f"`width` is a positive whole number, not {show(width)}", at.span, scope=at.scope)
    return tuple(v if last == width else stitch(run, v, width, at.scope, "stitch", at.span) for v, last in zip(inputs, lasts))


def fit_widths(
    run: Run, ports: tuple[s.Port, ...], inputs: tuple[Value, ...], names: dict[str, Any], scope: Scope, at: At
) -> tuple[Value, ...]:
    """Insert a stitch in front of each input whose last axis alone keeps it from its port."""
    fitted: list[Value] = []
    for port, value in zip(ports, inputs):
        trial = dict(names)
        try:
            match([port], [value.type], trial, run.facts)
        except Misfit:
            width = _fixed_width(port, names)
            if width is not None and value.type.shape and value.type.shape[-1] != width:
                value = stitch(run, value, width, at.scope, "stitch", at.span)
                trial = dict(names)
                try:
                    match([port], [value.type], trial, run.facts)
                except Misfit:
                    pass  # not the width alone: the caller's own match says what is wrong
        names.update(trial)
        fitted.append(value)
    return (*fitted, *inputs[len(fitted) :])


def _fixed_width(port: s.Port, names: dict[str, Any]) -> int | None:
    last = port.type.dims[-1] if port.type.dims else None
    if last is None or isinstance(last, s.Rest):
        return None
    try:
        width = evaluate_dim(last, names)
    except ScalarError:
        return None
    return width if isinstance(width, int) and not isinstance(width, bool) else None


def _fit_block(run: Run, brick: BlockBrick, inputs: tuple[Value, ...], at: At) -> tuple[Value, ...]:
    if at.arrow != "~>" and not run.stitch_all:
        return inputs
    ports = tuple(p for p in brick.block.header.ports if p.name not in brick.bound)
    return fit_widths(run, ports, inputs, dict(brick.args), at.scope, at)
