"""What witnesses make of rows: facts folded in, and a runner held against Azure, its agent and GitHub."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from runnerpool.lifecycle import LOG_KEPT, MUTE, REFUSALS, SHORT, SLOW_ACT, Seen, advance, fold, serves
from runnerpool.model import Head, Runner, RunnerState, Snapshot
from runnerpool.ports import AgentPhase, AgentStatus, AgentTrouble, Registration, Vm, VmState
from tests.made_rows import MINUTE, NOW, ORG, fact, job, runner, status

S, P = RunnerState, AgentPhase


def seen(row: Runner, word: AgentStatus | AgentTrouble | None = None, **changes: Any) -> Seen:
    made = Seen(at=NOW, since={row.name: row.since}, agents={row.name: word} if word else {})
    return replace(made, **changes)


def listed(row: Runner, *, online: bool = True, busy: bool = False) -> dict[str, dict[str, Registration]]:
    return {ORG: {row.name: Registration(7, row.name, online, busy)}}


def vm(row: Runner, state: VmState = VmState.SUCCEEDED, power: str | None = "running", code: str = "") -> Vm:
    return Vm(row.name, state, {}, NOW, power=power, error_code=code)


BORN: dict[str, Any] = {"minted_at": NOW, "github_id": 7, "target": ORG}
WAITING, LISTENING = status(P.WAITING), status(P.LISTENING, binding=7)
WORKER = status(P.BUSY, worker=True, job_seen=True, binding=7)
EXITED, EXITED_AFTER_JOB = status(P.EXITED, binding=7), status(P.EXITED, job_seen=True, binding=7)


# ---------------------------------------------------------------------------------------------- the agent's word


@pytest.mark.parametrize(
    ("row", "word", "state"),
    [
        (runner(S.BOOTING), status(P.SETUP), S.BOOTING),
        (runner(S.BOOTING), WAITING, S.READY),
        (runner(S.BOOTING, **BORN), LISTENING, S.REGISTERED),
        (runner(S.BOOTING, **BORN), status(P.STARTING, binding=7), S.BOOTING),
        (runner(S.BOOTING, **BORN), WAITING, S.FAILED),  # its JIT config was lost on the way
        (runner(S.BOOTING, **BORN), EXITED, S.READY),  # GitHub reaped the registration while it booted
        (runner(S.BOOTING, **BORN), WORKER, S.BUSY),
        (runner(S.READY), WAITING, S.READY),
        (runner(S.READY, **BORN), EXITED, S.READY),
        (runner(S.BINDING, **BORN), LISTENING, S.REGISTERED),
        (runner(S.BINDING, target=ORG), LISTENING, S.BINDING),  # the act is about to write the id
        (runner(S.READY), LISTENING, S.FAILED),  # a binding that nobody gave it
        (runner(S.REGISTERED), LISTENING, S.REGISTERED),
        (runner(S.REGISTERED), EXITED, S.READY),  # GitHub dropped the idle registration
        (runner(S.REGISTERED), WORKER, S.BUSY),
        (runner(S.REGISTERED), EXITED_AFTER_JOB, S.BUSY),  # its job came and went between two polls
        (runner(S.REGISTERED), WAITING, S.FAILED),  # it was restarted and forgot
        (runner(S.BUSY), WORKER, S.BUSY),
        (runner(S.BUSY), EXITED_AFTER_JOB, S.BUSY),  # GitHub has the last word
        (runner(S.RETIRING), WORKER, S.BUSY),
        (runner(S.FAILED, **BORN), WORKER, S.BUSY),
        (runner(S.RETIRING), LISTENING, S.RETIRING),
        (runner(S.FINISHED), WORKER, S.FINISHED),
        (runner(S.DELETING), WORKER, S.DELETING),
        (runner(S.CREATING), WORKER, S.CREATING),
        (runner(S.REGISTERED), AgentTrouble.REFUSED, S.REGISTERED),
    ],
)
def test_an_agents_word_moves_its_runner(row: Runner, word: AgentStatus | AgentTrouble, state: RunnerState) -> None:
    assert advance(NOW, row, seen(row, word)).state is state


def test_idling_runs_from_becoming_ready_and_a_lost_registration_does_not_reset_it() -> None:
    row = runner(S.REGISTERED, ready_at=NOW - timedelta(hours=1))
    lost = advance(NOW, row, seen(row, EXITED))
    assert (lost.state, lost.ready_at, lost.online_at) == (S.READY, NOW - timedelta(hours=1), None)


def test_the_end_of_the_runner_program_after_a_job_is_noted_once_and_taken_back_when_a_worker_runs() -> None:
    row = runner(S.BUSY)
    ended = advance(NOW, row, seen(row, EXITED_AFTER_JOB))
    assert ended.exited_at == NOW
    assert advance(NOW + MINUTE, ended, seen(ended, EXITED_AFTER_JOB)).exited_at == NOW
    assert advance(NOW + MINUTE, ended, seen(ended, WORKER)).exited_at is None


def test_silence_begins_with_the_first_poll_without_an_answer_and_ends_with_any_answer() -> None:
    row = runner(S.READY)
    silent = advance(NOW, row, seen(row, AgentTrouble.SILENT))
    assert silent.silent_since == NOW
    assert advance(NOW + MINUTE, silent, seen(silent, AgentTrouble.SILENT)) == silent
    assert advance(NOW + MINUTE, silent, seen(silent, AgentTrouble.REFUSED)).silent_since is None


def test_a_machine_that_never_answered_is_not_called_silent_but_not_waited_for_for_ever() -> None:
    row = runner(S.BOOTING, running_at=NOW - 20 * MINUTE)
    assert advance(NOW, row, seen(row, AgentTrouble.SILENT)) == row
    assert advance(NOW + MINUTE, row, seen(row, AgentTrouble.SILENT)).state is S.FAILED


# ---------------------------------------------------------------------------------------------- stale witnesses


@pytest.mark.parametrize(("word", "state"), [(EXITED, S.REGISTERED), (WAITING, S.REGISTERED), (WORKER, S.BUSY)])
def test_a_word_older_than_the_state_counts_only_when_it_shows_a_worker(word: AgentStatus, state: RunnerState) -> None:
    """Told by the row, not by clocks: whoever bound it meanwhile may have a clock that is 2 minutes behind."""
    bound = runner(S.REGISTERED, age=2 * MINUTE)
    gathered = replace(bound, state=S.READY, since=bound.since - MINUTE)
    assert advance(NOW, bound, seen(gathered, word)).state is state


def test_a_pass_that_read_nothing_changes_nothing() -> None:
    for state in RunnerState:
        row = runner(state)
        assert advance(NOW, row, Seen()) == row


# ---------------------------------------------------------------------------------------------- GitHub's list


@pytest.mark.parametrize("state", [S.BOOTING, S.REGISTERED, S.RETIRING, S.FAILED])
def test_busy_in_githubs_list_is_believed(state: RunnerState) -> None:
    row = runner(state, **BORN)
    assert advance(NOW, row, seen(row, registrations=listed(row, busy=True))).state is S.BUSY


def test_not_busy_and_not_listed_prove_nothing() -> None:
    for state in (S.BUSY, S.REGISTERED, S.RETIRING):
        row = runner(state)
        assert advance(NOW, row, seen(row, registrations=listed(row))) == row
        assert advance(NOW, row, seen(row, registrations={ORG: {}})) == row


def test_a_runner_is_online_when_github_lists_it_so() -> None:
    row = runner(S.REGISTERED, online_at=None)
    assert advance(NOW, row, seen(row, registrations=listed(row))).online_at == NOW
    assert advance(NOW, row, seen(row, registrations=listed(row, online=False))).online_at is None


# ---------------------------------------------------------------------------------------------- Azure


@pytest.mark.parametrize(
    ("shown", "state"),
    [
        (vm(runner()), S.READY),
        (vm(runner(), VmState.FAILED, None, "AllocationFailed"), S.FAILED),
        (vm(runner(), power="deallocated"), S.FAILED),
        (vm(runner(), VmState.CREATING, "stopped"), S.READY),
        (vm(runner(), power=None), S.READY),
    ],
)
def test_what_azures_list_shows_of_a_vm(shown: Vm, state: RunnerState) -> None:
    row = runner(S.READY)
    assert advance(NOW, row, seen(row, vms={row.name: shown})).state is state


@pytest.mark.parametrize(
    ("shown", "written", "since"),
    [
        (vm(runner(), VmState.FAILED, None, "AllocationFailed"), None, NOW - 2 * MINUTE),
        (vm(runner(), power="deallocated"), None, NOW - 2 * MINUTE),
        (vm(runner(), VmState.FAILED, None, "AllocationFailed"), NOW - 9 * MINUTE, NOW - 9 * MINUTE),
    ],
)
def test_a_vm_that_is_given_up_has_an_age_also_where_nobody_wrote_down_that_azure_took_it(
    shown: Vm, written: datetime | None, since: datetime
) -> None:
    row = runner(S.CREATING, age=99 * MINUTE, minted_at=NOW, accepted_at=written)
    given_up = advance(NOW, row, seen(row, vms={row.name: replace(shown, created_at=NOW - 2 * MINUTE)}))
    assert (given_up.state, given_up.accepted_at) == (S.FAILED, since)


def test_a_busy_runner_is_not_given_up_for_what_the_list_says_or_leaves_out() -> None:
    row = runner(S.BUSY)
    assert advance(NOW, row, seen(row, vms={})) == row
    assert advance(NOW, row, seen(row, vms={row.name: vm(row, power="stopped")})) == row


@pytest.mark.parametrize("state", [S.BOOTING, S.READY, S.BINDING, S.REGISTERED, S.BUSY])
def test_a_404_to_a_direct_question_ends_a_runner(state: RunnerState) -> None:
    row = runner(state)
    gone = advance(NOW, row, seen(row, vms={}, direct={row.name: None}))
    assert (gone.state, gone.absent_since) == (S.FAILED, NOW)


def test_a_404_means_nothing_as_long_as_a_put_may_still_arrive() -> None:
    for state in (S.BOOTING, S.FAILED, S.DELETING):
        row = runner(state, put_until=NOW + MINUTE)
        absent = seen(row, vms={}, direct={row.name: None})
        assert advance(NOW, row, absent) == row
        assert advance(NOW + 2 * MINUTE, row, absent).absent_since == NOW + 2 * MINUTE


@pytest.mark.parametrize("shown", [{"vms": True}, {"vms": False, "direct": True}])
def test_a_vm_that_shows_up_again_is_not_absent(shown: dict[str, bool]) -> None:
    row = runner(S.FAILED, absent_since=NOW - MINUTE)
    found = {row.name: vm(row)}
    witness = seen(row, vms=found if shown["vms"] else {}, direct=dict(found) if "direct" in shown else {})
    assert advance(NOW, row, witness).absent_since is None


def test_what_github_still_says_of_a_vanished_vm_lags_behind() -> None:
    row = runner(S.REGISTERED)
    gone = advance(NOW, row, seen(row, vms={}, direct={row.name: None}, registrations=listed(row, busy=True)))
    assert gone.state is S.FAILED
    still = seen(gone, vms={}, direct={row.name: None}, registrations=listed(row, busy=True))
    assert advance(NOW + MINUTE, gone, still) == gone


def test_an_address_comes_from_azures_nics_and_is_not_lost_when_they_are_not_read() -> None:
    row = runner(S.BOOTING)
    placed = advance(NOW, row, seen(row, addresses={row.name: "10.0.0.9"}))
    assert placed.address == "10.0.0.9"
    assert advance(NOW, placed, seen(placed, addresses={})).address == "10.0.0.9"


# ---------------------------------------------------------------------------------------------- deadlines


@pytest.mark.parametrize(
    ("row", "state"),
    [
        (runner(S.BOOTING, accepted_at=NOW - 21 * MINUTE), S.FAILED),
        (runner(S.BOOTING, accepted_at=NOW - 40 * MINUTE, running_at=NOW - 19 * MINUTE), S.BOOTING),
        (runner(S.REGISTERED, age=11 * MINUTE, online_at=None), S.FAILED),
        (runner(S.REGISTERED, age=11 * MINUTE), S.REGISTERED),
        (runner(S.READY, silent_since=NOW - 16 * MINUTE), S.FAILED),
        (runner(S.READY, silent_since=NOW - 14 * MINUTE), S.READY),
        (runner(S.BUSY, silent_since=NOW - timedelta(hours=5)), S.BUSY),
    ],
)
def test_a_runner_that_gets_nowhere_is_given_up_by_a_pass_that_asked_its_agent(row: Runner, state: RunnerState) -> None:
    assert advance(NOW, row, seen(row, AgentTrouble.SILENT)).state is state
    assert advance(NOW, row, Seen()).state is row.state  # a wake-up could not keep the end of its log


def test_a_vm_whose_runner_ends_at_once_again_and_again_is_bound_later_and_later_and_then_given_up() -> None:
    row, pauses = runner(S.REGISTERED, age=timedelta(seconds=30), runner_version="2.310.0"), []
    for _ in range(REFUSALS - 1):
        ended = advance(NOW, row, seen(row, EXITED))
        assert (ended.state, ended.online_at) == (S.READY, None)
        pauses.append(ended.not_before)
        row = replace(ended, state=S.REGISTERED, since=NOW - timedelta(seconds=30), not_before=None)
    assert pauses == [NOW, NOW + SHORT]
    lasted = advance(NOW, replace(row, since=NOW - SHORT), seen(row, EXITED, since={}))
    assert (lasted.state, lasted.refused, lasted.not_before) == (S.READY, 0, None)
    last = advance(NOW, row, seen(row, EXITED))
    assert last.state is S.FAILED
    assert "2.310.0" in last.reason


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (runner(S.REQUESTED, age=timedelta(hours=1)), True),
        (runner(S.CREATING, age=SLOW_ACT), True),
        (runner(S.CREATING, age=SLOW_ACT + MINUTE), False),
        (runner(S.BINDING, age=SLOW_ACT + MINUTE), False),
        (runner(S.BOOTING, accepted_at=NOW - 5 * MINUTE), True),
        (runner(S.BOOTING, accepted_at=NOW - 6 * MINUTE), False),
        (runner(S.READY, age=timedelta(days=1)), True),
        (runner(S.READY, silent_since=NOW - MUTE), True),
        (runner(S.READY, silent_since=NOW - MUTE - MINUTE), False),
        (runner(S.BUSY), False),
        (runner(S.RETIRING), False),
    ],
)
def test_a_runner_counts_as_serving_while_it_can_be_relied_on(row: Runner, expected: bool) -> None:
    assert serves(NOW, row) is expected


def test_the_end_of_the_setup_log_is_kept_as_a_vm_is_given_up_and_only_then() -> None:
    row = runner(S.BOOTING, answered_at=NOW - 31 * MINUTE, running_at=NOW - 32 * MINUTE)
    word = status(P.SETUP, log=["x" * LOG_KEPT, "E: no such package"])
    assert not advance(NOW - 2 * MINUTE, row, seen(row, word)).log_tail
    failed = advance(NOW, row, seen(row, word))
    assert (failed.state, failed.reason) == (S.FAILED, "its setup did not end within 30 minutes")
    assert failed.log_tail is not None
    assert failed.log_tail.endswith("\nE: no such package")
    assert len(failed.log_tail) == LOG_KEPT
    assert advance(NOW + MINUTE, failed, seen(failed, status(P.SETUP, log=["more"]))) == failed


def test_the_version_of_a_runner_is_as_its_agent_told_it_last() -> None:
    row = runner(S.READY)
    told = advance(NOW, row, seen(row, status(P.WAITING, runner_version="2.330.0")))
    assert told.runner_version == "2.330.0"
    assert advance(NOW, told, seen(told, status(P.WAITING))) == told


@pytest.mark.parametrize("witness", ["azure", "agent"])
def test_a_vm_runs_from_when_anything_first_showed_it(witness: str) -> None:
    row = runner(S.BOOTING)
    shown = seen(row, vms={row.name: vm(row)}) if witness == "azure" else seen(row, status(P.SETUP))
    running = advance(NOW, row, shown)
    assert running.running_at == NOW
    assert advance(NOW + MINUTE, running, shown) == running


# ---------------------------------------------------------------------------------------------- facts


def snapshot(*rows: Runner, facts: dict[str, Any], unreadable: tuple[str, ...] = ()) -> Snapshot:
    return Snapshot(Head("linux"), {}, {row.name: row for row in rows}, facts, unreadable)


def test_facts_become_jobs_and_the_states_of_the_runners_that_they_name() -> None:
    row = runner(S.REGISTERED)
    facts = {"fact:1:a": fact("completed"), "fact:1:b": fact(), "fact:2:a": fact(job_id="2")}
    world = fold(snapshot(row, facts=facts), NOW, prefix="hw")
    assert {job.job_id: str(job.state) for job in world.jobs.values()} == {"1": "completed", "2": "queued"}
    assert world.runners[row.name].state is S.FINISHED
    assert world.consumed == facts
    assert not world.foreign


@pytest.mark.parametrize(
    ("name", "forwarded"),
    [
        ("hw-windows-bbbbbbbbbb", True),
        ("hw-linux-bbbbbbbbbb", False),  # of this pool, and gone
        ("other-windows-bbbbbbbbbb", False),
        ("hw", False),
    ],
)
def test_a_fact_about_another_pools_runner_is_forwarded_there(name: str, forwarded: bool) -> None:
    told = fact("completed", runner_name=name)
    world = fold(snapshot(facts={"fact:1:a": told}), NOW, prefix="hw")
    assert world.foreign == ({"windows": {"fact:1:a": told}} if forwarded else {})
    assert world.jobs["1"].runner_name == name


def test_a_forwarded_fact_ends_its_runner_and_makes_no_job_here() -> None:
    row = runner(S.BUSY)
    world = fold(snapshot(row, facts={"fact:1:a": fact("completed", pool="windows")}), NOW, prefix="hw")
    assert world.runners[row.name].state is S.FINISHED
    assert not world.jobs
    assert not world.foreign


def test_a_fact_whose_jobs_row_is_damaged_waits_while_its_runner_moves_on() -> None:
    row = runner(S.BUSY)
    facts = {"fact:1:a": fact("completed"), "fact:2:a": fact(job_id="2")}
    world = fold(snapshot(row, facts=facts, unreadable=("job:1",)), NOW, prefix="hw")
    assert list(world.consumed) == ["fact:2:a"]
    assert list(world.jobs) == ["2"]
    assert world.runners[row.name].state is S.FINISHED


def test_the_jobs_of_the_ledger_stay_as_they_were_when_no_fact_comes() -> None:
    held = job()
    known = replace(snapshot(facts={}), jobs={"1": held})
    assert fold(known, NOW, prefix="hw").jobs == {"1": held}
