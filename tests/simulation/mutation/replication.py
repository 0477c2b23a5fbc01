"""Mutants of C1 to C4: what a leader and a follower make of each other's messages."""

from __future__ import annotations

from tests.simulation.mutation.mutant import Edit, Mutant

_GUARD = "fluxd/raft/guard.py"
_LEADING = "fluxd/raft/leading.py"
_FOLLOWING = "fluxd/raft/following.py"
_ELECTIONS = "fluxd/raft/elections.py"
_PROGRESS = "fluxd/raft/progress.py"
_HAZARDS = "tests/simulation/test_hazards.py::"
_FENCES = "tests/simulation/test_guard_fences.py::"
_TRUNCATES_ALWAYS = (
    Edit(_FOLLOWING, "while known < len(entries):", "while False:"),
    Edit(_FOLLOWING, "at = log.last_index  # nothing new", "at = append.previous_index  # nothing new"),
)

MUTANTS = (
    # ------------------------------------------------------------------ C1
    Mutant(
        "c1-old-replies",
        "C1 replies of an old leadership are dropped",
        (
            Edit(
                _GUARD,
                "elif not self.is_leader or message.append_reply.echoed_term != self.term:",
                "elif not self.is_leader:",
            ),
        ),
        guard=_FENCES + "test_an_acknowledgement_of_an_earlier_leadership_commits_nothing",
        essential=True,
    ),
    Mutant(
        "c1-reset-fence",
        "C1 a rewind is honoured once",
        (Edit(_LEADING, "elif reply.echoed_sequence < progress.fence:", "elif False:"),),
        guard=_FENCES + "test_a_second_refusal_for_one_gap_restarts_nothing",
    ),
    Mutant(
        "c1-vote-once",
        "C1 each member's vote counts once",
        (Edit(_ELECTIONS, " and peer not in self._votes:", ":"),),
        guard=_FENCES + "test_a_vote_that_arrives_three_times_counts_once",
        essential=True,
    ),
    Mutant(
        "c1-vote-term",
        "C1 a vote counts in its term only (which the campaign's number says as well: both are out)",
        (
            Edit(_ELECTIONS, "if message.vote_reply.nonce != self._nonce:", "if False:"),
            Edit(
                _ELECTIONS, "and message.term == guard.term and peer not in self._votes", "and peer not in self._votes"
            ),
            Edit(
                _ELECTIONS,
                'guard.inject(peer, {"type": "response_vote", "term": message.term})',
                'guard.inject(peer, {"type": "response_vote", "term": guard.term})',
            ),
        ),
        guard=_FENCES + "test_a_vote_of_an_earlier_term_elects_nobody",
    ),
    Mutant(
        "c1-strangers",
        "C1 only members are heard",
        (
            Edit(
                _GUARD,
                "if peer not in self.peers or message.generation != self.generation:",
                "if message.generation != self.generation:",
            ),
        ),
        guard=_FENCES + "test_a_stranger_is_not_heard",
    ),
    Mutant(
        "c1-generation",
        "C1 messages of another generation are dropped",
        (
            Edit(
                _GUARD,
                "if peer not in self.peers or message.generation != self.generation:",
                "if peer not in self.peers:",
            ),
        ),
        guard=_FENCES + "test_a_message_of_another_generation_is_not_heard",
    ),
    Mutant(
        "c1-append-sequence",
        "C1 a follower drops what is not newer than the last AppendEntries",
        (Edit(_FOLLOWING, "if append.sequence <= self._last_sequence[stream]:", "if False:"),),
        expected_silent="defence in depth: C3 compares every message with the log, whatever its age",
    ),
    Mutant(
        "c1-higher-term",
        "C1 a higher term in a reply deposes",
        (
            Edit(
                _GUARD,
                "if message.term > self.term:\n            self.adopt_term(peer, message.term)\n        elif not",
                "if message.term > self.term:\n            pass\n        elif not",
            ),
            Edit(
                _GUARD,
                "if message.term > self.term:\n                self.adopt_term",
                "if False:\n                self.adopt_term",
            ),
        ),
        guard=_FENCES + "test_a_member_with_a_higher_term_comes_back_into_the_group",
    ),
    # ------------------------------------------------------------------ C2
    Mutant(
        "c2-next-index",
        "C2 nextIndex is put back after an acknowledgement",
        (Edit(_LEADING, "if progress.next_index != match + 1:", "if False:"),),
        guard=_FENCES + "test_late_acknowledgements_of_pipelined_entries_wind_nothing_back",
        essential=True,
    ),
    Mutant(
        "c2-overtaking-heartbeat",
        "C2 a heartbeat does not claim what is still on the way on the other stream",
        (Edit(_LEADING, "if progress.in_flight or progress.rewind_to:", "if False:"),),
        guard=_FENCES + "test_a_heartbeat_does_not_overtake_the_entries_on_the_other_stream",
    ),
    Mutant(
        "c2-retransmission",
        "C2 entries that nobody acknowledges are sent again",
        (Edit(_PROGRESS, "if self.in_flight and now - self.moved_at >= patience:", "if False:"),),
        guard=_FENCES + "test_entries_that_were_lost_on_the_way_are_sent_again",
    ),
    Mutant(
        "c2-patience",
        "C2 what is late is sent again less and less often",
        (Edit(_PROGRESS, "self.patience = min(2 * patience, _PATIENCE_MAX)", "pass"),),
        guard="tests/simulation/test_review.py::test_a_slow_link_is_not_filled_with_copies",
    ),
    Mutant(
        "c2-commit-told",
        "C2 followers hear of a commit without waiting for a heartbeat",
        (Edit("fluxd/raft/group.py", "self.guard.leading.tell_commit()", "pass"),),
        guard=_FENCES + "test_followers_hear_of_a_commit_at_once",
    ),
    Mutant(
        "c7-news-that-is-asked",
        "C7 the news of a commit that is a read's question, too, is answered at once",
        (Edit(_LEADING, "may_wait=not progress.probe", "may_wait=True"),),
        guard="tests/simulation/test_replies.py::test_news_of_a_commit_that_asks_for_a_sign_of_life_is_answered_at_once",
    ),
    Mutant(
        "c2-broken-link",
        "C2 what was on a broken link is sent again",
        (Edit(_LEADING, "            self.progress[peer].gone()\n", ""),),
        guard=_FENCES + "test_what_was_on_a_broken_link_is_sent_again_with_the_next_answer",
    ),
    Mutant(
        "c2-received-forgotten",
        "C2 after a rewind only what is durable counts as received",
        (Edit(_PROGRESS, "self.received = self.match\n", "pass\n"),),
        expected_silent="speed only: a claim that goes too far is refused and taken back; what is on disk decides",
    ),
    Mutant(
        "c2-window",
        "C11 bytes on their way to one follower are bounded",
        (Edit(_PROGRESS, "return self.in_flight_bytes >= limits.REPLICATION_WINDOW_BYTES", "return False"),),
        guard=_FENCES + "test_what_is_on_its_way_to_a_silent_follower_is_bounded",
    ),
    # ------------------------------------------------------------------ C3
    Mutant(
        "c3-conflict-only",
        "C3 the library is shown only what is new or conflicts",
        _TRUNCATES_ALWAYS,
        guard=_FENCES + "test_entries_that_are_there_already_truncate_nothing_behind_them",
        essential=True,
    ),
    Mutant(
        "c3-without-fences",
        "C3, C2 and the fences of C1 together: the library as it was shipped",
        (
            *_TRUNCATES_ALWAYS,
            Edit(_FOLLOWING, "if append.sequence <= self._last_sequence[stream]:", "if False:"),
            Edit(_LEADING, "elif reply.echoed_sequence < progress.fence:", "elif False:"),
            Edit(_LEADING, "if progress.next_index != match + 1:", "if False:"),
        ),
        guard=_HAZARDS + "test_h1_acknowledgements_of_pipelined_entries_make_nothing_be_sent_or_truncated_again",
    ),
    Mutant(
        "c3-whole-term",
        "C12 a conflict skips the whole term",
        (
            Edit(
                _FOLLOWING,
                "next_index = max(log.epoch_first_index(RaftIndex(previous), RaftIndex(commit + 1)), commit + 1)",
                "next_index = previous",
            ),
        ),
        expected_silent="speed only: with one round in flight a leader leaves at most two entries of its term behind",
    ),
    # ------------------------------------------------------------------ C4
    Mutant(
        "c4-clamp",
        "C4 the commit index is clamped to what the message verified",
        (
            Edit(
                _FOLLOWING,
                '"commit_index": min(append.commit_index, verified),',
                '"commit_index": append.commit_index,',
            ),
        ),
        guard=_FENCES + "test_a_heartbeat_commits_nothing_behind_what_it_verified",
        essential=True,
    ),
    Mutant(
        "c4-refusal",
        "C4 a message that does not fit commits nothing",
        (Edit(_FOLLOWING, '"commit_index": 0,', '"commit_index": append.commit_index,'),),
        expected_silent="defence in depth: the audited version returns before it looks at the commit index",
    ),
)
