"""Folders: where a named data set lies - under $FEDREC_DATA, then ~/.cache/fedrec, then downloaded to there."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedrec.data.named.archives import Archive, download
from fedrec.errors import DataError


@dataclass(frozen=True)
class Home:
    """Where a data set may be found.

    Args:
        name: name of the data set; also its folder under ~/.cache/fedrec.
        folders: names of the folder that are looked for.
        files: one of these, plain or with .gz, must lie in the folder.
        page: the official web page.
        archive: the official download, or None where there is no stable one.
    """

    name: str
    folders: Sequence[str]
    files: Sequence[str]
    page: str
    archive: Archive | None = None


def cache_root() -> Path:
    """Return the folder that downloads are kept in."""
    return Path.home() / ".cache" / "fedrec"


def find_file(folder: Path, *names: str) -> Path | None:
    """Return the first of the files that lies in a folder, plain or with .gz; None where there is none."""
    candidates = (folder / (name + suffix) for name in names for suffix in ("", ".gz"))
    return next((path for path in candidates if path.is_file()), None)


def require_file_of(folder: Path, *names: str) -> Path:
    """Return the first of the files that lies in a folder, plain or with .gz.

    Raises:
        DataError: where none does.
    """
    path = find_file(folder, *names)
    if path is None:
        wanted = " or ".join(names)
        raise DataError(f"{folder}: no {wanted}; the data set needs it (plain or .gz): copy the whole folder again")
    return path


def locate(home: Home) -> Path | None:
    """Return the folder of a data set under $FEDREC_DATA or ~/.cache/fedrec; None where it is in neither."""
    own = os.environ.get("FEDREC_DATA")
    for root in [*([Path(own)] if own else []), cache_root()]:
        for name in home.folders:
            if find_file(root / name, *home.files) is not None:
                return root / name
    return None


def find_folder(home: Home) -> Path:
    """Return the folder of a data set, downloading it where it is on no disk.

    Raises:
        DataError: where it is nowhere and cannot be downloaded, saying where to put it.
    """
    folder = locate(home)
    if folder is not None:
        return folder
    own = os.environ.get("FEDREC_DATA")
    if own and not Path(own).is_dir():
        raise DataError(f"FEDREC_DATA={own} is not a folder; allowed is the folder of the data sets: set or unset it")
    advice = _advice(home)
    if home.archive is None:
        raise DataError(f"data set {home.name} is not on this machine and has no stable official download; {advice}")
    return download(home.name, home.archive, cache_root() / home.name, advice)


def _advice(home: Home) -> str:
    wanted = " or ".join(home.files)
    own = os.environ.get("FEDREC_DATA") or "$FEDREC_DATA"
    places = f"{own}/{home.folders[0]} or {cache_root() / home.name}"
    return f"get it from {home.page} and put its files (with {wanted}, plain or .gz) under {places}"
