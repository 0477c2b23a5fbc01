"""Clients that change topics, move leaderships and describe: what they were told must be so in the end."""

from __future__ import annotations

from enum import Enum

from fluxd.core.errors import FluxError, Outcome, Reason
from fluxlog.v1 import admin_pb2, log_pb2, record_pb2
from tests.cluster.scene import ADMIN, LOG, TOPIC, Client, Scene

PARTITIONS_MAX = 4
_NAMES = tuple(f"side-{number}" for number in range(6))
_PASSING = (Reason.UNKNOWN_TOPIC, Reason.UNKNOWN_PARTITION, Reason.TOPIC_ID_MISMATCH)


class Fate(Enum):
    """What is known of a topic's name."""

    UNKNOWN = "unknown"
    THERE = "there"
    NOT_THERE = "not there"


class TopicMaker(Client):
    """Makes topics and deletes them, under names that are used again."""

    def __init__(self, name: str, scene: Scene) -> None:
        super().__init__(name, scene)
        self.fates = dict.fromkeys(_NAMES, Fate.NOT_THERE)
        self.ids: dict[str, bytes] = {}

    async def live(self) -> None:
        """About one change a second."""
        while self.scene.writing:
            name = self.rng.choice(_NAMES)
            match self.fates[name]:
                case Fate.NOT_THERE:
                    await self._make(name)
                case Fate.THERE:
                    await self._change(name)
                case Fate.UNKNOWN:
                    await self._delete(name, if_exists=True)
            await self.rest(0.1, 1.0)

    async def _make(self, name: str) -> None:
        factor = self.rng.randint(1, self.scene.replicas)
        request = admin_pb2.CreateTopicRequest(
            name=name, partitions=self.rng.randint(1, 3), replication_factor=factor,
            wait_ms=self.rng.choice((0, 0, 1_000)),
        )  # fmt: skip
        self.fates[name] = Fate.UNKNOWN
        answer = await self.call(
            self.any_address(), ADMIN + "CreateTopic", request, admin_pb2.CreateTopicResponse, 15.0
        )
        if not isinstance(answer, FluxError):
            self.fates[name], self.ids[name] = Fate.THERE, answer.topic_id
            self.scene.counts["topics_created"] += 1
        elif answer.traits.outcome is Outcome.REJECTED:
            self.fates[name] = Fate.NOT_THERE
            if answer.reason is Reason.TOPIC_EXISTS:
                self.scene.on_defect(f"{self.name}: {name} was not there, but to make it: {answer}")

    async def _change(self, name: str) -> None:
        if self.rng.random() < 0.6:
            await self._write(name)
        else:
            await self._delete(name, if_exists=False)

    async def _write(self, name: str) -> None:
        """To this incarnation of the topic only."""
        request = log_pb2.ProduceRequest(
            topic=name, topic_id=self.ids[name], records=[record_pb2.Record(value=self.ids[name])],
        )  # fmt: skip
        answer = await self.call(self.any_address(), LOG + "Produce", request, log_pb2.ProduceResponse, 3.0)
        if isinstance(answer, FluxError) and answer.reason in _PASSING:
            self.scene.on_defect(f"{self.name}: {name} is there, but to write to it: {answer}")
        await self._read(name)

    async def _read(self, name: str) -> None:
        """What is in it was written to this incarnation."""
        request = log_pb2.FetchRequest(topic=name, topic_id=self.ids[name], as_records=True)
        answer = await self.call(self.any_address(), LOG + "Fetch", request, log_pb2.FetchResponse, 3.0)
        if isinstance(answer, FluxError):
            if answer.reason in _PASSING:
                self.scene.on_defect(f"{self.name}: {name} is there, but to read from it: {answer}")
        elif any(record.value != self.ids[name] for record in answer.records):
            self.scene.on_defect(f"{self.name}: {name} holds records of a topic that was deleted")

    async def _delete(self, name: str, *, if_exists: bool) -> None:
        request = admin_pb2.DeleteTopicRequest(name=name, if_exists=if_exists)
        before, self.fates[name] = self.fates[name], Fate.UNKNOWN
        answer = await self.call(
            self.any_address(), ADMIN + "DeleteTopic", request, admin_pb2.DeleteTopicResponse, 15.0
        )
        if not isinstance(answer, FluxError):
            # what was asked for before, and got no answer, may still be on its way
            self.fates[name] = Fate.NOT_THERE if before is Fate.THERE else Fate.UNKNOWN
            self.scene.counts["topics_deleted"] += 1
        elif answer.traits.outcome is Outcome.REJECTED:
            self.fates[name] = before
            if answer.reason is Reason.UNKNOWN_TOPIC:
                self.scene.on_defect(f"{self.name}: {name} was there, but to delete it: {answer}")

    def check(self, names: set[str]) -> None:
        """In the end each topic is there, or is not, as it was told."""
        for name, fate in self.fates.items():
            if (fate is Fate.THERE and name not in names) or (fate is Fate.NOT_THERE and name in names):
                self.scene.on_defect(f"topic {name} is {fate.value}, its client was told; listed are {sorted(names)}")


