"""fluxctl topics verify: have all replicas the same log?"""

from __future__ import annotations

from typing import Annotated

import typer

from fluxctl.exits import ExitCode
from fluxctl.options import PARTITION_MAX
from fluxctl.output import Output, OutputFormat, emit, plural, size, table, unread_is_well
from fluxctl.session import Session, session_of
from fluxlog.admin import Admin
from fluxlog.verification import PartitionVerification, ReplicaVerification

_COLUMNS = ("Partition", "Replica", "CheckedUpTo", "Checksum", "Read", "Verdict")


def verify(
    context: typer.Context,
    topic: Annotated[str, typer.Argument(help="Topic name.", show_default=False)],
    partition: Annotated[
        list[int] | None,
        typer.Option(
            "--partition", "-p", min=0, max=PARTITION_MAX, help="Only this one; may be repeated. Default: all."
        ),
    ] = None,
    deep: Annotated[
        bool, typer.Option("--deep", help="Have every replica read all of its log again, not only compare checksums.")
    ] = False,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Compare the replicas of a topic by the checksums of their logs.

    Exit code 11 when one differs, is damaged, or could not be asked. A damaged replica is copied anew by itself.

    Example: fluxctl topics verify orders --deep
    """
    session = session_of(context)
    with session.client() as client:
        admin = Admin(client)
        numbers = sorted(set(partition)) if partition else range(len(admin.describe_topic(topic).partitions))
        found = [admin.verify_partition(topic, number, deep=deep) for number in numbers]
    with unread_is_well():
        _show(session, topic, found, output)
    ill = sum(not one.all_agree for one in found)
    if ill:
        session.warn(f"{ill} of {plural(len(found), 'partition')} not in order")
        raise typer.Exit(ExitCode.DAMAGED)
    if output is OutputFormat.TABLE:
        session.out.print(f"all replicas of {plural(len(found), 'partition')} agree")


def _show(session: Session, topic: str, found: list[PartitionVerification], output: OutputFormat) -> None:
    if output is not OutputFormat.TABLE:
        emit([_data(one, replica) for one in found for replica in one.replicas], output)
        return
    rows = [_row(one, replica) for one in found for replica in one.replicas]
    session.out.print(table(_COLUMNS, rows, right=("Partition", "Replica", "CheckedUpTo", "Read")))
    for one in found:
        for replica in one.replicas:
            if replica.why:
                session.out.print(f"  {topic}-{one.partition}: node {replica.node_id}: {replica.why}")


def _row(one: PartitionVerification, replica: ReplicaVerification) -> tuple[object, ...]:
    checksum = "-" if replica.checksum is None else f"{replica.checksum:08x}"
    read = size(replica.verified_bytes) if replica.verified_bytes else "-"
    return one.partition, replica.node_id, replica.checked_offset, checksum, read, replica.verdict.value


def _data(one: PartitionVerification, replica: ReplicaVerification) -> dict[str, object]:
    return {
        "partition": one.partition,
        "node_id": replica.node_id,
        "checked_offset": replica.checked_offset,
        "checksum": None if replica.checksum is None else f"{replica.checksum:08x}",
        "verified_bytes": replica.verified_bytes,
        "verdict": replica.verdict.value,
        "why": replica.why,
    }
