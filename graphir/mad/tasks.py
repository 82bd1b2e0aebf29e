"""The six tasks of MAD (arXiv 2403.17844): settings, difficulties, and generators that draw what the published code draws, number for number.

One numpy generator serves a data set: all training examples come first, then the test examples go on with it. Selective copying places
its blanks with numpy's older global generator in the published code; here a private `RandomState` of the same seed gives the same numbers.
Targets hold token ids and, where nothing is scored, `IGNORE`. In the three recall tasks training scores the next token everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from itertools import permutations
from typing import TYPE_CHECKING, Any

from ..lang.diagnostic import Diagnostic, GraphirError, nearest

if TYPE_CHECKING:
    import numpy as np

IGNORE = -100


@dataclass(frozen=True, slots=True)
class Setting:
    """One task at one difficulty. `vocab` counts all ids, noise and special ones too; `noise` is the share of pairs replaced by noise."""

    task: str
    vocab: int = 16
    length: int = 128
    train: int = 12_800
    test: int = 1_280
    noise_vocab: int = 0
    noise: float = 0.0
    copies: int = 0
    key_motif: int = 1
    value_motif: int = 1
    multi_query: bool = True
    seed: int = 12_345


@dataclass(frozen=True, slots=True)
class Data:
    """Examples of a setting: inputs and targets, int64 [examples, tokens]."""

    setting: Setting
    train_inputs: np.ndarray
    train_targets: np.ndarray
    test_inputs: np.ndarray
    test_targets: np.ndarray


@dataclass(frozen=True, slots=True)
class Draws:
    """What an example is made from: the generator, and for blanks the older one."""

    rng: np.random.Generator
    legacy: np.random.RandomState
    pairs: Mapping[int, int]


Example = tuple["list[int]", "list[int]"]
Generator = Callable[[Setting, Draws, bool], Example]


@dataclass(frozen=True, slots=True)
class Task:
    """A task: its published short name, its baseline, what is varied (each alone, the rest at the baseline), and how an example is drawn."""

    short: str
    baseline: Setting
    changes: Mapping[str, tuple[Any, ...]]
    example: Generator


def setting(task: str, **changes: Any) -> Setting:
    """The baseline of a task with some fields changed. Raises GraphirError for an unknown task or field, or values that fit no example."""
    if task not in TASKS:
        raise GraphirError(
            Diagnostic("E0910", f"there is no task `{task}`", help=nearest(task, TASKS) or (f"there are {', '.join(TASKS)}",))
        )
    known = [f.name for f in fields(Setting) if f.name != "task"]
    for name in changes:
        if name not in known:
            raise GraphirError(Diagnostic("E0910", f"a task has no `{name}`", help=nearest(name, known) or (f"it has {', '.join(known)}",)))
    made = replace(TASKS[task].baseline, **changes)
    _check(made)
    return made


def _check(made: Setting) -> None:
    special = {"memorization": 1, "compression": 1, "selective-copying": 2, "fuzzy-in-context-recall": 1}.get(made.task, 0)
    needed = 2 * made.key_motif if "recall" in made.task else 2 if made.task == "memorization" else 1
    wrong = ""
    if made.train < 1 or made.test < 1:
        wrong = "a data set holds at least one example for training and one for testing"
    elif not 0 <= made.noise < 1 or (made.noise > 0 and made.noise_vocab < 1):
        wrong = f"`noise` is a share below 1 and needs `noise_vocab`, not {made.noise} with {made.noise_vocab} noise tokens"
    elif made.vocab - made.noise_vocab - special < needed:
        wrong = f"{made.vocab} tokens are too few for {made.task}"
    elif made.task in ("in-context-recall", "noisy-in-context-recall", "memorization") and (made.length % 2 or made.length < 4):
        wrong = f"a sequence of pairs has an even length from 4 up, not {made.length}"
    elif made.task == "selective-copying" and made.length <= 2 * made.copies + 1:
        wrong = f"{made.copies} tokens to copy need more than {2 * made.copies + 1} places, not {made.length}"
    elif made.task == "fuzzy-in-context-recall" and made.length <= 2 * (made.key_motif + made.value_motif):
        wrong = f"motifs of {made.key_motif} and {made.value_motif} tokens do not fit twice into {made.length}"
    elif made.length < 2:
        wrong = "a sequence has at least two tokens"
    if wrong:
        raise GraphirError(Diagnostic("E0910", wrong))


def difficulties(task: str) -> list[Setting]:
    """The baseline of a task and each change alone: the settings over which its published score is averaged."""
    known = TASKS[task]
    return [known.baseline, *(replace(known.baseline, **{name: value}) for name, values in known.changes.items() for value in values)]


def make(made: Setting, progress: Callable[[int, int], None] | None = None) -> Data:
    """All examples of a setting. `progress` is told how many of how many are done."""
    import numpy as np

    draws = Draws(np.random.default_rng(made.seed), np.random.RandomState(made.seed), _fixed_pairs(made))
    example = TASKS[made.task].example
    arrays = []
    for count, training in ((made.train, True), (made.test, False)):
        rows = []
        for place in range(count):
            rows.append(example(made, draws, training))
            if progress is not None:
                progress(place + 1 + (0 if training else made.train), made.train + made.test)
        arrays += [np.array([row[side] for row in rows], dtype=np.int64) for side in (0, 1)]
    return Data(made, *arrays)


def _pick(rng: np.random.Generator, items: Any) -> Any:
    """One of the items, with the draw that `Generator.choice` makes."""
    return items[int(rng.integers(0, len(items)))]


def _halves(count: int) -> tuple[range, range]:
    """The ids of keys and of values among `count` ids."""
    return range(count // 2), range(count // 2, count)


def _noise(made: Setting, first: int, size: int, rng: np.random.Generator) -> list[int]:
    return [first + int(i) for i in rng.integers(0, made.noise_vocab, size=size)]


def _recall(made: Setting, draws: Draws, training: bool) -> Example:
    """Pairs of a key and its value, drawn anew for each sequence when first met; scored where a key comes again, and at the probe."""
    rng = draws.rng
    plain = made.vocab - made.noise_vocab - (0 if made.multi_query else 1)
    keys, values = _halves(plain)
    value_of: dict[int, int] = {}
    inputs: list[int] = []
    targets: list[int] = []
    pairs = made.length // 2
    never_noise = int(rng.integers(0, pairs))
    for place in range(pairs - 1):
        if made.noise > 0 and place != never_noise and rng.random() < made.noise:
            inputs += _noise(made, plain, 2, rng)
            targets += [IGNORE, IGNORE]
            continue
        key = _pick(rng, keys)
        seen = key in value_of
        if not seen:
            value_of[key] = _pick(rng, values)
        inputs += [key, value_of[key]]
        targets += [IGNORE, value_of[key] if seen and made.multi_query else IGNORE]
    if not value_of:  # only the last pair was sure to be no noise, and it is the probe's
        raise GraphirError(
            Diagnostic(
                "E0910",
                f"seed {made.seed} gives a sequence of {made.length} tokens that is noise from end to end",
                help=("take a longer sequence or less noise",),
            )
        )
    probe = _pick(rng, list(value_of))
    prefix = [] if made.multi_query else [made.vocab - 1]
    inputs += [*prefix, probe, value_of[probe]]
    targets += [IGNORE] * (len(prefix) + 1) + [value_of[probe]]
    return inputs[:-1], inputs[1:] if training else targets[1:]


def _motifs(ids: range, longest: int, rng: np.random.Generator, shortest: int = 1) -> dict[int, list[tuple[int, ...]]]:
    """All ordered choices of 1, 2, ... ids, each list shuffled."""
    found = {}
    for size in range(shortest, longest + 1):
        found[size] = list(permutations(ids, size))
        rng.shuffle(found[size])
    return found


def _fuzzy(made: Setting, draws: Draws, training: bool) -> Example:
    """Recall with keys and values of several tokens. A probe pair stands somewhere and comes again at the end; test keys are all of full length."""
    rng = draws.rng
    plain = made.vocab - made.noise_vocab - (1 if made.multi_query else 2)
    keys = _motifs(_halves(plain)[0], made.key_motif, rng, 1 if training else made.key_motif)
    values = _motifs(_halves(plain)[1], made.value_motif, rng)

    def key_size() -> int:
        return _pick(rng, list(keys)) if training else made.key_motif

    probe_key_size, probe_value_size = key_size(), _pick(rng, list(values))
    probe_key, probe_value = _pick(rng, keys[probe_key_size]), _pick(rng, values[probe_value_size])
    probe_size = probe_key_size + probe_value_size
    probe_place = int(rng.integers(0, made.length - 2 * probe_size))

    value_of: dict[tuple[int, ...], tuple[int, ...]] = {}
    placed = False
    inputs: list[int] = []
    targets: list[int] = []
    while len(inputs) < made.length - probe_size - made.key_motif - made.value_motif:
        size, value_size = key_size(), _pick(rng, list(values))
        if not placed and len(inputs) >= probe_place:
            inputs += probe_key + probe_value
            targets += [IGNORE] * probe_size
            value_of[probe_key] = probe_value
            placed = True
            continue
        if made.noise > 0 and rng.random() < made.noise:
            inputs += _noise(made, plain, size + value_size, rng)
            targets += [IGNORE] * (size + value_size)
            continue
        key = _pick(rng, keys[size])
        seen = key in value_of
        if key == probe_key:
            value_of[key], placed = probe_value, True
        elif not seen:
            value_of[key] = _pick(rng, values[value_size])
        value = value_of[key]
        inputs += key + value
        targets += [IGNORE] * size + (list(value) if seen and made.multi_query else [IGNORE] * len(value))
    prefix = [] if made.multi_query else [made.vocab - 1]
    inputs += [*prefix, *probe_key, *probe_value]
    targets += [IGNORE] * (len(prefix) + probe_key_size) + list(probe_value)
    padding = made.length + 1 - len(inputs)
    inputs = [made.vocab - (1 if made.multi_query else 2)] * padding + inputs
    targets = [IGNORE] * padding + targets
    return inputs[:-1], inputs[1:] if training else targets[1:]


def _fixed_pairs(made: Setting) -> Mapping[int, int]:
    """The value of each key of the memorization task, the same in every sequence."""
    import numpy as np

    if made.task != "memorization":
        return {}
    rng = np.random.default_rng(made.seed)
    keys, values = ([motif[0] for motif in _motifs(ids, 1, rng)[1]] for ids in _halves(made.vocab - 1))
    return dict(zip(keys, values))


def _memorization(made: Setting, draws: Draws, training: bool) -> Example:
    """Known keys, each before a blank at which its value is asked."""
    import numpy as np

    draws.rng.integers(0, made.length // 2)  # the published code draws a place that noise would spare, and never uses it
    keys = list(draws.pairs)
    drawn = [_pick(draws.rng, keys) for _ in range(made.length // 2)]
    inputs = np.full(made.length, made.vocab - 1)
    inputs[::2] = drawn
    targets = np.full(made.length, IGNORE)
    targets[1::2] = [draws.pairs[key] for key in drawn]
    return inputs.tolist(), targets.tolist()


def _compression(made: Setting, draws: Draws, training: bool) -> Example:
    """Random tokens and a last one that marks the end; all are to be told again from the last place alone."""
    plain = made.vocab - 1 - made.noise_vocab
    inputs = [int(i) for i in draws.rng.integers(0, plain, size=made.length - 1)]
    for place in range(made.length - 1):
        if made.noise > 0 and draws.rng.random() < made.noise:
            inputs[place] = plain + int(draws.rng.integers(0, made.noise_vocab))
    inputs.append(made.vocab - 1)
    return inputs, list(inputs)


def _selective_copying(made: Setting, draws: Draws, training: bool) -> Example:
    """Tokens among blanks, then a mark, then blanks at which the tokens are to be told in order."""
    import numpy as np

    copy, blank = made.vocab - 1, made.vocab - 2
    tokens = draws.rng.integers(0, made.vocab - 2, size=made.copies)
    blanks = made.length - 2 * made.copies - 1
    spread = np.insert(tokens, draws.legacy.randint(0, made.copies, blanks), [blank] * blanks)
    inputs = [*spread.tolist(), copy, *[blank] * made.copies]
    return inputs, [IGNORE] * (made.length - made.copies) + tokens.tolist()


_FEWER = (6_400, 3_200, 1_600, 800)
TASKS: dict[str, Task] = {
    "in-context-recall": Task(
        "CR",
        Setting("in-context-recall"),
        {"vocab": (32, 64, 128), "length": (256, 512, 1024), "train": _FEWER},
        _recall,
    ),
    "noisy-in-context-recall": Task(
        "NR",
        Setting("noisy-in-context-recall", vocab=32, noise_vocab=16, noise=0.2),
        {"vocab": (48, 80, 144), "length": (256, 512, 1024), "train": _FEWER, "noise": (0.4, 0.6, 0.8)},
        _recall,
    ),
    "fuzzy-in-context-recall": Task(
        "FR",
        Setting("fuzzy-in-context-recall", key_motif=3, value_motif=3),
        {"vocab": (32, 64, 128), "length": (256, 512, 1024), "train": _FEWER},
        _fuzzy,
    ),
    "memorization": Task(
        "M", Setting("memorization", vocab=256, length=32, train=256), {"vocab": (512, 1024, 2048, 4096, 8192)}, _memorization
    ),
    "compression": Task(
        "C",
        Setting("compression", length=32),
        {"vocab": (32, 64, 128), "length": (64, 128, 256), "train": _FEWER},
        _compression,
    ),
    "selective-copying": Task(
        "SC",
        Setting("selective-copying", length=256, copies=16),
        {"vocab": (32, 64, 128), "length": (512, 1024), "train": _FEWER, "copies": (32, 64, 96)},
        _selective_copying,
    ),
}
