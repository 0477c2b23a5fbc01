"""Mutants of C5 and of the rule that a lost disk does not vote: nothing is said before the disk has it."""

from __future__ import annotations

from tests.simulation.mutation.mutant import Edit, Mutant

_GUARD = "fluxd/raft/guard.py"
_LEADING = "fluxd/raft/leading.py"
_FOLLOWING = "fluxd/raft/following.py"
_ELECTIONS = "fluxd/raft/elections.py"
_OUTBOX = "fluxd/raft/outbox.py"
_JOURNAL = "fluxd/raft/journal.py"
_HOST = "fluxd/raft/host.py"
_REPLICAS = "fluxd/raft/replicas.py"
_HEALING = "fluxd/raft/healing.py"
_GROUP = "fluxd/raft/group.py"
_VOTE_SYNCING = "fluxd/raft/vote_syncing.py"
_RECOVERY = "fluxd/storage/recovery.py"
_OPENING = "fluxd/raft/opening.py"
_LOG = "fluxd/storage/log.py"
_SYNC = "fluxd/storage/sync.py"
_CHECKPOINT = "fluxd/storage/checkpoint.py"
_SEGMENT = "fluxd/storage/segment.py"
_VOTES = "fluxd/storage/votes.py"
_HAZARDS = "tests/simulation/test_hazards.py::"
_DISKS = "tests/simulation/test_guard_disks.py::"
_ERRORS = "tests/simulation/test_disk_errors.py::"
_STATE = "tests/unit/test_storage_state.py::"
_STORAGE = "tests/unit/test_storage_log.py::"
_REAL = "fluxd/storage/real.py"
_RESTING = "tests/unit/test_storage_descriptors.py::"

