"""Mutants of C6 and C7: who campaigns, who is voted for, who may still believe that it leads."""

from __future__ import annotations

from tests.simulation.mutation.mutant import Edit, Mutant

_GUARD = "fluxd/raft/guard.py"
_GROUP = "fluxd/raft/group.py"
_LEADING = "fluxd/raft/leading.py"
_ELECTIONS = "fluxd/raft/elections.py"
_HOST = "fluxd/raft/host.py"
_HAZARDS = "tests/simulation/test_hazards.py::"
_CAMPAIGNS = "tests/simulation/test_guard_elections.py::"

MUTANTS = (
    Mutant(
        "c6-sticky-vote",
        "C6 no vote while a leader is known to be well",
        (Edit(_ELECTIONS, "if not request.transfer and self._leader_is_fresh():", "if False:"),),
        guard=_CAMPAIGNS + "test_no_vote_against_a_leader_that_is_well",
        essential=True,
    ),
    Mutant(
        "c6-sticky-pre-vote",
        "C6 no pre-vote while a leader is known to be well",
        (Edit(_ELECTIONS, "            and not self._leader_is_fresh()\n", ""),),
        guard=_CAMPAIGNS + "test_no_pre_vote_against_a_leader_that_is_well",
    ),
    Mutant(
        "c6-pre-vote",
        "C6 a campaign begins with a pre-vote",
        (
            Edit(
                _ELECTIONS,
                "self._pre_vote = (guard.term + 1, {guard.node_id})",
                "self._pre_vote = (guard.term + 1, {guard.node_id, *guard.peers})",
            ),
        ),
        guard=_HAZARDS + "test_h20_a_node_that_hears_nobody_disturbs_nobody",
    ),
    Mutant(
        "c6-goes-first",
        "of two that campaign at once one goes first",
        (Edit(_ELECTIONS, "            self._let_go_first(peer, request.proposed_term)\n", "            pass\n"),),
        guard=_CAMPAIGNS + "test_of_two_that_campaign_at_once_one_goes_first",
    ),
    Mutant(
        "c6-pre-vote-log",
        "C6 no pre-vote for a shorter log",
        (
            Edit(
                _ELECTIONS,
                "            and (request.last_term, request.last_index) >= (log.last.leader_epoch, log.last_index)\n",
                "",
            ),
        ),
        guard=_CAMPAIGNS + "test_no_pre_vote_for_a_shorter_log",
    ),
    Mutant(
        "c6-pre-vote-stale",
        "C6 a grant counts for the term that it names",
        (Edit(_ELECTIONS, "if reply.proposed_term == proposed_term == guard.term + 1:", "if True:"),),
        expected_silent="liveness only: a pre-vote decides nothing; the vote that follows it does",
    ),
    Mutant(
        "c6-exposed-follower",
        "C6 a follower's library sees no connection, so it never campaigns by itself, however often it is ticked",
        (
            Edit(_GUARD, "if not self.is_leader:\n            self._hide_all()", "pass"),
            Edit(_GROUP, "if self.guard.is_leader or self.guard.commit_index != self.commit_index:", "if True:"),
        ),
        guard=_CAMPAIGNS + "test_a_follower_never_campaigns_by_itself",
    ),
    Mutant(
        "c6-check-quorum",
        "C6 a leader that hears nobody steps down",
        (
            Edit(
                _LEADING,
                "if peer == DISK_PEER:\n                guard.inject_neutral(peer)\n                continue",
                "guard.inject_neutral(peer)\n            if peer == DISK_PEER:\n                continue",
            ),
        ),
        guard=_HAZARDS + "test_h21_a_leader_that_hears_nobody_is_replaced_within_seconds",
        essential=True,
    ),
    Mutant(
        "c6-rewind-is-no-answer",
        "C6 sending again is no sign of life",
        (
            Edit(
                _LEADING,
                "progress.lose_what_is_overdue(now, guard.election_timeout)\n",
                "progress.lose_what_is_overdue(now, guard.election_timeout)\n"
                "            if progress.rewind_to:\n"
                "                self._rewind(peer, progress, progress.rewind_to)\n",
            ),
        ),
        guard=_CAMPAIGNS + "test_sending_again_keeps_no_leader_in_office",
    ),
    Mutant(
        "c6-neutral-stale",
        "C6 an answer to an old leadership is no sign of life",
        (
            Edit(
                _GUARD,
                'self.count("stale_reply")',
                'self.count("stale_reply")\n            self.inject_neutral(peer)',
            ),
        ),
        guard=_CAMPAIGNS + "test_answers_to_an_old_leadership_keep_no_leader_in_office",
    ),
    Mutant(
        "c6-transfer-flag",
        "C6 a requested transfer passes stickiness",
        (Edit(_ELECTIONS, "message.vote_request.transfer = self._transfer", "message.vote_request.transfer = False"),),
        guard=_CAMPAIGNS + "test_a_transfer_takes_milliseconds",
    ),
    Mutant(
        "c6-timeout-now",
        "C6 only the leader can ask for a transfer",
        (
            Edit(
                _ELECTIONS,
                "if guard.is_leader or guard.following.leader != peer or message.term != guard.term:",
                "if guard.is_leader:",
            ),
        ),
        guard=_CAMPAIGNS + "test_only_the_leader_can_ask_for_a_transfer",
    ),
    Mutant(
        "c6-handover-accepts",
        "C6 nothing is accepted during a handover",
        (Edit("fluxd/raft/group.py", "if self.guard.leading.handing_over:", "if False:"),),
        guard=_HAZARDS + "test_transfer_moves_leadership_without_losing_what_is_in_flight",
    ),
    Mutant(
        "c6-leader-gone",
        "C6 a leader whose process ended is replaced without waiting",
        (Edit(_ELECTIONS, "self._heard_at = NEVER\n        voters", "return\n        voters"),),
        guard=_HAZARDS + "test_a_dead_leader_process_is_replaced_without_waiting_for_the_timeout",
    ),
    Mutant(
        "h22-standstill",
        "C14 a process that stood still reads before it acts",
        (Edit(_HOST, "self._grace_until = now + _STALL_GRACE", "pass"),),
        guard=_CAMPAIGNS + "test_after_a_standstill_what_arrived_meanwhile_is_read_before_a_timer_acts",
    ),
    # ------------------------------------------------------------------ C7
    Mutant(
        "c7-read-newer",
        "C7 a read is confirmed by answers to what was sent after it",
        (Edit(_LEADING, "p.acked_sequence > asked_at[peer]", "p.acked_sequence >= asked_at[peer]"),),
        guard=_CAMPAIGNS + "test_a_read_is_not_confirmed_by_what_was_answered_before_it",
    ),
    Mutant(
        "c7-own-entry",
        "C7 a read waits until the leader's own entry is committed",
        (Edit(_LEADING, "if self._guard.journal.commit_index < self.term_start:\n            return", "pass"),),
        guard=_CAMPAIGNS + "test_a_new_leader_confirms_no_read_before_its_own_entry_is_committed",
    ),
)
