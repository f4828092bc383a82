"""The checkers bite: for each invariant a deliberate defect of the production code, which they find within a few seeds.

A mutation replaces one rule of the code that is under test; the worlds, their faults and the checkers stay as they are. Each
is played on the seeds 1, 2, 3, … until its own invariant breaks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from runnerpool import (
    deletion,
    intake,
    launch,
    lifecycle,
    model,
    plan,
    provision,
    reconcile,
    register,
    rows,
    sweep,
    withdraw,
)
from runnerpool.actions import Action, Delete
from runnerpool.app import App
from runnerpool.decide import Decision
from runnerpool.errors import RetryLater
from runnerpool.labels import pool_of_runner
from runnerpool.ledger import Ledger
from runnerpool.model import Basis, Fact, Job, Runner, RunnerState
from runnerpool.ports import AgentPhase, JitConfig, Operation, Removal, Remove, Table, Upsert
from tests.sim.machines import Machine
from tests.sim.soak import judge
from tests.test_scale import burst

S = RunnerState
Patch = pytest.MonkeyPatch


@dataclass(frozen=True)
class Mutation:
    """`breaks` is the invariant, `within` the number of seeds that its checker may need."""

    apply: Callable[[Patch], None]
    breaks: int
    within: int

    def __str__(self) -> str:
        return f"{self.breaks}-{self.apply.__name__}"


# ---------------------------------------------------------------------------------------------- 1, 2: deletions


def busy_vms_are_deleted(patch: Patch) -> None:
    honest = plan.withdrawals

    def mutated(now: datetime, world: Any, seen: Any) -> Iterable[Action]:
        yield from honest(now, world, seen)
        yield from (Delete(r.name, Basis.NEVER_MINTED, "mutated") for r in world.runners.values() if r.state is S.BUSY)

    patch.setattr(plan, "withdrawals", mutated)


def github_is_not_asked(patch: Patch) -> None:
    async def mutated(_acting: Any, _runner: Runner) -> Removal:
        return Removal.REMOVED

    patch.setattr(withdraw, "_remove", mutated)


def agents_are_not_asked(patch: Patch) -> None:
    honest = deletion.basis

    def mutated(now: datetime, runner: Runner, agent: Any, polled_at: datetime | None) -> Basis | None:
        return honest(now, runner, agent, polled_at) or (Basis.CLEAR if runner.deregistered_at else None)

    patch.setattr(plan, "basis", mutated)


# ---------------------------------------------------------------------------------------------- 3: the maximum


def plans_ignore_the_heads_etag(patch: Patch) -> None:
    honest = Ledger.commit

    async def mutated(self: Ledger, decision: Decision) -> tuple[dict[str, Runner], dict[str, Job]]:
        return await honest(Ledger(table=Careless(self._table), history=self._history), decision)

    patch.setattr(Ledger, "commit", mutated)


class Careless:
    """A table whose row `pool` takes every write."""

    def __init__(self, table: Table) -> None:
        self.read, self.get, self._transact = table.read, table.get, table.transact

    async def transact(self, partition: str, operations: Sequence[Operation]) -> list[str]:
        return await self._transact(partition, [self._unconditional(operation) for operation in operations])

    def _unconditional(self, operation: Operation) -> Operation:
        written = operation.row == rows.HEAD_KEY and not isinstance(operation, Remove)
        return Upsert(operation.row, operation.columns) if written else operation  # type: ignore[union-attr]


def what_is_being_deleted_does_not_count(patch: Patch) -> None:
    patch.setattr(Runner, "exists", property(lambda self: self.state is not S.DELETING))


# ---------------------------------------------------------------------------------------------- 4, 5: names, registrations, reuse


def jit_configs_are_kept_for_the_next_vm(patch: Patch) -> None:
    honest = register.mint
    kept: dict[str, JitConfig] = {}

    async def mutated(acting: Any, runner: Runner) -> JitConfig:
        target = register.target_of(runner)
        if target not in kept:
            kept[target] = await honest(acting, runner)
        return kept[target]

    patch.setattr(register, "mint", mutated)
    patch.setattr(launch, "mint", mutated)


def agents_forget_their_job(patch: Patch) -> None:
    """The one mutation that is not of the app's code: an agent that does not remember its job takes another binding."""

    def mutated(self: Machine) -> None:
        self.phase, self.worker, self.job_seen = AgentPhase.EXITED, False, False

    patch.setattr(Machine, "job_over", mutated)


# ---------------------------------------------------------------------------------------------- 6, 7: what comes in, what is ours


def signatures_are_not_looked_at(patch: Patch) -> None:
    patch.setattr(intake, "refusal", lambda *_: None)


def every_repository_is_served(patch: Patch) -> None:
    patch.setattr(intake, "why_no_demand", lambda *_: "")


def jit_configs_are_logged(patch: Patch) -> None:
    honest = register.mint

    async def mutated(acting: Any, runner: Runner) -> JitConfig:
        config = await honest(acting, runner)
        logging.getLogger("runnerpool.register").info("minted %s for %s", config.encoded, runner.name)
        return config

    patch.setattr(launch, "mint", mutated)
    patch.setattr(register, "mint", mutated)


