"""What all backends share: how a node calls its body, what sizes inputs give to runtime names, and the table of targets.

Nothing here imports torch at module level, so the command line may list targets and check calls without it.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from graphir.bricks.declare import REGISTRY, Declaration, Registry
from graphir.ir.dims import Dim, Poly, evaluate, free_names
from graphir.ir.graph import Graph, Node, Precondition, Value
from graphir.ir.scalar import runtime_names
from graphir.ir.types import Type
from graphir.lang.diagnostic import Diagnostic, EnvironmentProblem, GraphirError, nearest

TARGETS = ("cpu", "cuda", "interpreter")


def declaration_of(node: Node, registry: Registry = REGISTRY) -> Declaration:
    """The declaration of a node's op. Raises GraphirError E0302 where no such brick is registered."""
    found = registry.get(node.op)
    if found is None:
        known = [d.name for d in registry]
        raise GraphirError(Diagnostic("E0302", f"no brick `{node.op}` is registered", node.where.span, help=nearest(node.op, known)))
    return found


def gives_tuple(declaration: Declaration, node: Node) -> bool:
    """Whether the body's result is to be indexed; one whose number of results varies says so in its annotation, even for one."""
    return len(node.outputs) != 1 or str(declaration.body.__annotations__.get("return", "")).startswith("tuple")


