"""Mutants of catching up: a replica that is only behind keeps what it promised, and gets what it lacks."""

from __future__ import annotations

from tests.simulation.mutation.mutant import Edit, Mutant

_CATCHING_UP = "fluxd/raft/catching_up.py"
_COPIES = "fluxd/storage/copies.py"
_COPYING = "fluxd/raft/copying.py"
_FOLLOWING = "fluxd/raft/following.py"
_LEADING = "fluxd/raft/leading.py"
_OPENING = "fluxd/raft/opening.py"
_SERVING = "fluxd/raft/serving.py"
_STANDING = "fluxd/raft/standing.py"
_STORAGE = "tests/unit/test_storage_copies.py::"
_TESTS = "tests/simulation/test_catching_up.py::"

MUTANTS = (
    Mutant(
        "behind-lacks",
        "a copy takes a log's place only if that lacks the copy's first entry",
        (Edit(_CATCHING_UP, "        if lacks:\n", "        if True:\n"),),
        guard=_TESTS + "test_a_copy_does_not_replace_what_has_gone_further",
    ),
    Mutant(
        "behind-vouched",
        "a copy begins only with a snapshot that vouches for its first entry",
        (
            Edit(
                _COPIES, "    if not vouches(_decoded(group, snapshot, first.raft_index), first):\n", "    if False:\n"
            ),
        ),
        guard=_TESTS + "test_a_log_is_not_given_away_for_a_copy_that_cannot_be_opened",
    ),
    Mutant(
        "behind-opens",
        "a copy takes a log's place only if it opens",
        (
            Edit(
                _COPIES,
                "    except (LogMissing, LogCorrupt):\n        discard(fs, group)\n        raise\n",
                "    except (LogMissing, LogCorrupt):\n        pass\n",
            ),
        ),
        guard=_STORAGE + "test_a_copy_that_does_not_open_takes_no_place",
    ),
    Mutant(
        "behind-read-first",
        "a snapshot is sent with the first entry that the log had before it was read",
        (
            Edit(
                _SERVING,
                "reply.first_index, reply.snapshot_index, reply.snapshot_bytes = first_index, ",
                "reply.snapshot_index, reply.snapshot_bytes = ",
            ),
        ),
        guard=_TESTS + "test_a_snapshot_is_sent_with_where_the_log_began_when_it_was_read",
    ),
    Mutant(
        "behind-connected",
        "a leader that has what a replica needs ends its copy",
        (Edit(_FOLLOWING, "            guard.on_connected()\n", ""),),
        guard=_TESTS + "test_a_leader_that_has_what_it_needs_ends_the_copy",
    ),
    Mutant(
        "behind-served",
        "a replica that takes part gets what is committed also from a leader that needs its acknowledgement",
        (Edit(_SERVING, "if not request.behind and commit_index", "if commit_index"),),
        guard=_TESTS + "test_it_votes_meanwhile_and_no_other_replica_is_needed",
    ),
    Mutant(
        "behind-copies",
        "a replica that the leader's log begins behind copies it",
        (Edit(_FOLLOWING, "            guard.on_behind(message.term, peer)\n", "            pass\n"),),
        guard=_TESTS + "test_a_replica_that_was_outrun_is_whole_again",
    ),
    Mutant(
        "behind-hidden",
        "nothing is sent to a replica that would refuse it",
        (
            Edit(
                _LEADING,
                "                self._guard.hide(peer)  # entries would be refused",
                "                pass  #",
            ),
        ),
        guard=_TESTS + "test_no_entry_is_sent_to_it_that_it_would_refuse",
    ),
    Mutant(
        "behind-quorum",
        "a replica that copies does not count when writes are admitted",
        (Edit(_STANDING, "progress.is_behind or ", ""),),
        guard=_TESTS + "test_while_it_copies_writes_are_refused_when_it_would_be_needed",
    ),
    Mutant(
        "behind-decision-durable",
        "the decision for the copy is durable before the old log goes",
        (
            Edit(
                _COPIES,
                "    fs.sync_directory(path)\n    fs.sync_directory(COPIES)\n\n\ndef finish_replacing",
                "\n\ndef finish_replacing",
            ),
        ),
        guard=_STORAGE + "test_a_decision_is_durable",
    ),
    Mutant(
        "behind-decision-first",
        "a copy counts only when that was decided",
        (Edit(_COPIES, '    if fs.exists(f"{beside}/{REPLACES}"):\n', "    if fs.exists(beside):\n"),),
        guard=_STORAGE + "test_a_copy_beside_counts_only_when_that_was_decided",
    ),
    Mutant(
        "behind-decision-finished",
        "what was decided is done at the next start",
        (Edit(_OPENING, "        copies.finish_replacing(fs, spec.group_id)\n", ""),),
        guard=_STORAGE + "test_a_decision_is_durable",
    ),
    Mutant(
        "behind-decision-void",
        "a copy in place makes what was decided before void",
        (Edit(_COPIES, "    discard(fs, group)  # in place too", "    fs.exists(_path(group))  # in place too"),),
        guard=_STORAGE + "test_what_was_decided_of_a_log_that_counts_no_more_is_void",
    ),
    Mutant(
        "behind-resumed",
        "a copy goes on after a restart although its snapshot's entry is yet to come",
        (Edit(_COPIES, ", unfinished=True)", ")"),),
        guard=_TESTS + "test_a_copy_goes_on_after_a_restart",
    ),
)
