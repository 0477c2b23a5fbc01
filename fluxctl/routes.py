"""Which partitions a topic has, and where their leaders are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fluxlog.admin import Admin
from fluxlog.v1 import admin_pb2


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


def every_topic(admin: Admin, *, under_replicated_only: bool = False) -> list[admin_pb2.TopicDescription]:
    """All topics described, the cluster's own behind the others.

    Args:
        under_replicated_only: of each, only partitions without a leader or with a replica out of sync.
    """
    internal = [topic.name for topic in admin.list_topics(include_internal=True) if topic.internal]
    out = list(admin.describe_topics(under_replicated_only=under_replicated_only))
    if internal:
        out += admin.describe_topics(internal, under_replicated_only=under_replicated_only)
    return out


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
