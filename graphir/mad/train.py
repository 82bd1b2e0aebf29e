"""Training on a MAD task, by the protocol as its published code carries it out, and with that code's two defects mended.

AdamW (betas 0.9 and 0.999), batches of 128, 200 epochs, learning rate 5e-4, weight decay for matrices alone, an end once the test accuracy
reaches 0.999. The published code asks for a cosine decay to 1e-6 but hands it over under a name that its trainer does not know, so the rate
stays as it is; and its accuracy is the mean over classes of each class's own accuracy, averaged over test batches, not the share of tokens.
`AS_CODE` does and measures just that; `CORRECTED` lets the rate decay and counts tokens. Here both run in float32; the published code, in bfloat16.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..ir.graph import Graph
from ..lang.diagnostic import Diagnostic, GraphirError
from .tasks import IGNORE, Data

if TYPE_CHECKING:
    import torch

SMALLEST_RATE = 1e-6
GOOD_ENOUGH = 0.999
EPOCHS = 200
FREE_OF_DECAY = ("bias", "A_log", "D", "bonus")


@dataclass(frozen=True, slots=True)
class Protocol:
    """How the rate moves (cosine or not at all) and what accuracy is (a mean over classes or over tokens)."""

    name: str
    cosine: bool
    macro: bool


AS_CODE = Protocol("as_code", cosine=False, macro=True)
CORRECTED = Protocol("corrected", cosine=True, macro=False)
PROTOCOLS = {p.name: p for p in (AS_CODE, CORRECTED)}


@dataclass(frozen=True, slots=True)
class Score:
    """What training came to, on the test examples. `accuracy` is the protocol's of the two accuracies; `loss` is in nats per scored token."""

    accuracy: float
    token_accuracy: float
    macro_accuracy: float
    loss: float
    first_loss: float
    train_loss: float
    steps: int
    seconds: float


Progress = Callable[[int, int, float], None]


def fit(
    graph: Graph,
    data: Data,
    protocol: Protocol = CORRECTED,
    *,
    steps: int | None = None,
    batch: int = 128,
    rate: float = 5e-4,
    decay: float = 0.0,
    seed: int = 0,
    target: str = "cpu",
    progress: Progress | None = None,
) -> Score:
    """Train a model, ids int[B, T] -> logits float[B, T, vocab], on a task and score it.

    `steps`: batches to learn from (200 epochs if not given). `decay`: weight decay. `seed`: of the weights and of the order of the examples.
    `progress` is told the step, the steps in all and the loss. Raises GraphirError where the model is no such model.
    """
    import torch

    from .. import compile

    _check(graph, data)
    whole = math.ceil(len(data.train_inputs) / batch)
    steps = EPOCHS * whole if steps is None else steps
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = compile(graph, target=target, seed=seed).train()
        optimiser = torch.optim.AdamW(_groups(net, decay), lr=rate, fused=True)
        started = time.perf_counter()
        first = evaluate(net, data, batch, target)
        loss = torch.tensor(math.nan)
        done = 0
        for done, (inputs, targets) in enumerate(_batches(data, batch, steps, seed, target), 1):
            if protocol.cosine:
                _set_rate(optimiser, SMALLEST_RATE + (rate - SMALLEST_RATE) * (1 + math.cos(math.pi * (done - 1) / steps)) / 2)
            loss = _loss(net(inputs), targets)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            if progress is not None:
                progress(done, steps, loss.item())
            if done % max(whole, 100) == 0 and done < steps and _of(evaluate(net, data, batch, target), protocol) >= GOOD_ENOUGH:
                break
        last = evaluate(net, data, batch, target)
    return Score(
        _of(last, protocol), last.tokens, last.classes, last.loss, first.loss, loss.item(), done, round(time.perf_counter() - started, 1)
    )


def _check(graph: Graph, data: Data) -> None:
    wrong = ""
    if len(graph.inputs) != 1 or graph.inputs[0][1].type.dtype != "int" or len(graph.inputs[0][1].type.shape) != 2:
        wrong = "its one input is token ids, int[B, T]"
    elif len(graph.outputs) != 1 or graph.outputs[0][1].type.dtype != "float" or len(graph.outputs[0][1].type.shape) != 3:
        wrong = "its one output is logits, float[B, T, vocab]"
    elif graph.outputs[0][1].type.shape[-1] != data.setting.vocab:
        wrong = f"{data.setting.task} has {data.setting.vocab} tokens, and this model gives {graph.outputs[0][1].type.shape[-1]} logits"
    if wrong:
        raise GraphirError(Diagnostic("E0910", f"`{graph.name}` cannot be trained on {data.setting.task}: {wrong}"))


def _groups(net: Any, decay: float) -> list[dict[str, Any]]:
    """Biases, norms and the parameters of recurrences do not decay."""
    groups: dict[bool, list[Any]] = {True: [], False: []}
    for name, weight in net.named_parameters():
        if weight.requires_grad:
            groups[name.rpartition(".")[2] not in FREE_OF_DECAY and "norm" not in name].append(weight)
    return [{"params": groups[True], "weight_decay": decay}, {"params": groups[False], "weight_decay": 0.0}]


def _set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = rate


def _batches(data: Data, batch: int, steps: int, seed: int, target: str) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches in an order drawn anew for each epoch; an epoch's last batch may be smaller."""
    import torch

    inputs, targets = (torch.from_numpy(a).to(target) for a in (data.train_inputs, data.train_targets))
    generator = torch.Generator().manual_seed(seed)
    while steps > 0:
        for rows in torch.randperm(len(inputs), generator=generator).split(batch)[:steps]:
            yield inputs[rows], targets[rows]
            steps -= 1


def _loss(logits: torch.Tensor, targets: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
    import torch

    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction=reduction)


@dataclass(frozen=True, slots=True)
class Measured:
    """Token accuracy, accuracy per class (mean over batches), loss per scored token."""

    tokens: float
    classes: float
    loss: float


def _of(measured: Measured, protocol: Protocol) -> float:
    return measured.classes if protocol.macro else measured.tokens


def evaluate(net: Any, data: Data, batch: int = 128, target: str = "cpu") -> Measured:
    """Both accuracies and the loss of a module on the test examples."""
    import torch

    was_training = net.training
    net.eval()
    right, scored, loss = 0, 0, 0.0
    per_batch: list[tuple[float, int]] = []
    with torch.no_grad():
        inputs, targets = (torch.from_numpy(a).to(target) for a in (data.test_inputs, data.test_targets))
        for part, wanted in zip(inputs.split(batch), targets.split(batch)):
            logits = net(part)
            loss += _loss(logits, wanted, "sum").item()
            guess, truth = logits.argmax(-1)[wanted != IGNORE], wanted[wanted != IGNORE]
            right, scored = right + int((guess == truth).sum()), scored + len(truth)
            per_batch.append((class_accuracy(guess, truth, data.setting.vocab), len(part)))
    net.train(was_training)
    return Measured(right / scored, sum(value * size for value, size in per_batch) / len(inputs), loss / scored)


def class_accuracy(guess: torch.Tensor, truth: torch.Tensor, classes: int) -> float:
    """The mean over classes of the share of a class's tokens that were told right: int [N], int [N]. Classes that are neither wanted nor told do not
    count; those told but never wanted count as 0 (torchmetrics' macro average)."""
    import torch

    hits = torch.bincount(truth[guess == truth], minlength=classes)
    wanted = torch.bincount(truth, minlength=classes)
    present = (wanted > 0) | (torch.bincount(guess, minlength=classes) > 0)
    return (hits[present] / wanted[present].clamp(min=1)).mean().item()
