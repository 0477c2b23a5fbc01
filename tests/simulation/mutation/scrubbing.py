"""Mutants of the scrub: damage is found, is repaired in turn, and costs neither a quorum nor a record."""

from __future__ import annotations

from tests.simulation.mutation.mutant import Edit, Mutant

_SCRUB = "fluxd/storage/scrub.py"
_SEGMENTS = "fluxd/storage/segments.py"
_CHECKING = "fluxd/broker/checking.py"
_READER = "fluxd/storage/reader.py"
_LEADING = "fluxd/raft/leading.py"
_LEAVING = "fluxd/raft/leaving.py"
_SERVING = "fluxd/raft/serving.py"
_GROUP = "fluxd/raft/group.py"
_HOST = "fluxd/raft/host.py"
_SCRUBBING = "fluxd/raft/scrubbing.py"
_HOUSEKEEPING = "fluxd/raft/housekeeping.py"
_CHECKPOINT = "fluxd/storage/checkpoint.py"
_VOTES = "fluxd/storage/votes.py"
_FILES = "tests/simulation/test_scrubbing_files.py::"
_TESTS = "tests/simulation/test_scrubbing.py::"
_UNIT = "tests/unit/test_storage_scrub.py::"
_UNIT_READER = "tests/unit/test_storage_reader.py::"

