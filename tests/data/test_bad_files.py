"""Bad files: every kind of fault is named with file, line and column, what is allowed and what to do."""

from __future__ import annotations

import gzip
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest

from fedrec.data.check import check_file
from fedrec.data.sources import load
from fedrec.errors import DataError

HEAD = "user,item,timestamp,rating\n"
GOOD = HEAD + "1,10,1000,5\n1,11,2000,4\n2,10,1500,3\n"

# name -> (content, line, column, words of the message)
TEXTS: dict[str, tuple[str | bytes, int | None, str | None, str]] = {
    "empty file": (b"", None, None, "0 bytes"),
    "blank lines only": ("\n\n  \n", None, None, "blank lines"),
    "header only": (HEAD, None, None, "no interactions"),
    "header without line end": (HEAD.strip(), None, None, "no interactions"),
    "no user column": ("uid,item\n1,2\n", 1, "user", "no column 'user'"),
    "nearest column": ("user,Item_ID\n1,2\n", 1, "item", "nearest is 'Item_ID'"),
    "no header": ("196,242,3,881250949\n186,302,3,891717742\n", 1, "user", "add a header line"),
    "a name twice": ("user,item,item\n1,2,3\n", 1, "item", "2 times"),
    "text as time": (GOOD + "2,11,yesterday,3\n", 5, "timestamp", "'yesterday'"),
    "impossible date": (GOOD + "2,11,2024-02-30,3\n", 5, "timestamp", "'2024-02-30'"),
    "local date": (GOOD + "2,11,01/02/2024,3\n", 5, "timestamp", "ISO 8601"),
    "word that pandas reads as a time": (GOOD + "2,11,now,3\n", 5, "timestamp", "'now'"),
    "negative time": (GOOD + "2,11,-5,3\n", 5, "timestamp", "'-5'"),
    "hexadecimal time": (GOOD + "2,11,0x10,3\n", 5, "timestamp", "'0x10'"),
    "infinite time": (GOOD + "2,11,inf,3\n", 5, "timestamp", "'inf'"),
    "time beyond int64": (GOOD + "2,11,99999999999999999999,3\n", 5, "timestamp", "'99999999999999999999'"),
    "text as rating": (GOOD + "2,11,1000,good\n", 5, "rating", "'good'"),
    "decimal comma": (GOOD + '2,11,1000,"4,5"\n', 5, "rating", "'4,5'"),
    "negative rating": (GOOD + "2,11,1000,-1\n", 5, "rating", "'-1'"),
    "infinite rating": (GOOD + "2,11,1000,inf\n", 5, "rating", "a finite number"),
    "rating beyond float32": (GOOD + "2,11,1000,1e300\n", 5, "rating", "'1e300'"),
    "empty rating": (GOOD + "2,11,1000,\n", 5, "rating", "found nothing"),
    "empty user": (GOOD + ",11,1000,3\n", 5, "user", "found nothing"),
    "blank item": (GOOD + "2,  ,1000,3\n", 5, "item", "fill in the id"),
    "NaN user": (GOOD + "nan,11,1000,3\n", 5, "user", "'nan'"),
    "NULL item": (GOOD + "2,NULL,1000,3\n", 5, "item", "'NULL'"),
    "id beyond int64": (GOOD + "99999999999999999999,11,1000,3\n", 5, "user", "9223372036854775807"),
    "endless id": (GOOD + "x" * 300 + ",11,1000,3\n", 5, "user", "300 characters"),
    "control character in an id": (GOOD + "a\x07b,11,1000,3\n", 5, "user", "control characters"),
    "field missing": (GOOD + "2,11,1000\n", 5, None, "3 fields"),
    "field too many": (GOOD + "2,11,1000,3,9\n", 5, None, "5 fields"),
    "line cut off": (GOOD + "2,1", 5, None, "2 fields"),
    "quote never closed": (GOOD + '2,"11,1000,3\n3,12,1000,3\n', 5, None, "double quote"),
    "latin-1 in an id": (GOOD.encode() + b"caf\xe9,11,1000,3\n", 5, "user", "byte 0xe9 at position 4"),
    "latin-1 in the header": (b"us\xe9r,item\n1,2\n", 1, None, "byte 0xe9"),
    "UTF-16": (GOOD.encode("utf-16"), None, None, "UTF-16"),
    "zero bytes": (GOOD.encode() + b"\x00\x01\x02\x03", 5, None, "binary data"),
    "binary garbage": (bytes(range(256)) * 40, 1, None, "binary data"),
    "zip archive": (b"PK\x03\x04" + b"\0" * 100, None, None, "zip archive"),
    "gzip with the wrong name": (gzip.compress(b""), None, None, "blank lines"),
    "blank lines are counted": ("\n" + HEAD + "\n1,10,1000,5\n\n2,10,soon,4\n", 6, "timestamp", "'soon'"),
    "lines within quotes are counted": (
        'user,item,timestamp,rating,note\n1,10,1000,5,"two\nlines"\n2,10,soon,4,x\n',
        4,
        "timestamp",
        "'soon'",
    ),
    "Windows line ends": (GOOD.replace("\n", "\r\n") + "2,11,soon,3\r\n", 5, "timestamp", "'soon'"),
    "byte order mark": (b"\xef\xbb\xbf" + GOOD.encode() + b"2,11,soon,3\n", 5, "timestamp", "'soon'"),
}


