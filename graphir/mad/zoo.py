"""The layers of MAD: its 19 keys and others that configs name, each as a brick of the language, and the state that each keeps.

MAD compares mixers at equal state: 4096 numbers over the whole model at width 128, counted for the memory proper (not the tails of short
convolutions), with a long convolution counting one number for each channel and state of its filter. Attention, whose memory grows, is not
held to it, nor are single-head (gated) linear attention (16384) and multi-head linear attention (1024).
Known differences: Hyena's projections are not tied in groups here, and biases of `attention` follow the published code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from ..bricks.declare import REGISTRY
from ..ir.graph import Graph
from ..lang.diagnostic import Diagnostic, GraphirError, nearest

STATE_BUDGET = 4_096
MEMORIES = (
    "selective_scan",
    "ssd",
    "gla",
    "linear_attention",
    "retention",
    "decayed_attention",
    "delta_rule",
    "gated_delta_rule",
    "mlstm",
    "slstm_cell",
    "lstm",
    "gru",
    "rg_lru",
    "linear_recurrence",
    "rwkv4_wkv",
    "rwkv5_wkv",
    "rwkv6_wkv",
)


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of layer: the brick of the language, its arguments, how configs call those, and the state of one layer of width d."""

    brick: str
    arguments: Mapping[str, str] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    short: str = ""
    state: Callable[[int], int] | None = None

    @property
    def text(self) -> str:
        """The brick as it is written in a program."""
        return written(self.brick, self.arguments)


def written(brick: str, arguments: Mapping[str, str]) -> str:
    """`Attention(heads = 4)`, or the name alone where there are no arguments."""
    return f"{brick}({', '.join(f'{name} = {value}' for name, value in arguments.items())})" if arguments else brick


_HEADS = {
    "n_heads": "heads",
    "num_heads": "heads",
    "num_attention_heads": "heads",
    "num_key_value_heads": "kv",
    "num_kv_heads": "kv",
    "window_size": "window",
    "sliding_window": "window",
    "rope_theta": "theta",
}
_HIDDEN = {"dim_inner": "hidden", "hidden_dim": "hidden", "intermediate_size": "hidden", "hidden_size": "hidden"}
_MAMBA = {"d_state": "state", "state_size": "state", "d_conv": "kernel", "conv_kernel": "kernel", "dim_state": "state"}
_EXPERTS = {"num_experts": "experts", "active_experts": "keep", "top_k": "keep", "num_experts_per_tok": "keep", "dim_inner": "inner"}
_CHUNK = {**_HEADS, "chunk_size": "chunk"}
_BIASED = {"qkv_bias": "true"}


def _none(d: int) -> int:
    return 0


