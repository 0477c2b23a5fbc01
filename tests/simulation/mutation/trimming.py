"""Mutants of trimming: nothing is let go of that somebody needs, and a power cut in between costs nothing."""

from __future__ import annotations

from tests.simulation.mutation.mutant import Edit, Mutant

_FOLLOWING = "fluxd/raft/following.py"
_GROUP = "fluxd/raft/group.py"
_LEADING = "fluxd/raft/leading.py"
_HEAD = "fluxd/storage/head.py"
_LOG = "fluxd/storage/log.py"
_SEGMENTS = "fluxd/storage/segments.py"
_LOG_TRIMMING = "fluxd/broker/log_trimming.py"
_STATE_CHUNKS = "fluxd/core/state_chunks.py"
_RECOVERY = "fluxd/storage/recovery.py"
_CONTROLLER = "tests/unit/test_controller.py::"
_STORAGE = "tests/unit/test_storage_trim.py::"
_TRIMMING = "tests/simulation/test_trimming.py::"

MUTANTS = (
    Mutant(
        "trim-snapshot",
        "nothing goes above the last durable snapshot",
        (Edit(_HEAD, " or following.first_index > snapshot_index:", ":"),),
        guard=_STORAGE + "test_nothing_goes_above_the_snapshot",
    ),
    Mutant(
        "trim-snapshot-start",
        "nothing goes above the log start that the durable snapshot has",
        (
            Edit(
                _LOG,
                "count = removable(segments, log_start_offset, RaftIndex",
                "count = removable(segments, self.log_start_offset, RaftIndex",
            ),
        ),
        guard=_STORAGE + "test_nothing_goes_above_the_log_start_of_the_snapshot",
    ),
    Mutant(
        "trim-boundary",
        "a log never begins behind the last record below the log start",
        (
            Edit(
                _HEAD,
                "if following.base_offset >= log_start_offset or",
                "if following.base_offset > log_start_offset or",
            ),
        ),
        guard=_STORAGE + "test_entries_without_records_behind_the_log_start_stay",
    ),
    Mutant(
        "trim-mark",
        "the sync mark is durable before a segment goes",
        (Edit(_LOG, "            self._state.make_durable,\n", ""),),
        guard=_STORAGE + "test_the_durable_mark_names_no_segment_that_went",
    ),
    Mutant(
        "trim-again",
        "a trim that failed is done again",
        (Edit(_SEGMENTS, "[*self.let_go_paths, *(segment.path for segment in removed)]", "[s.path for s in removed]"),),
        guard=_STORAGE + "test_a_trim_that_failed_is_done_again",
    ),
    Mutant(
        "trim-asks-again",
        "a trim that failed is not forgotten when nothing else is to go",
        (Edit(_LOG, "bool(self._segments.let_go_paths or removable(", "bool(removable("),),
        guard=_TRIMMING + "test_a_trim_that_failed_is_tried_again",
    ),
    Mutant(
        "trim-head",
        "a log that begins in the middle needs a snapshot that says why",
        (
            Edit(
                _HEAD,
                " or (snapshot is not None and snapshot.log_start_offset >= first.base_offset)",
                " or snapshot is not None",
            ),
        ),
        guard=_STORAGE + "test_a_head_that_nothing_vouches_for_is_corruption",
    ),
    Mutant(
        "trim-unreadable-snapshot",
        "a log that begins in the middle waits for a snapshot that cannot be read",
        (Edit(_HEAD, "if unreadable and not vouches(snapshot, first.first):", "if False:"),),
        guard=_STORAGE + "test_a_trimmed_log_waits_for_its_snapshot",
    ),
    Mutant(
        "trim-rest",
        "what a trim left behind is removed at open",
        (Edit(_RECOVERY, "        self._remove_head(snapshot)\n", ""),),
        guard=_STORAGE + "test_what_a_trim_left_is_removed_at_open_also_with_a_hole",
    ),
    Mutant(
        "trim-commit-floor",
        "what a snapshot covers is committed, whatever the checkpoint says",
        (Edit(_LOG, "                snapshot.index if snapshot else self.first_index,\n", "                0,\n"),),
        guard=_STORAGE + "test_what_a_snapshot_covers_is_committed",
    ),
    Mutant(
        "trim-committed",
        "a TRIM entry is in force when it is committed",
        (
            Edit(
                "fluxd/core/log_start.py",
                "        self._pending.append((raft_index, log_start_offset))\n",
                "        self.committed = max(self.committed, log_start_offset)\n",
            ),
        ),
        guard=_TRIMMING + "test_a_trim_that_is_truncated_is_not_in_force",
    ),
    Mutant(
        "trim-follower-match",
        "a follower takes what it trimmed for equal to the leader's",
        (Edit(_FOLLOWING, "matches = previous < log.first_index or (", "matches = log.first_index <= previous and ("),),
        guard=_TRIMMING + "test_a_leader_with_a_longer_log_talks_to_a_trimmed_follower",
    ),
    Mutant(
        "trim-rewind",
        "a rewind stops at the first entry",
        (
            Edit(
                _LEADING,
                "        next_index = max(next_index, self._guard.journal.log.first_index + 1)"
                "  # the library asks for a snapshot else\n",
                "",
            ),
        ),
        guard=_TRIMMING + "test_a_rewind_stops_at_the_first_entry",
    ),
    Mutant(
        "trim-next-index",
        "after a trim the library is told to send nothing from before it",
        (Edit(_GROUP, "        self.guard.leading.log_trimmed()\n", "        pass\n"),),
        guard=_TRIMMING + "test_what_the_leader_would_send_next_is_not_before_its_log",
    ),
    # ------------------------------------------------------------------ states in their own logs
    Mutant(
        "trim-state",
        "nothing is trimmed before the state that stands for it is committed",
        (
            Edit(
                _LOG_TRIMMING,
                "            if error is None:\n                self._write(taken_at, left)",
                "            if True:\n                self._write(taken_at, left)",
            ),
        ),
        guard=_CONTROLLER + "test_nothing_is_trimmed_before_the_whole_state_is_committed",
    ),
    Mutant(
        "trim-state-start",
        "a state counts only when the log still has all that follows it",
        (
            Edit(
                _STATE_CHUNKS, "if chunk is None or chunk.applied_offset < self._log_start_offset:", "if chunk is None:"
            ),
        ),
        guard="tests/unit/test_groups.py::test_the_state_is_found_in_a_log_whose_begin_is_gone",
    ),
    Mutant(
        "trim-state-upgrade",
        "no state is written while a node is up that would stop at it",
        (Edit("fluxd/broker/metadata_trimming.py", "return is_long and self._all_understand()", "return is_long"),),
        guard=_CONTROLLER + "test_no_state_is_written_while_a_node_would_stop_at_it",
    ),
)
