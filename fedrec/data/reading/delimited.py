"""Delimited text: a fast path through Arrow, and a patient one that knows the line of every row and of every fault."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as arrow_csv

from fedrec.data.reading.columns import ColumnNames
from fedrec.data.reading.files import read_buffer
from fedrec.data.reading.problems import Problem, shown
from fedrec.errors import DataError

RawColumns = Mapping[str, pa.ChunkedArray]
"""Column name -> (n,) values as they stand in the file, checked for nothing but the shape of the file."""

_DELIMITERS = (",", "\t", "::", ";", "|")
_DOUBLE_COLON = "\x1f"  # what "::" is read as: Arrow and the csv module know delimiters of one character only
_CHUNK = 65_536


@dataclass(frozen=True, eq=False)
class TextTable:
    """A delimited text file, opened: its header is known, its body is not looked at yet.

    Args:
        path: the file.
        body: what comes after the header line.
        header: the names of all columns.
        columns: role -> column name, for the columns wanted.
        delimiter: one character.
        first_line: line number of the body's first line.
    """

    path: Path
    body: pa.Buffer
    header: tuple[str, ...]
    columns: Mapping[str, str]
    delimiter: str
    first_line: int


def open_text(
    path: Path, names: ColumnNames, header: Sequence[str] | None = None, delimiter: str | None = None
) -> TextTable:
    """Open a delimited text file.

    Args:
        path: a plain or gzip file.
        names: the columns wanted.
        header: names of the columns where the file has no header line.
        delimiter: what separates fields; found from the first line where None.

    Raises:
        DataError: where the file cannot be read or lacks a column.
    """
    buffer = read_buffer(path)
    start, first, end, line = _first_line(path, buffer)
    if delimiter is None:
        delimiter = _guess_delimiter(first, path, list(names.by_role().values()))
    if header is None:
        header = split_line(first, delimiter)
        columns, body, line = names.in_header(path, header, line), buffer[end:], line + 1
    else:
        columns, body = names.in_header(path, header, None), buffer[start:]
    if delimiter == "::":
        body, delimiter = pa.py_buffer(bytes(body).replace(b"::", _DOUBLE_COLON.encode())), _DOUBLE_COLON
    return TextTable(path, body, tuple(header), columns, delimiter, line)


def _first_line(path: Path, buffer: pa.Buffer) -> tuple[int, str, int, int]:
    """Return where the first line that is not blank starts, its text, where the next starts, and its line number."""
    head = bytes(buffer[: min(len(buffer), 2**20)])
    start = len(head) - len(head.removeprefix(b"\xef\xbb\xbf").lstrip(b"\r\n"))
    ends = [position for position in (head.find(b"\n", start), head.find(b"\r", start)) if position >= 0]
    end = min(ends, default=len(head))
    line = head[:start].count(b"\n") + 1
    try:
        text = head[start:end].decode("utf-8")
    except UnicodeDecodeError as error:
        byte = f"byte 0x{head[start:end][error.start]:02x} at position {error.start + 1}"
        raise DataError(Problem(path, byte, "UTF-8 text", "save the file as UTF-8", line)) from None
    end += 2 if head[end : end + 2] == b"\r\n" else 1
    return start, text, min(end, len(buffer)), line


def split_line(line: str, delimiter: str) -> list[str]:
    """Return the stripped fields of one line."""
    one = _DOUBLE_COLON if delimiter == "::" else delimiter
    fields = next(csv.reader([line.replace(delimiter, one)], delimiter=one), [])
    return [field.strip() for field in fields]


def _guess_delimiter(line: str, path: Path, names: Sequence[str]) -> str:
    """Choose the delimiter that shows most of the wanted names, else the one of the file's name, else the commonest."""
    by_suffix = "\t" if ".tsv" in path.suffixes or ".tab" in path.suffixes else ","

    def rank(delimiter: str) -> tuple[int, bool, int]:
        fields = split_line(line, delimiter)
        return len(set(names) & set(fields)), delimiter == by_suffix and len(fields) > 1, len(fields)

    return max(_DELIMITERS, key=rank)


