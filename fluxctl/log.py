"""fluxctl log: what a stopped node has on its disk. Reads, never writes."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
import yaml

from fluxctl.exits import CommandError, ExitCode
from fluxctl.output import Output, OutputFormat, emit, plural, size, table, unread_is_well
from fluxctl.session import Session, session_of
from fluxlog.offline.check import (
    PARTITIONS,
    Condition,
    DirectoryCheck,
    PartitionCheck,
    check_directory,
    check_partition,
    parse_name,
)
from fluxlog.offline.frames import SUFFIX, Entry, opened, segments, walk
from fluxlog.offline.metadata_state import METADATA_TOPIC_ID, chunks_in
from fluxlog.v1 import record_pb2

app = typer.Typer(no_args_is_help=True, help="Look at the data directory of a node that is stopped.")

Directory = Annotated[
    Path, typer.Argument(help="A node's data directory, or that of one of its partitions.", show_default=False)
]
_KINDS = {value: name.removeprefix("ENTRY_KIND_").lower() for name, value in record_pb2.EntryKind.items()}
_COLUMNS = ("Partition", "Condition", "Offsets", "Records", "Entries", "LastIndex", "Committed", "Size")
_RIGHT = ("Records", "Entries", "LastIndex", "Committed", "Size")
_DUMP_LINE = "{offset:>12} {index:>12} {term:>6} {kind:<8} {records:>7} {bytes:>9} {time:<24} {checksum:<4} {at}"
_DUMP_HEAD = _DUMP_LINE.format(
    offset="Offset", index="Index", term="Term", kind="Kind", records="Records", bytes="Bytes", time="AppendTime",
    checksum="Sum", at="At",
)  # fmt: skip


def _check_stopped(root: Path) -> None:
    """Raises CommandError when a node uses the directory."""
    if not root.is_dir():
        raise CommandError(f"{root} is not a directory")
    try:
        fd = os.open(root / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise CommandError(
            f"{root} is in use by a running node", "stop it first; of a running one fluxctl topics verify tells"
        ) from error
    except OSError as error:
        raise CommandError(f"whether a node uses {root} cannot be told: {error.strerror}") from error
    finally:
        os.close(fd)


def _root_of(directory: Path) -> Path:
    """The data directory that a partition's directory is in."""
    return directory.parent.parent if directory.parent.name == PARTITIONS else directory


@app.command()
def check(context: typer.Context, directory: Directory, output: Output = OutputFormat.TABLE) -> None:
    """Read every byte and say whether it is sound: entries, the chain of their checksums, what must be there, votes.

    A torn tail is what a crash leaves, and no damage: the node cuts it. Exit code 11 when something is damaged.

    Example: fluxctl log check fluxd-data/node-1
    """
    session = session_of(context)
    _check_stopped(_root_of(directory))
    if parse_name(directory.name) is not None:
        one = check_partition(directory)
        found, is_sound = DirectoryCheck(partitions=[one]), one.condition is not Condition.DAMAGED
    else:
        found = check_directory(directory)
        is_sound = found.is_sound
    with unread_is_well():
        if output is not OutputFormat.TABLE:
            emit(_data(found, is_sound), output)
        else:
            _print(session, found, directory, is_sound)
    if not is_sound:
        raise typer.Exit(ExitCode.DAMAGED)


def _print(session: Session, found: DirectoryCheck, directory: Path, is_sound: bool) -> None:
    out = session.out
    if found.node_id:
        out.print(f"node {found.node_id} of cluster {found.cluster_id or '-'}")
    out.print(table(_COLUMNS, [_row(one) for one in found.partitions], right=_RIGHT))
    for one in found.partitions:
        if one.why:
            out.print(f"  {one.name}: {one.why}")
        if one.state is not None:
            held = f"{plural(one.state.topics, 'topic')}, {plural(one.state.nodes, 'node')}"
            out.print(f"  {one.name}: state of the metadata at offset {one.state.applied_offset}: {held}")
    if found.why:
        out.print(f"  {directory}: {found.why}")
    if found.votes is not None:
        votes, torn = found.votes, f", {found.votes.torn_bytes} torn bytes at the end" if found.votes.torn_bytes else ""
        text = f"damaged: {votes.why}" if votes.why else f"{plural(votes.records, 'record')}{torn}"
        out.print(f"votes: {plural(len(votes.groups), 'group')}, {text}")
    elif found.node_id:
        out.print("votes: missing")
    out.print("all is sound" if is_sound else "not all is sound")


def _row(one: PartitionCheck) -> tuple[object, ...]:
    committed = "-" if one.commit_index is None else one.commit_index
    offsets = f"{one.first_offset}..{one.end_offset}"
    return one.name, one.condition.value, offsets, one.records, one.entries, one.last_index, committed, size(one.size)


