"""Mutants of the heartbeat for all groups that rest: what a row, and its answer, may stand for."""

from __future__ import annotations

from tests.simulation.mutation.mutant import Edit, Mutant

_HEARTBEATS = "fluxd/raft/heartbeats.py"
_GUARD = "fluxd/raft/guard.py"
_FOLLOWING = "fluxd/raft/following.py"
_LEADING = "fluxd/raft/leading.py"
_GROUP = "fluxd/raft/group.py"
_TIMEOUTS = "fluxd/raft/timeouts.py"
_SLOW = "tests/simulation/test_slow_answers.py::"
_TESTS = "tests/simulation/test_heartbeats.py::"
_CONFIRMED = "tests/simulation/test_confirmed_rows.py::"
_LEADER = "if self._leader != (row.term, peer) or self._guard.is_leader:"
_VERIFIED = "return self.verified == journal.commit_index == log.last_index == log.synced_index == last_index"

MUTANTS = (
    Mutant(
        "list-dead-follower",
        "C12 a leader that is left without a majority is stepped, whomever it can reach",
        (
            Edit(
                _LEADING,
                "        if 2 * (len(self.progress) - len(roused) + 1) > len(self.progress) + 1:\n",
                "        if True:\n",
            ),
        ),
        guard=_TESTS + "test_a_resting_leader_with_a_dead_follower_steps_down_when_the_other_one_is_cut_off",
    ),
    Mutant(
        "list-library-told",
        "C12 the library hears of the lists before it is ticked",
        (Edit(_LEADING, "                guard.inject_neutral_of(peer, heard_at)\n", ""),),
        guard=_TESTS + "test_the_first_proposal_after_a_long_rest_finds_its_leader_in_office",
        essential=True,
    ),
    Mutant(
        "list-answer-dated",
        "C12 an answer is dated when it came, not when the library is told",
        (
            Edit(
                _GUARD,
                "library.CLOCK.now = library.CLOCK.now, heard_at",
                "library.CLOCK.now = (library.CLOCK.now,) * 2",
            ),
        ),
        guard=_TESTS + "test_an_answer_that_is_late_is_dated_when_it_came",
    ),
    Mutant(
        "list-row-term",
        "C12 a row counts in exactly its term",
        (
            Edit(_GUARD, " and row.term == self.term and", " and"),
            Edit(
                _FOLLOWING,
                "if self._leader != (row.term, peer) or self._guard.is_leader:",
                "if self._leader[1] != peer:",
            ),
        ),
        guard=_TESTS + "test_a_row_must_fit_exactly",
    ),
    Mutant(
        "list-row-leader",
        "C12 a row is the leader's",
        (Edit(_FOLLOWING, _LEADER, "if False:"),),
        guard=_TESTS + "test_a_row_of_another_node_is_an_exception",
    ),
    Mutant(
        "list-row-generation",
        "C12 a row counts in exactly its generation",
        (Edit(_GUARD, "row.generation == self.generation and ", ""),),
        guard=_TESTS + "test_a_row_must_fit_exactly",
    ),
    Mutant(
        "list-row-votes",
        "C12, C5 a replica whose term is not durable confirms nothing",
        (Edit(_GUARD, "row.term == self.term and self.votes_durable()", "row.term == self.term"),),
        guard=_TESTS + "test_a_follower_whose_term_is_not_on_its_disk_confirms_nothing",
    ),
    Mutant(
        "list-row-log",
        "C12 a row counts for exactly its log end",
        (Edit(_FOLLOWING, _VERIFIED, "return log.last_index == log.synced_index"),),
        guard=_TESTS + "test_a_row_must_fit_exactly",
        essential=True,
    ),
    Mutant(
        "list-row-disk",
        "C12, C5 a replica confirms what is on its disk",
        (Edit(_FOLLOWING, "log.last_index == log.synced_index == last_index", "log.last_index == last_index"),),
        guard=_TESTS + "test_a_follower_with_something_unsynced_confirms_nothing",
    ),
    Mutant(
        "list-exceptions",
        "C12 an exception rouses its group",
        (Edit(_HEARTBEATS, "                listed[number].roused()\n", "                pass\n"),),
        guard=_TESTS + "test_a_follower_whose_term_is_not_on_its_disk_confirms_nothing",
        essential=True,
    ),
    Mutant(
        "list-silence",
        "C12 groups whose lists are not answered look for themselves",
        (
            Edit(
                _HEARTBEATS,
                "if pair.outstanding and now - pair.outstanding[0][1] >= self._silent_after:",
                "if False:",
            ),
        ),
        guard=_TESTS + "test_a_resting_leader_that_is_cut_off_steps_down_as_fast_as_a_busy_one",
        essential=True,
    ),
    Mutant(
        "timeouts-fixed",
        "C6' the election timeout follows the round trips",
        (
            Edit(
                _TIMEOUTS,
                "self.election_min = limits.ELECTION_TIMEOUT_MIN + _TRIPS * slowest",
                "self.election_min = limits.ELECTION_TIMEOUT_MIN",
            ),
        ),
        guard=_SLOW + "test_a_leader_whose_answers_are_slow_stays",
    ),
    Mutant(
        "timeouts-heartbeat",
        "C6' a heartbeat waits until the last one can have been answered",
        (
            Edit(
                _TIMEOUTS,
                "limits.HEARTBEAT_INTERVAL + self._trips.get(peer, 0.0)",
                "limits.HEARTBEAT_INTERVAL",
            ),
        ),
        guard=_SLOW + "test_its_group_comes_to_rest",
    ),
    Mutant(
        "timeouts-leaver",
        "who was let go is out of sync before it counts again",
        (
            Edit(
                _LEADING,
                "now + 2 * self._guard.heartbeats.timeouts.in_sync(leaver)",
                "now + 2 * limits.IN_SYNC_TIMEOUT",
            ),
        ),
        guard=_SLOW + "test_who_was_let_go_is_out_of_sync_before_it_counts_again",
    ),
    Mutant(
        "timeouts-older",
        "C6' heartbeats to nodes with fixed timeouts are as frequent as ever",
        (Edit(_HEARTBEATS, "if reply.timeouts_follow:", "if True:"),),
        guard=_SLOW + "test_nodes_whose_timeouts_are_fixed_get_heartbeats_as_before",
    ),
    Mutant(
        "timeouts-lists",
        "C6' lists go to each node that can be reached",
        (Edit(_HEARTBEATS, "        self._pairs.setdefault(peer, _Pair())\n\n", "        pass\n\n"),),
        guard=_SLOW + "test_lists_go_to_nodes_towards_which_nothing_rests",
    ),
    Mutant(
        "timeouts-quickest",
        "C6' one late answer makes nothing slower",
        (Edit(_TIMEOUTS, "= min(*answers, _TRIP_MAX)", "= min(max(answers), _TRIP_MAX)"),),
        guard="tests/unit/test_timeouts.py::test_late_answers_change_nothing_while_one_of_the_last_three_was_quick",
    ),
    Mutant(
        "list-since",
        "C12 an answer counts for the rows of its list only",
        (Edit(_HEARTBEATS, "if self._pair.confirmed_round >= self._since else NEVER", ""),),
        guard=_TESTS + "test_an_answer_does_not_count_for_a_group_that_was_listed_later",
    ),
    Mutant(
        "list-stale",
        "C12 a list of the past is not answered",
        (Edit(_HEARTBEATS, "if heartbeat.round <= self.round:", "if False:"),),
        guard=_TESTS + "test_stale_and_repeated_lists_are_not_answered",
    ),
    Mutant(
        "list-past-process",
        "C12 nor one of an earlier process",
        (Edit(_HEARTBEATS, "if heartbeat.process_nonce in self.past:", "if False:"),),
        guard=_TESTS + "test_a_list_of_an_earlier_process_is_stale",
    ),
    Mutant(
        "list-reply-nonce",
        "C12 an answer to an earlier process does not count",
        (Edit(_HEARTBEATS, "if pair is None or reply.process_nonce != self._nonce:", "if pair is None:"),),
        guard=_TESTS + "test_an_answer_to_an_earlier_process_does_not_count",
    ),
    Mutant(
        "list-reply-stale",
        "C12 an answer counts once",
        (
            Edit(
                _HEARTBEATS,
                "        if not pair.outstanding or pair.outstanding[0][0] != reply.round:\n"
                '            self.counters["stale_list_reply"] += 1\n            return\n'
                "        _, sent_at, listed = pair.outstanding.popleft()\n",
                "        _, sent_at, listed = pair.outstanding.popleft() if pair.outstanding else (0, 0.0, ())\n",
            ),
        ),
        guard=_TESTS + "test_an_answer_to_an_earlier_process_does_not_count",
    ),
    Mutant(
        "list-capability",
        "C12 a node that does not answer lists is sent none with rows",
        (Edit(_HEARTBEATS, "if not pair.answers:", "if False:"),),
        guard=_TESTS + "test_when_lists_are_not_answered_each_group_sends_its_own_heartbeats",
    ),
    Mutant(
        "list-under-way",
        "C12 a group rests only when nothing is under way",
        (Edit(_LEADING, "if not at_rest or progress.is_under_way(last_index, now):", "if not at_rest:"),),
        guard=_TESTS + "test_a_leader_does_not_list_what_is_under_way",
    ),
    Mutant(
        "list-lost-leadership",
        "C12 a leadership that is lost is listed no more",
        (
            Edit(
                _LEADING,
                "        for progress in self.progress.values():\n            progress.roused()\n"
                "        self.progress.clear()",
                "        self.progress.clear()",
            ),
        ),
        guard=_TESTS + "test_a_lost_leadership_is_not_listed",
    ),
    Mutant(
        "list-stirred",
        "C12 a row is compared again after whatever was done with its replica",
        (
            Edit(
                _GROUP, "        self.guard.stir()\n        self._context.enter()\n", "        self._context.enter()\n"
            ),
        ),
        guard=_CONFIRMED + "test_what_has_changed_is_not_confirmed",
        essential=True,
    ),
    Mutant(
        "list-stirred-end",
        "C12 a replica that has stopped confirms nothing",
        (
            Edit(
                _GROUP,
                "        self._enter()\n        self._failed, self._why = True, why\n",
                "        self._failed, self._why = True, why\n",
            ),
        ),
        guard=_CONFIRMED + "test_what_has_changed_is_not_confirmed",
    ),
    Mutant(
        "list-stirred-message",
        "C12 nor one that was sent a message, before it was compared",
        (Edit(_GROUP, "        self._enter()\n        self.guard.receive(", "        self.guard.receive("),),
        guard=_CONFIRMED + "test_what_has_changed_is_not_confirmed",
    ),
    Mutant(
        "list-stirred-step",
        "C12 nor one that was stepped",
        (
            Edit(
                _GROUP,
                "        self._enter()\n        self.guard.tick()\n",
                "        self._context.enter()\n        self.guard.tick()\n",
            ),
        ),
        guard=_CONFIRMED + "test_whatever_was_done_with_a_replica_its_row_is_compared_again",
    ),
    Mutant(
        "list-stirred-link",
        "C12 nor one whose leader's link broke: how soon it campaigns depends on that",
        (Edit(_GROUP, "        self._enter()\n        self.guard.peer_down(", "        self.guard.peer_down("),),
        guard=_CONFIRMED + "test_whatever_was_done_with_a_replica_its_row_is_compared_again",
    ),
    Mutant(
        "list-not-listed",
        "C12 a row that is listed no more is not confirmed by the list",
        (
            Edit(
                _HEARTBEATS,
                "return [row for row in self.confirmed if row not in numbers]",
                "return []",
            ),
        ),
        guard=_CONFIRMED + "test_of_another_list_only_rows_that_were_not_confirmed_are_compared",
    ),
    Mutant(
        "list-no-more",
        "C12 followers of a node from which no list comes campaign in time",
        (
            Edit(
                _HEARTBEATS, "                for row in tuple(leader.confirmed):\n", "                for row in ():\n"
            ),
        ),
        guard=_CONFIRMED + "test_when_lists_stop_the_election_timer_goes_on_from_the_last_one",
        essential=True,
    ),
    Mutant(
        "list-timer",
        "C12 an election timer goes on from the last list",
        (
            Edit(
                _GUARD,
                "            self.elections.leader_was_heard(self.confirmed.heard_at)\n",
                "            self.elections.leader_was_heard(self.now())\n",
            ),
        ),
        guard=_CONFIRMED + "test_when_lists_stop_the_election_timer_goes_on_from_the_last_one",
    ),
    Mutant(
        "list-heard",
        "C12 a replica that rests was heard with the last list, not with the first",
        (
            Edit(
                _GUARD,
                "            self.elections.leader_was_heard(self.confirmed.heard_at)\n",
                "",
            ),
        ),
        guard=_CONFIRMED + "test_who_is_asked_for_a_vote_remembers_when_its_leader_was_heard_with_a_list",
    ),
    Mutant(
        "c12-told-anew",
        "C12 what a leader tells is worked out again after each step",
        (
            Edit(
                _GROUP,
                "        self._encoded_until = NEVER\n        self._enter()\n",
                "        self._enter()\n",
            ),
        ),
        guard=_TESTS + "test_a_resting_leader_tells_at_once_of_records_and_in_time_of_a_follower_that_is_silent",
    ),
    Mutant(
        "c12-told-in-time",
        "C12 what a leader tells of who is in sync ends with time, too",
        (
            Edit(
                "fluxd/raft/standing.py",
                "min(until, self.guard.leading.in_sync_until(peer) if follower.rests else NEVER)",
                "min(until, until if follower.rests else NEVER)",
            ),
        ),
        guard=_TESTS + "test_a_resting_leader_tells_at_once_of_records_and_in_time_of_a_follower_that_is_silent",
    ),
)
