"""Consumer groups under any sequence of commands."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from fluxd.core.group_snapshot import restore, snapshot
from fluxd.core.groups import Group, GroupsState, Member, apply_group_command
from tests.group_kit import NAME, TOPIC, GroupLab, at, member_id

Step = tuple[str, int, int]
KINDS = ["join", "leave", "lapse", "balance", "assign", "free", "take", "commit", "late", "rewind", "reset", "forget"]
STEPS = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(1, 4), st.integers(0, 5)), max_size=50)


def take(lab: GroupLab, step: Step, earlier: list[Member]) -> bool:
    """Do one step; returns whether offsets may go back by it."""
    kind, who, which = step
    member = lab.group().members.get(member_id(who))
    match kind:
        case "join":
            result = lab.join(who)
            assert result.member is not None
            earlier.append(result.member)
        case "leave" | "lapse" if member:
            lab.leave(member)
        case "balance":
            lab.balance(which + 1)
        case "assign":  # anything that names members only
            ids = sorted(lab.group().members)
            lab.assign({at(n): ids[(n * who) % len(ids)] for n in range(which)} if ids else {})
        case "free" if member:
            lab.free(member, which, which + 1)
        case "take" if member:
            lab.free(member, which, which + 1, taken=True)
        case "commit":
            lab.commit(member, which, who * 3)
        case "late" if earlier:
            lab.commit(earlier[which % len(earlier)], which, who * 5)
        case "rewind" if member:
            lab.commit(member, which, who, rewind=True)
            return True
        case "reset":
            lab.reset(which, who)
            return True
        case "forget":
            lab.apply(lab.commands.forget_topics([TOPIC]))
            return True
    return False


def check_step(before: Group, after: Group, log_kind: str, *, may_go_back: bool) -> None:
    assert {owner.member_id for owner in after.owners.values()} <= after.members.keys()
    assert set(after.target.values()) <= after.members.keys()
    if after.members and before.members:
        assert after.generation >= before.generation
    if after.owners != before.owners:
        gone = not after.members and not after.offsets  # such a group does not exist, and has no generation
        assert after.generation > before.generation or gone
    for partition, owner in before.owners.items():
        now = after.owners.get(partition)
        if now is not None and now.member_id != owner.member_id:
            assert log_kind in ("free_partitions", "remove_member"), "ownership goes on only when it was given up"
        if now is not None and now.since_generation == owner.since_generation:
            assert now.revoking or not owner.revoking, "a revocation is not taken back"
    if not may_go_back:
        for partition, committed in before.offsets.items():
            assert after.offsets[partition].offset >= committed.offset


@given(steps=STEPS)
@example(steps=[("join", 1, 0), ("balance", 1, 0), ("leave", 1, 0)])
def test_groups_are_consistent_and_replay_is_equal(steps: list[Step]) -> None:
    """After each command: owners are members, one for each partition, and change only when the former one gave up; a
    fenced commit changes nothing; offsets do not go back. Replay gives the same, with or without a snapshot.
    """
    lab = GroupLab()
    earlier: list[Member] = []
    kept: tuple[GroupsState, int] = (lab.state, 0)
    for number, step in enumerate(steps):
        before = lab.group()
        count = len(lab.log)
        may_go_back = take(lab, step, earlier)
        kind = (lab.log[-1].WhichOneof("command") or "") if len(lab.log) > count else ""
        check_step(before, lab.group(), kind, may_go_back=may_go_back)
        if step[0] == "late" and len(lab.log) > count:
            commit = lab.log[-1].commit_offsets
            member = before.members.get(commit.member_id)
            owner = before.owners.get(at(step[2]))
            if member is None or member.epoch != commit.member_epoch or owner is None:
                assert lab.group() is before or lab.group() == before
        if number == len(steps) // 2:
            kept = (restore(snapshot(lab.state)), len(lab.log))
    assert restore(snapshot(lab.state)) == lab.state
    for start, done in ((GroupsState(), 0), kept):
        state = start
        for command in lab.log[done:]:
            state, _, _ = apply_group_command(state, command)
        assert state == lab.state


@given(steps=STEPS)
def test_commands_that_are_applied_twice_do_no_harm(steps: list[Step]) -> None:
    """Partitions still have one owner each, and offsets are the same."""
    once, twice = GroupLab(), GroupLab()
    earlier: list[Member] = []
    for step in steps:
        take(once, step, earlier)
    for command in once.log:
        if command.WhichOneof("command") == "commit_offsets":
            twice.apply(command)
            before = twice.group(NAME)
            twice.apply(command)
            assert twice.group(NAME).offsets == before.offsets
        else:
            twice.apply(command)
            twice.apply(command)
        group = twice.group(NAME)
        assert {owner.member_id for owner in group.owners.values()} <= group.members.keys()
