"""Archives: official downloads, verified by checksum and unpacked without trusting a path inside them."""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
import shutil
import tempfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from fedrec.errors import DataError

logger = logging.getLogger(__name__)

_TIMEOUT_SECONDS = 30
_BLOCK = 2**20


@dataclass(frozen=True)
class Archive:
    """An official zip archive.

    Args:
        url: where it is.
        checksum: "md5:..." or "sha256:...", or None where it changes and `checksum_url` holds it.
        files: base names of the files wanted from it.
        checksum_url: where the publisher keeps the MD5 of an archive that changes over time.
        max_bytes: refuse to download or unpack more than this.
    """

    url: str
    checksum: str | None
    files: Sequence[str]
    checksum_url: str | None = None
    max_bytes: int = 500_000_000


def download(name: str, archive: Archive, target: Path, advice: str) -> Path:
    """Download, verify and unpack an archive; `target` appears whole or not at all.

    Args:
        name: name of the data set, for messages.
        archive: what to download.
        target: the folder to make.
        advice: what to do by hand where this fails, for messages.

    Returns:
        `target`.

    Raises:
        DataError: without a network, on a wrong checksum or a damaged archive.
    """
    logger.info("downloading %s from %s to %s", name, archive.url, target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=target.parent) as scratch:
            packed, staging = Path(scratch) / "archive.zip", Path(scratch) / "files"
            staging.mkdir()
            expected = archive.checksum or "md5:" + _published_md5(archive)
            _fetch(archive, packed, expected)
            _unpack(archive, packed, staging)
            _move(staging, target)
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        reason = getattr(error, "reason", None) or error
        raise DataError(f"data set {name} cannot be downloaded from {archive.url} ({reason}); {advice}") from None
    except _BrokenArchive as error:
        raise DataError(f"data set {name}: {archive.url} {error}; try again, or {advice}") from None
    return target


class _BrokenArchive(Exception):
    """What came over the network is not the archive that was asked for."""


def _published_md5(archive: Archive) -> str:
    if archive.checksum_url is None:
        raise _BrokenArchive("has no checksum to verify it by")
    with urllib.request.urlopen(archive.checksum_url, timeout=_TIMEOUT_SECONDS) as response:
        words: list[str] = response.read(4096).decode("ascii", errors="replace").split()
    found = [word.lower() for word in words if len(word) == 32 and all(c in "0123456789abcdef" for c in word.lower())]
    if len(found) != 1:
        raise _BrokenArchive(f"has no readable MD5 at {archive.checksum_url}")
    return found[0]


def _fetch(archive: Archive, path: Path, expected: str) -> None:
    """Stream the archive to a file and compare its checksum."""
    algorithm, _, digest = expected.partition(":")
    hasher = hashlib.new(algorithm, usedforsecurity=False)
    size = 0
    with urllib.request.urlopen(archive.url, timeout=_TIMEOUT_SECONDS) as response, path.open("wb") as file:
        while block := response.read(_BLOCK):
            size += len(block)
            if size > archive.max_bytes:
                raise _BrokenArchive(f"is larger than {archive.max_bytes} bytes")
            hasher.update(block)
            file.write(block)
    if hasher.hexdigest() != digest:
        raise _BrokenArchive(f"has {algorithm} {hasher.hexdigest()}, expected {digest}")


def _unpack(archive: Archive, packed: Path, staging: Path) -> None:
    """Write the wanted files by their base names, so that no path inside the archive is ever used."""
    try:
        with zipfile.ZipFile(packed) as opened:
            members = {PurePosixPath(m.filename).name: m for m in opened.infolist() if not m.is_dir()}
            wanted = [members[name] for name in archive.files if name in members]
            if sum(member.file_size for member in wanted) > archive.max_bytes:
                raise _BrokenArchive(f"unpacks to more than {archive.max_bytes} bytes")
            for member in wanted:
                with opened.open(member) as source, (staging / PurePosixPath(member.filename).name).open("wb") as file:
                    shutil.copyfileobj(source, file, _BLOCK)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise _BrokenArchive(f"is not a whole zip archive ({error})") from None
    missing = [name for name in archive.files if name not in members]
    if missing:
        raise _BrokenArchive(f"lacks {', '.join(missing)}")


def _move(staging: Path, target: Path) -> None:
    """Put the folder in place in one step; a folder that another process finished meanwhile stays."""
    try:
        os.replace(staging, target)
    except OSError:
        if not (target.is_dir() and any(target.iterdir())):
            raise
        for file in staging.iterdir():
            os.replace(file, target / file.name)
