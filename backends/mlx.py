"""Parts of a model that MLX runs: the real library, with gradients by its own vjp.

Going in, tensors are copied (MLX takes none over by any route); coming out they are taken over through DLPack, which copies
nothing on the CPU. Weights stay torch parameters and go in at every call, so an optimiser, a checkpoint or a hand that changes
them is never missed. The backward pass computes the part's forward once more, inside `mx.vjp`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from graphir.bricks.call import arguments, concrete
from graphir.ir.graph import Graph, Node
from graphir.ir.scalar import runtime_names
from graphir.lang.diagnostic import Diagnostic, GraphirError

from .base import axis_that_gives, declaration_of, providers, split_attrs
from .mlx_bricks import KEYED
from .mlx_lazy import mx
from .mlx_table import TABLE

Array = Any


class Program:
    """A graph as a function of arrays: `program(inputs + weights, training, seed)` in the order of the graph gives its outputs."""

    def __init__(self, graph: Graph):
        self.graph = graph
        self.inputs = [value for _, value in graph.inputs]
        self.outputs = [value for _, value in graph.outputs]
        told = providers(graph)
        self.tells = {name: (value, *axis) for name, value in told.items() if (axis := axis_that_gives(value.type, name))}
        self.steps = [(node, *split_attrs(declaration_of(node), node.attrs)) for node in graph.nodes]

    def __call__(self, arrays: Sequence[Array], training: bool, seed: int) -> list[Array]:
        values = dict(zip(self.inputs, arrays))
        weights = dict(zip(self.graph.weights, arrays[len(self.inputs) :]))
        for place, (node, static, waiting) in enumerate(self.steps):
            attrs = static | {k: concrete(v, self._sizes(v, values)) for k, v in waiting.items()}
            made = self._call(node, [values[v] for v in node.inputs], weights, attrs, training, seed + place)
            values.update(zip(node.outputs, made if isinstance(made, tuple | list) else (made,)))
        return [values[v] for v in self.outputs]

    def _call(self, node: Node, inputs: list[Array], weights: dict[str, Array], attrs: dict[str, Any], training: bool, seed: int) -> Any:
        declaration = declaration_of(node)
        named = {role: weights[name] for role, name in node.weights}
        positional, keyword = arguments(declaration, inputs, named, attrs, training=training)
        if node.op in KEYED:
            keyword["key"] = mx.random.key(seed)
        return TABLE[node.op](*positional, **keyword)

    def _sizes(self, value: Any, values: dict[Any, Array]) -> dict[str, int]:
        sizes = {}
        for name in runtime_names(value):
            teller, axis, factor, constant = self.tells[name]
            sizes[name] = (values[teller].shape[axis] - constant) // factor
        return sizes


class MLXPart(nn.Module):
    """x_1, ..., w_1, ... -> y_1, ...: a part that MLX runs. It owns no weights: they come as arguments, from where their names say."""

    def __init__(self, program: Program):
        super().__init__()
        self.program = program

    def twin(self) -> MLXPart:
        """The same part for other weights."""
        return MLXPart(self.program)

    def __deepcopy__(self, memo: dict[Any, Any]) -> MLXPart:
        return self.twin().train(self.training)

    @torch.compiler.disable
    def forward(self, *tensors: torch.Tensor) -> Any:
        seed = int(torch.randint(2**31, ())) if self.training and not KEYED.isdisjoint(self.program.graph.ops) else 0
        made = Border.apply(self.program, self.training, seed, *tensors)
        return made[0] if len(made) == 1 else made


class Border(torch.autograd.Function):
    """From torch to MLX and back, values forward and gradients backward."""

    @staticmethod
    def forward(ctx: Any, program: Program, training: bool, seed: int, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.program, ctx.training, ctx.seed = program, training, seed
        ctx.save_for_backward(*tensors)
        made = program([to_mlx(t) for t in tensors], training, seed)
        mx.eval(made)
        outputs = _apart([to_torch(a, tensors) for a in made])
        ctx.mark_non_differentiable(*[t for t in outputs if not t.is_floating_point()])
        return tuple(outputs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        tensors = ctx.saved_tensors
        arrays = [to_mlx(t) for t in tensors]
        wanted = [place for place, needed in enumerate(ctx.needs_input_grad[3:]) if needed]
        floats = [place for place, value in enumerate(ctx.program.outputs) if value.type.dtype == "float"]

        def function(*primals: Array) -> list[Array]:
            filled = list(arrays)
            for place, primal in zip(wanted, primals):
                filled[place] = primal
            made = ctx.program(filled, ctx.training, ctx.seed)
            return [made[place] for place in floats]

        _, found = mx.vjp(function, [arrays[place] for place in wanted], [to_mlx(gradients[place]) for place in floats])
        mx.eval(found)
        back: list[torch.Tensor | None] = [None] * len(tensors)
        for place, tensor in zip(wanted, _apart([to_torch(a, tensors) for a in found])):
            back[place] = tensor
        return None, None, None, *back


def to_mlx(tensor: torch.Tensor) -> Array:
    """The array of a tensor's numbers and precision: a copy.

    Raises GraphirError E0830 for float64: MLX computes `exp`, `sin` and others of it in single precision.
    """
    if tensor.dtype == torch.float64:
        help = ("convert the model with `.float()`", "fx computes in double precision: `--passes place{override=true}`")
        raise GraphirError(Diagnostic("E0830", "a part that is `on mlx` is given float64, which MLX does not compute in full", help=help))
    return mx.array(tensor.detach().cpu())


def to_torch(array: Array, beside: Sequence[torch.Tensor]) -> torch.Tensor:
    """The tensor of an array's numbers, on the device of the tensors beside it: the array's own memory on the CPU."""
    tensor = torch.from_dlpack(array) if array.__dlpack_device__()[0] == CPU else _copied(array)
    return tensor.to(beside[0].device) if beside else tensor


CPU = 1  # DLPack's number of the CPU


def _copied(array: Array) -> torch.Tensor:
    """Through numpy, for memory that torch cannot address; numpy has no bfloat16."""
    import numpy

    if array.dtype == mx.bfloat16:
        return torch.from_numpy(numpy.array(array.astype(mx.float32))).bfloat16()
    return torch.from_numpy(numpy.array(array))


def _apart(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The tensors, those that lie in memory of an earlier one copied: writing to a result never changes another."""
    taken: list[tuple[int, int]] = []
    out = []
    for tensor in tensors:
        start = tensor.data_ptr()
        reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride())) + 1 if tensor.numel() else 0
        stop = start + reach * tensor.element_size()
        if any(start < other_stop and other_start < stop for other_start, other_stop in taken):
            tensor = tensor.clone()
        else:
            taken.append((start, stop))
        out.append(tensor)
    return out


__all__ = ["Border", "MLXPart", "Program", "to_mlx", "to_torch"]
