"""The leader's side of copying: pieces of its snapshot and of its committed log, and the admission.

Stateless: each request is answered for itself, so that the copy goes on after anything that breaks, at this leader or
another. What is not in memory is read in another thread. Who does not lead does not answer; the copying replica asks
again.
"""

from __future__ import annotations

from collections.abc import Callable

from fluxd.core import limits
from fluxd.core.runtime import Reactor
from fluxd.core.types import NodeId, RaftIndex
from fluxd.raft.guard import Guard
from fluxd.storage.log import PartitionLog
from fluxlog.v1 import peer_pb2

Fill = Callable[[peer_pb2.CopyReply], None]
"""Puts the answer into a reply."""


class CopyServing:
    """Of one replica.

    Args:
        wake: has the group stepped soon.
        read_failed: told when this node's disk does not have what was asked for.
    """

    def __init__(
        self,
        guard: Guard,
        log: PartitionLog,
        reactor: Reactor,
        *,
        wake: Callable[[], None],
        read_failed: Callable[[BaseException], None],
    ) -> None:
        self._guard, self._log, self._reactor, self._wake = guard, log, reactor, wake
        self._read_failed = read_failed
        self._reading: set[NodeId] = set()

    def on_request(self, peer: NodeId, message: peer_pb2.GroupMessage) -> None:
        """One CopyRequest of a voter."""
        request, guard, log = message.copy_request, self._guard, self._log
        commit_index = guard.journal.commit_index
        if not guard.is_leader or request.leader_term != guard.term:
            return  # of an earlier leadership: it may have been admitted since
        if not request.behind and commit_index < guard.leading.term_start:
            return  # what it knows to be committed is, but to know all that is takes an entry of its own
        if request.leave:
            if guard.leading.may_leave(peer):
                self._reply(peer, request, _granted)
            return
        if not request.behind:
            progress = guard.leading.progress[peer]
            progress.is_copying = not progress.admitted_at
            if progress.is_copying:
                progress.roused()
                progress.gone()
        if request.admit and not request.behind:
            self._admit(peer, request)
        elif request.next_index == 0:
            read_file, first_index = log.snapshot_file(), log.first_index
            self._read(peer, request, lambda: _with_snapshot(request, first_index, *read_file()))
        elif log.first_index <= request.next_index <= commit_index:
            index = RaftIndex(request.next_index)
            wanted = request.max_bytes or limits.COPY_CHUNK_BYTES
            max_bytes = min(wanted, limits.COPY_CHUNK_BYTES_MAX)
            end_index = RaftIndex(min(commit_index, index + limits.COPY_ENTRIES_MAX - 1))
            plan = log.plan_entries(index, max_bytes=max_bytes, end_index=end_index)
            if isinstance(plan, list):
                self._reply(peer, request, _with_frames(plan))
            else:
                read_frames = plan
                self._read(peer, request, lambda: _with_frames(read_frames()))
        else:
            self._reply(peer, request, lambda reply: None)  # where the log begins and ends is the answer

    def _admit(self, peer: NodeId, request: peer_pb2.CopyRequest) -> None:
        def admitted(index: RaftIndex) -> None:
            self._guard.log_event("replica_admitted", peer=peer, index=index)

            def fill(reply: peer_pb2.CopyReply) -> None:
                reply.admitted, reply.admitted_index = True, index

            self._reply(peer, request, fill)

        self._guard.leading.admit(peer, admitted)
        self._wake()

    def _read(self, peer: NodeId, request: peer_pb2.CopyRequest, read: Callable[[], Fill]) -> None:
        """Answer with what a blocking read finds, one at a time for each peer."""
        if peer in self._reading:
            return
        self._reading.add(peer)
        found: list[Fill] = []
        term = self._guard.term

        def done(error: BaseException | None) -> None:
            self._reading.discard(peer)
            if error is not None:
                self._guard.log_event("copy_read_failed", peer=peer, why=str(error))
                self._read_failed(error)
            elif self._guard.is_leader and self._guard.term == term:
                self._reply(peer, request, found[0])

        self._reactor.run_blocking([lambda: found.append(read())], done)

    def _reply(self, peer: NodeId, request: peer_pb2.CopyRequest, fill: Fill) -> None:
        guard = self._guard
        message = guard.outbox.message()
        message.copy_reply.nonce = request.nonce
        message.copy_reply.first_index = self._log.first_index
        message.copy_reply.commit_index = guard.journal.commit_index
        message.copy_reply.log_bytes = self._log.size_bytes
        fill(message.copy_reply)
        guard.outbox.send(peer, message)


def _granted(reply: peer_pb2.CopyReply) -> None:
    reply.may_leave = True


def _with_frames(frames: list[bytes]) -> Fill:
    def fill(reply: peer_pb2.CopyReply) -> None:
        reply.frames.extend(frames)

    return fill


def _with_snapshot(request: peer_pb2.CopyRequest, first_index: RaftIndex, index: RaftIndex, data: bytes) -> Fill:
    """Args: first_index: of the log before the file was read; that of now may be one which only a newer one vouches
    for.
    """
    position = request.snapshot_position if request.snapshot_index == index else 0

    def fill(reply: peer_pb2.CopyReply) -> None:
        reply.first_index, reply.snapshot_index, reply.snapshot_bytes = first_index, index, len(data)
        reply.snapshot = data[position : position + limits.COPY_CHUNK_BYTES]

    return fill
