"""Few groups of a node campaign at the same time (`campaigns.py`)."""

from __future__ import annotations

from fluxd.core import limits
from fluxd.core.types import METADATA_GROUP, GroupId
from fluxd.raft.campaigns import PLACE_SECONDS, Campaigns
from fluxd.raft.timeouts import Timeouts

MAX = limits.CAMPAIGNS_MAX


class Fixture:
    """More groups than there are places; those that are called ask again."""

    def __init__(self) -> None:
        self.now = 0.0
        self.campaigns = Campaigns(lambda: self.now, Timeouts())
        self.groups = [GroupId(bytes(16), number) for number in range(2 * MAX + 1)]
        self.campaigning: list[GroupId] = []
        for group in self.groups:
            self.ask(group)

    def ask(self, group: GroupId) -> None:
        """As a group does whose time has come."""
        if self.campaigns.enter(group, lambda: self.ask(group)):
            self.campaigning.append(group)


def test_no_more_campaign_than_there_are_places() -> None:
    """The others wait."""
    fixture = Fixture()
    assert fixture.campaigning == fixture.groups[:MAX]


def test_who_has_a_leader_makes_room_for_the_next_in_order() -> None:
    """Who waits no more is passed over."""
    fixture = Fixture()
    fixture.campaigns.leave(fixture.groups[MAX])
    fixture.campaigns.leave(fixture.groups[3])
    fixture.campaigns.leave(fixture.groups[3])
    assert fixture.campaigning[MAX:] == [fixture.groups[MAX + 1]]


def test_a_place_is_lost_after_its_time() -> None:
    """A campaign that cannot succeed keeps nobody waiting for long; all get their turn."""
    fixture = Fixture()
    fixture.now = PLACE_SECONDS / 2
    fixture.campaigns.expire()
    assert len(fixture.campaigning) == MAX
    fixture.now = PLACE_SECONDS
    fixture.campaigns.expire()
    assert len(fixture.campaigning) == 2 * MAX
    fixture.now = 2 * PLACE_SECONDS
    fixture.campaigns.expire()
    assert fixture.campaigning == fixture.groups


def test_who_has_a_place_may_try_again_and_the_metadata_waits_for_nobody() -> None:
    """Without it nothing else can be decided."""
    fixture = Fixture()
    assert fixture.campaigns.enter(fixture.groups[0], lambda: None)
    assert fixture.campaigns.enter(METADATA_GROUP, lambda: None)
