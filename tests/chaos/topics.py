"""A client that makes and deletes topics: what it was told must be so in the end."""

from __future__ import annotations

import contextlib
from enum import Enum

from fluxlog.admin import Admin
from fluxlog.client import Client
from fluxlog.errors import FluxlogError, Outcome
from tests.chaos.scene import Scene, Worker

_ALIVE_MAX = 4
PREFIX = "side-"


class Fate(Enum):
    """What is known of a topic."""

    UNKNOWN = "unknown"
    THERE = "there"
    NOT_THERE = "not there"


class TopicWriter(Worker):
    """Makes a topic about once a second, and deletes old ones. Its topics' partitions come and go on all nodes."""

    def __init__(self, name: str, scene: Scene) -> None:
        super().__init__(name, scene, scene.stop_writing)
        self.fates: dict[str, Fate] = {}
        self._tidy: set[str] = set()
        self.changes = 0
        """That were acknowledged."""

    def live(self) -> None:
        """One client. A crash changes nothing: it remembers names only."""
        with Client(self.shuffled_addresses()) as client:
            admin = Admin(client, patience=1.0)
            while self.alive:
                there = [name for name, fate in self.fates.items() if fate is Fate.THERE]
                if len(there) >= _ALIVE_MAX or (there and self.rng.random() < 0.3):
                    self._remove(admin, self.rng.choice(there))
                else:
                    self._make(admin, f"{PREFIX}{len(self.fates)}")
                self._clean_up(admin)
                self.rest(1.0)

    def _clean_up(self, admin: Admin) -> None:
        """Topics of which nothing is known shall not pile up. Nothing is known of them afterwards either: what was
        asked for may still be on its way."""
        name = next((name for name, fate in self.fates.items() if fate is Fate.UNKNOWN and name not in self._tidy), "")
        if name:
            with contextlib.suppress(FluxlogError):
                admin.delete_topic(name, if_exists=True)
                self._tidy.add(name)

    def _make(self, admin: Admin, name: str) -> None:
        self.fates[name] = Fate.UNKNOWN
        try:
            admin.create_topic(name, partitions=self.rng.randint(1, 3), replication_factor=len(self.scene.addresses))
        except FluxlogError as failure:
            if failure.outcome is Outcome.REJECTED:
                self.fates[name] = Fate.NOT_THERE
        else:
            self.fates[name] = Fate.THERE
            self.changes += 1

    def _remove(self, admin: Admin, name: str) -> None:
        try:
            self.fates[name] = Fate.UNKNOWN
            admin.delete_topic(name)
        except FluxlogError as failure:
            if failure.reason == "UNKNOWN_TOPIC":
                self.scene.failures.append(f"{name} was created and never deleted, but to delete it: {failure!r}")
            elif failure.outcome is Outcome.REJECTED:
                self.fates[name] = Fate.THERE
        else:
            self.fates[name] = Fate.NOT_THERE
            self.changes += 1

    def check(self, admin: Admin) -> None:
        """In the end each topic is there, or is not, as it was told."""
        found = {topic.name for topic in admin.list_topics()}
        for name, fate in self.fates.items():
            if (fate is Fate.THERE and name not in found) or (fate is Fate.NOT_THERE and name in found):
                self.scene.failures.append(f"topic {name} is {fate.value}, its client was told; listed are {found}")
        if not self.changes:
            self.scene.failures.append("no change of a topic was acknowledged: the run proves nothing about them")
