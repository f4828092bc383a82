"""The checkers bite: for each invariant a deliberate defect of the production code, which they find within a few seeds.

Each is played on one seed after another until its own invariant breaks.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.mutations import (
    MUTATIONS,
    Mutation,
    Patch,
    a_404_proves_that_a_registration_is_gone,
    budgets_have_no_bottom,
    failed_deliveries_are_given_up_after_half_an_hour,
    idle_vms_are_not_kept_for_the_warm_minimum,
    plans_ignore_the_heads_etag,
    wakeups_are_noted_when_they_have_failed,
    wakeups_fail,
    what_is_on_its_way_covers_no_job,
)
from tests.sim.soak import judge
from tests.sim.world import World, play
from tests.test_scale import burst


@pytest.mark.timeout(600)
@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_a_defect_breaks_its_invariant_within_a_few_seeds(mutation: Mutation, monkeypatch: Patch) -> None:
    mutation.apply(monkeypatch)
    found = []
    for seed in range(mutation.first, mutation.first + mutation.within):
        found += judge(seed, oracle=False).violations
        if any(violation.invariant == mutation.breaks for violation in found):
            return
    pytest.fail(f"{mutation} was not found in {mutation.within} seeds; what was found: {[str(one) for one in found[:5]]}")


@pytest.mark.parametrize("mutated", [True, False])
def test_a_404_for_want_of_a_permission_proves_nothing(mutated: bool, monkeypatch: Patch) -> None:
    """Invariant 2, on days on which the permission is lost a few minutes after some of the jobs came."""
    if mutated:
        a_404_proves_that_a_registration_is_gone(monkeypatch)
    found: set[int] = set()
    for seed in range(1, 4):
        world = World(seed, jobs=60)
        world.faults.windows["permission lost"] = [(plan.at + 300, plan.at + 1500) for plan in world.scenario.jobs[::10]]
        found |= {violation.invariant for violation in world.run().violations}
    assert found == ({2} if mutated else set())


def test_warm_vms_made_without_the_heads_etag_break_the_maximum(monkeypatch: Patch) -> None:
    """Invariant 3. A VM that is made for a job changes the job's row, too; what is made to keep a pool warm changes nothing but
    the head, and two timers that begin at once see the same lack."""
    plans_ignore_the_heads_etag(monkeypatch)
    found: set[int] = set()
    for seed in range(20):
        world = burst(1, maximum=10, warm=10, seed=seed)
        for _ in range(16):
            world.later(0.0, world.host._fire, True)
        world.run_day()
        found |= {violation.invariant for violation in world.checks.violations}
        if found:
            break
    assert found == {3}


@pytest.mark.parametrize(
    ("scopes", "words"), [("github-", "GitHub points in a minute"), ("arm-", "ARM's bucket of writes is empty")]
)
def test_a_burst_without_budgets_breaks_the_ceilings(scopes: str, words: str, monkeypatch: Patch) -> None:
    """Invariant 9. A day's jobs rarely come near the ceilings; a burst of 300 jobs in a second does."""
    budgets_have_no_bottom(monkeypatch, scopes)
    world = burst(300, maximum=300)
    world.run_day()
    assert {violation.invariant for violation in world.checks.violations} == {9}
    assert words in str(world.checks.violations)


@pytest.mark.parametrize("mutated", [True, False])
def test_jobs_that_came_while_the_webhook_was_out_of_reach_get_their_runners(mutated: bool, monkeypatch: Patch) -> None:
    """Invariant 10, on a day on which that is all that fails, for two hours. Many deliveries share the attempts in such a time; few
    have used up theirs when it is over."""
    if mutated:
        failed_deliveries_are_given_up_after_half_an_hour(monkeypatch)
    world = burst(3, maximum=10)
    world.scenario = replace(world.scenario, day=3 * 3600.0)
    world.faults.windows["front down"] = [(0.0, 2 * 3600.0)]
    result = world.run()
    assert any(violation.invariant == 10 for violation in result.violations) == bool(result.violations) == mutated
    assert len(result.succeeded) == (0 if mutated else 3)


def test_vms_that_no_job_needs_are_counted_where_nothing_fails(monkeypatch: Patch) -> None:
    """Invariant 14. What faults may cost hides them; without any fault there is one VM for each job."""
    what_is_on_its_way_covers_no_job(monkeypatch)
    found = [violation for seed in (11, 18, 19) for violation in play(seed, families=()).violations]
    assert any(violation.invariant == 14 and "VMs were made where" in violation.text for violation in found), found


def test_warm_vms_that_go_and_are_made_again_are_counted(monkeypatch: Patch) -> None:
    """Invariant 14, once everything has healed. Only what Azure had no room for may be made again."""
    idle_vms_are_not_kept_for_the_warm_minimum(monkeypatch)
    found = play(6, families=()).violations
    assert any(violation.invariant == 14 and "VMs were asked for to keep" in violation.text for violation in found), found


def test_wakeups_that_all_fail_end_in_readable_rows_and_lose_no_job(monkeypatch: Patch) -> None:
    """Invariant 15 holds where every wake-up fails for good: each has its row, and the timer does the work."""
    wakeups_fail(monkeypatch)
    result = judge(1, oracle=False)
    assert not result.violations, [str(violation) for violation in result.violations]


@pytest.mark.parametrize("mutated", [True, False])
def test_what_dies_in_its_last_attempt_has_left_its_row_before(mutated: bool, monkeypatch: Patch) -> None:
    """Invariant 15, in worlds where many last attempts die."""
    if mutated:
        wakeups_are_noted_when_they_have_failed(monkeypatch)
    found: set[int] = set()
    for seed in range(1, 4):
        world = World(seed, jobs=60)
        world.faults.rates |= {"killed": 0.02, "fails four times": 0.5}
        found |= {violation.invariant for violation in world.run().violations}
    assert found == ({15} if mutated else set())
