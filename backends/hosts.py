"""Hosts that are `torch.nn.Module`s: bricks grafted onto their submodules, and modules as bricks of `.arch` programs."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from graphir.bricks.declare import REGISTRY, brick
from graphir.elaborate.project import library
from graphir.ir.graph import Graph
from graphir.lang.diagnostic import Diagnostic, GraphirError, nearest

from .base import compile_module
from .modules import attach

JOINS: dict[str, Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]] = {
    "add": lambda host, new, alpha: torch.add(host, new, alpha=alpha),
    "concat": lambda host, new, alpha: torch.cat((host, new), -1),
    "gate": lambda host, new, alpha: host * torch.sigmoid(new),
}
HOW = (*JOINS, "replace")


@dataclass(frozen=True)
class Graft:
    """What grows at a site of a host.

    `brick`: a graph of one input and one output, or a module of one tensor. `how` its output meets the site's: host + alpha * new
    (`add`), [host, new] along the last axis (`concat`), host * sigmoid(new) (`gate`), or new alone (`replace`: the site's module
    is gone). `tap`: the site whose output feeds the brick, earlier in the host's forward; the input of its own site if None.
    """

    brick: Graph | nn.Module
    how: str = "add"
    alpha: float = 1.0
    tap: str | None = None


class GraftedModule(nn.Module):
    """A host with grafts. Weights: `host.<path in the host>` and `grafts.<site>.new.<path in the brick>`; called like the host."""

    def __init__(self, host: nn.Module):
        super().__init__()
        self.host = host
        self.tapped: dict[str, torch.Tensor] = {}

    def forward(self, *inputs: Any, **named: Any) -> Any:
        try:
            return self.host(*inputs, **named)
        finally:
            self.tapped.clear()


@dataclass(frozen=True)
class _Tap:
    """A forward hook that remembers a site's output. Objects, not closures: copies of a module take theirs along."""

    path: str
    tapped: dict[str, torch.Tensor]

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        self.tapped[self.path] = _main(output)


@dataclass(frozen=True)
class _Join:
    """A forward hook that joins a brick's output with a site's."""

    path: str
    new: nn.Module
    graft: Graft
    tapped: dict[str, torch.Tensor]

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], named: Mapping[str, Any], output: Any) -> Any:
        new = self.new(_input(self, inputs, named))
        host = _main(output)
        _check(self, host, new)
        joined = JOINS[self.graft.how](host, new, self.graft.alpha)
        return (joined, *output[1:]) if isinstance(output, tuple) else joined


def graft_module(
    host: nn.Module, grafts: Mapping[str, Graft | Graph | nn.Module], *, freeze: bool = False, seed: int = 0
) -> GraftedModule:
    """The host with bricks grafted onto its submodules.

    Keys of `grafts` are paths of submodules as `named_modules` has them; `*` stands for one segment, and a graph gets fresh
    weights at each site that it matches, a module is the same one everywhere. The host itself stays as it is; its parameters
    are shared, or with `freeze` seen through parameters that do not train. A site that returns a tuple is joined at its first
    element. Raises GraphirError: E0701 for a path that matches nothing, E0706 for a graft that does not fit.
    """
    tensors = (*host.parameters(), *host.buffers())
    memo: dict[int, Any] = {id(t): _held(t, freeze) for t in tensors}
    grown = GraftedModule(copy.deepcopy(host, memo))
    known = {path: module for path, module in grown.host.named_modules() if path}
    like = next((p for p in host.parameters() if p.is_floating_point()), None)
    problems: list[Diagnostic] = []
    for count, (pattern, value) in enumerate(grafts.items()):
        graft = value if isinstance(value, Graft) else Graft(value)
        problems += _wrong(pattern, graft, known)
        for place, path in enumerate(() if problems else _sites(pattern, known)):
            _grow(grown, path, known[path], graft, _module(graft.brick, seed + 1000 * count + place, like))
    if problems:
        raise GraphirError(problems)
    for path in dict.fromkeys(g.tap for g in grafts.values() if isinstance(g, Graft) and g.tap):
        known[path].register_forward_hook(_Tap(path, grown.tapped))
    return grown.train(host.training)


def _held(tensor: torch.Tensor, freeze: bool) -> torch.Tensor:
    """The tensor itself; of a frozen host a parameter of the same numbers that does not train, and buffers of its own."""
    if not freeze:
        return tensor
    return nn.Parameter(tensor.detach(), requires_grad=False) if isinstance(tensor, nn.Parameter) else tensor.clone()


def _sites(pattern: str, known: Mapping[str, nn.Module]) -> list[str]:
    wanted = re.compile("[^.]*".join(map(re.escape, pattern.split("*"))))
    return [path for path in known if wanted.fullmatch(path)]


def _wrong(pattern: str, graft: Graft, known: Mapping[str, nn.Module]) -> list[Diagnostic]:
    problems = []
    if not _sites(pattern, known):
        help = nearest(pattern, known) or ("`named_modules` lists them",)
        problems.append(Diagnostic("E0701", f"`{pattern}` matches no submodule of the host", help=help))
    if graft.tap is not None and graft.tap not in known:
        problems.append(Diagnostic("E0703", f"the host has no submodule `{graft.tap}` to tap", help=nearest(graft.tap, known)))
    if graft.how not in HOW:
        help = nearest(graft.how, HOW) or (f"there are {', '.join(HOW)}",)
        problems.append(Diagnostic("E0706", f"`{pattern}`: there is no way `{graft.how}` to graft", help=help))
    if isinstance(graft.brick, Graph) and (len(graft.brick.inputs), len(graft.brick.outputs)) != (1, 1):
        count = f"{len(graft.brick.inputs)} inputs and {len(graft.brick.outputs)} outputs"
        problems.append(Diagnostic("E0706", f"`{pattern}`: `{graft.brick.name}` has {count}, a graft has one of each"))
    return problems