MUTANTS = (
    Mutant(
        "storage-index-once",
        "an index that a thread has built late does not replace the one that the loop has changed since",
        (
            Edit(
                _SEGMENT,
                "            if self.index is None:\n                self.index = built\n",
                "            self.index = built\n",
            ),
        ),
        guard="tests/unit/test_storage_index.py::test_an_index_that_is_built_late_does_not_replace_the_logs[old]",
    ),
    # ------------------------------------------------------------------ acknowledgements
    Mutant(
        "c5-follower-unsynced",
        "C5 a follower acknowledges what its disk has",
        (Edit(_FOLLOWING, "self._reported = min(self.verified, log.synced_index)", "self._reported = self.verified"),),
        guard=_HAZARDS + "test_h9_a_follower_acknowledges_only_what_its_disk_has",
        essential=True,
    ),
    Mutant(
        "c5-leader-unsynced",
        "C5 a leader counts itself when its disk has the entry",
        (
            Edit(
                _LEADING, "match = min(progress.match, self._guard.journal.log.synced_index)", "match = progress.match"
            ),
        ),
        guard=_HAZARDS + "test_h10_a_leader_counts_itself_only_when_its_own_disk_has_the_entry",
    ),
    Mutant(
        "c5-group-of-one",
        "C5 a group of one waits for its disk",
        (
            Edit(
                _LEADING,
                "match = min(progress.match, self._guard.journal.log.synced_index)",
                "match = min(progress.match, self._guard.journal.log.last_index) if peer == DISK_PEER else "
                "min(progress.match, self._guard.journal.log.synced_index)",
            ),
            Edit(
                _LEADING,
                "guard.inject_neutral(peer)\n                continue",
                "self.give(peer)\n                continue",
            ),
        ),
        guard=_HAZARDS + "test_h10_a_group_of_one_commits_nothing_before_its_disk",
    ),
    Mutant(
        "c5-liveness-apart",
        "C5 liveness is apart from durability: an AppendEntries is answered before it is on disk",
        (
            Edit(
                _FOLLOWING,
                "def _report(self, peer: NodeId) -> None:\n",
                "def _report(self, peer: NodeId) -> None:\n"
                "        if self._guard.journal.log.synced_index < self.verified:\n            return\n",
            ),
        ),
        guard=_HAZARDS + "test_h9_a_follower_acknowledges_only_what_its_disk_has",
    ),
    Mutant(
        "c5-hung-leader",
        "C5 a leader whose disk hangs hands over",
        (Edit(_HOST, "group.disk_hangs()", "pass"),),
        guard=_HAZARDS + "test_e4_a_leader_whose_disk_hangs_hands_over",
    ),
    # ------------------------------------------------------------------ terms and votes
    Mutant(
        "c5-votes-held",
        "C5 every message is held until the term and vote that it reflects are on disk",
        (Edit(_GUARD, "return self._votes.synced_op >= self.journal.vote_op", "return True"),),
        guard=_DISKS + "test_a_vote_leaves_when_it_is_on_disk",
        essential=True,
    ),
    Mutant(
        "c5-vote-of-one",
        "C5 a group of one leads when its vote is on disk",
        (
            Edit(_ELECTIONS, "if self.disk_vote_due and self._guard.votes_durable():", "if self.disk_vote_due:"),
            Edit(
                _ELECTIONS,
                "        guard = self._guard\n        if guard.is_leader or guard.now() < self.deadline:",
                "        guard = self._guard\n        self.on_votes_durable()\n"
                "        if guard.is_leader or guard.now() < self.deadline:",
            ),
        ),
        guard=_DISKS + "test_a_group_of_one_leads_when_its_vote_is_on_disk",
    ),
    Mutant(
        "c5-outbox-terms",
        "C5 held messages of an old term are dropped",
        (Edit(_OUTBOX, "if message.term == term:", "if True:"),),
        guard=_DISKS + "test_what_was_held_and_belongs_to_an_old_term_is_dropped",
    ),
    Mutant(
        "c5-outbox-next",
        "what was held leaves with the next message at the latest",
        (
            Edit(_OUTBOX, "            self.release()  # whoever", "            pass  # whoever"),
            Edit(
                _OUTBOX,
                "if not self._votes_durable():\n            if len",
                "if self._held or not self._votes_durable():\n            if len",
            ),
        ),
        guard="tests/simulation/test_scrubbing.py::"
        "test_a_request_to_leave_that_is_held_back_does_not_silence_the_replica",
    ),
    Mutant(
        "c5-outbox-order",
        "what was held leaves before what follows it",
        (Edit(_OUTBOX, "            self.release()  # whoever", "            pass  # whoever"),),
        guard=_DISKS + "test_what_was_held_leaves_with_the_next_message",
    ),
    Mutant(
        "c5-vote-synced",
        "C5 the votes are durable when their sync says so",
        (Edit(_VOTES, "job.steps = [self._file.sync]", "job.steps = []"),),
        guard=_DISKS + "test_a_vote_leaves_when_it_is_on_disk",
    ),
    Mutant(
        "c5-vote-changes",
        "C5 a recorded vote never changes in its term",
        (
            Edit(
                _VOTES,
                "why = _conflict(known, vote)\n        if why:\n            raise InvariantViolation",
                "why = None\n        if why:\n            raise InvariantViolation",
            ),
        ),
        guard="tests/unit/test_storage_votes.py::test_a_term_never_falls_and_a_vote_never_changes",
    ),
    Mutant(
        "c5-term-of-log",
        "C5 a term that is known from the log alone is recorded before anything is said in it",
        (Edit(_JOURNAL, "if log.last.leader_epoch > recorded:", "if False:"),),
        guard=_DISKS + "test_a_term_that_only_the_log_holds_is_recorded_before_anything_is_said_in_it",
    ),
    Mutant(
        "c5-term-of-log-held",
        "C5 nothing leaves before a term that is known from the log alone is recorded durably",
        (
            Edit(
                _JOURNAL,
                "self.setCurrentTerm(log.last.leader_epoch, None)",
                "votes.put(group, generation, log.last.leader_epoch, None)",
            ),
        ),
        guard=_DISKS + "test_a_term_that_only_the_log_holds_is_recorded_before_anything_is_said_in_it",
    ),
    Mutant(
        "c5-term-of-log-once",
        "a replica whose term is recorded records nothing when it is opened",
        (Edit(_JOURNAL, "if log.last.leader_epoch > recorded:", "if True:"),),
        guard=_DISKS + "test_a_replica_whose_term_is_recorded_records_nothing_when_it_is_opened",
    ),
    # ------------------------------------------------------------------ truncation, checkpoint
    Mutant(
        "c5-truncation-synced",
        "C5 a truncation is on disk before other bytes replace it",
        (Edit(_LOG, "kept.file.truncate(end)\n        kept.file.sync()", "kept.file.truncate(end)"),),
        guard=_DISKS + "test_a_truncation_is_on_disk_when_it_returns",
    ),
    Mutant(
        "c5-mark-falls",
        "C5 the sync mark falls before a truncation",
        (Edit(_LOG, "self._sync.fall(Mark(kept.first_index, end, last.raft_index))", "pass"),),
        guard=_DISKS + "test_a_truncated_log_is_no_corrupt_one",
    ),
    Mutant(
        "c5-void-sync",
        "C5 a sync that was in flight over a truncation covers nothing",
        (Edit(_SYNC, "self._job.void = True", "pass"),),
        guard=_STORAGE + "test_truncation_while_a_sync_runs_makes_its_job_void",
    ),
    Mutant(
        "c5-void-sync-failed",
        "C5 a sync that was in flight over a truncation, and failed, stops the replica as any other does",
        (Edit(_SYNC, "if not (job.void and error.errno == errno.EBADF):", "if not job.void:"),),
        guard=_ERRORS + "test_a_sync_that_fails_after_a_truncation_is_healed",
    ),
    Mutant(
        "c5-void-sync-closed",
        "C5 a truncation may close what a sync in flight has yet to sync",
        (Edit(_SYNC, "if not (job.void and error.errno == errno.EBADF):", "if True:"),),
        guard="tests/unit/test_storage_errors.py::"
        "test_a_segment_that_a_truncation_removed_does_not_fail_the_sync_that_had_it",
    ),
    Mutant(
        "c5-mark-not-fallen",
        "C5 a truncation whose mark could not be written has not begun",
        (Edit(_SYNC, "mark = end if self", "mark = self.mark = end if self"),),
        guard="tests/unit/test_storage_errors.py::test_a_truncation_whose_mark_could_not_be_written",
    ),
    # ------------------------------------------------------------------ the state file, between the loop and threads
    Mutant(
        "c5-state-waits",
        "the loop does not wait for what a thread does to the state file",
        (Edit(_CHECKPOINT, "self._lock.acquire(blocking=False)", "self._lock.acquire()"),),
        guard=_STATE + "test_a_sync_is_finished_while_another_thread_waits_for_the_state_file",
    ),
    Mutant(
        "c5-state-catches-up",
        "a mark that came while a thread had the state file is written when that is done",
        (Edit(_CHECKPOINT, "            yield\n        self._catch_up()\n", "            yield\n"),),
        guard=_STATE + "test_a_sync_is_finished_while_another_thread_waits_for_the_state_file",
    ),
    Mutant(
        "c5-state-takes-first",
        "C5 a mark that is yet to be written comes before what a thread makes durable",
        (Edit(_CHECKPOINT, "            self._take()\n            yield\n", "            yield\n"),),
        guard=_STATE + "test_a_mark_that_could_not_be_written_is_what_a_trim_makes_durable",
    ),
    Mutant(
        "c5-state-falls",
        "C5 a mark that is yet to be written is void when the log was truncated",
        (Edit(_CHECKPOINT, "            self._taken = self._wanted  # older than this one\n", ""),),
        guard=_STATE + "test_a_mark_that_was_not_written_yet_counts_no_more_after_a_truncation",
    ),
    Mutant(
        "c5-checkpoint-term",
        "C5 a checkpoint whose term is not the log's is ignored",
        (
            Edit(
                _LOG, "return found if self.term_at(found.commit_index) == found.commit_term else None", "return found"
            ),
        ),
        guard=_DISKS + "test_a_checkpoint_that_names_other_entries_is_ignored",
    ),
    Mutant(
        "c5-checkpoint-beyond",
        "C5 a checkpoint holds no more than what is on disk",
        (Edit(_LOG, "RaftIndex(min(self.commit_index, self.synced_index))", "RaftIndex(self.commit_index)"),),
        guard=_DISKS + "test_a_checkpoint_holds_no_more_than_what_is_on_disk",
    ),
    Mutant(
        "c5-failed-sync",
        "C5 a replica whose sync fails stops",
        (
            Edit(
                _HOST,
                "                self._stop_group(group, error)\n                return\n",
                "                pass\n",
            ),
        ),
        guard=_ERRORS + "test_a_failed_sync_is_healed[2]",
    ),
    Mutant(
        "c5-failed-vote-sync",
        "C5 votes whose sync failed are not durable",
        (
            Edit(
                _VOTE_SYNCING,
                "                votes.sync_failed(job, error)\n"
                "                self._failed(str(error))\n                return\n",
                "                pass\n",
            ),
        ),
        guard=_ERRORS + "test_votes_whose_sync_fails_once_are_written_anew",
    ),
    Mutant(
        "c5-votes-anew",
        "C5 after a failed sync all votes are written anew: another sync of the same file proves nothing",
        (Edit(_VOTES, "self._unusable, self.trouble = True, str(error)\n\n    def _end", "pass\n\n    def _end"),),
        guard=_ERRORS + "test_votes_whose_sync_fails_once_are_written_anew",
    ),
    Mutant(
        "c5-votes-anew-at-open",
        "C5 votes that a process finds are durable when it has written them itself",
        (
            Edit(_VOTES, "self._unusable = records > 0", "self._unusable = False"),
            Edit(_VOTES, "opened._unusable = len(data) > HEADER_BYTES", "pass"),
        ),
        guard="tests/unit/test_storage_votes.py::test_what_a_failed_sync_left_is_written_by_the_next_process",
    ),
    Mutant(
        "c5-heal-cuts",
        "C5 after a failed sync what stands behind the last successful one counts as never written",
        (
            Edit(
                _RECOVERY, "cut_at = mark.position if synced else self._verify(marked)", "cut_at = self._verify(marked)"
            ),
        ),
        guard="tests/unit/test_storage_errors.py::test_what_can_be_read_but_was_not_synced_is_removed",
    ),
    Mutant(
        "c5-heal-new-segment",
        "C5 after a failed sync the log goes on in a new segment",
        (Edit(_LOG, "log._sealed = after is not None", "pass"),),
        guard=_ERRORS + "test_after_a_failed_sync_the_log_goes_on_in_a_new_segment",
    ),
    Mutant(
        "c5-written-again",
        "C5 what a process finds behind the sync mark is durable when it has written it itself",
        (Edit(_RECOVERY, "        file.write_at(position, data)\n", ""),),
        guard=_ERRORS + "test_what_a_failed_sync_left_in_the_cache_is_written_again_by_the_next_process",
    ),
    Mutant(
        "c5-heal-room",
        "C5 a replica without room comes back when there is more than the reserve",
        (Edit(_HEALING, "(patient.needs_room and self._is_full())", "False"),),
        guard=_ERRORS + "test_a_full_disk_takes_the_replica_offline_until_there_is_room",
    ),
    Mutant(
        "c5-heal-damage",
        "C5 a replica that finds its log damaged takes no part until it was copied",
        (Edit(_HOST, "self._set_aside(group, why)", "pass"),),
        guard=_ERRORS + "test_a_closed_segment_that_was_damaged_under_a_running_replica",
    ),
    Mutant(
        "c5-out-before-line",
        "C5 a replica that stops is out before that is logged",
        (
            Edit(
                _GROUP,
                "        if not self._failed:\n            self._end(why, ",
                '        if not self._failed:\n            self._log_event("replica_failing", why=why)\n'
                "            self._end(why, ",
            ),
        ),
        guard=_ERRORS + "test_a_failed_sync_is_healed_whatever_becomes_of_its_log_line[2]",
    ),
    # ------------------------------------------------------------------ files that rest
    Mutant(
        "c5-rest-unsynced",
        "C5 a file with something written and not synced keeps its descriptor: else an error of it is never told",
        (Edit(_REAL, "self._users or self._writes != self._writes_synced or", "self._users or"),),
        guard=_RESTING + "test_it_does_not_rest_between_a_write_and_its_sync",
    ),
    Mutant(
        "c5-rest-covered",
        "C5 a sync covers what was written before it began, and no more",
        (Edit(_REAL, "self._writes_synced = covered", "self._writes_synced = self._writes"),),
        guard=_RESTING + "test_a_sync_does_not_cover_what_is_written_meanwhile",
    ),
    Mutant(
        "c5-rest-failed",
        "C5 a file whose sync has failed keeps its descriptor until it is closed for good",
        (Edit(_REAL, " or self._sync_failed or", " or"),),
        guard=_RESTING + "test_it_never_rests_again_after_a_sync_that_failed",
    ),
    Mutant(
        "c5-rest-same-file",
        "C5 a file that rested is the same one when it is opened again",
        (Edit(_REAL, "!= self._identity or found.st_size != self._size", "!= self._identity and False"),),
        guard=_RESTING + "test_it_must_be_the_same_file_when_it_is_opened_again",
    ),
    # ------------------------------------------------------------------ lost disks
    Mutant(
        "lost-disk",
        "a vote is bound to its data directory: a wiped disk does not vote",
        (Edit(_REPLICAS, "if spec.bound_directory != self.directory_id:", "if False:"),),
        guard=_HAZARDS + "test_e6_a_wiped_disk_does_not_vote",
        essential=True,
    ),
    Mutant(
        "lost-votes",
        "a node without its votes does not vote",
        (
            Edit(
                _REPLICAS,
                "self._reactor, self._fs, self._votes, self._votes_why = reactor, fs, votes, votes_why",
                'votes = votes or VoteFile.create(fs, "votes")\n'
                "        self._reactor, self._fs, self._votes, self._votes_why = reactor, fs, votes, votes_why",
            ),
        ),
        guard=_DISKS + "test_a_replica_that_lost_votes_or_log_takes_no_part[no-votes]",
    ),
    Mutant(
        "lost-log",
        "a replica that has voted and has no log does not vote",
        (Edit(_OPENING, "if has_voted:", "if False:"),),
        guard=_DISKS + "test_a_replica_that_lost_votes_or_log_takes_no_part[no-log]",
    ),
    Mutant(
        "corrupt-log",
        "a replica whose log is damaged below the sync mark does not vote",
        (
            Edit(
                _OPENING,
                "except LogMissing as error:\n            if has_voted:",
                "except (LogMissing, LogCorrupt) as error:\n"
                "            fs.remove_tree(directory)\n            if has_voted and isinstance(error, LogMissing):",
            ),
        ),
        guard=_DISKS + "test_a_replica_that_lost_votes_or_log_takes_no_part[damaged-log]",
    ),
)
