"""Has a node tell the leaders of partitions that have lost theirs, for threads: see fluxlog/leader_search.py.

No thread of its own: what gRPC hears goes to the thread that owns what waits.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import grpc

from fluxlog.client import Client
from fluxlog.errors import FluxlogError
from fluxlog.leader_search import ASK_TIMEOUT, WAIT_MS_DEFAULT, LeaderSearch, Waiting
from fluxlog.v1 import admin_pb2

_Outcome = admin_pb2.AwaitLeadersResponse | FluxlogError


class LeaderWatch:
    """See the module. Belongs to one thread.

    Args:
        post: has that thread call something; called on a thread of gRPC's, and must not block.
        wait_ms: of one call.
    """

    def __init__(
        self,
        client: Client,
        waiting: Waiting,
        post: Callable[[Callable[[], None]], None],
        *,
        wait_ms: int = WAIT_MS_DEFAULT,
    ) -> None:
        self._client, self._post = client, post
        self._search = LeaderSearch(waiting, client.addresses, time.monotonic, wait_ms=wait_ms)
        self._call: grpc.Future[admin_pb2.AwaitLeadersResponse] | None = None

    def look(self) -> None:
        """Ask when something waits for its leader; to be called whenever that may be."""
        while self._call is None and (question := self._search.next()) is not None:
            try:
                self._call = self._client.start_call(
                    question.address,
                    lambda node: node.admin.AwaitLeaders,
                    question.request,
                    timeout=ASK_TIMEOUT,
                    on_end=lambda outcome: self._post(partial(self._take, outcome)),
                )
            except FluxlogError as failure:
                self._search.take_failure(failure)

    def close(self) -> None:
        """Cancel what is asked."""
        if self._call is not None:
            self._call.cancel()

    def _take(self, outcome: _Outcome) -> None:
        self._call = None
        if isinstance(outcome, FluxlogError):
            self._search.take_failure(outcome)
        else:
            self._search.take_answer(outcome)
