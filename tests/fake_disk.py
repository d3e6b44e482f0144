"""A disk that forgets what was not synced: real files, beside a model of what a crash may leave of them.

Calls go through to a real file, which stands for the kernel's cache: a process that is killed loses nothing of it. The
model knows what is durable, and every write and truncation since. A power cut leaves of these, at random:

    content   for every block of a random length (1 byte to 4 KiB) what it was at any moment since the last `fsync`:
              old bytes, zeros where the file had grown, new bytes
    size      any that the file had since then, or passed through
    the file  itself only if its folder was synced; else perhaps

A `fsync` that fails has written any part of that, and the kernel takes the rest for written (as Linux does).
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from random import Random
from typing import Any

BLOCKS = (1, 7, 64, 512, 4096)


class Crash(BaseException):
    """The process or the machine stops: nothing catches it, and nothing that handles it has any effect."""


class Disk:
    """Stands in for the module `os` in code that writes one file.

    Args:
        path: the file; everything else goes to the real disk.
        rng: what happens follows from it.
        ignored: names of calls that return without any effect, as if the code under test had left them out.
    """

    def __init__(self, path: Path, rng: Random, ignored: frozenset[str] = frozenset()) -> None:
        self._path, self._rng, self._ignored = path, rng, ignored
        self._durable, self._named = b"", False
        self._pending: list[tuple[int, bytes | None]] = []  # (place, content), or (size, None)
        self._descriptors: set[int] = set()
        self._left: int | None = None
        self._dead = False
        self._failing = ""

    def crash_after(self, points: int | None) -> None:
        """Stop at one of the moments before, inside and after calls; None: never."""
        self._left = points

    def fail_next(self, call: str) -> None:
        """Let the next call of this name fail; "" takes it back."""
        self._failing = call

    def restart(self, power_cut: bool) -> None:
        """Start again after the process was killed or the power was cut."""
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()
        self._dead, self._left, self._failing = False, None, ""
        if not power_cut or not self._path.exists():
            return
        if self._named or self._rng.random() < 0.5:
            self._durable, self._named = self._survivor(), True
            self._path.write_bytes(self._durable)
        else:
            self._path.unlink()
        self._pending.clear()

    def open(self, path: Path, flags: int, mode: int = 0o777) -> int:
        """Open the file; a new one is not durable yet."""
        self._moment()
        if not path.exists():
            self._durable, self._named = b"", False
            self._pending.clear()
        descriptor = os.open(path, flags, mode)
        self._descriptors.add(descriptor)
        self._moment()
        return descriptor

    def close(self, descriptor: int) -> None:
        """Close the file; what a dead process closes is closed already."""
        if not self._dead:
            self._descriptors.discard(descriptor)
            os.close(descriptor)

    def pwrite(self, descriptor: int, content: bytes, place: int) -> int:
        """Write, sometimes less than all, as the call may."""
        self._moment()
        done = self._rng.randint(1, len(content)) if self._rng.random() < 0.1 else len(content)
        if stops := self._stops():
            done = self._rng.randint(0, len(content))
        if fails := self._fails("pwrite"):
            done = self._rng.randint(0, len(content) - 1)
        os.pwrite(descriptor, content[:done], place)
        self._pending.append((place, content[:done]))
        if fails and not stops:
            raise OSError(errno.ENOSPC, "No space left on device")
        if stops:
            raise Crash
        self._moment()
        return done

    def ftruncate(self, descriptor: int, size: int) -> None:
        """Truncate."""
        self._moment()
        os.ftruncate(descriptor, size)
        self._pending.append((size, None))
        self._moment()

    def fsync(self, descriptor: int) -> None:
        """Make durable what was written since the last time."""
        self._moment()
        if "fsync" not in self._ignored:
            fails = self._fails("fsync")
            self._durable = self._survivor() if fails else self._versions()[-1]
            self._pending.clear()
            if fails:
                raise OSError(errno.EIO, "Input/output error")
        self._moment()

    def sync_folder(self, folder: Path) -> None:
        """Make the name of the file durable; other folders don't matter to it."""
        if folder != self._path.parent:
            return
        self._moment()
        if "sync_folder" not in self._ignored:
            self._named = True
        self._moment()

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def _stops(self) -> bool:
        """Count a moment; return whether it is the last one."""
        if self._left is not None and not self._dead:
            self._left -= 1
            self._dead = self._left < 0
        return self._dead

    def _moment(self) -> None:
        if self._stops():
            raise Crash

    def _fails(self, call: str) -> bool:
        if self._failing != call:
            return False
        self._failing = ""
        return True

    def _versions(self) -> list[bytes]:
        """Return what the disk would hold after each thing that is pending, the durable content first."""
        versions = [self._durable]
        for place, content in self._pending:
            before = versions[-1]
            if content is None:
                versions.append(before[:place].ljust(place, b"\0"))
            else:
                versions.append(before[:place].ljust(place, b"\0") + content + before[place + len(content) :])
        return versions

    def _survivor(self) -> bytes:
        """Draw what is left of the file."""
        versions, rng = self._versions(), self._rng
        how, sizes = rng.random(), [len(version) for version in versions]
        if how < 0.2:
            return rng.choice((versions[0], versions[-1]))
        if how < 0.4:  # the writes in their order, up to some byte
            return rng.choice(versions)[: rng.randint(min(sizes), max(sizes))]
        if how < 0.5:  # the file has grown, its content is still to be written
            return versions[0].ljust(max(sizes), b"\0")
        size, block = rng.choice([*sizes, rng.randint(min(sizes), max(sizes))]), rng.choice(BLOCKS)
        starts = range(0, size, block)
        parts = (rng.choice(versions)[start : start + block].ljust(block, b"\0") for start in starts)
        return b"".join(parts)[:size]
