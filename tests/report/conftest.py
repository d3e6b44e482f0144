"""Synthetic run folders in the shape that DESIGN.md section 8 promises."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

WriteRun = Callable[..., Path]

TEST_METRICS = {
    "ndcg@10": 0.053217,
    "hr@10": 0.108444,
    "recall@20": 0.172999,
    "mrr@10": 0.036671,
    "coverage@10": 0.412345,
    "novelty@10": 8.7654,
    "popularity_lift": 2.3456,
    "num_users": 6040,
}


def privacy(epsilon: float = 7.9991) -> dict[str, Any]:
    """Return the privacy table of a result."""
    return {
        "unit": "user",
        "neighboring_relation": "add-or-remove one user",
        "trust_model": "central",
        "epsilon": epsilon,
        "delta": 1e-5,
        "accountant": "prv",
        "clipping_norm": 1.0,
        "population_size": 6040,
        "events": [
            {"noise_multiplier": 0.6183275, "sampling_probability": 1.0, "count": 1, "purpose": "item factors"},
            {"noise_multiplier": 12.5, "sampling_probability": 0.25, "count": 20, "purpose": "history length"},
        ],
        "statement": f"All releases are ({epsilon}, 1e-05)-DP per user, excluding hyper-parameter selection.",
    }


def groups() -> dict[str, Any]:
    """Return the slices of a result."""
    return {
        "activity": [
            {"group": name, "num_users": users, "ndcg@10": ndcg, "hr@10": 2 * ndcg, "recall@20": 3 * ndcg}
            for name, users, ndcg in (
                ("3-9", 1204, 0.021),
                ("10-49", 3120, 0.048),
                ("50-199", 1500, 0.062),
                ("200+", 216, 0.071),
            )
        ],
        "item_popularity": [
            {
                "group": name,
                "num_items": items,
                "num_targets": targets,
                "interaction_share": share,
                "recommendation_share": recommended,
                "hr@10": hr,
                "recall@20": 1.6 * hr,
            }
            for name, items, targets, share, recommended, hr in (
                ("top 1%", 37, 1022, 0.1734, 0.3912, 0.21),
                ("1-10%", 333, 2611, 0.4512, 0.4433, 0.13),
                ("10-50%", 1482, 2101, 0.3401, 0.1601, 0.055),
                ("bottom 50%", 1854, 306, 0.0353, 0.0054, 0.0),
            )
        ],
        "history_length": [{"group": "5-9", "num_users": 6040, "ndcg@10": 0.0532, "hr@10": 0.1084}],
        "category": [
            {"group": "Drama", "num_users": 4000, "ndcg@10": 0.0511, "hr@10": 0.1111},
            {"group": "Western", "num_users": 9, "ndcg@10": 0.4321, "hr@10": 0.5555},
        ],
        "context": {"weather": [{"group": "unknown", "num_users": 6040, "ndcg@10": 0.0532, "hr@10": 0.1084}]},
        "user": {
            "gender": [
                {"group": "female", "num_users": 1709, "ndcg@10": 0.0444, "hr@10": 0.0999},
                {"group": "male", "num_users": 4331, "ndcg@10": 0.0567, "hr@10": 0.1118},
            ]
        },
        "gaps": {
            "history_length": {"min_users": 50, "num_groups": 1},
            "user.gender": {
                "min_users": 50,
                "num_groups": 2,
                "hr@10": {
                    "gap": 0.0119,
                    "ratio": 0.8936,
                    "lowest": "female",
                    "highest": "male",
                    "gap_by_chance": 0.009,
                },
                "ndcg@10": {"gap": 0.0, "ratio": None, "lowest": "female", "highest": "male", "gap_by_chance": 0.0},
            },
        },
    }


def result(
    model: str = "als", private: dict[str, Any] | None = None, test: dict[str, float] | None = None
) -> dict[str, Any]:
    """Return the content of a `result.json`."""
    metrics = {**TEST_METRICS, **(test or {})}
    return {
        "data": {
            "name": "ml-1m",
            "num_users": 6040,
            "num_items": 3706,
            "num_interactions": 1000209,
            "fingerprint": "5f1c",
        },
        "model": {"name": model, "dim": 32},
        "metrics": {
            "validation": {key: 1.05 * value for key, value in metrics.items()},
            "test": metrics,
            "test_sampled_99": {"hr@10": 0.7241, "ndcg@10": 0.4413},
            "slices": groups(),
        },
        "privacy": private,
        "timing": {
            "total_seconds": 83.21,
            "training_seconds": 61.5,
            "seconds_per_round": 3.021,
            "users_per_second": 1999.4,
            "peak_rss_mb": 612.3,
        },
        "communication": {"download_bytes": 948736, "upload_bytes": 1423104, "rounds": 20},
        "environment": {
            "versions": {"torch": "2.13.0", "flwr": "1.41.0"},
            "commit": "0123abc",
            "seed": 3,
            "device": "cpu",
            "num_threads": 2,
        },
        "from_the_future": {"ignored": True},
    }


def round_line(number: int, epsilon: float | None = None) -> dict[str, Any]:
    """Return one line of `rounds.jsonl`; every second round is evaluated."""
    ndcg = 0.06 * (1 - 0.8**number)
    return {
        "round": number,
        "seconds": 3.0 + 0.01 * number,
        "metrics": {"validation": {"ndcg@10": ndcg, "hr@10": 2.05 * ndcg}} if number % 2 == 0 or number == 1 else {},
        "diagnostics": {"cohort_size": 1500 + number, "clipped_fraction": 0.25, "update_norm": 1.2 / number},
        "communication": {"download_bytes": 948736, "upload_bytes": 1423104},
        "epsilon_spent": epsilon,
        "unknown": [1, 2],
    }


CONFIG = """[data]
name = "{data}"

[model]
name = "als"
dim = 32

[federated]
num_rounds = {rounds}
{privacy}
[runtime]
seed = 3
"""


@pytest.fixture
def write_run(tmp_path: Path) -> WriteRun:
    """Return a function that writes a run folder and returns its path."""

    def write(
        name: str = "run",
        content: dict[str, Any] | None = None,
        rounds: int = 20,
        data: str = "ml-1m",
        private: bool = True,
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        table = "\n[privacy]\ntarget_epsilon = 8.0\ntarget_delta = 1e-05\n" if private else ""
        (folder / "config.toml").write_text(CONFIG.format(data=data, rounds=rounds, privacy=table), encoding="utf-8")
        lines = [
            json.dumps(round_line(number, 8 * number / rounds if private else None)) for number in range(1, rounds + 1)
        ]
        (folder / "rounds.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        if content is not None:
            (folder / "result.json").write_text(json.dumps(content), encoding="utf-8")
        return folder

    return write
