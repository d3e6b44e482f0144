"""Writing columnar files: a stream of interactions becomes a folder in bounded memory, whole or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import numpy as np

from fedrec.data.batches import Columns
from fedrec.data.columnar import CHUNK, HEADER, FileHeader, Header, StoredHistories, open_columnar
from fedrec.data.interactions import Interactions, Vocabulary, in_order
from fedrec.errors import DataError
from fedrec.files import replace_file, sync_folder

Attributes = Mapping[str, tuple[np.ndarray, Vocabulary]]
"""Name of a user attribute -> (num_users,) codes and the vocabulary that they stand in."""


class Rows(Columns, Protocol):
    """Some interactions in a row, sorted by user and, within a user, by time; `Interactions` are such rows, too."""

    @property
    def users(self) -> np.ndarray:
        """Return (n,) whole numbers: rows of the users, ascending."""
        ...


def write_columnar(
    folder: str | Path,
    rows: Iterable[Rows],
    user_ids: Vocabulary,
    item_ids: Vocabulary,
    context_ids: Mapping[str, Vocabulary] | None = None,
    attributes: Attributes | None = None,
) -> StoredHistories:
    """Write interactions as columnar files and open them.

    The files are written to a hidden folder beside `folder`, flushed to disk, and renamed; the header comes last. A
    writer that was killed leaves at most that hidden folder (".NAME.partial-..."), which cannot be opened and may be
    deleted.

    Args:
        folder: where the files shall lie; must not exist yet. Its parent must.
        rows: parts of the interactions; users ascend over all parts, and a user may go on in the next one.
        user_ids: vocabulary of all users; a user may have no interaction.
        item_ids: vocabulary of all items.
        context_ids: name -> vocabulary of the categorical context fields; fields without one are numbers.
        attributes: what is known of the users themselves.

    Raises:
        DataError: where the folder exists, a part is out of order or range, the parts have different columns, or the
            disk does not take the files.
    """
    folder = Path(folder).expanduser()
    if folder.exists():
        raise DataError(f"{folder} exists; columnar files go to a new folder: delete it or give another path")
    try:
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.partial-", dir=folder.parent))
        try:
            header = _write_files(partial, rows, user_ids, item_ids, context_ids or {}, attributes or {})
            replace_file(partial / HEADER, header.to_json().encode())
            partial.chmod(0o755)
            os.rename(partial, folder)
            sync_folder(folder.parent)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    except OSError as error:
        raise DataError(f"{folder} can't be written ({error}); free space or fix rights, then write again") from error
    return open_columnar(folder)


def store_interactions(folder: str | Path, interactions: Interactions) -> StoredHistories:
    """Write interactions that are in memory as columnar files; see `write_columnar`."""
    attributes = {
        name: (codes, interactions.user_attribute_ids[name]) for name, codes in interactions.user_attributes.items()
    }
    ids = (interactions.user_ids, interactions.item_ids, interactions.context_ids)
    return write_columnar(folder, [interactions], *ids, attributes)


def _write_files(
    folder: Path,
    rows: Iterable[Rows],
    user_ids: Vocabulary,
    item_ids: Vocabulary,
    context_ids: Mapping[str, Vocabulary],
    attributes: Attributes,
) -> Header:
    """Write every file but the header, and return what it shall say."""
    counts = np.zeros(len(user_ids), dtype=np.int64)
    fields: tuple[str, ...] | None = None
    order = _Order()
    with ExitStack() as stack:
        files: dict[str, _ColumnFile] = {}

        def add(columns: Mapping[str, np.ndarray]) -> None:
            for name in columns.keys() - files.keys():
                files[name] = stack.enter_context(_ColumnFile(folder / f"{name}.npy", columns[name].dtype))
            for name, column in columns.items():
                files[name].append(column)

        for users, context, columns in _pieces(rows, len(item_ids), context_ids):
            fields = context if fields is None else fields
            if fields != context or (files and files.keys() != columns.keys()):
                raise DataError(f"a part has columns {sorted(columns)}, those before {sorted(files)}; they must agree")
            _check_rows("users", users, len(user_ids))
            order.check(users, columns.get("times"))
            counts += np.bincount(users, minlength=len(counts))
            add(columns)
        add({} if files else {"items": np.empty(0, dtype=np.int32)})
        add({"indptr": np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)})
        add({"user-ids": _ids(user_ids), "item-ids": _ids(item_ids)})
        add({f"context-ids-{k}": _ids(context_ids[n]) for k, n in enumerate(fields or ()) if n in context_ids})
        for k, (name, (codes, ids)) in enumerate(attributes.items()):
            if len(codes) != len(user_ids):
                raise DataError(f"user attribute {name} has {len(codes)} rows, there are {len(user_ids)} users")
            codes = _check_rows(f"user attribute {name!r}", codes, len(ids)).astype(np.int32)
            add({f"attribute-{k}": codes, f"attribute-ids-{k}": _ids(ids)})
        return Header(
            num_users=len(user_ids),
            num_items=len(item_ids),
            num_interactions=int(counts.sum()),
            context=fields or (),
            attributes=tuple(attributes),
            files={name: file.finish() for name, file in files.items()},
        )


def _pieces(
    rows: Iterable[Rows], num_items: int, context_ids: Mapping[str, Vocabulary]
) -> Iterator[tuple[np.ndarray, tuple[str, ...], dict[str, np.ndarray]]]:
    """Cut the parts into pieces of bounded size: users, names of the context fields, and file name -> its column."""
    for part in rows:
        for start in range(0, max(len(part.users), 1), CHUNK):
            piece = slice(start, start + CHUNK)
            columns = {"items": _check_rows("items", part.items[piece], num_items).astype(np.int32)}
            if part.times is not None:
                columns["times"] = part.times[piece].astype(np.int64, casting="same_kind")
            if part.ratings is not None:
                columns["ratings"] = part.ratings[piece].astype(np.float32, casting="same_kind")
            for k, (name, column) in enumerate(part.context.items()):
                columns[f"context-{k}"] = _context(name, column[piece], context_ids)
            users = part.users[piece]
            for name, column in columns.items():
                if len(column) != len(users):
                    raise DataError(f"column {name} has {len(column)} rows, users has {len(users)}; they must agree")
            yield users, tuple(part.context), columns


def _context(name: str, column: np.ndarray, context_ids: Mapping[str, Vocabulary]) -> np.ndarray:
    if name in context_ids:
        return _check_rows(f"context {name!r}", column, len(context_ids[name])).astype(np.int32)
    if column.dtype.kind != "f":
        raise DataError(f"context {name!r} holds {column.dtype} and has no vocabulary; name its codes or give floats")
    return column.astype(np.float32)


def _check_rows(name: str, rows: np.ndarray, num_ids: int) -> np.ndarray:
    """Return the rows unless one of them does not stand in its vocabulary."""
    if rows.dtype.kind not in "iu":
        raise DataError(f"{name} holds {rows.dtype}, allowed are whole numbers; give rows of the vocabulary")
    if len(rows) and (rows.min() < 0 or rows.max() >= num_ids):
        raise DataError(f"{name} holds rows {rows.min()}..{rows.max()}, allowed are 0..{num_ids - 1}")
    return rows


def _ids(vocabulary: Vocabulary) -> np.ndarray:
    """Return ids as int64, or as text of one width."""
    ids = vocabulary.ids
    return ids.astype(np.int64) if ids.dtype.kind in "iu" else ids.astype(np.str_)


class _Order:
    """Checks that users, and the times of each user, ascend over all pieces."""

    def __init__(self) -> None:
        self._last: tuple[np.ndarray, np.ndarray | None] | None = None

    def check(self, users: np.ndarray, times: np.ndarray | None) -> None:
        """Raise DataError where a row stands before the row that it follows."""
        if not len(users):
            return
        last = (users[-1:].copy(), None if times is None else times[-1:].copy())
        if self._last is not None:
            users = np.concatenate([self._last[0], users])
            times = None if times is None or self._last[1] is None else np.concatenate([self._last[1], times])
        self._last = last
        if not in_order(users, times):
            raise DataError("interactions are not sorted by user and time; sort them before they are written")


class _ColumnFile:
    """A .npy file that grows: numpy leaves room in its header for the final length."""

    def __init__(self, path: Path, dtype: np.dtype) -> None:
        self._path, self._dtype = path, dtype
        self._length = 0
        self._checksum = hashlib.blake2b(digest_size=16)
        self._file = path.open("wb")
        self._write_header()

    def __enter__(self) -> _ColumnFile:
        return self

    def __exit__(self, *error: object) -> None:
        """Close the file, finished or not."""
        self._file.close()

    def append(self, column: np.ndarray) -> None:
        """Add values at the end."""
        content = np.ascontiguousarray(column, dtype=self._dtype).data.cast("B") if len(column) else b""
        self._checksum.update(content)
        self._file.write(content)
        self._length += len(column)

    def finish(self) -> FileHeader:
        """Write the length into the header of the file, flush it to disk and describe it."""
        num_bytes = self._file.tell()
        self._file.seek(0)
        self._write_header()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        kind = "text" if self._dtype.kind == "U" else self._dtype.name
        return FileHeader(dtype=kind, length=self._length, num_bytes=num_bytes, checksum=self._checksum.hexdigest())

    def _write_header(self) -> None:
        descr = np.lib.format.dtype_to_descr(self._dtype)
        shape = {"descr": descr, "fortran_order": False, "shape": (self._length,)}
        np.lib.format.write_array_header_1_0(self._file, shape)