def fast_columns(table: TextTable) -> RawColumns:
    """Read the wanted columns as text, all rows at once.

    Raises:
        pa.ArrowInvalid: on any row of a wrong shape and any text that is not UTF-8; `Scan` tells which.
    """
    wanted = list(table.columns.values())
    if not len(table.body):
        return {name: pa.chunked_array([], pa.string()) for name in wanted}
    read = arrow_csv.read_csv(
        pa.BufferReader(table.body),
        read_options=arrow_csv.ReadOptions(column_names=list(table.header)),
        parse_options=arrow_csv.ParseOptions(delimiter=table.delimiter, newlines_in_values=True),
        convert_options=arrow_csv.ConvertOptions(
            include_columns=wanted, column_types=dict.fromkeys(wanted, pa.string()), strings_can_be_null=False
        ),
    )
    return {name: read[name] for name in wanted}


@dataclass(frozen=True, eq=False)
class Scan:
    """A delimited text file gone through line by line.

    Args:
        columns: the wanted columns of the rows that have the right shape.
        lines: (n,) int64, the line on which each of those rows starts.
        problems: the first rows of a wrong shape.
        num_problems: how many there are.
    """

    columns: RawColumns
    lines: np.ndarray
    problems: tuple[Problem, ...]
    num_problems: int


def scan(table: TextTable, max_problems: int = 20) -> Scan:
    """Go through a file line by line; slow, for files on which the fast path failed and for `fedrec data check`."""
    index = [table.header.index(name) for name in table.columns.values()]
    chunks: list[list[pa.Array]] = [[] for _ in index]
    rows: list[list[str]] = []
    lines: list[int] = []
    problems: list[Problem] = []
    num_problems = 0

    def flush() -> None:
        for position, target in zip(index, chunks, strict=True):
            target.append(pa.array([row[position] for row in rows], pa.string()))
        rows.clear()

    for line, row in _records(table):
        problem = row if isinstance(row, Problem) else _shape_problem(table, line, row)
        if problem is None:
            rows.append(row)  # type: ignore[arg-type]
            lines.append(line)
            if len(rows) == _CHUNK:
                flush()
        else:
            num_problems += 1
            problems += [problem] if len(problems) < max_problems else []
    flush()
    columns = {n: pa.chunked_array(c, pa.string()) for n, c in zip(table.columns.values(), chunks, strict=True)}
    return Scan(columns, np.array(lines, dtype=np.int64), tuple(problems), num_problems)


def _records(table: TextTable) -> Iterator[tuple[int, list[str] | Problem]]:
    """Yield (line on which it starts, fields) of every record that is not blank."""
    text = io.TextIOWrapper(pa.BufferReader(table.body), encoding="utf-8", errors="surrogateescape", newline="")
    reader = csv.reader(text, delimiter=table.delimiter)
    while True:
        line = table.first_line + reader.line_num
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            action = "look for a double quote that is not closed"
            yield line, Problem(table.path, f"a row that cannot be read ({error})", "delimited text", action, line)
            continue
        if row:
            yield line, row


def _shape_problem(table: TextTable, line: int, row: list[str]) -> Problem | None:
    """Return what is wrong with the shape or the encoding of a row."""
    if len(row) != len(table.header):
        expected = f"{len(table.header)} ({', '.join(shown(name, 24) for name in table.header[:8])})"
        action = "correct the line; quote fields that hold the delimiter"
        if len(row) < len(table.header) and any("\n" in field for field in row):
            action = "look for a double quote that is not closed"
        return Problem(table.path, f"{len(row)} field{'s' * (len(row) != 1)}", expected, action, line)
    for name in table.columns.values():
        field = row[table.header.index(name)]
        escaped = next((i for i, c in enumerate(field) if "\udc80" <= c <= "\udcff"), None)
        if escaped is not None:
            byte = f"byte 0x{ord(field[escaped]) - 0xDC00:02x} at position {escaped + 1}"
            return Problem(table.path, byte, "UTF-8 text", "save the file as UTF-8 (is it latin-1?)", line, name)
    return None
