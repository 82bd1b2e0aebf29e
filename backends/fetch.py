"""Fast ways to parts of a module in generated code.

`self.filter.router.linear.weight` makes torch look in vain for each segment before it asks the module's tables: three microseconds
a weight, more than a small product takes. The code that runs goes through the tables, `self._modules["filter"]...`, the
code that is shown (`module.code`) does not.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from torch.fx.graph import CodeGen, PythonCode

from .modules import LIKE, attribute

# Whole statements alone: what stands inside a string stands in no line of its own.
_FETCH = re.compile(r'^(    \w+ = )((?:getattr\()*self(?:\.\w+|, "[^"\\]*"\))+)(?=$|;|\()', re.MULTILINE)
_SEGMENT = re.compile(r'\.(\w+)|, "([^"\\]*)"\)')


class Fetching(CodeGen):
    """Code that fetches through the tables of modules while `quick` is set."""

    quick = False

    def _gen_python_code(self, *args: Any, **options: Any) -> PythonCode:
        code = super()._gen_python_code(*args, **options)
        return replace(code, src=quick(code.src)) if self.quick else code


def quick(source: str) -> str:
    """The source with ways to parts through `_modules`; a last segment that is fetched and not called stays an attribute."""
    return _FETCH.sub(_through_tables, source)


def _through_tables(found: re.Match[str]) -> str:
    segments = [a or b for a, b in _SEGMENT.findall(found[2])]
    called = found.string[found.end() : found.end() + 1] == "("
    last = "" if called else f".{segments.pop()}"
    return f"{found[1]}self{''.join(map(_step, segments))}{last}"


def _step(segment: str) -> str:
    """A part by its name in the table; one that has an alias (`lambda_`) is a plain, fast attribute by that."""
    aliased = segment.endswith("_") and attribute(segment[:-1]) == segment
    return f".{segment}" if aliased or segment == LIKE else f'._modules["{segment}"]'
