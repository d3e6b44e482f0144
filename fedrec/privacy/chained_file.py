"""An append-only file of JSON lines, each on disk before `append` returns, each with a checksum over all lines so far.

A record is written in two steps: its text with a zero byte behind it, `fsync`, and only then a newline over the zero
byte. So a newline says that the text before it had reached the disk, and the end of a file tells what happened:

    newline, verifies                   on disk: counts
    newline, does not verify            no crash leaves this: damage, training stops
    no newline, whole and verifies      on disk or nearly, and `append` may have returned: counts, gets its newline
    no newline, pieces of one record    `append` never returned, so what it would have allowed never began: dropped
    no newline, anything else           damage

Pieces are what a power cut makes of a record that was not synced: cut short anywhere, with zeros for any bytes (a file
may grow before its content is written), behind a record whose newline was not yet on disk either. Zeros elsewhere are
damage. A `fsync` that failed may have thrown away what it was to write: the record is taken back, and one that a killed
process left is written again before its newline. Where the disk fails twice in a row, the next reader may find damage.

Two things the chain cannot see. That the end is missing (whole lines, or a last line from its newline backwards):
whoever needs to know remembers the number of lines and the last checksum elsewhere. And somebody who rewrites the file
on purpose: the checksum has no key, it finds accidents and slips.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from fedrec.errors import PrivacyError
from fedrec.files import sync_folder

_LOG = logging.getLogger(__name__)
_HEX = re.compile(rb"[0-9a-f]")
_TEXT_START = len(b'{"checksum":"","payload":') + 64


class ChainedFile:
    """The file, locked for this process; `payloads` and `checksums` mirror its lines.

    Args:
        path: the file; made if it is not there.
        header: payload of the first line of a new file, with a "kind" and a "version"; an old one must have the same
            kind and version, and keeps the rest of its own.
        advice: what to do where the file is damaged.
        must_exist: refuse to make a new file.

    Raises:
        PrivacyError: where the file is missing though it must exist, in use by another process, damaged, of another
            kind or version, or can't be read and written.

    Privacy:
        Holds what it is given; it must be given public values only.
    """

    def __init__(self, path: Path, header: Mapping[str, Any], advice: str, must_exist: bool = False) -> None:
        self.path, self.payloads, self.checksums = path, list[dict[str, Any]](), list[str]()
        self._advice, self._size, self._file, self._usable = advice, 0, -1, True
        self._apply: Callable[[Mapping[str, Any]], None] = lambda payload: None
        if must_exist and not path.exists():
            raise PrivacyError(f"{path} is missing, but the checkpoint remembers it; {advice}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._lock()
            self._repair(self._read())
            if not self.checksums:
                self.append(header)
            self._check_header(header)
            os.fsync(self._file)  # what a killed process wrote may be read here, and still not be on disk
            if len(self.checksums) == 1:
                _sync_folders(path)
        except BaseException as error:
            self.close()
            if isinstance(error, OSError):
                raise self._unwritable(error) from error
            raise

    def replay(self, apply: Callable[[Mapping[str, Any]], None]) -> None:
        """Hand over every record behind the header, and from now on every new one once it is on disk.

        Raises:
            PrivacyError: where `apply` refuses a record: it could never have been written, so this is damage. The file
                is closed then.
        """
        for line, payload in enumerate(self.payloads[1:], start=2):
            try:
                apply(payload)
            except (KeyError, TypeError, ValueError, PrivacyError) as error:
                self.close()
                raise self.damage(line, f"the record makes no sense here ({error})") from error
        self._apply = apply

    def append(self, payload: Mapping[str, Any]) -> None:
        """Add a record and return when it is on disk and applied; where it can't be written, nothing was added.

        Raises:
            PrivacyError: where the disk failed, or the file is closed, or an earlier call was interrupted.
        """
        if not self._usable:
            raise PrivacyError(f"{self.path} is closed, or could not be written before; open it again")
        text = json.dumps(payload, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
        checksum = self._checksum(text)
        record = _record(checksum, text)
        self._usable = False  # an interrupt at any instruction from here on leaves the file to whoever opens it next
        try:
            self._write(record)
        except BaseException as error:
            self._undo()
            if isinstance(error, OSError):
                raise self._unwritable(error) from error
            raise
        self._keep(record, checksum, dict(payload))
        self._apply(payload)
        self._usable = True

    def close(self) -> None:
        """Close the file, which ends the lock; a second call has no effect."""
        if self._file >= 0:
            os.close(self._file)
        self._file, self._usable = -1, False

    def damage(self, line: int, what: str) -> PrivacyError:
        """Make the error for a line that does not verify."""
        return PrivacyError(f"{self.path}, line {line}: {what}; {self._advice}")

    def _unwritable(self, error: OSError) -> PrivacyError:
        return PrivacyError(
            f"{self.path} can't be written ({error}); nothing was recorded, so nothing may happen: "
            "make room on the disk, or make it writable, and resume"
        )

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise PrivacyError(f"{self.path} is in use by another process; stop that one, or wait for it") from error

    def _check_header(self, header: Mapping[str, Any]) -> None:
        found = self.payloads[0]
        if any(found.get(name) != header[name] for name in ("kind", "version")):
            wanted = f"kind {header['kind']!r}, version {header['version']}"
            raise self.damage(1, f"it is no first line of such a ledger ({wanted})")

    def _checksum(self, text: bytes) -> str:
        """Return the checksum of the next payload, over it and all before."""
        previous = self.checksums[-1] if self.checksums else ""
        return hashlib.blake2b(previous.encode() + text, digest_size=32, person=b"fedrec-ledger").hexdigest()

    def _read(self) -> bytes:
        """Verify and take in every line; return what follows the last newline."""
        with os.fdopen(os.dup(self._file), "rb") as file:
            *lines, tail = file.read().split(b"\n")
        for number, line in enumerate(lines, start=1):
            if not self._take(line):
                raise self.damage(number, "the record does not verify: it was changed, lost its neighbour or moved")
        return tail

    def _take(self, record: bytes) -> bool:
        """Take in a record if it is exactly the next one; return whether it is."""
        if not self._verifies(record):
            return False
        try:
            payload = json.loads(_text(record))
        except ValueError:
            return False
        if not isinstance(payload, dict):
            return False
        self._keep(record, self._checksum(_text(record)), payload)
        return True

    def _verifies(self, record: bytes) -> bool:
        return record == _record(self._checksum(_text(record)), _text(record))

    def _keep(self, record: bytes, checksum: str, payload: dict[str, Any]) -> None:
        self._size += len(record) + 1
        self.payloads.append(payload)
        self.checksums.append(checksum)

    def _repair(self, tail: bytes) -> None:
        """Finish or drop what a crash in `append` left behind the last newline; see the table at the top."""
        end, (last, _, behind) = self._size, tail.partition(b"\0")
        whole = self._take(last)
        pieces = (behind if whole else tail).rstrip(b"\0")
        if pieces and not _is_cut_short(pieces) and not (whole and self._verifies(pieces)):
            raise self.damage(len(self.checksums) + 1, "what follows the last whole record is not the start of another")
        if pieces:
            _LOG.warning("%s: dropped what a crash left of a record, for which nothing was done yet", self.path)
        if whole:
            self._put_text(last, end)
        if tail:
            os.ftruncate(self._file, self._size)
            os.fsync(self._file)
        if whole:
            self._put(b"\n", self._size - 1)

    def _write(self, record: bytes) -> None:
        """Write a record behind the last one, wait until it is on disk, and say so with its newline."""
        self._put_text(record, self._size)
        os.fsync(self._file)
        self._put(b"\n", self._size + len(record))

    def _put_text(self, record: bytes, place: int) -> None:
        """Write a record but for its newline, and the one before it again: a `fsync` that failed may have lost it."""
        newline = b"\n" if place else b""
        self._put(newline + record + b"\0", place - len(newline))

    def _put(self, content: bytes, place: int) -> None:
        done = 0
        while done < len(content):
            done += os.pwrite(self._file, content[done:], place + done)

    def _undo(self) -> None:
        """Take back a write that failed; where even that fails, the file is used no more."""
        with suppress(OSError):
            os.ftruncate(self._file, self._size)
            os.fsync(self._file)
            self._usable = True


def _record(checksum: str, text: bytes) -> bytes:
    return b'{"checksum":"' + checksum.encode() + b'","payload":' + text + b"}"


def _text(record: bytes) -> bytes:
    return record[_TEXT_START:-1]


def _is_cut_short(tail: bytes) -> bool:
    """Return True if this can be pieces of a record with zeros between them, and does not hold a whole one."""
    start = _HEX.sub(b"0", _record("0" * 64, b"{"))[:-1]
    fits = all(found in (0, wanted) for found, wanted in zip(_HEX.sub(b"0", tail), start, strict=False))
    if not fits or not all(byte == 0 or 32 <= byte < 127 for byte in tail):
        return False
    try:
        json.JSONDecoder().raw_decode(tail.decode("ascii"))
    except ValueError:
        return True
    return False


def _sync_folders(path: Path) -> None:
    """Make a new file last, and the folders around it that may be as new as it is."""
    for folder in path.absolute().parents:
        if not os.access(folder, os.R_OK | os.W_OK):
            break
        sync_folder(folder)
        if os.path.ismount(folder):
            break
