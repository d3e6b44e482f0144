"""The run folder: resolved config, one line a round, the result and the checkpoint."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedrec.config import Config, build, to_toml
from fedrec.errors import ConfigError, DataError, ProtocolError
from fedrec.files import replace_file
from fedrec.round_log import RoundLog


class RunFolder:
    """Paths and files of one run.

    Args:
        path: the folder; made by `create`.
    """

    def __init__(self, path: Path) -> None:
        """Name the folder; nothing is read or written yet."""
        self.path = path
        self._log = RoundLog(path)

    @property
    def checkpoint(self) -> Path:
        """Return the folder of the checkpoint and the ledger."""
        return self.path / "checkpoint"

    def create(self, config: Config) -> None:
        """Make the folder and write the resolved config; fine where the same run was begun there before.

        Raises:
            ConfigError: where another run is there, or the folder can't be made.
        """
        text = to_toml(config)
        file = self.path / "config.toml"
        if file.exists():
            if self.config() != config:
                raise ConfigError(f"{self.path} holds another run; give another --out, or delete the folder")
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if any(self.path.iterdir()):
                raise ConfigError(f"{self.path} is not empty and holds no run; give an empty or new folder as --out")
        except OSError as error:
            raise ConfigError(f"run folder {self.path} can't be made ({error}); give another --out") from error
        replace_file(file, text.encode())

    def config(self) -> Config:
        """Read the resolved config.

        Raises:
            ConfigError: where the folder holds no run.
        """
        file = self.path / "config.toml"
        try:
            return build(tomllib.loads(file.read_text(encoding="utf-8")), str(file))
        except OSError as error:
            raise ConfigError(
                f"{self.path} holds no run (no readable config.toml); give a folder made by simulate"
            ) from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{file} is damaged ({error}); restore it or start a new run") from error

    def check_data(self, fingerprint: str) -> None:
        """Remember the data that the run was begun with, and refuse to go on with other data.

        Raises:
            DataError: where the data has changed since.
        """
        file = self.path / "data_fingerprint"
        if not file.exists():
            replace_file(file, fingerprint.encode())
        elif (known := file.read_text(encoding="utf-8")) != fingerprint:
            raise DataError(
                f"the data has fingerprint {fingerprint}, {self.path} was begun with {known}; "
                "bring the same data back, or start a new run"
            )

    def rounds(self) -> list[dict[str, Any]]:
        """Read the lines of all rounds, as `RoundLog.rounds`.

        Raises:
            DataError: where a line is damaged.
        """
        return self._log.rounds()

    def open_round(self) -> dict[str, Any] | None:
        """Read the line of a round that is logged and not finished; None where there is none."""
        return self._log.open_round()

    def log_round(self, line: Mapping[str, Any]) -> None:
        """Write the line of a round that is about to be committed; of one tried before, it is replaced."""
        self._log.begin(line)

    def finish_round(self, line: Mapping[str, Any]) -> None:
        """Append the whole line of a committed round to `rounds.jsonl`, see `RoundLog.finish`."""
        self._log.finish(line)

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write `result.json`."""
        replace_file(self.path / "result.json", (json.dumps(result, indent=2, sort_keys=True) + "\n").encode())

    def result(self) -> dict[str, Any]:
        """Read `result.json`.

        Raises:
            ProtocolError: where the run is not finished, or the file is damaged.
        """
        file = self.path / "result.json"
        try:
            return dict(json.loads(file.read_text(encoding="utf-8")))
        except OSError as error:
            raise ProtocolError(
                f"{self.path} has no result yet; finish the run with: fedrec resume {self.path}"
            ) from error
        except ValueError as error:
            raise ProtocolError(
                f"{file} is damaged ({error}); write it again with: fedrec evaluate {self.path}"
            ) from error
