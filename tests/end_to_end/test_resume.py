"""A run that is stopped anywhere and resumed ends with the same model bytes and the same ledger."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fedrec.federated import coordinator
from fedrec.privacy.ledger import Ledger
from fedrec.run_folder import RunFolder
from tests.end_to_end.conftest import Outcome

Fedrec = Callable[..., Outcome]
FILES = ("server.safetensors", "ledger.jsonl")


def check_stop_and_resume(
    fedrec: Fedrec,
    config: Path,
    tmp_path: Path,
    patch: pytest.MonkeyPatch,
    stop: tuple[object, str, int, bool],
) -> None:
    """Fail unless a run that is stopped there and resumed leaves what an undisturbed one leaves."""
    from fedrec.cli import main

    assert fedrec("simulate", config, "--out", tmp_path / "whole").code == 0
    with pytest.raises(Stop), patch.context() as stopping:
        stop_at(stopping, *stop)
        main(["simulate", str(config), "--out", str(tmp_path / "stopped")])
    outcome = fedrec("resume", tmp_path / "stopped")
    assert outcome.code == 0, outcome.err
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / "checkpoint" / name).read_bytes() for name in FILES}


class Stop(BaseException):
    """Stands for the process being killed: nothing catches it."""


def stop_at(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, call: int, before: bool) -> None:
    """Make the call-th call of a function stop the process, right before or right after it does its work."""
    original, calls = getattr(owner, name), 0

    def stopping(*arguments: object, **options: object) -> object:
        nonlocal calls
        calls += 1
        if calls == call and before:
            raise Stop
        found = original(*arguments, **options)
        if calls == call:
            raise Stop
        return found

    monkeypatch.setattr(owner, name, stopping)


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [
        (Ledger, "intend", 1),
        (Ledger, "intend", 3),
        (coordinator, "release", 2),
        (RunFolder, "log_round", 3),
        (RunFolder, "finish_round", 1),
        (RunFolder, "finish_round", 4),
        (coordinator, "write_checkpoint", 1),
        (coordinator, "write_checkpoint", 3),
        (Ledger, "published", 2),
        (RunFolder, "write_result", 1),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)).rsplit(".", 1)[-1],
)
def test_stop_at_any_step_then_resume(
    fedrec: Fedrec,
    private_config_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    owner: object,
    name: str,
    call: int,
    before: bool,
) -> None:
    check_stop_and_resume(fedrec, private_config_file, tmp_path, monkeypatch, (owner, name, call, before))
    rounds = RunFolder(tmp_path / "stopped").rounds()
    assert [line["round"] for line in rounds] == [1, 2, 3, 4] and all("metrics" in line for line in rounds)
    undisturbed = RunFolder(tmp_path / "whole").result()
    assert RunFolder(tmp_path / "stopped").result()["metrics"] == undisturbed["metrics"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGINT], ids=["kill-9", "ctrl-c"])
def test_killed_process_then_resume(fedrec: Fedrec, private_config_file: Path, tmp_path: Path, kind: int) -> None:
    rounds = ("--set", "federated.num_rounds=150")
    simulate = ("simulate", str(private_config_file), "--out", str(tmp_path / "k"), *rounds)
    command = [sys.executable, "-m", "fedrec", *simulate]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # background jobs inherit it as ignored
    )
    log = tmp_path / "k" / "rounds.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and log.read_text().count("\n") >= 5):
        assert process.poll() is None and time.monotonic() < deadline, "the run ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(kind)
    _, errors = process.communicate(timeout=60)
    if kind == signal.SIGINT:
        assert process.returncode == 1 and "fedrec resume" in errors
    else:
        assert process.returncode == -signal.SIGKILL
    assert fedrec("resume", tmp_path / "k").code == 0
    assert fedrec("simulate", private_config_file, "--out", tmp_path / "whole", *rounds).code == 0
    assert contents(tmp_path / "k") == contents(tmp_path / "whole")


def test_resume_of_a_finished_run_prints_its_result(fedrec: Fedrec, config_file: Path, tmp_path: Path) -> None:
    first = fedrec("simulate", config_file, "--out", tmp_path / "run", "--json")
    before = (tmp_path / "run" / "checkpoint" / "server.safetensors").read_bytes()
    again = fedrec("resume", tmp_path / "run", "--json")
    assert again.code == 0 and again.out == first.out
    assert (tmp_path / "run" / "checkpoint" / "server.safetensors").read_bytes() == before


def test_ledger_that_lost_its_last_record_is_refused(fedrec: Fedrec, private_config_file: Path, tmp_path: Path) -> None:
    fedrec("simulate", private_config_file, "--out", tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    ledger = tmp_path / "run" / "checkpoint" / "ledger.jsonl"
    ledger.write_text("".join(ledger.read_text().splitlines(keepends=True)[:-2]))
    outcome = fedrec("resume", tmp_path / "run")
    assert outcome.code == 2 and "ledger.jsonl" in outcome.err


def test_damaged_ledger_is_refused_naming_the_line(fedrec: Fedrec, private_config_file: Path, tmp_path: Path) -> None:
    fedrec("simulate", private_config_file, "--out", tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    ledger = tmp_path / "run" / "checkpoint" / "ledger.jsonl"
    lines = ledger.read_text().splitlines(keepends=True)
    ledger.write_text("".join([*lines[:2], lines[2].replace("1", "2", 1), *lines[3:]]))
    outcome = fedrec("resume", tmp_path / "run")
    assert outcome.code == 2 and "line 3" in outcome.err


def test_changed_data_or_config_is_not_gone_on_with(
    fedrec: Fedrec, private_config_file: Path, data_file: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.csv"
    copy.write_bytes(data_file.read_bytes())
    run = tmp_path / "run"
    fedrec("simulate", private_config_file, "--out", run, "--set", f"data.path={copy}")
    config = (run / "config.toml").read_text()
    (run / "config.toml").write_text(config.replace("recency_weight = 5.0", "recency_weight = 6.0"))
    for command in (("resume", run), ("evaluate", run), ("recommend", "--run", run, "--all", "--to", tmp_path / "r")):
        outcome = fedrec(*command)
        assert outcome.code == 2 and "not what the run was made with" in outcome.err, outcome.err
    (run / "config.toml").write_text(config)
    (run / "result.json").unlink()
    copy.write_bytes(data_file.read_bytes() + b"someone,i0000,5\n")
    from fedrec import assemble

    assemble.forget_data()
    outcome = fedrec("resume", run)
    assert outcome.code == 2 and "fingerprint" in outcome.err, outcome.err


def test_lists_of_an_unfinished_run_are_refused(
    fedrec: Fedrec, private_config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(Stop):
        stop_at(patch, coordinator, "write_checkpoint", 2, before=False)
        from fedrec.cli import main

        main(["simulate", str(private_config_file), "--out", str(tmp_path / "run")])
    outcome = fedrec("recommend", "--run", tmp_path / "run", "--all", "--to", tmp_path / "r.parquet")
    assert outcome.code == 2 and "2 of 4 rounds" in outcome.err
