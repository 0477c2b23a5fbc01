"""Clients that write: through the library's sender, and with nothing but the stub."""

from __future__ import annotations

import threading
import time

import grpc

from fluxlog.checker import Outcome
from fluxlog.client import Client
from fluxlog.delivery import BatchResult
from fluxlog.errors import FluxlogError, from_rpc_error
from fluxlog.sender import Sender
from fluxlog.v1 import log_pb2, record_pb2
from tests.chaos.scene import OUTCOMES, Scene, Worker, outcome_of

_DELIVERY_TIMEOUT = 15.0


class StreamWriter(Worker):
    """Many batches in flight, in order, through `fluxlog.sender`.

    Args:
        interval: seconds between two batches.
        records_max: records of a batch; 1: every partition in turn, as a probe.
    """

    def __init__(self, name: str, scene: Scene, *, interval: float, records_max: int, crashes: bool = True) -> None:
        super().__init__(name, scene, scene.stop_writing, crashes=crashes)
        self._interval, self._records_max = interval, records_max
        self._lock = threading.Lock()
        self._life = 0

    def live(self) -> None:
        """One sender."""
        life = self._life
        with Client(self.shuffled_addresses()) as client:
            sender = Sender(
                client, self.scene.topic, on_result=lambda result: self._take(life, result),
                delivery_timeout=_DELIVERY_TIMEOUT, buffer_bytes=2 * 1024 * 1024,
            )  # fmt: skip
            turn = 0
            while self.alive:
                turn += 1
                self._send(sender, turn)
                self.rest(self._interval)
            if self.stop.is_set():
                sender.flush(_DELIVERY_TIMEOUT + 5)
            with self._lock:
                self._life += 1
            sender.close()

    def _send(self, sender: Sender, turn: int) -> None:
        probe = self._records_max == 1
        partition = (turn if probe else self.rng.getrandbits(16)) % self.scene.partitions
        count = 1 if probe else self.rng.randint(1, self._records_max)
        values = [self.value(0 if probe else self.random_size()) for _ in range(count)]
        with self._lock:
            number = self.history.send(
                self.name, self.scene.name_of(partition), [text for text, _ in values], time.monotonic()
            )
        try:
            sender.send(partition, [data for _, data in values], context=number, timeout=1)
        except FluxlogError as failure:
            with self._lock:
                self.history.sent(number, time.monotonic(), outcome_of(failure))

    def _take(self, life: int, result: BatchResult) -> None:
        with self._lock:
            if life == self._life:
                committed = result.outcome.name == "COMMITTED"
                self.history.sent(
                    result.context, time.monotonic(), OUTCOMES[result.outcome],
                    offset=result.base_offset if committed else None,
                    leader_epoch=result.leader_epoch if committed else None,
                )  # fmt: skip
        if result.base_offset >= 0:
            self.scene.saw(result.partition, result.base_offset + result.record_count)


