"""The public functions: load, check, compile, interpret, open. The one place that ties language, passes and backends together."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .bricks import catalogue  # noqa: F401  (fills the registry)
from .elaborate import model as elaboration
from .elaborate.project import Module, Project
from .elaborate.route import LOSSES
from .ir.graph import Graph
from .lang.diagnostic import Diagnostic, GraphirError, nearest
from .lang.limits import DEFAULT, Limits
from .lang.source import Source

if TYPE_CHECKING:
    import torch

MODES = ("train", "infer", "decode")


def module(path_or_text: str | os.PathLike[str], limits: Limits = DEFAULT, root: str | os.PathLike[str] | None = None) -> Module:
    """Parse a program: a path that ends in `.arch` (or `-`), or the program itself as text."""
    if _is_path(path_or_text):
        folder = Path(root) if root is not None else Path(path_or_text).resolve().parent if str(path_or_text) != "-" else None
        return Project(folder, limits).load_file(path_or_text)
    assert isinstance(path_or_text, str)
    if root is None:
        return Project(None, limits).load_text(Source("<text>", path_or_text))
    project = Project(Path(root), limits)
    return project._module(Source("<text>", path_or_text), Path(root).resolve() / "<text>", ())


def _is_path(value: str | os.PathLike[str]) -> bool:
    if isinstance(value, os.PathLike):
        return True
    return value == "-" or ("\n" not in value and "{" not in value)


def load(
    path_or_text: str | os.PathLike[str],
    model: str | None = None,
    *,
    limits: Limits = DEFAULT,
    root: str | os.PathLike[str] | None = None,
    stitch: bool = False,
    **params: Any,
) -> Graph:
    """The typed graph of a model.

    `path_or_text`: an `.arch` file, or a program as text (which imports nothing unless `root` names a folder).
    `model`: which model of the file; the last one if not given. `params` set the model's parameters and the file's `param`s.
    `stitch` treats every `->` as `~>`. Raises GraphirError with all that is wrong. Never imports torch.
    """
    return elaboration.elaborate(module(path_or_text, limits, root), model, params, limits=limits, stitch=stitch)


def check(
    path_or_text: str | os.PathLike[str], *, limits: Limits = DEFAULT, root: str | os.PathLike[str] | None = None, **params: Any
) -> list[Diagnostic]:
    """All that is wrong with a program: empty when nothing is. Every model is instantiated with its defaults."""
    try:
        return elaboration.check(module(path_or_text, limits, root), limits=limits, params=params)
    except GraphirError as e:
        return list(e.diagnostics)


def optimise(
    graph: Graph,
    passes: str | None = None,
    mode: str = "train",
    watchers: Sequence[Any] = (),
    recipes: list[Any] | None = None,
    explain: Sequence[str] = (),
) -> Graph:
    """The graph after a pipeline of passes: the default one of the mode, or the text given (`"stitch,share"`).

    `recipes` collects how new weights follow from old ones, where passes change weights; `explain` names rules to report refusals of.
    """
    from . import passes as p

    if mode not in MODES:
        raise GraphirError(
            Diagnostic("E0902", f"there is no mode `{mode}`", help=nearest(mode, MODES) or (f"there are {', '.join(MODES)}",))
        )
    default = p.INFER if mode == "infer" else p.DEFAULT
    return p.run_pipeline(graph, default if passes is None else passes, watchers, recipes=recipes, explain=explain)


def compile(
    graph: Graph | str | os.PathLike[str],
    target: str = "cpu",
    mode: str = "train",
    *,
    passes: str | None = None,
    weights: Mapping[str, torch.Tensor] | str | os.PathLike[str] | None = None,
    seed: int = 0,
    inductor: bool = False,
    dispatch: str = "auto",
    strict: bool = False,
    **params: Any,
) -> torch.nn.Module:
    """A `torch.nn.Module` that runs the graph: an fx GraphModule whose `forward` takes the model's inputs by name and in order.

    `target`: `cpu` or `cuda` (lowered to `torch.fx`; `inductor` compiles each distinct block with torch.compile), or `interpreter`.
    `mode`: `train`, `infer` (evaluation passes, dropout off) or `decode`: `(inputs, state) -> (outputs, state)`, see `backends/decode.py`.
    `passes`: a pipeline instead of the mode's own.
    `weights`: tensors by path, or a safetensors file; without them weights are initialised from `seed`.
    `dispatch`: how filters run branches on the tokens that chose them: `auto` (where that is faster), `dense`, `sorted` or `static`;
    under `torch.func.vmap`, which has no lengths that depend on data, take `dense` or `static`.
    Parts that the program puts `on` a backend run there; a brick that its backend cannot run goes to fx with a warning, or with
    `strict` is an error.
    Raises GraphirError for what the user got wrong and EnvironmentProblem for what the machine lacks.
    """
    if not isinstance(graph, Graph):
        graph = load(graph, **params)
    elif params:
        raise GraphirError(
            Diagnostic("E0408", f"a graph has its parameters already: {', '.join(params)}", help=("pass them to graphir.load",))
        )
    recipes: list[Any] = []
    return build(graph, optimise(graph, passes, mode, recipes=recipes), recipes, target, mode, weights, seed, inductor, dispatch, strict)


def build(
    graph: Graph,
    final: Graph,
    recipes: Sequence[Any],
    target: str,
    mode: str,
    weights: Any = None,
    seed: int = 0,
    inductor: bool = False,
    dispatch: str = "auto",
    strict: bool = False,
) -> torch.nn.Module:
    """The module of an optimised graph, its weights read or initialised for the graph as loaded and carried through the passes' recipes."""
    from .backends.base import compile_module, need_device

    need_device(target)
    return compile_module(
        final, target, mode, tensors(graph, final, recipes, weights, seed), seed, inductor=inductor, dispatch=dispatch, strict=strict
    )


def tensors(graph: Graph, final: Graph, recipes: Sequence[Any], weights: Any = None, seed: int = 0) -> Mapping[str, torch.Tensor]:
    """The weights that `final` names: given ones fit the graph as loaded (or `final` itself), missing ones are not made up."""
    from .backends.weights import initialise
    from .backends.weights import load as load_weights

    if isinstance(weights, str | os.PathLike):
        weights = load_weights(weights, graph)
    if not recipes:
        return initialise(final, seed) if weights is None else weights
    from . import passes as p

    known = initialise(graph.with_(weights=p.starting_weights(graph, final)), seed) if weights is None else weights
    return p.apply(recipes, known, final)


def interpret(
    graph: Graph, inputs: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor] | None = None, *, seed: int = 0, **options: Any
) -> dict[str, torch.Tensor]:
    """Run a graph node by node on the CPU: outputs by name. `dtype=torch.float64` computes in double precision."""
    from .backends.interpreter import Interpreter
    from .backends.weights import initialise

    return Interpreter(graph, initialise(graph, seed) if weights is None else weights, **options).run(inputs)


def total_loss(aux: Mapping[str, Any]) -> Any:
    """The sum of the auxiliary losses among a module's named outputs, their coefficients included; 0.0 where there are none.

    y, aux = net(x, aux=True)
    loss = task(y) + graphir.total_loss(aux)
    """
    return sum([value for name, value in aux.items() if name.rpartition(".")[2] in LOSSES], start=0.0)


def open(folder: str | os.PathLike[str], target: str = "cpu", mode: str | None = None) -> torch.nn.Module:
    """The module that `graphir compile -o FOLDER` wrote, weights included."""
    from .folder import read_folder

    saved = read_folder(folder)
    return compile(saved.graph, target, mode or saved.mode, weights=saved.weights_path)
