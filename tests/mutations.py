"""Deliberate defects of the production code, at least one for each invariant: `test_mutations.py` shows that each is found.

A mutation replaces one rule of the code that is under test; the worlds, their faults and the checkers stay as they are.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from runnerpool import (
    deletion,
    demand,
    intake,
    launch,
    lifecycle,
    model,
    plan,
    provision,
    reconcile,
    redelivery,
    register,
    rows,
    sweep,
    withdraw,
)
from runnerpool.actions import Action, Delete
from runnerpool.app import App
from runnerpool.config import WarmWindow
from runnerpool.decide import Decision
from runnerpool.errors import RetryLater
from runnerpool.intake import Receipt
from runnerpool.labels import pool_of_runner
from runnerpool.ledger import Ledger
from runnerpool.model import Basis, Fact, Job, Runner, RunnerState
from runnerpool.ports import (
    AgentStatus,
    AgentTrouble,
    JitConfig,
    Operation,
    Registration,
    Removal,
    Remove,
    Table,
    Upsert,
)
from tests.sim.github import GitHubPort

S = RunnerState
Patch = pytest.MonkeyPatch
Registrations = Mapping[str, Mapping[str, Registration]]


@dataclass(frozen=True)
class Mutation:
    """`breaks` is the invariant, `within` the number of seeds that its checker may need, from `first` on: a defect that not
    every world can show begins at one that does."""

    apply: Callable[[Patch], None]
    breaks: int
    within: int
    first: int = 1

    def __str__(self) -> str:
        return f"{self.breaks}-{self.apply.__name__}"


# ---------------------------------------------------------------------------------------------- 1, 2: deletions


def busy_vms_are_deleted(patch: Patch) -> None:
    honest = plan.withdrawals

    def mutated(now: datetime, world: Any, *seen: Any) -> Iterable[Action]:
        yield from honest(now, world, *seen)
        yield from (Delete(r.name, Basis.NEVER_MINTED, "mutated") for r in world.runners.values() if r.state is S.BUSY)

    patch.setattr(plan, "withdrawals", mutated)


def github_is_not_asked(patch: Patch) -> None:
    async def mutated(_acting: Any, _runner: Runner) -> Removal:
        return Removal.REMOVED

    patch.setattr(withdraw, "_remove", mutated)


def agents_are_not_asked(patch: Patch) -> None:
    honest = deletion.basis

    def mutated(now: datetime, runner: Runner, agent: Any, polled_at: datetime | None, **known: bool) -> Basis | None:
        return honest(now, runner, agent, polled_at, **known) or (Basis.CLEAR if runner.deregistered_at else None)

    patch.setattr(plan, "basis", mutated)


def a_404_proves_that_a_registration_is_gone(patch: Patch) -> None:
    honest = GitHubPort.remove_runner

    async def mutated(self: GitHubPort, target: str, runner_id: int) -> Removal:
        found = await honest(self, target, runner_id)
        return Removal.REMOVED if found is Removal.ABSENT else found

    patch.setattr(GitHubPort, "remove_runner", mutated)


def a_minute_of_silence_is_enough(patch: Patch) -> None:
    patch.setattr(deletion, "SILENCE", timedelta(minutes=1))


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

    async def mutated(acting: Any, runner: Runner, *given: Any) -> JitConfig:
        target = register.target_of(runner)
        if target not in kept:
            kept[target] = await honest(acting, runner, *given)
        return kept[target]

    patch.setattr(register, "mint", mutated)
    patch.setattr(launch, "mint", mutated)


def that_a_job_was_seen_is_forgotten(patch: Patch) -> None:
    honest, settled = lifecycle._agent, register._settled

    def mutated(now: datetime, runner: Runner, word: AgentStatus | AgentTrouble | None) -> Runner:
        return honest(now, runner, replace(word, job_seen=False) if isinstance(word, AgentStatus) else word)

    async def unsettled(acting: Any, runner: Runner, status: AgentStatus) -> bool:
        return await settled(acting, runner, replace(status, job_seen=False))

    patch.setattr(lifecycle, "_agent", mutated)
    patch.setattr(register, "_settled", unsettled)


# ---------------------------------------------------------------------------------------------- 6, 7: what comes in, what is ours


def signatures_are_not_looked_at(patch: Patch) -> None:
    patch.setattr(intake, "refusal", lambda *_: None)


def missing_signatures_are_good_ones(patch: Patch) -> None:
    honest = intake.refusal

    def mutated(body: bytes, headers: Mapping[str, str], secrets: Sequence[str]) -> Receipt | None:
        return honest(body, headers, secrets) if "x-hub-signature-256" in headers else None

    patch.setattr(intake, "refusal", mutated)


def every_repository_is_served(patch: Patch) -> None:
    patch.setattr(intake, "why_no_demand", lambda *_: "")


def jit_configs_are_logged(patch: Patch) -> None:
    honest = register.mint

    async def mutated(acting: Any, runner: Runner, *given: Any) -> JitConfig:
        config = await honest(acting, runner, *given)
        logging.getLogger("runnerpool.register").info("minted %s for %s", config.encoded, runner.name)
        return config

    patch.setattr(launch, "mint", mutated)
    patch.setattr(register, "mint", mutated)


def a_name_that_looks_like_ours_is_ours(patch: Patch) -> None:
    patch.setattr(sweep, "our_pool", pool_of_runner)


def an_offline_registration_that_looks_like_ours_is_ours(patch: Patch) -> None:
    def mutated(registrations: Registrations, vms: Any, known: Any, _pools: Any, prefix: str) -> list[tuple[str, Registration]]:
        return [
            (target, registration)
            for target, found in registrations.items()
            for name, registration in found.items()
            if name.startswith(prefix) and not registration.online and name not in known and name not in vms
        ]

    patch.setattr(sweep, "orphaned_registrations", mutated)


# ---------------------------------------------------------------------------------------------- 8, 9: transitions, limits


def late_news_revive_what_is_being_deleted(patch: Patch) -> None:
    honest = model.apply_to_runner

    def mutated(runner: Runner, fact: Fact, now: datetime) -> Runner:
        if runner.state in (S.FINISHED, S.DELETING) and fact.action == "in_progress" and fact.runner_name == runner.name:
            return replace(runner, state=S.BUSY, since=now)
        return honest(runner, fact, now)

    patch.setattr(lifecycle, "apply_to_runner", mutated)


def budgets_have_no_bottom(patch: Patch, service: str = "") -> None:
    honest = Ledger.take

    async def mutated(self: Ledger, scope: str, want: int, now: datetime) -> int:
        return want if scope.startswith(service) else await honest(self, scope, want, now)

    patch.setattr(Ledger, "take", mutated)


# ---------------------------------------------------------------------------------------------- 10 to 15: what heals


def failed_deliveries_are_left(patch: Patch) -> None:
    async def mutated(_self: Any, cursor: Any, _deadline: datetime) -> Any:
        return cursor

    patch.setattr(reconcile.Reconcile, "_redeliver", mutated)


def failed_deliveries_are_given_up_after_half_an_hour(patch: Patch) -> None:
    patch.setattr(redelivery, "ATTEMPTS", 5)


def orphaned_vms_are_left(patch: Patch) -> None:
    patch.setattr(sweep, "orphaned_vms", lambda *_: [])


def orphaned_registrations_are_left(patch: Patch) -> None:
    patch.setattr(sweep, "orphaned_registrations", lambda *_: [])


def idle_vms_stay(patch: Patch) -> None:
    patch.setattr(plan, "surplus", lambda *_: [])


def windows_never_hold(patch: Patch) -> None:
    patch.setattr(WarmWindow, "holds", lambda *_: False)


def what_is_on_its_way_covers_no_job(patch: Patch) -> None:
    honest = demand._short_of

    def mutated(now: datetime, waiting: Sequence[Job], _bound: Sequence[Runner]) -> list[Job]:
        return honest(now, waiting, [])

    patch.setattr(demand, "_short_of", mutated)


def idle_vms_are_not_kept_for_the_warm_minimum(patch: Patch) -> None:
    patch.setattr(plan, "_kept_warm", lambda _now, _pool: 0)


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


def wakeups_are_noted_when_they_have_failed(patch: Patch) -> None:
    """What dies in its last attempt leaves nothing."""
    honest = App._poison

    async def mutated(self: App, body: bytes, message_id: str, why: str) -> None:
        if "its end was not seen" not in why:
            await honest(self, body, message_id, why)

    patch.setattr(App, "_poison", mutated)


MUTATIONS = [
    Mutation(busy_vms_are_deleted, breaks=1, within=3),
    Mutation(github_is_not_asked, breaks=2, within=3),
    Mutation(agents_are_not_asked, breaks=2, within=3),
    Mutation(a_minute_of_silence_is_enough, breaks=2, within=15),
    Mutation(what_is_being_deleted_does_not_count, breaks=3, within=10),
    Mutation(jit_configs_are_kept_for_the_next_vm, breaks=4, within=3),
    Mutation(that_a_job_was_seen_is_forgotten, breaks=5, within=10),
    Mutation(signatures_are_not_looked_at, breaks=6, within=3),
    Mutation(missing_signatures_are_good_ones, breaks=6, within=3),
    Mutation(every_repository_is_served, breaks=6, within=3),
    Mutation(jit_configs_are_logged, breaks=6, within=3),
    Mutation(a_name_that_looks_like_ours_is_ours, breaks=7, within=3),
    Mutation(an_offline_registration_that_looks_like_ours_is_ours, breaks=7, within=3),
    Mutation(late_news_revive_what_is_being_deleted, breaks=8, within=10),
    Mutation(failed_deliveries_are_left, breaks=10, within=25),
    Mutation(orphaned_vms_are_left, breaks=11, within=10),
    Mutation(orphaned_registrations_are_left, breaks=12, within=10),
    Mutation(idle_vms_stay, breaks=13, within=10),
    Mutation(windows_never_hold, breaks=13, within=3, first=10),
    Mutation(late_deliveries_are_believed, breaks=14, within=5),
    Mutation(wakeups_fail_without_a_trace, breaks=15, within=3),
]
