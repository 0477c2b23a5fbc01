"""What is on a simulated disk: bytes and names, each durable or not yet."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from enum import Enum


class Keep(Enum):
    """What a power cut leaves of unsynced changes."""

    NOTHING = "nothing"
    RANDOM = "random"
    EVERYTHING = "everything"


@dataclass(frozen=True, slots=True)
class Write:
    position: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Truncate:
    size: int


def apply(data: bytearray, change: Write | Truncate) -> None:
    if isinstance(change, Truncate):
        del data[change.size :]
    else:
        data += bytes(max(0, change.position - len(data)))  # a hole, where an earlier write was lost
        data[change.position : change.position + len(change.data)] = change.data


@dataclass(eq=False, slots=True)
class Content:
    """A file's bytes."""

    data: bytearray = field(default_factory=bytearray)
    durable: bytearray = field(default_factory=bytearray)
    pending: list[Write | Truncate] = field(default_factory=list)
    lossy: bool = False
    """A sync failed, and what was to be synced has not been cut off since: there may be holes."""

    def change(self, change: Write | Truncate) -> None:
        apply(self.data, change)
        self.lossy = self.lossy and not isinstance(change, Truncate)
        self.pending.append(change)

    def sync(self) -> None:
        for change in self.pending:
            apply(self.durable, change)
        self.pending.clear()

    def sync_failed(self, rng: random.Random) -> None:
        for change in self.pending:
            if isinstance(change, Truncate) or rng.random() < 0.4:
                apply(self.durable, change)
        self.pending.clear()
        self.lossy = True
        if rng.random() < 0.3:  # the cache lets go of what it could not write
            self.data[: len(self.durable)] = self.durable
            self.data[len(self.durable) :] = bytes(len(self.data) - len(self.durable))

    def cut(self, rng: random.Random, keep: Keep) -> None:
        count = {Keep.NOTHING: 0, Keep.EVERYTHING: len(self.pending)}.get(keep)
        if count is None:
            count = rng.randint(0, len(self.pending))
        kept, torn = self.pending[:count], None
        if keep is Keep.RANDOM and kept and isinstance(kept[-1], Write):
            torn = kept.pop()
        for change in kept:
            apply(self.durable, change)
        if isinstance(torn, Write):
            there = rng.randint(0, len(torn.data))
            apply(self.durable, Write(torn.position, torn.data[:there]))
            if there < len(torn.data) and torn.position + there == len(self.durable) and rng.random() < 0.25:
                self.durable += bytes(rng.randint(1, len(torn.data) - there))
        self.pending.clear()
        self.data = bytearray(self.durable)


@dataclass(eq=False, slots=True)
class Directory:
    """Names, durable and current. A pending change is a set of (name, node or None) that happens whole or not at
    all."""

    names: dict[str, Content | Directory] = field(default_factory=dict)
    durable: dict[str, Content | Directory] = field(default_factory=dict)
    pending: list[NameChange] = field(default_factory=list)

    def cut(self, rng: random.Random, keep: Keep) -> None:
        count = {Keep.NOTHING: 0, Keep.EVERYTHING: len(self.pending)}.get(keep)
        if count is None:
            count = rng.randint(0, len(self.pending))
        for change in self.pending[:count]:
            change.make_durable()


@dataclass(eq=False, slots=True)
class NameChange:
    changes: list[tuple[Directory, str, Content | Directory | None]]
    done: bool = False

    def make_durable(self) -> None:
        if self.done:
            return
        self.done = True
        for directory, name, node in self.changes:
            if node is None:
                directory.durable.pop(name, None)
            else:
                directory.durable[name] = node
