"""python -m tests.chaos.switch: a network of this machine's own namespaces, whose every packet may be lost or late.

Each host is a network namespace with one TUN device; this process is the wire between them. It needs root and
/dev/net/tun and no module of the kernel's (netem is often missing). Hosts are 10.77.0.1, 10.77.0.2, …; nothing leads
out of the namespaces.

    argv    device of each host, in the order of their addresses
    stdin   one JSON object a line, the rules that hold from then on: {"links": [[from, to, lost, delay, jitter], …]}:
            hosts by number from 1, probability 0..1 of loss, seconds of delay, seconds by which it varies. Links that
            are not named are perfect. The end of stdin ends the process.
    stdout  a line "ready", a line "ok" after each object, and at the end the counts, as JSON.
"""

from __future__ import annotations

import fcntl
import heapq
import json
import os
import random
import select
import struct
import sys
import time
from collections import Counter
from typing import NamedTuple

_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_PACKET_BYTES = 65_536
_WAITING_MAX = 20_000
"""Packets that are late; more are lost."""
_BURST = 32
"""Packets of one host before the next one's turn."""


class Rule(NamedTuple):
    """What becomes of packets from one host to another."""

    lost: float = 0.0
    delay: float = 0.0
    jitter: float = 0.0


_PERFECT = Rule()


def open_device(name: str) -> int:
    """A TUN device, made if there is none."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
    return fd


class Switch:
    """The wire."""

    def __init__(self, devices: list[int]) -> None:
        self._devices = devices
        self._rules: dict[tuple[int, int], Rule] = {}
        self._late: list[tuple[float, int, int, bytes]] = []
        self._due: dict[tuple[int, int], float] = {}
        """When the newest late packet of a link is due: order on a link stays, as in a router's queue."""
        self._rng = random.Random()
        self.counts = Counter[str]()

    def set_rules(self, links: list[list[float]]) -> None:
        """Replace all rules."""
        self._rules = {(int(one), int(other)): Rule(*rest) for one, other, *rest in links}

    def timeout(self) -> float:
        """Seconds until the next late packet is due; negative: none is."""
        return max(0.0, self._late[0][0] - time.monotonic()) if self._late else -1.0

    def deliver_due(self) -> None:
        """Hand over what was late."""
        now = time.monotonic()
        while self._late and self._late[0][0] <= now:
            _, _, target, packet = heapq.heappop(self._late)
            self._write(target, packet)

    def read_from(self, source: int) -> None:
        """Take what a host sends.

        Args:
            source: its number.
        """
        for _ in range(_BURST):
            try:
                packet = os.read(self._devices[source - 1], _PACKET_BYTES)
            except BlockingIOError:
                return
            if len(packet) < 20 or packet[0] >> 4 != 4:  # only IPv4 is spoken here
                continue
            target = packet[19]
            if 1 <= target <= len(self._devices):
                self._pass_on(source, target, packet)

    def _pass_on(self, source: int, target: int, packet: bytes) -> None:
        rule = self._rules.get((source, target), _PERFECT)
        if rule.lost and self._rng.random() < rule.lost:
            self.counts["lost"] += 1
        elif not rule.delay:
            self._write(target, packet)
        elif len(self._late) < _WAITING_MAX:
            self.counts["late"] += 1
            due = time.monotonic() + max(0.0, rule.delay + self._rng.uniform(-rule.jitter, rule.jitter))
            self._due[source, target] = due = max(due, self._due.get((source, target), 0.0))
            heapq.heappush(self._late, (due, self.counts["late"], target, packet))
        else:
            self.counts["lost_full"] += 1

    def _write(self, target: int, packet: bytes) -> None:
        try:
            os.write(self._devices[target - 1], packet)
            self.counts["delivered"] += 1
        except OSError:  # the host's queue is full, or its device is down
            self.counts["refused"] += 1


def main() -> None:
    """Until the end of stdin."""
    devices = [open_device(name) for name in sys.argv[1:]]
    switch, poll = Switch(devices), select.epoll()
    for fd in (*devices, sys.stdin.fileno()):
        poll.register(fd, select.EPOLLIN)
    numbers = {fd: number for number, fd in enumerate(devices, 1)}
    print("ready", flush=True)
    while True:
        for fd, _ in poll.poll(switch.timeout()):
            if fd in numbers:
                switch.read_from(numbers[fd])
            elif line := sys.stdin.readline():
                switch.set_rules(json.loads(line)["links"])
                print("ok", flush=True)
            else:
                print(json.dumps(switch.counts), flush=True)
                return
        switch.deliver_due()


if __name__ == "__main__":
    main()
