"""Clients that read: through the library's reader, from one node alone, and the question for the latest offset."""

from __future__ import annotations

import time
from collections.abc import Mapping

import grpc

from fluxlog.client import Client
from fluxlog.errors import FluxlogError, from_rpc_error
from fluxlog.reader import Fetched, Reader
from fluxlog.v1 import log_pb2
from tests.chaos.scene import Scene, Worker, text_of

_BACK_MAX = 2_000
"""Records that a reader which crashed reads again, mostly."""


class LibraryReader(Worker):
    """All partitions through `fluxlog.reader`, which asks another node when one does not answer."""

    def __init__(self, name: str, scene: Scene) -> None:
        super().__init__(name, scene, scene.stop_reading)
        self._positions = dict.fromkeys(range(scene.partitions), 0)

    def live(self) -> None:
        """From somewhere at or below where it was."""
        begin = {number: self._begin_at(position) for number, position in self._positions.items()}
        names = {self.scene.name_of(number): offset for number, offset in begin.items()}
        self.history.assign(self.name, names, time.monotonic())
        invoked = time.monotonic()
        with (
            Client(self.shuffled_addresses()) as client,
            Reader(client, self.scene.topic, begin, patience=None) as reader,
        ):
            while self.alive:
                fetched = reader.poll(0.2)
                if fetched is not None:
                    invoked = self.take(fetched, invoked)

    def take(self, fetched: Fetched, invoked: float) -> float:
        """Enter a poll; returns its end, when the next one begins."""
        completed = time.monotonic()
        runs = [run for batch in fetched.batches() if (run := _run_of(batch.base_offset, batch.decode().values()))]
        first = fetched.wanted_offset
        cut = [(max(offset, first), values[max(0, first - offset) :]) for offset, values in runs]
        partition = self.scene.name_of(fetched.partition)
        if runs:
            self.history.poll_runs(
                self.name, invoked, completed, [(partition, offset, values) for offset, values in cut if values]
            )
        self._positions[fetched.partition] = fetched.next_offset
        self.scene.saw(fetched.partition, fetched.high_watermark)
        return completed

    def _begin_at(self, position: int) -> int:
        if self.rng.random() < 0.05:
            return 0
        return max(0, position - self.rng.randint(0, _BACK_MAX))


def _run_of(offset: int, values: list[bytes | None]) -> tuple[int, list[str]]:
    return offset, [text_of(value) for value in values]


class NodeReader(Worker):
    """All partitions from one node alone, as plain records: whether it leads, follows, or has just come back."""

    def __init__(self, name: str, scene: Scene, node: int) -> None:
        super().__init__(name, scene, scene.stop_reading)
        self._address = scene.addresses[node]
        self._positions = dict.fromkeys(range(scene.partitions), 0)

    def live(self) -> None:
        """From where it was, or a little below."""
        for number, position in self._positions.items():
            self._positions[number] = max(0, position - self.rng.randint(0, _BACK_MAX))
        names = {self.scene.name_of(number): offset for number, offset in self._positions.items()}
        self.history.assign(self.name, names, time.monotonic())
        with Client([self._address]) as client:
            while self.alive:
                if not sum(self._fetch(client, number) for number in self._positions):
                    self.rest(0.1)

    def _fetch(self, client: Client, partition: int) -> int:
        """Ask once; how many records came."""
        offset, invoked = self._positions[partition], time.monotonic()
        answer = fetch(client, self._address, self.scene.topic, partition, offset)
        if isinstance(answer, FluxlogError):
            if not answer.retriable:
                self.scene.failures.append(f"{self.name}: reading {partition} from {offset}: {answer!r}")
                self.rest(1)
            else:
                self.rest(0.05)
            return 0
        record_fetch(self, partition, answer, invoked)
        self._positions[partition] = answer.status.next_offset
        return len(answer.records)


def fetch(
    client: Client, address: str, topic: str, partition: int, offset: int
) -> log_pb2.FetchResponse | FluxlogError:
    """Ask one node for records, once."""
    request = log_pb2.FetchRequest(
        topic=topic, partition=partition, offset=offset, as_records=True, max_bytes=512 * 1024
    )
    try:
        return client.node(address).log.Fetch(request, timeout=2)
    except grpc.RpcError as error:
        return from_rpc_error(error, address=address)


def record_fetch(worker: Worker, partition: int, answer: log_pb2.FetchResponse, invoked: float) -> None:
    """Enter what one fetch returned."""
    runs: list[tuple[str, int, list[str]]] = []
    expected = -1
    for record in answer.records:
        if record.offset != expected:
            runs.append((worker.scene.name_of(partition), record.offset, []))
        runs[-1][2].append(text_of(record.value))
        expected = record.offset + 1
    if runs:
        worker.history.poll_runs(worker.name, invoked, time.monotonic(), runs)
    worker.scene.saw(partition, answer.status.high_watermark)


class LatestReader(Worker):
    """Asks any node where the partitions end: the answer covers all that was acknowledged before."""

    def __init__(self, name: str, scene: Scene) -> None:
        super().__init__(name, scene, scene.stop_reading)

    def live(self) -> None:
        """A few times a second."""
        with Client(self.shuffled_addresses()) as client:
            while self.alive:
                self._ask(client, self.rng.choice(self.shuffled_addresses()))
                self.rest(0.2)

    def _ask(self, client: Client, address: str) -> None:
        queries = [
            log_pb2.OffsetQuery(topic=self.scene.topic, partition=number, latest=True)
            for number in range(self.scene.partitions)
        ]
        invoked = time.monotonic()
        try:
            answer = client.node(address).log.ListOffsets(log_pb2.ListOffsetsRequest(queries=queries), timeout=2)
        except grpc.RpcError:
            return
        for result in answer.results:
            if result.WhichOneof("result") == "found":
                self.scene.saw(result.partition, result.found.offset)
                self.history.watermark(
                    self.name, self.scene.name_of(result.partition), result.found.offset, invoked, time.monotonic(),
                    latest=True,
                )  # fmt: skip


class FinalReader(Worker):
    """In the last phase: everything from the beginning to the highest offset that anybody saw, from one node."""

    def __init__(self, name: str, scene: Scene, node: int, ends: Mapping[int, int], deadline: float) -> None:
        super().__init__(name, scene, scene.stop_reading, crashes=False)
        self._address, self._ends, self._deadline = scene.addresses[node], dict(ends), deadline

    def run(self) -> None:
        """Once."""
        names = {self.scene.name_of(number): 0 for number in self._ends}
        self.history.assign(self.name, names, time.monotonic())
        with Client([self._address]) as client:
            for partition, end in self._ends.items():
                self._read(client, partition, end)

    def _read(self, client: Client, partition: int, end: int) -> None:
        offset, last = 0, "nothing was tried"
        while offset < end and time.monotonic() < self._deadline:
            invoked = time.monotonic()
            answer = fetch(client, self._address, self.scene.topic, partition, offset)
            if isinstance(answer, FluxlogError):
                last = repr(answer)
                time.sleep(0.05)
                continue
            record_fetch(self, partition, answer, invoked)
            offset = answer.status.next_offset
        if offset < end:
            self.scene.failures.append(
                f"{self.name}: partition {partition} read to {offset}, though it goes to {end}: {last}"
            )
