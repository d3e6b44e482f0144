"""The log of a run's rounds: `rounds.jsonl` grows by a line a round; the last round waits beside it until it is done.

A round is logged before it is committed and evaluated after it, and a line that is on disk is never changed. So the
line first lies in a file of its own, `round.json`; once its metrics are known it is appended, and that file goes. A
crash leaves at most a torn last line of a round that still lies in `round.json`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fedrec.errors import DataError
from fedrec.files import append_at, replace_file


class RoundLog:
    """One writer at a time; what it costs to log a round does not depend on how many there were.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: Path) -> None:
        """Name the files; nothing is read or written yet."""
        self._finished, self._open = folder / "rounds.jsonl", folder / "round.json"
        self._last: tuple[int, int] | None = None  # the last round in the file, and where its line ends

    def rounds(self) -> list[dict[str, Any]]:
        """Read all lines, the open round's too; a torn last line, left by a crash, is not there yet.

        Raises:
            DataError: where a line is damaged.
        """
        lines = [line for line, _ in self._lines()]
        last = self.open_round()
        return lines if last is None else [*(line for line in lines if line["round"] < last["round"]), last]

    def open_round(self) -> dict[str, Any] | None:
        """Read the line of a round that is not finished; None where there is none.

        Raises:
            DataError: where it is damaged.
        """
        try:
            return dict(json.loads(self._open.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise DataError(f"{self._open} is damaged ({error}); delete the file and resume") from error

    def begin(self, line: Mapping[str, Any]) -> None:
        """Put down the line of a round, in place of an open one."""
        replace_file(self._open, _text(line))

    def finish(self, line: Mapping[str, Any]) -> None:
        """Append the whole line of the open round; lines of this round or later ones, left by a crash, are replaced.

        Raises:
            ProtocolError: where the disk is full or the folder can't be written; the round is then still open.
        """
        if self._last is None or self._last[0] >= line["round"]:
            self._last = self._last_before(line["round"])
        text, (_, start) = _text(line), self._last
        append_at(self._finished, start, text)
        self._open.unlink(missing_ok=True)
        self._last = line["round"], start + len(text)

    def _last_before(self, round_number: int) -> tuple[int, int]:
        """Return the last finished round before this one, 0 where there is none, and where its line ends."""
        ends = [(line["round"], end) for line, end in self._lines() if line["round"] < round_number]
        return ends[-1] if ends else (0, 0)

    def _lines(self) -> Iterator[tuple[dict[str, Any], int]]:
        """Read every whole line and where it ends in the file, in bytes."""
        if not self._finished.exists():
            return
        end = 0
        for number, line in enumerate(self._finished.read_bytes().split(b"\n")[:-1], start=1):
            end += len(line) + 1
            try:
                yield dict(json.loads(line)), end
            except ValueError as error:
                raise DataError(
                    f"{self._finished} line {number} is damaged ({error}); delete the line and resume"
                ) from error


def _text(line: Mapping[str, Any]) -> bytes:
    return json.dumps(line, sort_keys=True).encode() + b"\n"
