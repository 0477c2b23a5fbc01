"""Calls that are sent again: what that may do, and what is told of them in the end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from fluxlog import Admin as AsyncAdmin
from fluxlog import TopicPartition
from fluxlog.admin import Admin
from fluxlog.aio.connection import Connection
from fluxlog.client import Client
from fluxlog.errors import FluxlogError, Outcome
from fluxlog.groups import Groups

ADDRESSES = ["a:1", "b:2"]
LOST = FluxlogError("UNAVAILABLE", "the connection was lost", retriable=True)
EXISTS = FluxlogError("TOPIC_EXISTS", "it exists", outcome=Outcome.REJECTED, from_server=True)
NO_CONTROLLER = FluxlogError(
    "NO_CONTROLLER", "no controller", outcome=Outcome.REJECTED, from_server=True, retriable=True
)
ASK_ONCE: dict[str, Callable[[Client], object]] = {
    "delete": lambda client: Admin(client, patience=0).delete_topic("t", if_exists=True),
    "create": lambda client: Admin(client, patience=0).create_topic("t"),
    "alter": lambda client: Admin(client, patience=0).alter_topic("t", set_configs={"retention.ms": "1"}),
    "grow": lambda client: Admin(client, patience=0).add_partitions("t", 5),
    "delete records": lambda client: Admin(client, patience=0).delete_records("t", 0, 5),
    "reset offsets": lambda client: Groups(client, patience=0).reset_offsets("g", {("t", 0): 5}),
    "delete group": lambda client: Groups(client, patience=0).delete("g"),
}
ASK_ONCE_ASYNC: dict[str, Callable[[AsyncAdmin], Awaitable[object]]] = {
    "delete": lambda admin: admin.delete_topic("t", if_exists=True),
    "create": lambda admin: admin.create_topic("t"),
    "alter": lambda admin: admin.alter_topic("t", set_configs={"retention.ms": "1"}),
    "grow": lambda admin: admin.add_partitions("t", 5),
    "reset offsets": lambda admin: admin.groups.reset_offsets("g", {TopicPartition("t", 0): 5}),
    "delete group": lambda admin: admin.groups.delete("g"),
}


class _Script:
    """What becomes of the calls, one after the other; the last of them for ever."""

    def __init__(self, ends: Sequence[FluxlogError]) -> None:
        self._ends = list(ends)
        self.sent: list[str] = []

    def play(self, address: str) -> FluxlogError:
        """The call went to this address."""
        self.sent.append(address)
        end = self._ends.pop(0) if len(self._ends) > 1 else self._ends[0]
        return FluxlogError(
            end.reason, end.message, outcome=end.outcome, retriable=end.retriable, from_server=end.from_server,
            address=address,
        )  # fmt: skip


class _Played(Client):
    """Every address can be reached."""

    def __init__(self, *ends: FluxlogError) -> None:
        super().__init__(ADDRESSES)
        self.script = _Script(ends)

    def reach(self, address: str) -> None:
        pass

    def call_node(self, address: str, method: object, request: object, *, timeout: float = 0.0) -> Any:
        raise self.script.play(address)


class _PlayedAsync(Connection):
    """The same, for asyncio."""

    def __init__(self, *ends: FluxlogError) -> None:
        super().__init__(ADDRESSES)
        self.script = _Script(ends)

    async def reach(self, address: str) -> None:
        pass

    async def call_node(self, address: str, method: object, request: object, *, timeout_s: float = 0.0) -> Any:
        raise self.script.play(address)


def _ask_async(ask: Callable[[AsyncAdmin], Awaitable[object]], *ends: FluxlogError) -> tuple[FluxlogError, list[str]]:
    async def run() -> tuple[FluxlogError, list[str]]:
        async with _PlayedAsync(*ends) as connection:
            with pytest.raises(FluxlogError) as caught:
                await ask(AsyncAdmin(connection, patience=0))
            return caught.value, connection.script.sent

    return asyncio.run(run())


def _ask(ask: Callable[[Client], object], *ends: FluxlogError) -> tuple[FluxlogError, list[str]]:
    with _Played(*ends) as client, pytest.raises(FluxlogError) as caught:
        ask(client)
    return caught.value, client.script.sent


@pytest.mark.parametrize("name", ASK_ONCE)
def test_what_a_repetition_could_do_to_something_new_is_not_repeated(name: str) -> None:
    """A topic of the same name, made meanwhile, is not deleted; what was done is not told as rejected."""
    failure, sent = _ask(ASK_ONCE[name], LOST, NO_CONTROLLER)
    assert (failure.outcome, sent) == (Outcome.UNKNOWN, ["a:1"])


@pytest.mark.parametrize("name", ASK_ONCE_ASYNC)
def test_nor_by_asyncio(name: str) -> None:
    failure, sent = _ask_async(ASK_ONCE_ASYNC[name], LOST, NO_CONTROLLER)
    assert (failure.outcome, sent) == (Outcome.UNKNOWN, ["a:1"])


@pytest.mark.parametrize("refusal", [EXISTS, NO_CONTROLLER], ids=["for good", "for now"])
def test_a_refusal_after_a_lost_answer_is_no_rejection(refusal: FluxlogError) -> None:
    """The first attempt may have done what was asked."""
    failures = [
        _ask(lambda client: Admin(client, patience=0).create_topic("t", if_not_exists=True), LOST, refusal),
        _ask_async(lambda admin: admin.create_topic("t", if_not_exists=True), LOST, refusal),
    ]
    for failure, sent in failures:
        assert (failure.reason, failure.outcome, sent) == (refusal.reason, Outcome.UNKNOWN, ADDRESSES)
        assert str(failure) == f"{refusal.message}; an earlier attempt may have done it"


def test_a_refusal_in_an_earlier_round_leaves_no_doubt() -> None:
    failure, sent = _ask(ASK_ONCE["create"], NO_CONTROLLER, NO_CONTROLLER, EXISTS)
    assert (failure.reason, failure.outcome, sent) == ("NO_CONTROLLER", Outcome.REJECTED, ADDRESSES)


def test_a_question_is_asked_everywhere() -> None:
    """It changes nothing: there is nothing to be in doubt about."""
    failure, sent = _ask(lambda client: Admin(client).list_topics(), LOST, EXISTS)
    assert (failure.reason, failure.outcome, str(failure), sent) == (
        "TOPIC_EXISTS", Outcome.REJECTED, "it exists", ADDRESSES,
    )  # fmt: skip
