"""Who gets which partitions: sticky, balanced, with the fewest moves.

A partition stays with whom it is with, as long as that one may have it; what nobody has goes to whoever has least; then
single partitions move from those with more to those with less until no move makes it more even. Members with the same
topics end within one partition of each other. With more members than partitions some get none.

For members with the same topics no assignment that is as even moves fewer partitions: each move lowers a count above
the even share or raises one below it, and both have to be done. Where topics differ the result is a local optimum.

The result is a suggestion that is written to the log before it counts, so this may be changed at any time: replicas
never have to work it out.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from fluxd.core.types import GroupId as PartitionId


def assign(
    subscriptions: Mapping[bytes, Collection[bytes]],
    partitions: Mapping[bytes, int],
    current: Mapping[PartitionId, bytes],
) -> dict[PartitionId, bytes]:
    """Work out an assignment.

    Args:
        subscriptions: topic ids of each member.
        partitions: number of partitions of each topic; topics that are not in here have none.
        current: member that each partition is with; others are with nobody.

    Returns:
        The member of each partition of a topic that anybody wants.
    """
    return _Assigning(subscriptions, partitions, current).run()


class _Assigning:
    def __init__(
        self,
        subscriptions: Mapping[bytes, Collection[bytes]],
        partitions: Mapping[bytes, int],
        current: Mapping[PartitionId, bytes],
    ) -> None:
        self._topics = {member: frozenset(topics) & partitions.keys() for member, topics in subscriptions.items()}
        self._partitions = partitions
        self._current = current
        self._held: dict[bytes, dict[bytes, list[int]]] = {member: {} for member in sorted(subscriptions)}
        """Partition numbers by member and topic."""
        self._load = dict.fromkeys(self._held, 0)

    def run(self) -> dict[PartitionId, bytes]:
        free = self._keep()
        for partition in free:
            self._give_to_least(partition)
        while self._move_one():
            pass
        return {
            PartitionId(topic, number): member
            for member, topics in self._held.items()
            for topic, numbers in topics.items()
            for number in numbers
        }

    def _keep(self) -> list[PartitionId]:
        """Leave everything where it is; returns what is with nobody who may have it."""
        free = []
        for topic in sorted(frozenset[bytes]().union(*self._topics.values())):
            for number in range(self._partitions[topic]):
                partition = PartitionId(topic, number)
                member = self._current.get(partition)
                if member is not None and topic in self._topics.get(member, ()):
                    self._add(member, partition)
                else:
                    free.append(partition)
        return free

    def _add(self, member: bytes, partition: PartitionId) -> None:
        self._held[member].setdefault(partition.topic_id, []).append(partition.partition)
        self._load[member] += 1

    def _give_to_least(self, partition: PartitionId) -> None:
        wanting = (member for member, topics in self._topics.items() if partition.topic_id in topics)
        self._add(min(wanting, key=lambda member: (self._load[member], member)), partition)

    def _move_one(self) -> bool:
        """Move a partition to someone with at least two fewer; False when there is no such move."""
        by_load = sorted(self._load, key=lambda member: (self._load[member], member))
        for receiver in by_load:
            for donor in reversed(by_load):
                if self._load[donor] < self._load[receiver] + 2:
                    break
                topic = self._topic_to_move(donor, receiver)
                if topic is not None:
                    number = self._held[donor][topic].pop()
                    self._load[donor] -= 1
                    self._add(receiver, PartitionId(topic, number))
                    return True
        return False

    def _topic_to_move(self, donor: bytes, receiver: bytes) -> bytes | None:
        """Of which the donor has most beside the receiver, so that each topic is spread, too."""
        held, other = self._held[donor], self._held[receiver]
        movable = [topic for topic, numbers in held.items() if numbers and topic in self._topics[receiver]]
        return max(movable, key=lambda topic: (len(held[topic]) - len(other.get(topic, ())), topic), default=None)