class StubWriter(Worker):
    """Plain records through the generated stub, one request at a time, at any node."""

    def __init__(self, name: str, scene: Scene, *, interval: float) -> None:
        super().__init__(name, scene, scene.stop_writing)
        self._interval = interval

    def live(self) -> None:
        """One client of the stub. When it crashes, a request is on its way."""
        with Client(self.shuffled_addresses()) as client:
            self.begin()
            while self.alive:
                self.write(client)
                self.rest(self.rng.uniform(0, 2 * self._interval))
            if not self.stop.is_set():
                _, request = self.open_request(self.rng.randrange(self.scene.partitions))
                client.node(self.rng.choice(self.shuffled_addresses())).log.Produce.future(request, timeout=5)

    def begin(self) -> None:
        """A new life."""

    def write(self, client: Client) -> None:
        """One send, once: no producer id, so it is not tried again."""
        partition = self.rng.randrange(self.scene.partitions)
        number, request = self.open_request(partition)
        self.finish(number, partition, self.attempt(client, request))

    def open_request(self, partition: int, *, expected_offset: int | None = None) -> tuple[int, log_pb2.ProduceRequest]:
        """Enter a send into the history; its number and its request."""
        values = [self.value(self.random_size()) for _ in range(self.rng.choice((1, 1, 3)))]
        number = self.history.send(
            self.name, self.scene.name_of(partition), [text for text, _ in values], time.monotonic(),
            expected_offset=expected_offset,
        )  # fmt: skip
        records = [record_pb2.Record(value=data) for _, data in values]
        return number, log_pb2.ProduceRequest(
            topic=self.scene.topic, partition=partition, records=records, expected_offset=expected_offset,
            timeout_ms=3_000,
        )  # fmt: skip

    def attempt(self, client: Client, request: log_pb2.ProduceRequest) -> log_pb2.ProduceResponse | FluxlogError:
        """Ask some node, once."""
        address = self.rng.choice(self.shuffled_addresses())
        try:
            return client.node(address).log.Produce(request, timeout=self.rng.choice((0.5, 2, 4)))
        except grpc.RpcError as error:
            return from_rpc_error(error, address=address)

    def finish(
        self, number: int, partition: int, answer: log_pb2.ProduceResponse | FluxlogError, *, unclear: bool = False
    ) -> None:
        """Enter the answer.

        Args:
            unclear: an earlier attempt may have been written.
        """
        if isinstance(answer, FluxlogError):
            outcome = Outcome.UNKNOWN if unclear else outcome_of(answer)
            self.history.sent(number, time.monotonic(), outcome)
            return
        leads = not answer.duplicate and answer.leader.leader_epoch == answer.leader_epoch
        self.history.sent(
            number, time.monotonic(), Outcome.OK, offset=answer.base_offset, leader_epoch=answer.leader_epoch,
            node=answer.leader.node_id if leads else None,
        )  # fmt: skip
        self.scene.saw(partition, answer.base_offset + answer.record_count)


class IdempotentWriter(StubWriter):
    """The stub with a producer id: a send is tried again, at any node, until its outcome is known or time is up."""

    def begin(self) -> None:
        """A new producer."""
        self._producer_id = self.rng.randbytes(16)
        self._sequences: dict[int, int] = {}

    def write(self, client: Client) -> None:
        """One send, as often as needed."""
        partition = self.rng.randrange(self.scene.partitions)
        number, request = self.open_request(partition)
        request.producer_id, request.base_sequence = self._producer_id, self._sequences.get(partition, 0)
        give_up_at, unclear = time.monotonic() + _DELIVERY_TIMEOUT, False
        while True:
            answer = self.attempt(client, request)
            if not isinstance(answer, FluxlogError):
                self._sequences[partition] = request.base_sequence + len(request.records)
                self.finish(number, partition, answer)
                return
            unclear |= outcome_of(answer) is Outcome.UNKNOWN
            if time.monotonic() > give_up_at or self.stop.is_set():
                self.finish(number, partition, answer, unclear=unclear)
                self.begin()  # its sequence may be used or not
                return
            if not self.alive:  # crashed in the middle
                return
            self.rest(0.1)


class ConditionalWriter(StubWriter):
    """Appends only where it believes the end to be, against everybody else."""

    def begin(self) -> None:
        """It believes nothing."""
        self._ends: dict[int, int] = {}

    def write(self, client: Client) -> None:
        """Try a few times to be the one that is next."""
        partition = self.rng.randrange(self.scene.partitions)
        for _ in range(5):
            expected = self._ends.get(partition, 0)
            number, request = self.open_request(partition, expected_offset=expected)
            answer = self.attempt(client, request)
            self.finish(number, partition, answer)
            if not isinstance(answer, FluxlogError):
                self._ends[partition] = answer.base_offset + answer.record_count
                return
            if answer.reason != "WRONG_EXPECTED_OFFSET":
                return
            self._ends[partition] = int(answer.metadata["log_end_offset"])
