"""Does what the plans say: one thread for processes, one for the network."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from tests.chaos import power
from tests.chaos.network import CLIENTS, Link, Namespaces, among, between
from tests.chaos.nodes import Nodes, State
from tests.chaos.plan import Fault, Kind, choose
from tests.chaos.switch import Rule

_CUT = Rule(lost=1.0)
_SILENT = "without power:"
_AGAIN = 0.4
"""Probability that nodes which come back are hit once more while they start."""
_AGAIN_SECONDS_MAX = 1.5


class Nemesis(threading.Thread):
    """Goes through a plan, then heals what is left.

    Args:
        leader: asks for the node that leads a partition, or the controller; takes random bits.
        failures: gets a line when something cannot be done.
    """

    def __init__(
        self,
        name: str,
        nodes: Nodes,
        faults: Sequence[Fault],
        leader: Callable[[int], int | None],
        failures: list[str],
    ) -> None:
        super().__init__(name=name, daemon=True)
        self.counts = Counter[str]()
        self.diary: list[dict[str, Any]] = []
        """What was done when, to whom."""
        self.over = threading.Event()
        self._nodes, self._faults, self._leader, self._failures = nodes, faults, leader, failures

    def run(self) -> None:
        """Until the plan is through or `over` is set."""
        try:
            for fault in self._faults:
                if self.over.wait(fault.pause):
                    return
                hit = choose(fault.target, self._leader(fault.choice), list(self._nodes.all), fault.choice)
                self.counts[fault.kind] += 1
                self.diary.append(
                    {"time": time.monotonic(), "date": time.time(), "fault": fault.kind, "target": fault.target,
                     "nodes": hit, "seconds": round(fault.seconds, 2)}
                )  # fmt: skip
                self.strike(fault, hit)
        except Exception as error:
            self._failures.append(f"{self.name}: {error!r}")
        finally:
            self.heal()

    def strike(self, fault: Fault, hit: Sequence[int]) -> None:
        """Let it happen, wait, and end it."""
        raise NotImplementedError

    def heal(self) -> None:
        """Nothing of this nemesis is left when it returns."""
        raise NotImplementedError


class ProcessNemesis(Nemesis):
    """Kills, pauses, stops, and cuts the power."""

    lost = power.Lost()

    def strike(self, fault: Fault, hit: Sequence[int]) -> None:
        """Down or still, for a while; some are back earlier than others, and are hit again while they start."""
        rng = random.Random(fault.choice)
        self._hit(fault.kind, hit, rng)
        ends = sorted((fault.seconds * rng.choice((1, rng.random())), number) for number in hit)
        began = time.monotonic()
        for seconds, number in ends:
            if self.over.wait(max(0.0, began + seconds - time.monotonic())):
                return
            self._bring_back(number)
        if fault.kind in (Kind.KILL, Kind.POWER_CUT) and rng.random() < _AGAIN:
            self.over.wait(rng.uniform(0, _AGAIN_SECONDS_MAX))
            self.counts[f"{fault.kind} again"] += 1
            self._hit(fault.kind, hit, rng)
            self.over.wait(rng.random())
        self.heal()

    def _hit(self, kind: Kind, hit: Sequence[int], rng: random.Random) -> None:
        nodes = [self._nodes.all[number] for number in hit]
        match kind:
            case Kind.PAUSE:
                for node in nodes:
                    node.pause()
            case Kind.POWER_CUT:
                self._cut_power(hit, rng)
            case Kind.STOP:
                self._ask_to_stop(hit)
            case _:
                for node in nodes:
                    node.kill()

    def _cut_power(self, hit: Sequence[int], rng: random.Random) -> None:
        """A machine without power says no goodbye: its connections fall silent instead of being closed."""
        network = self._nodes.network
        if network.can_be_cut:
            for number in hit:
                network.set_rules(f"{_SILENT} {number}", between([number], [CLIENTS, *self._nodes.all], _CUT))
        for number in hit:
            lost = self._nodes.all[number].cut_power(rng)
            self.lost.writes += lost.writes
            self.lost.torn += lost.torn
            self.lost.names += lost.names

    def _ask_to_stop(self, hit: Sequence[int]) -> None:
        """As an operator would; several at once too."""

        def stop(number: int) -> None:
            code = self._nodes.all[number].stop()
            if code != 0:
                self._failures.append(f"node {number} ended with code {code} when it was asked to stop")

        threads = [threading.Thread(target=stop, args=(number,)) for number in hit]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def heal(self) -> None:
        """All run."""
        for number in self._nodes.all:
            self._bring_back(number)

    def _bring_back(self, number: int) -> None:
        self._nodes.network.clear(f"{_SILENT} {number}")
        node = self._nodes.all[number]
        if node.state is State.PAUSED:
            node.resume()
        node.start()


class NetworkNemesis(Nemesis):
    """Cuts, delays and loses."""

    def strike(self, fault: Fault, hit: Sequence[int]) -> None:
        """The network is bad for a while."""
        assert isinstance(self._nodes.network, Namespaces)
        self._nodes.network.set_rules(self.name, self._rules(fault, hit))
        self.over.wait(fault.seconds)
        self.heal()

    def _rules(self, fault: Fault, hit: Sequence[int]) -> dict[Link, Rule]:
        members, rng = list(self._nodes.all), random.Random(fault.choice)
        others = [number for number in members if number not in hit]
        everybody = [CLIENTS, *members]
        match fault.kind:
            case Kind.ISOLATE:
                return between(hit, others + [CLIENTS] * rng.getrandbits(1), _CUT)
            case Kind.SPLIT:
                return among(members, _CUT)
            case Kind.RING:
                return _ring(members, hit[0], rng)
            case Kind.ONE_WAY:
                one_way = between(hit, others, _CUT, one_way=True)
                return {(two, one): rule for (one, two), rule in one_way.items()} if rng.getrandbits(1) else one_way
            case Kind.DELAY:
                return between(hit, everybody, Rule(delay=0.1, jitter=0.05))
            case _:
                return between(hit, everybody, Rule(lost=rng.uniform(0.01, 0.1)))

    def heal(self) -> None:
        """The network is perfect, as far as this nemesis goes."""
        self._nodes.network.clear(self.name)


def _ring(members: Sequence[int], first: int, rng: random.Random) -> dict[Link, Rule]:
    """Each node sees a majority, no two the same one. With three nodes: one link is cut.

    Five in a ring see two neighbours each.
    """
    if len(members) == 3:
        return between([first], [rng.choice([number for number in members if number != first])], _CUT)
    order = [*members]
    rng.shuffle(order)
    reach = len(order) // 4
    far = {
        (one, other)
        for at, one in enumerate(order)
        for distance in range(reach + 1, len(order) - reach)
        for other in [order[(at + distance) % len(order)]]
    }
    return dict.fromkeys(far, _CUT)
