"""Files: whole files as bytes or text, plain or gzip, with one clear error where that cannot be."""

from __future__ import annotations

import gzip
import os
import zlib
from pathlib import Path

import pyarrow as pa

from fedrec.data.reading.problems import Problem, nearest, shown
from fedrec.errors import DataError

_GZIP = b"\x1f\x8b"
_PARQUET = b"PAR1"
_OTHER_FORMATS = {
    b"PK\x03\x04": "a zip archive or Excel workbook",
    b"\xfd7zXZ": "an xz archive",
    b"BZh": "a bzip2 archive",
    b"\x28\xb5\x2f\xfd": "a zstd archive",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook",
    b"\x89HDF": "an HDF5 file",
    b"ARROW1": "an Arrow file",
    b"SQLite": "an SQLite database",
    b"%PDF": "a PDF",
}
_TEXT = "CSV or TSV text in UTF-8, plain or gzip, or Parquet"


def whole_file(path: Path, found: str, allowed: str, action: str) -> DataError:
    """Make the error that says what is wrong with a file as a whole."""
    return DataError(Problem(path, found, allowed, action))


def require_file(path: Path) -> Path:
    """Return the path of a file that can be read and is not empty.

    Raises:
        DataError: where there is no such file, or it is a folder, unreadable or empty.
    """
    if path.is_dir():
        raise whole_file(path, "a folder", "a file", f"name one of its files, such as {_example(path)}")
    if not path.exists():
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        hint = nearest(path.name, siblings)
        action = f"nearest in that folder is {hint!r}" if hint else "check the path"
        raise whole_file(path, "no such file", "a file that exists", action)
    if not os.access(path, os.R_OK):
        raise whole_file(path, "a file that may not be read", "a readable file", "change its permissions")
    if path.stat().st_size == 0:
        raise whole_file(path, "an empty file (0 bytes)", _TEXT, "write a header line and the interactions")
    return path


def _example(folder: Path) -> str:
    names = sorted(p.name for p in folder.iterdir() if p.is_file())
    return repr(names[0]) if names else "none (the folder is empty)"


def is_parquet(path: Path) -> bool:
    """Tell whether a file claims to be Parquet, by its first bytes or its name."""
    return path.suffix.lower() in (".parquet", ".pq") or _head(path).startswith(_PARQUET)


def _head(path: Path, size: int = 4096) -> bytes:
    with path.open("rb") as file:
        return file.read(size)


def read_buffer(path: Path) -> pa.Buffer:
    """Return the content of a text file, unpacked if it is gzip and memory-mapped if it is plain.

    Raises:
        DataError: where the file is missing, empty, a broken gzip, or not text at all.
    """
    head = _head(require_file(path))
    if head.startswith(_GZIP):
        buffer = pa.py_buffer(_gunzip(path))
        head = bytes(buffer[:4096])
    elif path.suffix.lower() == ".gz":
        raise whole_file(
            path, f"first bytes {shown(head[:4])}, which is not gzip", "a gzip file", "gzip it, or rename it"
        )
    else:
        buffer = pa.memory_map(str(path)).read_buffer()
    for magic, name in _OTHER_FORMATS.items():
        if head.startswith(magic):
            raise whole_file(path, name, _TEXT, "unpack or export it first")
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise whole_file(path, "UTF-16 text", _TEXT, "save it as UTF-8")
    if b"\0" in head:
        line = head[: head.index(b"\0")].count(b"\n") + 1
        raise DataError(Problem(path, "a zero byte: binary data", _TEXT, "give the exported text file", line))
    if not head.strip():
        raise whole_file(path, "nothing but blank lines", _TEXT, "write a header line and the interactions")
    return buffer


def _gunzip(path: Path) -> bytes:
    try:
        return gzip.decompress(path.read_bytes())
    except EOFError:
        raise whole_file(
            path, "a gzip file that ends too early", "a whole gzip file", "copy or download it again"
        ) from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise whole_file(
            path, f"a damaged gzip file ({error})", "a whole gzip file", "copy or download it again"
        ) from None


def read_text(path: Path) -> str:
    """Return a text file in UTF-8, or in latin-1 where it is not UTF-8 (old GroupLens files)."""
    raw = bytes(read_buffer(path))
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file.

    Lines end at line feeds only: latin-1 texts hold characters such as U+0085 that `str.splitlines` would break at.
    """
    lines = [line.removesuffix("\r") for line in read_text(path).split("\n")]
    return lines[:-1] if lines and not lines[-1] else lines
