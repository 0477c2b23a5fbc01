"""fluxctl consume --group: a member of a consumer group that prints what it gets."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import typer

from fluxctl import positions, template
from fluxctl.exits import CommandError, ExitCode
from fluxctl.output import write_bytes
from fluxctl.session import Session
from fluxlog.admin import Admin
from fluxlog.aio.connection import Connection
from fluxlog.aio.consumed import Assigned, ConsumedRecord, ConsumerEvent, Lost, Revoked, TopicPartition
from fluxlog.aio.consumer import Consumer, Start
from fluxlog.entry import FetchedRecord, UndecodableBatchError


def consume_as_member(
    session: Session, group: str, topic: str, start: positions.Position, render: template.Render, max_messages: int
) -> None:
    """Print records of the partitions that the group gives to this member, until Ctrl-C or so many were printed.

    What was printed is committed.

    Args:
        start: where nothing is committed.
        max_messages: 0: no end.

    Raises:
        FluxlogError: there is no such topic, or nobody answers: a member would wait for either.
        CommandError: a batch cannot be decoded.
    """
    begin = _start_of(start)
    with session.client() as client:
        Admin(client).describe_topic(topic)
    try:
        asyncio.run(_consume(session, group, topic, begin, render, max_messages))
    except KeyboardInterrupt:
        raise typer.Exit(ExitCode.INTERRUPTED) from None


def _start_of(position: positions.Position) -> Start:
    match position.kind:
        case positions.Kind.START:
            return "earliest"
        case positions.Kind.END:
            return "latest"
        case positions.Kind.TIME:
            return datetime.fromtimestamp(position.number / 1000, UTC)
        case _:
            raise typer.BadParameter("with --group begin at start, end or @time: offsets are the group's affair")


async def _consume(
    session: Session, group: str, topic: str, start: Start, render: template.Render, max_messages: int
) -> None:
    def tell(event: ConsumerEvent) -> None:
        if isinstance(event, Assigned | Revoked | Lost):
            numbers = ", ".join(str(where.partition) for where in event.partitions)
            session.err.print(f"{type(event).__name__.lower()}: {topic} partitions {numbers}", style="dim")

    async with Connection(session.addresses(), on_retry=session.note_retry) as connection:
        consumer = Consumer(connection, topic, group=group, start=start, on_event=tell, client_name="fluxctl")
        async with consumer:
            try:
                await _print(consumer, render, max_messages)
            except UndecodableBatchError as error:
                raise _undecodable(consumer, group, topic, error) from error


async def _print(consumer: Consumer, render: template.Render, max_messages: int) -> None:
    if max_messages:
        left = max_messages
        async for record in consumer:
            _write(render, record)
            left -= 1
            if not left:
                await consumer.commit()
                return
    async for batch in consumer.batches():
        _write(render, *batch)


def _undecodable(consumer: Consumer, group: str, topic: str, error: UndecodableBatchError) -> CommandError:
    """Where it is, and how the group gets behind it: the partition is one whose next record the batch has."""
    numbers = [where.partition for where in consumer.assignment() if _is_next(consumer, where, error)]
    return CommandError(
        f"{' or '.join(f'{topic}-{number}' for number in numbers) or topic}: {error}",
        f"step over it when the group has no members: fluxctl groups reset-offsets {group} "
        f"--topic {topic}:{numbers[0] if numbers else 'PARTITION'} --offset {error.next_offset} --execute",
    )


def _is_next(consumer: Consumer, where: TopicPartition, error: UndecodableBatchError) -> bool:
    return error.base_offset <= consumer.position(*where) < error.next_offset


def _write(render: template.Render, *records: ConsumedRecord) -> None:
    write_bytes(b"".join(render(record.topic, record.partition, FetchedRecord(*record[2:])) for record in records))
