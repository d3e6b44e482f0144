"""Downloads: verified before they are unpacked, never outside their folder, whole or not at all."""

from __future__ import annotations

import hashlib
import io
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from fedrec.data.named.archives import Archive, download
from fedrec.data.sources import SOURCES, load
from fedrec.errors import DataError


def pack(folder: Path, files: dict[str, str]) -> tuple[Path, bytes]:
    """Write a zip archive of these files."""
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    path = folder / "set.zip"
    path.write_bytes(raw.getvalue())
    return path, raw.getvalue()


FILES = {"set/u.data": "1\t2\t3\t4\n", "set/other": "x", "set/deep/u.item": "y"}


def archive_of(path: Path, content: bytes, **changes: object) -> Archive:
    """Describe an archive on this disk, with its right checksum unless changed."""
    facts: dict[str, object] = {
        "url": path.as_uri(),
        "checksum": "sha256:" + hashlib.sha256(content).hexdigest(),
        "files": ("u.data", "u.item"),
    }
    return Archive(**(facts | changes))  # type: ignore[arg-type]


def test_the_wanted_files_and_nothing_else_appear(tmp_path: Path) -> None:
    target = tmp_path / "cache" / "set"
    assert download("set", archive_of(*pack(tmp_path, FILES)), target, "advice") == target
    assert {p.name: p.read_text() for p in target.iterdir()} == {"u.data": "1\t2\t3\t4\n", "u.item": "y"}
    assert [p.name for p in target.parent.iterdir()] == ["set"]


def test_paths_inside_the_archive_are_never_used(tmp_path: Path) -> None:
    path, content = pack(tmp_path, {"../../evil/u.data": "bad", "/u.item": "bad"})
    target = tmp_path / "cache" / "set"
    download("set", archive_of(path, content), target, "advice")
    assert sorted(p.name for p in target.iterdir()) == ["u.data", "u.item"]
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"checksum": "md5:" + "0" * 32}, "has md5 .* expected 000"),
        ({"files": ("u.data", "absent")}, "lacks absent"),
        ({"max_bytes": 10}, "larger than 10 bytes"),
        ({"checksum": None}, "no checksum"),
    ],
)
def test_what_is_not_the_archive_leaves_nothing(changes: dict[str, object], words: str, tmp_path: Path) -> None:
    target = tmp_path / "cache" / "set"
    with pytest.raises(DataError, match=f"{words}.*; try again, or the advice"):
        download("set", archive_of(*pack(tmp_path, FILES), **changes), target, "the advice")
    assert list(target.parent.iterdir()) == []


def test_what_is_no_zip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "set.zip"
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(DataError, match="not a whole zip archive"):
        download("set", archive_of(path, path.read_bytes()), tmp_path / "cache" / "set", "advice")


def test_a_published_checksum_is_fetched(tmp_path: Path) -> None:
    path, content = pack(tmp_path, FILES)
    beside = tmp_path / "set.zip.md5"
    beside.write_text(f"MD5 (set.zip) = {hashlib.md5(content).hexdigest()}\n")
    archive = archive_of(path, content, checksum=None, checksum_url=beside.as_uri())
    assert (download("set", archive, tmp_path / "set", "advice") / "u.data").exists()


def test_a_folder_that_another_process_finished_first_stays(tmp_path: Path) -> None:
    target = tmp_path / "cache" / "set"
    archive = archive_of(*pack(tmp_path, FILES))
    download("set", archive, target, "advice")
    download("set", archive, target, "advice")
    assert sorted(p.name for p in target.iterdir()) == ["u.data", "u.item"]


def test_no_network_says_what_to_do_by_hand(empty_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = SOURCES["ml-1m"].home
    assert home.archive is not None
    unreachable = replace(home, archive=replace(home.archive, url=(empty_home / "gone.zip").as_uri()))
    monkeypatch.setitem(SOURCES, "ml-1m", replace(SOURCES["ml-1m"], home=unreachable))  # type: ignore[arg-type]
    with pytest.raises(DataError) as raised:
        load("ml-1m")
    message = str(raised.value)
    assert "cannot be downloaded" in message and "https://grouplens.org/datasets/movielens/1m/" in message
    assert "$FEDREC_DATA/ml-1m" in message and ".cache/fedrec/ml-1m" in message
