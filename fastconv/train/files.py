"""Files that are whole at any moment: a crash, a kill or a full disk leaves the old one or the new one."""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path

if sys.platform != "win32":
    import fcntl


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Replaces the file at ``path`` by ``data`` in one step.

    The bytes go to a temporary file in the same folder and from there to the disk, then it takes the name,
    then the folder goes to the disk. Temporaries that earlier, killed writers of the same file left behind
    are removed.

    Raises
    ------
    OSError
        The folder or the disk takes no more; the old file is as it was.
    """
    target = Path(os.path.realpath(path))  # through links: the file behind them is replaced, not the link
    try:
        _sweep(target)
        _write(target, data)
    except OSError as error:
        raise OSError(
            error.errno, error.strerror, str(target)
        ) from error  # it named the temporary, or no file


def _write(target: Path, data: bytes) -> None:
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            _lock(descriptor)
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(target.parent)


def _sweep(target: Path) -> None:
    """Removes the temporaries of ``target`` whose writer is gone: a living one holds a lock on its own."""
    prefix, suffix = f".{target.name}.", ".tmp"
    for path in target.parent.iterdir():
        token = path.name.removeprefix(prefix).removesuffix(suffix)
        if path.name != f"{prefix}{token}{suffix}" or len(token) != 16:
            continue
        try:
            if sys.platform != "win32":
                with path.open("rb") as file:
                    _lock(file.fileno())
            path.unlink()
        except OSError:  # in use (on Windows an open file cannot be removed), or swept by another process
            continue


def _lock(descriptor: int) -> None:
    """Locks the file for as long as it is open; `BlockingIOError` if another process holds it."""
    if sys.platform != "win32":
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _sync_folder(folder: Path) -> None:
    if sys.platform == "win32":  # has no such call, and keeps the order of renames in its journal
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