@pytest.mark.parametrize("kind", TEXTS)
def test_a_fault_is_named_by_line_and_column(kind: str, write) -> None:
    content, line, column, words = TEXTS[kind]
    path = write(content)
    with pytest.raises(DataError) as raised:
        load(path=path)
    message = str(raised.value)
    assert message.startswith(str(path))
    assert (f", line {line}" in message) if line is not None else (", line " not in message)
    assert (f", column {column!r}:" in message) if column is not None else ("column '" not in message.split(":")[0])
    assert words in message and "; allowed: " in message
    assert "\n" not in message


@pytest.mark.parametrize("kind", TEXTS)
def test_the_check_says_what_loading_says(kind: str, write) -> None:
    path = write(TEXTS[kind][0])
    with pytest.raises(DataError) as raised:
        load(path=path)
    report = check_file(path)
    assert not report.ok and report.summary is None
    assert str(report.problems[0]) == str(raised.value)


def test_a_missing_file_names_the_nearest(write) -> None:
    path = write(GOOD, "ratings.csv")
    with pytest.raises(DataError, match=r"no such file.*'ratings\.csv'"):
        load(path=path.with_name("rating.csv"))


def test_a_folder_is_no_file(write) -> None:
    path = write(GOOD, "ratings.csv")
    with pytest.raises(DataError, match=r"a folder; .*'ratings\.csv'"):
        load(path=path.parent)


def test_truncated_gzip(write) -> None:
    content = gzip.compress((GOOD * 100).encode())
    with pytest.raises(DataError, match="ends too early"):
        load(path=write(content[:-20], "data.csv.gz"))


def test_damaged_gzip(write) -> None:
    content = bytearray(gzip.compress(bytes(range(256)) * 100))
    content[30] ^= 0xFF
    with pytest.raises(DataError, match="damaged gzip"):
        load(path=write(bytes(content), "data.csv.gz"))


def test_gzip_by_name_only(write) -> None:
    with pytest.raises(DataError, match="not gzip"):
        load(path=write(GOOD, "data.csv.gz"))


def test_text_that_claims_to_be_parquet(write) -> None:
    with pytest.raises(DataError, match="not whole Parquet"):
        load(path=write(GOOD, "data.parquet"))


def test_truncated_parquet(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    pd.DataFrame({"user": range(1000), "item": range(1000)}).to_parquet(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="not whole Parquet"):
        load(path=path)


PARQUETS: dict[str, tuple[dict[str, pa.Array], int | None, str, str]] = {
    "missing column": ({"user": pa.array([1])}, None, "item", "no column 'item'"),
    "null user": ({"user": pa.array([1, None]), "item": pa.array([1, 2])}, 2, "user", "found nothing"),
    "NaN user": ({"user": pa.array([1.0, float("nan")]), "item": pa.array([1, 2])}, 2, "user", "fill in"),
    "fractional item": ({"user": pa.array([1, 1]), "item": pa.array([1.0, 2.5])}, 2, "item", "whole numbers"),
    "unsigned id": (
        {"user": pa.array([1, 2**64 - 1], pa.uint64()), "item": pa.array([1, 2])},
        2,
        "user",
        "18446744073709551615",
    ),
    "list as id": ({"user": pa.array([[1], [2]]), "item": pa.array([1, 2])}, 1, "user", "list"),
    "bool as id": ({"user": pa.array([True, False]), "item": pa.array([1, 2])}, 1, "user", "bool"),
    "bool as time": (
        {"user": pa.array([1]), "item": pa.array([1]), "timestamp": pa.array([True])},
        1,
        "timestamp",
        "bool",
    ),
    "null rating": (
        {"user": pa.array([1, 2]), "item": pa.array([1, 2]), "rating": pa.array([1.0, None])},
        2,
        "rating",
        "found nothing",
    ),
    "no rows": ({"user": pa.array([], pa.int64()), "item": pa.array([], pa.int64())}, None, "", "no interactions"),
}


@pytest.mark.parametrize("kind", PARQUETS)
def test_parquet_faults_are_named_by_row_and_column(kind: str, tmp_path: Path) -> None:
    columns, row, column, words = PARQUETS[kind]
    path = tmp_path / "data.parquet"
    pa.parquet.write_table(pa.table(columns), path)
    with pytest.raises(DataError) as raised:
        load(path=path)
    message = str(raised.value)
    assert words in message
    assert (f", row {row}, column {column!r}:" in message) if row else (", row " not in message)
    assert str(check_file(path).problems[0]) == message


def test_a_required_time_may_not_be_missing(write) -> None:
    path = write("user,item\n1,2\n")
    assert load(path=path).interactions.times is None
    with pytest.raises(DataError, match="no column 'timestamp' for the timestamp"):
        load(path=path, columns={"timestamp": "timestamp"})


def test_numeric_context_may_not_be_missing(write) -> None:
    path = write("user,item,heat\n1,2,20.5\n1,3,\n")
    with pytest.raises(DataError, match=r"line 3, column 'heat': found nothing; allowed: a finite number"):
        load(path=path, columns={"context": ["heat"]})


def test_the_first_of_many_faults_is_the_first_by_line(write) -> None:
    with pytest.raises(DataError, match="line 2, column 'rating'"):
        load(path=write(HEAD + "1,2,1,bad\n,2,1,1\n1,2\n"))
