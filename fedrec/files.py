"""Files that last: replaced at once, so that a crash leaves the old content or the new, or appended to."""

from __future__ import annotations

import os
from pathlib import Path

from fedrec.errors import ProtocolError


def replace_file(path: Path, content: bytes, mode: int = 0o644, durable: bool = True) -> None:
    """Write a temporary file beside `path`, flush it to disk and rename it over `path`.

    Args:
        path: file to replace; its folder must exist.
        content: the new content.
        mode: rights of the new file.
        durable: wait until the disk has it. Where False, a crash of the process still leaves the old or the new file,
            but a power cut may leave a damaged one: for what can be made again.

    Raises:
        ProtocolError: where the disk is full or the folder can't be written; the old file is then untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        if durable:
            sync_folder(path.parent)
    except OSError as error:
        raise ProtocolError(f"{path} can't be written ({error}); free space or fix rights, then resume") from error


def append_at(path: Path, place: int, content: bytes) -> None:
    """Cut a file off at `place` and write `content` there; it is on the disk when this returns.

    Args:
        path: file to append to, made where it is not there; its folder must exist.
        place: bytes to keep, at most the size of the file: what a crash left behind them goes.
        content: what to append; after a crash any part of it may be there, and nothing before it has changed.

    Raises:
        ProtocolError: where the disk is full or the file can't be written.
    """
    try:
        new = not path.exists()
        with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b") as file:
            file.truncate(place)
            file.seek(place)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if new:
            sync_folder(path.parent)
    except OSError as error:
        raise ProtocolError(f"{path} can't be written ({error}); free space or fix rights, then resume") from error


def sync_folder(folder: Path) -> None:
    """Make renames and new files in a folder last."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
