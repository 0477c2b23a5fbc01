"""Consumer groups as typed calls, synchronous like `admin`. Answers are the messages of groups.proto themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import grpc

from fluxlog.attempts import Effect
from fluxlog.client import Client, Node, Request, Response
from fluxlog.errors import from_error_message
from fluxlog.v1 import groups_pb2

_PATIENCE = 15.0
"""Seconds in which a call waits for a group's coordinator: longer than an election."""
_DESCRIBED_PER_CALL = 100
_TIMEOUT = 15.0


class Groups:
    """The consumer groups of one cluster through any of its nodes. Every method raises FluxlogError.

    Args:
        client: shared with others as needed; not closed here.
        patience: seconds in which calls are tried again while the cluster cannot serve them (an election).
    """

    def __init__(self, client: Client, *, patience: float = _PATIENCE) -> None:
        self._client, self._patience = client, patience

    def list(self) -> groups_pb2.ListGroupsResponse:
        """All groups, by name. `missing_partitions` is not empty where some could not be asked for."""
        return self._client.call(
            lambda node: node.groups.ListGroups,
            groups_pb2.ListGroupsRequest(),
            timeout=_TIMEOUT,
            patience=self._patience,
        )

    def describe(self, names: Sequence[str]) -> Sequence[groups_pb2.GroupDescription]:
        """Describe groups, in the order of the names.

        Raises:
            FluxlogError: UNKNOWN_GROUP for the first name that does not exist.
        """
        found: list[groups_pb2.GroupDescription] = []
        for first in range(0, len(names), _DESCRIBED_PER_CALL):
            request = groups_pb2.DescribeGroupsRequest(groups=names[first : first + _DESCRIBED_PER_CALL])
            answer = self._client.call(
                lambda node: node.groups.DescribeGroups, request, timeout=_TIMEOUT, patience=self._patience
            )
            if answer.errors:
                raise from_error_message(answer.errors[0])
            found += answer.groups
        return found

    def delete(self, group: str) -> None:
        """Delete a group and what it committed.

        Raises:
            FluxlogError: GROUP_NOT_EMPTY, UNKNOWN_GROUP.
        """
        request = groups_pb2.DeleteGroupRequest(group=group)
        self._change(lambda node: node.groups.DeleteGroup, request)

    def offsets(self, group: str) -> Mapping[tuple[str, int], int]:
        """Committed offsets (the next to be read) by topic and partition; a group that never was has none."""
        request = groups_pb2.FetchOffsetsRequest(group=group)
        answer = self._client.call(
            lambda node: node.groups.FetchOffsets, request, timeout=_TIMEOUT, patience=self._patience
        )
        return {
            (each.partition.topic, each.partition.partition): each.offset
            for each in answer.offsets
            if each.HasField("offset")
        }

    def reset_offsets(self, group: str, offsets: Mapping[tuple[str, int], int | None]) -> None:
        """Set committed offsets in any direction, or remove them (None).

        Raises:
            FluxlogError: GROUP_NOT_EMPTY: the group has members.
        """
        resets = [
            groups_pb2.OffsetReset(partition=groups_pb2.TopicPartition(topic=topic, partition=partition), offset=offset)
            for (topic, partition), offset in sorted(offsets.items())
        ]
        request = groups_pb2.ResetOffsetsRequest(group=group, resets=resets)
        self._change(lambda node: node.groups.ResetOffsets, request)

    def _change(
        self, method: Callable[[Node], grpc.UnaryUnaryMultiCallable[Request, Response]], request: Request
    ) -> None:
        self._client.call(method, request, timeout=_TIMEOUT, patience=self._patience, effect=Effect.ANOTHER)
