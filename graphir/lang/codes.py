"""The long story of each error code, for `graphir explain`: what it means, a wrong program and its mended form.

Where no program text alone can show the error, `bad` and `good` are empty and the text gives a command instead.
"""

from __future__ import annotations

from . import stories_names, stories_shapes, stories_syntax, stories_tools
from .story import Code

CODES: dict[str, Code] = {**stories_syntax.CODES, **stories_shapes.CODES, **stories_names.CODES, **stories_tools.CODES}
