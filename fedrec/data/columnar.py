"""Columnar files: the histories of any number of users in a folder, mapped into memory instead of loaded.

    header.json       version, counts, and the type, length, size and checksum of every other file
    indptr.npy        (num_users + 1,) int64: the interactions of user u are rows indptr[u]:indptr[u + 1]
    items.npy         (n,) int32 item rows, sorted by user and, within a user, by time
    times.npy         (n,) int64 seconds; optional
    ratings.npy       (n,) float32; optional
    context-K.npy     (n,) int32 codes or float32 values of context field K; context-ids-K.npy names the codes
    attribute-K.npy   (num_users,) int32 codes of user attribute K; attribute-ids-K.npy names the codes
    user-ids.npy, item-ids.npy    the data's own ids, int64 or text

Only the pages that are used are read, and the operating system may drop them again. Files are written by
`fedrec.data.columnar_writer`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, NoReturn

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError

from fedrec.data.interactions import Interactions, Vocabulary
from fedrec.data.reading.problems import Problem, shown
from fedrec.errors import DataError

HEADER = "header.json"
CHUNK = 2**22
_WRITE_AGAIN = "write the folder again from its source"
_TYPES = {
    "indptr": ("int64",),
    "items": ("int32",),
    "times": ("int64",),
    "ratings": ("float32",),
    "context": ("int32", "float32"),
    "attribute": ("int32",),
    "ids": ("int64", "text"),
}


class FileHeader(BaseModel):
    """What a file must be: element type ("text" is numpy's fixed-width unicode), elements, bytes, BLAKE2b checksum."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dtype: str
    length: NonNegativeInt
    num_bytes: NonNegativeInt
    checksum: str


class Header(BaseModel):
    """`header.json`: counts, fields in the order of their files, and file name without ending -> what it is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["fedrec histories"] = "fedrec histories"
    version: Literal[1] = 1
    num_users: NonNegativeInt
    num_items: int = Field(ge=0, le=2**31 - 1)
    num_interactions: NonNegativeInt
    context: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()
    files: Mapping[str, FileHeader]

    @property
    def fingerprint(self) -> str:
        """Return a short hash of all counts and checksums: equal data has equal fingerprints."""
        return hashlib.blake2b(self.to_json().encode(), digest_size=8).hexdigest()

    def to_json(self) -> str:
        """Return the header as one JSON text with sorted keys."""
        unused = set() if self.attributes else {"attributes"}  # as folders were written before there were any
        return json.dumps(self.model_dump(mode="json", exclude=unused), sort_keys=True)


@dataclass(frozen=True, eq=False)
class StoredHistories:
    """Histories in mapped files; what `user_batches` and `make_batch` need, without loading.

    Args:
        folder: where the files lie.
        header: what they are.
        indptr: (num_users + 1,) int64, mapped.
        items: (n,) int32, mapped.
        times: (n,) int64 seconds, mapped, or None.
        ratings: (n,) float32, mapped, or None.
        context: name -> (n,) int32 codes or float32 values, mapped.
    """

    folder: Path
    header: Header
    indptr: np.ndarray
    items: np.ndarray
    times: np.ndarray | None
    ratings: np.ndarray | None
    context: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        """Return the number of interactions."""
        return self.header.num_interactions

    @property
    def num_users(self) -> int:
        """Return the number of users."""
        return self.header.num_users

    @property
    def num_items(self) -> int:
        """Return the number of items."""
        return self.header.num_items

    @property
    def num_bytes(self) -> int:
        """Return the size of all files but the header."""
        return sum(file.num_bytes for file in self.header.files.values())

    @property
    def lengths(self) -> np.ndarray:
        """Return (num_users,) int64: how many interactions each user has; worked out at each call, not kept."""
        return np.diff(self.indptr)

    @cached_property
    def user_ids(self) -> Vocabulary:
        """Return the vocabulary of the users; its index is in memory, some 50 bytes a user."""
        return Vocabulary(_mapped(self.folder, self.header, "user-ids"))

    @cached_property
    def item_ids(self) -> Vocabulary:
        """Return the vocabulary of the items."""
        return Vocabulary(_mapped(self.folder, self.header, "item-ids"))

    @cached_property
    def context_ids(self) -> Mapping[str, Vocabulary]:
        """Return name -> vocabulary of the categorical context fields."""
        return {
            name: Vocabulary(_mapped(self.folder, self.header, f"context-ids-{k}"))
            for k, name in enumerate(self.header.context)
            if f"context-ids-{k}" in self.header.files
        }

    @cached_property
    def user_attribute_ids(self) -> Mapping[str, Vocabulary]:
        """Return name -> vocabulary of the user attributes."""
        return {
            name: Vocabulary(_mapped(self.folder, self.header, f"attribute-ids-{k}"))
            for k, name in enumerate(self.header.attributes)
        }

    def to_interactions(self) -> Interactions:
        """Return the ordinary form: user and item rows in memory (16 bytes an interaction), times and ratings mapped.

        Raises:
            DataError: where an id stands twice.
        """
        return Interactions(
            users=np.repeat(np.arange(self.num_users), self.lengths),
            items=self.items.astype(np.int64),
            user_ids=self.user_ids,
            item_ids=self.item_ids,
            times=self.times,
            ratings=self.ratings,
            context={n: c.astype(np.int64) if c.dtype.kind == "i" else c for n, c in self.context.items()},
            context_ids=self.context_ids,
            user_attributes={
                name: _mapped(self.folder, self.header, f"attribute-{k}").astype(np.int64)
                for k, name in enumerate(self.header.attributes)
            },
            user_attribute_ids=self.user_attribute_ids,
        )

    def verify(self) -> None:
        """Read every byte and compare it with the checksums; opening looks at sizes, types and ranges only.

        Raises:
            DataError: naming the first file that is not as it was written.
        """
        for name, file in self.header.files.items():
            digest = hashlib.blake2b(digest_size=16)
            for part in chunks(_mapped(self.folder, self.header, name)):
                digest.update(part.tobytes())
            if digest.hexdigest() != file.checksum:
                _raise(self.folder / f"{name}.npy", "other bytes than were written", "the bytes of the checksum")


def open_columnar(folder: str | Path) -> StoredHistories:
    """Map the files of a folder into memory.

    Checked on opening: the header, that every file is there with its type, length and size, that `indptr` never falls,
    and that every item row and context code is in its range. The ranges are looked up in the data itself, chunk by
    chunk, not taken from the header: compiled kernels index with them. That costs one reading of the items (.1 s for
    10^8 of them where the file is cached). The bytes of the other columns are not read; see `StoredHistories.verify`.

    Args:
        folder: a folder that `write_columnar` wrote.

    Raises:
        DataError: naming the file, what was found, what is allowed and what to do.
    """
    folder = Path(folder).expanduser()
    header = _read_header(folder)
    _check_names(folder, header)
    columns = {name: _mapped(folder, header, name) for name in header.files}
    _check_indptr(folder, columns["indptr"], header.num_interactions)
    _check_range(folder, "items", columns["items"], header.num_items)
    for k in range(len(header.context)):
        if f"context-ids-{k}" in columns:
            _check_range(folder, f"context-{k}", columns[f"context-{k}"], len(columns[f"context-ids-{k}"]))
    for k in range(len(header.attributes)):
        _check_range(folder, f"attribute-{k}", columns[f"attribute-{k}"], len(columns[f"attribute-ids-{k}"]))
    return StoredHistories(
        folder=folder,
        header=header,
        indptr=columns["indptr"],
        items=columns["items"],
        times=columns.get("times"),
        ratings=columns.get("ratings"),
        context={name: columns[f"context-{k}"] for k, name in enumerate(header.context)},
    )


def is_columnar(path: Path) -> bool:
    """Tell whether a path is a folder with a header; the folder may still be damaged."""
    return (path / HEADER).is_file()


def chunks(column: np.ndarray) -> Iterator[np.ndarray]:
    """Go through a column in parts of bounded size."""
    for start in range(0, len(column), CHUNK):
        yield column[start : start + CHUNK]


def _raise(path: Path, found: str, allowed: str, action: str = _WRITE_AGAIN) -> NoReturn:
    raise DataError(Problem(path, found, allowed, action)) from None


def _read_header(folder: Path) -> Header:
    path = folder / HEADER
    if not folder.is_dir():
        _raise(folder, "no folder", "a folder of columnar files", "correct the path")
    if not path.is_file():
        _raise(folder, f"a folder without {HEADER}", "a folder whose writing was finished")
    try:
        header = Header.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        reason = str(error) if isinstance(error, OSError) else _first_error(error)
        _raise(path, shown(reason, 120), "a header of version 1")
    return header


def _first_error(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc'])) or 'the file'}: {first['msg']}"


def _check_names(folder: Path, header: Header) -> None:
    """Refuse files that are missing, unknown, or of another length than the counts say."""
    lengths = {"indptr": header.num_users + 1, "user-ids": header.num_users, "item-ids": header.num_items}
    fields = range(len(header.context))
    attributes = {f"{file}-{k}" for k in range(len(header.attributes)) for file in ("attribute", "attribute-ids")}
    lengths |= dict.fromkeys(attributes, header.num_users)
    needed = {"indptr", "items", "user-ids", "item-ids", *(f"context-{k}" for k in fields), *attributes}
    optional = {"times", "ratings", *(f"context-ids-{k}" for k in fields)}
    for name in sorted(needed - header.files.keys()):
        _raise(folder / HEADER, f"no entry for {name}.npy", "an entry for every file")
    for name, file in header.files.items():
        if name not in needed | optional:
            _raise(folder / HEADER, f"an entry {shown(name)}", ", ".join(sorted(needed | optional)))
        named = name.startswith(("context-ids-", "attribute-ids-"))
        wanted = file.length if named else lengths.get(name, header.num_interactions)
        if file.length != wanted:
            _raise(folder / HEADER, f"{file.length} elements of {name}", f"{wanted}, as the counts say")
        kind = "ids" if "ids" in name else name.split("-")[0]
        if file.dtype not in _TYPES[kind]:
            _raise(folder / HEADER, f"type {shown(file.dtype)} of {name}", " or ".join(_TYPES[kind]))
    for k in fields:
        codes, named = header.files[f"context-{k}"].dtype == "int32", f"context-ids-{k}" in header.files
        if codes != named:
            found = f"{'codes' if codes else 'values'} {'with' if named else 'without'} names in context field {k}"
            _raise(folder / HEADER, found, "names for codes and for nothing else")
    for kind, names in (("context fields", header.context), ("user attributes", header.attributes)):
        if len(set(names)) != len(names):
            _raise(folder / HEADER, f"{kind} {shown(names)}", "every name once")


def _mapped(folder: Path, header: Header, name: str) -> np.ndarray:
    """Map one file that the header names, after checking that it is what the header says."""
    path, file = folder / f"{name}.npy", header.files[name]
    try:
        num_bytes = path.stat().st_size
        if num_bytes != file.num_bytes:
            _raise(path, f"{num_bytes} bytes", f"{file.num_bytes}, as the header says")
        column = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        _raise(path, "no file", "the files that the header names")
    except (OSError, ValueError, EOFError) as error:
        _raise(path, shown(error, 120), "a .npy file")
    dtype = "text" if column.dtype.kind == "U" else column.dtype.name
    if dtype != file.dtype or not column.dtype.isnative or column.shape != (file.length,):
        _raise(path, f"{column.dtype} of shape {column.shape}", f"{file.dtype} of shape ({file.length},)")
    return np.asarray(column)


def _check_indptr(folder: Path, indptr: np.ndarray, num_interactions: int) -> None:
    path = folder / "indptr.npy"
    if indptr[0] != 0 or indptr[-1] != num_interactions:
        _raise(path, f"ends {indptr[0]} and {indptr[-1]}", f"0 and {num_interactions}, the number of interactions")
    for start in range(0, len(indptr), CHUNK):
        part = indptr[start : start + CHUNK + 1]
        falls = np.flatnonzero(part[1:] < part[:-1])
        if len(falls):
            user = start + int(falls[0])
            _raise(path, f"{indptr[user]} before {indptr[user + 1]} at user {user}", "numbers that never fall")


def _check_range(folder: Path, name: str, column: np.ndarray, num_rows: int) -> None:
    """Refuse rows or codes that do not stand in their vocabulary."""
    for part in chunks(column):
        if part.min() < 0 or part.max() >= num_rows:
            _raise(folder / f"{name}.npy", f"rows {part.min()}..{part.max()}", f"0..{num_rows - 1}")
