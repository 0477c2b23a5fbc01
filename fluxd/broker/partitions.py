"""Brings this node's replicas in line with the metadata: opens groups, closes and removes those of deleted topics.

A partition's files are removed for one reason only: a command in the metadata log deleted its topic. What was deleted
while this node was down is found again when the log is replayed, or, of the last METADATA_DELETIONS_REMEMBERED, in the
state that stands for what was trimmed from it. Files that no topic explains are set aside
(quarantined), and only once the metadata is known to be current (`confirmed`): until then their topic may simply not
have been read yet.

So it is with a replica whose vote is bound to another directory: after a restart the metadata that are known at first
may be older than the binding to this one. Such a replica is opened, to be copied anew, only once they are current.

Groups are opened a few at a time with the disk's part off the loop, so that a node with thousands of them stays alive
to its peers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from typing import Protocol

from fluxd.broker.cluster import ClusterView, Replica
from fluxd.broker.metadata import Change
from fluxd.core.metadata import Image, Topic
from fluxd.core.names import parse_configs
from fluxd.core.runtime import Reactor
from fluxd.core.types import METADATA_GROUP, METADATA_TOPIC_ID, GroupId
from fluxd.observability import get_logger
from fluxd.raft.group import Group
from fluxd.raft.spec import GroupSpec
from fluxd.storage.copies import COPIES
from fluxd.storage.directory import PARTITIONS, DataDirectory

log = get_logger()

_OPENING_MAX = 8
"""Opened at the same time: the pool has as many threads."""
_REMOVE_AGAIN, _REMOVE_AGAIN_MAX = 1.0, 60.0


class GroupHost(Protocol):
    """All replicas of this node."""

    @property
    def groups(self) -> Mapping[GroupId, Replica]: ...
    def open_soon(self, spec: GroupSpec, done: Callable[[Replica], None]) -> None: ...
    def close(self, group_id: GroupId) -> None: ...


class Partitions:
    """See the module.

    Args:
        names_at_start: `DataDirectory.partitions()` before any group was opened.
    """

    def __init__(
        self,
        reactor: Reactor,
        host: GroupHost,
        directory: DataDirectory,
        view: ClusterView,
        *,
        names_at_start: list[str],
    ) -> None:
        self._reactor, self._host, self._directory, self._view = reactor, host, directory, view
        self._image = Image()
        self._opening: deque[GroupId] = deque()
        self._in_progress: set[GroupId] = set()
        self._stopped = False
        self._current = False
        self._unexplained: dict[bytes, list[str]] = {}
        """Directories found at the start, by topic id, that no topic of the metadata explains yet."""
        for name in names_at_start:
            try:
                group_id = GroupId.from_directory_name(name)
            except ValueError:
                log.warning("foreign_directory_ignored", directory=name)
                continue
            if group_id != METADATA_GROUP:
                self._unexplained.setdefault(group_id.topic_id, []).append(name)

    @property
    def settled(self) -> bool:
        """Everything that the image asks for is open."""
        return not self._opening and not self._in_progress

    def apply(self, change: Change) -> None:
        """Follow the metadata: a listener of `MetadataFollower`."""
        old, self._image = self._image, change.new
        self._delete(change.deleted_topics)
        for topic_id, topic in change.new.topics.items():
            if old.topics.get(topic_id) is topic or topic_id == METADATA_TOPIC_ID:
                continue
            self._queue(topic)
            _configure(topic, self._own_replicas(topic))
        self._open_some()

    def _queue(self, topic: Topic) -> None:
        local = self._view.local
        for number, partition in enumerate(topic.partitions):
            group_id, bound = topic.group_id(number), partition.directory_of(local.node_id)
            if group_id not in self._host.groups and (
                bound == local.directory_id or (bound is not None and self._current)
            ):
                self._opening.append(group_id)

    def reopened(self, replica: Replica) -> None:
        """A copy has become a replica: for `Host.on_reopened`. Its topic may have been altered meanwhile."""
        self._view.attach(replica)
        topic = self._image.topics.get(replica.group_id.topic_id)
        if topic is not None and topic.topic_id != METADATA_TOPIC_ID:
            _configure(topic, [replica])

    def _own_replicas(self, topic: Topic) -> list[Replica]:
        found = (self._host.groups.get(topic.group_id(number)) for number in range(len(topic.partitions)))
        return [replica for replica in found if replica is not None]

    def confirmed(self) -> None:
        """The image is at least as new as the start of this process: what no topic explains now belongs to none."""
        for name in [name for names in self._unexplained.values() for name in names]:
            partition = self._image.partition(GroupId.from_directory_name(name))
            if partition is None or partition.directory_of(self._view.local.node_id) is None:
                self._blocking("partition_quarantined", name, partial(self._directory.quarantine, name))
        self._unexplained.clear()
        self._current = True
        for topic_id, topic in self._image.topics.items():
            if topic_id != METADATA_TOPIC_ID:
                self._queue(topic)
        self._open_some()

    def stop(self) -> None:
        """Open and remove nothing more."""
        self._stopped = True
        self._opening.clear()

    def _delete(self, topic_ids: Collection[bytes]) -> None:
        names = {name for topic_id in topic_ids for name in self._unexplained.pop(topic_id, ())}
        for group_id in [group_id for group_id in self._host.groups if group_id.topic_id in topic_ids]:
            self._host.close(group_id)
            names.add(group_id.directory_name)
        # What is being opened at this moment is removed once it is open: not from under whoever reads it.
        names -= {group_id.directory_name for group_id in self._in_progress}
        for name in sorted(names):
            self._remove_soon(name)

    def _remove_soon(self, name: str, pause: float = _REMOVE_AGAIN) -> None:
        """Remove the files of a deleted partition, however often it takes: what its replica had begun (a snapshot, to
        let go of segments) may still be under way in another thread and come in between.

        Args:
            pause: seconds until the next attempt, when this one fails.
        """

        def again() -> None:
            later = min(2 * pause, _REMOVE_AGAIN_MAX)
            self._reactor.call_at(self._reactor.now() + pause, lambda: self._remove_soon(name, later))

        self._blocking("partition_removed", name, partial(self._remove, name), failed=again)

    def _remove(self, name: str) -> None:
        # Power lost half way leaves a rest, which the deletion in the metadata explains at the next start.
        for parent in (COPIES, PARTITIONS):
            if self._directory.fs.exists(f"{parent}/{name}"):
                self._directory.fs.remove_tree(f"{parent}/{name}")
                self._directory.fs.sync_directory(parent)

    def _blocking(
        self, event: str, name: str, work: Callable[[], object], *, failed: Callable[[], None] = lambda: None
    ) -> None:
        def step() -> None:
            work()

        def done(error: BaseException | None) -> None:
            if error is None:
                log.info(event, directory=name)
            else:  # found again, and tried again, at the next start at the latest
                log.warning("partition_cleanup_failed", directory=name, wanted=event, error=str(error))
                failed()

        if not self._stopped:
            self._reactor.run_blocking([step], done)

    def _open_some(self) -> None:
        while self._opening and len(self._in_progress) < _OPENING_MAX and not self._stopped:
            self._open(self._opening.popleft())

    def _open(self, group_id: GroupId) -> None:
        if group_id in self._host.groups or group_id in self._in_progress:
            return  # asked for twice
        topic = self._image.topics.get(group_id.topic_id)
        if topic is None:  # deleted while it waited
            self._remove_soon(group_id.directory_name)
            return
        partition = topic.partitions[group_id.partition]
        bound = partition.directory_of(self._view.local.node_id)
        assert bound is not None, "only this node's own replicas are queued"
        config = parse_configs(topic.configs)
        self._in_progress.add(group_id)
        self._host.open_soon(
            GroupSpec(
                group_id,
                partition.generation,
                partition.voters,
                bound,
                segment_bytes=config.segment_bytes,
                segment_ms=config.segment_ms,
            ),
            self._opened,
        )

    def _opened(self, replica: Replica) -> None:
        group_id = replica.group_id
        self._in_progress.discard(group_id)
        topic = self._image.topics.get(group_id.topic_id)
        if topic is not None:
            self._view.attach(replica)
            _configure(topic, [replica])  # it may have been altered meanwhile
        else:  # deleted while it was being opened
            self._host.close(group_id)
            self._remove_soon(group_id.directory_name)
        self._open_some()


def _configure(topic: Topic, replicas: Iterable[Replica]) -> None:
    """Bounds of segments take effect with the next one."""
    config = parse_configs(topic.configs)
    for replica in replicas:
        if isinstance(replica, Group):
            replica.configure(segment_bytes=config.segment_bytes, segment_ms=config.segment_ms)
