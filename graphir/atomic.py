"""Writing files so that an interrupted or failed command leaves what was there: temporary file beside, fsync, rename."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

from .lang.diagnostic import Diagnostic, GraphirError


def write_atomic(path: str | os.PathLike[str], content: bytes | str) -> None:
    """Put `content` (text as UTF-8) at `path`, all or nothing. Raises GraphirError E0506.

    A target that exists must be a regular file: links and devices are refused, not followed and not replaced.
    """
    target = Path(path)
    data = content.encode("utf-8") if isinstance(content, str) else content
    try:
        _check(target)
        _replace(target, data)
    except OSError as e:
        raise _unwritable(target, e.strerror or type(e).__name__) from None


def _check(target: Path) -> None:
    try:
        mode = target.lstat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISREG(mode):
        return
    what = {stat.S_IFDIR: "a folder", stat.S_IFLNK: "a symbolic link"}.get(stat.S_IFMT(mode), "not a regular file")
    raise _unwritable(target, f"it is {what}")


def _replace(target: Path, data: bytes) -> None:
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, _mode(target))
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise
    _sync_folder(target.parent)


def _mode(target: Path) -> int:
    """What the file had, or what a plainly created one would get."""
    try:
        return stat.S_IMODE(target.stat().st_mode)
    except FileNotFoundError:
        mask = os.umask(0)
        os.umask(mask)
        return 0o666 & ~mask


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _unwritable(target: Path, why: str) -> GraphirError:
    return GraphirError(Diagnostic("E0506", f"cannot write `{target}`: {why}"))
