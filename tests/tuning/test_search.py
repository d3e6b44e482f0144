"""Search spaces, samplers and trials, without any run."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from fedrec.errors import ConfigError, DataError
from fedrec.tuning.search import Search
from fedrec.tuning.space import Range, check_space, load_space, with_values
from fedrec.tuning.sweep import Sweep
from fedrec.tuning.trials import Order, Trial, TrialLog, best_of, median_floors

SPACE = (
    Range(key="model.dim", low=2, high=64, log=True),
    Range(key="model.regularization", low=1e-4, high=1.0, log=True),
    Range(key="federated.upload_codec", values=(["dense"], ["int8"])),
)
TABLE = {"data": {"name": "synthetic"}, "model": {"name": "als"}}


def trial(number: int, value: float = 0.1, state: str = "complete", **more: object) -> Trial:
    params = {"model.dim": 2 + number, "model.regularization": 0.1, "federated.upload_codec": ["dense"]}
    return Trial(number, **{"params": params, "state": state, "values": [value], **more})  # type: ignore[arg-type]


def test_ranges_are_read_from_a_file_and_from_options(tmp_path: Path) -> None:
    file = tmp_path / "space.toml"
    file.write_text(
        '[[range]]\nkey = "model.dim"\nvalues = [8, 16]\n\n'
        '[[range]]\nkey = "model.regularization"\nlow = 1e-3\nhigh = 1\nlog = true\n'
    )
    found = load_space(file, ["model.recency_weight=0..50", "model.loss=bce,'softmax'", "model.a=0.1..3:log"])
    assert found == (
        Range(key="model.dim", values=(8, 16)),
        Range(key="model.regularization", low=1e-3, high=1, log=True),
        Range(key="model.recency_weight", low=0, high=50),
        Range(key="model.loss", values=("bce", "softmax")),
        Range(key="model.a", low=0.1, high=3, log=True),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model.dim", "no values; write KEY=A,B,C"),
        ("dim=1,2", "section.key"),
        ("model.dim=5..5", r"low=5 and high=5, allowed is low < high"),
        ("model.dim=0..5:log", "0 < low < high"),
        ("model.dim=1..5:linear", "ends with :linear"),
        ("model.dim=one..5", "not allowed"),
    ],
)
def test_range_that_makes_no_sense_is_named(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_space(None, [text])


def test_empty_space_a_key_twice_and_a_file_of_something_else_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="empty; give --space"):
        load_space(None, [])
    with pytest.raises(ConfigError, match=r"model\.dim twice"):
        load_space(None, ["model.dim=1,2", "model.dim=3..4"])
    file = tmp_path / "space.toml"
    for text, message in (
        ("[model]\ndim = 3\n", "holds model; write one"),
        ("[[range]]\nkey = 'a.b'\nhi = 3\n", "unknown key hi; did you mean 'high'"),
        ("= 3", "not TOML"),
    ):
        file.write_text(text)
        with pytest.raises(ConfigError, match=message):
            load_space(file, [])
    with pytest.raises(ConfigError, match="can't be read"):
        load_space(tmp_path / "none.toml", [])


@pytest.mark.parametrize(
    "key",
    [
        "data.min_rating",
        "evaluation.k",
        "runtime.seed",
        "privacy.target_epsilon",
        "privacy.target_delta",
        "privacy.unit",
    ],
)
def test_keys_that_change_the_question_or_the_claim_cannot_be_searched(key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key} can't be searched"):
        check_space(TABLE, [Range(key=key, values=(1, 2))], "c.toml")


def test_unknown_key_and_rounds_under_a_given_noise_are_refused_before_any_trial() -> None:
    with pytest.raises(ConfigError, match=r"unknown key model\.dimm; did you mean 'dim'"):
        check_space(TABLE, [Range(key="model.dimm", values=(1, 2))], "c.toml")
    table = {**TABLE, "privacy": {"noise_multiplier": 3.0, "population_size": 100}}
    with pytest.raises(ConfigError, match="changes epsilon"):
        check_space(table, [Range(key="federated.num_rounds", low=1, high=9)], "c.toml")
    check_space(table, [Range(key="privacy.clipping_norm", low=0.1, high=1.0)], "c.toml")


def test_values_are_set_in_a_copy() -> None:
    assert with_values(TABLE, {"federated.num_rounds": 3, "model.dim": 4}) == {
        "data": {"name": "synthetic"},
        "model": {"name": "als", "dim": 4},
        "federated": {"num_rounds": 3},
    }
    assert TABLE == {"data": {"name": "synthetic"}, "model": {"name": "als"}}
    with pytest.raises(ConfigError, match="name is a value"):
        with_values(TABLE, {"model.name.x": 3})


def test_key_of_a_table_within_the_model_leaves_its_neighbours_what_they_are() -> None:
    table = {"data": {"name": "synthetic"}, "model": {"name": "fm"}}
    key = "model.server_optimizer.learning_rate"
    sweep = Sweep(table, "c.toml", (Range(key=key, low=0.1, high=1.0),))
    before, after = (dict(sweep.config(params).model["server_optimizer"]) for params in ({}, {key: 0.5}))
    assert after == {**before, "learning_rate": 0.5} and before["warmup_rounds"] == 50
    other = sweep.config({"model.name": "popularity"}, seed=2)
    assert other.model == {"name": "popularity"} and other.runtime.seed == 2


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_proposal_follows_from_seed_number_and_trials_before(sampler: str) -> None:
    def run(search: Search, number: int) -> Trial:
        params = search.propose()
        assert params == search.propose(), "asking twice changes nothing"
        assert 2 <= params["model.dim"] <= 64 and isinstance(params["model.dim"], int)
        assert 1e-4 <= params["model.regularization"] <= 1 and params["federated.upload_codec"] in (["dense"], ["int8"])
        state = ("complete", "failed", "pruned")[number % 3]
        curve = {1: 0.1, 2: params["model.regularization"]} if state == "pruned" else {}
        values = [] if state == "failed" else [params["model.regularization"]]
        found = Trial(number, params, state, values, curve)
        search.add(found)
        return found

    whole = Search(SPACE, sampler, 3)
    trials = [run(whole, number) for number in range(16)]
    stopped = Search(SPACE, sampler, 3)
    for one in trials[:13]:
        stopped.add(Trial.from_dict(one.to_dict()))
    assert [run(stopped, number) for number in (13, 14, 15)] == trials[13:]
    assert Search(SPACE, sampler, 4).propose() != trials[0].params
    assert len({one.params["model.regularization"] for one in trials}) == 16


def test_tpe_comes_nearer_to_the_best_than_random_search() -> None:
    space = (Range(key="model.a", low=1e-4, high=1.0, log=True), Range(key="model.b", low=0.0, high=1.0))
    distance = {}
    for sampler in ("tpe", "random"):
        best = []
        for seed in range(3):
            search = Search(space, sampler, seed)
            for number in range(40):
                params = search.propose()
                loss = (math.log10(params["model.a"]) + 2) ** 2 + (params["model.b"] - 0.7) ** 2
                search.add(Trial(number, params, "complete", [-loss]))
                best.append(loss) if not number else best.append(min(best.pop(), loss))
        distance[sampler] = sum(best)
    assert distance["tpe"] < distance["random"]


def test_unknown_sampler_and_missing_optuna_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="'grid' is unknown; allowed are tpe, random"):
        Search(SPACE, "grid", 0)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs optuna.*pip install 'fedrec\[tune\]'"):
        Search(SPACE, "tpe", 0)


def test_best_trial_has_the_greatest_mean_and_is_the_earliest_of_equals() -> None:
    trials = [trial(0, 0.2), trial(1, 0.3), trial(2, 0.9, state="pruned"), trial(3, 0.3), trial(4, state="failed")]
    best = best_of(trials)
    assert best is not None and best.number == 1
    assert best_of(trials[2:3]) is None
    assert Trial(0, {}, "complete", [0.1, 0.3]).value == pytest.approx(0.2)
    assert Trial(0, {}, "complete", [0.1, 0.3]).spread == pytest.approx(0.1 * math.sqrt(2))


def test_trial_is_hopeless_where_its_best_so_far_is_below_the_median_of_five_others() -> None:
    curves = [{2: 0.1 * number, 4: 0.2 * number} for number in range(5)]
    trials = [trial(number, curve=curve) for number, curve in enumerate(curves)]
    assert median_floors(trials[:4]) == {} and median_floors([*trials[:4], trial(4, state="failed")]) == {}
    order = Order("ndcg@10", median_floors(trials))
    assert order.floors == pytest.approx({2: 0.2, 4: 0.4})
    assert Order.from_json(order.to_json()) == order
    assert not order.is_hopeless({}) and not order.is_hopeless({1: 0.0}), "no floor there"
    assert order.is_hopeless({2: 0.19}) and not order.is_hopeless({2: 0.2})
    assert order.is_hopeless({2: 0.3, 4: 0.39}) and not order.is_hopeless({2: 0.41, 4: 0.3}), "its best counts"


def test_trials_survive_a_torn_last_line_and_damage_is_named(tmp_path: Path) -> None:
    file = tmp_path / "trials.jsonl"
    log = TrialLog(file)
    for number in range(3):
        log.append(trial(number, curve={1: 0.5}))
    whole = file.read_bytes()
    for cut in (1, 20, 100):
        file.write_bytes(whole[:-cut])
        again = TrialLog(file)
        assert again.trials == log.trials[:2]
        again.append(log.trials[2])
        assert file.read_bytes() == whole
    file.write_bytes(whole.replace(b'"complete"', b'"complet"', 1))
    with pytest.raises(DataError, match=r"trials\.jsonl line 1 is damaged"):
        TrialLog(file)
    file.write_bytes(whole.split(b"\n", 1)[1])
    with pytest.raises(DataError, match="trial 1 where 0 should be"):
        TrialLog(file)