MUTANTS = (
    Mutant(
        "scrub-chain",
        "the scrub checks that each entry follows the one before it",
        (Edit(_SCRUB, "why = breach(last, stamp) if last is not None else None", "why = None"),),
        guard=_UNIT + "test_entries_in_another_order_are_found",
    ),
    Mutant(
        "scrub-committed",
        "the scrub reads what is committed, and no further",
        (Edit(_SCRUB, "following.raft_index - 1 > end_index", "False"),),
        guard=_UNIT + "test_the_segment_that_is_written_can_be_left_out",
    ),
    Mutant(
        "scrub-read-trimmed",
        "a read that failed since its segment was trimmed is no damage",
        (Edit(_LEAVING, " or group.log.scrub.was_trimmed(error) or", " or"),),
        guard=_TESTS + "test_a_read_of_a_trimmed_segment_is_no_damage",
    ),
    Mutant(
        "scrub-look-up",
        "a segment is looked up in one list, also when the head goes meanwhile",
        (
            Edit(
                _SEGMENTS,
                "removed, self.all = self.all[:count], self.all[count:]",
                "removed = self.all[:count]\n        del self.all[:count]",
            ),
        ),
        guard=_UNIT + "test_an_entry_is_looked_up_while_the_head_goes",
    ),
    Mutant(
        "scrub-look-up-trimmed",
        "an entry before the head is not looked for in another segment",
        (Edit(_SEGMENTS, "        if number == 0:\n", "        if False:\n"),),
        guard=_UNIT + "test_what_was_trimmed_meanwhile_is_no_damage",
    ),
    Mutant(
        "check-trimmed",
        "what was trimmed during a comparison of replicas is no damage",
        (Edit(_CHECKING, "if log.scrub.was_trimmed(error):", "if False:"),),
        guard="tests/unit/test_checking.py::test_what_is_trimmed_meanwhile_is_no_damage",
    ),
    Mutant(
        "check-reopened",
        "what was cut off a log that was opened again during a comparison of replicas is no damage",
        (Edit(_CHECKING, "if group.log is not log or group.role is Role.FAILED:", "if False:"),),
        guard="tests/unit/test_checking.py::test_what_is_cut_off_meanwhile_is_no_damage",
    ),
    Mutant(
        "read-reopened",
        "a read of a log tells nothing of the one that was opened in its place",
        (Edit(_GROUP, "if not self._failed and (log is None or log is self.log):", "if not self._failed:"),),
        guard="tests/simulation/test_disk_errors.py::test_a_read_of_what_was_cut_off_meanwhile_is_no_damage",
    ),
    Mutant(
        "scrub-damage-trimmed",
        "damage that was trimmed is told no more",
        (
            Edit(
                _LEAVING,
                "if damaged.segment is not None and group.log.scrub.is_gone(damaged.segment):",
                "if False:",
            ),
        ),
        guard="tests/simulation/test_scrubbing.py::test_damage_that_is_trimmed_is_told_no_more",
    ),
    Mutant(
        "scrub-read-again",
        "damage is told until that segment, and no other one, can be read",
        (Edit(_LEAVING, " and damaged.segment == segment:", ":"),),
        guard="tests/simulation/test_scrubbing.py::test_another_segment_that_is_sound_does_not_end_it",
    ),
    Mutant(
        "scrub-trimmed",
        "what was trimmed while it was read is no damage",
        (
            Edit(
                _SCRUB,
                "return all(there.first_index != segment for there in self._segments.all)",
                "return False",
            ),
        ),
        guard=_TESTS + "test_a_trimmed_segment_is_no_damage",
    ),
    Mutant(
        "scrub-state",
        "a damaged state file is written anew, and what follows goes to the new one",
        (
            Edit(
                _CHECKPOINT,
                "            self._file.close()  # what follows goes to the new one, durable name or not\n"
                "            self._file, self._sequence, self._slot = fresh._file, fresh._sequence, fresh._slot\n",
                "            fresh.close()\n",
            ),
        ),
        guard=_FILES + "test_what_is_written_while_the_state_file_is_mended_is_kept",
    ),
    Mutant(
        "scrub-beside",
        "the scrub reads what stands beside a log",
        (Edit(_SCRUBBING, "self._host.housekeeping.mend(group, found[0])", "pass"),),
        guard=_FILES + "test_a_damaged_snapshot_is_replaced[flip]",
    ),
    Mutant(
        "scrub-old-snapshot",
        "a damaged snapshot goes when a sound one is durable",
        (Edit(_HOUSEKEEPING, "first=steps, then=remove,", "first=steps,"),),
        guard=_FILES + "test_a_damaged_snapshot_is_replaced[flip]",
    ),
    Mutant(
        "scrub-votes",
        "damaged votes are written anew as a whole: a sync of the same file mends nothing",
        (Edit(_VOTES, "            return 0\n        self._unusable = True\n", "            return 0\n"),),
        guard=_FILES + "test_damaged_votes_are_written_anew[3]",
    ),
    Mutant(
        "read-hole",
        "a reader is not given what stands behind a damaged header",
        (Edit(_READER, "if stamp.base_offset > self.offset:", "if False:"),),
        guard=_UNIT + "test_a_header_that_hides_its_record_leaves_no_hole",
    ),
    Mutant(
        "read-checksum",
        "a reader is given nothing whose checksum is wrong",
        (Edit(_READER, "verify_frame(data[end : end + stamp.frame_bytes])", "pass"),),
        guard=_UNIT_READER + "test_damage_is_found_at_once",
    ),
    Mutant(
        "read-cached",
        "what is only in part in the machine's memory is waited for, and taken for no damage",
        (Edit(_READER, "if found < wanted and not wait:", "if False:"),),
        guard=_UNIT_READER + "test_what_is_in_memory_is_read_at_once",
    ),
    Mutant(
        "leave-majority",
        "a damaged replica leaves when the others that are in sync are a majority",
        (Edit(_LEADING, "if 2 * (len(staying) + 1) <= len(self.progress) + 1 or", "if"),),
        guard=_TESTS + "test_it_stays_while_another_replica_is_missing",
    ),
    Mutant(
        "leave-in-turn",
        "of two damaged replicas one leaves at a time",
        (Edit(_LEADING, " and now >= p.leaving_until\n", "\n"),),
        guard=_TESTS + "test_damage_on_two_of_three_is_repaired_in_turn",
    ),
    Mutant(
        "leave-needed",
        "a replica stays whose acknowledgement an entry waits for",
        (Edit(_LEADING, " or progress.match > self._guard.journal.commit_index:", ":"),),
        guard=_TESTS + "test_nobody_leaves_whose_acknowledgement_is_needed",
    ),
    Mutant(
        "leave-late-reply",
        "what a replica that leaves acknowledges does not count",
        (Edit(_LEADING, "if now < progress.leaving_until:", "if False:"),),
        guard=_TESTS + "test_what_a_leaving_replica_acknowledged_late_does_not_count",
    ),
    Mutant(
        "leave-hand-over",
        "a damaged leader hands over before it leaves",
        (Edit(_LEAVING, "            damaged.group.transfer(None)\n", "            self._leave(damaged)\n"),),
        guard=_TESTS + "test_a_damaged_leader_hands_over_before_it_leaves",
    ),
    Mutant(
        "leave-read",
        "a read that meets damage tells it",
        (
            Edit(_SERVING, "                self._read_failed(error)\n", ""),
            Edit(_HOST, "damaged = isinstance(error, CorruptDataError)", "damaged = False"),
        ),
        guard=_TESTS + "test_a_read_that_meets_the_damage_first_tells_it",
    ),
)
