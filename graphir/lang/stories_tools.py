"""E05xx: files; E07xx: grafts and backends; E08xx: weights and inputs; E09xx: dumps, passes and graphs."""

from __future__ import annotations

from .story import Code

HOST = """block Host(x: [*S, d]) -> [*S, d] {
  layers = [linear(d), linear(d)]
  return x -> layers
}

"""

CODES = {
    "E0501": Code(
        "an import is not found",
        'The path of `import "parts.arch" as parts` is relative to the file that holds it.',
        'import "no_such_file.arch" as parts\n\nmodel M(x: float[B, 8]) -> float[B, 8] { return x -> gelu }\n',
        "model M(x: float[B, 8]) -> float[B, 8] { return x -> gelu }\n",
    ),
    "E0502": Code(
        "an import leaves the project",
        "Imports stay inside the project's folder, so that a file from a stranger can read nothing else: no absolute paths, no `..`, no"
        " links that lead out.",
        'import "../../secret.arch" as secret\n\nmodel M(x: float[B, 8]) -> float[B, 8] { return x -> gelu }\n',
        "model M(x: float[B, 8]) -> float[B, 8] { return x -> gelu }\n",
    ),
    "E0503": Code(
        "files import each other in a circle",
        "Two files cannot each need the other. Move what both use into a third. Any two files that import each other show it:\n\n"
        "    graphir check a.arch",
    ),
    "E0504": Code(
        "a path cannot be read",
        "The path is missing, is a directory or a device, or may not be read. `-` means standard input:\n\n"
        "    cat model.arch | graphir check -",
    ),
    "E0505": Code(
        "a file is not text",
        "Programs are UTF-8 text without NUL characters. The message gives the line and the column of the first byte that is not:\n\n"
        "    iconv -f latin1 -t utf8 old.arch > new.arch",
    ),
    "E0506": Code(
        "a path cannot be written",
        "The folder is missing or may not be written. Outputs are written beside their place and renamed when whole, so what was there"
        " is still there:\n\n    graphir compile model.arch -o out/model",
    ),
    "E0701": Code(
        "a graft's path matches nothing",
        "`at path:` names a place of the host by its path: names and places of lists, `layers[2].mlp`. A range or `*` chooses several"
        " places, and at least one must exist; `tap` reads exactly one. `graphir summary` of the host lists its paths.",
        HOST + "model M(x: float[B, T, 8]) -> float[B, T, 8] {\n  grown = graft Host { at layer[0]: id }\n  return x -> grown\n}\n",
        HOST + "model M(x: float[B, T, 8]) -> float[B, T, 8] {\n  grown = graft Host { at layers[0]: id }\n  return x -> grown\n}\n",
    ),
    "E0702": Code(
        "a backend is not known",
        "`on name` places a brick on a backend; the message lists those that there are.",
        "model M(x: float[B, 8]) -> float[B, 8] { return x -> linear(8) on inducter }\n",
        "model M(x: float[B, 8]) -> float[B, 8] { return x -> linear(8) on inductor }\n",
    ),
    "E0703": Code(
        "a tap comes too early",
        "`tap` reads a value that the host has computed by then. The place it names comes later in the host, or is replaced by the same"
        " graft. Tap an earlier place, or graft further down.",
    ),
    "E0704": Code(
        "a parameter group matches nothing",
        "Each group of parameters for the optimiser names its parameters by patterns over their paths. This pattern matches none, or all"
        " that it matches belong to earlier groups: the narrower pattern goes first.",
    ),
    "E0705": Code(
        "a parameter group holds frozen weights",
        "`frozen(...)` promises that weights stay as they are on disk, so no optimiser may train them. Narrow the pattern of the group, or"
        ' take `frozen` away. `parameter_groups(..., frozen="skip")` leaves frozen weights out without complaint.',
    ),
    "E0706": Code(
        "a graft does not fit its site",
        "`graphir.graft_module` joins what a brick gives with what a submodule of the host gives: by `add`, `concat`, `gate` or `replace`. The"
        " way is not one of these, the brick has several inputs or outputs, or the two results differ in shape. End the brick in"
        " `stitch(width)` where only the width differs.",
    ),
    "E0707": Code(
        "a host is not registered",
        "A weight of the graph starts as a tensor of a module that the host program calls by a name. Call `graphir.register_host` with that"
        " name before the graph is compiled, or pass `weights=`.",
    ),
    "E0708": Code(
        "a stitch cannot be fitted",
        "`graphir stitch-fit` takes a target for the path of each stitch: the tensor that it should give for the calibration batch. The path"
        " is no stitch of the model, or the target has another shape:\n\n    graphir compile model.arch --show-stitches",
    ),
    "E0801": Code(
        "a weight file does not match the model",
        "The file is checked in full before anything is loaded: tensors that are missing, too many or of another shape are all listed."
        " Weights are named by the paths that the summary shows:\n\n    graphir run model.arch --weights model.safetensors",
    ),
    "E0802": Code(
        "not a safetensors file",
        "Weights are read from safetensors files only, since other formats can hold code. The file is no such file, or is damaged:\n\n"
        "    graphir run model.arch --weights model.safetensors",
    ),
    "E0803": Code(
        "inputs do not match the model",
        "The model's inputs have names, element types and shapes, and these do not fit: a tensor is missing, has another shape, or two"
        " tensors give one axis two sizes:\n\n    graphir run model.arch --set-dim B=2,T=16",
    ),
    "E0804": Code(
        "the inputs break a precondition",
        "A `require` that could not be decided from the text became a precondition of the model; `graphir summary` lists them. The sizes"
        " of these inputs do not meet it:\n\n    graphir run model.arch --set-dim T=17",
    ),
    "E0805": Code(
        "a name cannot name a part of a module",
        "Paths become the names of torch modules and weights, which have rules of their own: no weight may be called like an attribute of"
        " `torch.nn.Module`, and no name may be both a weight and a part. Give the part another name with `as`.",
    ),
    "E0806": Code(
        "there is no such target or mode",
        "Targets are the kinds of machine that a model is compiled for, modes what it is compiled to do:\n\n"
        "    graphir compile model.arch --target cpu --mode infer",
    ),
    "E0807": Code(
        "a node failed while it ran",
        "The interpreter met an error at this brick. The message holds the reason that torch gives, for example an index outside of an"
        " embedding.",
    ),
    "E0808": Code(
        "torch.export cannot export this model",
        "`--emit pt2` hands the model to torch.export, which refused it; its reason follows. The other forms do not depend on it:\n\n"
        "    graphir compile model.arch --emit python -o model.py",
    ),
    "E0809": Code(
        "the model cannot be written as plain Python",
        "`--emit python` writes a file that imports torch alone. A brick that a host registered has a body that such a file cannot hold.",
    ),
    "E0810": Code(
        "the model cannot decode step by step",
        "Decoding feeds one token after another, so no brick may look at later ones. The message names the one that does: attention with"
        " `causal = false`, say, or a pooling over time. Attention must also find earlier keys and values again, so `cache(axis = 2)`"
        " stands before a bare `sdpa`; the standard `Attention` has it.",
    ),
    "E0811": Code(
        "a decoding state does not fit",
        "The state given does not belong to this model, or has other shapes. `init_state` makes one.",
    ),
    "E0812": Code(
        "a slot and its module do not fit",
        "`net.set_slot(path, module)` fills a `slot(width)` of the model, named by its path. The message lists the slots there are, or says"
        " that the module gives something other than [..., width] for the slot's input.",
    ),
    "E0813": Code(
        "a state cannot be cropped",
        "Caches drop their last tokens easily, but the state of a recurrence or a short convolution mixes all that came before, and a"
        " window that has moved on has lost what it left. Keep the state of the place to come back to; a step never changes the state"
        " it is given:\n\n    outputs, after = net(tokens, state=before)",
    ),
    "E0814": Code(
        "there is no room in a state of fixed size",
        "`net.init_state(batch, length=256)` makes buffers for so many tokens, and these tokens do not fit in; or the model has a brick"
        " whose state must grow (a long convolution, a relative bias). Without `length` the state grows with the tokens:\n\n"
        "    state = net.init_state(batch)",
    ),
    "E0815": Code(
        "the model does not generate tokens",
        "`--generate` feeds a language model its own tokens: step by step it takes int[B, T] and nothing else, and gives"
        " float[B, T, vocab]. The prompt holds tokens of that vocabulary:\n\n"
        "    graphir run model.arch --generate 16 --prompt random --temperature 0.8 --top-k 40",
    ),
    "E0820": Code(
        "a name table cannot be read",
        "A table that maps the weights of another program to this model's is a TOML file of patterns; it is malformed at the place named.",
    ),
    "E0821": Code(
        "a name table does not fit",
        "The table leaves weights of the model without a source, or tensors of the file without a use, or names a tensor that does not"
        " exist. Tensors that are not wanted are listed under `ignore`.",
    ),
    "E0830": Code(
        "a brick cannot run on the backend that it is put on",
        "`f on mlx` runs a part by another backend. A brick that this backend lacks is taken apart into bricks that it has, or else runs on"
        " fx, and a note says which; with `--strict` it is an error instead:\n\n    graphir run model.arch --strict",
    ),
    "E0901": Code(
        "a dump cannot be read",
        "A graph's text has one line for each node. This line is damaged, or of another version:\n\n"
        "    graphir compile model.arch --emit graph -o model.graph",
    ),
    "E0902": Code(
        "a pass or an option is not known",
        "`--passes` takes the names of passes in order, each with options in braces:\n\n"
        '    graphir compile model.arch --passes "stitch,share,norm-fusion{affine=true}"',
    ),
    "E0903": Code(
        "a graph is not valid",
        "The verifier found a graph that breaks a rule, for example a node that uses a value before it exists. Where the graph came from"
        " a dump, the dump is at fault; where it came from a pass, the pass is, and a report to its authors helps.",
    ),
    "E0904": Code(
        "a pass needs the weights",
        "Some passes change weights along with the graph (folding a norm into a projection, say). They run where weights are at hand, when"
        " a model is compiled for inference:\n\n    graphir compile model.arch --mode infer --weights model.safetensors",
    ),
    "E0910": Code(
        "a MAD task and a model or setting do not fit",
        "`graphir mad` trains models, token ids int[B, T] -> logits float[B, T, vocab], on the tasks of mechanistic architecture design. The"
        " message names what does not fit: the task, a size, the model, or a file of results:\n\n"
        "    graphir mad model.arch --task in-context-recall --size vocab=16,length=32",
    ),
    "E0911": Code(
        "a config cannot be imported",
        "`graphir import` reads configs that list layers by name, in JSON or YAML, and writes a program. The message names the entry that it"
        " cannot read: a layer type without a brick, say, or a parameter that the brick does not have:\n\n"
        "    graphir import config.yml -o model.arch",
    ),
}
