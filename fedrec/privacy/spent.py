"""What a run has really spent, read from its ledger while leaving it alone: no lock, no repair, nothing written.

Unit and adjacency: the plan's. Released: nothing; a ledger holds public numbers only. What is read is a copy, opened as
any ledger is: it verifies, or there is no answer. A ledger that is being written counts as it was at that moment, with
the record that was under way or without it: what that record allows begins only later.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fedrec.errors import PrivacyError
from fedrec.privacy.ledger import Ledger
from fedrec.privacy.plan import PrivacyEvent, PrivacyPlan


class RunSpend(NamedTuple):
    """What a ledger says.

    Args:
        run_id: which run it is of.
        plan: the plan that is being spent.
        events: what has been spent so far, in the order of the plan.
        num_open: attempts at a round that were begun and are not published; they are in `events`.
    """

    run_id: str
    plan: PrivacyPlan
    events: tuple[PrivacyEvent, ...]
    num_open: int


def read_spent(path: Path, at_least: Mapping[str, Any] | None = None) -> RunSpend:
    """Read what a ledger says has been spent.

    Args:
        path: the ledger; it may be in use.
        at_least: the position that a checkpoint remembers; read the checkpoint before the ledger. None: not compared.

    Raises:
        PrivacyError: where the ledger is missing, damaged, or behind `at_least`.

    Privacy:
        Never less than what was spent when the file was read, if no whole records are missing at its end; that they
        are shows only where `at_least` is given.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise PrivacyError(f"{path} can't be read ({error}); give the folder of a run under a privacy plan") from error
    run_id, plan = _header(path, content)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        copy.write_bytes(content)
        try:
            with Ledger(copy, plan, run_id, at_least=at_least) as ledger:
                events = ledger.spent()
        except PrivacyError as error:
            raise PrivacyError(str(error).replace(str(copy), str(path))) from error
        kinds = Counter(json.loads(line)["payload"]["kind"] for line in copy.read_bytes().splitlines())
    return RunSpend(run_id, plan, events, kinds["intend"] - kinds["published"] - kinds["closed"])


def _header(path: Path, content: bytes) -> tuple[str, PrivacyPlan]:
    """Return the run and the plan that the first line names; whether it verifies is for the ledger to say."""
    line, newline, _ = content.partition(b"\n")
    if not newline:
        raise PrivacyError(
            f"{path} has no whole first line: the run stopped before its first round, or the file is cut"
        )
    try:
        header = json.loads(line)["payload"]
        return str(header["run"]), PrivacyPlan.from_dict(header["plan"])
    except (ValueError, KeyError, TypeError, AttributeError, PrivacyError) as error:
        raise PrivacyError(f"{path}, line 1: it is not the header of a ledger ({error}); restore the file") from error
