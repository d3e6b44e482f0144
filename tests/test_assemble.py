"""What runs of one process share: data that was loaded once."""

from __future__ import annotations

from fedrec import assemble
from fedrec.config import build

TABLE = {
    "data": {"name": "synthetic", "synthetic": {"num_users": 60, "num_items": 200}},
    "model": {"name": "als", "dim": 4},
    "federated": {"num_nodes": 2, "num_rounds": 3},
}


def text(**tables: object) -> str:
    return build({**TABLE, **tables}, "test").to_json()


def test_runs_that_differ_in_model_and_training_alone_share_their_data() -> None:
    first = text()
    for other in (text(model={"name": "popularity"}), text(federated={"num_nodes": 2, "num_rounds": 9})):
        assert assemble.dataset(other) is assemble.dataset(first)
        assert assemble.node_data(other, 1, 2) is assemble.node_data(first, 1, 2)
    assert assemble.node_data(first, 0, 2) is not assemble.node_data(first, 0, 3)


def test_seed_protocol_and_data_are_not_shared() -> None:
    first = text()
    seed, protocol = text(runtime={"seed": 1}), text(evaluation={"protocol": "temporal"})
    assert assemble.dataset(seed) is assemble.dataset(first)
    assert assemble.whole_split(seed) is not assemble.whole_split(first)
    assert assemble.whole_split(protocol) is not assemble.whole_split(first)
    smaller = text(data={"name": "synthetic", "synthetic": {"num_users": 50, "num_items": 200}})
    assert assemble.dataset(smaller).interactions.num_users == 50


def test_forgotten_data_is_loaded_again() -> None:
    first = text()
    before = assemble.dataset(first)
    assemble.forget_data()
    assert assemble.dataset(first) is not before
    assert assemble.dataset(first).interactions.fingerprint() == before.interactions.fingerprint()
