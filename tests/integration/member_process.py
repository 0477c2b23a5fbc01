"""A group member as a process of its own, with generated stubs alone: to be killed, stopped, or kept busy.

    python -m tests.integration.member_process ADDRESS,… GROUP TOPIC

It reads what it owns, prints each record, and commits after that. One JSON object a line on stdout, with the machine's
monotonic time. A line "block SECONDS" on stdin keeps the interpreter from running anything for so long; "leave" ends.
"""

from __future__ import annotations

import ctypes
import json
import os
import queue
import sys
import threading
import time
from collections.abc import Iterator

import grpc

from fluxlog.v1 import groups_pb2, groups_pb2_grpc, log_pb2, log_pb2_grpc

_PAUSE = 0.05
Key = tuple[str, int]


def say(event: str, **fields: object) -> None:
    """One line."""
    sys.stdout.write(json.dumps({"event": event, "at": time.monotonic(), **fields}) + "\n")
    sys.stdout.flush()


class Consumer:
    """One member over as many streams as it takes."""

    def __init__(self, addresses: list[str], group: str, topic: str) -> None:
        self.addresses, self.group, self.topic = addresses, group, topic
        self.member_id = os.urandom(16)
        self.epoch = 0
        self.owned: dict[Key, int] = {}
        self.ids: dict[Key, groups_pb2.TopicPartition] = {}
        self.lock = threading.Lock()
        self.leaving = False
        self.outgoing: queue.SimpleQueue[groups_pb2.MemberMessage | None] = queue.SimpleQueue()
        options = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200)]
        self.channels = [grpc.insecure_channel(address, options=options) for address in addresses]
        self.turn = 0

    def run(self) -> None:
        """Until it has left."""
        threading.Thread(target=self._consume, daemon=True).start()
        threading.Thread(target=self._obey, daemon=True).start()
        while not self.leaving:
            channel = self.channels[self.turn % len(self.channels)]
            try:
                for message in groups_pb2_grpc.GroupsStub(channel).Join(self._messages()):
                    self._take(message)
            except grpc.RpcError as error:
                if error.code() is grpc.StatusCode.FAILED_PRECONDITION:  # fenced: begin anew
                    self.member_id = os.urandom(16)
                say("ended", code=error.code().name, details=error.details())
                self.turn += 1
                time.sleep(_PAUSE)
            self.outgoing.put(None)
        say("left")

    def _messages(self) -> Iterator[groups_pb2.MemberMessage]:
        self.outgoing = queue.SimpleQueue()
        outgoing = self.outgoing
        join = groups_pb2.Join(group=self.group, member_id=self.member_id, topics=[self.topic], client_name="process")
        yield groups_pb2.MemberMessage(join=join)
        while (message := outgoing.get()) is not None:
            yield message

    def _take(self, message: groups_pb2.CoordinatorMessage) -> None:
        with self.lock:
            match message.WhichOneof("body"):
                case "joined":
                    self.epoch = message.joined.member_epoch
                    self.owned.clear()
                    say("joined", resumed=message.joined.resumed, node=message.joined.coordinator_node)
                case "assigned":
                    for each in message.assigned.assignments:
                        key = (each.partition.topic, each.partition.partition)
                        self.ids[key], self.owned[key] = each.partition, each.committed_offset
                    say(
                        "assigned",
                        owned=sorted(number for _, number in self.owned),
                        added=[each.partition.partition for each in message.assigned.assignments],
                        generation=message.assigned.generation,
                    )
                case "revoke":
                    keys = [(each.topic, each.partition) for each in message.revoke.partitions]
                    for key in keys:
                        self.owned.pop(key, None)
                    released = groups_pb2.Released(partitions=message.revoke.partitions)
                    self.outgoing.put(groups_pb2.MemberMessage(released=released))
                    say("released", partitions=[number for _, number in keys])
                case "lost":
                    for taken in message.lost.partitions:
                        self.owned.pop((taken.topic, taken.partition), None)
                    say("lost", partitions=[taken.partition for taken in message.lost.partitions])

    def _consume(self) -> None:
        while not self.leaving:
            with self.lock:
                owned = dict(self.owned)
            if not owned:
                time.sleep(_PAUSE)
            for key, offset in owned.items():
                try:
                    self._read(key, offset)
                except grpc.RpcError:
                    time.sleep(_PAUSE)

    def _read(self, key: Key, offset: int) -> None:
        channel = self.channels[self.turn % len(self.channels)]
        request = log_pb2.FetchRequest(
            topic=key[0], partition=key[1], offset=offset, as_records=True, max_wait_ms=20, max_bytes=20_000
        )
        records = log_pb2_grpc.LogStub(channel).Fetch(request, timeout=5).records
        if not records:
            return
        with self.lock:  # nothing is handed out that was given up meanwhile
            if self.owned.get(key) != offset:
                return
            say("records", partition=key[1], values=[(record.offset, record.value.decode()) for record in records])
            self.owned[key] = records[-1].offset + 1
        item = groups_pb2.OffsetCommit(topic=key[0], partition=key[1], offset=records[-1].offset + 1)
        commit = groups_pb2.CommitOffsetsRequest(
            group=self.group, member_id=self.member_id, member_epoch=self.epoch, offsets=[item]
        )
        invoked = time.monotonic()
        (result,) = groups_pb2_grpc.GroupsStub(channel).CommitOffsets(commit, timeout=5).results
        if not result.HasField("error"):
            say("committed", partition=key[1], offset=result.committed_offset, invoked=invoked)

    def _obey(self) -> None:
        for line in sys.stdin:
            words = line.split()
            if words[0] == "block":
                say("blocked")
                ctypes.PyDLL(None).usleep(int(float(words[1]) * 1e6))  # PyDLL keeps the interpreter's lock
                say("unblocked")
            elif words[0] == "leave":
                self.leaving = True
                self.outgoing.put(groups_pb2.MemberMessage(leave=groups_pb2.Leave()))


if __name__ == "__main__":
    Consumer(sys.argv[1].split(","), sys.argv[2], sys.argv[3]).run()
