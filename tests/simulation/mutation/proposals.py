"""Mutants of C0, C8, C9, C14 and the producer table: what is answered, and what is let in."""

from __future__ import annotations

from tests.simulation.mutation.mutant import Edit, Mutant

_GROUP = "fluxd/raft/group.py"
_FOLLOWING = "fluxd/raft/following.py"
_JOURNAL = "fluxd/raft/journal.py"
_HOST = "fluxd/raft/host.py"
_LIBRARY = "fluxd/raft/library.py"
_HAZARDS = "tests/simulation/test_hazards.py::"
_ANSWERS = "tests/simulation/test_guard_answers.py::"
_RETRIES = "tests/simulation/test_producer_retries.py::"
_RETRIES = "tests/simulation/test_producer_retries.py::"

MUTANTS = (
    Mutant(
        "c0-hash",
        "C0 only the audited library is used",
        (Edit(_LIBRARY, "if digest != AUDITED_SYNCOBJ_SHA256:", "if False:"),),
        guard="tests/unit/test_library.py::test_another_version_is_refused",
    ),
    Mutant(
        "c0-period",
        "C0 the send period does not cap commits",
        (Edit(_LIBRARY, "_APPEND_ENTRIES_PERIOD = 1e-6", "_APPEND_ENTRIES_PERIOD = 5e-3"),),
        guard=_HAZARDS + "test_q01_the_rate_of_commits_is_not_capped_by_a_period",
    ),
    # ------------------------------------------------------------------ C8
    Mutant(
        "c8-answers",
        "C8 what is in flight or waits is answered when leadership ends",
        (
            Edit(
                _GROUP,
                'if old == library.LEADER:\n            self._leadership_ended(f"leadership of',
                'if False:\n            self._leadership_ended(f"leadership of',
            ),
        ),
        guard=_HAZARDS + "test_h18_every_proposal_is_answered_when_leadership_is_lost",
    ),
    Mutant(
        "c8-unknown",
        "C8 what is in the log when leadership ends is UNKNOWN, not REJECTED",
        (
            Edit(
                _GROUP,
                'FluxError(Reason.OUTCOME_UNKNOWN, f"{why} while the entry was being replicated")',
                'FluxError(Reason.NOT_LEADER, f"{why} while the entry was being replicated")',
            ),
        ),
        guard=_HAZARDS + "test_h18_every_proposal_is_answered_when_leadership_is_lost",
    ),
    Mutant(
        "c8-queue-dropped",
        "C8 what waited when leadership ended is not appended by a later leadership",
        (
            Edit(_GROUP, "queue, self._queue = self._queue, deque()", "queue = tuple(self._queue)"),
            Edit(_GROUP, "self._queue_bytes = self._queue_records = 0\n        self.producers", "self.producers"),
        ),
        guard=_ANSWERS + "test_what_waited_when_leadership_ended_is_written_by_no_later_one",
    ),
    Mutant(
        "c8-commit-first",
        "C8 an answer waits for the commit index",
        (Edit(_GROUP, "if self._in_flight and self._in_flight[0].index <= commit:", "if self._in_flight:"),),
        guard=_ANSWERS + "test_an_answer_waits_for_its_own_entry",
    ),
    # ------------------------------------------------------------------ C9
    Mutant(
        "c9-checksum",
        "C9 an entry whose bytes do not fit its checksum is refused",
        (
            Edit(_FOLLOWING, "stamp = verify_frame(frame)", "stamp = read_stamp(frame)"),
            Edit(_FOLLOWING, "read_trim, verify_frame", "read_stamp, read_trim"),
        ),
        guard=_ANSWERS + "test_a_follower_refuses_what_is_no_sound_entry[wrong-checksum]",
    ),
    Mutant(
        "c9-order",
        "C9 entries that do not follow each other are refused",
        (
            Edit(
                _FOLLOWING,
                "stamp.raft_index != index\n                or not entry_term <= stamp.leader_epoch <= term\n"
                "                or stamp.kind is EntryKind.BIRTH",
                "False",
            ),
        ),
        guard=_ANSWERS + "test_a_follower_refuses_what_is_no_sound_entry[gap]",
    ),
    Mutant(
        "c9-type-byte",
        "C9 an entry's first byte keeps the library off its pickle paths",
        (Edit(_JOURNAL, "_TYPE_BYTE = bytes((FRAME_TAG,))", '_TYPE_BYTE = b"\\x00"'),),
        guard=_HAZARDS + "test_no_pickle_is_ever_used",
    ),
    # ------------------------------------------------------------------ C14
    Mutant(
        "c14-fail-stop",
        "C14 a replica whose step raises stops",
        (Edit(_HOST, "group.fail(why)", "pass"),),
        guard=_ANSWERS + "test_a_replica_whose_step_raises_stops",
    ),
    Mutant(
        "c14-truncation",
        "C14 a truncation at or below the commit index stops the replica",
        (Edit(_JOURNAL, "if first_removed <= self.commit_index:", "if False:"),),
        guard=_ANSWERS + "test_the_journal_truncates_nothing_committed",
    ),
    Mutant(
        "c14-commit-falls",
        "C14 a falling commit index stops the replica",
        (Edit(_JOURNAL, "if index < self.commit_index:", "if False:"),),
        guard=_ANSWERS + "test_the_journals_commit_index_neither_falls_nor_exceeds_the_log",
    ),
    # ------------------------------------------------------------------ producers, expected offset
    Mutant(
        "producer-overlay",
        "a follower keeps the producer table of entries that are not committed",
        (Edit(_GROUP, "items = items_of_frame(frame, stamp)", "items = []"),),
        guard=_ANSWERS + "test_a_retry_at_the_next_leader_waits_for_the_first_copy",
    ),
    Mutant(
        "producer-truncate",
        "a truncation takes entries out of the producer table",
        (Edit(_GROUP, "self.producers.truncate(first_removed)", "pass"),),
        guard=_RETRIES + "test_a_deposed_leader_does_not_answer_from_an_entry_since_truncated",
    ),
    Mutant(
        "producer-queue",
        "a retry of what waits in the queue is recognised",
        (
            Edit(
                _GROUP,
                "        if append.producer_id:\n            self.producers.enqueue(",
                "        if False:\n            self.producers.enqueue(",
            ),
        ),
        guard=_RETRIES + "test_a_retry_while_the_first_copy_waits_in_the_queue",
    ),
    Mutant(
        "producer-drop-queue",
        "the queue leaves the producer table with the leadership",
        (Edit(_GROUP, "self.producers.drop_queue()", "pass"),),
        guard=_ANSWERS + "test_a_retry_of_what_waited_when_leadership_ended_is_written",
    ),
    Mutant(
        "producer-late",
        "a duplicate of an uncommitted entry waits for its commit",
        (
            Edit(
                _GROUP,
                "self._late.append((verdict.raft_index, append, verdict))",
                "append.done(self._committed(verdict.base_offset, append, verdict.leader_epoch, verdict.raft_index, "
                "duplicate=True))",
            ),
        ),
        guard=_ANSWERS + "test_a_retry_at_the_next_leader_waits_for_the_first_copy",
    ),
    Mutant(
        "producer-restart",
        "the producer table is rebuilt from the log at start",
        (Edit("fluxd/raft/opening.py", "if covered < log.last_index:", "if False:"),),
        guard=_RETRIES + "test_survives_a_restart",
    ),
    Mutant(
        "expected-offset",
        "expected_offset counts what waits before it",
        (Edit(_GROUP, "end = self.log_end_offset + self._queue_records", "end = self.log_end_offset"),),
        guard=_HAZARDS + "test_expected_offset_has_one_winner",
    ),
    Mutant(
        "no-quorum",
        "without a quorum a proposal is refused at once",
        (
            Edit(
                _GROUP,
                "missing = self.quorum_missing()\n        if missing is not None:\n"
                "            return self.no_quorum(missing)\n        if size and",
                "if size and",
            ),
        ),
        guard=_HAZARDS + "test_without_a_quorum_the_leader_refuses_at_once",
    ),
    Mutant(
        "disk-full",
        "with little space left records are refused before they reach the log",
        (Edit(_GROUP, "if size and self.group_id != METADATA_GROUP and self._context.disk_full():", "if False:"),),
        guard="tests/simulation/test_full_disk.py::test_records_are_refused_while_there_is_little_space",
    ),
)
