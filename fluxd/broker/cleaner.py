"""Retention: each leader looks at its own partitions now and then and moves their log start, by age and by size.

What goes is decided in `core/retention.py` from summaries of the segments; the leader proposes it to the group, and
every replica lets go of the same records. Whether anybody has read them plays no part, nor whether a replica is away:
it copies what is left when it is back. The cluster's own topics are not looked at.
"""

from __future__ import annotations

from collections.abc import Mapping

from fluxd.broker.cluster import ClusterView, Replica
from fluxd.core import limits
from fluxd.core.errors import FluxError
from fluxd.core.names import parse_configs
from fluxd.core.retention import RetentionPolicy, retained_from
from fluxd.core.runtime import Reactor, Timer
from fluxd.core.types import GroupId, Offset
from fluxd.observability import get_logger
from fluxd.raft.group import Group
from fluxd.raft.spec import Role

log = get_logger()


class Cleaner:
    """See the module.

    Args:
        groups: the host's table, read live.
    """

    def __init__(self, reactor: Reactor, view: ClusterView, groups: Mapping[GroupId, Replica]) -> None:
        self._reactor, self._view, self._groups = reactor, view, groups
        self._timer: Timer | None = None

    def start(self) -> None:
        """Look every RETENTION_CHECK_INTERVAL from now on."""
        self._timer = self._reactor.call_at(self._reactor.now() + limits.RETENTION_CHECK_INTERVAL, self._round)

    def stop(self) -> None:
        """Move nothing any more."""
        if self._timer is not None:
            self._timer.cancel()

    def _round(self) -> None:
        for topic in tuple(self._view.image.topics.values()):
            if topic.internal:
                continue
            config = parse_configs(topic.configs)
            policy = RetentionPolicy(config.retention_ms, config.retention_bytes)
            for number in range(len(topic.partitions)):
                group = self._groups.get(topic.group_id(number))
                if isinstance(group, Group) and group.role is Role.LEADER:
                    self._clean(f"{topic.name}-{number}", group, policy)
        self.start()

    def _clean(self, name: str, group: Group, policy: RetentionPolicy) -> None:
        start = retained_from(
            group.log.segment_summaries(), policy, now_ms=self._reactor.wall_ms(), high_watermark=group.high_watermark
        )
        if start > group.log_start_offset:
            group.trim(start, lambda error: _tell(name, start, error))


def _tell(name: str, start: Offset, error: FluxError | None) -> None:
    if error is None:
        log.info("records_expired", partition=name, log_start_offset=start)
