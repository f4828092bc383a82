"""Which idle VMs and which intents a pool gives up: beyond the warm minimum, out of date, beyond the maximum, needed by nobody."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from runnerpool.actions import Bind, Create, Delete, Forget, Park, Rerun, Retire
from runnerpool.capacity import POOL
from runnerpool.model import Head, Job, Rest, Runner, RunnerState
from runnerpool.plan import OLD, plan
from tests.made_rows import MINUTE, NOW, ORG, job, jobs, of, planned, pool, runner, runners, world

S = RunnerState


@pytest.mark.parametrize(
    ("there", "waiting", "warm", "gone"),
    [
        (runners(S.READY, 3), 0, 3, 0),
        (runners(S.READY, 3), 0, 1, 2),
        (runners(S.READY, 3), 1, 1, 1),
        (runners(S.READY, 3), 3, 0, 0),
        (runners(S.REGISTERED, 2), 0, 0, 2),
        (runners(S.BOOTING, 2), 0, 0, 0),  # let arrive
        (runners(S.BUSY, 2), 0, 0, 0),
    ],
)
def test_vms_beyond_the_warm_minimum_go_once_they_have_idled_for_idle_timeout(
    there: list[Runner], waiting: int, warm: int, gone: int
) -> None:
    for timeout, expected in (("80s", gone), ("100s", 0)):
        actions = planned([*jobs(waiting), *there], minimum_warm_vms=warm, idle_timeout=timeout)
        assert len(of(Delete, actions)) + len(of(Retire, actions)) == expected


@pytest.mark.parametrize(
    ("beside", "gone"),
    [
        ([runner(S.BOOTING, "other")], 0),
        ([runner(S.CREATING, "other")], 0),
        ([runner(S.REGISTERED, "other", online_at=None)], 0),  # its runner does not listen yet
        ([runner(S.READY, "other", silent_since=NOW - timedelta(seconds=30))], 0),
        ([runner(S.READY, "other")], 1),
        ([runner(S.READY, "other"), runner(S.BOOTING, "third")], 1),
        ([runner(S.BOOTING, "other", target="org:else"), job(target="org:else"), runner(S.READY, "third")], 1),
    ],
)
def test_no_idle_vm_goes_on_account_of_one_that_some_clock_holds_to_be_late_or_mute(beside: list[Job | Runner], gone: int) -> None:
    actions = planned([runner(S.READY, "idle"), *beside], minimum_warm_vms=1, idle_timeout="10s")
    assert len(of(Delete, actions)) + len(of(Retire, actions)) == gone


def test_vms_on_their_way_for_one_target_keep_no_idle_vm_of_another() -> None:
    """Where jobs keep coming some are always on their way; what idles for others must not wait for a lull."""
    coming = [runner(S.BOOTING, name, target=ORG) for name in ("a", "b", "c")]
    actions = planned([*jobs(3), *coming, runner(S.REGISTERED, "idle", target="org:else")], idle_timeout="10s")
    assert [retire.runner for retire in of(Retire, actions)] == ["hw-linux-idle"]


def test_an_unregistered_vm_is_deleted_at_once_and_a_registered_one_is_retired_first() -> None:
    actions = planned([runner(S.READY, "free"), runner(S.REGISTERED, "bound")], idle_timeout="10s")
    assert [delete.runner for delete in of(Delete, actions)] == ["hw-linux-free"]
    assert [retire.runner for retire in of(Retire, actions)] == ["hw-linux-bound"]


def test_who_has_idled_longest_goes_first_and_who_is_bound_now_stays() -> None:
    ready = runners(S.READY, 3)
    actions = planned([*jobs(1), *ready], idle_timeout="10s")
    assert [bind.runner for bind in of(Bind, actions)] == [ready[0].name]
    assert [delete.runner for delete in of(Delete, actions)] == [ready[1].name, ready[2].name]


SHAPE = pool().vm.shape
OUTDATED: dict[str, Any] = {"shape": "made before"}


@pytest.mark.parametrize(
    ("row", "gone"),
    [
        (runner(S.READY, shape=SHAPE), None),
        (runner(S.READY, shape=None), None),  # from before shapes were written
        (runner(S.READY, **OUTDATED), Delete),
        (runner(S.REGISTERED, **OUTDATED), Retire),  # GitHub is asked first
        (runner(S.READY, shape=SHAPE, size="Standard_D2s_v5"), Delete),
        (runner(S.READY, shape=SHAPE, accepted_at=NOW - OLD), Delete),
        (runner(S.READY, shape=SHAPE, accepted_at=NOW - OLD + MINUTE), None),
        (runner(S.BUSY, **OUTDATED), None),
        (runner(S.BOOTING, **OUTDATED), None),  # let arrive
    ],
)
def test_an_idle_vm_that_is_not_what_the_pool_file_asks_for_is_replaced_also_within_the_warm_minimum(
    row: Runner, gone: type[Any] | None
) -> None:
    actions = planned([row], minimum_warm_vms=0 if row.state is S.BUSY else 1, idle_timeout="1h")
    assert [type(action) for action in actions] == ([gone] if gone else [])


@pytest.mark.parametrize(
    ("others", "warm", "gone"),
    [
        ([], 3, 1),
        ([], 1, 1),
        (runners(S.READY, 17, **OUTDATED), 20, 2),  # a tenth
        (runners(S.BOOTING, 1), 4, 0),  # what replaces the last one is on its way
        (runners(S.DELETING, 1), 3, 0),
        (runners(S.FAILED, 1), 3, 0),
        ([], 4, 0),  # what replaces the last one could not be made yet
    ],
)
def test_outdated_vms_are_replaced_a_few_at_a_time(others: list[Runner], warm: int, gone: int) -> None:
    idle = [runner(S.READY, f"old{n}", **OUTDATED) for n in range(3)]
    actions = planned([*idle, *others], minimum_warm_vms=warm, maximum_pool_size=50, idle_timeout="1h")
    old = {row.name for row in [*idle, *others] if row.state is S.READY}
    assert sum(isinstance(action, Delete) and action.runner in old for action in actions) == gone


@pytest.mark.parametrize("head", [Head("linux", paused=True), Head("linux", rests={POOL: Rest(NOW + MINUTE, "no such image")})])
def test_an_outdated_vm_stays_while_nothing_could_replace_it(head: Head) -> None:
    assert not planned([runner(S.READY, **OUTDATED)], head=head, minimum_warm_vms=1)


def test_an_outdated_vm_that_a_waiting_job_can_have_takes_the_job() -> None:
    actions = planned([job(), runner(S.READY, **OUTDATED)])
    assert [type(action) for action in actions] == [Bind]
    assert not of(Retire, planned([job(), runner(S.REGISTERED, **OUTDATED)]))


def test_intents_that_nobody_needs_any_more_are_forgotten_first() -> None:
    intent = runner(S.REQUESTED)
    assert [forget.runner for forget in of(Forget, planned([intent]))] == [intent.name]
    assert not of(Forget, planned([job(), intent]))
    assert not of(Forget, planned([intent], minimum_warm_vms=1))


def test_beyond_the_maximum_idle_vms_go_and_those_on_their_way_out_are_counted_off() -> None:
    idle = runners(S.READY, 5)
    assert len(of(Delete, planned(idle, maximum_pool_size=3, minimum_warm_vms=3))) == 2

    half_gone = [replace(idle[0], state=S.DELETING), replace(idle[1], state=S.DELETING), *idle[2:]]
    assert not of(Delete, planned(half_gone, maximum_pool_size=3, minimum_warm_vms=3))


def test_a_drained_pool_gives_up_all_that_is_idle_and_no_running_job() -> None:
    drained = pool().model_copy(update={"maximum_pool_size": 0})
    busy, idle, intent = runner(S.BUSY, "busy"), runner(S.REGISTERED, "idle"), runner(S.REQUESTED, "intent")
    actions = plan(NOW, drained, Head("linux"), world(busy, idle, intent), home=ORG)
    assert {type(action).__name__: action.runner for action in actions if not isinstance(action, Create | Park | Rerun)} == {
        "Retire": "hw-linux-idle",
        "Forget": "hw-linux-intent",
    }
    assert not of(Create, plan(NOW, drained, Head("linux"), world(job()), home=ORG))


@pytest.mark.parametrize(
    ("claimed_until", "maximum", "forgotten"),
    [
        (None, 5, True),
        (NOW + MINUTE, 5, False),
        (NOW - 3 * MINUTE, 5, False),  # by the clock of whoever is at it the claim may not be over
        (NOW - 5 * MINUTE, 5, True),
        (NOW + MINUTE, 0, True),  # nothing goes beyond the maximum
    ],
)
def test_an_intent_that_nobody_needs_is_forgotten_unless_somebody_is_at_it(
    claimed_until: datetime | None, maximum: int, forgotten: bool
) -> None:
    intent = runner(S.REQUESTED, claimed_by="another", claimed_until=claimed_until)
    limits = pool().model_copy(update={"maximum_pool_size": maximum})
    assert bool(of(Forget, plan(NOW, limits, Head("linux"), world(intent)))) is forgotten
