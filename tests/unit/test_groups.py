"""Consumer groups as a state machine: each rule by itself."""

from __future__ import annotations

import pytest

from fluxd.core.errors import CorruptDataError, Reason
from fluxd.core.group_snapshot import restore, snapshot
from fluxd.core.groups import UnknownGroupCommand, apply_group_command, decode_group_command
from fluxd.core.state_chunks import StateSearch, state_chunks
from fluxd.core.types import Offset
from fluxlog.v1 import group_log_pb2
from tests.group_kit import NAME, TOPIC, GroupLab, at, member_id


@pytest.fixture
def lab() -> GroupLab:
    return GroupLab()


def test_a_first_member_gets_everything(lab: GroupLab) -> None:
    """Free partitions are owned as soon as they are assigned."""
    joined = lab.join(1)
    assert joined.member is not None
    assert not joined.resumed
    lab.balance()
    assert lab.owners() == {0: 1, 1: 1, 2: 1, 3: 1}
    assert lab.group().stable


def test_a_partition_goes_on_only_when_its_owner_gave_it_up(lab: GroupLab) -> None:
    """What is to move stays with its owner, revoking, until that one frees it."""
    lab.join(1)
    lab.balance()
    lab.join(2)
    lab.balance()
    assert lab.owners() == {0: 1, 1: 1, 2: 1, 3: 1}
    revoking = [partition.partition for partition, owner in lab.group().owners.items() if owner.revoking]
    assert len(revoking) == 2
    assert not lab.group().stable
    lab.free(lab.member(1), *revoking)
    assert sorted(lab.owners().values()) == [1, 1, 2, 2]
    assert lab.group().stable


def test_what_is_revoked_is_given_up_even_if_it_is_to_stay_after_all(lab: GroupLab) -> None:
    """The owner was told to stop: it gets the partition anew, so that it is told to begin again."""
    lab.join(1)
    lab.balance(2)
    since = lab.group().owners[at(1)].since_generation
    lab.join(2)
    lab.balance(2)
    assert lab.group().owners[at(1)].revoking
    lab.leave(lab.member(2))
    lab.balance(2)
    assert lab.group().owners[at(1)].revoking
    lab.free(lab.member(1), 1)
    assert lab.owners() == {0: 1, 1: 1}
    assert lab.group().owners[at(1)].since_generation > since


def test_a_member_that_leaves_frees_what_it_has(lab: GroupLab) -> None:
    """Partitions that were to go to another one are his at once."""
    lab.join(1)
    lab.balance()
    lab.join(2)
    lab.balance()
    lab.leave(lab.member(1))
    assert set(lab.owners().values()) == {2}
    lab.balance()
    assert lab.owners() == {0: 2, 1: 2, 2: 2, 3: 2}


def test_a_member_that_comes_back_keeps_its_epoch_and_partitions(lab: GroupLab) -> None:
    """Same id: resumed, nothing changes hands."""
    first = lab.join(1).member
    lab.balance()
    again = lab.join(1, via=2)
    assert again.resumed
    assert first is not None
    assert again.member is not None
    assert (again.member.epoch, again.member.via_node) == (first.epoch, 2)
    assert lab.owners() == {0: 1, 1: 1, 2: 1, 3: 1}


def test_a_lapse_that_was_decided_before_the_return_does_nothing(lab: GroupLab) -> None:
    """Removal names the stream that broke."""
    before = lab.join(1).member
    lab.join(1)
    assert before is not None
    lab.apply(lab.commands.remove_member(NAME, before, lapsed=True))
    assert member_id(1) in lab.group().members


def test_what_is_too_slow_is_taken_and_its_late_commit_is_fenced(lab: GroupLab) -> None:
    """After the deadline the partition is the next one's, and only that one commits."""
    lab.join(1)
    lab.balance(2)
    lab.join(2)
    lab.balance(2)
    slow = lab.member(1)
    lab.free(slow, 0, 1, taken=True)
    assert lab.owners() == {0: 1, 1: 2}, "only what was revoked is taken"
    assert lab.commit(slow, 1, 5).committed == (None,)
    assert lab.commit(slow, 0, 5).committed == (5,)
    assert lab.commit(lab.member(2), 1, 3).committed == (3,)


def test_commits_of_who_is_no_member_are_fenced(lab: GroupLab) -> None:
    """Gone, or of an earlier membership."""
    lab.join(1)
    lab.balance()
    gone = lab.member(1)
    lab.commit(gone, 0, 5)
    lab.leave(gone)
    assert lab.commit(gone, 0, 6).committed == (None,)
    lab.join(1)
    lab.balance()
    assert lab.commit(gone, 0, 6).committed == (None,)
    assert lab.commit(lab.member(1), 0, 6).committed == (6,)


def test_offsets_do_not_go_back_unless_it_is_said(lab: GroupLab) -> None:
    """A lower offset changes nothing and the answer has the committed one; rewind and reset go back."""
    lab.join(1)
    lab.balance()
    lab.commit(lab.member(1), 0, 10)
    assert lab.commit(lab.member(1), 0, 4).committed == (10,)
    assert lab.commit(lab.member(1), 0, 4, rewind=True).committed == (4,)
    assert lab.reset(0, 1).reason is Reason.GROUP_NOT_EMPTY
    lab.leave(lab.member(1))
    assert lab.reset(0, 1).reason is None
    assert lab.committed(0) == 1


