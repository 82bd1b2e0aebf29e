"""From a config that lists layers to a program: plain lists of names, lists with backend and parameters, bricks with blocks, layer patterns.

What is read (JSON, or YAML where PyYAML is there), at the top or under `architecture`:

- `layers` or `layer_types`: names, or entries `{type, backend, params}`; or the whole file is such a list;
- `bricks` (name -> entry) and `blocks` (`{type: sequential | parallel, bricks: [...], combiner}`): a brick named twice has one set of weights;
- `hybrid_override_pattern`, `full_attn_idxs`, `attn_layer_period` with `attn_layer_offset`, which say with `num_hidden_layers` where attention stands.

Every layer is y = x + layer(norm(x)). Where the config gives `intermediate_size`, every layer is a mixer and a feed-forward of that width.
Backends: `mlx`, `pytorch` (no mark) and `torch.compile` (`on inductor`). Keys that are not read are listed in a comment.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..bricks import catalogue  # noqa: F401
from ..bricks.declare import REGISTRY
from ..elaborate.project import library
from ..lang import syntax as s
from ..lang.diagnostic import Diagnostic, EnvironmentProblem, GraphirError, nearest
from ..lang.files import read_source
from ..lang.formatter import format_text
from ..lang.source import Source
from ..lang.words import RESERVED
from . import zoo

BACKENDS = {
    "mlx": "mlx",
    "pytorch": "",
    "torch": "",
    "eager": "",
    "torch.compile": "inductor",
    "torch_compile": "inductor",
    "inductor": "inductor",
    "fx": "fx",
    "interpreter": "interpreter",
}
COMBINERS = {
    "add": "add",
    "sum": "add",
    "mean": "mean",
    "average": "mean",
    "avg": "mean",
    "mul": "mul",
    "multiply": "mul",
    "max": "max",
    "gate": "gate",
    "concat": "concat -> linear(d)",
    "weighted": "blend(learnable = true)",
    "blend": "blend(learnable = true)",
}
NORMS = {"rmsnorm": "rmsnorm", "layernorm": "layernorm", "rms_norm": "rmsnorm", "layer_norm": "layernorm"}
LAYERS_AT_MOST = 10_000
WIDTH = ("d_model", "dim", "hidden_size", "embedding_dim")
READ = {
    *WIDTH,
    "vocab_size",
    "num_layers",
    "num_hidden_layers",
    "num_blocks",
    "layer_types",
    "layers",
    "bricks",
    "blocks",
    "norm",
    "intermediate_size",
    "num_heads",
    "num_attention_heads",
    "num_key_value_heads",
    "full_attn_idxs",
    "attn_layer_period",
    "attn_layer_offset",
    "hybrid_override_pattern",
    "sliding_window",
    "tie_word_embeddings",
    "architecture",
    "norm_eps",
    "rms_norm_eps",
    "layer_norm_eps",
    "layer_norm_epsilon",
}
SIGNS = {"M": "mamba2", "*": "full-attention", "-": "mlp", "E": "moe", "G": "gated-delta-net"}


@dataclass
class _Program:
    """Lines of bindings on the way to a program: each distinct layer once, under a name of its own."""

    config: Mapping[str, Any]
    norm: str
    names: dict[str, str] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)

    def bind(self, wanted: str, expression: str, shared: bool = False, own: bool = False) -> str:
        """The name bound to an expression; equal templates share one, unless each is to have its `own`, as shared bricks do."""
        if not (shared or own) and expression in self.names.values():
            return next(name for name, text in self.names.items() if text == expression)
        base = re.sub(r"\W", "_", wanted.lower(), flags=re.ASCII).strip("_") or "layer"
        base = f"layer_{base}" if base[0].isdigit() or base in TAKEN or base in RESERVED else base[:48]
        name, count = base, 2
        while name in self.names:
            name, count = f"{base}_{count}", count + 1
        self.names[name] = f"shared {expression}" if shared else expression
        self.lines.append(f"{'shared ' if shared else ''}{name} = {expression}")
        return name


TAKEN = (
    "vocab",
    "d",
    "tokens",
    "x",
    "emb",
    "residual",
    "rmsnorm",
    "layernorm",
    "linear",
    "embedding",
    "add",
    "mean",
    "mul",
    "max",
    "gate",
    "concat",
    "blend",
    "fork",
    "pattern",
)


def read(path: str | os.PathLike[str]) -> Any:
    """The data of a config: YAML for `.yml` and `.yaml`, JSON otherwise. Raises GraphirError, or EnvironmentProblem without PyYAML."""
    source = read_source(path)
    try:
        if Path(source.name).suffix.lower() not in (".yml", ".yaml"):
            return json.loads(source.text)
        try:
            import yaml
        except ImportError:
            raise EnvironmentProblem("YAML configs need PyYAML", "pip install 'graphir[yaml]'") from None
        try:
            return yaml.safe_load(source.text)
        except yaml.YAMLError as e:
            raise _wrong(f"{source.name} is not YAML: {' '.join(str(e).split())}") from None
    except RecursionError:
        raise _wrong(f"{source.name} is nested too deeply") from None
    except ValueError as e:
        raise _wrong(f"{source.name} is not JSON: {e}", "configs that end in .yml or .yaml are read as YAML") from None


def program(config: Any, name: str = "Imported") -> str:
    """The program of a config, in canonical form, checked. Raises GraphirError for what no program can be made of."""
    from .. import check

    source = Source("imported.arch", _text(config, name))
    text = format_text(source)
    problems = check(text)
    if problems:
        raise GraphirError([_about(problem) for problem in problems])
    return text


def _about(problem: Diagnostic) -> Diagnostic:
    return Diagnostic(
        "E0911",
        f"the layers of this config do not fit together: {problem.message}",
        problem.span,
        problem.label,
        problem.labels,
        problem.notes,
        problem.help,
    )


def _wrong(message: str, *help: str) -> GraphirError:
    return GraphirError(Diagnostic("E0911", message, help=help))


def _text(config: Any, name: str) -> str:
    if isinstance(config, Sequence) and not isinstance(config, str):
        config = {"layer_types": config}
    if not isinstance(config, Mapping):
        raise _wrong("a config is a list of layers, or names with values", "see `graphir explain E0911`")
    inner = config.get("architecture")
    config = {**config, **inner} if isinstance(inner, Mapping) else config
    unread = [str(key) for key in config if key not in READ]
    made = _Program(config, _norm(config))
    stack = _blocks(made) if "bricks" in config or "blocks" in config else _layers(made)
    width = next((_whole(config, key) for key in WIDTH if key in config), 128)
    vocab = _whole(config, "vocab_size") if "vocab_size" in config else 16
    head = "linear(vocab) as head"
    embed = "embedding(vocab, d)"
    if config.get("tie_word_embeddings") is True:
        made.lines.insert(0, f"shared emb = {embed}")
        embed, head = "emb", "emb.T"
    comment = f"# Not read from the config: {_words(unread)}.\n" if unread else ""
    body = "\n".join([*made.lines, f"return tokens -> {embed} -> {stack} -> {made.norm} -> {head}"])
    title = "".join(part.capitalize() for part in re.findall(r"[A-Za-z0-9]+", name)) or "Imported"
    title = title if title[0].isalpha() else f"M{title}"
    return f"{comment}model {title[:48]}(vocab = {vocab}, d = {width})(tokens: int[B, T]) -> (logits: float[B, T, vocab]) {{\n{body}\n}}\n"


def _norm(config: Mapping[str, Any]) -> str:
    norm = _choice("norm", str(config.get("norm", "rmsnorm")).lower(), NORMS)
    eps = next(
        (config[key] for key in ("norm_eps", "rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon") if config.get(key) is not None), None
    )
    return norm if eps is None else f"{norm}(eps = {_value(eps, 'the epsilon of the norm')})"


def _words(names: list[str]) -> str:
    shown = [name for name in names if re.fullmatch(r"[A-Za-z0-9_.-]{1,48}", name)][:40]
    return ", ".join(shown) + (", ..." if len(shown) < len(names) else "")


def _choice(what: str, given: str, known: Mapping[str, str]) -> str:
    if given not in known:
        raise GraphirError(
            Diagnostic("E0911", f"there is no {what} `{given}`", help=nearest(given, known) or (f"there are {', '.join(known)}",))
        )
    return known[given]


def _whole(config: Mapping[str, Any], key: str) -> int:
    value = config[key]
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**31:
        raise _wrong(f"`{key}` is a positive whole number, not {value!r:.40}")
    return value


# lists of layers


def _layers(made: _Program) -> str:
    config = made.config
    if "hybrid_override_pattern" in config:
        return _pattern(made, config["hybrid_override_pattern"])
    listed = config.get("layer_types", config.get("layers"))
    if listed is None:
        listed = _placed(config)
    if not isinstance(listed, Sequence) or isinstance(listed, str) or not listed:
        raise _wrong("`layer_types` is a list of layers", "a layer is a name, or {type, backend, params}")
    for key in ("num_layers", "num_hidden_layers"):
        if key in config and _whole(config, key) != len(listed):
            raise _wrong(f"`{key}` is {config[key]}, and {len(listed)} layers are listed")
    if len(listed) > LAYERS_AT_MOST:
        raise _wrong(f"{len(listed)} layers are more than the limit of {LAYERS_AT_MOST}")
    names = []
    for place, entry in enumerate(listed):
        kind, brick, backend = _entry(made, entry, f"layer {place}")
        names.append(made.bind(kind, _placed_on(_layer(made, brick), backend)))
    return _folded(names)


def _placed(config: Mapping[str, Any]) -> list[str]:
    """The layer types that index sets or a period stand for."""
    key = next((k for k in ("num_hidden_layers", "num_layers") if k in config), None)
    if key is None:
        raise _wrong("the config lists no layers", "give `layer_types`, or `bricks` and `blocks`")
    depth = _whole(config, key)
    if depth > LAYERS_AT_MOST:
        raise _wrong(f"{depth} layers are more than the limit of {LAYERS_AT_MOST}")
    if isinstance(config.get("full_attn_idxs"), list):
        return ["full-attention" if i in config["full_attn_idxs"] else "conv" for i in range(depth)]
    if "attn_layer_period" in config:
        period, offset = _whole(config, "attn_layer_period"), config.get("attn_layer_offset", 0)
        return ["full-attention" if i % period == offset else "mamba" for i in range(depth)]
    raise _wrong("the config lists no layers", "give `layer_types`, `full_attn_idxs`, or `attn_layer_period`")


def _pattern(made: _Program, text: Any) -> str:
    if not isinstance(text, str) or len(text) > 1_000:
        raise _wrong('`hybrid_override_pattern` is a word such as "M-M*-"')
    arguments = []
    for sign in dict.fromkeys(text.replace("|", "").replace(" ", "")):
        if sign not in SIGNS:
            raise _wrong(f"`{sign}` stands for no layer in a pattern", f"the signs are {' '.join(SIGNS)}")
        word = {"*": "attention", "-": "mlp"}.get(sign, sign)
        brick = _brick(made, SIGNS[sign], {}, f"`{sign}`")
        arguments.append(f"{word} = {made.bind(SIGNS[sign], f'residual({made.norm} -> {brick})')}")
    return f"pattern({json.dumps(text)}, {', '.join(arguments)})"


def _folded(names: list[str]) -> str:
    """A list with its repeats as products: `[a, b] * 6`."""
    for size in range(1, len(names) // 2 + 1):
        if len(names) % size == 0 and names == names[:size] * (len(names) // size):
            return f"([{', '.join(names[:size])}] * {len(names) // size})"
    return f"[{', '.join(names)}]"


def _layer(made: _Program, brick: str) -> str:
    if "intermediate_size" in made.config:
        return f"Layer({brick}, SwiGLU(hidden = {_whole(made.config, 'intermediate_size')}), {made.norm})"
    return f"residual({made.norm} -> {brick})"


def _placed_on(expression: str, backend: str) -> str:
    return f"{expression} on {backend}" if backend else expression


def _entry(made: _Program, entry: Any, place: str) -> tuple[str, str, str]:
    """The type, the brick and the backend of an entry: a name, or {type, backend, params}."""
    if isinstance(entry, str):
        return entry, _brick(made, entry, {}, place), ""
    if not isinstance(entry, Mapping) or not isinstance(entry.get("type"), str):
        raise _wrong(f"{place} is a name, or has a `type`")
    for key in entry:
        if key not in ("type", "backend", "params"):
            raise GraphirError(
                Diagnostic(
                    "E0911",
                    f"{place} has an entry `{key}`",
                    help=nearest(str(key), ("type", "backend", "params")) or ("parameters stand under `params`",),
                )
            )
    params = entry.get("params") or {}
    if not isinstance(params, Mapping):
        raise _wrong(f"`params` of {place} are names with values")
    backend = _choice("backend", str(entry.get("backend", "pytorch")), BACKENDS)
    return entry["type"], _brick(made, entry["type"], params, place), backend


def _brick(made: _Program, type: str, params: Mapping[str, Any], place: str) -> str:
    kind = zoo.kind(type)
    formals = _formals(kind.brick)
    arguments = dict(kind.arguments)
    for key in ("num_attention_heads", "num_heads", "num_key_value_heads", "sliding_window"):
        if (
            key in made.config
            and made.config[key] is not None
            and kind.names.get(key) in (formals if key != "sliding_window" else arguments)
        ):
            arguments[kind.names[key]] = str(_whole(made.config, key))
    given = dict(params)
    if kind.brick == "mLSTM" and "head_dim" in given:
        heads = given.get("num_heads", given.get("heads", arguments["heads"]))
        arguments |= {"proj": f"{float(heads) * _whole(given, 'head_dim')!r} / d", "multiple": "4"}
        del given["head_dim"]
    for key, value in given.items():
        name = kind.names.get(key, key)
        if name not in formals:
            known = [*kind.names, *formals]
            raise GraphirError(
                Diagnostic(
                    "E0911",
                    f"`{type}` ({place}) has no parameter `{key}`",
                    help=nearest(str(key), known) or (f"it has {', '.join(formals)}",),
                )
            )
        arguments[name] = _value(value, f"`{key}` of {place}")
    return zoo.written(kind.brick, arguments)


def _formals(brick: str) -> list[str]:
    item = library().find(brick)
    if isinstance(item, s.Block):
        return [f.name for f in item.header.formals]
    declaration = REGISTRY.get(brick)
    assert declaration is not None, brick
    return list(declaration.formals)


def _value(value: Any, place: str) -> str:
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    if isinstance(value, int) and abs(value) < 2**31:
        return str(value)
    if isinstance(value, float) and abs(value) < 1e30:
        return repr(value)
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9_.-]{1,48}", value):
        return f'"{value}"'
    if isinstance(value, list) and len(value) <= 64 and not any(isinstance(v, list) for v in value):
        return f"[{', '.join(_value(v, place) for v in value)}]"
    raise _wrong(f"{place} is a number, a truth value, a plain word or a list of those")


# bricks and blocks


def _blocks(made: _Program) -> str:
    bricks, blocks = made.config.get("bricks"), made.config.get("blocks")
    if not isinstance(bricks, Mapping) or not isinstance(blocks, Sequence) or isinstance(blocks, str) or not blocks:
        raise _wrong("`bricks` are names with entries, and `blocks` is a list of what is made of them")
    uses: dict[str, int] = {}
    for place, block in enumerate(blocks):
        for name in _named(block, place, bricks):
            uses[name] = uses.get(name, 0) + 1
    bound = {}
    for name in uses:
        _, brick, backend = _entry(made, bricks[name], f"brick `{name}`")
        bound[name] = made.bind(name, _placed_on(brick, backend), shared=uses[name] > 1, own=True)
    return f"[{', '.join(stage for place, block in enumerate(blocks) for stage in _block(made, block, place, bound))}]"


def _named(block: Any, place: int, bricks: Mapping[str, Any]) -> list[str]:
    if not isinstance(block, Mapping) or not isinstance(block.get("bricks"), list) or not block["bricks"]:
        raise _wrong(f"block {place} has a `type` and a list of `bricks`")
    for name in block["bricks"]:
        if name not in bricks:
            raise GraphirError(
                Diagnostic(
                    "E0911",
                    f"block {place} names a brick `{name}` that is not there",
                    help=nearest(str(name), map(str, bricks)) or (f"there are {', '.join(map(str, bricks))}",),
                )
            )
    return block["bricks"]


def _block(made: _Program, block: Mapping[str, Any], place: int, bound: Mapping[str, str]) -> list[str]:
    names = [bound[name] for name in block["bricks"]]
    form = block.get("type", "sequential")
    if form == "sequential":
        return [f"residual({made.norm} -> {name})" for name in names]
    if form != "parallel":
        raise GraphirError(
            Diagnostic(
                "E0911",
                f"block {place} is of no known type: `{form}`",
                help=nearest(str(form), ("sequential", "parallel")) or ("there are sequential and parallel",),
            )
        )
    combiner = _choice("combiner", str(block.get("combiner", "add")), COMBINERS)
    if combiner == "gate" and len(names) != 2:
        raise _wrong(f"block {place}: `gate` joins two bricks, content and control, not {len(names)}")
    branches = " ".join(f"{name}{f'_{names[:i].count(name) + 1}' if name in names[:i] else ''}: {name}" for i, name in enumerate(names))
    return [f"residual({made.norm} -> fork {{ {branches} }} -> {combiner})"]