def telling_attrs(declaration: Declaration, attrs: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes that the body takes, without those that say what its own defaults say; and which optional ports are given."""
    defaults = inspect.signature(declaration.body).parameters
    kept = {k: v for k, v in declaration.static_arguments(attrs).items() if repr(v) != repr(defaults[k].default)}
    return {**kept, "given": attrs["given"]} if "given" in attrs else kept


def split_attrs(declaration: Declaration, attrs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `telling_attrs` gives: the attributes that are known now, and those that wait for runtime sizes."""
    given = telling_attrs(declaration, attrs)
    waiting = {k: v for k, v in given.items() if runtime_names(v)}
    return {k: v for k, v in given.items() if k not in waiting}, waiting


def gives(dim: Dim) -> tuple[str, int, int] | None:
    """`(name, c, k)` where an axis of length c * name + k tells the size of a runtime name, else None."""
    if not isinstance(dim, Poly):
        return None
    constant = next((c for monomial, c in dim.terms if monomial == ()), 0)
    rest = [(monomial, c) for monomial, c in dim.terms if monomial]
    if len(rest) != 1 or len(rest[0][0]) != 1 or not isinstance(rest[0][0][0], str):
        return None
    return rest[0][0][0], rest[0][1], constant


def axis_that_gives(type: Type, name: str) -> tuple[int, int, int] | None:
    """`(axis, c, k)`: the axis of a value of this type that has length c * name + k; the plainest where there are several."""
    found = [(c, k, axis) for axis, dim in enumerate(type.shape) if (known := gives(dim)) and known[0] == name for c, k in [known[1:]]]
    if not found:
        return None
    c, k, axis = min(found, key=lambda f: (f[0] != 1, f[1] != 0, f[2]))
    return axis, c, k


def providers(graph: Graph) -> dict[str, Value]:
    """For each runtime name that some value's shape tells, the first such value: inputs, then results in node order."""
    found: dict[str, Value] = {}
    for value in _values(graph):
        for dim in value.type.shape:
            known = gives(dim)
            if known and known[0] not in found:
                found[known[0]] = value
    return found


def untold(node: Node, name: str) -> GraphirError:
    """What to say where a node's attribute waits for a size that no tensor tells."""
    return GraphirError(Diagnostic("E0804", f"no tensor's shape tells the size of `{name}`, which `{node.op}` needs", node.where.span))


def _values(graph: Graph) -> Iterable[Value]:
    for _, value in graph.inputs:
        yield value
    for node in graph.nodes:
        yield from node.outputs


def element_kind(tensor: Any) -> str:
    """`float`, `int` or `bool`, as types say it."""
    if tensor.dtype.is_floating_point:
        return "float"
    return "bool" if str(tensor.dtype) == "torch.bool" else "int"


def bind_inputs(graph: Graph, inputs: Mapping[str, Any]) -> dict[str, int]:
    """Check tensors against the model's inputs and give each runtime name its size.

    Raises GraphirError with every finding: E0803 for missing, unknown, wrongly typed or wrongly ranked inputs, E0804 for sizes
    that contradict each other, the types, or the model's preconditions.
    """
    problems = _wrong_inputs(graph, inputs)
    if problems:
        raise GraphirError(problems)
    sizes: dict[str, int] = {}
    for name, value in graph.inputs:
        _bind(name, value.type, tuple(inputs[name].shape), sizes, problems)
    for name, value in graph.inputs:
        problems += _misfits(name, value.type, tuple(inputs[name].shape), sizes)
    problems += [found for r in graph.requires if (found := _unmet(r, sizes))]
    if problems:
        raise GraphirError(problems)
    return sizes


def _wrong_inputs(graph: Graph, inputs: Mapping[str, Any]) -> list[Diagnostic]:
    known = dict(graph.inputs)
    problems = [Diagnostic("E0803", f"input `{n}: {v.type}` is missing") for n, v in graph.inputs if n not in inputs]
    problems += [Diagnostic("E0803", f"`{graph.name}` has no input `{n}`", help=nearest(n, known)) for n in inputs if n not in known]
    for name, value in graph.inputs:
        tensor = inputs.get(name)
        if tensor is None:
            continue
        if not hasattr(tensor, "dtype") or not hasattr(tensor, "shape"):
            problems.append(Diagnostic("E0803", f"input `{name}` takes a tensor, not a {type(tensor).__name__}"))
        elif element_kind(tensor) != value.type.dtype:
            given = str(tensor.dtype).removeprefix("torch.")
            problems.append(Diagnostic("E0803", f"input `{name}` takes {value.type.dtype} elements, not {given}"))
        elif len(tensor.shape) != len(value.type.shape):
            problems.append(Diagnostic("E0803", f"input `{name}` takes {value.type}, not {list(tensor.shape)}"))
    return problems


def _bind(name: str, type: Type, shape: tuple[int, ...], sizes: dict[str, int], problems: list[Diagnostic]) -> None:
    for axis, (dim, size) in enumerate(zip(type.shape, shape)):
        known = gives(dim)
        if known is None or known[0] in sizes:
            continue
        runtime, c, k = known
        if (size - k) % c or (size - k) // c < 0:
            problems.append(Diagnostic("E0804", f"axis {axis} of `{name}` has length {size}, which is no `{dim}` of a whole `{runtime}`"))
        else:
            sizes[runtime] = (size - k) // c


def _misfits(name: str, type: Type, shape: tuple[int, ...], sizes: Mapping[str, int]) -> list[Diagnostic]:
    problems = []
    for axis, (dim, size) in enumerate(zip(type.shape, shape)):
        if not free_names(dim) <= sizes.keys():
            continue
        wanted = evaluate(dim, sizes)
        if wanted != size:
            known = ", ".join(f"{n} = {sizes[n]}" for n in sorted(free_names(dim)))
            reason = f" (`{dim}`, with {known})" if known else ""
            problems.append(Diagnostic("E0804", f"axis {axis} of `{name}` has length {size}, not {wanted}{reason}"))
    return problems


def _unmet(r: Precondition, sizes: Mapping[str, int]) -> Diagnostic | None:
    names = free_names(r.left) | free_names(r.right)
    if not names <= sizes.keys():
        return None
    left, right = evaluate(r.left, sizes), evaluate(r.right, sizes)
    if r.divisor:
        left %= r.divisor
    if holds(left, r.op, right):
        return None
    known = ", ".join(f"{n} = {sizes[n]}" for n in sorted(names))
    notes = (r.message,) if r.message else ()
    return Diagnostic("E0804", f"the model requires `{r}`, but {known}", notes=notes)


def holds(left: int, op: str, right: int) -> bool:
    """left op right, for the comparisons that preconditions know."""
    return {
        "==": left == right,
        "!=": left != right,
        "<": left < right,
        "<=": left <= right,
        ">": left > right,
        ">=": left >= right,
    }[op]


def demand(left: int, op: str, right: int, text: str) -> None:
    """Raise GraphirError E0804 unless left op right; `text` is the precondition as written. Lowered modules call this."""
    if not holds(left, op, right):
        raise GraphirError(Diagnostic("E0804", f"the model requires `{text}`, but its left side is {left}"))


def need_device(target: str) -> str:
    """The torch device of a target. Raises EnvironmentProblem where this machine has none; nothing falls back to the CPU."""
    if target != "cuda":
        return "cpu"
    import torch

    if not torch.cuda.is_available():
        raise EnvironmentProblem("no CUDA device is available", "use --target cpu, or run where torch.cuda.is_available()")
    return "cuda"


def compile_module(
    graph: Graph,
    target: str = "cpu",
    mode: str = "train",
    weights: Mapping[str, Any] | None = None,
    seed: int = 0,
    dtype: Any = None,
    inductor: bool = False,
    dispatch: str = "auto",
    strict: bool = False,
) -> Any:
    """A module that runs the graph on a target: an fx GraphModule (`cpu`, `cuda`) or an `InterpretedNetwork`.

    `mode`: `train`, `infer` (dropout off, no gradients of weights), or `decode` (a `Decoder`; fx only). `weights` are tensors by name, else made from `seed`.
    `inductor` compiles each distinct block with torch.compile. `dispatch` is how filters run their branches (`dispatch.py`): `auto`,
    with `inductor` that is `static`, since other forms break its graphs; the interpreter runs them dense.
    What the program puts on another backend runs there (`settle.py`), but for the interpreter, which runs all of a graph; what cannot
    run there goes to fx with a warning, or is refused with `strict`.
    Raises GraphirError, and EnvironmentProblem where there is no such device or backend.
    """
    if target not in TARGETS:
        help = nearest(target, TARGETS) or (f"targets: {', '.join(TARGETS)}",)
        raise GraphirError(Diagnostic("E0806", f"there is no target `{target}`", help=help))
    if mode not in ("train", "infer") and (mode != "decode" or target == "interpreter"):
        help = ("`Interpreter.run_step` decodes step by step",) if mode == "decode" else ("modes: train, infer",)
        raise GraphirError(Diagnostic("E0806", f"target `{target}` has no mode `{mode}`", help=help))
    device = need_device(target)
    if target == "interpreter":
        from .interpreter import InterpretedNetwork
        from .weights import initialise

        return InterpretedNetwork(graph, initialise(graph, seed) if weights is None else weights, dtype).train(mode == "train")
    if mode == "decode":
        from .decode import lower_decoder

        network = lower_decoder(
            graph, weights, seed=seed, dtype=dtype, device=device, dispatch="static" if inductor and dispatch == "auto" else dispatch
        )
        return network.compiled() if inductor else network
    from .dispatch import dispatch as sparse
    from .fx import lower

    graph = sparse(graph, "static" if inductor and dispatch == "auto" else dispatch)
    module = lower(graph, weights, seed=seed, dtype=dtype, device=device, mode=mode, strict=strict)
    if not inductor:
        return module
    from .inductor import compile_blocks

    return compile_blocks(module)
