"""Compressed messages through the apps: bytes are said, hostile payloads refused, downloads decoded alike by all."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

import client.app
from client.app import app as honest_app
from client.app import evaluate as honest_evaluate
from client.app import train as honest_train
from fedrec import assemble
from fedrec.config import Config, load
from fedrec.errors import ConfigError
from fedrec.federated.checkpoint import read_checkpoint
from fedrec.flower.local_grid import run_in_process
from fedrec.flower.records import tensors_to_record
from fedrec.run_folder import RunFolder
from server.app import app as server_app

CHAIN = 'federated.upload_codec=["touched_rows", "low_rank", "int8"]'
Tensors = dict[str, torch.Tensor]


def run(config: Config, out: Path, app: ClientApp = honest_app) -> RunFolder:
    run_config = {"config-json": config.to_json(), "out": str(out), "simulation": True}
    run_in_process(server_app, app, run_config, config.federated.num_nodes)
    return RunFolder(out)


def hostile(change: Callable[[Tensors], Tensors]) -> ClientApp:
    """An app whose node 1 changes what it uploads after the first round."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        reply = honest_train(message, context)
        if context.node_config["partition-id"] != 1 or int(message.content["order"]["round"]) == 1:
            return reply
        values = {name: torch.from_numpy(array.numpy().copy()) for name, array in reply.content["values"].items()}
        report = MetricRecord(dict(reply.content["report"]))
        return Message(RecordDict({"values": tensors_to_record(change(values)), "report": report}), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return honest_evaluate(message, context)

    return app


def filled(name: str, value: int) -> Callable[[Tensors], Tensors]:
    return lambda t: {**t, name: torch.full_like(t[name], value)}


ATTACKS: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "rows-out-of-range": (filled("items.rows", 60), "strictly ascending"),
    "rows-repeated": (filled("items.rows", 3), "strictly ascending"),
    "rows-negative": (filled("counts.rows", -1), "strictly ascending"),
    "one-row-missing": (lambda t: {**t, "items.rows": t["items.rows"][:-1]}, "row numbers stand beside"),
    "more-rows-than-items": (lambda t: {**t, "items.rows": torch.arange(61, dtype=torch.int32)}, "shape"),
    "exponent-too-large": (filled("items.values.exponents", 2000), "exponents reach"),
    "code-nobody-sends": (filled("items.values.codes", -128), "no encoder sends it"),
    "exponents-missing": (
        lambda t: {**t, "items.values.exponents": t["items.values.exponents"][:1]},
        "exponents stand beside",
    ),
    "wide-codes": (lambda t: {**t, "items.values.codes": t["items.values.codes"].to(torch.int64)}, "dtype"),
    "wide-table": (lambda t: {**t, "items.values.codes": t["items.values.codes"].repeat(1, 2)}, "shape"),
    "part-missing": (lambda t: {k: v for k, v in t.items() if k != "items.rows"}, "items.rows"),
    "dense-block-beside": (lambda t: {**t, "items": torch.zeros(60, 8, dtype=torch.float64)}, "unexpected"),
    "moments-that-overflow": (
        lambda t: {**t, "items.values.exponents": torch.full_like(t["items.values.exponents"], 1000)},
        "NaN or infinite",
    ),
}


