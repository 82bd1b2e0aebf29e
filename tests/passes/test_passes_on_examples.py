"""Every pass on the example programs at test sizes: same outputs in float64, nothing to do the second time."""

from __future__ import annotations

from pathlib import Path

import pytest

import graphir
from graphir.passes import DEFAULT, INFER, INFER_FOLDED, PASSES, Recipe, Verify, apply, run_pipeline

from oracle import assert_same, outputs, weights

EXAMPLES = Path(__file__).parents[2] / "examples"
SMALL = {
    "backends": {"vocab": 16, "d": 16, "heads": 2},
    "depths": {"vocab": 16, "d": 16, "n": 3},
    "fork_join": {},
    "graft": {},
    "hetero_moe": {"heads": 4},
    "host": {"vocab": 16, "d": 16, "heads": 2, "depth": 2},
    "lfm2": {"vocab": 16, "d": 32, "heads": 4, "kv": 2},
    "lora_shared": {"vocab": 16, "d": 16, "heads": 2, "depth": 3},
    "mla": {"vocab": 16, "d": 32, "n": 2},
    "odds": {},
    "t5": {"vocab": 16, "d": 16, "heads": 2, "ff": 16, "depth": 2},
    "two_towers": {"joint": 8},
    "unet": {"c": 8, "classes": 3},
    "xlstm_7_1": {"vocab": 16, "d": 16, "heads": 2, "groups": 1},
    "zamba": {"vocab": 16, "d": 64, "heads": 4, "n": 2},
}
SIZES = {"depths": {"T": 8}, "unet": {"H": 32, "W": 32}, "two_towers": {"H": 32, "W": 32}}


def test_every_example_is_here():
    known = {path.stem for path in EXAMPLES.glob("*.arch")}
    assert known - {"space"} == set(SMALL), "space.arch holds choices, and no graph before they are made"


@pytest.mark.parametrize("name", SMALL)
def test_examples_keep_their_meaning(name):
    graph = graphir.load(EXAMPLES / f"{name}.arch", **SMALL[name])
    tensors, sizes = weights(graph), SIZES.get(name)
    wanted = outputs(graph, 0, tensors, sizes=sizes)
    for text in [*PASSES, DEFAULT, INFER, INFER_FOLDED]:
        recipes: list[Recipe] = []
        after = run_pipeline(graph, text, [Verify()], recipes=recipes, crash_folder=None)
        if after is not graph:
            assert_same(wanted, outputs(after, 0, apply(recipes, tensors, after), sizes=sizes))
        assert run_pipeline(after, text, recipes=[], crash_folder=None) is after, text
