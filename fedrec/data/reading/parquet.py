"""Parquet files: the wanted columns as Arrow holds them."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet

from fedrec.data.reading.columns import ColumnNames
from fedrec.data.reading.files import require_file, whole_file


def read_parquet(path: Path, names: ColumnNames) -> tuple[dict[str, str], dict[str, pa.ChunkedArray]]:
    """Read the wanted columns of a Parquet file.

    Returns:
        role -> column name, and column name -> (n,) values.

    Raises:
        DataError: where the file is missing or damaged, or lacks a column.
    """
    try:
        with pa.parquet.ParquetFile(require_file(path)) as file:
            columns = names.in_header(path, file.schema_arrow.names, None)
            table = file.read(columns=list(columns.values()))
    except (pa.ArrowException, OSError) as error:
        reason = str(error).split("\n", 1)[0][:120]
        raise whole_file(
            path, f"a file that is not whole Parquet ({reason})", "a Parquet file", "write or copy it again"
        ) from None
    return columns, {name: table[name] for name in columns.values()}
