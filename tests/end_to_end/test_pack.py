"""Packed data: a config that names the folder trains what one that names the file trains."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tests.end_to_end.conftest import Outcome

Fedrec = Callable[..., Outcome]

ROWS = "".join(
    f"{u},i{(u * 7 + k) % 23},{100 * u + k},{'home' if k % 2 else 'way'}\n" for u in range(30) for k in range(8)
)


def test_a_run_on_packed_data_is_the_run_on_the_file(fedrec: Fedrec, tmp_path: Path) -> None:
    file, folder = tmp_path / "data.csv", tmp_path / "packed"
    file.write_text("who,item,timestamp,place\n" + ROWS)
    packed = fedrec("data", "pack", file, "--to", folder, "--user", "who", "--context", "place")
    assert packed.code == 0 and "240 interactions of 30 users with 23 items" in packed.out, packed.err
    results = []
    for number, path in enumerate((file, folder)):
        columns = 'columns = {user = "who", context = ["place"]}\n' if path is file else ""
        config = tmp_path / f"{number}.toml"
        config.write_text(
            f'[data]\npath = "{path}"\n{columns}[model]\nname = "als"\ndim = 4\n[federated]\nnum_rounds = 1\n'
        )
        done = fedrec("simulate", config, "--out", tmp_path / f"run-{number}", "--json")
        assert done.code == 0, done.err
        results.append(json.loads(done.out.splitlines()[-1]))
    assert results[0]["metrics"] == results[1]["metrics"]
    assert results[0]["data"]["fingerprint"] == results[1]["data"]["fingerprint"]


def test_packing_refuses_what_exists_and_what_is_wrong(fedrec: Fedrec, tmp_path: Path) -> None:
    file = tmp_path / "data.csv"
    file.write_text("user,item\n1,2\n")
    again = fedrec("data", "pack", file, "--to", tmp_path)
    assert again.code == 2 and "exists" in again.err
    file.write_text("user,item\n1,\n")
    wrong = fedrec("data", "pack", file, "--to", tmp_path / "packed")
    assert wrong.code == 2 and "line 2" in wrong.err and not (tmp_path / "packed").exists()
