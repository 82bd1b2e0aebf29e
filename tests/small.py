"""Parameters and sizes at which the examples are quick to run."""

from __future__ import annotations

from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "examples"
SMALL = {
    "backends": {"d": 32},
    "depths": {"d": 32, "n": 1, "vocab": 32},
    "host": {"d": 32, "depth": 2},
    "lfm2": {"vocab": 64, "d": 32, "heads": 4, "kv": 2},
    "lora_shared": {"d": 32, "depth": 2},
    "mla": {"vocab": 64, "d": 32, "n": 2},
    "t5": {"vocab": 64, "d": 32, "heads": 4, "ff": 64, "depth": 2},
    "unet": {"c": 16},
    "xlstm_7_1": {"vocab": 64, "d": 32, "groups": 1},
    "zamba": {"vocab": 64, "d": 32, "heads": 4, "n": 1},
}
SIZES = {"unet": {"H": 32, "W": 32}, "two_towers": {"H": 32, "W": 32}}
