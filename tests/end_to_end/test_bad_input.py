"""Bad input of every kind: exit code 2 and one clear line that says what was found and what to do."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.end_to_end.conftest import Outcome

Fedrec = Callable[..., Outcome]

GOOD = "user,item,timestamp\n" + "".join(f"{u},{i},{100 * u + i}\n" for u in range(30) for i in range(u % 5, u % 5 + 6))

FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty"),
    "header-only": (b"user,item,timestamp\n", "header"),
    "no-user-column": (GOOD.replace("user", "usr", 1).encode(), "nearest is 'usr'"),
    "bad-timestamp": (GOOD.replace("\n0,1,1\n", "\n0,1,yesterday\n").encode(), "line 3"),
    "missing-item": (GOOD.replace("\n0,2,2\n", "\n0,,2\n").encode(), "line 4"),
    "missing-user": (GOOD.replace("\n0,2,2\n", "\n,2,2\n").encode(), "line 4"),
    "extra-field": (GOOD.replace("\n0,3,3\n", "\n0,3,3,9\n").encode(), "line 5"),
    "missing-field": (GOOD.replace("\n0,3,3\n", "\n0,3\n").encode(), "line 5"),
    "bad-rating": (b"user,item,rating\n1,1,5\n1,2,good\n1,3,2\n", "line 3"),
    "infinite-rating": (b"user,item,rating\n1,1,5\n1,2,inf\n1,3,2\n", "line 3"),
    "nul-bytes": (b"\x00\x01\x02\xff\xfe" * 200, "broken"),
    "not-utf8": (GOOD.replace("\n0,1,1\n", "\n0,caf\xe9,1\n").encode("latin-1"), "UTF-8"),
    "nobody-to-evaluate": (b"user,item,timestamp\n1,1,1\n1,2,2\n2,1,1\n", "no user can be evaluated"),
    "huge-timestamp": (GOOD.replace("\n0,1,1\n", f"\n0,1,{10**30}\n").encode(), "line 3"),
}


def one_line(outcome: Outcome, *words: str) -> None:
    """Check for exit code 2 and one `error:` line that holds the words."""
    assert outcome.code == 2, (outcome.code, outcome.err)
    errors = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in outcome.err, outcome.err
    for word in words:
        assert word in errors[0], errors[0]


@pytest.mark.parametrize("kind", FILES)
def test_broken_data_file(fedrec: Fedrec, config_file: Path, tmp_path: Path, kind: str) -> None:
    content, word = FILES[kind]
    path = tmp_path / "broken.csv"
    path.write_bytes(content)
    outcome = fedrec("simulate", config_file, "--out", tmp_path / "run", "--set", f"data.path={path}")
    one_line(outcome, "broken.csv" if kind != "nobody-to-evaluate" else "", word)


def test_bad_input_leaves_no_run_folder(fedrec: Fedrec, config_file: Path, tmp_path: Path) -> None:
    fedrec("simulate", config_file, "--out", tmp_path / "run", "--set", "data.path=nowhere.csv")
    assert not (tmp_path / "run").exists()


def test_truncated_gzip_and_broken_parquet(fedrec: Fedrec, config_file: Path, tmp_path: Path) -> None:
    packed, parquet = tmp_path / "broken.csv.gz", tmp_path / "broken.parquet"
    packed.write_bytes(gzip.compress(GOOD.encode())[:-20])
    parquet.write_bytes(b"PAR1" + b"\0" * 100 + b"PAR1")
    for path in (packed, parquet):
        one_line(fedrec("simulate", config_file, "--out", tmp_path / "run", "--set", f"data.path={path}"), path.name)


SETTINGS = {
    "unknown-section": ("privcy.target_epsilon=8", "did you mean 'privacy'"),
    "unknown-key": ("federated.num_node=3", "did you mean 'num_nodes'"),
    "unknown-model-key": ("model.dims=3", "did you mean 'dim'"),
    "unknown-model": ("model.name=alss", "did you mean 'als'"),
    "negative-dim": ("model.dim=-1", "model.dim=-1"),
    "text-for-number": ("federated.num_rounds=many", "num_rounds='many'"),
    "zero-rounds": ("federated.num_rounds=0", "num_rounds=0"),
    "nan-regularization": ("model.regularization=nan", "regularization"),
    "unknown-protocol": ("evaluation.protocol=leave_two_out", "leave_one_out"),
    "unknown-data": ("data.name=ml-1g", "config"),
    "missing-file": ("data.path=nowhere.csv", "nowhere.csv"),
    "folder-as-file": ("data.path=.", "folder"),
    "no-device": ("runtime.device=cuda:99", "cuda:99"),
    "nonsense-device": ("runtime.device=toaster", "toaster"),
    "not-a-setting": ("privacy", "section.key=value"),
    "setting-into-value": ("model.dim.x=1", "model.dim"),
    "no-population": ("privacy.target_epsilon=8", "population_size is missing"),
    "min-rating-without-ratings": ("data.min_rating=4", "rating"),
    "missing-column": ('data.columns.rating="stars"', "stars"),
}


@pytest.mark.parametrize("kind", SETTINGS)
def test_bad_setting(fedrec: Fedrec, config_file: Path, tmp_path: Path, kind: str) -> None:
    setting, word = SETTINGS[kind]
    outcome = fedrec("simulate", config_file, "--out", tmp_path / "run", "--set", setting)
    if kind == "unknown-data":
        assert outcome.code == 0, "a path overrides the name"
        return
    one_line(outcome, word)


PRIVACY = {
    "both-targets": ("privacy.noise_multiplier=1", "exactly one"),
    "epsilon-zero": ("privacy.target_epsilon=0", "target_epsilon=0"),
    "infinite-epsilon": ("privacy.target_epsilon=inf", "target_epsilon"),
    "delta-one": ("privacy.target_delta=1", "target_delta=1"),
    "sampling-above-one": ("privacy.sampling_probability=1.4", "sampling_probability=1.4"),
    "negative-clipping": ("privacy.clipping_norm=-1", "clipping_norm=-1"),
    "unknown-trust": ("privacy.trust_model=none", "'central', 'distributed' or 'local'"),
    "trust-to-come": ("privacy.trust_model=distributed", "'central' and 'local'"),
    "bound-of-examples": ("privacy.max_grad_norm=1", "give privacy.clipping_norm"),
    "steps-of-examples": ("federated.local_steps=5", "privacy.unit='interaction' only"),
    "examples-without-steps": ("privacy.unit=interaction", "needs federated.local_steps"),
    "unbounded-model": ("model.name=item_knn", "privacy plan"),
    "nodes-too-small": ("federated.num_nodes=20", "min_users_per_node"),
}


@pytest.mark.parametrize("kind", PRIVACY)
def test_bad_privacy_setting(fedrec: Fedrec, private_config_file: Path, tmp_path: Path, kind: str) -> None:
    setting, word = PRIVACY[kind]
    one_line(fedrec("simulate", private_config_file, "--out", tmp_path / "run", "--set", setting), word)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        (["privacy.trust_model=local", "privacy.sampling_probability=0.5"], "sampling amplifies nothing; set it to 1"),
        (["privacy.unit=interaction", "federated.local_steps=5"], "allowed are mf"),
        (["privacy.unit=interaction", "federated.local_steps=5", "privacy.trust_model=central"], "allowed: 'local'"),
        (["privacy.unit=interaction", "federated.local_steps=5", "privacy.clipping_norm=1"], "privacy.max_grad_norm"),
        (["privacy.unit=interaction", "federated.local_steps=0"], "local_steps=0"),
    ],
)
def test_settings_that_do_not_go_together(
    fedrec: Fedrec, private_config_file: Path, tmp_path: Path, settings: list[str], word: str
) -> None:
    flags = [part for setting in settings for part in ("--set", setting)]
    one_line(fedrec("simulate", private_config_file, "--out", tmp_path / "run", *flags), word)


def test_config_that_is_missing_not_toml_or_binary(fedrec: Fedrec, tmp_path: Path) -> None:
    one_line(fedrec("simulate", tmp_path / "none.toml"), "none.toml")
    (tmp_path / "c.toml").write_text("[data\nname=")
    one_line(fedrec("simulate", tmp_path / "c.toml"), "not TOML")
    (tmp_path / "c.toml").write_bytes(b"\xff\xfe\x00")
    one_line(fedrec("simulate", tmp_path / "c.toml"), "c.toml")


def test_unknown_runtime_user_folder_and_target(fedrec: Fedrec, config_file: Path, tmp_path: Path) -> None:
    one_line(fedrec("simulate", config_file, "--out", tmp_path / "a", "--runtime", "moon"), "'local' and 'ray'")
    assert fedrec("simulate", config_file, "--out", tmp_path / "run").code == 0
    recommend = ("recommend", "--run", tmp_path / "run", "--to")
    one_line(fedrec(*recommend, tmp_path / "r.parquet", "--user", "nobody"), "nobody")
    one_line(fedrec(*recommend, tmp_path / "r.parquet"), "--all")
    one_line(fedrec(*recommend, tmp_path / "no" / "r.parquet", "--all"), "r.parquet")
    for command in (("resume",), ("evaluate",), ("report",)):
        one_line(fedrec(*command, tmp_path / "nothing"), "nothing")


def test_out_that_is_not_empty_or_a_file(fedrec: Fedrec, config_file: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("precious")
    one_line(fedrec("simulate", config_file, "--out", tmp_path / "full"), "not empty")
    (tmp_path / "file").write_text("precious")
    one_line(fedrec("simulate", config_file, "--out", tmp_path / "file"), "file")
    assert (tmp_path / "full" / "thesis.txt").read_text() == "precious" == (tmp_path / "file").read_text()


def test_data_check_names_line_and_column(fedrec: Fedrec, tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text("user,item,timestamp\n1,2,3\n1,,5\n")
    outcome = fedrec("data", "check", tmp_path / "bad.csv")
    assert outcome.code == 2 and "line 3" in outcome.out and "item" in outcome.out
    (tmp_path / "good.csv").write_text(GOOD)
    outcome = fedrec("data", "check", tmp_path / "good.csv")
    assert outcome.code == 0 and "30" in outcome.out


def test_account_and_calibrate_refuse_impossible_plans(fedrec: Fedrec) -> None:
    population = ("--population-size", 6040)
    one_line(fedrec("account", "--noise-multiplier", -1, "--delta", 1e-5, *population), "noise_multiplier")
    one_line(fedrec("calibrate", "--target-epsilon", 1, "--delta", 2, *population), "delta")
    outcome = fedrec("account", "--noise-multiplier", 1, "--delta", 1e-5, "--num-rounds", 3, *population)
    assert outcome.code == 0 and "add-or-remove one user" in outcome.out
