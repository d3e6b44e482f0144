"""The log of rounds: one line a round, appended once, whatever stops the run in between."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedrec.errors import DataError, ProtocolError
from fedrec.round_log import RoundLog


def line(number: int, **more: object) -> dict[str, object]:
    return {"round": number, "seconds": 0.25, **more}


def log_of(folder: Path, *numbers: int) -> RoundLog:
    log = RoundLog(folder)
    for number in numbers:
        log.begin(line(number))
        log.finish(line(number, metrics={"n": number}))
    return log


def numbers(log: RoundLog) -> list[int]:
    return [entry["round"] for entry in log.rounds()]


def test_finished_rounds_are_lines_of_the_file_and_the_open_one_is_known_beside_it(tmp_path: Path) -> None:
    log = log_of(tmp_path, 1, 2)
    log.begin(line(3))
    assert log.open_round() == line(3) and numbers(log) == [1, 2, 3]
    texts = (tmp_path / "rounds.jsonl").read_text().splitlines()
    assert [json.loads(text) for text in texts] == [line(n, metrics={"n": n}) for n in (1, 2)]
    log.finish(line(3))
    assert log.open_round() is None and sorted(path.name for path in tmp_path.iterdir()) == ["rounds.jsonl"]


def test_lines_that_were_written_are_neither_read_nor_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = log_of(tmp_path, 1)
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail(f"{path} is read"))
    for number in range(2, 60):
        size = (tmp_path / "rounds.jsonl").stat().st_size
        log.begin(line(number))
        log.finish(line(number))
        assert (tmp_path / "rounds.jsonl").stat().st_size - size == len(json.dumps(line(number))) + 1


def test_line_that_was_torn_anywhere_is_whole_again_after_a_restart(tmp_path: Path) -> None:
    log_of(tmp_path, 1)
    start = (tmp_path / "rounds.jsonl").read_bytes()
    text = json.dumps(line(2, metrics={"n": 2}), sort_keys=True).encode() + b"\n"
    for cut in range(len(text) + 1):
        for tail in (text[:cut], bytes(cut)):
            (tmp_path / "rounds.jsonl").write_bytes(start + tail)
            log = RoundLog(tmp_path)
            log.begin(line(2))
            assert numbers(RoundLog(tmp_path)) == [1, 2] and RoundLog(tmp_path).open_round() == line(2)
            log.finish(line(2, metrics={"n": 2}))
            assert (tmp_path / "rounds.jsonl").read_bytes() == start + text


def test_rounds_of_a_crash_are_replaced(tmp_path: Path) -> None:
    log_of(tmp_path, 1, 2, 3, 4)
    log = RoundLog(tmp_path)
    log.begin(line(3))
    assert numbers(log) == [1, 2, 3]
    log.finish(line(3, again=True))
    assert log.rounds()[2:] == [line(3, again=True)]


def test_damaged_line_is_named(tmp_path: Path) -> None:
    log_of(tmp_path, 1, 2)
    text = (tmp_path / "rounds.jsonl").read_text().splitlines()
    (tmp_path / "rounds.jsonl").write_text(f"{text[0][:9]}\n{text[1]}\n")
    with pytest.raises(DataError, match=r"rounds\.jsonl line 1 is damaged.*delete the line"):
        RoundLog(tmp_path).rounds()
    (tmp_path / "round.json").write_text("{")
    with pytest.raises(DataError, match=r"round\.json is damaged.*delete the file"):
        RoundLog(tmp_path).open_round()


def test_round_that_cannot_be_written_stays_open(tmp_path: Path) -> None:
    log = log_of(tmp_path, 1)
    (tmp_path / "rounds.jsonl").unlink()
    (tmp_path / "rounds.jsonl").mkdir()
    log.begin(line(2))
    with pytest.raises(ProtocolError, match=r"rounds\.jsonl can't be written.*resume"):
        log.finish(line(2))
    assert log.open_round() == line(2)
