"""Programs from disk and from standard input: what is there is checked before it is read."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

from .diagnostic import Diagnostic, GraphirError
from .limits import DEFAULT, Limits
from .source import Source


def read_source(path: str | os.PathLike[str], limits: Limits = DEFAULT) -> Source:
    """The text of a file, or of standard input for `-`. Raises GraphirError: E0504 unreadable, E0505 not text, E0601 too large."""
    name = os.fspath(path)
    if name == "-":
        stream = getattr(sys.stdin, "buffer", None)
        content = stream.read(limits.file_bytes + 1) if stream else sys.stdin.read(limits.file_bytes + 1).encode("utf-8", "surrogatepass")
        return _source("<stdin>", content, limits)
    try:
        mode = os.stat(name).st_mode
        if not stat.S_ISREG(mode):
            raise GraphirError(_unreadable(name, _kind(mode)))
        with Path(name).open("rb") as file:
            return _source(name, file.read(limits.file_bytes + 1), limits)
    except (OSError, ValueError) as e:
        reason = e.strerror.lower() if isinstance(e, OSError) and e.strerror else "this is no path"
        raise GraphirError(_unreadable(name, reason)) from None


def _unreadable(name: str, reason: str) -> Diagnostic:
    near = _near(name) if reason.startswith("no such file") else ()
    help = near or ("give the path of an `.arch` file, or `-` for standard input",)
    return Diagnostic("E0504", f"cannot read `{name}`: {reason}", help=help)


def _kind(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "it is a directory"
    if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
        return "it is a device"
    return "it is a pipe" if stat.S_ISFIFO(mode) else "it is no regular file"


def _near(name: str) -> tuple[str, ...]:
    """A file beside it with the ending that was forgotten."""
    candidate = f"{name}.arch"
    return (f"did you mean `{candidate}`?",) if os.path.isfile(candidate) else ()


def _source(name: str, content: bytes, limits: Limits) -> Source:
    if len(content) > limits.file_bytes:
        help = ("split it into files that import each other",)
        raise GraphirError(Diagnostic("E0601", f"`{name}` is larger than {limits.file_bytes} bytes", help=help))
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as e:
        raise GraphirError(_not_text(name, content, e.start, f"byte 0x{content[e.start]:02x} is not UTF-8")) from None
    if "\0" in text:
        raise GraphirError(_not_text(name, content, content.index(0), "a NUL character stands there"))
    return Source(name, text)


def _not_text(name: str, content: bytes, at: int, what: str) -> Diagnostic:
    before = content[:at]
    line = before.count(b"\n") + 1
    column = len(before[before.rfind(b"\n") + 1 :].decode("utf-8", "replace")) + 1
    return Diagnostic("E0505", f"`{name}` is not text: at line {line}, column {column}, {what}", help=("save it as UTF-8",))