class Operator(Client):
    """Adds partitions, alters, moves leaderships, and looks."""

    async def live(self) -> None:
        """Now and then."""
        actions = (self._extend, self._alter, self._transfer, self._transfer, self._describe, self._describe)
        while self.scene.writing:
            await self.rng.choice(actions)()
            await self.rest(0.3, 1.5)

    async def _extend(self) -> None:
        total = self.scene.partitions + 1
        if total > PARTITIONS_MAX or self.rng.random() < 0.5:
            return
        request = admin_pb2.AddPartitionsRequest(name=TOPIC, total_partitions=total)
        kind = admin_pb2.AddPartitionsResponse
        answer = await self.call(self.any_address(), ADMIN + "AddPartitions", request, kind, 15.0)
        if not isinstance(answer, FluxError):
            self.scene.partitions = max(self.scene.partitions, answer.partitions)
            self.scene.counts["partitions_added"] += 1

    async def _alter(self) -> None:
        request = admin_pb2.AlterTopicRequest(name=TOPIC)
        request.set_configs["segment.bytes"] = str(self.rng.choice((65_536, 131_072)))
        await self.call(self.any_address(), ADMIN + "AlterTopic", request, admin_pb2.AlterTopicResponse, 15.0)

    async def _transfer(self) -> None:
        request = admin_pb2.TransferLeadershipRequest(
            topic=TOPIC, partition=self.rng.randrange(self.scene.partitions),
            to_node=self.rng.choice((0, *self.scene.addresses)),
        )  # fmt: skip
        kind = admin_pb2.TransferLeadershipResponse
        await self.call(self.any_address(), ADMIN + "TransferLeadership", request, kind, 15.0)

    async def _describe(self) -> None:
        address = self.any_address()
        topics = admin_pb2.DescribeTopicsRequest(names=[TOPIC] if self.rng.random() < 0.5 else [])
        answer = await self.call(address, ADMIN + "DescribeTopics", topics, admin_pb2.DescribeTopicsResponse, 5.0)
        if not isinstance(answer, FluxError):
            for topic in answer.topics:
                if topic.name == TOPIC:  # somebody else's change, answered or not
                    self.scene.partitions = max(self.scene.partitions, len(topic.partitions))
        cluster = admin_pb2.DescribeClusterRequest()
        await self.call(address, ADMIN + "DescribeCluster", cluster, admin_pb2.DescribeClusterResponse, 5.0)


class Founder(Client):
    """Makes the topic that all others use."""

    async def live(self) -> None:
        """Until it is there."""
        partitions = self.rng.choice((1, 2, 4))
        request = admin_pb2.CreateTopicRequest(
            name=TOPIC, partitions=partitions, replication_factor=self.scene.replicas, if_not_exists=True,
            configs={"segment.bytes": "65536"}, wait_ms=5_000,
        )  # fmt: skip
        if self.scene.retention_bytes:
            request.configs["retention.bytes"] = str(self.scene.retention_bytes)
            request.configs["segment.ms"] = "1000"
        kind = admin_pb2.CreateTopicResponse
        while isinstance(await self.call(self.any_address(), ADMIN + "CreateTopic", request, kind, 15.0), FluxError):
            await self.rest(0.1, 0.2)
        self.scene.partitions = partitions
