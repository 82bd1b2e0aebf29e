"""Weights: made from their initialisation specs, and moved as safetensors that are checked in full before anything is used."""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from graphir.atomic import write_atomic
from graphir.bricks.inits import read_init
from graphir.bricks.signature import Misfit
from graphir.ir.graph import Graph, Weight
from graphir.lang.diagnostic import Diagnostic, GraphirError, nearest

Shape = tuple[int, ...]
Maker = Callable[..., torch.Tensor]

METADATA = "graphir"
LONGEST_HEADER = 100_000_000
FLOATS = ("F64", "F32", "F16", "BF16")
BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}


def initialise(
    graph: Graph, seed: int = 0, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> dict[str, torch.Tensor]:
    """Fresh tensors for all weights of a graph, by name.

    Each is drawn from a generator of its own, seeded by `seed` and the weight's name: adding a layer leaves the others as they
    were, and so does another dtype or device (numbers are drawn in float32 on the CPU). Raises GraphirError E0404 for unknown specs.
    """
    problems = [d for name, weight in graph.weights.items() if (d := _unknown(name, weight))]
    if problems:
        raise GraphirError(problems)
    return {name: make(name, weight, seed).to(device=device, dtype=dtype) for name, weight in graph.weights.items()}


def make(name: str, weight: Weight, seed: int = 0) -> torch.Tensor:
    """One weight as a float32 tensor on the CPU."""
    digest = hashlib.blake2b(f"{seed}|{name}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
    word, numbers, factor = read_init(weight.init)
    if word == "host":
        from .hosts import host_tensor

        return host_tensor(weight.init).float().cpu()
    drawn = MAKERS[word](weight.shape, generator, *numbers)
    return drawn if factor == 1.0 else drawn * factor


def fan_in(shape: Shape) -> int:
    """How many numbers each output depends on: the product of all dims but the first; of a vector, its length."""
    return max(1, math.prod(shape[1:]) if len(shape) > 1 else math.prod(shape))


def fan_out(shape: Shape) -> int:
    """How many outputs each number feeds: the first dim times those after the second."""
    return max(1, shape[0] * math.prod(shape[2:]) if len(shape) > 1 else math.prod(shape))


def _unknown(name: str, weight: Weight) -> Diagnostic | None:
    try:
        read_init(weight.init)
    except Misfit as e:
        return Diagnostic(e.code, f"weight `{name}`: {e}", help=e.help)
    return None


def _normal(shape: Shape, g: torch.Generator, std: float) -> torch.Tensor:
    return torch.randn(shape, generator=g) * std


def _uniform(shape: Shape, g: torch.Generator, bound: float) -> torch.Tensor:
    return (torch.rand(shape, generator=g) * 2 - 1) * bound


def _truncated(shape: Shape, g: torch.Generator, std: float) -> torch.Tensor:
    """A normal distribution without what lies beyond two deviations."""
    edge = math.erf(2 / math.sqrt(2))
    return torch.erfinv((torch.rand(shape, generator=g) * 2 - 1) * edge) * math.sqrt(2) * std


def _eye(shape: Shape, g: torch.Generator) -> torch.Tensor:
    """Ones where the last two places are equal, zeros elsewhere."""
    rows, columns = (1, 1, *shape)[-2:]
    return torch.eye(rows, columns).reshape(shape) if len(shape) < 3 else torch.eye(rows, columns).expand(shape).clone()


def _orthogonal(shape: Shape, g: torch.Generator, gain: float = 1.0) -> torch.Tensor:
    if len(shape) < 2:
        x = torch.randn(shape, generator=g)
        return gain * x / x.norm().clamp(min=1e-12)
    rows, columns = shape[0], math.prod(shape[1:])
    q, r = torch.linalg.qr(torch.randn(max(rows, columns), min(rows, columns), generator=g, dtype=torch.float64))
    q = q * torch.sign(torch.diagonal(r))
    return (gain * (q if rows >= columns else q.T)).float().reshape(shape)


def _along_last(shape: Shape, row: torch.Tensor) -> torch.Tensor:
    return row.float().expand(shape).clone()


def _linspace(shape: Shape, g: torch.Generator, first: float, last: float) -> torch.Tensor:
    return _along_last(shape, torch.linspace(first, last, shape[-1] if shape else 1, dtype=torch.float64).reshape(shape[-1:]))


def _log_range(shape: Shape, g: torch.Generator) -> torch.Tensor:
    """log(1), log(2), ... along the last axis (the decay rates of Mamba)."""
    return _along_last(shape, torch.arange(1, (shape[-1] if shape else 1) + 1, dtype=torch.float64).log().reshape(shape[-1:]))


def _log_uniform(shape: Shape, g: torch.Generator, low: float = 1.0, high: float = 16.0) -> torch.Tensor:
    """The logarithm of numbers uniform in [low, high] (the decay rates of Mamba-2)."""
    return (low + torch.rand(shape, generator=g) * (high - low)).log()


def _step_bias(shape: Shape, g: torch.Generator, low: float = 1e-3, high: float = 1e-1, floor: float = 1e-4) -> torch.Tensor:
    """What softplus maps to step sizes log-uniform in [low, high], none under `floor` (Mamba)."""
    step = torch.exp(math.log(low) + torch.rand(shape, generator=g) * (math.log(high) - math.log(low))).clamp(min=floor)
    return step + torch.log(-torch.expm1(-step))


def _forget_power(shape: Shape, g: torch.Generator, heads: float, power: float) -> torch.Tensor:
    """Biases of the gates i, f, z, o of an sLSTM, zero but for f: from 5 down to -7 by a power law over each head (xLSTM)."""
    width = math.prod(shape) // 4
    each = max(1, width // max(1, int(heads)))
    place = (torch.arange(width, dtype=torch.float64) % each) / max(1, each - 1)
    bias = torch.zeros(math.prod(shape))
    bias[width : 2 * width] = (5.0 - 12.0 * place**power).float()
    return bias.reshape(shape)


MAKERS: dict[str, Maker] = {
    "zeros": lambda s, g: torch.zeros(s),
    "ones": lambda s, g: torch.ones(s),
    "constant": lambda s, g, value: torch.full(s, value),
    "normal": lambda s, g, std=1.0: _normal(s, g, std),
    "uniform": lambda s, g, bound=1.0: _uniform(s, g, bound),
    "trunc_normal": lambda s, g, std=0.02: _truncated(s, g, std),
    "he": lambda s, g: _normal(s, g, math.sqrt(2 / fan_in(s))),
    "he_last": lambda s, g: _normal(s, g, math.sqrt(2 / max(1, (1, *s)[-1]))),
    "lecun": lambda s, g: _normal(s, g, math.sqrt(1 / fan_in(s))),
    "xavier": lambda s, g: _normal(s, g, math.sqrt(2 / (fan_in(s) + fan_out(s)))),
    "xavier_uniform": lambda s, g: _uniform(s, g, math.sqrt(6 / (fan_in(s) + fan_out(s)))),
    "torch_linear": lambda s, g: _uniform(s, g, 1 / math.sqrt(fan_in(s))),
    "kaiming_uniform": lambda s, g: _uniform(s, g, 1 / math.sqrt(fan_in(s))),
    "small": lambda s, g: _normal(s, g, 0.01),
    "small_init": lambda s, g: _normal(s, g, math.sqrt(2 / (5 * fan_in(s)))),
    "wang": lambda s, g, layers: _normal(s, g, 2 / layers / math.sqrt(fan_in(s))),
    "eye": _eye,
    "identity": _eye,
    "orthogonal": _orthogonal,
    "linspace": _linspace,
    "log_range": _log_range,
    "log_uniform": _log_uniform,
    "step_bias": _step_bias,
    "forget_power": _forget_power,
}


def save(path: str | os.PathLike[str], tensors: Mapping[str, torch.Tensor], metadata: Any = None) -> None:
    """Write tensors as safetensors, all or nothing; equal content gives equal bytes. Raises GraphirError E0506.

    `metadata` is any JSON value; it goes under one key, since the order of several is not kept by the format's libraries.
    """
    from safetensors.torch import save as to_bytes

    kept = {METADATA: json.dumps(metadata, sort_keys=True, separators=(",", ":"))} if metadata is not None else None
    whole = {name: t.detach().to("cpu").contiguous().clone() for name, t in sorted(tensors.items())}
    write_atomic(path, to_bytes(whole, kept))


def load(path: str | os.PathLike[str], graph: Graph) -> dict[str, torch.Tensor]:
    """The tensors of a graph's weights from a safetensors file, in the graph's order and the file's dtype.

    Raises GraphirError: E0802 for what is no whole safetensors file, E0801 with every missing, unknown, misshapen or
    non-float tensor. Nothing is read but the header until all is known to fit.
    """
    header = read_header(path)
    header.pop("__metadata__", None)
    shapes = {name: (tuple(entry["shape"]), entry["dtype"]) for name, entry in header.items()}
    problems = _unlike(graph, shapes, Path(path).name)
    if problems:
        raise GraphirError(problems)
    return read_tensors(path, graph.weights)


def read_tensors(path: str | os.PathLike[str], names: Any = None) -> dict[str, torch.Tensor]:
    """Tensors of a safetensors file, all or those named. Raises GraphirError E0802."""
    from safetensors import safe_open

    header = read_header(path)
    with safe_open(os.fspath(path), framework="pt") as file:
        return {name: file.get_tensor(name) for name in (header if names is None else names) if name != "__metadata__"}


def read_metadata(path: str | os.PathLike[str]) -> Any:
    """The JSON value that `save` was given, None where there is none. Raises GraphirError E0802."""
    text = read_header(path).get("__metadata__", {}).get(METADATA)
    try:
        return None if text is None else json.loads(text)
    except (ValueError, RecursionError):
        raise _broken(path, "its metadata is no JSON") from None


def _unlike(graph: Graph, shapes: Mapping[str, tuple[Shape, str]], where: str) -> list[Diagnostic]:
    problems = []
    for name, weight in graph.weights.items():
        if name not in shapes:
            problems.append(Diagnostic("E0801", f"weight `{name}` {list(weight.shape)} is not in `{where}`", help=nearest(name, shapes)))
            continue
        shape, dtype = shapes[name]
        if shape != weight.shape:
            problems.append(Diagnostic("E0801", f"weight `{name}` is {list(shape)} in `{where}`, not {list(weight.shape)}"))
        if dtype not in FLOATS:
            problems.append(Diagnostic("E0801", f"weight `{name}` has {dtype} elements in `{where}`, not floats"))
    for name in shapes:
        if name not in graph.weights:
            message = f"`{where}` holds `{name}`, which is no weight of `{graph.name}`"
            problems.append(Diagnostic("E0801", message, help=nearest(name, graph.weights)))
    return problems


def read_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The header of a safetensors file, known to describe the file exactly. Raises GraphirError E0802."""
    try:
        size = os.stat(path).st_size
        with Path(path).open("rb") as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else -1
            if not 2 <= length <= min(LONGEST_HEADER, size - 8):
                raise _broken(path, "it is cut short, or of another format")
            text = file.read(length)
    except OSError as e:
        raise GraphirError(Diagnostic("E0802", f"cannot read `{os.fspath(path)}`: {e.strerror or type(e).__name__}")) from None
    header = _parsed(path, text)
    _check_tiling(path, header, size - 8 - length)
    return header


def _parsed(path: str | os.PathLike[str], text: bytes) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise _broken(path, "its header has a key twice")
        return found

    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=once)
    except (ValueError, RecursionError):
        raise _broken(path, "its header is no JSON") from None
    meta = header.get("__metadata__", {}) if isinstance(header, dict) else None
    if not isinstance(meta, dict) or not all(isinstance(v, str) for v in meta.values()):
        raise _broken(path, "its header is not a table of tensors")
    return header


def _check_tiling(path: str | os.PathLike[str], header: Mapping[str, Any], size: int) -> None:
    """Tensors fill the file without gap or overlap, each as long as its shape and dtype say."""
    spans = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        span = _span(entry)
        if span is None:
            raise _broken(path, f"its header says nothing sensible of `{name[:80]}`")
        spans.append(span)
    end = 0
    for start, stop in sorted(spans):
        if start != end:
            raise _broken(path, "its tensors overlap or leave gaps")
        end = stop
    if end != size:
        raise _broken(path, f"its header speaks of {end} bytes of tensors, but there are {size}")


def _span(entry: Any) -> tuple[int, int] | None:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"} or not isinstance(entry["dtype"], str):
        return None
    shape, offsets = entry["shape"], entry["data_offsets"]
    lists = isinstance(shape, list) and isinstance(offsets, list) and len(offsets) == 2
    if not lists or not all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 2**63 for n in [*shape, *offsets]):
        return None
    start, stop = offsets
    fits = entry["dtype"] in BYTES and stop - start == math.prod(shape) * BYTES[entry["dtype"]]
    return (start, stop) if fits else None


def _broken(path: str | os.PathLike[str], why: str) -> GraphirError:
    return GraphirError(Diagnostic("E0802", f"`{os.fspath(path)}` is not a whole safetensors file: {why}"))
