"""The main job through all of it: simulate, result.json, recommend, report, evaluate."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.end_to_end.conftest import Outcome

Fedrec = Callable[..., Outcome]


def simulate(fedrec: Fedrec, config: Path, out: Path, *settings: str) -> dict[str, Any]:
    arguments = [part for setting in settings for part in ("--set", setting)]
    outcome = fedrec("simulate", config, "--out", out, "--json", *arguments)
    assert outcome.code == 0, outcome.err
    return dict(json.loads(outcome.out.strip().splitlines()[-1]))


def test_result_holds_what_the_contract_says(fedrec: Fedrec, config_file: Path, tmp_path: Path) -> None:
    result = simulate(fedrec, config_file, tmp_path / "run")
    assert result == json.loads((tmp_path / "run" / "result.json").read_text())
    assert {"data", "metrics", "privacy", "timing", "communication", "environment"} <= result.keys()
    assert {"name", "num_users", "num_items", "num_interactions", "fingerprint"} <= result["data"].keys()
    wanted = {"ndcg@10", "hr@10", "recall@20", "mrr@10", "coverage@10", "novelty@10"}
    assert wanted <= result["metrics"]["test"].keys() and wanted <= result["metrics"]["validation"].keys()
    assert {"hr@10", "ndcg@10"} <= result["metrics"]["test_sampled_99"].keys()
    assert result["privacy"] is None
    timing = {"total_seconds", "training_seconds", "seconds_per_round", "users_per_second", "peak_rss_mb"}
    assert timing <= result["timing"].keys()
    assert result["communication"]["rounds"] == 4 and result["communication"]["upload_bytes"] > 0
    assert {"versions", "commit", "seed", "device", "num_threads"} <= result["environment"].keys()
    rounds = [json.loads(line) for line in (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()]
    assert [line["round"] for line in rounds] == [1, 2, 3, 4]
    assert all("diagnostics" in line and "validation" in line["metrics"] for line in rounds)
    slices = result["metrics"]["slices"]
    assert {"activity", "item_popularity", "history_length", "context", "user", "gaps"} <= slices.keys()
    assert sum(group["num_users"] for group in slices["history_length"]) == result["metrics"]["test"]["num_users"]
    assert not any("slices" in line["metrics"] or "slices" in line["metrics"]["validation"] for line in rounds)
    assert (tmp_path / "run" / "config.toml").exists() and (tmp_path / "run" / "checkpoint").is_dir()


def test_privacy_is_stated_and_its_epsilon_follows_from_the_events(
    fedrec: Fedrec, private_config_file: Path, tmp_path: Path
) -> None:
    privacy = simulate(fedrec, private_config_file, tmp_path / "run")["privacy"]
    assert privacy["unit"] == "user" and privacy["neighboring_relation"] == "add-or-remove one user"
    assert privacy["trust_model"] == "central" and privacy["delta"] == 1e-5 and privacy["population_size"] == 100
    assert privacy["clipping_norm"] == 1.0
    mu = math.sqrt(sum(event["count"] / event["noise_multiplier"] ** 2 for event in privacy["events"]))
    assert sum(event["count"] for event in privacy["events"]) == 4

    def phi(x: float) -> float:
        return 0.5 * math.erfc(-x / math.sqrt(2))

    epsilon = privacy["epsilon"]
    delta = phi(mu / 2 - epsilon / mu) - math.exp(epsilon) * phi(-mu / 2 - epsilon / mu)
    assert delta == pytest.approx(1e-5, rel=0.01), "Balle & Wang 2018, the exact delta of the composed Gaussian"
    assert 8.0 * 0.995 <= epsilon <= 8.0
    for word in ("epsilon", "1e-05", "add-or-remove one user", "central"):
        assert word in privacy["statement"], privacy["statement"]


def test_local_trust_is_stated_as_replace_one_and_needs_no_large_nodes(
    fedrec: Fedrec, private_config_file: Path, tmp_path: Path
) -> None:
    settings = ("--set", "privacy.trust_model=local", "--set", "federated.num_nodes=20")
    outcome = fedrec("simulate", private_config_file, "--out", tmp_path / "run", "--json", *settings)
    assert outcome.code == 0, outcome.err
    privacy = json.loads(outcome.out.splitlines()[-1])["privacy"]
    assert (privacy["trust_model"], privacy["neighboring_relation"]) == ("local", "replace one user")
    central = simulate(fedrec, private_config_file, tmp_path / "central")["privacy"]
    assert privacy["events"] == central["events"] and privacy["epsilon"] == central["epsilon"]
    assert "no amplification by sampling is claimed" in privacy["statement"]


def test_seed_decides_everything(fedrec: Fedrec, private_config_file: Path, tmp_path: Path) -> None:
    one = simulate(fedrec, private_config_file, tmp_path / "a")
    two = simulate(fedrec, private_config_file, tmp_path / "b")
    other = simulate(fedrec, private_config_file, tmp_path / "c", "runtime.seed=1")
    assert one["metrics"] == two["metrics"]
    for name in ("server.safetensors", "ledger.jsonl"):
        assert (tmp_path / "a/checkpoint" / name).read_bytes() == (tmp_path / "b/checkpoint" / name).read_bytes()
    assert one["metrics"] != other["metrics"]


@pytest.mark.parametrize("private", [False, True])
@pytest.mark.parametrize("protocol", ["leave_one_out", "temporal", "cold_users", "cold_items"])
def test_metrics_recomputed_from_the_lists_and_the_raw_data_agree(
    fedrec: Fedrec,
    config_file: Path,
    private_config_file: Path,
    data_file: Path,
    tmp_path: Path,
    protocol: str,
    private: bool,
) -> None:
    config = private_config_file if private else config_file
    result = simulate(fedrec, config, tmp_path / "run", f"evaluation.protocol={protocol}")
    outcome = fedrec("recommend", "--run", tmp_path / "run", "--all", "--top", 100, "--to", tmp_path / "recs.parquet")
    assert outcome.code == 0, outcome.err
    lists = pd.read_parquet(tmp_path / "recs.parquet")
    events = pd.read_csv(data_file)
    assert set(lists["user"]) <= set(events["user"]) and set(lists["item"]) <= set(events["item"])
    assert list(lists.columns) == ["user", "item", "rank", "score"]
    best = lists.sort_values(["user", "rank"])
    assert best.groupby("user")["score"].apply(lambda column: column.is_monotonic_decreasing).all()
    assert (best.groupby("user")["rank"].first() == 1).all()
    if protocol == "leave_one_out":
        recomputed = leave_one_out_metrics(lists, events)
        assert recomputed == pytest.approx({name: result["metrics"]["test"][name] for name in recomputed}, abs=1e-6)


def leave_one_out_metrics(lists: pd.DataFrame, events: pd.DataFrame) -> dict[str, float]:
    """Recompute from scratch: the last interaction is the target, its rank counts ties against it."""
    ordered = events.sort_values("timestamp", kind="stable")
    enough = ordered.groupby("user").filter(lambda history: len(history) >= 3)
    targets = enough.groupby("user")["item"].last()
    ndcg = hits = recall = reciprocal = 0.0
    shown: set[str] = set()
    for user, own in lists.groupby("user"):
        if user not in targets.index:
            continue
        met = set(ordered[ordered["user"] == user]["item"]) - {targets[user]}
        assert not met & set(own["item"]), "items met before are not recommended"
        shown |= set(own[own["rank"] <= 10]["item"])
        score = own.loc[own["item"] == targets[user], "score"]
        rank = int((own["score"] >= score.iloc[0]).sum()) if len(score) else 10**9
        if rank <= 10:
            hits += 1
            ndcg += 1 / math.log2(rank + 1)
            reciprocal += 1 / rank
        recall += rank <= 20
    num_users = len(targets)
    return {
        "ndcg@10": ndcg / num_users,
        "hr@10": hits / num_users,
        "recall@20": recall / num_users,
        "mrr@10": reciprocal / num_users,
        "coverage@10": len(shown) / events["item"].nunique(),
        "num_users": num_users,
    }


def test_one_users_list_is_the_same_alone(fedrec: Fedrec, config_file: Path, tmp_path: Path) -> None:
    simulate(fedrec, config_file, tmp_path / "run")
    fedrec("recommend", "--run", tmp_path / "run", "--all", "--top", 5, "--to", tmp_path / "all.parquet")
    fedrec("recommend", "--run", tmp_path / "run", "--user", "u007", "--top", 5, "--to", tmp_path / "one.parquet")
    everyone, one = (pd.read_parquet(tmp_path / name) for name in ("all.parquet", "one.parquet"))
    pd.testing.assert_frame_equal(everyone[everyone["user"] == "u007"].reset_index(drop=True), one)


@pytest.mark.parametrize("model", ["popularity", "item_knn", "als"])
def test_baselines_run_under_the_same_protocol(fedrec: Fedrec, data_file: Path, tmp_path: Path, model: str) -> None:
    config = tmp_path / "c.toml"
    config.write_text(f'[data]\npath = "{data_file}"\n[model]\nname = "{model}"\n[federated]\nnum_rounds = 1\n')
    metrics = simulate(fedrec, config, tmp_path / "run")["metrics"]["test"]
    assert 0 < metrics["ndcg@10"] < 1


def test_evaluate_again_gives_the_same_metrics(fedrec: Fedrec, config_file: Path, tmp_path: Path) -> None:
    first = simulate(fedrec, config_file, tmp_path / "run")
    again = fedrec("evaluate", tmp_path / "run", "--json")
    assert json.loads(again.out)["metrics"] == first["metrics"]


def test_table_and_report_for_a_person(fedrec: Fedrec, private_config_file: Path, tmp_path: Path) -> None:
    outcome = fedrec("simulate", private_config_file, "--out", tmp_path / "run")
    assert outcome.code == 0 and "NDCG@10" in outcome.out and "add-or-remove one user" in outcome.out
    page = Path(fedrec("report", tmp_path / "run").out.strip())
    assert page.suffix == ".html" and "add-or-remove one user" in page.read_text(encoding="utf-8")


def test_second_simulation_into_the_same_folder_is_refused(fedrec: Fedrec, config_file: Path, tmp_path: Path) -> None:
    simulate(fedrec, config_file, tmp_path / "run")
    outcome = fedrec("simulate", config_file, "--out", tmp_path / "run")
    assert outcome.code == 2 and "fedrec resume" in outcome.err
