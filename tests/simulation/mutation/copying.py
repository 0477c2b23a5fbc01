"""Mutants of copying to a replica whose disk was lost: what its predecessor promised must neither be lost nor count."""

from __future__ import annotations

from tests.simulation.mutation.mutant import Edit, Mutant

_COPYING = "fluxd/raft/copying.py"
_PACE = "fluxd/raft/copy_pace.py"
_COPIES = "fluxd/storage/copies.py"
_ELECTIONS = "fluxd/raft/elections.py"
_LEADING = "fluxd/raft/leading.py"
_OPENING = "fluxd/raft/opening.py"
_TESTS = "tests/simulation/test_copying.py::"

MUTANTS = (
    Mutant(
        "copy-outpaced",
        "who writes faster than is copied does not keep a replica out for ever",
        (Edit(_PACE, "self._bytes_per_second *= 2", "self._bytes_per_second *= 1"),),
        guard=_TESTS + "test_a_producer_faster_than_the_pace_does_not_keep_it_out",
    ),
    Mutant(
        "copy-overtaken",
        "a copy whose next entries are gone at the leader is faster the next time",
        (Edit(_COPYING, "self._context.pace.overtaken(self)", "pass"),),
        guard="tests/simulation/test_catching_up.py::test_a_copy_that_the_pace_holds_up_is_overtaken_a_few_times_only",
    ),
    Mutant(
        "copy-closed",
        "what a copy has queued is not begun when its partition was deleted",
        (Edit(_COPYING, "            if not self._closed:\n                step()\n", "            step()\n"),),
        guard=_TESTS + "test_what_is_queued_of_a_copy_does_not_outlive_its_partition",
    ),
    Mutant(
        "copy-finish-again",
        "what was admitted is not copied once more when its mark could not be removed",
        (Edit(_COPYING, "self._at(_AGAIN_AFTER, self._finish)", "self._begin_again(str(error))"),),
        guard=_TESTS + "test_an_error_at_the_very_end_does_not_begin_the_copy_again",
    ),
    Mutant(
        "copy-late-answers",
        "an answer that comes after its request was repeated counts",
        (Edit(_COPYING, "if self._nonce and asked == self._asked and not request.admit:", "if False:"),),
        guard=_TESTS + "test_pieces_that_take_longer_than_a_request_is_waited_for_count_all_the_same",
    ),
    Mutant(
        "copy-confirmed",
        "a replica is admitted when all others have confirmed the leader",
        (Edit(_LEADING, "if not confirmed or progress.match > commit_index:", "if progress.match > commit_index:"),),
        guard=_TESTS + "test_nobody_is_admitted_while_another_replica_is_silent",
    ),
    Mutant(
        "copy-majority",
        "those who confirm are a majority without the replica",
        (Edit(_LEADING, "if 2 * (len(others) + 1) <= len(self.progress) + 1:", "if False:"),),
        expected_silent="two replicas do not begin to copy; of more, a majority takes part or nobody leads",
    ),
    Mutant(
        "copy-second-time",
        "two that one leader admits for the second time do not wait for each other",
        (
            Edit(
                _LEADING, "if self._transfer is None and any(peer in self._admissions for peer in others):", "if False:"
            ),
        ),
        guard=_TESTS + "test_two_that_are_lost_a_second_time_do_not_wait_for_each_other",
    ),
    Mutant(
        "copy-acknowledged",
        "what the lost disk had acknowledged is committed before its successor is admitted",
        (Edit(_LEADING, "if not confirmed or progress.match > commit_index:", "if not confirmed:"),),
        guard=_TESTS + "test_what_the_lost_disk_acknowledged_is_committed_before_it_is_admitted",
    ),
    Mutant(
        "copy-late-reply",
        "a late acknowledgement of the lost disk does not count",
        (
            Edit(
                _LEADING,
                "if progress.admitted_at and reply.echoed_sequence <= progress.admitted_at:",
                "if False:",
            ),
        ),
        guard=_TESTS + "test_what_the_lost_disk_acknowledged_late_does_not_count",
    ),
    Mutant(
        "copy-late-vote",
        "a vote counts for the campaign that asked for it",
        (Edit(_ELECTIONS, "if message.vote_reply.nonce != self._nonce:", "if False:"),),
        guard=_TESTS + "test_a_vote_that_the_lost_disk_had_asked_for_does_not_elect",
    ),
    Mutant(
        "copy-vote-spent",
        "the vote in the term of the admission is spent",
        (
            Edit(
                _COPYING,
                "self._vote_op = votes.put(spec.group_id, spec.generation, term, leader)",
                "self._vote_op = votes.put(spec.group_id, spec.generation, term, None)",
            ),
        ),
        guard=_TESTS + "test_the_vote_of_the_term_of_admission_is_spent",
    ),
    Mutant(
        "copy-everything",
        "everything up to the admission is copied before the replica takes part",
        (Edit(_COPYING, " and log.synced_index >= self._admitted[1]:", ":"),),
        guard=_TESTS + "test_everything_up_to_the_admission_is_copied_first",
    ),
    Mutant(
        "copy-last",
        "nothing is set aside before somebody leads",
        (Edit(_COPYING, "        if self._leader is None:\n            return\n        found", "        found"),),
        guard=_TESTS + "test_nothing_is_set_aside_while_nobody_leads",
    ),
    Mutant(
        "copy-damaged",
        "only what is lost or damaged is copied anew",
        (Edit("fluxd/raft/replicas.py", "if isinstance(opened, Damaged):", "if True:"),),
        guard=_TESTS + "test_what_cannot_be_read_at_the_moment_is_left_alone",
    ),
    Mutant(
        "copy-lost-votes",
        "a directory has another id before it has new votes",
        (
            Edit(
                "fluxd/storage/directory.py",
                "directory_id=random_bytes(DIRECTORY_ID_BYTES).hex(), metadata_bound=False)",
                "metadata_bound=False)",
            ),
        ),
        guard="tests/unit/test_storage_directory.py::test_a_directory_whose_votes_are_lost_becomes_another_one",
    ),
    Mutant(
        "copy-mark",
        "an unfinished copy is no replica",
        (Edit(_OPENING, "if copies.is_being_copied(fs, spec.group_id):", "if False:"),),
        guard="tests/unit/test_storage_copies.py::test_an_unfinished_copy_is_no_replica",
    ),
    Mutant(
        "copy-mark-durable",
        "the mark goes durably before the replica takes part",
        (
            Edit(
                _COPIES,
                '    fs.remove(f"{_path(group)}/{MARK}")\n    fs.sync_directory(_path(group))\n',
                '    fs.remove(f"{_path(group)}/{MARK}")\n',
            ),
        ),
        guard="tests/unit/test_storage_copies.py::test_a_finished_copy_stays_one",
    ),
    Mutant(
        "copy-mark-first",
        "the mark is durable before anything is copied",
        (
            Edit(
                _COPIES,
                '    fs.sync_directory(path)\n    fs.sync_directory(_PARTITIONS)\n    fs.sync_directory("")\n',
                "    pass\n",
            ),
        ),
        guard="tests/unit/test_storage_copies.py::test_the_mark_is_there_before_the_first_entry",
    ),
)
