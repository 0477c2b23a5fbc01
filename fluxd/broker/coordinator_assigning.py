"""Works out who is to have what, and writes it to the groups' log when that is new.

One assignment of a group is on its way at a time; what changes meanwhile is looked at when it is answered.
"""

from __future__ import annotations

from functools import partial
from typing import Protocol

from fluxd.broker.coordinator_log import CoordinatorLog
from fluxd.core.assignor import assign
from fluxd.core.errors import FluxError
from fluxd.core.group_commands import GroupCommands
from fluxd.core.groups import Group, GroupResult
from fluxd.core.metadata import Topic
from fluxd.core.runtime import Reactor
from fluxd.core.types import GroupId as PartitionId

_RETRY = 0.5
"""After a proposal failed (no majority at the moment)."""


class Topics(Protocol):
    """What this node knows of topics: `ClusterView`."""

    def topic(self, name: str) -> Topic | None: ...
    def topic_by_id(self, topic_id: bytes) -> Topic | None: ...


class Assigning:
    """See the module. Nothing is written before `begin`, nor after `end`."""

    def __init__(self, reactor: Reactor, log: CoordinatorLog, commands: GroupCommands, topics: Topics) -> None:
        self._reactor, self._log, self._commands, self._topics = reactor, log, commands, topics
        self._on_its_way: set[str] = set()
        self._turn = 0
        """Of serving: answers of an earlier one do not count."""
        self._active = False

    def begin(self) -> None:
        """This node coordinates, and its metadata is current: a topic that is not there is not there."""
        self._active = True
        for name in self._log.state.groups:
            self.plan(name)

    def end(self) -> None:
        """This node coordinates no more."""
        self._active = False
        self._turn += 1
        self._on_its_way.clear()

    def plan(self, name: str) -> None:
        """Look at a group that has changed, or whose topics have."""
        group = self._log.state.groups.get(name)
        if group is None or not group.members or not self._active or name in self._on_its_way:
            return
        target = self._target(group)
        if target == group.target:
            return
        self._on_its_way.add(name)
        turn = self._turn

        def done(answer: GroupResult | FluxError) -> None:
            if self._turn != turn:
                return
            self._on_its_way.discard(name)
            if isinstance(answer, FluxError):
                self._reactor.call_at(self._reactor.now() + _RETRY, partial(self.plan, name))
            else:
                self.plan(name)  # something may have changed in between

        self._log.propose(self._commands.assign_partitions(group, target), done)

    def settled(self, group: Group) -> bool:
        """Everybody has what is due, and nothing better is known."""
        return group.stable and group.name not in self._on_its_way and self._target(group) == group.target

    def unknown_topics(self, group: Group) -> list[str]:
        """Topics that members want and that are not there."""
        wanted = {name for member in group.members.values() for name in member.topics}
        return sorted(name for name in wanted if self._topics.topic(name) is None)

    def _target(self, group: Group) -> dict[PartitionId, bytes]:
        topics: dict[bytes, int] = {}
        subscriptions: dict[bytes, list[bytes]] = {}
        for member in group.members.values():
            wanted = [topic for name in member.topics if (topic := self._topics.topic(name)) is not None]
            subscriptions[member.member_id] = [topic.topic_id for topic in wanted]
            topics.update((topic.topic_id, len(topic.partitions)) for topic in wanted)
        current = {each: owner.member_id for each, owner in group.owners.items()} | dict(group.target)
        return assign(subscriptions, topics, current)
