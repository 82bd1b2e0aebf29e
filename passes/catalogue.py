"""The passes by name, and the pipelines that are run unless another is asked for.

The order of the default: stitches first, since an open one has no final weights and the rest would have to look past it;
then `share`, so that equal calls are one before anything looks at who reads what; then `simplify`, whose removals bring
additions and norms together (it shares as it goes); `norm-fusion` last, as its fused nodes hide sums and norms from every other pass.

`DEFAULT` keeps every trained weight as it was declared, so state dicts of training and inference agree; `INFER` does too,
and leaves out what only training needs. `INFER_FOLDED` rewrites weights where that saves calls, and its state dict is its own;
it shares once more after folding, since norms that lost their scales may be equal now.
Each of them run a second time finds nothing to do. `lower` is in none of them: backends that want primitives ask for it.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..ir.graph import Graph
from .folding import INTO_CONVOLUTION, INTO_LINEARS, Fold, fold
from .lower import RULES as LOWERING
from .lower import lower
from .merge_projections import RULE as ONE_WIDE_LINEAR
from .merge_projections import merge_projections
from .norm_fusion import ONE_STATISTIC, SUM_AND_NORM, NormFusion, norm_fusion
from .partition import in_parts
from .pipeline import NoOptions, Pass
from .place import Place, place
from .report import Report
from .rewrite import dead_code as _dead_code
from .share import share
from .simplify import INFERENCE_RULES, Simplify, simplify
from .stitch import Stitch, stitch


def dead_code(graph: Graph, options: NoOptions, report: Report) -> Graph:
    """Nodes that no result needs go, and with them weights that nothing names."""
    return _dead_code(graph)


PASSES: Mapping[str, Pass] = {
    p.name: p
    for p in (
        Pass("stitch", stitch, Stitch),
        Pass("share", share),
        Pass("simplify", simplify, Simplify),
        Pass("norm-fusion", norm_fusion, NormFusion),
        Pass("fold", fold, Fold),
        Pass("merge-projections", merge_projections),
        Pass("lower", lower),
        Pass("place", place, Place),
        Pass("partition", in_parts),
        Pass("dead-code", dead_code),
    )
}

DEFAULT = "stitch,share,simplify,norm-fusion"
INFER = "stitch,share,simplify{mode=infer},norm-fusion"
INFER_FOLDED = "stitch,share,simplify{mode=infer},fold,share,merge-projections,norm-fusion"

RULES = tuple(
    sorted(
        {rule.__name__ for table in (LOWERING, INFERENCE_RULES) for rules in table.values() for rule in rules}
        | {INTO_CONVOLUTION, INTO_LINEARS, ONE_STATISTIC, ONE_WIDE_LINEAR, SUM_AND_NORM}
    )
)
"""The names of all rules that can tell why they did not apply."""
