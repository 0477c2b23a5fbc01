"""gRPC does not survive a fork: in the child of a process that has used it, its calls hang or abort the process, also
on channels that are opened there. Whoever would make one there is told so at once.

A child that is forked before anything was opened may use the library, and so may one that is spawned.
"""

from __future__ import annotations

import os

from fluxlog.errors import LocalError


class _Process:
    """This one."""

    def __init__(self) -> None:
        self.uses_grpc = self.is_useless = False
        os.register_at_fork(after_in_child=self._begin_child)

    def _begin_child(self) -> None:
        self.is_useless = self.uses_grpc


_process = _Process()


def note_use() -> None:
    """A channel is opened."""
    _process.uses_grpc = True


def was_forked() -> bool:
    """From a process that had used gRPC: nothing that was opened there works here, nor has to be closed."""
    return _process.is_useless


def check_process() -> None:
    """Call before a lock is taken: a thread that is not here may have it.

    Raises:
        LocalError: FORKED: no call can be made in this process.
    """
    if _process.is_useless:
        raise LocalError("FORKED", "forked from a process that had used fluxlog: gRPC does not work here; "
                         "fork before the first call, or spawn (multiprocessing.get_context('spawn'))")  # fmt: skip