def _module(brick: Graph | nn.Module, seed: int, like: torch.Tensor | None) -> nn.Module:
    if isinstance(brick, nn.Module):
        return brick
    module = compile_module(brick, seed=seed)
    return module if like is None else module.to(device=like.device, dtype=like.dtype)


def _grow(grown: GraftedModule, path: str, site: nn.Module, graft: Graft, new: nn.Module) -> None:
    if graft.how == "replace":
        parent, _, name = path.rpartition(".")
        grown.host.get_submodule(parent)._modules[name] = new
        return
    attach(grown, f"grafts.{path}.new", new)
    site.register_forward_hook(_Join(path, new, graft, grown.tapped), with_kwargs=True)


def _main(output: Any) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output


def _input(join: _Join, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> torch.Tensor:
    if join.graft.tap is not None:
        if join.graft.tap not in join.tapped:
            message = f"`{join.path}` taps `{join.graft.tap}`, which has not run yet"
            raise GraphirError(Diagnostic("E0703", message, help=("tap a site that comes before",)))
        return join.tapped[join.graft.tap]
    found = next((v for v in (*inputs, *named.values()) if isinstance(v, torch.Tensor)), None)
    if found is None:
        raise GraphirError(Diagnostic("E0706", f"`{join.path}` is called without a tensor"))
    return found


def _check(join: _Join, host: torch.Tensor, new: torch.Tensor) -> None:
    same = host.shape == new.shape if join.graft.how != "concat" else host.shape[:-1] == new.shape[:-1]
    if not same:
        message = f"`{join.path}` gives {list(host.shape)}, its graft {list(new.shape)}: `{join.graft.how}` does not join them"
        raise GraphirError(Diagnostic("E0706", message, help=("end the graft in a stitch to the site's width",)))


# modules as bricks


def register_host(name: str, module: nn.Module, ports: str, *, output: Callable[[Any], Any] | None = None, flops: str | int = 0) -> None:
    """Let `.arch` programs use a module as a brick: `x -> name`.

    `ports` is the rest of its header, `(x: float[B, T, 64]) -> float[B, T, 64]`. Its weights are the module's float parameters and
    buffers at the module's own paths (`name.layers.0.weight`), which start as the module has them, in each place of the program
    anew unless `shared`; what does not train in the module is frozen. The module itself is never changed. `output` takes the
    tensor, or tuple of tensors, out of what `forward` returns. To change what is inside, graft first: `graft_module`.

    Raises GraphirError: E0308 for a name that is taken, E0101 and following for ports that do not parse.
    """
    if name in REGISTRY or name in library().names() or not name.isidentifier():
        reason = "names something else" if name.isidentifier() else "cannot be a name"
        raise GraphirError(Diagnostic("E0308", f"`{name}` {reason}", help=("register the host under another name",)))
    named = [(p, t, "" if t.requires_grad else "frozen ") for p, t in module.named_parameters()]
    named += [(p, t, "buffer ") for p, t in module.named_buffers() if t.is_floating_point()]
    paths = {f"w{i}": path for i, (path, _, _) in enumerate(named)}
    rules = [f"{flag}w{i} at {path}: [{', '.join(map(str, t.shape))}] = host({name},{path})" for i, (path, t, flag) in enumerate(named)]
    own = copy.deepcopy(module, {id(t): t for _, t, _ in named})

    def body(*inputs: torch.Tensor, training: bool = False, **weights: torch.Tensor) -> Any:
        own.train(training)
        result = torch.func.functional_call(own, {paths[role]: t for role, t in weights.items()}, inputs)
        return result if output is None else output(result)

    body.__doc__ = f"The module `{type(module).__name__}` of the host program."
    body.__name__ = body.__qualname__ = name
    brick(f"{name}{ports}", weights="; ".join(rules), flops=flops, causal=False, random=True, source="host program")(body)
    try:
        REGISTRY[name].header  # noqa: B018  (parses the ports)
    except GraphirError:
        del REGISTRY.declarations[name]
        raise
    HOSTS[name] = {path: t for path, t, _ in named}


def forget_host(name: str) -> None:
    """Take back `register_host`; graphs that use the brick no longer compile."""
    if name in HOSTS:
        del HOSTS[name], REGISTRY.declarations[name]


HOSTS: dict[str, dict[str, torch.Tensor]] = {}


def host_tensor(spec: str) -> torch.Tensor:
    """What `host(name,path)` stands for. Raises GraphirError E0707 where no such host is registered."""
    name, _, path = spec.removeprefix("host(").removesuffix(")").partition(",")
    found = HOSTS.get(name, {}).get(path)
    if found is None:
        message = f"a weight starts as `{path}` of the host `{name}`, which is not registered"
        raise GraphirError(Diagnostic("E0707", message, help=nearest(name, HOSTS)))
    return found.detach().clone()


__all__ = ["Graft", "GraftedModule", "forget_host", "graft_module", "register_host"]
