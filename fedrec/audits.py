"""An audit from the command line: what to attack, where its results go, and the files it leaves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedrec import assemble
from fedrec import config as configs
from fedrec.config import Config
from fedrec.errors import ConfigError
from fedrec.files import replace_file
from fedrec.run_folder import RunFolder


def config_of_target(target: Path, settings: Sequence[str]) -> Config:
    """Read the config of a run folder, or a config file, with settings over it.

    Raises:
        ConfigError: where there is no config, or a setting is not allowed.
        DataError: where the data is no longer that of the run.
    """
    if not target.is_dir():
        return configs.load(target, settings)
    folder = RunFolder(target)
    folder.config()
    config = configs.load(target / "config.toml", settings)
    if not settings and (target / "data_fingerprint").exists():
        folder.check_data(assemble.dataset(config.to_json()).interactions.fingerprint())
    return config


def make_folder(folder: Path) -> None:
    """Make the folder of an audit before the work begins.

    Raises:
        ConfigError: where it can't be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder} can't be made ({error}); give another --out") from error


def write_audit(folder: Path, found: dict[str, Any]) -> str:
    """Write `audit.json` and `audit.png`, made from it alone, and return the table.

    Raises:
        ProtocolError: where the disk is full or the folder can't be written.
    """
    from fedrec.report.audit import audit_table, parse_audit
    from fedrec.report.audit_plot import audit_plot
    from fedrec.report.plots import LIGHT, png

    file = folder / "audit.json"
    replace_file(file, (json.dumps(found, indent=2, sort_keys=True, allow_nan=False) + "\n").encode())
    audit = parse_audit(json.loads(file.read_bytes()), str(file))
    replace_file(folder / "audit.png", png(lambda theme: audit_plot({audit.title: audit}, theme), LIGHT))
    return audit_table(audit)