def test_nobody_commits_only_while_there_is_no_member(lab: GroupLab) -> None:
    """Tools and consumers with explicit partitions."""
    assert lab.commit(None, 0, 3).committed == (3,)
    lab.join(1)
    assert lab.commit(None, 0, 4).reason is Reason.GROUP_NOT_EMPTY
    assert lab.committed(0) == 3


def test_an_assignment_for_an_earlier_state_is_refused(lab: GroupLab) -> None:
    """Between working it out and applying it somebody joined."""
    lab.join(1)
    stale = lab.commands.assign_partitions(lab.group(), {at(0): member_id(1)})
    lab.join(2)
    assert lab.apply(stale).reason is Reason.INVALID_ARGUMENT
    assert lab.owners() == {}


def test_a_deleted_topic_takes_its_offsets_and_assignments_with_it(lab: GroupLab) -> None:
    """Of all groups; a topic of the same name is another one."""
    lab.join(1)
    lab.balance()
    lab.commit(lab.member(1), 0, 10)
    lab.apply(lab.commands.forget_topics([TOPIC]))
    assert lab.changed == (NAME,)
    assert lab.owners() == {}
    assert lab.committed(0) is None
    assert lab.group().members


def test_a_group_is_deleted_while_it_is_empty(lab: GroupLab) -> None:
    """And is unknown then."""
    assert lab.apply(lab.commands.remove_group(NAME)).reason is Reason.UNKNOWN_GROUP
    lab.join(1)
    lab.balance()
    lab.commit(lab.member(1), 0, 10)
    assert lab.apply(lab.commands.remove_group(NAME)).reason is Reason.GROUP_NOT_EMPTY
    lab.leave(lab.member(1))
    assert lab.apply(lab.commands.remove_group(NAME)).reason is None
    assert not lab.state.groups


def test_a_group_that_was_used_again_does_not_expire(lab: GroupLab) -> None:
    """Expiry names the time since when it was idle."""
    lab.commit(None, 0, 1)
    seen = lab.group().idle_since_ms
    lab.now_ms += 10
    lab.commit(None, 0, 2)
    lab.apply(lab.commands.remove_group(NAME, idle_since_ms=seen))
    assert lab.committed(0) == 2
    lab.apply(lab.commands.remove_group(NAME, idle_since_ms=lab.group().idle_since_ms))
    assert not lab.state.groups


def test_numbers_are_never_given_twice(lab: GroupLab) -> None:
    """Epochs and generations grow, also over the end of a group."""
    lab.join(1)
    lab.balance()
    first, generation = lab.member(1).epoch, lab.group().generation
    lab.leave(lab.member(1))
    assert not lab.state.groups, "no member, no offset: nothing to keep"
    lab.join(1)
    lab.balance()
    assert lab.member(1).epoch > first
    assert lab.group().generation > generation


def test_a_snapshot_is_the_state(lab: GroupLab) -> None:
    """To bytes and back; other bytes are refused."""
    lab.join(1)
    lab.join(2)
    lab.balance()
    lab.commit(lab.member(1), 0, 10)
    data = snapshot(lab.state)
    assert restore(data) == lab.state
    assert snapshot(restore(data)) == data
    with pytest.raises(CorruptDataError):
        restore(b"\xff\xff")
    with pytest.raises(UnknownGroupCommand):
        restore(group_log_pb2.GroupsSnapshot(version=99).SerializeToString())


@pytest.mark.parametrize(
    "command",
    [
        group_log_pb2.GroupCommand(version=2, group=NAME, remove_group=group_log_pb2.RemoveGroup()),
        group_log_pb2.GroupCommand(version=1, group=NAME),
    ],
)
def test_what_is_not_understood_is_not_skipped(lab: GroupLab, command: group_log_pb2.GroupCommand) -> None:
    """A later version, or no command that is known."""
    with pytest.raises(UnknownGroupCommand):
        apply_group_command(lab.state, command)


def test_bytes_that_are_no_command() -> None:
    """They do not decode."""
    with pytest.raises(UnknownGroupCommand):
        decode_group_command(b"\xff")


def test_the_state_is_found_in_a_log_whose_begin_is_gone(lab: GroupLab, monkeypatch: pytest.MonkeyPatch) -> None:
    """In chunks, with commands between them; chunks of an earlier state, or of one that is not whole, do not count."""
    monkeypatch.setattr("fluxd.core.state_chunks._CHUNK_BYTES", 100)
    lab.join(1)
    lab.join(2)
    lab.balance()
    taken = lab.state
    stale = state_chunks(Offset(taken.applied_offset - 1), snapshot(taken))
    chunks = state_chunks(taken.applied_offset, snapshot(taken))
    assert len(chunks) > 2
    for number, chunk in enumerate(chunks):
        for each in stale[number : number + 1]:
            lab.apply(lab.commands.state_chunk(each))
        lab.apply(lab.commands.state_chunk(chunk))
        lab.commit(lab.member(1), 0, number)
    search = StateSearch(taken.applied_offset)
    looked = [
        search.look(command.state_chunk if command.HasField("state_chunk") else None)
        for command in lab.log[taken.applied_offset :]
    ]
    (found,) = [each for each in looked if each is not None]
    state = restore(found)
    assert state == taken
    assert looked[-1] is None, "the last commit is behind it"
    for command in lab.log[state.applied_offset :]:
        state, _, _ = apply_group_command(state, command)
    assert state == lab.state
