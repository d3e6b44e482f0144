"""An append-only file of JSON lines, each on disk before `append` returns, each with a checksum over all lines so far.

A crash inside `append` leaves a last line without its newline. That call never returned, so what it would have allowed
never began: a piece of a record is dropped; a whole record that lacks only its newline is kept, for a ledger may count
too much but never too little. Anything else that does not verify is damage. The chain cannot see that whole lines are
missing at the end: whoever needs to know remembers the number of lines and the last checksum elsewhere. The checksum
has no key: it finds accidents and slips, not somebody who rewrites the file on purpose.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedrec.errors import PrivacyError
from fedrec.files import sync_folder

ADVICE = "training stops: restore the ledger from a backup, or start a new run and count this one as fully spent"
_HEX = re.compile(rb"[0-9a-f]")
_START = b'{"checksum":"' + b"0" * 64 + b'","payload":{'


class ChainedFile:
    """The file, locked for this process; `payloads` and `checksums` mirror its lines.

    Args:
        path: the file.
        header: payload of the first line of a new file; an old one keeps its own.
        must_exist: refuse to make a new file.

    Raises:
        PrivacyError: where the file is missing though it must exist, in use by another process, or damaged.

    Privacy:
        Holds what it is given; it must be given public values only.
    """

    def __init__(self, path: Path, header: Mapping[str, Any], must_exist: bool) -> None:
        self.path, self.payloads, self.checksums = path, list[dict[str, Any]](), list[str]()
        self._size, self._broken = 0, False
        if must_exist and not path.exists():
            raise PrivacyError(f"{path} is missing, but the checkpoint remembers it; {ADVICE}")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._lock()
            tail = self._read()
            if self.checksums:
                self._repair(tail)
            elif self._line(header)[0].startswith(tail):
                self.append(header)
            else:
                raise self.damage(1, "it is not the header of a ledger")
            os.fsync(self._file)  # what a killed process wrote may be read here, and still not be on disk
            sync_folder(path.parent)
        except BaseException:
            os.close(self._file)
            raise

    def append(self, payload: Mapping[str, Any]) -> None:
        """Add a record and return when it is on disk; where that fails, nothing was added."""
        if self._broken:
            raise PrivacyError(f"{self.path} is closed, or could not be written before; open it again")
        line, checksum = self._line(payload)
        try:
            self._write(line)
        except BaseException as error:
            self._undo()
            if isinstance(error, OSError):
                raise PrivacyError(
                    f"{self.path} can't be written ({error}); nothing was recorded, so nothing may happen: "
                    "make room on the disk and resume"
                ) from error
            raise
        self._size += len(line)
        self.payloads.append(dict(payload))
        self.checksums.append(checksum)

    def close(self) -> None:
        """Close the file, which ends the lock; a second call has no effect."""
        if self._file >= 0:
            os.close(self._file)
            self._file, self._broken = -1, True

    def damage(self, line: int, what: str) -> PrivacyError:
        """Make the error for a line that does not verify."""
        return PrivacyError(f"{self.path}, line {line}: {what}; {ADVICE}")

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise PrivacyError(
                f"{self.path} is in use by another process; one server at a time: stop the other one"
            ) from error

    def _line(self, payload: Mapping[str, Any]) -> tuple[bytes, str]:
        """Return the line that would come next with this payload, and its checksum."""
        canonical = json.dumps(payload, sort_keys=True, separators=(",", ":"), allow_nan=False)
        previous = self.checksums[-1] if self.checksums else ""
        digest = hashlib.blake2b((previous + canonical).encode(), digest_size=32, person=b"fedrec-ledger")
        return f'{{"checksum":"{digest.hexdigest()}","payload":{canonical}}}\n'.encode(), digest.hexdigest()

    def _read(self) -> bytes:
        """Verify and take in every whole line; return what follows the last newline."""
        with os.fdopen(os.dup(self._file), "rb") as file:
            *lines, tail = file.read().split(b"\n")
        for number, line in enumerate(lines, start=1):
            if not self._take(line):
                raise self.damage(number, "the record does not verify: it was changed, lost its neighbour or moved")
        return tail

    def _take(self, line: bytes) -> bool:
        """Take in a line without its newline if it is exactly the next record; return whether it is."""
        try:
            payload = json.loads(line)["payload"]
            expected, checksum = self._line(payload)
        except (ValueError, KeyError, TypeError):
            return False
        if expected != line + b"\n" or not isinstance(payload, dict):
            return False
        self._size += len(expected)
        self.payloads.append(payload)
        self.checksums.append(checksum)
        return True

    def _repair(self, tail: bytes) -> None:
        """Finish or drop what a crash in `append` left behind the last newline."""
        if not tail:
            return
        if self._take(tail):
            os.pwrite(self._file, b"\n", self._size - 1)
        elif _is_cut_short(tail):
            os.ftruncate(self._file, self._size)
        else:
            raise self.damage(len(self.checksums) + 1, "what follows the last whole record is not the start of another")

    def _write(self, line: bytes) -> None:
        """Write a line behind the last record and wait until it is on disk."""
        os.ftruncate(self._file, self._size)
        done = 0
        while done < len(line):
            done += os.pwrite(self._file, line[done:], self._size + done)
        os.fsync(self._file)

    def _undo(self) -> None:
        """Take back a write that failed; where even that fails, the file is used no more."""
        try:
            os.ftruncate(self._file, self._size)
            os.fsync(self._file)
        except OSError:
            self._broken = True


def _is_cut_short(tail: bytes) -> bool:
    """Return True if this can be the first part of a record, and does not hold a whole one."""
    start = _HEX.sub(b"0", _START[: len(tail)])
    if _HEX.sub(b"0", tail[: len(_START)]) != start or not all(32 <= byte < 127 for byte in tail):
        return False
    try:
        json.JSONDecoder().raw_decode(tail.decode("ascii"))
    except ValueError:
        return True
    return False
