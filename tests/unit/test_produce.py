"""Produce on one node: checks, refusals, back-pressure."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from crc32c import crc32c

from fluxd.broker.admission import Admission
from fluxd.core import limits
from fluxd.core.errors import FluxError, Reason
from fluxlog.v1 import record_pb2
from tests.unit.broker_lone import Lone, batch, lone, produce_call


def run(root: Path, test: Callable[[Lone], Awaitable[None]], admission: Admission | None = None) -> None:
    async def inside() -> None:
        async with lone(root, admission) as node:
            await test(node)

    asyncio.run(inside())


async def refusal(work: Awaitable[object]) -> FluxError:
    with pytest.raises(FluxError) as caught:
        await work
    return caught.value


def test_committed(tmp_path: Path) -> None:
    """Offsets are dense; a resend is answered from the first; what was admitted is given back."""

    async def test(node: Lone) -> None:
        first = await node.producing.produce(produce_call("solo", batch([b"a", b"b"], b"p" * 16)))
        second = await node.producing.produce(produce_call("solo", batch([b"c"], b"p" * 16, 2)))
        again = await node.producing.produce(produce_call("solo", batch([b"a", b"b"], b"p" * 16)))
        assert [r.base_offset for r in (first, second, again)] == [0, 2, 0]
        assert [r.duplicate for r in (first, second, again)] == [False, False, True]
        assert (first.copies_on_disk, first.leader.node_id, first.leader.address) == (1, 1, "host1:7000")
        assert node.admission.bytes_admitted == 0
        await node.admission.drained()

    run(tmp_path, test)


def test_plain_records(tmp_path: Path) -> None:
    """Records without an encoder become a batch here."""

    async def test(node: Lone) -> None:
        records = [record_pb2.Record(value=b"a"), record_pb2.Record(key=b"k")]
        response = await node.producing.produce(produce_call("solo", records=records, producer_id=b"p" * 16))
        assert (response.base_offset, response.record_count) == (0, 2)

    run(tmp_path, test)


def test_bad_requests(tmp_path: Path) -> None:
    """Each wrong field has its reason, and nothing is written."""
    good = batch([b"a"])

    async def test(node: Lone) -> None:
        for call, reason in (
            (produce_call("solo"), Reason.INVALID_ARGUMENT),
            (produce_call("solo", good, records=[record_pb2.Record()]), Reason.INVALID_ARGUMENT),
            (produce_call("solo", good, producer_id=b"p" * 16), Reason.INVALID_ARGUMENT),
            (produce_call("solo", good, timeout_ms=60_001), Reason.INVALID_ARGUMENT),
            (produce_call("solo", good, topic_id=b"x"), Reason.INVALID_ARGUMENT),
            (produce_call("solo", good, topic_id=b"x" * 16), Reason.TOPIC_ID_MISMATCH),
            (produce_call("solo", good, partition=1), Reason.UNKNOWN_PARTITION),
            (produce_call("nothing", good), Reason.UNKNOWN_TOPIC),
            (produce_call("__cluster_metadata", good), Reason.PERMISSION_DENIED),
            (produce_call("solo", good, batch_crc32c=crc32c(good) ^ 1), Reason.WRONG_CHECKSUM),
            (produce_call("solo", good + b"\xff"), Reason.CORRUPT_BATCH),
            (produce_call("solo", good, expected_offset=1), Reason.WRONG_EXPECTED_OFFSET),
        ):
            assert (await refusal(node.producing.produce(call))).reason is reason, call
        assert node.group("solo").log_end_offset == 0
        assert node.admission.bytes_admitted == 0

    run(tmp_path, test)


def test_unknown_is_not_said_on_old_knowledge(tmp_path: Path) -> None:
    """While the metadata cannot be confirmed, a topic that is not known here may exist: retriable, nothing written."""

    async def test(node: Lone) -> None:
        node.confirmed = False
        error = await refusal(node.producing.produce(produce_call("nothing", batch([b"a"]))))
        assert (error.reason, error.traits.retriable) == (Reason.NO_CONTROLLER, True)

    run(tmp_path, test)


def test_without_a_quorum(tmp_path: Path) -> None:
    """Refused at once, naming the partition, what it needs and who is missing, with or without a replica here."""

    async def test(node: Lone) -> None:
        for topic, replicas, needed in (("pair", "2", "2"), ("away", "1", "1")):
            error = await refusal(node.producing.produce(produce_call(topic, batch([b"a"]))))
            assert error.reason is Reason.NO_QUORUM
            assert error.metadata == {
                "partition": f"{topic}-0", "replicas": replicas, "needed": needed, "missing_nodes": "2",
            }  # fmt: skip

    run(tmp_path, test)


def test_node_is_full(tmp_path: Path) -> None:
    """Above the bound of bytes in flight: OVERLOADED with a delay; room again when the answer is there."""

    async def test(node: Lone) -> None:
        data = batch([bytes(4_000)])
        calls = [node.producing.produce(produce_call("solo", data)) for _ in range(5)]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        overloaded = [a for a in answers if isinstance(a, FluxError)]
        assert len(overloaded) == 3
        assert {(a.reason, a.retry_after_ms) for a in overloaded} == {(Reason.OVERLOADED, limits.OVERLOADED_RETRY_MS)}
        await node.producing.produce(produce_call("solo", data))

    run(tmp_path, test, Admission(20_000, 20_000))


def test_connection_is_full() -> None:
    """One connection cannot take what others need; a ticket gives back once."""
    admission = Admission(1_000, 600)
    ticket = admission.admit("a", 600)
    with pytest.raises(FluxError, match="on this connection"):
        admission.admit("a", 1)
    admission.admit("b", 400)
    with pytest.raises(FluxError, match="on this node"):
        admission.admit("c", 1)
    ticket.release()
    ticket.release()
    assert admission.bytes_admitted == 400
    admission.admit("c", 600)


def test_cancelled_caller_keeps_its_place(tmp_path: Path) -> None:
    """A client that goes away does not free the bytes of a batch that Raft still holds."""

    async def test(node: Lone) -> None:
        task = asyncio.ensure_future(node.producing.produce(produce_call("solo", batch([b"a"]))))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert node.admission.bytes_admitted > 0
        async with asyncio.timeout(10):
            await node.admission.drained()
        assert node.group("solo").high_watermark == 1

    run(tmp_path, test)
