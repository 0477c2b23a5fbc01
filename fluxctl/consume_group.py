"""fluxctl consume --group: a member of a consumer group that prints what it gets."""

from __future__ import annotations

import asyncio
import sys
from datetime import UTC, datetime

import typer

from fluxctl import positions, template
from fluxctl.exits import ExitCode
from fluxctl.session import Session
from fluxlog.aio.consumed import Assigned, ConsumedRecord, ConsumerEvent, Lost, Revoked
from fluxlog.aio.consumer import Consumer, Start
from fluxlog.entry import FetchedRecord


def consume_as_member(
    session: Session, group: str, topic: str, start: positions.Position, render: template.Render, max_messages: int
) -> None:
    """Print records of the partitions that the group gives to this member, until Ctrl-C or so many were printed.

    What was printed is committed.

    Args:
        start: where nothing is committed.
        max_messages: 0: no end.
    """
    try:
        asyncio.run(_consume(session, group, topic, _start_of(start), render, max_messages))
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
            session.err.print(
                f"{type(event).__name__.lower()}: {topic} partitions {numbers}", markup=False, style="dim"
            )

    consumer = Consumer(session.addresses(), topic, group=group, start=start, on_event=tell, client_name="fluxctl")
    async with consumer:
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


def _write(render: template.Render, *records: ConsumedRecord) -> None:
    out = [render(record.topic, record.partition, FetchedRecord(*record[2:])) for record in records]
    sys.stdout.buffer.write(b"".join(out))
    sys.stdout.buffer.flush()
