"""Decoding: steps give what the whole sequence gives, in every composition; and what can be done with a state."""

from __future__ import annotations

import copy
import pickle

import decode_stacks
import pytest
import torch
from safetensors.torch import load_file

import graphir
from graphir.backends.decode import lower_decoder
from graphir.backends.fx import lower
from graphir.backends.generate import generate
from graphir.backends.interpreter import Interpreter
from graphir.backends.weights import initialise
from graphir.cli.main import run
from graphir.lang.diagnostic import GraphirError

LENGTH = 11
CUTS = [(1,) * LENGTH, (LENGTH - 5, 5), (LENGTH - 5, 1, 1, 1, 1, 1), (4, 4, 3)]  # no multiple of the chunk in sight
NOISE = 8
QUICK = 25
SEEDS = [pytest.param(s, marks=[pytest.mark.slow] if s >= QUICK else []) for s in range(100)]


def noisy(graph, seed=0):
    """Initial weights with noise on top, in float64: none is zero or one by accident."""
    generator = torch.Generator().manual_seed(seed)
    made = initialise(graph, seed)
    return {name: t.double() + 0.1 * torch.randn(t.shape, generator=generator, dtype=torch.float64) for name, t in made.items()}


def signal(seed=1, batch=2, length=LENGTH, d=decode_stacks.WIDTH):
    return torch.randn(batch, length, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def model(text, **params):
    return graphir.load(f"model M(x: float[B, T, 16]) -> float[B, T, 16] {{ {text} }}", **params)


def net_of(graph, dtype=torch.float64):
    return lower_decoder(graph, noisy(graph), dtype=dtype)


@torch.no_grad()
def decoded(net, x, cut, state=None):
    parts = []
    for piece in x.split(cut, 1):
        y, state = net(piece, state=state)
        parts.append(y)
    return torch.cat(parts, 1), state


def interpreted(runner, x, cut):
    parts, state = [], None
    for piece in x.split(cut, 1):
        outputs, state = runner.run_step({"x": piece}, state)
        parts.append(next(iter(outputs.values())))
    return torch.cat(parts, 1)


def assert_decodes(graph):
    """Both backends, in float32, stay within `NOISE` times the rounding of a whole float32 run, as float64 sees it."""
    weights = noisy(graph)
    narrow = {name: t.float() for name, t in weights.items()}
    x = signal()
    truth = next(iter(Interpreter(graph, weights, dtype=torch.float64).run({"x": x.float().double()}).values()))
    with torch.no_grad():
        whole = lower(graph, narrow, mode="infer")(x.float())
    resolution = 4 * torch.finfo(torch.float32).eps * float(truth.abs().max())
    noise = max(float((whole.double() - truth).abs().max()), resolution)
    net, runner = lower_decoder(graph, narrow), Interpreter(graph, narrow)
    for cut in CUTS:
        for made in (decoded(net, x.float(), cut)[0], interpreted(runner, x.float(), cut)):
            assert float((made.double() - truth).abs().max()) <= NOISE * noise, (cut, noise)


@pytest.mark.parametrize("brick", decode_stacks.MIXERS)
def test_every_mixer_decodes_as_it_runs(brick):
    assert_decodes(model(f"return x -> {brick}"))


@pytest.mark.parametrize("seed", SEEDS)
def test_random_stacks_decode_as_they_run(seed):
    assert_decodes(graphir.load(decode_stacks.program(seed)))


def test_stacks_are_varied():
    text = "".join(map(decode_stacks.program, range(100)))
    for word in ("fork", "filter", "shared s1", "keep = 1", *(m.partition("(")[0] for m in decode_stacks.MIXERS)):
        assert word in text, word


@pytest.mark.parametrize("brick", [m for m in decode_stacks.MIXERS if "Hyena" not in m])
def test_state_of_a_fixed_size_gives_what_a_growing_one_gives(brick):
    net = net_of(model(f"return x -> {brick}"))
    x = signal()
    wanted, _ = decoded(net, x, (LENGTH,))
    for cut in CUTS:
        first = net.init_state(2, length=13)
        made, state = decoded(net, x, cut, first)
        torch.testing.assert_close(made, wanted, rtol=1e-9, atol=1e-9)
        assert {k: t.shape for k, t in state.items()} == {k: t.shape for k, t in first.items()}
        assert net.state_bytes(2, length=13) == sum(t.nbytes for t in state.values())


def test_masks_come_with_their_tokens_and_are_remembered():
    graph = graphir.load("""model M(x: float[B, T, 16], mask: bool[B, T]) -> float[B, T, 16] {
      return x -> ([residual(rmsnorm -> Attention(heads = 2, window = w, mask = mask)) for w in [none, 3]])
    }""")
    weights, x = noisy(graph), signal()
    mask = torch.ones(2, LENGTH, dtype=torch.bool)
    mask[0, :4] = False
    runner, net = Interpreter(graph, weights, dtype=torch.float64), lower_decoder(graph, weights, dtype=torch.float64)
    wanted = runner.run({"x": x, "mask": mask})["output"]
    assert not torch.allclose(wanted, runner.run({"x": x, "mask": torch.ones_like(mask)})["output"])
    for length in (None, 12):
        for cut in CUTS:
            parts, states = [], None
            state = None if length is None else net.init_state(2, length=length)
            for piece, seen in zip(x.split(cut, 1), mask.split(cut, 1)):
                y, state = net(piece, seen, state)
                outputs, states = runner.run_step({"x": piece, "mask": seen}, states)
                torch.testing.assert_close(outputs["output"], y, rtol=1e-9, atol=1e-9)
                parts.append(y)
            torch.testing.assert_close(torch.cat(parts, 1), wanted, rtol=1e-9, atol=1e-9)
    with pytest.raises(GraphirError, match=r"E0804.*`mask` has length 6, not 1") as refused:
        net(x[:, 5:6], mask[:, :6], net(x[:, :5], mask[:, :5])[1])
    assert "a step takes the mask of its own tokens" in str(refused.value.diagnostics[0].help)


def test_rows_are_independent():
    net, x = net_of(graphir.load(decode_stacks.program(3))), signal()
    other = x.clone()
    other[1] += 1.0
    torch.testing.assert_close(decoded(net, other, CUTS[2])[0][0], decoded(net, x, CUTS[2])[0][0], rtol=0, atol=1e-12)


def test_a_state_is_never_written_into():
    net = net_of(model("return x -> residual(Attention(heads = 2)) -> mLSTM(heads = 4) -> SlidingAttention(heads = 2, window = 3)"))
    x = signal()
    for start in (None, net.init_state(2, length=LENGTH)):
        _, state = decoded(net, x[:, :6], (6,), start)
        before = {k: t.clone() for k, t in state.items()}
        first = decoded(net, x[:, 6:], (1, 4), state)[0]
        assert all(torch.equal(state[k], before[k]) for k in state)
        assert torch.equal(decoded(net, x[:, 6:], (1, 4), state)[0], first)


def test_reset_begins_anew():
    net, x = net_of(model("return x -> Attention(heads = 2) -> sLSTM(heads = 4) -> RWKV4")), signal()
    for start in (None, net.init_state(2, length=LENGTH)):
        wanted, state = decoded(net, x, (4, 7), start)
        fresh = net.reset(state)
        assert fresh.keys() == state.keys()
        torch.testing.assert_close(decoded(net, x, (4, 7), fresh)[0], wanted, rtol=0, atol=0)


CROPPED = "return x -> LearnedPositions(size = 16) -> residual(Attention(heads = 2)) -> residual(SlidingAttention(heads = 2, window = 20))"


@pytest.mark.parametrize("length", [None, 16])
def test_crop_goes_back(length):
    net, x = net_of(model(CROPPED)), signal()
    other = torch.cat([x[:, :4], signal(2)[:, 4:]], 1)
    _, state = decoded(net, x, (5, 6), None if length is None else net.init_state(2, length=length))
    made, _ = decoded(net, other[:, 4:], (1, 6), net.crop(state, 4))
    torch.testing.assert_close(made, decoded(net, other, (LENGTH,))[0][:, 4:], rtol=1e-9, atol=1e-9)
    same = net.crop(state, 40)
    assert all(torch.equal(same[k], state[k]) for k in state)
    torch.testing.assert_close(decoded(net, x, (LENGTH,), net.crop(state, 0))[0], decoded(net, x, (LENGTH,))[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("length", [None, 16])
def test_crop_past_a_recurrent_state_is_refused(length):
    net = net_of(model("return x -> Attention(heads = 2) -> mLSTM(heads = 4) as cell -> SlidingAttention(heads = 2, window = 3)"))
    x = signal()
    _, state = decoded(net, x, (LENGTH,), None if length is None else net.init_state(2, length=length))
    with pytest.raises(GraphirError, match=r"E0813") as refused:
        net.crop(state, 4)
    named = {d.message.split("`")[1] for d in refused.value.diagnostics}
    assert {"cell.mlstm", "cell.conv"} < named
    assert any("k_cache" in path for path in named)
    assert net.crop(state, LENGTH).keys() == state.keys()


@pytest.mark.parametrize("length", [None, 16])
def test_reorder_moves_rows(length):
    mixers = [m for m in decode_stacks.MIXERS if "Hyena" not in m]
    net, x = net_of(model("return x -> " + " -> ".join(f"residual(rmsnorm -> {m})" for m in mixers))), signal(batch=3)
    _, state = decoded(net, x[:, :6], (6,), None if length is None else net.init_state(3, length=length))
    index = torch.tensor([2, 0, 0, 1])
    made, _ = decoded(net, x[index, 6:], (1, 4), net.reorder(state, index))
    torch.testing.assert_close(made, decoded(net, x, (LENGTH,))[0][index, 6:], rtol=1e-9, atol=1e-9)


def test_parallel_branches_and_shared_bricks_have_states_of_their_own():
    graph = model("shared cell = gru(16)\n y = x -> fork { a: cell  b: tanh -> cell } -> add\n return y -> cell")
    net, x = net_of(graph), signal()
    _, state = decoded(net, x, (LENGTH,))
    assert len(graph.weights) == 4
    assert len(state) == 3
    tensors = list(state.values())
    assert all(not torch.allclose(a, b) for i, a in enumerate(tensors) for b in tensors[:i])


SEEN_WHOLE = """model M(source: float[B, S, 16], x: float[B, T, 16]) -> (y: float[B, T, 16], memory: float[B, S, 16]) {
  shared mlp = SwiGLU(hidden = 24)
  memory = source -> residual(Attention(heads = 2, causal = false)) -> residual(mlp)
  return x -> residual(Attention(heads = 2)) -> residual(CrossAttention(heads = 2, memory = memory)) -> residual(mlp), memory
}"""


@pytest.mark.parametrize("length", [None, 12])
def test_an_encoder_runs_once_and_its_memory_is_state(length):
    graph = graphir.load(SEEN_WHOLE)
    weights, x, source = noisy(graph), signal(), signal(5, length=7)
    net = lower_decoder(graph, weights, dtype=torch.float64)
    wanted = Interpreter(graph, weights, dtype=torch.float64).run({"source": source, "x": x})
    assert (net.steps, net.whole) == (("x",), ("source",))
    (y, memory), state = net(source, x[:, :4], state=None if length is None else net.init_state(2, length=length))
    parts = [y]
    for piece in x[:, 4:].split(1, 1):
        (y, memory), state = net(x=piece, state=state)
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, 1), wanted["y"], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(memory, wanted["memory"], rtol=1e-9, atol=1e-9)
    if length is None:
        floats = sum(t.nbytes for k, t in state.items() if t.dim())
        assert graph.summary(B=2, S=7, T=LENGTH).state_bytes * 2 == floats
        assert net.state_bytes(2, S=7, T=LENGTH) == sum(t.nbytes for t in state.values())
    index = torch.tensor([1, 1])
    moved = net.reorder(state, index)
    assert all(torch.equal(moved[k], t[index]) for k, t in state.items() if t.dim())
    with pytest.raises(GraphirError, match=r"E0803.*`source"):
        net(x=x[:, :1])
    with pytest.raises(GraphirError, match=r"E0803.*`source"):
        net(x=x[:, :1], state=net.reset(state))
    for name, tensor in net.named_parameters():
        tensor.data.mul_(2.0)
        assert name in weights
    doubled = Interpreter(graph, {n: 2 * t for n, t in weights.items()}, dtype=torch.float64).run({"source": source, "x": x})
    torch.testing.assert_close(net(source, x)[0][0], doubled["y"], rtol=1e-9, atol=1e-9)


def test_summary_counts_the_state_with_symbols():
    graph = model("return x -> Attention(heads = 2) -> SlidingAttention(heads = 2, window = 3) -> lstm(8) -> causal_conv1d(16, kernel = 1)")
    assert str(graph.summary().state_bytes) == "128*B*T + 128*B*min(2, T) + 64*B"
    net = lower_decoder(graph, dtype=torch.float32)
    _, state = decoded(net, signal().float(), (LENGTH,))
    floats = sum(t.nbytes for t in state.values() if t.dim())
    assert graph.summary(B=2, T=LENGTH).state_bytes == floats
    assert net.state_bytes(2, T=LENGTH) == sum(t.nbytes for t in state.values())
    assert model("return x -> Attention(heads = 2, causal = false)").summary().state_bytes == 0


REFUSED = {
    "x -> Attention(heads = 2, causal = false) as look": ("E0810", "look.sdpa"),
    "x -> ([Attention(heads = 2, causal = false)] * 4)": ("E0810", "and 3 more"),
    "x -> flip": ("E0810", "sees later tokens"),
    "x + (x -> cache as old)": ("E0810", "remembered tokens together with new ones"),
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_cannot_decode_is_refused(text):
    code, message = REFUSED[text]
    graph = model(f"return {text}")
    with pytest.raises(GraphirError, match=code) as refused:
        graphir.compile(graph, mode="decode")
    assert message in str(refused.value)
    assert len(refused.value.diagnostics) == 1
    with pytest.raises(GraphirError, match=code):
        Interpreter(graph, noisy(graph), dtype=torch.float64).run_step({"x": signal()})


def test_attention_that_forgets_is_refused():
    heads = 'x -> rearrange("b t (h k) -> b h t k", h = 2)'
    for keys, message in ((f"{heads}", "are not remembered"), (f"{heads} -> window_cache(3, axis = 2)", "sees all tokens")):
        graph = model(f'q = {heads}\n k = {keys}\n return (q, k, k) -> sdpa(causal = true) -> rearrange("b h t k -> b t (h k)")')
        with pytest.raises(GraphirError, match=r"E0810") as refused:
            graphir.compile(graph, mode="decode")
        assert message in str(refused.value)


def test_a_state_of_another_model_is_refused():
    net, other = net_of(model("return x -> lstm(16)")), net_of(model("return x -> gru(16) as cell"))
    x = signal()
    _, state = decoded(net, x, (LENGTH,))
    with pytest.raises(GraphirError, match=r"E0811.*nothing in `M` keeps that"):
        other(x, state=state)
    with pytest.raises(GraphirError, match=r"E0811.*lacks"):
        net(x, state={})
    with pytest.raises(GraphirError, match=r"E0811.*with B = 3"):
        net(signal(batch=3), state=state)
    with pytest.raises(GraphirError, match=r"E0811.*is int64"):
        net(x, state={k: t.long() for k, t in state.items()})
    for call in (net.reset, lambda s: net.crop(s, 2), lambda s: net.reorder(s, torch.tensor([0]))):
        with pytest.raises(GraphirError, match=r"E0811"):
            call(decoded(other, x, (LENGTH,))[1])


def test_a_state_of_a_fixed_size_has_its_limits():
    net, x = net_of(model("return x -> Attention(heads = 2)")), signal()
    _, state = decoded(net, x[:, :7], (7,), net.init_state(2, length=8))
    with pytest.raises(GraphirError, match=r"E0814.*room for 8 tokens: 7 are in it, 2 more"):
        net(x[:, :2], state=state)
    with pytest.raises(GraphirError, match=r"E0814.*fft_conv"):
        net_of(model("return x -> Hyena(length = 16)")).init_state(2, length=8)
    with pytest.raises(GraphirError, match=r"E0803.*size of `B`"):
        net.init_state()
    with pytest.raises(GraphirError, match=r"E0803.*no runtime dim `Z`"):
        net.init_state(2, Z=3)


def test_preconditions_on_the_length_are_not_asked_of_a_step():
    graph = model("require T % 2 == 0\n return x -> gru(16)")
    net = net_of(graph)
    decoded(net, signal(), CUTS[0])
    interpreted(Interpreter(graph, noisy(graph), dtype=torch.float64), signal(), CUTS[0])


def test_routing_losses_do_not_keep_a_model_from_decoding():
    assert_decodes(model("return x -> filter(linear(2) -> softmax, balance = 0.1) { a: gru(16)  b: SwiGLU(hidden = 8) }"))


def test_copies_and_pickles_decode_alike():
    graph = graphir.load(SEEN_WHOLE)
    net, x, source = net_of(graph), signal(), signal(5)
    wanted = net(source, x)[0][0]
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(other(source, x)[0][0], wanted)
        assert other.state_dict().keys() == net.state_dict().keys() == graph.weights.keys()


def test_half_precision_keeps_its_accumulators():
    net = net_of(model("return x -> mLSTM(heads = 4) -> Attention(heads = 2)"), torch.bfloat16)
    y, state = decoded(net, signal().bfloat16(), CUTS[3])
    assert y.dtype == torch.bfloat16
    assert {str(t.dtype) for t in state.values()} == {"torch.bfloat16", "torch.float32", "torch.int64"}


def test_a_saved_model_opens_for_decoding(tmp_path):
    program = tmp_path / "lm.arch"
    program.write_text(LANGUAGE)
    assert run(["compile", str(program), "--mode", "decode", "-o", str(tmp_path / "lm")]) == 0
    tokens = torch.randint(0, 20, (2, 6), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = graphir.open(tmp_path / "lm", mode="infer")(tokens)
        y, state = graphir.open(tmp_path / "lm")(tokens[:, :4])
        torch.testing.assert_close(y, whole[:, :4], rtol=1e-5, atol=1e-5)
        y, _ = graphir.open(tmp_path / "lm", mode="decode")(tokens[:, 4:], state)
    torch.testing.assert_close(y, whole[:, 4:], rtol=1e-5, atol=1e-5)


LANGUAGE = """model LM(vocab = 20)(tokens: int[B, T]) -> float[B, T, vocab] {
  return tokens -> embedding(vocab, 16) -> residual(Attention(heads = 2)) -> lstm(16) -> linear(vocab)
}"""


def test_generation_takes_the_most_likely_token_or_draws():
    graph = graphir.load(LANGUAGE)
    net = graphir.compile(graph, mode="decode", weights={n: t.float() for n, t in noisy(graph).items()})
    whole = graphir.compile(graph, mode="infer", weights=dict(net.state_dict()))
    tokens = prompt = torch.tensor([[1, 2, 3], [4, 5, 6]])
    for _ in range(5):
        with torch.no_grad():
            tokens = torch.cat([tokens, whole(tokens)[:, -1:].argmax(-1)], 1)
    made = torch.stack(list(generate(net, prompt, 5)), 1)
    assert torch.equal(made, tokens[:, 3:])
    draw = lambda **options: torch.stack(list(generate(net, prompt, 20, temperature=5.0, **options)), 1)  # noqa: E731
    assert torch.equal(draw(seed=1), draw(seed=1))
    assert not torch.equal(draw(seed=1), draw(seed=2))
    assert torch.equal(draw(top_k=1)[:, :5], made)
    with pytest.raises(GraphirError, match=r"E0815.*from 0 to 19"):
        next(generate(net, prompt + 15, 1))
    with pytest.raises(GraphirError, match=r"E0815.*no language model"):
        next(generate(net_of(model("return x -> lstm(16)")), prompt, 1))


def test_generate_on_the_command_line(tmp_path, capsys):
    program, prompt = tmp_path / "lm.arch", tmp_path / "prompt.txt"
    program.write_text(LANGUAGE)
    prompt.write_text("1, 2 3\n")
    command = ["run", str(program), "--generate", "6"]
    assert run([*command, "--prompt", str(prompt)]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert len(line.split()) == 6
    assert all(0 <= int(token) < 20 for token in line.split())
    drawn, saved = ["--temperature", "1", "--top-k", "4", "--seed", "1"], tmp_path / "out.safetensors"
    assert run([*command, "--set-dim", "B=3,T=2", *drawn, "-o", str(saved)]) == 0
    rows = [[int(token) for token in line.split()] for line in capsys.readouterr().out.splitlines()]
    assert load_file(saved)["tokens"][:, 2:].tolist() == rows
    assert len(rows) == 3
    prompt.write_text("1 two")
    for path in (prompt, tmp_path / "none.txt"):
        assert run([*command, "--prompt", str(path)]) == 1
        assert "E0815" in capsys.readouterr().err
    assert run([*command, "--trace"]) == 2


@pytest.mark.slow
def test_blocks_compile_and_decode():
    graph = model("return x -> ([residual(rmsnorm -> Attention(heads = 2)) -> residual(rmsnorm -> mLSTM(heads = 4, chunk = 4))] * 2)")
    weights, x = noisy(graph), signal()
    wanted, _ = decoded(lower_decoder(graph, weights, dtype=torch.float64), x, (LENGTH,))
    net = lower_decoder(graph, weights, dtype=torch.float64).compiled()
    made, _ = decoded(net, x, (5, 1, 1, 1, 1, 1, 1), net.init_state(2, length=LENGTH))
    torch.testing.assert_close(made, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.cuda
def test_a_step_of_fixed_size_is_captured_as_a_cuda_graph():
    graph = model("return x -> ([residual(rmsnorm -> Attention(heads = 2)) -> residual(rmsnorm -> mLSTM(heads = 4))] * 2)")
    net, x = lower_decoder(graph, noisy(graph), dtype=torch.float32, device="cuda"), signal().float().cuda()
    wanted, _ = decoded(net, x, (LENGTH,))
    _, state = decoded(net, x[:, :4], (3, 1), net.init_state(2, length=LENGTH))
    token = x[:, 4:5].clone()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.no_grad(), torch.cuda.stream(stream):
        net(token, state=state)
    torch.cuda.current_stream().wait_stream(stream)
    captured = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(captured):
        y, after = net(token, state=state)
        for key, tensor in after.items():
            state[key].copy_(tensor)
    for place in range(4, LENGTH):
        token.copy_(x[:, place : place + 1])
        captured.replay()
        torch.testing.assert_close(y, wanted[:, place : place + 1], rtol=1e-4, atol=1e-4)
