"""Which partitions a topic has, and where their leaders are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fluxlog.admin import Admin


@dataclass(frozen=True, slots=True)
class TopicRoute:
    """A topic as writers and readers need it.

    Attributes:
        partitions: their numbers, ascending.
        leaders: address of each partition's leader, where one is known.
    """

    name: str
    topic_id: bytes
    partitions: tuple[int, ...]
    leaders: Mapping[int, str]


def route_of(admin: Admin, name: str) -> TopicRoute:
    """Look a topic up.

    Raises:
        FluxlogError: UNKNOWN_TOPIC, or nobody answers.
    """
    addresses = {node.node_id: node.address for node in admin.describe_cluster().nodes}
    topic = admin.describe_topic(name)
    return TopicRoute(
        name=name,
        topic_id=topic.topic_id,
        partitions=tuple(sorted(partition.partition for partition in topic.partitions)),
        leaders={
            partition.partition: addresses[partition.leader_node]
            for partition in topic.partitions
            if partition.leader_node in addresses
        },
    )