def _matrices(heads: int) -> Callable[[int], int]:
    return lambda d: heads * (d // heads) ** 2


LAYERS: dict[str, Kind] = {
    "mlp": Kind("MLP", {"act": 'gelu("tanh")', "bias": "false"}, _HIDDEN, "M", _none),
    "swiglu": Kind("SwiGLU", {"hidden": "mad_hidden(d)"}, _HIDDEN, "Sg", _none),
    "moe-mlp": Kind("MadMoE", {"experts": "8", "keep": "2", "inner": "16"}, _EXPERTS, "MoE", _none),
    "attention": Kind("Attention", {"heads": "1", **_BIASED}, _HEADS, "A"),
    "mh-attention": Kind("Attention", {"heads": "16", **_BIASED}, _HEADS, "mA"),
    "sliding-attention": Kind("Attention", {"heads": "1", "window": "33", **_BIASED}, _HEADS, "As"),
    "mh-sliding-attention": Kind("Attention", {"heads": "16", "window": "33", **_BIASED}, _HEADS, "mAs"),
    "linear-attention": Kind("HadamardAttention", {"heads": "1"}, _CHUNK, "Al", _matrices(1)),
    "mh-linear-attention": Kind("HadamardAttention", {"heads": "16"}, _CHUNK, "mAl", _matrices(16)),
    "gated-linear-attention": Kind("GLA", {"heads": "1", "key_dim": "d"}, _CHUNK, "Alg", _matrices(1)),
    "mh-gated-linear-attention": Kind("GLA", {"heads": "8", "key_dim": "d"}, _CHUNK, "mAlg", _matrices(8)),
    "hyena": Kind(
        "Hyena",
        {"filter_order": "4", "expand": "4", "length": "1280"},
        {"max_length": "length", "inner_factor": "expand"},
        "H",
        lambda d: 4 * d * 4,
    ),
    "mh-hyena": Kind(
        "MultiHeadHyena",
        {"heads": "16", "filter_order": "2", "length": "1280"},
        {**_HEADS, "max_length": "length"},
        "mH",
        lambda d: 16 * (d // 16) ** 2 * 2,
    ),
    "hyena-experts": Kind(
        "HyenaExperts",
        {"experts": "8", "keep": "2", "inner": "16", "filter_order": "16", "length": "1280"},
        {**_EXPERTS, "max_length": "length"},
        "He",
        lambda d: 8 * 16 * 16,
    ),
    "mamba": Kind("Mamba", {"state": "4"}, _MAMBA, "Mb", lambda d: 2 * d * 4),
    "rwkv5-time-mixer": Kind("RWKV5", {"heads": "d // 16"}, _HEADS, "R5t", lambda d: d * 16),
    "rwkv5-channel-mixer": Kind("RWKVChannel", {}, _HIDDEN, "R5c", _none),
    "rwkv6-time-mixer": Kind("RWKV6", {"heads": "d // 16"}, _HEADS, "R6t", lambda d: d * 16),
    "rwkv6-channel-mixer": Kind("RWKVChannel", {}, _HIDDEN, "R6c", _none),
}

# What configs of other libraries and of the composition document call layers, beside MAD's own keys.
OTHERS: dict[str, Kind] = {
    "mlstm": Kind("mLSTM", {"heads": "4"}, {**_CHUNK, "proj_factor": "proj", "conv1d_kernel_size": "kernel"}),
    "chunkwise-mlstm": Kind(
        "mLSTM", {"heads": "4", "form": '"chunkwise"'}, {**_CHUNK, "proj_factor": "proj", "conv1d_kernel_size": "kernel"}
    ),
    "parallel-mlstm": Kind(
        "mLSTM", {"heads": "4", "form": '"parallel"'}, {**_CHUNK, "proj_factor": "proj", "conv1d_kernel_size": "kernel"}
    ),
    "slstm": Kind("sLSTM", {"heads": "4"}, {**_HEADS, "conv1d_kernel_size": "kernel"}),
    "full-attention": Kind("Attention", {"heads": "8"}, _HEADS),
    "window-attention": Kind("Attention", {"heads": "8", "window": "128"}, _HEADS),
    "chunked-attention": Kind("Attention", {"heads": "8", "chunk": "128"}, _CHUNK),
    "conv": Kind("ShortConv", {}, {"kernel_size": "kernel", "conv_L_cache": "kernel"}),
    "short-conv": Kind("ShortConv", {}, {"kernel_size": "kernel", "conv_L_cache": "kernel"}),
    "mamba2": Kind("Mamba2", {}, {**_MAMBA, "headdim": "head_dim", "chunk_size": "chunk"}),
    "retnet": Kind("RetNet", {"heads": "4"}, _CHUNK),
    "delta-net": Kind("DeltaNet", {"heads": "4"}, _CHUNK),
    "gated-delta-net": Kind("GatedDeltaNet", {"heads": "4"}, _CHUNK),
    "griffin": Kind("Griffin", {"heads": "4"}, {**_HEADS, "lru_width": "width"}),
    "geglu": Kind("GeGLU", {}, _HIDDEN),
    "reglu": Kind("ReGLU", {}, _HIDDEN),
    "glu": Kind("GLU", {}, _HIDDEN),
    "moe": Kind("SparseMoE", {}, _EXPERTS),
}


def kind(key: str) -> Kind:
    """The kind of a layer by its key; `_` counts as `-`, and case does not. Raises GraphirError, with near keys, if there is none."""
    name = key.lower().replace("_", "-")
    known = {**LAYERS, **OTHERS}
    if name not in known:
        raise GraphirError(
            Diagnostic("E0911", f"there is no layer type `{key}`", help=nearest(name, known) or (f"there are {', '.join(known)}",))
        )
    return known[name]


def model(keys: Sequence[str], vocab: int = 16, d: int = 128, backbone: str = "language-model") -> str:
    """The program of a MAD model: x + layer(rmsnorm(x)) for each key, between an embedding and a norm with a head.

    `backbone` "autoencoder" is the one for compression: the last place's vector, with sinusoids of the position added, tells every token.
    """
    layers = ", ".join(f"residual(rmsnorm -> {kind(key).text})" for key in keys)
    body = f"x = tokens -> embedding(vocab, d) -> [{layers}]"
    if backbone == "language-model":
        tail = "  return x -> rmsnorm -> linear(vocab) as head"
    elif backbone == "autoencoder":
        tail = (
            '  code = x -> last -> rearrange("b d -> b 1 d")\n'
            '  places = x -> sinusoidal_positions(layout = "half")\n'
            "  spread = 0.0 * x + code + places\n"
            "  part = rmsnorm -> linear(d) -> gelu\n"
            "  return spread -> ([part] * 2) as decoder -> rmsnorm -> linear(vocab) as head"
        )
    else:
        raise GraphirError(Diagnostic("E0910", f"there is no backbone `{backbone}`", help=("there are language-model and autoencoder",)))
    return f"model MAD(vocab = {vocab}, d = {d})(tokens: int[B, T]) -> (logits: float[B, T, vocab]) {{\n  {body}\n{tail}\n}}\n"


def state(keys: Sequence[str], d: int = 128) -> int | None:
    """Numbers of state over all layers by MAD's rule; None where a layer's memory grows with the sequence."""
    counts = [kind(key).state for key in keys]
    return None if any(count is None for count in counts) else sum(count(d) for count in counts if count is not None)


def memory(graph: Graph) -> int:
    """Numbers that a model's recurrences keep for one sequence, from their declarations: what `state` says where no layer is a long convolution.

    Normalisers, stabilisers, short convolutions and caches are left out: of each recurrence only its largest state counts.
    """
    total = 0
    for node in graph.nodes:
        declaration = REGISTRY[node.op]
        if node.op not in MEMORIES or declaration.state is None:
            continue
        types = tuple(v.type for v in node.inputs)
        shapes = declaration.state.init(types, declaration.names(types, node.attrs, graph.facts)).values()
        sizes = [_size(shape[1:]) for shape, _ in shapes if len(shape) > 1]
        total += max(sizes, default=0)
    return total


def _size(shape: Sequence[object]) -> int:
    size = 1
    for dim in shape:
        size *= dim if isinstance(dim, int) else 0
    return size
