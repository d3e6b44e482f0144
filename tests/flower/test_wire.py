"""Promise of the in-process wire: what arrives equals what was sent and shares nothing mutable with it."""

from __future__ import annotations

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from fedrec.flower.app_context import set_identity
from fedrec.flower.wire import message_bytes, pack_message, pack_records, unpack_message, unpack_records


def records() -> RecordDict:
    """Make one record of each kind, and a second array record behind them."""
    return RecordDict(
        {
            "arrays": ArrayRecord([np.arange(3.0), np.ones((2, 2), np.int64)]),
            "config": ConfigRecord({"list": [1, 2], "name": "x", "flag": True, "rate": 0.5, "raw": b"\0"}),
            "metrics": MetricRecord({"loss": 1.5}),
            "more": ArrayRecord([np.zeros(0, np.float32)]),
            "empty": ArrayRecord(),
        }
    )


def message() -> Message:
    """Make a message with every kind of record."""
    set_identity(run_id=1)
    return Message(records(), 1000, "train", group_id="7")


def test_messages_arrive_as_they_were_sent() -> None:
    sent = message()

    received = unpack_message(pack_message(sent))

    assert received.content == records()
    assert list(received.content) == list(sent.content)
    assert received.metadata == sent.metadata


def test_a_received_message_shares_nothing_with_the_sent_one() -> None:
    sent = message()
    packet = pack_message(sent)

    for change in (sent, unpack_message(packet)):
        listed = change.content.config_records["config"]["list"]
        assert isinstance(listed, list)
        listed.clear()
        change.content.array_records["arrays"]["0"].data = b""
        change.content.array_records["more"].clear()
        change.metadata.group_id = "8"

        assert unpack_message(packet).content == records()
        assert unpack_message(packet).metadata.group_id == "7"


def test_errors_travel_too() -> None:
    reply = Message(Error(2, "no data"), reply_to=message())

    assert unpack_message(pack_message(reply)).error == Error(2, "no data")


def test_state_survives_the_round_trip() -> None:
    assert unpack_records(pack_records(records())) == records()
    assert unpack_records(pack_records(RecordDict())) == RecordDict()


def test_array_bytes_are_counted_but_not_copied() -> None:
    sent = message()
    sent.content["big"] = ArrayRecord([np.zeros(1000)])
    payload = sent.content.array_records["big"]["0"].data

    packet = pack_message(sent)

    assert packet.payloads[-1] is payload
    assert message_bytes(sent) == packet.num_bytes == message_bytes(unpack_message(packet))
    assert len(payload) < message_bytes(sent) - message_bytes(message()) < len(payload) + 100
