"""The folder that `graphir compile -o DIR` writes and `graphir.open(DIR)` reads.

config.json          format, versions, model, parameters, target, mode, passes, key
program/*.arch       the program and what it imports, to read and to compile again
graph.gir            the optimised graph: what is run
weights.safetensors  its weights, each once
summary.txt, graph.svg
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .ir.graph import Graph
from .lang.diagnostic import Diagnostic, GraphirError

FORMAT = 1
FILES = ("config.json", "graph.gir", "weights.safetensors")


@dataclass(frozen=True)
class Saved:
    """A compiled folder, read and verified."""

    graph: Graph
    weights_path: Path
    mode: str
    config: dict[str, Any]


def write_folder(
    folder: str | os.PathLike[str], graph: Graph, weights: Any, config: dict[str, Any], program: dict[str, str], extras: dict[str, str]
) -> None:
    """Write all files beside the target and rename the whole: an interrupted run leaves what was there. Raises GraphirError E0506."""
    from .backends.weights import save

    target = Path(folder)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_symlink() or (target.exists() and not target.is_dir()):
            raise GraphirError(Diagnostic("E0506", f"cannot write `{target}`: something else is there"))
        if target.is_dir() and any(target.iterdir()) and not _is_compiled(target):
            raise GraphirError(
                Diagnostic(
                    "E0506",
                    f"cannot write `{target}`: the folder holds other files",
                    help=("name a new folder, or one that an earlier compile wrote",),
                )
            )
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as temporary:
            fresh = Path(temporary) / "new"
            fresh.mkdir()
            for name, text in {"config.json": _config(graph, config), "graph.gir": str(graph) + "\n", **extras}.items():
                (fresh / name).write_text(text, encoding="utf-8")
            for name, text in program.items():
                place = fresh / "program" / name
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_text(text, encoding="utf-8")
            save(fresh / "weights.safetensors", weights, {"key": graph.key})
            _put(fresh, target)
    except OSError as e:
        raise GraphirError(Diagnostic("E0506", f"cannot write `{target}`: {(e.strerror or str(e)).lower()}")) from None


def _is_compiled(folder: Path) -> bool:
    """Whether an earlier compile wrote a folder: it has a graph, and a config.json of ours (others write files of that name)."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    versions = config.get("versions") if isinstance(config, dict) else None
    return isinstance(versions, dict) and "graphir" in versions and "format" in config and (folder / "graph.gir").is_file()


def _put(fresh: Path, target: Path) -> None:
    """Rename a folder to `target`. What was there is set aside, moved back if the second rename does not happen, and then deleted."""
    if not target.is_dir():
        os.replace(fresh, target)
        return
    aside = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.old."))
    try:
        os.replace(target, aside / "old")
        os.replace(fresh, target)
    finally:
        if not target.exists():
            os.replace(aside / "old", target)
        shutil.rmtree(aside, ignore_errors=True)


def _config(graph: Graph, config: dict[str, Any]) -> str:
    versions = {name: version(name) for name in ("graphir", "torch")}
    return (
        json.dumps(
            {"format": FORMAT, "versions": versions, "model": graph.name, "key": graph.key, "parameters": dict(graph.params), **config},
            indent=2,
        )
        + "\n"
    )


def read_folder(folder: str | os.PathLike[str]) -> Saved:
    """Read and verify a compiled folder. Raises GraphirError E0504 where it is not one."""
    from .bricks import catalogue  # noqa: F401
    from .bricks.declare import REGISTRY
    from .ir.text import read
    from .ir.verify import verify

    place = Path(folder)
    missing = [name for name in FILES if not (place / name).is_file()]
    if missing:
        raise GraphirError(
            Diagnostic(
                "E0504",
                f"`{place}` is no compiled model: it has no {', '.join(missing)}",
                help=("`graphir compile FILE -o FOLDER` makes one",),
            )
        )
    try:
        config = json.loads((place / "config.json").read_text(encoding="utf-8"))
        found = config["format"]
    except (ValueError, KeyError, TypeError, OSError):
        raise GraphirError(Diagnostic("E0504", f"`{place / 'config.json'}` is damaged")) from None
    if found != FORMAT:
        raise GraphirError(Diagnostic("E0504", f"`{place}` has format {found!r}; this graphir reads format {FORMAT}"))
    graph = read((place / "graph.gir").read_text(encoding="utf-8"))
    verify(graph, REGISTRY)
    return Saved(graph, place / "weights.safetensors", str(config.get("mode", "train")), config)


__all__ = ["FORMAT", "Saved", "read_folder", "write_folder"]
