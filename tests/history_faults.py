"""Ways to spoil a clean history by one anomaly. Each says whether the history offered a place for it."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from tests.history_kit import Event

Run = list[object]


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """A send with its answer."""

    send: Event
    answer: Event

    @property
    def key(self) -> tuple[str, int]:
        """Partition and offset."""
        return self.send["partition"], self.answer["offset"]


def acknowledged(events: list[Event]) -> list[Acknowledged]:
    """All of them."""
    begun = {event["id"]: event for event in events if event["op"] == "send"}
    return [Acknowledged(begun[e["id"]], e) for e in events if e["op"] == "sent" and e["outcome"] == "ok"]


def of(events: list[Event], op: str) -> list[Event]:
    """Events of one kind."""
    return [event for event in events if event["op"] == op]


def reads(events: list[Event]) -> dict[tuple[str, int], list[tuple[Event, int, int]]]:
    """For each partition and offset, of everyone who read it: the poll, the number of the run, the position in it."""
    found = defaultdict(list)
    for event in of(events, "poll"):
        for number, (partition, offset, values) in enumerate(event["runs"]):
            for position in range(len(values)):
                found[partition, offset + position].append((event, number, position))
    return found


def begun_at(events: list[Event]) -> float:
    """Of the last phase."""
    return next(float(event["time"]) for event in events if event.get("phase") == "final_read")


def remove(event: Event, number: int, position: int) -> None:
    """Take one record out of a poll; what follows it stays at its offsets."""
    partition, offset, values = event["runs"][number]
    rest = [partition, offset + position + 1, values[position + 1 :]]
    event["runs"][number] = [partition, offset, values[:position]]
    event["runs"].insert(number + 1, rest)


def replace(event: Event, number: int, position: int, value: str) -> None:
    """Let a poll return another value at an offset."""
    partition, offset, values = event["runs"][number]
    event["runs"][number] = [partition, offset, [*values[:position], value, *values[position + 1 :]]]


def some_value(events: list[Event], rng: random.Random, partition: str, *, not_value: str) -> str | None:
    """Another value that was sent to a partition."""
    values = [v for event in of(events, "send") if event["partition"] == partition for v in event["values"]]
    others = [value for value in values if value != not_value]
    return rng.choice(others) if others else None


# ---------------------------------------------------------------------- the log
def inconsistent_offset(events: list[Event], rng: random.Random) -> bool:
    """One of several polls returns another value."""
    places = [(key, found) for key, found in sorted(reads(events).items()) if len(found) > 1]
    if not places:
        return False
    (partition, _), found = rng.choice(places)
    event, number, position = rng.choice(found)
    value = some_value(events, rng, partition, not_value=event["runs"][number][2][position])
    if value is None:
        return False
    replace(event, number, position, value)
    return True


def duplicate(events: list[Event], rng: random.Random) -> bool:
    """All polls return one value at two offsets."""
    found = reads(events)
    pairs = [(one, other) for one in sorted(found) for other in sorted(found) if one[0] == other[0] and one < other]
    if not pairs:
        return False
    one, other = rng.choice(pairs)
    event, number, position = found[one][0]
    value = event["runs"][number][2][position]
    for place in found[other]:
        replace(*place, value)
    return True


def unexpected_value(events: list[Event], rng: random.Random) -> bool:
    """All polls return something at an offset that nobody sent."""
    for place in rng.choice([found for _, found in sorted(reads(events).items())]):
        replace(*place, "rotten")
    return True


def _inner(events: list[Event]) -> Iterator[tuple[Acknowledged, int]]:
    """Acknowledged values of single sends that lie between others which readers of the last phase got."""
    began = begun_at(events)
    final = {key for key, found in reads(events).items() if any(event["invoked"] > began for event, _, _ in found)}
    for one in acknowledged(events):
        partition, offset = one.key
        if {(partition, offset - 1), (partition, offset), (partition, offset + 1)} <= final:
            yield one, offset


def hole(events: list[Event], rng: random.Random) -> bool:
    """An offset vanishes from all polls."""
    places = list(_inner(events))
    if not places:
        return False
    one, _ = rng.choice(places)
    # from the end of each poll to its beginning, so that the numbers of the runs stay right
    for place in sorted(reads(events)[one.key], key=lambda place: (-place[1], -place[2])):
        remove(*place)
    return True


lost_write = hole


# ---------------------------------------------------------------------- writes
def unseen(events: list[Event], rng: random.Random) -> bool:
    """The end of a partition vanishes from all polls, from an acknowledged offset on."""
    partition, offset = rng.choice(acknowledged(events)).key
    for event in of(events, "poll"):
        event["runs"] = [
            [name, base, values[: max(0, offset - base)] if name == partition else values]
            for name, base, values in event["runs"]
        ]
    return any(start <= offset for start in [_log_start(events, partition)])


def _log_start(events: list[Event], partition: str) -> int:
    return max((e["log_start_offset"] for e in of(events, "watermark") if e["partition"] == partition), default=0)


def aborted_read(events: list[Event], rng: random.Random) -> bool:
    """The answer to a send that was read becomes a rejection."""
    found = reads(events)
    candidates = [one for one in acknowledged(events) if one.key in found]
    one = rng.choice(candidates)
    one.answer.update(outcome="fail", offset=None)
    return True


def acknowledged_value(events: list[Event], rng: random.Random) -> bool:
    """An acknowledgement names another offset, at which something was read."""
    found = reads(events)
    one = rng.choice(acknowledged(events))
    places = [offset for partition, offset in sorted(found) if partition == one.key[0] and offset != one.key[1]]
    if not places:
        return False
    one.answer["offset"] = rng.choice(places)
    return True


# ---------------------------------------------------------------------- readers
def poll_skip(events: list[Event], rng: random.Random) -> bool:
    """A reader of the last phase misses one record that others got."""
    began, found = begun_at(events), reads(events)
    places = [
        place
        for one, _ in _inner(events)
        for place in found[one.key]
        if place[0]["invoked"] > began and any(other is not place for other in found[one.key])
    ]
    if not places:
        return False
    remove(*rng.choice(places))
    return True


def nonmonotonic_poll(events: list[Event], rng: random.Random) -> bool:
    """A reader is given the last run of a poll once more."""
    polls = [event for event in of(events, "poll") if event["runs"]]
    event = rng.choice(polls)
    event["runs"].append(event["runs"][-1])
    return True


def short_final_read(events: list[Event], rng: random.Random) -> bool:
    """A reader of the last phase does not get what its last poll brought."""
    began = begun_at(events)
    last = {event["process"]: event for event in of(events, "poll") if event["runs"] and event["invoked"] > began}
    if not last:
        return False
    last[rng.choice(sorted(last))]["runs"] = []
    return True


# ---------------------------------------------------------------------- order
def nonmonotonic_send(events: list[Event], rng: random.Random) -> bool:
    """Two acknowledgements of a numbered writer change places."""
    unordered = {event["process"] for event in of(events, "unordered")}
    order = {event["id"]: number for number, event in enumerate(of(events, "send"))}
    sends = sorted(acknowledged(events), key=lambda one: order[one.send["id"]])
    pairs = [
        (one, other)
        for number, one in enumerate(sends)
        for other in sends[number + 1 :]
        if one.send["process"] == other.send["process"] not in unordered
        and one.send["partition"] == other.send["partition"]
    ]
    if not pairs:
        return False
    one, other = rng.choice(pairs)
    one.answer["offset"], other.answer["offset"] = other.answer["offset"], one.answer["offset"]
    return True


def real_time_order(events: list[Event], rng: random.Random) -> bool:
    """A send begins after one at a higher offset was acknowledged."""
    sends = acknowledged(events)
    pairs = [(low, high) for low in sends for high in sends if low.key[0] == high.key[0] and low.key < high.key]
    if not pairs:
        return False
    low, high = rng.choice(pairs)
    low.send["time"] = max(low.send["time"], high.answer["time"] + 0.01)
    low.answer["time"] = max(low.answer["time"], low.send["time"] + 0.01)
    return True


def stale_latest(events: list[Event], rng: random.Random) -> bool:
    """An answer to "latest" does not cover an earlier acknowledgement."""
    pairs = [
        (event, one)
        for event in of(events, "watermark")
        for one in acknowledged(events)
        if event["latest"] and one.key[0] == event["partition"] and one.answer["time"] < event["invoked"]
    ]
    if not pairs:
        return False
    event, one = rng.choice(pairs)
    event["high_watermark"] = min(event["high_watermark"], one.key[1])
    return True


# ---------------------------------------------------------------------- the cluster
def watermark_back(events: list[Event], rng: random.Random) -> bool:
    """A later observation of one client is lower."""
    last: dict[tuple[str, str], Event] = {}
    pairs = []
    for event in events:
        if event["op"] == "crash":
            last = {key: one for key, one in last.items() if key[0] != event["process"]}
        elif event["op"] == "watermark":
            key = event["process"], event["partition"]
            if key in last and last[key]["high_watermark"]:
                pairs.append((last[key], event))
            last[key] = event
    if not pairs:
        return False
    before, after = rng.choice(pairs)
    after["high_watermark"] = rng.randrange(before["high_watermark"])
    return True


def epoch_back(events: list[Event], rng: random.Random) -> bool:
    """A record has a higher epoch than a later one."""
    sends = acknowledged(events)
    pairs = [(low, high) for low in sends for high in sends if low.key[0] == high.key[0] and low.key < high.key]
    if not pairs:
        return False
    low, high = rng.choice(pairs)
    low.answer["leader_epoch"] = high.answer["leader_epoch"] + 1
    return True


def two_leaders(events: list[Event], rng: random.Random) -> bool:
    """Another node acknowledges in an epoch."""
    groups = defaultdict(list)
    for one in acknowledged(events):
        groups[one.send["partition"], one.answer["leader_epoch"]].append(one)
    shared = [group for _, group in sorted(groups.items()) if len(group) > 1]
    if not shared:
        return False
    rng.choice(rng.choice(shared)).answer["node"] += 3
    return True


def replicas_differ(events: list[Event], rng: random.Random) -> bool:
    """A bit of one replica's checksum flips."""
    rng.choice(of(events, "replica"))["checksum"] ^= 1 << rng.randrange(32)
    return True


