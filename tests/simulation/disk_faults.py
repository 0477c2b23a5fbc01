"""What goes wrong with the disks of a run's nodes: they are lost, full, damaged, or fail for a while."""

from __future__ import annotations

import errno
import os
from collections import deque
from typing import TYPE_CHECKING

from fluxd.core import limits
from fluxd.core.errors import CorruptDataError
from fluxd.raft.spec import Role
from tests.simulation.damage import EXCLUDED, damage_closed_segment, damage_replica, damage_votes
from tests.simulation.disk import WELL, Sickness
from tests.simulation.node import DIRECTORY, VOTES, SimNode

if TYPE_CHECKING:
    from tests.simulation.world import World


class DiskFaults:
    """Of one run. A disk that is lost or damaged counts until its replica was copied."""

    def __init__(self, world: World) -> None:
        self._world = world

    def wipe(self) -> None:
        if not self._world.plan.wipes or not self._may_lose():
            return
        node = self._world.rng.choice([n for n in self._world.nodes.values() if not n.wiped])
        was_alive = node.alive
        self._world.counts["disks_wiped"] += 1
        node.wipe()
        if was_alive:
            self._world.ended(node)

    def _may_lose(self) -> bool:
        """Never so many that the rest is no majority any more."""
        wiped = sum(node.wiped for node in self._world.nodes.values())
        return (len(self._world.nodes) - wiped - 1) * 2 > len(self._world.nodes)

    def may_end(self, node: SimNode) -> bool:
        """A process that ends between a failed sync and its repair may leave what looks like damage."""
        if node.wiped:  # counts already; its votes may go, too
            node.votes_lost = node.votes_lost or VOTES in node.disk.lossy_files()
            return True
        if not node.has_holes:
            return True
        if not self._may_lose():
            self._world.counts["excluded_holes"] += 1
            return False
        self._world.counts["ends_with_holes"] += 1
        node.damaged, node.votes_lost = True, VOTES in node.disk.lossy_files()
        return True

    def sicken(self) -> None:
        """Operations fail, for a while. What cannot be read counts as damaged, so that is a disk that may be lost."""
        node = self._world.rng.choice(list(self._world.nodes.values()))
        disk = node.disk
        if disk.sickness is not WELL:
            return
        share = self._world.rng.choice((0.02, 0.3, 1.0))
        kind = self._world.rng.choice(("syncs", "syncs", "writes", "reads"))
        if kind == "reads" and not node.wiped:
            if not self._world.plan.wipes or not self._may_lose():
                return
            node.damaged = True
        self._world.counts[f"disks_failing_{kind}"] += 1
        disk.sickness = Sickness(**{kind: share})

        def recover() -> None:
            disk.sickness = WELL

        self._world.simulator.at(self._world.simulator.now + self._world.rng.choice((0.05, 0.5, 3.0)), recover)

    def use_up(self) -> None:
        """To the last byte; somebody makes room again."""
        disk = self._world.rng.choice(list(self._world.nodes.values())).disk
        if disk.room is None:
            self._world.counts["disks_used_up"] += 1
            disk.room = self._world.rng.choice((0, 100, 20_000))

            def make_room() -> None:
                disk.room = None

            self._world.simulator.at(self._world.simulator.now + self._world.rng.choice((0.5, 3.0)), make_room)

    def damage(self) -> None:
        """A bit flips, or an end is gone: mostly while the node is down, of a closed segment at any time."""
        if not self._world.plan.wipes or not self._may_lose():
            return
        node = self._world.rng.choice([node for node in self._world.nodes.values() if not node.wiped])
        if node.alive and self._world.rng.random() < 0.6:
            if not self.may_end(node) or node.wiped:
                return
            node.kill()
            self._world.ended(node)
        if node.alive:
            kind = damage_closed_segment(node.disk, DIRECTORY, self._world.rng)
        elif self._world.rng.random() < 0.15:
            kind = damage_votes(node.disk, VOTES, self._world.rng)
        else:
            kind = damage_replica(node.disk, DIRECTORY, self._world.rng)
        if kind not in ("", EXCLUDED):
            node.damaged, node.votes_lost = True, kind == "votes"
        self._world.counts[f"damage_{kind}"] += bool(kind)

    def straggle(self) -> None:
        """A leader is cut off, and one sync of its log takes so long that the next leader replaces what it is to make
        durable. Mostly it fails in the end.
        """
        world = self._world
        leaders = [n for n in world.nodes.values() if n.group is not None and n.group.role is Role.LEADER]
        if not leaders:
            return
        node, seconds = world.rng.choice(leaders), 2.0 + 2.0 * world.rng.random()
        world.counts["syncs_straggling"] += 1
        world.isolate_leader()
        node.speed.straggles = seconds
        if world.rng.random() < 0.7:
            error, life = OSError(errno.EIO, os.strerror(errno.EIO)), node.disk.life

            def fail() -> None:
                if node.disk.life == life:  # a process after it would meet holes that it cannot tell from damage
                    node.disk.fail_next("sync", error, path=".seg")

            world.simulator.at(world.simulator.now + seconds, fail)

    def scan(self) -> None:
        """Somebody reads a whole log, as a scrub or a consumer does."""
        for node in self._world.nodes.values():
            group = node.group
            if group is None or group.role is Role.FAILED or (self._world.faulty and self._world.rng.random() < 0.5):
                continue
            try:
                deque(group.log.walk(group.log.first_index), maxlen=0)
            except (OSError, CorruptDataError) as error:
                self._world.counts["scans_failed"] += 1
                group.read_failed(error)

    def fill(self) -> None:
        """But for the reserve; somebody makes room again."""
        node = self._world.some(alive=True)
        if node is not None:
            self._world.counts["disks_filled"] += 1
            disk = node.disk
            disk.free = limits.DISK_RESERVE_BYTES - 1

            def make_room() -> None:
                disk.free = limits.DISK_RESERVE_BYTES

            self._world.simulator.at(self._world.simulator.now + self._world.rng.choice((0.5, 3.0)), make_room)
