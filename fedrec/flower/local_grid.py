"""Run a ServerApp against a ClientApp in one process, message by message, as over a network."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from flwr.app import Context, Error, Message, RecordDict, UserConfig, UserConfigValue
from flwr.clientapp import ClientApp
from flwr.common.constant import NUM_PARTITIONS_KEY, PARTITION_ID_KEY, ErrorCode
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run

from fedrec.errors import ConfigError
from fedrec.flower.app_context import checked_config, new_run, server_context, set_identity
from fedrec.flower.wire import Packet, pack_message, pack_records, unpack_message, unpack_records

logger = logging.getLogger(__name__)

_FIRST_NODE_ID = 1000  # clear of Flower's own id 1, and readable: node 1003 holds partition 3


@dataclass(slots=True)
class _Node:
    """What a SuperNode keeps between two messages."""

    node_id: int
    config: UserConfig
    state: Packet = field(default_factory=lambda: pack_records(RecordDict()))
    download_bytes: int = 0
    upload_bytes: int = 0


class LocalGrid(Grid):
    """A Flower grid whose nodes are calls of one ClientApp in this process.

    Messages and node states are serialised on every hop, so server and nodes share no memory. A message is
    answered when it is pushed, one after the other. Flower keeps the identity of the running app in a global,
    so only the newest grid of a process may be in use.
    """

    def __init__(
        self,
        client_app: ClientApp,
        num_nodes: int,
        run_config: Mapping[str, UserConfigValue],
        node_config_extra: Mapping[str, UserConfigValue] | None = None,
    ) -> None:
        """Make the nodes.

        Args:
            client_app: answers every message.
            num_nodes: at least 1; node i has `node_config` {"partition-id": i, "num-partitions": num_nodes}.
            run_config: flat; every node sees a copy as `context.run_config`.
            node_config_extra: more entries for every `node_config`.

        Raises:
            ConfigError: `num_nodes` is below 1, or a config value is not a str, int, float or bool.
        """
        if num_nodes < 1:
            raise ConfigError(f"num_nodes={num_nodes} is not at least 1; a round needs a node to send to")
        self._client_app = client_app
        self._run_config = checked_config("run_config", run_config)
        extra = checked_config("node_config_extra", node_config_extra or {})
        self._nodes: dict[int, _Node] = {}
        for partition in range(num_nodes):
            config = {**extra, PARTITION_ID_KEY: partition, NUM_PARTITIONS_KEY: num_nodes}
            self._nodes[_FIRST_NODE_ID + partition] = _Node(_FIRST_NODE_ID + partition, config)
        self._replies: dict[str, Message] = {}
        self._message_numbers = itertools.count(1)
        self.set_run(new_run())

    @property
    def run(self) -> Run:
        """Return a copy of the run's description."""
        return Run(**vars(self._run))

    @property
    def download_bytes(self) -> dict[int, int]:
        """Count the bytes each node has received so far, by node id, including its last message."""
        return {node.node_id: node.download_bytes for node in self._nodes.values()}

    @property
    def upload_bytes(self) -> dict[int, int]:
        """Count the bytes each node has sent so far, by node id, error replies included."""
        return {node.node_id: node.upload_bytes for node in self._nodes.values()}

    def set_run(self, run: Run) -> None:
        """Make messages created from now on belong to `run`, in the whole process.

        Args:
            run: its id is what messages and contexts carry.
        """
        self._run = run
        set_identity(run.run_id)

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Create a message; `flwr.app.Message(...)` is the newer way to do the same.

        Args:
            content: records to send.
            message_type: "train", "evaluate" or "query", optionally with ".action".
            dst_node_id: one of `get_node_ids()`.
            group_id: by convention the round.
            ttl: seconds; kept in the metadata, never enforced here.

        Returns:
            The message, ready to push.
        """
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """List the node ids in the order of their partitions; always the same for the same `num_nodes`."""
        return list(self._nodes)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Deliver messages and keep the replies for `pull_messages`.

        Args:
            messages: each gets its `message_id` here, as in Flower.

        Returns:
            The message ids, in order.
        """
        ids = []
        for message in messages:
            reply, _ = self._exchange(message)
            self._replies[message.metadata.message_id] = reply
            ids.append(message.metadata.message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Hand over replies; each can be pulled once.

        Args:
            message_ids: from `push_messages`.

        Returns:
            Replies to those of the messages that still have one waiting.
        """
        return [self._replies.pop(message_id) for message_id in message_ids if message_id in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Deliver messages and return the replies that came in time.

        Nodes of a network work side by side, so `timeout` is held against each node's own running time, not
        against the sum. A node that took longer has done its work (its state has moved on), but its reply is lost.

        Args:
            messages: taken one at a time, so a generator never holds more than one.
            timeout: seconds, or None to wait for all.

        Returns:
            Replies in the order of the messages; failed nodes reply with an error.
        """
        replies = []
        for message in messages:
            reply, seconds = self._exchange(message)
            if timeout is None or seconds < timeout:
                replies.append(reply)
            else:
                logger.warning("node %d took %.1f s, timeout is %.1f s", message.metadata.dst_node_id, seconds, timeout)
        return replies

    def _exchange(self, message: Message) -> tuple[Message, float]:
        """Send one message and get its reply, and the seconds the node took."""
        message.metadata.__dict__["_message_id"] = f"message-{next(self._message_numbers)}"
        node = self._nodes.get(message.metadata.dst_node_id)
        if node is None:
            reason = f"no node {message.metadata.dst_node_id}; the ids are in get_node_ids()"
            return Message(Error(ErrorCode.NODE_UNAVAILABLE, reason), reply_to=message), 0.0
        request = pack_message(message)
        node.download_bytes += request.num_bytes
        started = time.monotonic()
        answer = self._answer(node, request)
        seconds = time.monotonic() - started
        node.upload_bytes += answer.num_bytes
        reply = unpack_message(answer)
        reply.metadata.__dict__["_message_id"] = f"reply-{message.metadata.message_id}"
        return reply, seconds

    def _answer(self, node: _Node, request: Packet) -> Packet:
        """Run the ClientApp on a request; a node that fails keeps the state it had before."""
        context = Context(
            self._run.run_id, node.node_id, dict(node.config), unpack_records(node.state), dict(self._run_config)
        )
        message = unpack_message(request)
        asked = message.metadata.message_id
        try:
            reply = self._client_app(message, context)
            _check_reply(reply, asked, node)
            if context.run_config != self._run_config:
                raise ValueError("the ClientApp changed context.run_config; keep notes in context.state")
            answer, state = pack_message(reply), pack_records(context.state)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            logger.warning("node %d failed on %r: %s", node.node_id, message.metadata.message_type, reason)
            logger.debug("traceback of node %d", node.node_id, exc_info=True)
            failure = Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason)
            return pack_message(Message(failure, reply_to=unpack_message(request)))
        node.state = state
        return answer


