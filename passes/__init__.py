"""Graph to graph: the passes, the engine that runs them, and what watches them. No torch is loaded before tensors are."""

from .catalogue import DEFAULT, INFER, INFER_FOLDED, PASSES, RULES
from .crash import InternalError
from .engine import Event, Watcher, run_pipeline
from .pipeline import Pass, Pipeline, Step, parse
from .recipes import Recipe, apply, starting_weights
from .report import Refusal, Report
from .rewrite import Rewriter, dead_code, rewrite
from .share import share_equal_weights
from .stitch import show_stitches
from .watch import Diff, PrintAfter, Statistics, Timing, Verify

__all__ = [
    "DEFAULT", "INFER", "INFER_FOLDED", "PASSES", "RULES", "Diff", "Event", "InternalError", "Pass", "Pipeline", "PrintAfter", "Recipe",
    "Refusal", "Report", "Rewriter", "Statistics", "Step", "Timing", "Verify", "Watcher", "apply", "dead_code", "parse", "rewrite",
    "run_pipeline", "share_equal_weights", "show_stitches", "starting_weights",
]
