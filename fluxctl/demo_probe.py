"""For how long can nothing be written? A probe writes one record after another and notes when each was answered."""

from __future__ import annotations

import threading
import time

from fluxctl.demo_ledger import Ledger
from fluxlog.client import Client
from fluxlog.delivery import BatchResult
from fluxlog.errors import FluxlogError
from fluxlog.sender import Sender

_PAUSE = 0.002
_BACKOFF_MAX = 0.02
_DELIVERY_TIMEOUT = 120.0


class Probe:
    """Writes single records to one partition for as long as it runs, each after the answer to the one before.

    Args:
        client: shared.
        ledger: takes the outcomes.
    """

    def __init__(self, client: Client, topic: str, partition: int, ledger: Ledger) -> None:
        self._partition, self._ledger = partition, ledger
        self._changed = threading.Condition()
        self._answered: list[tuple[float, float]] = []
        self._stopping = threading.Event()
        self._answer = threading.Event()
        self._sender = Sender(
            client, topic, on_result=self._note, delivery_timeout=_DELIVERY_TIMEOUT, backoff_max=_BACKOFF_MAX
        )
        self._thread = threading.Thread(target=self._run, name="probe", daemon=True)
        self._began = 0.0
        self._thread.start()

    def stop(self) -> None:
        """Let the write under way end, if it does soon."""
        self._stopping.set()
        self._thread.join(1.0)
        self._sender.close()
        self._answer.set()
        self._thread.join()

    def wait_answer(self, moment: float, timeout: float) -> float:
        """Milliseconds from a moment to the first acknowledgement of a write that began after it.

        Args:
            moment: of time.monotonic().
            timeout: seconds.

        Raises:
            FluxlogError: TIMEOUT.
        """

        def first() -> float | None:
            return next((at for began, at in self._answered if began >= moment), None)

        with self._changed:
            if not self._changed.wait_for(lambda: first() is not None, timeout):
                raise FluxlogError("TIMEOUT", f"no write was acknowledged within {timeout:g} s")
            at = first()
            assert at is not None
            return (at - moment) * 1000

    def _run(self) -> None:
        number = 0
        while not self._stopping.is_set():
            number += 1
            values = [b"probe %d" % number]
            self._answer.clear()
            self._began = time.monotonic()
            try:
                self._sender.send(self._partition, values, context=values)
            except FluxlogError:  # closed meanwhile
                return
            self._answer.wait()
            self._stopping.wait(_PAUSE)

    def _note(self, result: BatchResult) -> None:
        self._ledger.note(result)
        if result.base_offset >= 0:
            with self._changed:
                self._answered.append((self._began, time.monotonic()))
                self._changed.notify_all()
        self._answer.set()