# ---------------------------------------------------------------------- appends with an expected offset
def two_winners(events: list[Event], rng: random.Random) -> bool:
    """Another acknowledged send expected the same offset."""
    sends = acknowledged(events)
    pairs = [
        (one, other)
        for one in sends
        for other in sends
        if one is not other and one.send["expected_offset"] is not None and one.key[0] == other.key[0]
    ]
    if not pairs:
        return False
    one, other = rng.choice(pairs)
    other.send["expected_offset"] = one.send["expected_offset"]
    return True


def wrong_expected_offset(events: list[Event], rng: random.Random) -> bool:
    """A send expected another offset than it got."""
    one = rng.choice(acknowledged(events))
    one.send["expected_offset"] = one.key[1] + rng.choice((1, 2, 100))
    return True


ANOMALIES: Mapping[str, Callable[[list[Event], random.Random], bool]] = {
    function.__name__: function
    for function in (
        inconsistent_offset, duplicate, unexpected_value, hole, unseen, aborted_read, acknowledged_value, poll_skip,
        nonmonotonic_poll, short_final_read, nonmonotonic_send, real_time_order, stale_latest, watermark_back,
        epoch_back, two_leaders, replicas_differ, two_winners, wrong_expected_offset,
    )
} | {"lost_write": lost_write}  # fmt: skip
"""By the rule that must name it."""
