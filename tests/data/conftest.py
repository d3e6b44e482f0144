"""Files to read, and the real data sets where $FEDREC_DATA has them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

WriteFile = Callable[..., Path]


def needs(*folders: str) -> pytest.MarkDecorator:
    """Skip a test where a folder is not under $FEDREC_DATA."""
    root = os.environ.get("FEDREC_DATA")
    missing = [name for name in folders if root is None or not (Path(root) / name).is_dir()]
    return pytest.mark.skipif(bool(missing), reason=f"not under $FEDREC_DATA: {', '.join(missing)}")


@pytest.fixture
def write(tmp_path: Path) -> WriteFile:
    """Write a file of the content given and return its path."""

    def write_file(content: str | bytes, name: str = "data.csv") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write_file


@pytest.fixture
def empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a machine without any data set: no $FEDREC_DATA, and a home folder with nothing in it."""
    monkeypatch.delenv("FEDREC_DATA", raising=False)
    monkeypatch.setattr(Path, "home", classmethod(lambda cls: tmp_path / "home"))
    return tmp_path / "home"
