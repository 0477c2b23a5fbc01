"""What all clients of a run share, and what a client is: a process on a host of its own that calls nodes."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from google.protobuf.message import Message
from grpc import aio

from fluxd.core.errors import FluxError, Outcome, Reason
from fluxd.peer.channels import PeerUnreachable, error_of
from fluxlog.checker import History
from fluxlog.checker import Outcome as Recorded
from fluxlog.entry import batches_of, parse_response
from fluxlog.v1 import log_pb2
from tests.cluster.calls import SimCall, SimChannel
from tests.cluster.process import SimHost, SimProcess
from tests.cluster.wire import CLIENT_PATIENCE, Wire
from tests.simulation.clock import Simulator

M = TypeVar("M", bound=Message)

TOPIC = "data"
LOG, ADMIN = "/fluxlog.v1.Log/", "/fluxlog.v1.Admin/"
OUTCOMES = {Outcome.REJECTED: Recorded.FAIL, Outcome.UNKNOWN: Recorded.UNKNOWN}


@dataclass
class Scene:
    """One run, as its clients know it."""

    simulator: Simulator
    wire: Wire
    rng: random.Random
    addresses: dict[int, str]
    """Of nodes, by id."""
    counts: Counter[str]
    on_defect: Callable[[str], None]
    history: History = field(default_factory=History)
    partitions: int = 0
    """Of TOPIC, as somebody was told."""
    replicas: int = 3
    retention_bytes: int = 0
    """Of each partition of TOPIC; 0: all is kept."""
    writing: bool = True
    reading: bool = True
    ends: dict[int, int] = field(default_factory=dict)
    """By partition: somebody knows of offsets below."""
    hosts: list[SimHost] = field(default_factory=list)
    """Of all clients."""

    def name_of(self, partition: int) -> str:
        """As in the history."""
        return f"{TOPIC}-{partition}"

    def saw(self, partition: int, end: int) -> None:
        """Somebody knows of offsets below this."""
        self.ends[partition] = max(end, self.ends.get(partition, 0))


class Client:
    """A client. It can crash, and live again under its name with nothing but its name and its numbers."""

    def __init__(self, name: str, scene: Scene) -> None:
        self.name, self.scene = name, scene
        self.rng = random.Random(scene.rng.random())
        self.host = SimHost(name, scene.simulator, self.rng)
        scene.hosts.append(self.host)
        self._channels: dict[str, SimChannel] = {}
        self._tasks: set[asyncio.Future[Any]] = set()
        self._values = 0
        self.over = False
        """Its work is done."""

    # ---- life

    def start(self) -> None:
        """Begin a life."""
        self._channels, self._tasks = {}, set()
        process = SimProcess(
            self.host, on_event=lambda _: None, on_defect=lambda p, text: self.scene.on_defect(f"{p}: {text}"),
            on_log=_ignore, on_end=lambda p: self.scene.wire.ended(p, silently=False),
        )  # fmt: skip
        self.host.process = process
        process.start(self._live)

    async def _live(self) -> None:
        self.over = False
        await self.live()
        self.over = True

    async def live(self) -> None:
        """What it does."""
        raise NotImplementedError

    def crash(self) -> None:
        """In the middle of whatever it does."""
        if self.host.process is not None:
            self.host.process.end()
            self.scene.history.crash(self.name, self.now)

    @property
    def now(self) -> float:
        """Seconds."""
        return self.scene.simulator.now

    async def rest(self, low: float, high: float) -> None:
        """A random while."""
        await asyncio.sleep(self.rng.uniform(low, high))

    def spawn(self, coroutine: Any) -> None:
        """Run something beside."""
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)

        def done(ended: asyncio.Future[Any]) -> None:
            self._tasks.discard(ended)
            if not ended.cancelled():
                ended.result()

        task.add_done_callback(done)

    # ---- calls

    def any_address(self) -> str:
        """Of some node."""
        return self.rng.choice(list(self.scene.addresses.values()))

    def channel(self, address: str) -> SimChannel:
        """One for each node."""
        if address not in self._channels:
            assert self.host.process is not None
            self._channels[address] = SimChannel(self.scene.wire, self.host.process, address, CLIENT_PATIENCE)
        return self._channels[address]

    async def call(self, address: str, method: str, request: Message, kind: type[M], timeout_s: float) -> M | FluxError:
        """One call of one node. What does not come from the server's judgement is OUTCOME_UNKNOWN."""
        data = await self.call_raw(address, method, request, timeout_s)
        return data if isinstance(data, FluxError) else kind.FromString(data)

    async def call_raw(self, address: str, method: str, request: Message, timeout_s: float) -> bytes | FluxError:
        """The same, with the answer's bytes."""
        name = method.rpartition("/")[2]
        try:
            answer: bytes = await self.channel(address).unary_unary(method)(
                request.SerializeToString(), timeout=timeout_s
            )
        except aio.AioRpcError as error:
            failure = failure_of(error)
            self.judge(name, failure)
            return failure
        self.scene.counts[f"ok_{name}"] += 1
        return answer

    def judge(self, method: str, failure: FluxError) -> None:
        """What a node may never say."""
        self.scene.counts[f"answer_{failure.reason.name.lower()}"] += 1
        if failure.reason in (Reason.INTERNAL, Reason.UNAUTHENTICATED, Reason.DUPLICATE_FORGOTTEN):
            self.scene.on_defect(f"{self.name}: {method}: {failure.reason.name}: {failure.message}")

    @contextmanager
    def stream(self, address: str, method: str, request: Message) -> Iterator[SimCall]:
        """One call that is answered by a stream."""
        call = self.channel(address).unary_stream(method)(request.SerializeToString())
        try:
            yield call
        finally:
            call.cancel()

    # ---- values

    def values(self, count: int) -> tuple[list[str], list[bytes]]:
        """New ones: their names, and what is sent."""
        names = [f"{self.name}:{self._values + number}" for number in range(count)]
        self._values += count
        filler = b"." * self.rng.choice((0, 10, 200, 3000))
        return names, [name.encode() + filler for name in names]


def failure_of(error: aio.AioRpcError) -> FluxError:
    """The server's judgement, or that nothing is known."""
    known = error_of(error)
    if isinstance(known, PeerUnreachable):
        return FluxError(Reason.OUTCOME_UNKNOWN, str(known))
    return known


def name_of_value(value: bytes | None) -> str:
    """What precedes the filler."""
    return (value or b"").split(b".", 1)[0].decode()


def runs_of(data: bytes, offset: int) -> tuple[log_pb2.FetchResponse, list[tuple[int, list[str]]]]:
    """An encoded FetchResponse, and the values in it from an offset on: (offset of the first, names)."""
    response = parse_response(data)
    runs = [(record.offset, [name_of_value(record.value)]) for record in response.records]
    for batch in batches_of(response.entries, offset):
        names = [name_of_value(value) for value in batch.decode().values()]
        skipped = max(0, offset - batch.base_offset)
        runs.append((batch.base_offset + skipped, names[skipped:]))
    return response, runs


def _ignore(process: SimProcess, level: str, fields: MutableMapping[str, Any]) -> None:
    """Clients do not log."""