def run_in_process(
    server_app: ServerApp,
    client_app: ClientApp,
    run_config: Mapping[str, UserConfigValue],
    num_nodes: int,
    node_config_extra: Mapping[str, UserConfigValue] | None = None,
) -> LocalGrid:
    """Run a ServerApp to its end on a grid in this process.

    Args:
        server_app: called once in the calling thread; its exceptions pass through unchanged.
        client_app: called once per message.
        run_config: flat; both apps see it as `context.run_config`.
        num_nodes: at least 1.
        node_config_extra: more entries for every `node_config` of the nodes.

    Returns:
        The grid, with its byte counts.

    Raises:
        ConfigError: as in `LocalGrid`.
    """
    grid = LocalGrid(client_app, num_nodes, run_config, node_config_extra)
    server_app(grid, server_context(run_config))
    return grid


def _check_reply(reply: object, message_id: str, node: _Node) -> None:
    """Refuse what a real SuperLink refuses of a node."""
    if not isinstance(reply, Message):
        raise TypeError(f"the ClientApp returned a {type(reply).__name__}; return Message(content, reply_to=message)")
    if (reply.metadata.reply_to_message_id, reply.metadata.src_node_id) != (message_id, node.node_id):
        raise ValueError(
            "the ClientApp's message is no reply to the one it got; return Message(content, reply_to=message)"
        )