def _data(found: DirectoryCheck, is_sound: bool) -> dict[str, object]:
    votes = found.votes
    return {
        "sound": is_sound,
        "node_id": found.node_id or None,
        "cluster_id": found.cluster_id or None,
        "why": found.why,
        "votes": votes
        and {"groups": len(votes.groups), "records": votes.records, "torn_bytes": votes.torn_bytes, "why": votes.why},
        "partitions": [
            {
                "directory": one.name, "condition": one.condition.value, "why": one.why, "files": one.files,
                "entries": one.entries, "records": one.records, "size_bytes": one.size, "first_index": one.first_index,
                "last_index": one.last_index, "first_offset": one.first_offset, "end_offset": one.end_offset,
                "torn_bytes": one.torn_bytes, "synced_index": one.synced_index, "commit_index": one.commit_index,
                "metadata_state": one.state and asdict(one.state),
            }
            for one in found.partitions
        ],
    }  # fmt: skip


@app.command()
def dump(
    context: typer.Context,
    directory: Annotated[
        Path, typer.Argument(help="A data directory, that of a partition, or a segment file.", show_default=False)
    ],
    max_entries: Annotated[int | None, typer.Option("--max-entries", "-n", min=1, help="Stop behind so many.")] = None,
    output: Output = OutputFormat.TABLE,
) -> None:
    """List entries: offset, Raft index, term, kind, records, bytes, append time, whether the checksum is right, where.

    --output json gives one JSON object a line. Exit code 11 when something listed is damaged.

    Example: fluxctl log dump fluxd-data/node-1/partitions/55dad86b4ea14708720348d3610114aa-0
    """
    session = session_of(context)
    paths = list(_segment_files(directory))
    if output is OutputFormat.TABLE:
        session.out.print(_DUMP_HEAD)
    count, is_sound = 0, True
    for path in paths:
        for row in _rows(path):
            if count == max_entries:
                break
            count, is_sound = count + 1, is_sound and row["checksum"] == "ok"
            _print_row(session, row, output)
    if not is_sound:
        raise typer.Exit(ExitCode.DAMAGED)


def _segment_files(where: Path) -> Iterator[Path]:
    if where.suffix == SUFFIX and where.is_file():
        _check_stopped(_root_of(where.parent))
        yield where
        return
    _check_stopped(_root_of(where))
    directories = [where] if parse_name(where.name) else sorted((where / PARTITIONS).glob("*"))
    for directory in directories:
        yield from (path for _, path in segments(directory))


def _rows(path: Path) -> Iterator[dict[str, object]]:
    is_metadata = (parse_name(path.parent.name) or (b"", 0))[0] == METADATA_TOPIC_ID
    with opened(path) as data:
        for found in walk(data):
            row: dict[str, object] = {"partition": path.parent.name, "file": path.name, "position": found.position}
            if isinstance(found, Entry):
                stamp = found.stamp
                chunks = chunks_in(data, found) if is_metadata and found.is_sound else []
                if chunks:
                    row["state"] = [
                        {"applied_offset": each.applied_offset, "number": each.number, "count": each.count}
                        for each in chunks
                    ]
                yield row | {
                    "offset": stamp.base_offset, "index": stamp.raft_index, "term": stamp.leader_epoch,
                    "kind": "state" if chunks else _KINDS.get(stamp.kind, str(stamp.kind)),
                    "records": stamp.record_count, "bytes": found.size, "append_time_ms": stamp.append_time_ms,
                    "checksum": "ok" if found.is_sound else "bad",
                }  # fmt: skip
            else:
                yield row | {"checksum": "bad", "why": str(found)}


def _print_row(session: Session, row: dict[str, object], output: OutputFormat) -> None:
    if output is OutputFormat.JSON:
        session.out.out(json.dumps(row), highlight=False)
    elif output is OutputFormat.YAML:
        session.out.out(yaml.safe_dump([row], sort_keys=False), end="", highlight=False)
    elif "why" in row:
        session.out.out(f"  no entry: {row['partition']}/{row['file']}: {row['why']}", highlight=False)
    else:
        time_ms = row["append_time_ms"]
        assert isinstance(time_ms, int)
        shown = row | {"at": f"{row['partition']}/{row['file']}:{row['position']}", "time": _time(time_ms)}
        session.out.out(_DUMP_LINE.format(**shown), highlight=False)


def _time(time_ms: int) -> str:
    try:
        return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    except (ValueError, OverflowError, OSError):
        return str(time_ms)  # of a damaged stamp