@pytest.mark.parametrize("kind", ATTACKS)
def test_bad_payload_costs_its_node_the_round_and_nothing_else(
    config_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    attack, reason = ATTACKS[kind]
    config = load(config_file, [CHAIN, "evaluation.every=0", "federated.num_rounds=2", "federated.codec_rank=1"])
    with caplog.at_level(logging.WARNING):
        rounds = run(config, tmp_path / "run", hostile(attack)).rounds()
    assert [line["diagnostics"]["nodes"] for line in rounds] == [2, 1]
    assert [sorted(line["communication"]["nodes"]) for line in rounds] == [["0", "1"], ["0"]]
    assert any(reason in record.getMessage() for record in caplog.records if record.name == "server.strategy")


def test_bytes_of_every_node_and_round_are_said(config_file: Path, tmp_path: Path) -> None:
    settings = ['federated.upload_codec="touched_rows"', "federated.num_nodes=7"]
    folder = run(load(config_file, settings), tmp_path / "run")
    for line in folder.rounds():
        said = line["communication"]
        uploads = [said["nodes"][str(node)]["upload_bytes"] for node in range(7)]
        assert len(set(uploads)) > 1, "their users met different items"
        assert said["upload_bytes"] == max(uploads)
        assert {said["nodes"][node]["download_bytes"] for node in said["nodes"]} == {said["download_bytes"]}
    spent = folder.result()["communication"]
    assert spent["upload_codec"] == ["touched_rows"] and spent["download_codec"] == ["dense"]
    assert spent["upload_dense_float32_bytes"] == 4 * (60 * 8 + 60 * 36 + 36 + 60 + 1)
    assert spent["upload_ratio"] == pytest.approx(spent["upload_dense_float32_bytes"] / spent["upload_bytes"])
    assert spent["download_dense_float32_bytes"] == 4 * 60 * 8


def test_default_is_dense_and_says_the_same_bytes_as_its_tensors(config_file: Path, tmp_path: Path) -> None:
    config = load(config_file)
    assert config.federated.upload_codec == config.federated.download_codec == ("dense",)
    said = run(config, tmp_path / "run").rounds()[0]["communication"]
    values = 8 * (60 * 8 + 36 + 60 + 1) + 4 * 60 * 36
    assert said["upload_bytes"] == values + 5 * 128, "numpy's header is 128 bytes an array"
    assert said["download_bytes"] == 4 * 60 * 8 + 128


def test_lossless_upload_gives_the_very_same_model(config_file: Path, tmp_path: Path) -> None:
    dense = run(load(config_file), tmp_path / "dense")
    sparse = run(load(config_file, ['federated.upload_codec="touched_rows"']), tmp_path / "sparse")
    one, two = (read_checkpoint(folder.checkpoint / "server.safetensors").state.shared for folder in (dense, sparse))
    assert torch.equal(one["items"], two["items"])


def test_compressed_run_is_repeatable_and_learns_as_much(config_file: Path, tmp_path: Path) -> None:
    settings = ['federated.upload_codec=["low_rank", "int8"]', "federated.codec_rank=2"]
    one, two = (run(load(config_file, settings), tmp_path / name) for name in "ab")
    dense = run(load(config_file), tmp_path / "dense")
    assert one.result()["metrics"] == two.result()["metrics"]
    found, wanted = (folder.result()["metrics"]["test"]["ndcg@10"] for folder in (one, dense))
    assert found > 0.8 * wanted
    assert one.result()["communication"]["upload_ratio"] > 4


def test_nodes_train_and_are_measured_with_what_they_decode(
    config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, list[torch.Tensor]] = {"train": [], "evaluate": []}
    for kind, name in (("train", "sum_contributions"), ("evaluate", "evaluate_users")):
        original = getattr(client.app, name)

        def recording(*arguments: object, kind: str = kind, original: object = original, **options: object) -> object:
            seen[kind].append(arguments[1]["items"].clone())  # type: ignore[index]
            return original(*arguments, **options)  # type: ignore[operator]

        monkeypatch.setattr(client.app, name, recording)
    config = load(config_file, ['federated.download_codec="int8"'])
    folder = run(config, tmp_path / "run")
    state = read_checkpoint(folder.checkpoint / "server.safetensors").state
    broadcast = assemble.as_broadcast(config, state.shared, 4)["items"]
    assert not torch.equal(broadcast, state.shared["items"]), "the checkpoint is not compressed"
    # Two nodes; a validation after each of four rounds, then the final validation and test.
    assert all(torch.equal(items, broadcast) for items in seen["evaluate"][-6:])
    for round_number in (2, 3, 4):
        trained, validated = seen["train"][2 * round_number - 2], seen["evaluate"][2 * round_number - 4]
        assert torch.equal(trained, validated), "a state is broadcast as the same bytes, whatever for"


@pytest.mark.parametrize("chain", ['"int8"', '["touched_rows"]', '["low_rank", "int8"]'])
def test_plan_refuses_uploads_that_are_not_the_sum_itself(private_config_file: Path, chain: str) -> None:
    with pytest.raises(ConfigError, match=r"federated.upload_codec=.*no known sensitivity.*download_codec"):
        load(private_config_file, [f"federated.upload_codec={chain}"])


def test_plan_allows_downloads_of_what_was_released_and_spends_nothing_on_them(
    private_config_file: Path, tmp_path: Path
) -> None:
    settings = ['federated.download_codec=["touched_rows", "int8"]']
    dense, small = load(private_config_file), load(private_config_file, settings)
    results = [run(config, tmp_path / name).result() for name, config in (("dense", dense), ("small", small))]
    assert results[0]["privacy"] == results[1]["privacy"]
    downloads = [result["communication"]["download_bytes"] for result in results]
    assert downloads[1] < downloads[0]
    assert results[0]["communication"]["upload_bytes"] == results[1]["communication"]["upload_bytes"]


def test_noise_is_not_shared_by_runs_that_train_on_other_downloads(private_config_file: Path) -> None:
    """Their sums differ from round 2 on; the same noise would cancel in the difference of their releases."""
    chains = ('"dense"', '"int8"', '["low_rank"]', '["low_rank", "int8"]')
    configs = [load(private_config_file, [f"federated.download_codec={chain}"]) for chain in chains]
    configs.append(load(private_config_file, [f"federated.download_codec={chains[3]}", "federated.codec_rank=1"]))
    assert len({assemble.noise_key(config) for config in configs}) == len(configs)
    assert assemble.noise_key(configs[0]) == assemble.noise_key(load(private_config_file))


@pytest.mark.parametrize("model", ["mf", "popularity", "item_knn"])
def test_every_model_runs_with_every_stage(config_file: Path, tmp_path: Path, model: str) -> None:
    path = config_file.parent / "model.toml"
    path.write_text(config_file.read_text().replace('name = "als"\ndim = 8\nrecency_weight = 5', f'name = "{model}"'))
    settings = [CHAIN, 'federated.download_codec=["touched_rows", "low_rank", "int8"]', "federated.codec_rank=1"]
    folder = run(load(path, [*settings, "federated.num_rounds=1"]), tmp_path / "run")
    assert 0 < folder.result()["metrics"]["test"]["ndcg@10"] < 1
