"""The documents name tests, commands and files that are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = ("docs/threat-model.md", "docs/pitfalls.md")
NAMED = re.compile(r"`(tests/[\w/.]+?)(?:::(\w+))?`")


def defined_in(path: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("page", PAGES)
def test_every_test_that_a_page_names_is_there(page: str) -> None:
    named = NAMED.findall((ROOT / page).read_text())
    assert len(named) >= 10
    for file, test in named:
        path = ROOT / file
        assert path.exists(), f"{page} names {file}"
        assert not test or test in defined_in(path), f"{page} names {file}::{test}"


def test_pitfalls_are_ten_and_each_says_what_catches_it() -> None:
    parts = re.split(r"(?m)^\d+\. ", (ROOT / "docs/pitfalls.md").read_text())[1:]
    assert len(parts) == 10 and all("*Caught by*" in part and NAMED.search(part) for part in parts)