def a_name_that_looks_like_ours_is_ours(patch: Patch) -> None:
    patch.setattr(sweep, "our_pool", pool_of_runner)


# ---------------------------------------------------------------------------------------------- 8, 9: transitions, limits


def late_news_revive_what_is_being_deleted(patch: Patch) -> None:
    honest = model.apply_to_runner

    def mutated(runner: Runner, fact: Fact, now: datetime) -> Runner:
        if runner.state in (S.FINISHED, S.DELETING) and fact.action == "in_progress" and fact.runner_name == runner.name:
            return replace(runner, state=S.BUSY, since=now)
        return honest(runner, fact, now)

    patch.setattr(lifecycle, "apply_to_runner", mutated)


def budgets_have_no_bottom(patch: Patch) -> None:
    async def mutated(_self: Ledger, _scope: str, want: int, _now: datetime) -> int:
        return want

    patch.setattr(Ledger, "take", mutated)


# ---------------------------------------------------------------------------------------------- 10 to 15: what heals


def failed_deliveries_are_left(patch: Patch) -> None:
    async def mutated(_self: Any, cursor: Any, _deadline: datetime) -> Any:
        return cursor

    patch.setattr(reconcile.Reconcile, "_redeliver", mutated)


def orphaned_vms_are_left(patch: Patch) -> None:
    patch.setattr(sweep, "orphaned_vms", lambda *_: [])


def orphaned_registrations_are_left(patch: Patch) -> None:
    patch.setattr(sweep, "orphaned_registrations", lambda *_: [])


def idle_vms_stay(patch: Patch) -> None:
    patch.setattr(plan, "surplus", lambda *_: [])


def late_deliveries_are_believed(patch: Patch) -> None:
    patch.setattr(model, "LATE", timedelta(days=365))


def wakeups_fail(patch: Patch) -> None:
    """No mutation: a deployment whose wake-ups all fail. What becomes of them is the question."""

    async def mutated(_self: Any, name: str, *, deadline: datetime) -> set[str]:
        raise RetryLater(f"pool {name} cannot be planned until {deadline}")

    patch.setattr(provision.SharedPasses, "wake", mutated)


def wakeups_fail_without_a_trace(patch: Patch) -> None:
    async def mutated(_self: App, _body: bytes, _message_id: str, _why: str) -> None: ...

    wakeups_fail(patch)
    patch.setattr(App, "_poison", mutated)


MUTATIONS = [
    Mutation(busy_vms_are_deleted, breaks=1, within=3),
    Mutation(github_is_not_asked, breaks=2, within=3),
    Mutation(agents_are_not_asked, breaks=2, within=3),
    Mutation(what_is_being_deleted_does_not_count, breaks=3, within=10),
    Mutation(jit_configs_are_kept_for_the_next_vm, breaks=4, within=3),
    Mutation(agents_forget_their_job, breaks=5, within=10),
    Mutation(signatures_are_not_looked_at, breaks=6, within=3),
    Mutation(every_repository_is_served, breaks=6, within=3),
    Mutation(jit_configs_are_logged, breaks=6, within=3),
    Mutation(a_name_that_looks_like_ours_is_ours, breaks=7, within=3),
    Mutation(late_news_revive_what_is_being_deleted, breaks=8, within=10),
    Mutation(failed_deliveries_are_left, breaks=10, within=25),
    Mutation(orphaned_vms_are_left, breaks=11, within=10),
    Mutation(orphaned_registrations_are_left, breaks=12, within=10),
    Mutation(idle_vms_stay, breaks=13, within=10),
    Mutation(late_deliveries_are_believed, breaks=14, within=5),
    Mutation(wakeups_fail_without_a_trace, breaks=15, within=3),
]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_a_defect_breaks_its_invariant_within_a_few_seeds(mutation: Mutation, monkeypatch: Patch) -> None:
    mutation.apply(monkeypatch)
    found = []
    for seed in range(1, mutation.within + 1):
        found += judge(seed, oracle=False).violations
        if any(violation.invariant == mutation.breaks for violation in found):
            return
    pytest.fail(f"{mutation} was not found in {mutation.within} seeds; what was found: {[str(one) for one in found[:5]]}")


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


def test_a_burst_without_budgets_breaks_the_ceiling_of_github(monkeypatch: Patch) -> None:
    """Invariant 9. A day's jobs rarely come near the ceiling; a burst of 200 jobs in a second does."""
    budgets_have_no_bottom(monkeypatch)
    world = burst(200, maximum=200)
    world.run_day()
    assert {violation.invariant for violation in world.checks.violations} == {9}


def test_wakeups_that_all_fail_end_in_readable_rows_and_lose_no_job(monkeypatch: Patch) -> None:
    """Invariant 15 holds where every wake-up fails for good: each has its row, and the timer does the work."""
    wakeups_fail(monkeypatch)
    result = judge(1, oracle=False)
    assert not result.violations, [str(violation) for violation in result.violations]


__all__ = ["MUTATIONS"]
